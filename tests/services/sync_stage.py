"""A forge, a store, tasks and agents for the tests of sync; what dies is the daemon alone."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import trio
from tests.contracts.sync_contract import REPOSITORY, link, pull

from custosd.adapters.memory_forge import MemoryForge
from custosd.adapters.memory_sync import MemorySync
from custosd.adapters.memory_tasks import MemoryTasks
from custosd.core.agents import AgentId
from custosd.core.facts import Fact
from custosd.core.forge import (
    ForgeWork,
    Repository,
    Told,
    WorkState,
)
from custosd.core.tasks import AUTHORITY, ClaimRequest, NewTask, Task, TaskId
from custosd.flow.pulse import Pulse
from custosd.services.landing import Landing, LandingPorts
from custosd.services.sync import Sync, SyncPorts, SyncSetup

ENGINE = Repository("ada/engine", forge="memory")
ADA = AgentId("ada")
assert ENGINE.id == REPOSITORY


class Crash(Exception):
    """The daemon was killed at this point."""


@dataclass
class Fuse:
    """Kills the daemon at the step that it is set to, before or after it."""

    at: int = -1
    after: bool = False
    steps: int = 0

    def wrap(self, target: object, names: Collection[str]) -> Any:
        fuse = self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                real = getattr(target, name)
                if name not in names:
                    return real

                async def call(*args: Any) -> Any:
                    fuse.steps += 1
                    dies = fuse.steps == fuse.at
                    if dies and not fuse.after:
                        raise Crash
                    answer = await real(*args)
                    if dies:
                        raise Crash
                    return answer

                return call

        return Wrapped()


@dataclass
class Crew:
    """`LandingTasks` over a real task store; `letters` by key, as the steerer keeps them."""

    store: MemoryTasks
    letters: dict[tuple[AgentId, str, str], str] = field(default_factory=dict)
    completed: list[TaskId] = field(default_factory=list)
    answer: Told | None = Told.QUEUED

    async def find(self, ids: Collection[TaskId]) -> Mapping[TaskId, Task]:
        return await self.store.tasks(ids)

    async def complete(self, task: TaskId, by: str, result: str) -> bool:
        settled = await self.store.complete(task, AUTHORITY, result)
        self.completed += [change.task for change in settled.changes if change.task == task]
        return True

    async def inform(self, agent: AgentId, text: str, by: str, key: str) -> tuple[Told | None, str]:
        await trio.lowlevel.checkpoint()
        if self.answer is not None:
            self.letters[agent, by, key] = text
        return self.answer, "not now" if self.answer is None else ""


@dataclass
class World:
    """Everything that outlives the daemon; `hire` starts one."""

    now_utc: Callable[[], datetime]
    repositories: tuple[Repository, ...] = (ENGINE,)
    forge: MemoryForge = field(default_factory=MemoryForge)
    store: MemorySync = field(default_factory=MemorySync)
    tasks: MemoryTasks = field(default_factory=MemoryTasks)
    told: list[Fact] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)
    fuse: Fuse = field(default_factory=Fuse)

    def __post_init__(self) -> None:
        for repository in self.repositories:
            self.forge.add(repository.id)
        self.crew = Crew(self.tasks)
        self.hire()

    def hire(self) -> Sync:
        """A new daemon, which knows nothing but what is stored."""
        self.facts_in, self.facts_out = trio.open_memory_channel[Fact](10_000)
        store = self.fuse.wrap(
            self.store,
            {"save_page", "save_record", "take_delivery", "read", "intend", "close"},
        )
        crew = self.fuse.wrap(self.crew, {"complete", "inform"})
        self.pulse = Pulse("sync", trio.current_time())
        self.landing = Landing(LandingPorts(store, crew, self.now_utc), self.facts_in)
        setup = SyncSetup(self.repositories, **self.setup)
        ports = SyncPorts(store, {"memory": self.forge}, self.now_utc)
        ring = self.landing.alarm.ring
        self.sync = Sync(ports, setup, self.facts_in.clone(), self.pulse, ring)
        return self.sync

    async def look(self) -> None:
        """What `keep_landings` does when it is woken."""
        await self.landing.look(self.pulse)

    def facts(self, kind: type[Fact] | None = None) -> list[Any]:
        """What was told so far."""
        while True:
            try:
                self.told.append(self.facts_out.receive_nowait())
            except trio.WouldBlock:
                break
        return [fact for fact in self.told if kind is None or isinstance(fact, kind)]

    async def give(self, task: str, agent: AgentId | None = ADA) -> None:
        """Add a task, claimed by an agent."""
        await self.tasks.add([NewTask(TaskId(task), task)], "eve")
        if agent is not None:
            await self.tasks.claim(ClaimRequest(agent, 3_600.0))

    async def state(self, task: str) -> str:
        return (await self.tasks.tasks({TaskId(task)}))[TaskId(task)].state.value


def landed(
    now: datetime, *tasks: str, key: str = "1", minutes: float = 1.0, **more: Any
) -> ForgeWork:
    """A pull request that is merged and ends these tasks."""
    at_utc = now + timedelta(minutes=minutes)
    return pull(key, WorkState.MERGED, at_utc, links=tuple(map(link, tasks)), **more)


def hooks_of(forge: MemoryForge, works: Sequence[ForgeWork]) -> list[tuple[dict[str, str], bytes]]:
    """One signed hook for each work."""
    return [forge.signed(f"d{number}", work) for number, work in enumerate(works)]
