"""What happens on a forge, as far as the daemon takes part in it: repositories and their work.

Laws:

1. Of one work the newest word counts, whoever brings it and in whatever order: `merged` is
   associative, commutative and idempotent, so polls and hooks may cross, repeat and overtake
   each other.
2. A commit never changes; only where it was seen grows.
3. Texts are strangers': bounded here, shown to people, never logged.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError
from custosd.core.tasks import TaskId

LONGEST_TITLE = 300
LONGEST_NAME = 200
MOST_LINKS = 32

EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)

REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}/[A-Za-z0-9_.-]{1,100}"
_REPOSITORY = re.compile(REPOSITORY)


class WorkKind(StrEnum):
    """What a work is."""

    COMMIT = "commit"
    PULL_REQUEST = "pull_request"
    ISSUE = "issue"
    CHECK = "check"


class WorkState(StrEnum):
    """Where a work stands. Commits are always MERGED, or OPEN where they are on no main branch.

    PENDING to SKIPPED are those of checks.
    """

    OPEN = "open"
    CLOSED = "closed"
    MERGED = "merged"
    PENDING = "pending"
    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


_RANK: Mapping[WorkState, int] = MappingProxyType(
    {
        WorkState.OPEN: 0,
        WorkState.CLOSED: 1,
        WorkState.MERGED: 2,
        WorkState.PENDING: 0,
        WorkState.RUNNING: 1,
        WorkState.SKIPPED: 2,
        WorkState.PASSED: 3,
        WorkState.FAILED: 4,
    }
)
"""Of two words of one moment the later state counts: times of forges are whole seconds."""


class LinkHow(StrEnum):
    """By what a work says to which task it belongs."""

    TRAILER = "trailer"
    BODY = "body"
    TITLE = "title"
    BRANCH = "branch"


@dataclass(frozen=True, slots=True)
class Link:
    """A task that a work may belong to. `closes`: once it has landed, the task is done."""

    task: TaskId
    how: LinkHow
    closes: bool


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that is followed. No `branches`: the default one is its main branch."""

    name: str
    branches: tuple[str, ...] = ()
    forge: str = "github"

    @property
    def id(self) -> str:
        """What it is called here: the forge and the name."""
        return f"{self.forge}:{self.name}"


@dataclass(frozen=True, slots=True)
class ForgeWork:
    """One commit, pull request, issue or check, as last heard of.

    `repository` is a `Repository.id`, `key` the forge's own name: a hash, a number. `landed`:
    it is on a main branch, since `landed_utc` at the latest. `links` are candidates: which of
    these tasks there are is not known here.
    """

    repository: str
    kind: WorkKind
    key: str
    state: WorkState
    updated_utc: datetime
    title: str = ""
    url: str = ""
    author: str = ""
    sha: str = ""
    branches: tuple[str, ...] = ()
    landed: bool = False
    landed_utc: datetime | None = None
    links: tuple[Link, ...] = ()

    @property
    def id(self) -> tuple[str, str, str]:
        """By what it is known."""
        return self.repository, self.kind.value, self.key


def merged(one: ForgeWork, other: ForgeWork) -> ForgeWork:
    """What is known of a work by two words about it (laws 1 and 2)."""
    newest = max(one, other, key=_order)
    if newest.kind is not WorkKind.COMMIT:
        return newest
    times = [at for at in (one.landed_utc, other.landed_utc) if at is not None]
    landed = one.landed or other.landed
    return replace(
        newest,
        state=WorkState.MERGED if landed else WorkState.OPEN,
        branches=tuple(sorted({*one.branches, *other.branches})),
        landed=landed,
        landed_utc=min(times, default=None),
    )


def _order(work: ForgeWork) -> tuple[datetime, int, str]:
    """A total order of words about one work; what grows by itself has no part in it."""
    if work.kind is WorkKind.COMMIT:
        work = replace(work, state=WorkState.OPEN, branches=(), landed=False, landed_utc=None)
    said = hashlib.blake2b(repr(work).encode(errors="backslashreplace"), digest_size=16)
    return work.updated_utc, _RANK[work.state], said.hexdigest()


def absorbed(
    known: Mapping[tuple[str, str, str], ForgeWork], told: Iterable[ForgeWork]
) -> tuple[ForgeWork, ...]:
    """What is new in what was told: the works as they stand now, those unchanged left out."""
    after: dict[tuple[str, str, str], ForgeWork] = {}
    for work in told:
        before = after.get(work.id) or known.get(work.id)
        after[work.id] = work if before is None else merged(before, work)
    return tuple(work for id_, work in sorted(after.items()) if work != known.get(id_))


@dataclass(frozen=True, slots=True)
class Quota:
    """What a forge still grants: `remaining` of `limit` requests, all again in `resets_in_s`."""

    limit: int
    remaining: int
    resets_in_s: float


class Trouble(StrEnum):
    """Why a forge gave no page."""

    LIMITED = "limited"
    """Asked too much; it is the account's limit, and holds for all its repositories."""
    UNREACHABLE = "unreachable"
    UNAVAILABLE = "unavailable"
    DENIED = "denied"
    GONE = "gone"
    """There is no such repository, or none that we may see."""
    ABSENT = "absent"
    """There is nothing of this sort in the repository; the others go on."""
    MALFORMED = "malformed"


LASTING = frozenset({Trouble.DENIED, Trouble.GONE})
"""What does not pass by itself: a person is told at once."""


class ForgeError(CustosdError):
    """No page; `trouble` says why. The message names the place and holds no secret.

    `retry_in_s` is what the forge asked for. `cursor`: from where to go on instead, where the
    old one leads nowhere.
    """

    def __init__(
        self,
        trouble: Trouble,
        message: str,
        *,
        retry_in_s: float | None = None,
        cursor: str | None = None,
    ) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.retry_in_s = retry_in_s
        self.cursor = cursor


class HookRefusal(StrEnum):
    """Why a delivery was not let in."""

    UNSIGNED = "unsigned"
    """Not signed with our secret."""
    MALFORMED = "malformed"
    REPLAYED = "replayed"
    UNKNOWN = "unknown"
    """Of a repository that is not followed, or a forge that is not known."""
    UNVERIFIED = "unverified"
    """We have no secret to verify it with."""
    BUSY = "busy"


class HookRefused(CustosdError):
    """A delivery is not let in; nothing of it was kept."""

    def __init__(self, refusal: HookRefusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a forge told by itself. Of one `id`, and of one `digest`, one is taken.

    The digest is that of what was signed: an id may be made up by who replays a body.
    """

    id: str
    digest: str
    event: str
    repository: str
    works: tuple[ForgeWork, ...] = ()


class SyncOutcome(StrEnum):
    """How following a repository went the last time."""

    SYNCED = "synced"
    HELD = "held"
    """Not asked to the end: the account has nothing left for now."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """What is remembered of following a repository. `forge_id` outlives its names.

    `failures` counts those in a row; until `retry_utc` it is not asked again.
    """

    repository: str
    forge_id: str = ""
    full_name: str = ""
    outcome: SyncOutcome | None = None
    looked_utc: datetime | None = None
    synced_utc: datetime | None = None
    failures: int = 0
    trouble: Trouble | None = None
    detail: str = ""
    retry_utc: datetime | None = None


class Told(StrEnum):
    """What became of telling an agent that its task is done."""

    NOBODY = "nobody"
    """Nobody was at work on it."""
    QUEUED = "queued"
    PROPOSED = "proposed"
    """Steering only observes, or a person approves each message."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Closing:
    """That a landed work ends a task: written before it is done, and once a work and task.

    `done_utc`: all is over; `agent` is who had the task as this work ended it, `told` how they
    heard of it.
    """

    task: TaskId
    repository: str
    kind: WorkKind
    key: str
    intended_utc: datetime
    agent: AgentId | None = None
    done_utc: datetime | None = None
    told: Told | None = None

    @property
    def id(self) -> tuple[str, str, str, str]:
        """By what it is known."""
        return self.task, self.repository, self.kind.value, self.key


@dataclass(frozen=True, slots=True)
class WorkQuery:
    """Which works are listed, the newest first. Empty sets ask for all."""

    repository: str = ""
    kinds: frozenset[WorkKind] = frozenset()
    states: frozenset[WorkState] = frozenset()
    task: TaskId | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class BackoffRules:
    """How long a repository rests after failures in a row: `first_s` x 2^n, `cap_s` at most."""

    first_s: float = 30.0
    cap_s: float = 3_600.0
    lasting_s: float = 900.0
    tell_after: int = 3


def rest_after(failures: int, trouble: Trouble, rules: BackoffRules) -> float:
    """Seconds for which a repository is left alone after its n-th failure in a row (from 1)."""
    least_s = rules.lasting_s if trouble in LASTING else rules.first_s
    return min(least_s * 2.0 ** min(failures - 1, 30), max(rules.cap_s, least_s))


LONGEST_HOLD_S = 7_200.0
"""A limit never holds us for longer than this at a time, whatever a forge says."""


def hold_s(asked_s: float | None, in_a_row: int) -> float:
    """For how long an account is not used after the n-th "too much" in a row (from 1).

    At least 5 s x 2^n: a limit whose end is said to be past already is no invitation.
    """
    asked = asked_s if asked_s is not None and math.isfinite(asked_s) else 60.0
    return min(max(asked, 5.0 * 2.0 ** min(in_a_row - 1, 8)), LONGEST_HOLD_S)


def is_repository(text: str) -> bool:
    """Whether it is "owner/name"."""
    return _REPOSITORY.fullmatch(text) is not None and not text.endswith((".", ".git"))


def shortened(text: str, longest: int) -> str:
    """One line of a stranger's text, printable and bounded."""
    line = text.strip().split("\n", 1)[0][: 4 * longest]
    return "".join(c if c.isprintable() else " " for c in line)[:longest].rstrip()
