"""Tasks as rows, and rows as tasks, under the laws of `rows`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from custosd.adapters.encoding import original, storable
from custosd.adapters.postgres.bridge import Record
from custosd.adapters.postgres.rows import Columns, columns
from custosd.core.agents import AgentId
from custosd.core.task_book import sorted_changes
from custosd.core.tasks import (
    FailureKind,
    NewTask,
    Task,
    TaskChange,
    TaskClaim,
    TaskId,
    TaskPriority,
    TaskState,
    unique_sorted,
)

_EDGE_COLUMNS = 2


def tasks_of(rows: Iterable[Record]) -> Iterator[tuple[Record, Task]]:
    """Rows with their tasks, where there is one."""
    for row in rows:
        if row["id"] is not None:
            yield row, task_of(row)


def task_of(row: Record) -> Task:
    """One row of the task's columns. Its words are held to the core's by the schema."""
    agent = None if row["agent_id"] is None else AgentId(original(row["agent_id"]))
    state = TaskState(row["state"])
    claim = None
    if agent is not None and state is TaskState.CLAIMED:
        claim = TaskClaim(
            agent,
            row["agent_epoch"],
            row["fence"],
            row["claimed_utc"],
            row["lease_until_utc"],
            row["times_out_utc"],
            original(row["claim_key"]),
        )
    return Task(
        id=TaskId(row["id"]),
        title=original(row["title"]),
        state=state,
        created_utc=row["created_utc"],
        created_by=original(row["created_by"]),
        goal=original(row["goal"]),
        priority=TaskPriority(row["priority"]),
        depends_on=tuple(map(TaskId, row["depends_on"])),
        capabilities=tuple(row["capabilities"]),
        unmet=row["unmet"],
        blocking=row["blocking"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        not_before_utc=row["not_before_utc"],
        ready_utc=row["ready_utc"],
        deadline_utc=row["deadline_utc"],
        timeout_s=row["timeout_s"],
        ended_utc=row["ended_utc"],
        agent=agent,
        claim=claim,
        fence=row["fence"],
        settled_fence=row["settled_fence"],
        failure_kind=None if row["failure_kind"] is None else FailureKind(row["failure_kind"]),
        failure=original(row["failure"]),
        result=original(row["result"]),
    )


def changes_of(rows: Iterable[Record]) -> tuple[TaskChange, ...]:
    """The rows of an ending, as changes."""
    return tuple(
        TaskChange(
            TaskId(row["id"]),
            TaskState(row["before"]),
            TaskState(row["after"]),
            None if row["agent"] is None else AgentId(original(row["agent"])),
            row["fence"],
            None if row["kind"] is None else FailureKind(row["kind"]),
            None if row["root"] is None else TaskId(row["root"]),
        )
        for row in rows
    )


@dataclass(frozen=True, slots=True)
class Insertion:
    """What is written for new tasks: parameters of the statements, and the changes."""

    task_columns: Columns
    edge_columns: Columns
    count_columns: Columns
    changes: tuple[TaskChange, ...]


def insertion_of(fresh: Sequence[NewTask], known: Mapping[TaskId, TaskState]) -> Insertion:
    """New tasks with what they wait for; `known` are the states of those there already."""
    new = {task.id for task in fresh}
    edges = sorted({(task.id, dependency) for task in fresh for dependency in task.depends_on})
    unmet = Counter(
        waiter
        for waiter, dependency in edges
        if dependency in new or known[dependency] is not TaskState.SUCCEEDED
    )
    blocking = Counter(dependency for _, dependency in edges)
    rows = []
    changes = []
    for task in fresh:
        state = TaskState.BLOCKED if unmet[task.id] else TaskState.READY
        changes.append(TaskChange(task.id, None, state))
        rows.append(
            (
                task.id,
                storable(task.title),
                storable(task.goal),
                task.priority.value,
                msgspec.json.encode(unique_sorted(task.capabilities)).decode(),
                state.value,
                unmet[task.id],
                blocking[task.id],
                task.max_attempts,
                task.not_before_utc,
                task.deadline_utc,
                None if task.timeout_s is None else round(task.timeout_s, 3),
            )
        )
    counts = [(id_, 0, count) for id_, count in sorted(blocking.items()) if id_ not in new]
    return Insertion(
        columns(rows),
        columns(edges) or [[] for _ in range(_EDGE_COLUMNS)],
        columns(counts) or [[], [], []],
        sorted_changes(changes),
    )


def linking_of(
    edges: Sequence[tuple[TaskId, TaskId]], known: Mapping[TaskId, Task]
) -> tuple[Columns, tuple[TaskChange, ...]]:
    """New edges between known tasks: what changes of their counts, and who is blocked by it."""
    unmet = Counter(
        waiter for waiter, other in edges if known[other].state is not TaskState.SUCCEEDED
    )
    blocking = Counter(dependency for _, dependency in edges)
    ids = sorted({id_ for edge in edges for id_ in edge})
    changes = [
        TaskChange(id_, TaskState.READY, TaskState.BLOCKED)
        for id_ in ids
        if unmet[id_] and known[id_].state is TaskState.READY
    ]
    return columns((id_, unmet[id_], blocking[id_]) for id_ in ids), sorted_changes(changes)
