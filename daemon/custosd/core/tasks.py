"""The fleet's tasks: their words, their values, and how urgent a ready one is.

Laws:

1. A task is blocked while it waits for others, ready when it may be claimed (from
   `ready_utc` on), claimed while somebody has its lease, and ended for good after that.
2. A claim has a fence, one higher than any the task had. Who speaks of a task says under
   which fence: of a claim that was taken away nothing is believed any more.
3. A lease is one incarnation's. It is taken away when it runs out, when its time limit is
   over, or when its agent was found dead; who comes after claims anew.
4. What waits for a task that failed or was cancelled can never be done, and ends with it.
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import NewType

from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError

TaskId = NewType("TaskId", str)
"""Chosen by who adds it: letters, digits and `._:/#@+-`, at most 200."""


class TaskState(StrEnum):
    """Where a task stands (law 1)."""

    BLOCKED = "blocked"
    READY = "ready"
    CLAIMED = "claimed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})
OPEN = frozenset(TaskState) - ENDED


class TaskPriority(StrEnum):
    """How much its maker wants it."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


PRIORITY_SHARE: Mapping[TaskPriority, float] = MappingProxyType(
    {
        TaskPriority.CRITICAL: 1.0,
        TaskPriority.HIGH: 0.75,
        TaskPriority.MEDIUM: 0.5,
        TaskPriority.LOW: 0.25,
    }
)


class FailureKind(StrEnum):
    """Why an attempt, or a task, came to nothing."""

    ERROR = "error"
    PERMANENT = "permanent"
    USAGE_LIMIT = "usage_limit"
    TIMEOUT = "timeout"
    LEASE_LOST = "lease_lost"
    AGENT_DEAD = "agent_dead"
    DEPENDENCY = "dependency"
    CANCELLED = "cancelled"


TELLABLE = frozenset({FailureKind.ERROR, FailureKind.PERMANENT, FailureKind.USAGE_LIMIT})
"""What an agent may say of its own attempt; the others are found out."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as it is added. `timeout_s` limits one attempt, `max_attempts` counts the first.

    `capabilities` are what an agent must have, all of them; `depends_on` what must have
    succeeded before. Texts are a person's or an agent's: shown, never logged.
    """

    id: TaskId
    title: str
    goal: str = ""
    priority: TaskPriority = TaskPriority.MEDIUM
    depends_on: tuple[TaskId, ...] = ()
    capabilities: tuple[str, ...] = ()
    not_before_utc: datetime | None = None
    deadline_utc: datetime | None = None
    timeout_s: float | None = None
    max_attempts: int = 4


@dataclass(frozen=True, slots=True)
class TaskClaim:
    """Who has a task, and until when if nothing is heard; never beyond `times_out_utc`."""

    agent: AgentId
    epoch: int
    fence: int
    claimed_utc: datetime
    until_utc: datetime
    times_out_utc: datetime | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it stands.

    `ready_utc` is since when, or from when on, it may be claimed; `blocking` counts the open
    tasks that wait for it, `unmet` those that it waits for itself. `failure` tells of the last
    attempt that came to nothing. `agent` is who has it, or who ended it.
    """

    id: TaskId
    title: str
    state: TaskState
    created_utc: datetime
    created_by: str = ""
    goal: str = ""
    priority: TaskPriority = TaskPriority.MEDIUM
    depends_on: tuple[TaskId, ...] = ()
    capabilities: tuple[str, ...] = ()
    unmet: int = 0
    blocking: int = 0
    attempts: int = 0
    max_attempts: int = 4
    not_before_utc: datetime | None = None
    ready_utc: datetime | None = None
    deadline_utc: datetime | None = None
    timeout_s: float | None = None
    ended_utc: datetime | None = None
    agent: AgentId | None = None
    claim: TaskClaim | None = None
    fence: int = 0
    settled_fence: int = 0
    failure_kind: FailureKind | None = None
    failure: str = ""
    result: str = ""


@dataclass(frozen=True, slots=True)
class TaskChange:
    """One task went on. `root` is whose end took this one along, where it was another's.

    `fence` is that of the claim which began or ended by it, 0 where none did.
    """

    task: TaskId
    before: TaskState | None
    after: TaskState
    agent: AgentId | None = None
    fence: int = 0
    kind: FailureKind | None = None
    root: TaskId | None = None


@dataclass(frozen=True, slots=True)
class ScoredTask:
    """A ready task and how urgent it is now."""

    task: Task
    score: float


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """Who wants how many tasks, able to do what, for how long at first.

    A `key` makes it repeatable: while what was claimed under it is still held, that is what
    comes back. "" is no key.
    """

    agent: AgentId
    lease_s: float
    limit: int = 1
    epoch: int = 0
    capabilities: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """In whose name something is said of a task.

    None: with authority over it, whoever has it (a person; a pull request that was merged).
    """

    agent: AgentId | None = None
    fence: int | None = None


AUTHORITY = Holder()


class Settling(StrEnum):
    """What became of a word about a claim."""

    DONE = "done"
    REPEATED = "repeated"
    """It had been said, and done, before."""
    LOST = "lost"
    """The claim is not the speaker's any more; nothing was changed."""
    ENDED = "ended"
    """It has ended already, whoever had it; nothing was changed."""
    UNKNOWN = "unknown"
    """There is no such task."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The answer to a word about a claim, and the task as it stands after it."""

    outcome: Settling
    task: Task | None = None
    changes: tuple[TaskChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """What an agent says of an attempt that came to nothing; `after_s`: not before then."""

    kind: FailureKind = FailureKind.ERROR
    reason: str = ""
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought; `repeated`: it had been made before."""

    tasks: tuple[Task, ...] = ()
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Expiry:
    """What ran out, and in how many seconds the next thing will; None: nothing is awaited."""

    changes: tuple[TaskChange, ...] = ()
    next_due_s: float | None = None


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which tasks to list, newest first; empty sets ask for all. `after` is the last one seen.

    `ended_after_utc`: only what ended later. `own_ends`: not what ended with what it waited for.
    """

    states: frozenset[TaskState] = frozenset()
    agents: frozenset[AgentId] = frozenset()
    limit: int = 100
    after: TaskId | None = None
    ended_after_utc: datetime | None = None
    own_ends: bool = False


class TaskRefused(CustosdError):
    """A task, or a dependency, cannot be added; nothing was. `reason` is a snake-case code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TaskCycle(TaskRefused):
    """Tasks would wait for each other for ever; `path` begins and ends with the same one."""

    def __init__(self, path: Sequence[TaskId]) -> None:
        shown = " -> ".join(path)
        super().__init__("cycle", f"these tasks would wait for each other for ever: {shown}")
        self.path = tuple(path)

    def __reduce__(self) -> tuple[type["TaskCycle"], tuple[tuple[TaskId, ...]]]:
        return TaskCycle, (self.path,)


# scores


@dataclass(frozen=True, slots=True)
class ScoreRules:
    """How urgency is counted: weights of five parts, each 0..1, and two corrections.

    Parts: priority; age since ready, full after `age_s`; closeness of the deadline, from
    `deadline_s` before it, full at it and after; open tasks that wait, full at `blockers`;
    retries left. Times `boost` from `deadline_s` before the deadline on; at least `floor` when
    ready for `floor_s`. A pure function of the task and of the time, and never less for one
    that has been ready longer.
    """

    priority: float = 0.45
    age: float = 0.20
    deadline: float = 0.15
    blocking: float = 0.15
    retries: float = 0.05
    age_s: float = 3600.0
    deadline_s: float = 900.0
    blockers: int = 10
    boost: float = 1.25
    floor: float = 0.6
    floor_s: float = 7200.0


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How long a task rests after an attempt: `first_s` x 2^n, give or take, `cap_s` at most."""

    first_s: float = 1.0
    spread: float = 0.25
    cap_s: float = 60.0
    longest_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class TaskRules:
    """All that is set about tasks."""

    score: ScoreRules = field(default_factory=ScoreRules)
    retry: RetryRules = field(default_factory=RetryRules)


def score(task: Task, now_utc: datetime, rules: ScoreRules) -> float:
    """How urgent a ready task is, 0..1.25 with the default weights.

    The statement in `adapters.postgres.task_queries` is this formula, in this order.
    """
    ready_utc = task.ready_utc or now_utc
    ready_s = max((now_utc - ready_utc).total_seconds(), 0.0)
    slack_s = math.inf
    if task.deadline_utc is not None:
        slack_s = (task.deadline_utc - now_utc).total_seconds()
    closeness = min(max(1.0 - slack_s / rules.deadline_s, 0.0), 1.0)
    retries = task.max_attempts - 1
    left = max(1.0 - task.attempts / retries, 0.0) if retries else 0.0
    total = (
        rules.priority * PRIORITY_SHARE[task.priority]
        + rules.age * min(ready_s / rules.age_s, 1.0)
        + rules.deadline * closeness
        + rules.blocking * min(task.blocking / rules.blockers, 1.0)
        + rules.retries * left
    )
    if slack_s <= rules.deadline_s:
        total *= rules.boost
    return max(total, rules.floor) if ready_s >= rules.floor_s else total


def rest_s(task: TaskId, attempts: int, rules: RetryRules) -> float:
    """How long a task rests after its attempt number `attempts` (from 1), in whole ms.

    The spread is drawn from the id and the attempt, so that tasks which failed together do
    not come back together, and every store says the same.
    """
    drawn = int(
        hashlib.md5(f"{task}:{attempts}".encode(), usedforsecurity=False).hexdigest()[:8], 16
    )
    share = 1.0 + rules.spread * (2.0 * (drawn / 4294967296.0) - 1.0)
    whole_s = min(rules.first_s * 2.0 ** (attempts - 1) * share, rules.cap_s)
    return math.floor(whole_s * 1000.0) / 1000.0


def limit_rest_s(after_s: float, rules: RetryRules) -> float:
    """How long a task rests whose agent met a usage limit: as told, else `cap_s`; whole ms."""
    wanted_s = after_s if after_s > 0 else rules.cap_s
    return math.floor(min(wanted_s, rules.longest_s) * 1000.0) / 1000.0


def is_spent(task: Task, kind: FailureKind) -> bool:
    """Whether a claimed task has failed for good, if its attempt ends so."""
    if kind is FailureKind.USAGE_LIMIT:
        return False
    return kind is FailureKind.PERMANENT or task.attempts >= task.max_attempts


def lease_end(
    claimed_utc: datetime, now_utc: datetime, lease_s: float, limit_s: float | None
) -> datetime:
    """Until when a lease lasts: never beyond the time limit of the attempt."""
    until_utc = now_utc + in_ms(lease_s)
    return until_utc if limit_s is None else min(until_utc, claimed_utc + in_ms(limit_s))


def in_ms(seconds: float) -> timedelta:
    """A span in whole milliseconds: what every store keeps exactly."""
    return timedelta(milliseconds=round(seconds * 1000.0))


# what may be added

LONGEST_TITLE = 500
LONGEST_GOAL = 20_000
LONGEST_TEXT = 20_000
SHORTEST_TIME_S = 0.001
LONGEST_TIME_S = 30 * 86_400.0
LARGEST_BATCH = 10_000
LARGEST_CLAIM = 1_000
MOST_DEPENDENCIES = 1_000
MOST_CAPABILITIES = 64
MOST_ATTEMPTS = 1_000

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/#@+-]{0,199}")
_CAPABILITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,99}")


def check_new(tasks: Sequence[NewTask]) -> None:
    """Raise `TaskRefused` where one of these cannot be a task, whatever else there is."""
    if len(tasks) > LARGEST_BATCH:
        raise TaskRefused("malformed", f"at most {LARGEST_BATCH} tasks are added at a time")
    for task in tasks:
        if flaw := _flaw_of(task):
            raise TaskRefused("malformed", f"task {task.id[:200]!a}: {flaw}")
    if len({task.id for task in tasks}) < len(tasks):
        raise TaskRefused("malformed", "one task comes twice among those to add")


def is_task_id(text: str) -> bool:
    """Whether a task may be called so."""
    return _ID.fullmatch(text) is not None


def _flaw_of(task: NewTask) -> str:
    times_utc = (task.not_before_utc, task.deadline_utc)
    span_s = 1.0 if task.timeout_s is None else task.timeout_s
    flaws = {
        "its id has other characters than letters, digits and ._:/#@+-": not is_task_id(task.id),
        "its title is empty or too long": not 0 < len(task.title) <= LONGEST_TITLE,
        "its goal is too long": len(task.goal) > LONGEST_GOAL,
        "it depends on itself": task.id in task.depends_on,
        "it depends on too many": len(task.depends_on) > MOST_DEPENDENCIES,
        "a time has no zone": any(at and at.utcoffset() is None for at in times_utc),
        "its time limit is not within 1 ms and 30 days": not SHORTEST_TIME_S
        <= span_s
        <= LONGEST_TIME_S,
        "its attempts are not within 1..1000": not 1 <= task.max_attempts <= MOST_ATTEMPTS,
        "it has a capability that is none": not are_capabilities(task.capabilities),
    }
    return next((words for words, found in flaws.items() if found), "")


def are_capabilities(given: Collection[str]) -> bool:
    """Whether all these may be called capabilities."""
    return len(given) <= MOST_CAPABILITIES and all(map(_CAPABILITY.fullmatch, given))


def check_claim(request: ClaimRequest) -> None:
    """Raise `TaskRefused` for a claim that makes no sense."""
    if not request.agent:
        raise TaskRefused("malformed", "it is not said which agent claims")
    in_bounds = SHORTEST_TIME_S <= request.lease_s <= LONGEST_TIME_S
    if not (1 <= request.limit <= LARGEST_CLAIM and in_bounds):
        raise TaskRefused("malformed", "1 to 1000 tasks are claimed, for 1 ms to 30 days")
    if not (are_capabilities(request.capabilities) and 0 <= request.epoch < 2**62):
        raise TaskRefused("malformed", "a capability is none, or the epoch is out of range")


def check_failure(failure: Failure) -> None:
    """Raise `TaskRefused` for an account of a failure that makes no sense."""
    if failure.kind not in TELLABLE:
        kinds = ", ".join(sorted(TELLABLE))
        raise TaskRefused("malformed", f"an attempt ends by one of {kinds}, not {failure.kind}")
    if len(failure.reason) > LONGEST_TEXT or not 0 <= failure.after_s < math.inf:
        raise TaskRefused("malformed", "a reason is too long, or a time negative")


def no_such_page(after: TaskId) -> TaskRefused:
    """The refusal of a page after a task that there is not (any more)."""
    words = f"there is no task {after[:200]!a} (any more) to go on after; begin again"
    return TaskRefused("unknown_task", words)


def unique_sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the one order in which they are kept and compared."""
    return tuple(sorted(set(names)))


def find_cycle(edges: Mapping[TaskId, Collection[TaskId]]) -> tuple[TaskId, ...]:
    """A way from a task over what it waits for back to itself; () where there is none.

    `edges` maps each task to what it waits for. Iterative: a chain may be 10^5 long.
    """
    done: set[TaskId] = set()
    for start in sorted(edges):
        if start in done:
            continue
        path = [start]
        on_path = {start}
        steps = [iter(sorted(edges[start]))]
        while steps:
            following = next(steps[-1], None)
            if following is None:
                steps.pop()
                on_path.discard(path[-1])
                done.add(path.pop())
            elif following in on_path:
                return (*path[path.index(following) :], following)
            elif following not in done and following in edges:
                path.append(following)
                on_path.add(following)
                steps.append(iter(sorted(edges[following])))
    return ()
