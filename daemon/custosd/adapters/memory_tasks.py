"""The fleet's tasks, in memory: the shipped fake, whose heart is the plain model itself.

Law: a method does all or nothing, and nothing at all while `fail_with` is in force.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

import trio

from custosd.adapters.encoding import check_time
from custosd.adapters.memory_actions import virtual_utc
from custosd.core.agents import AgentId
from custosd.core.errors import StoreError
from custosd.core.task_book import TaskBook
from custosd.core.tasks import (
    Claimed,
    ClaimRequest,
    Expiry,
    Failure,
    Holder,
    NewTask,
    ScoredTask,
    Settlement,
    Task,
    TaskChange,
    TaskId,
    TaskQuery,
    TaskRules,
)


class MemoryTasks:
    """`ports.TaskStore` without a server. `now_utc` is the clock that leases run by."""

    def __init__(
        self, rules: TaskRules | None = None, now_utc: Callable[[], datetime] = virtual_utc
    ) -> None:
        self._book = TaskBook(rules)
        self._now_utc = now_utc
        self._failure: StoreError | None = None

    def fail_with(self, failure: StoreError | None) -> None:
        """Raise this at every call from now on, as a database that is away; None: no more."""
        self._failure = failure

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure

    async def add(self, tasks: Sequence[NewTask], author: str) -> tuple[TaskChange, ...]:
        """See the port."""
        await self._reach()
        return self._book.add(tasks, author, self._now_utc())

    async def link(self, edges: Sequence[tuple[TaskId, TaskId]]) -> tuple[TaskChange, ...]:
        """See the port."""
        await self._reach()
        return self._book.link(edges)

    async def next_tasks(self, limit: int, capabilities: Collection[str]) -> tuple[ScoredTask, ...]:
        """See the port."""
        await self._reach()
        return self._book.next_tasks(limit, capabilities, self._now_utc())

    async def claim(self, request: ClaimRequest) -> Claimed:
        """See the port."""
        await self._reach()
        return self._book.claim(request, self._now_utc())

    async def extend(self, task: TaskId, holder: Holder, lease_s: float) -> Settlement:
        """See the port."""
        await self._reach()
        return self._book.extend(task, holder, lease_s, self._now_utc())

    async def complete(self, task: TaskId, holder: Holder, result: str = "") -> Settlement:
        """See the port."""
        await self._reach()
        return self._book.complete(task, holder, result, self._now_utc())

    async def fail(self, task: TaskId, holder: Holder, failure: Failure) -> Settlement:
        """See the port."""
        await self._reach()
        return self._book.fail(task, holder, failure, self._now_utc())

    async def cancel(self, tasks: Collection[TaskId], reason: str = "") -> tuple[TaskChange, ...]:
        """See the port."""
        await self._reach()
        return self._book.cancel(tasks, reason, self._now_utc())

    async def release(self, dead: Mapping[AgentId, int]) -> tuple[TaskChange, ...]:
        """See the port."""
        await self._reach()
        return self._book.release(dead, self._now_utc())

    async def expire(self) -> Expiry:
        """See the port."""
        await self._reach()
        return self._book.expire(self._now_utc())

    async def tasks(self, ids: Collection[TaskId]) -> Mapping[TaskId, Task]:
        """See the port."""
        await self._reach()
        return self._book.tasks(ids)

    async def find(self, query: TaskQuery) -> tuple[Task, ...]:
        """See the port."""
        if query.ended_after_utc is not None:
            check_time(query.ended_after_utc)
        await self._reach()
        return self._book.find(query)

    async def assigned(self, agents: Collection[AgentId]) -> Mapping[AgentId, tuple[Task, ...]]:
        """See the port."""
        await self._reach()
        return self._book.assigned(agents)

    async def prune(self, before_utc: datetime) -> int:
        """See the port."""
        check_time(before_utc)
        await self._reach()
        return self._book.prune(before_utc)
