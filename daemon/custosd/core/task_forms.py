"""Requests about tasks as plain data, as doors bring them, and tasks as plain data for answers.

Laws:

1. Reading refuses: a field that is not known, or of another kind, is `TaskRefused` with the
   reason "malformed"; a misspelt limit must not mean no limit.
2. Times are RFC 3339 with a zone, spans seconds, sets lists.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from custosd.core.agents import AgentId
from custosd.core.tasks import (
    LARGEST_BATCH,
    LARGEST_CLAIM,
    LONGEST_TEXT,
    LONGEST_TIME_S,
    SHORTEST_TIME_S,
    ClaimRequest,
    Failure,
    FailureKind,
    Holder,
    NewTask,
    ScoredTask,
    Task,
    TaskChange,
    TaskClaim,
    TaskId,
    TaskPriority,
    TaskQuery,
    TaskRefused,
    TaskState,
)

T = TypeVar("T")

Form = Mapping[str, Any]

READING = frozenset({"list", "show", "next", "assigned"})
"""What only tells."""

WORKING = frozenset({"claim", "extend", "complete", "fail"})
"""What an agent asks for about its own tasks."""

ORDERING = frozenset({"add", "link", "cancel"})
"""What takes authority over tasks."""

LARGEST_PAGE = 1_000


LONGEST_NAME = 300
"""Characters of a task's, an agent's or a key's name."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and what a door found out about that.

    `commands`: has authority over all tasks. `reads`: may see all of them. `speaks_for`: whose
    work it may claim and end.
    """

    author: str
    commands: bool = False
    reads: bool = False
    speaks_for: Callable[[AgentId], bool] = lambda _agent: False


class Fields:
    """A form, read field by field; `end` refuses what nobody asked for."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._known: set[str] = set()

    def _get(self, name: str) -> Any:
        self._known.add(name)
        return self._form.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        return self._of_kind(name, str, "a text", default)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self._of_kind(name, list, "a list of texts", [])
        if len(found) > LARGEST_BATCH or not all(isinstance(one, str) for one in found):
            raise _malformed(f"{name} is no list of at most {LARGEST_BATCH} texts")
        return tuple(found)

    def name(self, name: str) -> str:
        """A text that names something: short, and without what no name has."""
        return _named(name, self.text(name))

    def names(self, name: str) -> tuple[str, ...]:
        """A list of such."""
        return tuple(_named(name, one) for one in self.texts(name))

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        found = self._get(name)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
            raise _malformed(f"{name} is no whole number from {least} to {most}")
        return found

    def seconds(self, name: str, default: float | None, least: float = 0.0) -> float | None:
        """A span of time in seconds; `default` where nothing is said."""
        found = self._get(name)
        if found is None:
            return default
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if not is_number or not (least <= found <= LONGEST_TIME_S and math.isfinite(found)):
            raise _malformed(f"{name} is no number of seconds from {least:g} to 30 days")
        return float(found)

    def time(self, name: str) -> datetime | None:
        """A time with a zone, told in UTC, or None."""
        given = self.text(name)
        if not given:
            return None
        try:
            found = datetime.fromisoformat(given)
        except ValueError:
            raise _malformed(f"{name} is no time; give one as 2026-01-31T18:00:00Z") from None
        if found.utcoffset() is None:
            raise _malformed(f"{name} does not say in which zone; end it in Z for UTC")
        try:
            return found.astimezone(UTC)
        except OverflowError:
            raise _malformed(f"{name} is beyond the years 1 to 9999 in UTC") from None

    def word(self, name: str, words: Callable[[str], T], default: T) -> T:
        """One of a closed vocabulary."""
        given = self.text(name)
        try:
            return words(given) if given else default
        except ValueError:
            raise _malformed(f"{name} is no {given[:50]!r}") from None

    def forms(self, name: str) -> list[Form]:
        """A list of objects."""
        found = self._of_kind(name, list, "a list of objects", [])
        if not all(isinstance(one, dict) for one in found):
            raise _malformed(f"{name} is no list of objects")
        return found

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """A list of pairs of texts."""
        found = self._of_kind(name, list, "a list of pairs", [])
        for one in found:
            if not isinstance(one, list) or [type(part) for part in one] != [str, str]:
                raise _malformed(f"{name} is no list of pairs of texts")
        return [(first, second) for first, second in found]

    def end(self) -> None:
        """Raise `TaskRefused` for a field that was not read."""
        if unknown := self._form.keys() - self._known:
            knows = ", ".join(sorted(self._known))
            raise _malformed(f"there is no field {min(unknown)[:50]!r}; there is: {knows}")

    def _of_kind(self, name: str, kind: type[T], words: str, default: T) -> T:
        found = self._get(name)
        if found is None:
            return default
        if not isinstance(found, kind):
            raise _malformed(f"{name} is not {words}")
        return found


def _named(name: str, text: str) -> str:
    if len(text) > LONGEST_NAME or not text.isprintable():
        raise _malformed(f"{name} is no name: of at most {LONGEST_NAME} characters, all printable")
    return text


def _malformed(words: str) -> TaskRefused:
    return TaskRefused("malformed", words)


# requests


def new_tasks_of(form: Form, max_attempts: int) -> list[NewTask]:
    """`{"tasks": [{"id": ..., "title": ...}, ...]}`."""
    fields = Fields(form)
    found = [_new_task_of(one, max_attempts) for one in fields.forms("tasks")]
    fields.end()
    if not found:
        raise _malformed("tasks is empty: there is nothing to add")
    return found


def _new_task_of(form: Form, max_attempts: int) -> NewTask:
    fields = Fields(form)
    task = NewTask(
        TaskId(fields.text("id")),
        fields.text("title"),
        fields.text("goal"),
        fields.word("priority", TaskPriority, TaskPriority.MEDIUM),
        tuple(map(TaskId, fields.texts("depends_on"))),
        fields.texts("capabilities"),
        fields.time("not_before"),
        fields.time("deadline"),
        fields.seconds("timeout_s", None, SHORTEST_TIME_S),
        fields.whole("max_attempts", max_attempts, 1, 1_000),
    )
    fields.end()
    return task


def edges_of(form: Form) -> list[tuple[TaskId, TaskId]]:
    """`{"edges": [["b", "a"]]}`: b waits for a."""
    fields = Fields(form)
    edges = [(TaskId(first), TaskId(second)) for first, second in fields.pairs("edges")]
    fields.end()
    if not edges:
        raise _malformed("edges is empty: there is nothing to link")
    return edges


def claim_of(form: Form, lease_s: float) -> ClaimRequest:
    """`{"agent": ..., "limit": 1, "capabilities": [...], "lease_s": ..., "key": ...}`."""
    fields = Fields(form)
    request = ClaimRequest(
        AgentId(fields.name("agent")),
        fields.seconds("lease_s", lease_s, SHORTEST_TIME_S) or lease_s,
        fields.whole("limit", 1, 1, LARGEST_CLAIM),
        fields.whole("epoch", 0, 0, 2**62 - 1),
        fields.texts("capabilities"),
        fields.name("key"),
    )
    fields.end()
    return request


@dataclass(frozen=True, slots=True)
class Word:
    """What is said of one claim: which, in whose name, and the rest by kind."""

    task: TaskId
    holder: Holder
    lease_s: float = 0.0
    result: str = ""
    failure: Failure = field(default_factory=Failure)


def word_of(operation: str, form: Form, lease_s: float) -> Word:
    """`{"task": ..., "agent": ..., "fence": ...}` and what the operation takes besides."""
    fields = Fields(form)
    task = TaskId(fields.name("task"))
    agent, fence = fields.name("agent"), fields.whole("fence", 0, 1, 2**62)
    holder = Holder(AgentId(agent) if agent else None, fence or None)
    word = Word(task, holder)
    if operation == "extend":
        word = Word(task, holder, fields.seconds("lease_s", lease_s, SHORTEST_TIME_S) or lease_s)
    elif operation == "complete":
        word = Word(task, holder, result=fields.text("result"))
    else:
        kind = fields.word("kind", FailureKind, FailureKind.ERROR)
        after_s = fields.seconds("after_s", 0.0) or 0.0
        word = Word(task, holder, failure=Failure(kind, fields.text("reason"), after_s))
    fields.end()
    if not task:
        raise _malformed("it is not said which task")
    if len(word.result) > LONGEST_TEXT:
        raise _malformed(f"a result has at most {LONGEST_TEXT} characters")
    return word


def cancelled_of(form: Form) -> tuple[list[TaskId], str]:
    """`{"tasks": [...], "reason": ...}`."""
    fields = Fields(form)
    ids, reason = [TaskId(one) for one in fields.names("tasks")], fields.text("reason")
    fields.end()
    if not ids or len(reason) > LONGEST_TEXT:
        raise _malformed("tasks is empty, or the reason too long")
    return ids, reason


def query_of(form: Form) -> TaskQuery:
    """`{"states": [...], "agents": [...], "limit": 100, "after": ...}`."""
    fields = Fields(form)
    try:
        states = frozenset(map(TaskState, fields.texts("states")))
    except ValueError:
        words = ", ".join(state.value for state in TaskState)
        raise _malformed(f"states are {words}") from None
    query = TaskQuery(
        states,
        frozenset(map(AgentId, fields.names("agents"))),
        fields.whole("limit", 100, 1, LARGEST_PAGE),
        TaskId(fields.name("after")) if form.get("after") else None,
    )
    fields.name("after")
    fields.end()
    return query


def next_of(form: Form) -> tuple[int, tuple[str, ...]]:
    """`{"limit": 10, "capabilities": [...]}`."""
    fields = Fields(form)
    found = fields.whole("limit", 10, 1, LARGEST_CLAIM), fields.texts("capabilities")
    fields.end()
    return found


def names_of(form: Form, name: str) -> tuple[str, ...]:
    """A form of one list of texts."""
    fields = Fields(form)
    found = fields.names(name)
    fields.end()
    return found


# answers


def task_form(task: Task) -> dict[str, Any]:
    """A task as plain data; what is None or empty is there too, so that every form is alike."""
    return {
        "id": task.id,
        "title": task.title,
        "goal": task.goal,
        "state": task.state.value,
        "priority": task.priority.value,
        "depends_on": list(task.depends_on),
        "capabilities": list(task.capabilities),
        "unmet": task.unmet,
        "blocking": task.blocking,
        "attempts": task.attempts,
        "max_attempts": task.max_attempts,
        "created_utc": _shown(task.created_utc),
        "created_by": task.created_by,
        "not_before_utc": _shown(task.not_before_utc),
        "ready_utc": _shown(task.ready_utc),
        "deadline_utc": _shown(task.deadline_utc),
        "ended_utc": _shown(task.ended_utc),
        "timeout_s": task.timeout_s,
        "agent": task.agent,
        "claim": None if task.claim is None else _claim_form(task.claim),
        "failure_kind": None if task.failure_kind is None else task.failure_kind.value,
        "failure": task.failure,
        "result": task.result,
    }


def _claim_form(claim: TaskClaim) -> dict[str, Any]:
    return {
        "agent": claim.agent,
        "epoch": claim.epoch,
        "fence": claim.fence,
        "claimed_utc": _shown(claim.claimed_utc),
        "until_utc": _shown(claim.until_utc),
        "times_out_utc": _shown(claim.times_out_utc),
    }


def scored_form(scored: ScoredTask) -> dict[str, Any]:
    """A ready task with its score."""
    return {**task_form(scored.task), "score": scored.score}


def change_forms(changes: Collection[TaskChange]) -> list[dict[str, Any]]:
    """What changed, by task."""
    return [
        {
            "task": change.task,
            "before": None if change.before is None else change.before.value,
            "after": change.after.value,
            "root": change.root,
        }
        for change in changes
    ]


def _shown(at_utc: datetime | None) -> str | None:
    return None if at_utc is None else at_utc.isoformat()
