"""The fleet's tasks on PostgreSQL.

Laws:

1. As `store`, 1 and 2: a method is one crossing, and a constant number of statements; readiness
   and urgency are one statement each, whatever the number of tasks.
2. Who waits for what, and who has what, is decided by the server alone: by its locks and its
   clock. A clock of one's own is for tests.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

import structlog
import trio

from custosd.adapters.encoding import check_time, storable
from custosd.adapters.postgres import task_queries, task_rows
from custosd.adapters.postgres.bridge import Connection, Database, Record
from custosd.core.agents import AgentId, shard_of
from custosd.core.errors import StoreConflict
from custosd.core.task_book import (
    check_dependencies,
    check_edges,
    is_repeated,
    unsettled,
)
from custosd.core.tasks import (
    AUTHORITY,
    Claimed,
    ClaimRequest,
    Expiry,
    Failure,
    Holder,
    NewTask,
    ScoredTask,
    Settlement,
    Settling,
    Task,
    TaskChange,
    TaskCycle,
    TaskId,
    TaskQuery,
    TaskRules,
    TaskState,
    check_claim,
    check_failure,
    check_new,
    find_cycle,
    in_ms,
    limit_rest_s,
    no_such_page,
)

log = structlog.get_logger()

Edge = tuple[TaskId, TaskId]

_SPARE = 3
_WIDER = 8


class PostgresTasks:
    """`ports.TaskStore` on an open database whose schema is in place."""

    def __init__(
        self,
        database: Database,
        rules: TaskRules | None = None,
        now_utc: Callable[[], datetime] | None = None,
    ) -> None:
        self._database = database
        self._rules = rules or TaskRules()
        self._clock = now_utc

    def _now_utc(self) -> datetime | None:
        return self._clock() if self._clock else None

    async def add(self, tasks: Sequence[NewTask], author: str) -> tuple[TaskChange, ...]:
        """Add tasks, all or none; see the port."""
        check_new(tasks)
        if not tasks:
            await trio.lowlevel.checkpoint()
            return ()
        return await self._database.unit(_add, tasks, author, self._now_utc())

    async def link(self, edges: Sequence[Edge]) -> tuple[TaskChange, ...]:
        """Let each first task wait for the second; see the port."""
        return await self._database.unit(_link, edges)

    async def next_tasks(self, limit: int, capabilities: Collection[str]) -> tuple[ScoredTask, ...]:
        """The most urgent tasks that may be claimed, with their scores."""
        query = task_queries.next_tasks(self._rules.score, task_queries.rounded_up(limit))
        able = [storable(name) for name in capabilities]
        rows = await self._database.unit(_read, query, self._now_utc(), able, tx=False)
        found = (ScoredTask(task, row["score"]) for row, task in task_rows.tasks_of(rows))
        return tuple(found)[:limit]

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Lease the most urgent tasks to an agent; see the port."""
        check_claim(request)
        keyed = request.key != ""
        fn = _claim_once if keyed else _claim
        return await self._database.unit(fn, request, self._rules, self._now_utc(), tx=keyed)

    async def extend(self, task: TaskId, holder: Holder, lease_s: float) -> Settlement:
        """Let a lease last from now on; see the port."""
        row = (self._now_utc(), task, *_holder(holder), in_ms(lease_s))
        return await self._database.unit(_extend, row, tx=False)

    async def complete(self, task: TaskId, holder: Holder, result: str = "") -> Settlement:
        """End a task well, and free whoever waited for it alone."""
        row = (self._now_utc(), task, *_holder(holder), storable(result))
        any_state = holder == AUTHORITY
        query = task_queries.COMPLETE_ANY if any_state else task_queries.COMPLETE
        lock = task_queries.LOCK_GRAPH if any_state else task_queries.SHARE_GRAPH
        return await self._database.unit(_settle, lock, query, row, holder)

    async def fail(self, task: TaskId, holder: Holder, failure: Failure) -> Settlement:
        """End an attempt badly; see the port."""
        check_failure(failure)
        rest = in_ms(limit_rest_s(failure.after_s, self._rules.retry))
        words = (failure.kind.value, storable(failure.reason), rest)
        row = (self._now_utc(), task, *_holder(holder), *words)
        query = task_queries.fail(self._rules.retry, with_authority=holder == AUTHORITY)
        return await self._database.unit(_settle, task_queries.LOCK_GRAPH, query, row, holder)

    async def cancel(self, tasks: Collection[TaskId], reason: str = "") -> tuple[TaskChange, ...]:
        """End those of the tasks that are open, and all that waits for them."""
        row = (self._now_utc(), list(tasks), storable(reason))
        return await self._database.unit(_change, task_queries.CANCEL, row)

    async def release(self, dead: Mapping[AgentId, int]) -> tuple[TaskChange, ...]:
        """Take away what these agents' incarnations up to the given epoch have claimed."""
        agents = [storable(agent) for agent in dead]
        row = (self._now_utc(), [shard_of(agent) for agent in dead], agents, list(dead.values()))
        return await self._database.unit(_change, task_queries.release(self._rules.retry), row)

    async def expire(self) -> Expiry:
        """Take away leases that ran out, and say when the next thing is due."""
        now_utc = self._now_utc()
        due_s = await self._database.unit(_next_due_s, now_utc, tx=False)
        if due_s is None or due_s > 0:
            return Expiry((), due_s)
        query = task_queries.expire(self._rules.retry)
        return await self._database.unit(_expire, query, now_utc)

    async def tasks(self, ids: Collection[TaskId]) -> Mapping[TaskId, Task]:
        """Those of the tasks that there are."""
        rows = await self._database.unit(_read, task_queries.READ_TASKS, list(ids), tx=False)
        return {task.id: task for _, task in task_rows.tasks_of(rows)}

    async def find(self, query: TaskQuery) -> tuple[Task, ...]:
        """Tasks by state, agent and end, newest first; see the port."""
        if query.ended_after_utc is not None:
            check_time(query.ended_after_utc)
        rows = await self._database.unit(_find, query, tx=False)
        return tuple(task for _, task in task_rows.tasks_of(rows))

    async def assigned(self, agents: Collection[AgentId]) -> Mapping[AgentId, tuple[Task, ...]]:
        """What each of these agents has claimed, in one statement."""
        names = sorted(set(agents))
        columns = ([shard_of(agent) for agent in names], [storable(agent) for agent in names])
        rows = await self._database.unit(_read, task_queries.READ_ASSIGNED, *columns, tx=False)
        found: dict[AgentId, list[Task]] = {agent: [] for agent in names}
        for _, task in task_rows.tasks_of(rows):
            if task.agent is not None:
                found[task.agent].append(task)
        return {agent: tuple(held) for agent, held in found.items()}

    async def prune(self, before_utc: datetime) -> int:
        """Drop tasks that ended before this time, a bounded number in a unit of work."""
        check_time(before_utc)
        pruned = 0
        while True:
            gone = await self._database.unit(_prune, before_utc)
            pruned += gone
            if gone < task_queries.PRUNE_BATCH:
                return pruned


def _holder(holder: Holder) -> tuple[str | None, int | None]:
    return None if holder.agent is None else storable(holder.agent), holder.fence


# units of work


async def _read(conn: Connection, query: str, *args: object) -> list[Record]:
    return await conn.fetch(query, *args)


async def _add(
    conn: Connection, tasks: Sequence[NewTask], author: str, clock_utc: datetime | None
) -> tuple[TaskChange, ...]:
    needed = {id_ for task in tasks for id_ in task.depends_on}
    if needed:
        await conn.execute(task_queries.LOCK_GRAPH)
    rows = await conn.fetch(task_queries.READ_TASKS, [task.id for task in tasks])
    known = {task.id: task for _, task in task_rows.tasks_of(rows)}
    fresh = [task for task in tasks if not is_repeated(task, known.get(task.id))]
    if not fresh:
        return ()
    states = await conn.fetch(task_queries.READ_STATES, list(needed))
    found = {TaskId(row["id"]): TaskState(row["state"]) for row in states}
    check_dependencies(fresh, found)
    now_utc = await conn.fetchval(task_queries.READ_NOW, clock_utc)
    plan = task_rows.insertion_of(fresh, found)
    inserted = await conn.fetch(
        task_queries.INSERT_TASKS, now_utc, storable(author), *plan.task_columns
    )
    if len(inserted) < len(fresh):
        raise StoreConflict("another transaction has just added one of these tasks")
    if plan.edge_columns[0]:
        await conn.execute(task_queries.INSERT_EDGES, *plan.edge_columns)
        await conn.execute(task_queries.COUNT_EDGES, *plan.count_columns)
    return plan.changes


async def _link(conn: Connection, edges: Sequence[Edge]) -> tuple[TaskChange, ...]:
    await conn.execute(task_queries.LOCK_GRAPH)
    ids = sorted({id_ for edge in edges for id_ in edge})
    rows = await conn.fetch(task_queries.READ_TASKS_HELD, ids)
    known = {task.id: task for _, task in task_rows.tasks_of(rows)}
    fresh = check_edges(edges, known)
    if not fresh:
        return ()
    columns = [list(column) for column in zip(*fresh, strict=True)]
    await conn.execute(task_queries.INSERT_EDGES, *columns)
    if await conn.fetchval(task_queries.MAY_CIRCLE, *columns):
        waits: dict[TaskId, list[TaskId]] = {}
        for row in await conn.fetch(task_queries.READ_UPSTREAM, *columns):
            waits.setdefault(TaskId(row["task_id"]), []).append(TaskId(row["depends_on"]))
        for waiter, dependency in fresh:
            waits.setdefault(waiter, []).append(dependency)
        if path := find_cycle(waits):
            raise TaskCycle(path)
    counted, changes = task_rows.linking_of(fresh, known)
    await conn.execute(task_queries.COUNT_EDGES, *counted)
    return changes


async def _claim(
    conn: Connection, request: ClaimRequest, rules: TaskRules, now_utc: datetime | None
) -> Claimed:
    claimed: list[Task] = []
    size = task_queries.rounded_up(request.limit + _SPARE)
    while True:
        query = task_queries.claim(rules.score, size)
        able = list(request.capabilities)
        left = request.limit - len(claimed)
        owner = (shard_of(request.agent), storable(request.agent), request.epoch)
        lease = (in_ms(request.lease_s), storable(request.key))
        rows = await conn.fetch(query, now_utc, able, left, *owner, *lease)
        claimed += [task for _, task in task_rows.tasks_of(rows) if task.id]
        # Others are taking what we looked at: look at more, until that is all there is.
        if len(claimed) >= request.limit or rows[0]["looked_at"] < size:
            return Claimed(tuple(claimed))
        size *= _WIDER


async def _claim_once(
    conn: Connection, request: ClaimRequest, rules: TaskRules, now_utc: datetime | None
) -> Claimed:
    agent, key = storable(request.agent), storable(request.key)
    # The same request may be under way already, on another connection.
    await conn.execute(task_queries.LOCK_CLAIM, f"{agent} {key}")
    shard = shard_of(request.agent)
    rows = await conn.fetch(task_queries.READ_HELD_UNDER, shard, agent, key)
    if rows:
        return Claimed(tuple(task for _, task in task_rows.tasks_of(rows)), repeated=True)
    return await _claim(conn, request, rules, now_utc)


async def _extend(conn: Connection, row: tuple[object, ...]) -> Settlement:
    rows = await conn.fetch(task_queries.EXTEND, *row)
    if rows:
        return Settlement(Settling.DONE, task_rows.task_of(rows[0]))
    rows = await conn.fetch(task_queries.READ_TASKS, [row[1]])
    if not rows:
        return Settlement(Settling.UNKNOWN)
    return Settlement(Settling.LOST, task_rows.task_of(rows[0]))


async def _settle(
    conn: Connection, lock: str, query: str, row: tuple[object, ...], holder: Holder
) -> Settlement:
    await conn.execute(lock)
    changes = task_rows.changes_of(await conn.fetch(query, *row))
    rows = await conn.fetch(task_queries.READ_TASKS, [row[1]])
    task = task_rows.task_of(rows[0]) if rows else None
    if changes:
        return Settlement(Settling.DONE, task, changes)
    return Settlement(unsettled(task, holder), task)


async def _change(conn: Connection, query: str, row: tuple[object, ...]) -> tuple[TaskChange, ...]:
    await conn.execute(task_queries.LOCK_GRAPH)
    return task_rows.changes_of(await conn.fetch(query, *row))


async def _next_due_s(conn: Connection, now_utc: datetime | None) -> float | None:
    due_s: float | None = await conn.fetchval(task_queries.NEXT_DUE, now_utc)
    return due_s


async def _expire(conn: Connection, query: str, now_utc: datetime | None) -> Expiry:
    changes = await _change(conn, query, (now_utc,))
    await conn.execute(task_queries.MARK_OVERDUE, now_utc)
    return Expiry(changes, await _next_due_s(conn, now_utc))


async def _find(conn: Connection, query: TaskQuery) -> list[Record]:
    after = query.after
    if after is not None and not await conn.fetch(task_queries.READ_STATES, [storable(after)]):
        raise no_such_page(after)
    sql = task_queries.find_tasks(
        by_state=bool(query.states),
        by_agent=bool(query.agents),
        after=after is not None,
        by_end=query.ended_after_utc is not None,
        own_ends=query.own_ends,
        limit=task_queries.rounded_up(query.limit),
    )
    states = [state.value for state in query.states]
    agents = [storable(agent) for agent in query.agents]
    last = None if after is None else storable(after)
    found = await conn.fetch(sql, states, agents, last, query.ended_after_utc)
    return found[: query.limit]


async def _prune(conn: Connection, before_utc: datetime) -> int:
    return int(await conn.fetchval(task_queries.PRUNE, before_utc))
