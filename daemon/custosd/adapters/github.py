"""GitHub, over REST and its webhooks.

Laws:

1. Of a stream only the first page is asked on condition (ETag, or Last-Modified): where that
   says "not modified" nothing is new, and nothing was counted.
2. A pass over a stream begins at the newest and ends where the last complete one began, or at
   the horizon. Its place is in the cursor, so one that was cut short goes on there; pages that
   shift meanwhile repeat works, and never skip one. Times of commits are not GitHub's: one
   that lies ends no pass, only a whole page from before the horizon does.
3. The next page is where the answer's Link says, on the same host and below the same root,
   at most `MOST_PAGES` in a pass and never twice the same.
4. A redirect is followed on the same host only: that is a repository that was renamed.
5. A hook is signed: HMAC-SHA256 over the raw body, compared in constant time, before a
   byte of it is read. Without a secret nothing is let in.
6. Tokens are read at each use from a file that others cannot read, and are in no message.
"""

import hashlib
import hmac
import math
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import trio

from custosd.adapters.github_wire import (
    AboutForm,
    ChecksForm,
    CommitForm,
    HookForm,
    IssueForm,
    PullForm,
    check_of,
    commit_of,
    decoded,
    issue_of,
    pull_of,
    utc,
    works_of_hook,
)
from custosd.adapters.hooks import NoToken, authorization
from custosd.adapters.http_client import (
    HttpAnswer,
    HttpClient,
    HttpError,
    HttpLimits,
    HttpRequest,
    open_http,
)
from custosd.config.problems import InvalidConfig
from custosd.config.secret import Secret
from custosd.core.forge import (
    Delivery,
    ForgeError,
    ForgeWork,
    HookRefusal,
    HookRefused,
    Quota,
    Repository,
    Trouble,
    WorkKind,
    WorkState,
)
from custosd.ports import ForgePage

MOST_PAGES = 500
"""Pages of one pass; a stream that has more is not believed."""

TRAIL = 16
LARGEST_HOOK_BYTES = 25 * 1024 * 1024
LARGEST_PAGE_BYTES = 16 * 1024 * 1024
MOST_REDIRECTS = 3
PER_PAGE = 100
CHECKED = 20
"""Of so many pull requests at a time, the newest, the checks are followed."""

SECONDARY_S = 60.0
"""How long to wait where GitHub says "too fast" and not for how long."""

_VERSION = "2022-11-28"
_OK, _NOT_MODIFIED = 200, 304
_UNAUTHORISED, _FORBIDDEN = 401, 403
_LIMITS = frozenset({403, 429})
_REDIRECTS = frozenset({301, 302, 307, 308})
_ABSENT = {
    "issues": frozenset({404, 410}),
    "commits": frozenset({404, 409}),
    "checks": frozenset({404, 410, 422}),
}
"""What of a stream says that there is none: issues that are off, a repository without commits."""

_LINK = re.compile(r"<([^<>]{1,4000})>\s*((?:;[^;,<>]{0,500}){1,10})")
_NEXT = re.compile(r';\s*rel\s*=\s*"?([^";]{0,200})"?')
_LONGEST_NUMBER = 15
_EVENT = re.compile(r"[a-z0-9_]{1,100}")
_DELIVERY = re.compile(r"[A-Za-z0-9-]{1,100}")


@dataclass(frozen=True, slots=True)
class GitHubSettings:
    """How GitHub is asked. `history_s`: how far back the first pass over a stream goes."""

    base_url: str = "https://api.github.com"
    token: Secret | None = None
    webhook_secret: Secret | None = None
    history_s: float = 30 * 86_400.0
    read_s: float = 20.0
    connections: int = 3
    largest_page_bytes: int = LARGEST_PAGE_BYTES


class _Cursor(msgspec.Struct, omit_defaults=True):
    """How far a stream was followed: the last complete pass, and the one under way."""

    etag: str = ""
    modified: str = ""
    since: datetime | None = None
    head: str = ""
    next: str = ""
    pages: int = 0
    pass_etag: str = ""
    pass_modified: str = ""
    pass_since: datetime | None = None
    pass_head: str = ""
    trail: list[str] = []


_cursors = msgspec.json.Decoder(_Cursor)


@asynccontextmanager
async def open_github(
    settings: GitHubSettings, now_utc: Callable[[], datetime]
) -> AsyncGenerator["GitHub"]:
    """GitHub for the block, over connections of its own."""
    limits = HttpLimits(
        connections=settings.connections,
        read_s=settings.read_s,
        connect_s=min(settings.read_s, 10.0),
        largest_body_bytes=settings.largest_page_bytes,
    )
    async with open_http(limits) as http:
        yield GitHub(http, settings, now_utc)


class GitHub:
    """`ports.Forge`; from `open_github`."""

    def __init__(
        self, http: HttpClient, settings: GitHubSettings, now_utc: Callable[[], datetime]
    ) -> None:
        self._http = http
        self._settings = settings
        self._now_utc = now_utc
        self._root = settings.base_url.rstrip("/")

    def streams(self, repository: Repository, open_works: Sequence[ForgeWork]) -> tuple[str, ...]:
        """See the port."""
        heads = [
            work.sha
            for work in open_works
            if work.kind is WorkKind.PULL_REQUEST and work.state is WorkState.OPEN and work.sha
        ]
        return (
            "about",
            "pulls",
            "issues",
            *(f"commits/{branch}" for branch in repository.branches or ("",)),
            *(f"checks/{sha}" for sha in dict.fromkeys(heads[:CHECKED])),
        )

    async def page(self, repository: Repository, stream: str, cursor: str) -> ForgePage:
        """See the port."""
        at = _cursor_of(cursor)
        first = f"{self._root}{_path(repository, stream)}"
        url = at.next or first
        asked = _Asked(repository, stream, at, url)
        headers = {} if at.next else _conditions(at)
        try:
            answer, moved = await self._get(asked, url, headers)
        except HttpError as error:
            malformed = error.kind in {"malformed", "too_large"}
            trouble = Trouble.MALFORMED if malformed else Trouble.UNREACHABLE
            raise ForgeError(trouble, f"{asked.place}: {error}") from error
        quota = _quota(answer.headers, self._now_utc())
        if answer.status == _NOT_MODIFIED:
            return ForgePage(cursor, unchanged=True, quota=quota, moved=moved)
        if answer.status != _OK:
            raise self._trouble(asked, answer)
        return replace(self._read(asked, answer), quota=quota, moved=moved)

    async def _get(
        self, asked: "_Asked", url: str, conditions: Mapping[str, str]
    ) -> tuple["_Answer", bool]:
        try:
            secret = await authorization(self._settings.token)
        except NoToken as error:
            raise ForgeError(Trouble.DENIED, str(error)) from error
        headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": _VERSION,
            "User-Agent": "custosd",
            **conditions,
        }
        for hop in range(MOST_REDIRECTS + 1):
            request = HttpRequest("GET", url, headers, secret)
            async with self._http.exchange(request) as answer:
                if answer.status not in _REDIRECTS:
                    return await _whole(answer), hop > 0
                url = self._below_root(asked, urljoin(url, answer.headers.get("location", "")))
        raise ForgeError(Trouble.MALFORMED, f"{asked.place}: redirected without an end")

    def _below_root(self, asked: "_Asked", url: str) -> str:
        """A place that an answer named; only on the host, and below the root, that was asked."""
        try:
            there, here = urlsplit(url), urlsplit(self._root)
            port = there.port
        except ValueError:
            there, here, port = urlsplit(""), urlsplit("x:"), None
        same = (there.scheme, there.hostname, port) == (here.scheme, here.hostname, here.port)
        below = there.path.startswith(f"{here.path}/") and "/../" not in f"{there.path}/"
        if not same or not below or there.username is not None:
            raise ForgeError(
                Trouble.MALFORMED,
                f"{asked.place}: the answer leads to another place than {here.hostname}",
                cursor=_restarted(asked.cursor),
            )
        return url

    def _trouble(self, asked: "_Asked", answer: "_Answer") -> ForgeError:
        status, place = answer.status, asked.place
        limited = _limited(answer, self._now_utc())
        if limited is not None:
            words = f"{place}: GitHub has had enough of us ({status})"
            return ForgeError(Trouble.LIMITED, words, retry_in_s=limited)
        sort = asked.stream.partition("/")[0]
        if asked.cursor.next and status in {404, 410, 422}:
            words = f"{place}: the next page is no more ({status})"
            return ForgeError(Trouble.ABSENT, words, cursor=_restarted(asked.cursor))
        if status in _ABSENT.get(sort, ()):
            return ForgeError(Trouble.ABSENT, f"{place}: there is none ({status})")
        if status in {404, 410, 451}:
            words = f"{place}: there is none, or the token may not see it ({status})"
            return ForgeError(Trouble.GONE, words)
        if status in {_UNAUTHORISED, _FORBIDDEN}:
            return ForgeError(Trouble.DENIED, f"{place}: the token may not read it ({status})")
        retry_in_s = _seconds(answer.headers.get("retry-after", ""), self._now_utc())
        words = f"{place}: answered {status}"
        return ForgeError(Trouble.UNAVAILABLE, words, retry_in_s=retry_in_s)

    def _read(self, asked: "_Asked", answer: "_Answer") -> ForgePage:
        repository, stream, at = asked.repository, asked.stream, asked.cursor
        sort, _, which = stream.partition("/")
        try:
            works: list[ForgeWork] = []
            heads: list[str] = []
            times: list[datetime] = []
            match sort:
                case "about":
                    form = decoded(answer.body, AboutForm)
                    ended = msgspec.json.encode(_completed(at, answer, None, "")).decode()
                    return ForgePage(ended, forge_id=str(form.id), full_name=form.full_name)
                case "pulls":
                    pulls = decoded(answer.body, list[PullForm])
                    works = [pull_of(pull, repository) for pull in pulls]
                    times = [work.updated_utc for work in works]
                case "issues":
                    issues = decoded(answer.body, list[IssueForm])
                    found = [issue_of(issue, repository) for issue in issues]
                    works = [work for work in found if work is not None]
                    times = [utc(issue.updated_at) for issue in issues]
                case "commits":
                    commits = decoded(answer.body, list[CommitForm])
                    works = [commit_of(commit, repository, which) for commit in commits]
                    heads = [work.sha for work in works]
                    times = [work.updated_utc for work in works]
                case _:
                    checks = decoded(answer.body, ChecksForm).check_runs
                    works = [check_of(check, repository) for check in checks]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            # Its words quote the data; where in the data is enough.
            words = f"{asked.place}: the answer is not as GitHub's are ({type(error).__name__})"
            raise ForgeError(Trouble.MALFORMED, words) from error
        return self._following(asked, answer, works, times, heads)

    def _following(
        self,
        asked: "_Asked",
        answer: "_Answer",
        works: list[ForgeWork],
        times: list[datetime],
        heads: list[str],
    ) -> ForgePage:
        """Where it goes on after this page (law 2)."""
        at = asked.cursor
        seen = times if at.pass_since is None else [*times, at.pass_since]
        newest = max(seen, default=None)
        head = at.pass_head or (heads[0] if heads else "")
        horizon_utc = self._now_utc() - timedelta(seconds=self._settings.history_s)
        if heads:
            # Commits come by descent, and their times are whatever who made them says.
            reached = max(times) < horizon_utc or (at.head != "" and at.head in heads)
        else:
            oldest = min(times, default=None)
            reached = oldest is not None and (
                oldest < horizon_utc or (at.since is not None and oldest < at.since)
            )
        target = None if reached else _next(answer.headers.get("link", ""))
        if target is None:
            ended = _completed(at, answer, newest, head)
            return ForgePage(msgspec.json.encode(ended).decode(), tuple(works))
        target = self._below_root(asked, urljoin(asked.url, target))
        trail = [*at.trail, _mark(asked.url)]
        if _mark(target) in trail or at.pages + 1 >= MOST_PAGES:
            words = f"{asked.place}: its pages have no end, or lead in a circle"
            raise ForgeError(Trouble.MALFORMED, words, cursor=_restarted(at))
        onward = _Cursor(
            etag=at.etag,
            modified=at.modified,
            since=at.since,
            head=at.head,
            next=target,
            pages=at.pages + 1,
            pass_etag=at.pass_etag if at.next else answer.headers.get("etag", ""),
            pass_modified=at.pass_modified if at.next else answer.headers.get("last-modified", ""),
            pass_since=newest,
            pass_head=head,
            trail=trail[-TRAIL:],
        )
        return ForgePage(msgspec.json.encode(onward).decode(), tuple(works), more=True)

    # what GitHub tells by itself

    async def delivery(
        self,
        headers: Mapping[str, str],
        body: bytes,
        find: Callable[[str, str], Repository | None],
    ) -> Delivery:
        """See the port."""
        await self._verify(headers.get("x-hub-signature-256", ""), body)
        name, event = headers.get("x-github-delivery", ""), headers.get("x-github-event", "")
        if not _DELIVERY.fullmatch(name) or not _EVENT.fullmatch(event):
            raise HookRefused(HookRefusal.MALFORMED, "it has no X-GitHub-Delivery or -Event")
        try:
            return _told(name, event, body, find)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            words = f"the body is no {event} of GitHub's; the content type is application/json"
            raise HookRefused(HookRefusal.MALFORMED, words) from error

    async def _verify(self, signature: str, body: bytes) -> None:
        secret = self._settings.webhook_secret
        if secret is None:
            words = "there is no secret to verify it with: set sync.webhook_secret_file"
            raise HookRefused(HookRefusal.UNVERIFIED, words)
        if len(body) > LARGEST_HOOK_BYTES:
            raise HookRefused(HookRefusal.MALFORMED, "it is larger than any of GitHub's")
        try:
            key = (await trio.to_thread.run_sync(secret.read)).encode()
        except InvalidConfig as error:
            raise HookRefused(HookRefusal.UNVERIFIED, str(error)) from error
        signed = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signed.encode(), signature.encode(errors="replace")):
            words = "it is not signed with our secret (X-Hub-Signature-256)"
            raise HookRefused(HookRefusal.UNSIGNED, words)


@dataclass(frozen=True, slots=True)
class _Asked:
    repository: Repository
    stream: str
    cursor: _Cursor
    url: str

    @property
    def place(self) -> str:
        return f"{self.repository.name} {self.stream}".rstrip("/")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def _whole(answer: HttpAnswer) -> _Answer:
    return _Answer(answer.status, answer.headers, await answer.body())


def _told(
    name: str, event: str, body: bytes, find: Callable[[str, str], Repository | None]
) -> Delivery:
    form = decoded(body, HookForm)
    digest = hashlib.sha256(body).hexdigest()
    if form.repository is None:
        # As the ping of an organisation's hook, which is about no repository.
        return Delivery(name, digest, event, "")
    repository = find(form.repository.full_name, str(form.repository.id))
    if repository is None:
        raise HookRefused(HookRefusal.UNKNOWN, "it is of a repository that is not followed")
    works = works_of_hook(event, form, repository)
    return Delivery(name, digest, event, repository.id, works)


def _path(repository: Repository, stream: str) -> str:
    sort, _, which = stream.partition("/")
    root = f"/repos/{quote(repository.name, safe='/')}"
    which = quote(which, safe="")
    match sort:
        case "about":
            return root
        case "pulls" | "issues":
            return f"{root}/{sort}?state=all&sort=updated&direction=desc&per_page={PER_PAGE}"
        case "commits":
            branch = f"sha={which}&" if which else ""
            return f"{root}/commits?{branch}per_page={PER_PAGE}"
        case _:
            return f"{root}/commits/{which}/check-runs?filter=latest&per_page={PER_PAGE}"


def _cursor_of(text: str) -> _Cursor:
    """How far it went; a cursor that is not understood begins anew, which costs requests only."""
    try:
        return _cursors.decode(text) if text else _Cursor()
    except (msgspec.DecodeError, UnicodeEncodeError):
        return _Cursor()


def _restarted(at: _Cursor) -> str:
    """The pass under way is given up; the next one begins where the last complete one did."""
    return msgspec.json.encode(_Cursor(since=at.since, head=at.head)).decode()


def _completed(at: _Cursor, answer: _Answer, newest: datetime | None, head: str) -> _Cursor:
    first = not at.next
    return _Cursor(
        etag=answer.headers.get("etag", "") if first else at.pass_etag,
        modified=answer.headers.get("last-modified", "") if first else at.pass_modified,
        since=newest or at.since,
        head=head or at.head,
    )


def _conditions(at: _Cursor) -> dict[str, str]:
    if at.etag:
        return {"If-None-Match": at.etag}
    return {"If-Modified-Since": at.modified} if at.modified else {}


def _next(link: str) -> str | None:
    for found in _LINK.finditer(link[:16_000]):
        if any("next" in rel[1].split() for rel in _NEXT.finditer(found[2])):
            return found[1]
    return None


def _mark(url: str) -> str:
    return hashlib.blake2b(url.encode(errors="replace"), digest_size=6).hexdigest()


def _quota(headers: Mapping[str, str], now_utc: datetime) -> Quota | None:
    limit = _number(headers.get("x-ratelimit-limit", ""))
    remaining = _number(headers.get("x-ratelimit-remaining", ""))
    resets_in_s = _resets_in_s(headers, now_utc)
    if limit is None or remaining is None or resets_in_s is None:
        return None
    return Quota(int(limit), int(remaining), resets_in_s)


def _resets_in_s(headers: Mapping[str, str], now_utc: datetime) -> float | None:
    """By GitHub's own clock where it tells it: ours may be wrong."""
    reset = _number(headers.get("x-ratelimit-reset", ""))
    if reset is None:
        return None
    now = _date(headers.get("date", "")) or now_utc
    return max(reset - now.timestamp(), 0.0)


def _limited(answer: _Answer, now_utc: datetime) -> float | None:
    """In how many seconds to come back, where this says that we asked too much."""
    if answer.status not in _LIMITS:
        return None
    after = _seconds(answer.headers.get("retry-after", ""), now_utc)
    if after is not None:
        return after
    if answer.headers.get("x-ratelimit-remaining", "").strip() == "0":
        resets_in_s = _resets_in_s(answer.headers, now_utc)
        return SECONDARY_S if resets_in_s is None else resets_in_s
    said = answer.body[:4_096].lower()
    if answer.status != _FORBIDDEN or b"rate limit" in said or b"abuse detection" in said:
        return SECONDARY_S
    return None


def _seconds(text: str, now_utc: datetime) -> float | None:
    number = _number(text)
    if number is not None:
        return number
    at = _date(text)
    return None if at is None else max((at - now_utc).total_seconds(), 0.0)


def _number(text: str) -> float | None:
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > _LONGEST_NUMBER:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _date(text: str) -> datetime | None:
    try:
        return utc(parsedate_to_datetime(text)) if text.strip() else None
    except (ValueError, TypeError, OverflowError):
        return None
