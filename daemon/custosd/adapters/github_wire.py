"""GitHub's answers and hooks as works: what of their JSON is read, and how.

Law: lenient where nothing depends on it (a user that was deleted is null), strict where it
does: a work without name or time is `msgspec.ValidationError`, and so is its whole page.
"""

from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from custosd.core.forge import (
    EPOCH_UTC,
    LONGEST_NAME,
    LONGEST_TITLE,
    ForgeWork,
    Repository,
    WorkKind,
    WorkState,
    shortened,
)
from custosd.core.task_links import links_of_commit, links_of_issue, links_of_pull_request

T = TypeVar("T")


class _User(msgspec.Struct):
    login: str = ""


class AboutForm(msgspec.Struct):
    """A repository, as it tells of itself."""

    id: int
    full_name: str
    default_branch: str = ""


class _Ref(msgspec.Struct):
    ref: str = ""
    sha: str = ""
    repo: AboutForm | None = None


class PullForm(msgspec.Struct):
    """A pull request, in lists and in hooks alike."""

    number: int
    state: str
    updated_at: datetime
    title: str = ""
    body: str | None = None
    html_url: str = ""
    user: _User | None = None
    merged_at: datetime | None = None
    head: _Ref = msgspec.field(default_factory=_Ref)
    base: _Ref = msgspec.field(default_factory=_Ref)


class IssueForm(msgspec.Struct):
    """An issue; GitHub lists pull requests among them, marked. Hooks of pins have no state."""

    number: int
    updated_at: datetime
    state: str = ""
    title: str = ""
    body: str | None = None
    html_url: str = ""
    user: _User | None = None
    pull_request: dict[str, Any] | None = None


class _Signature(msgspec.Struct):
    name: str = ""
    date: datetime | None = None


class _GitCommit(msgspec.Struct):
    message: str = ""
    author: _Signature | None = None
    committer: _Signature | None = None


class CommitForm(msgspec.Struct):
    """A commit, as lists have it."""

    sha: str
    commit: _GitCommit
    html_url: str = ""


class _Suite(msgspec.Struct):
    head_branch: str | None = None
    created_at: datetime | None = None


class _App(msgspec.Struct):
    slug: str | None = None


class CheckForm(msgspec.Struct):
    """A check run, in lists and in hooks alike."""

    id: int
    name: str
    head_sha: str
    status: str
    conclusion: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    html_url: str | None = None
    check_suite: _Suite | None = None
    app: _App | None = None


class ChecksForm(msgspec.Struct):
    """A page of check runs."""

    check_runs: list[CheckForm]


class _PushedCommit(msgspec.Struct):
    id: str
    message: str = ""
    timestamp: datetime | None = None
    url: str = ""
    author: _Signature | None = None


class HookForm(msgspec.Struct):
    """What hooks have; only what the event is about is read: other events tell of parts."""

    repository: AboutForm | None = None
    ref: str = ""
    deleted: bool = False
    commits: msgspec.Raw = msgspec.Raw(b"[]")
    pull_request: msgspec.Raw = msgspec.Raw(b"null")
    issue: msgspec.Raw = msgspec.Raw(b"null")
    check_run: msgspec.Raw = msgspec.Raw(b"null")


_decoders = {
    shape: msgspec.json.Decoder(shape)
    for shape in (
        AboutForm,
        HookForm,
        ChecksForm,
        list[PullForm],
        list[IssueForm],
        list[CommitForm],
        list[_PushedCommit],
        PullForm,
        IssueForm,
        CheckForm,
    )
}


def decoded(body: bytes | msgspec.Raw, shape: type[T]) -> T:
    """The body as this shape; raises `msgspec.DecodeError`, or what JSON may bring about."""
    found: T = _decoders[shape].decode(body)  # type: ignore[assignment,index,unused-ignore]
    return found


def pull_of(form: PullForm, repository: Repository) -> ForgeWork:
    """A pull request; it has landed where it was merged into a main branch."""
    state = WorkState.CLOSED if form.state == "closed" else WorkState.OPEN
    if form.merged_at is not None:
        state = WorkState.MERGED
    default = form.base.repo.default_branch if form.base.repo else ""
    landed = state is WorkState.MERGED and is_main(repository, form.base.ref, default)
    return ForgeWork(
        repository.id,
        WorkKind.PULL_REQUEST,
        str(form.number),
        state,
        utc(form.updated_at),
        shortened(form.title, LONGEST_TITLE),
        _url(form.html_url),
        _author(form.user),
        form.head.sha[:LONGEST_NAME],
        (form.head.ref[:LONGEST_TITLE],) if form.head.ref else (),
        landed,
        utc(form.merged_at) if landed and form.merged_at else None,
        links_of_pull_request(form.head.ref, form.title, form.body or ""),
    )


def issue_of(form: IssueForm, repository: Repository) -> ForgeWork | None:
    """An issue; None for a pull request, and for one of which the state is not told."""
    if form.pull_request is not None or not form.state:
        return None
    return ForgeWork(
        repository.id,
        WorkKind.ISSUE,
        str(form.number),
        WorkState.CLOSED if form.state == "closed" else WorkState.OPEN,
        utc(form.updated_at),
        shortened(form.title, LONGEST_TITLE),
        _url(form.html_url),
        _author(form.user),
        links=links_of_issue(form.title, form.body or ""),
    )


def commit_of(form: CommitForm, repository: Repository, branch: str) -> ForgeWork:
    """A commit that is on a main branch."""
    git = form.commit
    who = git.committer or git.author
    return _commit(
        repository,
        form.sha,
        git.message,
        who.date if who else None,
        git.author.name if git.author else "",
        branch,
        landed=True,
    )


def pushed_of(
    form: _PushedCommit, repository: Repository, branch: str, *, landed: bool
) -> ForgeWork:
    """A commit that was pushed to a branch."""
    name = form.author.name if form.author else ""
    when, message = form.timestamp, form.message
    return _commit(repository, form.id, message, when, name, branch, landed=landed)


def _commit(
    repository: Repository,
    sha: str,
    message: str,
    at: datetime | None,
    author: str,
    branch: str,
    *,
    landed: bool,
) -> ForgeWork:
    # Nothing that one source knows and another one not: a commit is the same by any of them.
    at_utc = utc(at) if at else EPOCH_UTC
    return ForgeWork(
        repository.id,
        WorkKind.COMMIT,
        sha[:LONGEST_NAME],
        WorkState.MERGED if landed else WorkState.OPEN,
        at_utc,
        shortened(message, LONGEST_TITLE),
        author=shortened(author, LONGEST_NAME),
        sha=sha[:LONGEST_NAME],
        branches=(branch[:LONGEST_TITLE],) if branch else (),
        landed=landed,
        landed_utc=at_utc if landed else None,
        links=links_of_commit(message),
    )


_CONCLUSIONS = {
    "success": WorkState.PASSED,
    "neutral": WorkState.PASSED,
    "skipped": WorkState.SKIPPED,
    "cancelled": WorkState.SKIPPED,
    "stale": WorkState.SKIPPED,
}


def check_of(form: CheckForm, repository: Repository) -> ForgeWork:
    """A check run; what neither passed nor was left out has failed."""
    state = WorkState.PENDING
    if form.status == "completed":
        state = _CONCLUSIONS.get(form.conclusion or "", WorkState.FAILED)
    elif form.status == "in_progress":
        state = WorkState.RUNNING
    suite = form.check_suite or _Suite()
    at = form.completed_at or form.started_at or suite.created_at or EPOCH_UTC
    return ForgeWork(
        repository.id,
        WorkKind.CHECK,
        str(form.id),
        state,
        utc(at),
        shortened(form.name, LONGEST_TITLE),
        _url(form.html_url or ""),
        shortened((form.app or _App()).slug or "", LONGEST_NAME),
        form.head_sha[:LONGEST_NAME],
        (suite.head_branch[:LONGEST_TITLE],) if suite.head_branch else (),
    )


def works_of_hook(event: str, form: HookForm, repository: Repository) -> tuple[ForgeWork, ...]:
    """What a hook tells of works; () for an event that tells of none. Raises as `decoded`."""
    match event:
        case "pull_request":
            return (pull_of(decoded(form.pull_request, PullForm), repository),)
        case "issues":
            issue = issue_of(decoded(form.issue, IssueForm), repository)
            return () if issue is None else (issue,)
        case "check_run":
            return (check_of(decoded(form.check_run, CheckForm), repository),)
        case "push" if form.ref.startswith("refs/heads/") and not form.deleted:
            branch = form.ref.removeprefix("refs/heads/")
            default = form.repository.default_branch if form.repository else ""
            landed = is_main(repository, branch, default)
            commits = decoded(form.commits, list[_PushedCommit])
            return tuple(pushed_of(one, repository, branch, landed=landed) for one in commits)
        case _:
            return ()


def is_main(repository: Repository, branch: str, default: str) -> bool:
    """Whether what is on this branch has landed."""
    return bool(branch) and branch in (repository.branches or (default,))


def utc(at: datetime) -> datetime:
    """A time in UTC; one without a zone is taken to be in it, as all of GitHub's are."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _author(user: _User | None) -> str:
    return shortened(user.login, LONGEST_NAME) if user else ""


def _url(url: str) -> str:
    shown = url.isprintable() and url.startswith(("https://", "http://"))
    return url[:LONGEST_TITLE] if shown else ""
