"""Reads to which tasks work belongs; ends those whose work has landed, and tells who was at them.

    works, unread ─► [ belonging ] ─► links ─► WorkLinked
         └── landed ─► Closing written ─► task completed ─► agent told ─► Closing over ─► WorkLanded

Laws:

1. By levels, not by edges: whatever changed is unread until all of this was done for it, so
   a stop at any point is gone on from, and a word that comes twice does nothing.
2. That a work ends a task is written before it is done. Who is told is who had the task by the
   statement that ended it, which the task's own record says for good: so it is told once, by one
   key, also by the daemon after this one, however long that was away.
3. Only what landed after a task was made ends it: names are used again. A commit says no more
   than when it was committed: one from before the task, merged after it, ends nothing.
4. What the database did not take is tried again; what a task or an agent refused is not. One
   work that it refuses holds up no other.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.errors import StoreError, StoreRefused
from custosd.core.facts import ConcernResolved, Escalated, Fact, WorkLanded, WorkLinked
from custosd.core.forge import Closing, ForgeWork, Told, WorkKind
from custosd.core.task_links import belonging
from custosd.core.tasks import Task, TaskId
from custosd.flow.alarm import Alarm
from custosd.flow.pulse import Pulse
from custosd.ports import SyncStore
from custosd.services.store_absence import StoreAbsence

log = structlog.get_logger()

BATCH = 100
LOOK_S = 60.0
"""How often is looked for what another daemon left unread."""

RETRY_S = 5.0
_REFUSED = "the database refuses what follows from this work; see work.refused in the log"


class LandingTasks(Protocol):
    """The fleet's tasks and who is at them, as far as a landing needs them."""

    async def find(self, ids: Collection[TaskId]) -> Mapping[TaskId, Task]:
        """Those of the tasks that there are. Raises `StoreError`."""
        ...

    async def complete(self, task: TaskId, by: str, result: str) -> bool:
        """End a task well, with authority; False: not now. One that is over stays as it is."""
        ...

    async def inform(self, agent: AgentId, text: str, by: str, key: str) -> tuple[Told | None, str]:
        """Tell an agent, once under one key; what came of it, None: not now, and why."""
        ...


@dataclass(frozen=True, slots=True)
class LandingPorts:
    """What a landing works with."""

    store: SyncStore
    tasks: LandingTasks
    now_utc: Callable[[], datetime]


@dataclass(slots=True)
class Landing:
    """Looks at work that changed; `keep_landings` runs it. `alarm` wakes it."""

    ports: LandingPorts
    facts: trio.MemorySendChannel[Fact]
    alarm: Alarm = field(default_factory=lambda: Alarm(LOOK_S))
    _absence: StoreAbsence = field(default_factory=lambda: StoreAbsence("landing"))
    _refused: set[str] = field(default_factory=set[str])

    async def look(self, pulse: Pulse) -> None:
        """Read all that is unread; what could not be finished is tried again in `RETRY_S`."""
        try:
            stuck = await self._read_all(pulse)
        except StoreError as error:
            self._absence.lost(error, 0)
            self.alarm.after(RETRY_S)
            return
        self._absence.answered()
        if stuck:
            self.alarm.after(RETRY_S)

    async def _read_all(self, pulse: Pulse) -> int:
        stuck: set[tuple[str, str, str]] = set()
        while True:
            # Those that are stuck stay at the front, and are looked past.
            unread = await self.ports.store.unread(BATCH + len(stuck))
            unread = tuple(one for one in unread if one[0].id not in stuck)
            if not unread:
                return len(stuck)
            tasks = await self.ports.tasks.find(
                {link.task for work, _ in unread for link in work.links}
            )
            for work, version in unread:
                if not await self._read_one(work, version, tasks):
                    stuck.add(work.id)
                pulse.beat()

    async def _read_one(self, work: ForgeWork, version: int, tasks: Mapping[TaskId, Task]) -> bool:
        """As `_read`; what the database refuses is this work's alone, and a person's concern."""
        name = f"work:{work.repository} {work.kind} {work.key}"
        try:
            done = await self._read(work, version, tasks)
        except StoreRefused as error:
            if name not in self._refused:
                self._refused.add(name)
                log.error(
                    "work.refused",
                    repository=work.repository,
                    kind=work.kind,
                    key=work.key,
                    error=str(error),
                )
                await self.facts.send(Escalated(name, "landing_refused", None, _REFUSED))
            return False
        if done and name in self._refused:
            self._refused.discard(name)
            await self.facts.send(ConcernResolved(name, "read"))
        return done

    async def _read(self, work: ForgeWork, version: int, tasks: Mapping[TaskId, Task]) -> bool:
        """Whether all was done that follows from this work."""
        links = belonging(work, tasks.keys())
        for link in links:
            task = tasks[link.task]
            ends = link.closes and _landed_after(work, task)
            if ends and not await self._end(work, task):
                return False
        for new in await self.ports.store.read(work, version, links):
            log.info(
                "work.linked",
                task=new.task,
                repository=work.repository,
                kind=work.kind,
                key=work.key,
                how=new.how,
            )
            await self.facts.send(
                WorkLinked(new.task, work.repository, work.kind, work.key, new.how)
            )
        return True

    async def _end(self, work: ForgeWork, task: Task) -> bool:
        ports = self.ports
        closing = await ports.store.intend(
            Closing(task.id, work.repository, work.kind, work.key, ports.now_utc())
        )
        if closing.done_utc is not None:
            return True
        result = f"landed: {work.url or work.sha or work.key}"
        by = f"sync:{work.repository.partition(':')[0]}"
        if not await ports.tasks.complete(task.id, by, result):
            return False
        closing = replace(closing, agent=await self._ended_for(task.id, result))
        told = await self._tell(closing, work, by)
        if told is None:
            return False
        await ports.store.close(replace(closing, done_utc=ports.now_utc(), told=told))
        log.info(
            "work.landed",
            task=task.id,
            repository=work.repository,
            kind=work.kind,
            key=work.key,
            agent=closing.agent,
            told=told,
        )
        await self.facts.send(
            WorkLanded(task.id, work.repository, work.kind, work.key, told, closing.agent)
        )
        return True

    async def _ended_for(self, id_: TaskId, result: str) -> AgentId | None:
        """Who had the task as this work ended it; None: nobody, or it had ended otherwise."""
        task = (await self.ports.tasks.find({id_})).get(id_)
        # Read after the end: before it another may have claimed, or ended it itself.
        return task.agent if task is not None and task.result == result else None

    async def _tell(self, closing: Closing, work: ForgeWork, by: str) -> Told | None:
        """Tell who was at work; None: not now."""
        if closing.agent is None:
            return Told.NOBODY
        task = closing.task
        what = "pull request" if work.kind is WorkKind.PULL_REQUEST else "commit"
        name = work.repository.partition(":")[2]
        text = (
            f"Task {task} is done: {what} {work.key[:12]} of {name} has landed on its main"
            f" branch. Nothing more is to be done for this task. {work.url}"
        )
        key = f"landed {' '.join(closing.id)}"
        told, why = await self.ports.tasks.inform(closing.agent, text, by, key)
        if told in {None, Told.REFUSED}:
            log.warning("agent.untold", agent=closing.agent, task=task, reason=why)
        return told


def _landed_after(work: ForgeWork, task: Task) -> bool:
    # Forges tell whole seconds.
    created_utc = task.created_utc.replace(microsecond=0)
    return work.landed and work.landed_utc is not None and work.landed_utc >= created_utc


async def keep_landings(
    landing: Landing,
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Look when woken, and each `LOOK_S`; never returns unless cancelled.

    A store that is away is told of once, and asked again. Back-pressure: waits for room in
    the facts. Raises nothing of its own.
    """
    task_status.started()
    while True:
        landing.alarm.rewind()
        await landing.look(pulse)
        with pulse.waiting():
            await landing.alarm.wait()
