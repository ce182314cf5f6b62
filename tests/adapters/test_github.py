"""GitHub over a real socket: pages, conditions, limits, faults; and its signed hooks."""

import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.github_place import (
    SHA,
    START_UTC,
    GitHubPlace,
    about_form,
    check_form,
    commit_form,
    github_place,
    issue_form,
    pull_form,
    refusing,
)
from tests.adapters.http_place import Asked, Place, Stream, dripping, said, silent

from custosd.adapters import github as module
from custosd.adapters.github import GitHub, GitHubSettings, open_github
from custosd.config.secret import Secret
from custosd.core.forge import (
    ForgeError,
    ForgeWork,
    HookRefusal,
    HookRefused,
    LinkHow,
    Repository,
    Trouble,
    WorkKind,
    WorkState,
)
from custosd.ports import ForgePage

ENGINE = Repository("ada/engine")
NOW = START_UTC + timedelta(minutes=30)
SECRET = "It's a Secret to Everybody"


def now_utc() -> datetime:
    return NOW


@asynccontextmanager
async def served(
    change: Callable[[GitHubPlace], None] = lambda _it: None, **settings: Any
) -> AsyncGenerator[tuple[GitHub, GitHubPlace, Place]]:
    async with github_place(change) as (made, where):
        chosen = GitHubSettings(where.url, read_s=5.0)
        async with open_github(replace(chosen, **settings), now_utc) as github:
            yield github, made, where


async def whole(
    github: GitHub, stream: str, cursor: str = "", repository: Repository = ENGINE
) -> tuple[list[ForgeWork], list[ForgePage]]:
    """One pass over a stream: the works, and the pages; the last one's cursor goes on."""
    works: list[ForgeWork] = []
    pages: list[ForgePage] = []
    while True:
        page = await github.page(repository, stream, cursor)
        works += page.works
        pages.append(page)
        cursor = page.cursor
        if not page.more:
            return works, pages


async def test_each_stream_is_read_as_what_it_is() -> None:
    def change(it: GitHubPlace) -> None:
        it.pulls = [
            pull_form(1, 5, branch="T-1-a", title="[T-2] x", body="Task: T-3", merged=True),
            pull_form(2, 6, base="other", merged=True),
            pull_form(3, 4, user=None, head={"ref": "gone", "sha": SHA, "repo": None}),
        ]
        it.issues = [issue_form(4), issue_form(1, 5, pull_request={"url": "x"})]
        it.commits = [commit_form("c1", 3, "Mend\n\nCloses-Task: T-9\nTask: T-8")]
        it.checks = {SHA: [check_form(1), check_form(2, status="queued", completed_at=None)]}

    async with served(change) as (github, _, _):
        pulls, _ = await whole(github, "pulls")
        assert [(pull.key, pull.state, pull.landed) for pull in pulls] == [
            ("2", WorkState.MERGED, False),
            ("1", WorkState.MERGED, True),
            ("3", WorkState.OPEN, False),
        ]
        assert {(link.task, link.how, link.closes) for link in pulls[1].links} >= {
            ("T-1", LinkHow.BRANCH, True),
            ("T-2", LinkHow.TITLE, True),
            ("T-3", LinkHow.TRAILER, True),
        }
        issues, _ = await whole(github, "issues")
        assert [(issue.key, issue.kind) for issue in issues] == [("4", WorkKind.ISSUE)]
        (commit,), _ = await whole(github, "commits/")
        assert commit.landed
        assert {(link.task, link.closes) for link in commit.links} == {
            ("T-9", True),
            ("T-8", False),
        }
        checks, _ = await whole(github, f"checks/{SHA}")
        assert [check.state for check in checks] == [WorkState.PASSED, WorkState.PENDING]
        (about,) = (await whole(github, "about"))[1]
        assert (about.forge_id, about.full_name) == ("77", "ada/engine")


async def test_what_did_not_change_costs_nothing() -> None:
    def change(it: GitHubPlace) -> None:
        it.pulls = [pull_form(number, number) for number in range(5)]
        it.per_page = 2

    async with served(change) as (github, made, _):
        works, pages = await whole(github, "pulls")
        assert (len(works), len(pages), made.charged) == (5, 3, 3)
        for _ in range(3):
            page = await github.page(ENGINE, "pulls", pages[-1].cursor)
            assert page.unchanged
            assert not page.works
            assert page.cursor == pages[-1].cursor
        assert (made.charged, made.unchanged) == (3, 3)


async def test_a_later_pass_ends_where_the_last_one_began() -> None:
    def change(it: GitHubPlace) -> None:
        it.pulls = [pull_form(number, number) for number in range(10)]
        it.commits = [commit_form(f"c{number}", number) for number in range(10)]
        it.per_page = 3

    async with served(change) as (github, made, _):
        for stream, news in (
            ("pulls", pull_form(3, 20)),
            ("commits/", commit_form("c99", 20)),
        ):
            _, pages = await whole(github, stream)
            assert len(pages) == 4
            (made.pulls if stream == "pulls" else made.commits).append(news)
            works, pages = await whole(github, stream, pages[-1].cursor)
            assert works[0].updated_utc == START_UTC + timedelta(minutes=20)
            assert len(pages) == 1


async def test_a_pass_that_was_cut_short_goes_on_at_its_place() -> None:
    def change(it: GitHubPlace) -> None:
        it.pulls = [pull_form(number, number) for number in range(6)]
        it.per_page = 2

    async with served(change) as (github, made, _):
        first = await github.page(ENGINE, "pulls", "")
        # What comes meanwhile shifts the pages; what is at the seam comes twice, none never.
        made.pulls.append(pull_form(7, 7))
        works, pages = await whole(github, "pulls", first.cursor)
        seen = {work.key for work in (*first.works, *works)}
        assert seen == {str(number) for number in range(6)}
        works, _ = await whole(github, "pulls", pages[-1].cursor)
        assert "7" in {work.key for work in works}


async def test_nothing_before_the_horizon_is_read() -> None:
    def change(it: GitHubPlace) -> None:
        it.pulls = [pull_form(number, -1440 * number) for number in range(60)]
        it.per_page = 10

    async with served(change) as (github, _, _):
        _, pages = await whole(github, "pulls")
        assert len(pages) == 4


async def test_a_commit_whose_time_lies_ends_no_pass() -> None:
    """A wrong clock, or a forged date, on the first page; and nothing before the horizon."""

    def change(it: GitHubPlace) -> None:
        news = [commit_form(f"c{number:02}", -number) for number in range(30)]
        old = [commit_form(f"o{number:02}", -1440 * (60 + number)) for number in range(30)]
        it.commits = [*news[:3], commit_form("liar", -1440 * 365 * 20), *news[3:], *old]
        it.per_page = 10
        it.in_order = True

    async with served(change) as (github, _, _):
        works, pages = await whole(github, "commits/")
        assert {work.key for work in works} >= {"liar", *(f"c{n:02}" for n in range(30))}
        assert len(pages) == 5


async def test_the_checks_of_open_pull_requests_are_followed() -> None:
    async with served() as (github, _, _):
        work = ForgeWork("github:ada/engine", WorkKind.PULL_REQUEST, "1", WorkState.OPEN, NOW)
        shas = [replace(work, key=str(n), sha=f"s{n}") for n in range(30)]
        streams = github.streams(ENGINE, shas)
        assert streams[:4] == ("about", "pulls", "issues", "commits/")
        assert len(streams) == 4 + module.CHECKED
        both = github.streams(Repository("ada/engine", ("main", "v 1/x")), ())
        assert both[3:] == ("commits/main", "commits/v 1/x")


async def test_a_renamed_repository_is_found_again() -> None:
    def change(it: GitHubPlace) -> None:
        it.name = "ada/difference-engine"
        it.about = about_form("ada/difference-engine")
        it.pulls = [pull_form(number, number) for number in range(4)]
        it.per_page = 2

    async with served(change) as (github, made, where):

        async def moved(asked: Asked, stream: Stream) -> bool:
            there = asked.target.replace("/repos/ada/engine", "/repositories/77")
            await stream.send_all(said(301, b"{}", f"Location: {where.url}{there}"))
            return True

        made.lasting.append(("/repos/ada/engine", moved))
        works, pages = await whole(github, "pulls")
        assert len(works) == 4
        assert all(page.moved for page in pages[:1])
        (about,) = (await whole(github, "about"))[1]
        assert about.full_name == "ada/difference-engine"


@pytest.mark.parametrize(
    "where",
    ["https://evil.example/repos/ada/engine/pulls", "//evil.example/x", "file:///etc/passwd"],
)
async def test_no_answer_leads_to_another_place(where: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken")
    file.chmod(0o600)
    link = f'Link: <{where}>; rel="next"'
    for fault in (
        refusing(302, f"Location: {where}"),
        refusing(200, link, body=json.dumps([pull_form(1)]).encode()),
    ):
        async with served(token=Secret("sync.token_file", file)) as (github, made, asked):
            made.faults.append(("pulls", fault))
            with pytest.raises(ForgeError, match="another place") as caught:
                await github.page(ENGINE, "pulls", "")
            assert caught.value.trouble is Trouble.MALFORMED
            assert "t0ken" not in str(caught.value)
            assert [one.headers["authorization"] for one in asked.asked] == ["Bearer t0ken"]


async def test_redirects_and_pages_in_a_circle_come_to_an_end() -> None:
    async with served() as (github, made, where):
        made.lasting.append(("pulls", refusing(301, f"Location: {where.url}/pulls")))
        with pytest.raises(ForgeError, match="without an end"):
            await github.page(ENGINE, "pulls", "")
        assert len(where.asked) == module.MOST_REDIRECTS + 1
    async with served() as (github, made, where):

        def to(part: str) -> Any:
            link = f'Link: <{where.url}/repos/ada/engine/pulls?at={part}>; rel="next"'
            return refusing(200, link, body=json.dumps([pull_form(1)]).encode())

        made.lasting += [("at=b", to("c")), ("at=c", to("a")), ("pulls", to("b"))]
        made.lasting.insert(0, ("at=a", to("b")))
        with pytest.raises(ForgeError, match="circle") as caught:
            await whole(github, "pulls")
        assert len(where.asked) < 10
        assert caught.value.cursor is not None
        assert "next" not in caught.value.cursor


@pytest.mark.parametrize(
    ("status", "headers", "body", "trouble", "retry_in_s"),
    [
        (403, ("X-RateLimit-Remaining: 0", "X-RateLimit-Reset: {now+90}", "Date: {now}"), b"{}",
         Trouble.LIMITED, 90.0),
        (403, ("X-RateLimit-Remaining: 0", "X-RateLimit-Reset: {now-90}", "Date: {now}"), b"{}",
         Trouble.LIMITED, 0.0),
        (429, ("Retry-After: 17",), b"{}", Trouble.LIMITED, 17.0),
        (403, ("Retry-After: 5", "X-RateLimit-Remaining: 4000"), b"{}", Trouble.LIMITED, 5.0),
        (403, (), b'{"message": "You have exceeded a secondary rate limit."}', Trouble.LIMITED,
         60.0),
        (429, ("Retry-After: never",), b"{}", Trouble.LIMITED, 60.0),
        (403, (), b'{"message": "Resource not accessible"}', Trouble.DENIED, None),
        (401, (), b"{}", Trouble.DENIED, None),
        (404, (), b"{}", Trouble.GONE, None),
        (410, (), b"{}", Trouble.GONE, None),
        (451, (), b"{}", Trouble.GONE, None),
        (500, (), b"", Trouble.UNAVAILABLE, None),
        (503, ("Retry-After: 30",), b"<html>", Trouble.UNAVAILABLE, 30.0),
        (200, (), b'[{"number": 1, "state"', Trouble.MALFORMED, None),
        (200, (), b"\xff\xfe", Trouble.MALFORMED, None),
        (200, (), b"[" * 100_000, Trouble.MALFORMED, None),
        (200, (), b'[{"number": 1, "state": "open"}]', Trouble.MALFORMED, None),
        (200, (), b'{"message": "what"}', Trouble.MALFORMED, None),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_told_apart(
    status: int,
    headers: tuple[str, ...],
    body: bytes,
    trouble: Trouble,
    retry_in_s: float | None,
) -> None:
    server_utc = NOW + timedelta(days=2)  # Whose clock is another one than ours.
    filled = [
        header.replace("{now+90}", str(int(server_utc.timestamp()) + 90))
        .replace("{now-90}", str(int(server_utc.timestamp()) - 90))
        .replace("{now}", server_utc.strftime("%a, %d %b %Y %H:%M:%S GMT"))
        for header in headers
    ]
    async with served() as (github, made, _):
        made.faults.append(("pulls", refusing(status, *filled, body=body)))
        with pytest.raises(ForgeError) as caught:
            await github.page(ENGINE, "pulls", "")
        assert (caught.value.trouble, caught.value.retry_in_s) == (trouble, retry_in_s)


@pytest.mark.parametrize(
    ("stream", "status"),
    [("issues", 410), ("issues", 404), ("commits/", 409), ("commits/x", 404), ("checks/y", 422)],
)
async def test_what_a_repository_does_not_have_is_no_failure(stream: str, status: int) -> None:
    async with served() as (github, made, _):
        made.faults.append(("/repos/", refusing(status)))
        with pytest.raises(ForgeError) as caught:
            await github.page(ENGINE, stream, "")
        assert caught.value.trouble is Trouble.ABSENT


async def test_a_page_that_is_cut_slow_or_huge_is_an_error() -> None:
    head = b"HTTP/1.1 200 X\r\nContent-Length: 9999\r\n\r\n["

    async def cut(_asked: Asked, stream: Stream) -> bool:
        await stream.send_all(head)
        return False

    huge = dripping(b"HTTP/1.1 200 X\r\nContent-Length: 99999999\r\n\r\n", b" " * 5_000)
    for answer, trouble in (
        (cut, Trouble.UNREACHABLE),
        (silent, Trouble.UNREACHABLE),
        (huge, Trouble.MALFORMED),
    ):
        async with served(read_s=0.2, largest_page_bytes=10_000) as (github, made, _):
            made.faults.append(("pulls", answer))
            with pytest.raises(ForgeError) as caught:
                await github.page(ENGINE, "pulls", "")
            assert caught.value.trouble is trouble


async def test_a_cursor_of_another_version_begins_anew() -> None:
    async with served(lambda it: it.pulls.append(pull_form(1))) as (github, _, _):
        for cursor in ("{", '{"since": 7}', "\ud800", "[]"):
            assert len((await github.page(ENGINE, "pulls", cursor)).works) == 1


async def test_what_is_left_of_the_account_is_told() -> None:
    async with served() as (github, made, _):
        made.limit = 60
        quota = (await github.page(ENGINE, "about", "")).quota
        assert quota is not None
        assert (quota.limit, quota.remaining, quota.resets_in_s) == (60, 59, 1_800.0)


# hooks


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return Secret("sync.webhook_secret_file", file)


def signed(body: bytes, event: str = "pull_request", key: str = SECRET) -> dict[str, str]:
    signature = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
    return {
        "x-hub-signature-256": f"sha256={signature}",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "x-github-event": event,
    }


def find(name: str, forge_id: str) -> Repository | None:
    return ENGINE if name == "ada/engine" or forge_id == "77" else None


def hook(**parts: Any) -> bytes:
    return json.dumps({"action": "closed", "repository": about_form()} | parts).encode()


async def test_the_signature_is_githubs_own_example() -> None:
    """The example of GitHub's documentation on validating deliveries."""
    body = b"Hello, World!"
    told = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signed(body)["x-hub-signature-256"] == told


async def test_a_hook_tells_what_a_poll_tells(secret: Secret) -> None:
    form = pull_form(1, 5, branch="T-1", merged=True)
    async with served(lambda it: it.pulls.append(form), webhook_secret=secret) as (github, _, _):
        body = hook(pull_request=form)
        delivery = await github.delivery(signed(body), body, find)
        assert delivery.repository == "github:ada/engine"
        assert delivery.works == (await github.page(ENGINE, "pulls", "")).works


async def test_a_push_tells_of_commits_and_whether_they_have_landed(secret: Secret) -> None:
    pushed = {
        "id": "c1",
        "message": "Mend it\n\nTask: T-1",
        "timestamp": "2026-05-04T14:03:00+02:00",
        "author": {"name": "Ada"},
    }

    def change(it: GitHubPlace) -> None:
        it.commits = [commit_form("c1", 3, "Mend it\n\nTask: T-1")]

    async with served(change, webhook_secret=secret) as (github, _, _):
        polled = (await github.page(ENGINE, "commits/main", "")).works
        for branch, landed in (("main", True), ("T-1", False)):
            body = hook(ref=f"refs/heads/{branch}", commits=[pushed])
            (work,) = (await github.delivery(signed(body, "push"), body, find)).works
            assert work.landed is landed
            assert work.branches == (branch,)
            if landed:
                assert (work,) == polled


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"x-hub-signature-256": ""}, HookRefusal.UNSIGNED),
        ({"x-hub-signature-256": "sha256=" + 64 * "0"}, HookRefusal.UNSIGNED),
        ({"x-hub-signature-256": "sha1=é\udcff"}, HookRefusal.UNSIGNED),
        ({"x-github-delivery": ""}, HookRefusal.MALFORMED),
        ({"x-github-delivery": "a" * 101}, HookRefusal.MALFORMED),
        ({"x-github-event": "../x"}, HookRefusal.MALFORMED),
    ],
)
async def test_what_is_not_as_it_should_be_is_refused(
    secret: Secret, change: dict[str, str], refusal: HookRefusal
) -> None:
    body = hook(pull_request=pull_form(1))
    async with served(webhook_secret=secret) as (github, _, _):
        with pytest.raises(HookRefused) as caught:
            await github.delivery(signed(body) | change, body, find)
        assert caught.value.refusal is refusal


async def test_a_changed_body_a_wrong_key_and_no_key_are_refused(
    secret: Secret, tmp_path: Path
) -> None:
    body = hook(pull_request=pull_form(1))
    async with served(webhook_secret=secret) as (github, _, _):
        for headers, told in (
            (signed(body), body.replace(b"closed", b"opened")),
            (signed(body), body + b" "),
            (signed(body, key="another"), body),
        ):
            with pytest.raises(HookRefused) as caught:
                await github.delivery(headers, told, find)
            assert caught.value.refusal is HookRefusal.UNSIGNED
    for given in (None, Secret("x", tmp_path / "gone")):
        async with served(webhook_secret=given) as (github, _, _):
            with pytest.raises(HookRefused) as caught:
                await github.delivery(signed(body, key=""), body, find)
            assert caught.value.refusal is HookRefusal.UNVERIFIED


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"repository": 1}', b"[" * 99_999])
async def test_a_signed_body_that_is_none_is_refused(secret: Secret, body: bytes) -> None:
    async with served(webhook_secret=secret) as (github, _, _):
        with pytest.raises(HookRefused) as caught:
            await github.delivery(signed(body), body, find)
        assert caught.value.refusal is HookRefusal.MALFORMED


async def test_of_a_stranger_nothing_is_taken_and_a_ping_is_answered(secret: Secret) -> None:
    async with served(webhook_secret=secret) as (github, _, _):
        body = hook(repository=about_form("eve/engine", 666), pull_request=pull_form(1))
        with pytest.raises(HookRefused) as caught:
            await github.delivery(signed(body), body, find)
        assert caught.value.refusal is HookRefusal.UNKNOWN
        for body in (b'{"zen": "Keep it simple."}', hook(zen="x")):
            assert (await github.delivery(signed(body, "ping"), body, find)).works == ()
