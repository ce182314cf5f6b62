"""A machine with agents on it, and daemons that watch them: what the restart tests share.

The machine outlives the daemons, as the store does; a daemon can be cut off at any call.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

import trio

from custosd.adapters.memory_actions import MemoryActions
from custosd.core.agents import AgentId
from custosd.core.beats import Beat, ReceivedBeat
from custosd.core.errors import ControlError, StoreUnavailable
from custosd.core.evidence import Exit, Observation, ProcessIdentity, Source, Value
from custosd.core.facts import Entry, Fact
from custosd.core.holds import Hold, HoldKind
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.restarts import Restart, RestartState
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.ports import AgentControl, HandOver, Lease
from custosd.services.beats import BeatRegister
from custosd.services.board import EntryMaker
from custosd.services.holds import Holds
from custosd.services.restarter import (
    Restarter,
    RestarterPorts,
    RestarterSettings,
    Supervised,
    keep_restarts,
)

ADA, BOB, CYD = AgentId("ada"), AgentId("bob"), AgentId("cyd")
SOURCES = frozenset({Source.BEAT, Source.PROCESS, Source.TRANSCRIPT})
TICK_S = 5.0
KILLED = Exit(signal=9)


class PowerCut(Exception):
    """The daemon ends here, between two instructions."""


@dataclass
class Worker:
    """One process of an agent. `frozen`: it is there and does nothing."""

    identity: ProcessIdentity
    epoch: int
    frozen: bool = False
    cpu_s: float = 0.0


@dataclass
class Machine:
    """What runs on a machine, and everything that was done to it."""

    workers: dict[AgentId, Worker] = field(default_factory=dict)
    calls: list[tuple[str, AgentId]] = field(default_factory=list)
    starts: list[tuple[AgentId, str, int]] = field(default_factory=list)
    started_at: list[float] = field(default_factory=list)
    blinds: str = ""
    forgetful: bool = False
    handed: list[HandOver] = field(default_factory=list)
    deaf: set[AgentId] = field(default_factory=set)
    immortal: set[AgentId] = field(default_factory=set)
    blind: set[AgentId] = field(default_factory=set)
    mute: set[AgentId] = field(default_factory=set)
    stillborn: set[AgentId] = field(default_factory=set)
    wakes: set[AgentId] = field(default_factory=set)
    unable: dict[AgentId, list[str]] = field(default_factory=dict)
    doubled: list[AgentId] = field(default_factory=list)
    on_end: Callable[[AgentId, Worker, Exit], None] = lambda *_: None
    looks: dict[AgentId, int] = field(default_factory=dict)
    written: dict[AgentId, float] = field(default_factory=dict)
    stopped_units: set[AgentId] = field(default_factory=set)
    ends_when_interrupted: set[AgentId] = field(default_factory=set)
    _pids: int = 1000

    def start(self, agent: AgentId, epoch: int = 0) -> Worker:
        if agent in self.workers:
            self.doubled.append(agent)
        self._pids += 1
        worker = Worker(ProcessIdentity(self._pids, self._pids * 7, "boot"), epoch)
        self.workers[agent] = worker
        return worker

    def end(self, agent: AgentId, exit_: Exit = KILLED) -> None:
        worker = self.workers.pop(agent, None)
        if worker is not None:
            self.on_end(agent, worker, exit_)

    def destroyed(self, agent: AgentId) -> bool:
        return any(call in ("stop", "kill") and who == agent for call, who in self.calls)


@dataclass
class MachineControl:
    """`ports.AgentControl` of one agent on the machine."""

    machine: Machine
    agent: AgentId

    async def sight(self) -> Observation:
        await trio.lowlevel.checkpoint()
        if self.agent in self.machine.blind:
            return Observation(Source.UNIT, Value.UNKNOWN, "no_answer")
        there = self.agent in self.machine.workers
        looks = self.machine.looks
        if self.agent in looks:
            looks[self.agent] += 1
            if self.agent in self.machine.stillborn and looks[self.agent] == 2:
                self.machine.end(self.agent, Exit(code=1))
        return Observation(Source.UNIT, Value.OK if there else Value.BAD, "seen")

    async def interrupt(self) -> None:
        await self._do("interrupt")
        if self.agent in self.machine.ends_when_interrupted:
            self.machine.end(self.agent, Exit(code=0))
        if self.agent in self.machine.wakes:
            self.machine.workers[self.agent].frozen = False
            self.machine.written[self.agent] = self.machine.written.get(self.agent, 0.0) + 1

    async def stop(self) -> None:
        await self._do("stop")
        if self.agent not in self.machine.deaf | self.machine.immortal:
            self.machine.end(self.agent, Exit(signal=15))

    async def kill(self) -> None:
        await self._do("kill")
        if self.agent not in self.machine.immortal:
            self.machine.end(self.agent, KILLED)

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        await self._do("spawn")
        known = any(key == known for _, known, _ in self.machine.starts)
        if known and not self.machine.forgetful:
            return
        self.machine.handed.append(hand_over)
        self.machine.started_at.append(trio.current_time())
        self.machine.starts.append((self.agent, key, hand_over.epoch))
        self.machine.start(self.agent, hand_over.epoch)
        self.machine.looks[self.agent] = 0

    async def _do(self, call: str) -> None:
        self.machine.calls.append((call, self.agent))
        if call == self.machine.blinds:
            self.machine.blind.add(self.agent)
        await trio.lowlevel.checkpoint()
        failures = self.machine.unable.get(self.agent)
        if failures and failures[0] == call:
            failures.pop(0)
            raise ControlError("not_done")


class Cuts:
    """Counts calls to store and control; ends the daemon before or after the n-th."""

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self.at = at
        self.after = after
        self.calls: list[str] = []

    async def call(self, name: str, act: Callable[[], Awaitable[object]]) -> object:
        self.calls.append(name)
        here = len(self.calls) == self.at
        if here and not self.after:
            raise PowerCut(name)
        answer = await act()
        if here:
            raise PowerCut(name)
        return answer


class CutControl:
    """A control that goes through `Cuts`."""

    def __init__(self, control: AgentControl, cuts: Cuts) -> None:
        self._control = control
        self._cuts = cuts

    async def sight(self) -> Observation:
        return await self._control.sight()  # looking changes nothing: no cut is special there

    async def interrupt(self) -> None:
        await self._cuts.call("interrupt", self._control.interrupt)

    async def stop(self) -> None:
        await self._cuts.call("stop", self._control.stop)

    async def kill(self) -> None:
        await self._cuts.call("kill", self._control.kill)

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        await self._cuts.call("spawn", lambda: self._control.spawn(key, hand_over))


class CutActions(MemoryActions):
    """A store that goes through `Cuts`, over what another store holds."""

    def __init__(self, inner: MemoryActions, cuts: Cuts) -> None:
        super().__init__()
        self._inner = inner
        self._cuts = cuts

    async def intend_restart(self, restart: Restart) -> Restart | None:
        act = lambda: self._inner.intend_restart(restart)  # noqa: E731
        return await self._cuts.call("intend", act)  # type: ignore[return-value]

    async def save_restart(self, restart: Restart) -> bool:
        last = restart.steps[-1] if restart.steps else None
        name = f"save {restart.state}" + (f" {last.step} {last.state}" if last else "")
        act = lambda: self._inner.save_restart(restart)  # noqa: E731
        return await self._cuts.call(name, act)  # type: ignore[return-value]

    async def take_lease(self, name: str, owner: str, ttl_s: float) -> Lease | None:
        act = lambda: self._inner.take_lease(name, owner, ttl_s)  # noqa: E731
        return await self._cuts.call("lease", act)  # type: ignore[return-value]

    async def release_lease(self, name: str, owner: str) -> None:
        await self._cuts.call("release", lambda: self._inner.release_lease(name, owner))

    async def restarts(
        self, since_utc: datetime, agent: AgentId | None = None
    ) -> tuple[Restart, ...]:
        return await self._inner.restarts(since_utc, agent)

    async def place_hold(self, hold: Hold) -> None:
        await self._inner.place_hold(hold)

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        return await self._inner.lift_hold(kind, subject)


class MachineProber:
    """`ports.Prober` that sees what is on the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.asked: list[AgentId] = []

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        await trio.lowlevel.checkpoint()
        self.asked.append(agent)
        return self.look(agent, process)

    def look(self, agent: AgentId, process: ProcessIdentity | None) -> tuple[Observation, ...]:
        if agent in self.machine.blind:
            return (Observation(Source.PROCESS, Value.UNKNOWN, "no_answer"),)
        worker = self.machine.workers.get(agent)
        written = Observation(
            Source.TRANSCRIPT, Value.OK, "read", self.machine.written.get(agent, 0.0)
        )
        if worker is None:
            gone = Observation(Source.PROCESS, Value.BAD, "process_gone", None, process)
            if agent in self.machine.stopped_units:
                return (gone, Observation(Source.UNIT, Value.BAD, "unit_inactive"), written)
            return (gone, written)
        if worker.frozen:
            stopped = Observation(
                Source.PROCESS, Value.BAD, "process_stopped", worker.cpu_s, worker.identity
            )
            return (stopped, written)
        worker.cpu_s += 1
        seen = Observation(Source.PROCESS, Value.OK, "there", worker.cpu_s, worker.identity)
        return (seen, written)


@dataclass
class Daemon:
    """One daemon's life on the machine, with the real restarter; ends with its scope."""

    machine: Machine
    store: MemoryActions
    now_utc: Callable[[], datetime]
    agents: Mapping[AgentId, Supervised]
    settings: RestarterSettings = field(default_factory=RestarterSettings)
    owner: str = "first"
    predecessors: frozenset[str] = frozenset()
    uncontrolled: frozenset[AgentId] = frozenset()
    tasks: Mapping[AgentId, str] = field(default_factory=dict)
    cuts: Cuts | None = None
    told: list[Fact] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    names: int = 0

    def __post_init__(self) -> None:
        self.facts_in, self.facts = trio.open_memory_channel[Fact](math.inf)
        self.register = BeatRegister(lambda _: True)
        self.lives = Lives(LivenessLimits(), self.register)
        self.holds = Holds(self.store, self.facts_in, self.now_utc)
        self.view = Latest(FleetView())
        self.prober = MachineProber(self.machine)
        self.maker = EntryMaker(self.owner, self.now_utc)
        self.restarter = self.make_restarter()

    def make_restarter(self) -> Restarter:
        store, cuts = self.store, self.cuts
        controls: dict[AgentId, AgentControl] = {}
        for agent in self.agents:
            if agent not in self.uncontrolled:
                controls[agent] = MachineControl(self.machine, agent)
                if cuts is not None:
                    controls[agent] = CutControl(controls[agent], cuts)
        ports = RestarterPorts(
            store if cuts is None else CutActions(store, cuts),
            controls,
            self.prober,
            self.lives,
            self.holds,
            self.facts_in,
            self.now_utc,
            jitter=lambda: 0.0,
            new_id=self.new_id,
            ended=self.predecessors.__contains__,
        )
        return Restarter(ports, self.view, self.agents, self.settings, self.owner)

    def new_id(self) -> str:
        self.names += 1
        return f"{self.owner}-{self.names}"

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch and restart until `scope` is cancelled, or power is cut."""
        now = trio.current_time()
        for agent, told in self.agents.items():
            self.lives.watch(Watched(agent, told.host, SOURCES, told.beats), now)
        self.machine.on_end = self.ended
        self.lives.restore(await self.store.lives(), now, self.now_utc())
        self.register.restore(await self.store.lives())
        restored = await self.store.holds()
        for hold in restored:
            self.holds._put(hold)
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keep_board)
                nursery.start_soon(self.keep_liveness)
                await trio.sleep(1.0)
                pulse = Pulse("restarter", trio.current_time())
                await nursery.start(self.keep_restarter, pulse)
                task_status.started()

    async def keep_restarter(
        self, pulse: Pulse, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await keep_restarts(self.restarter, pulse, task_status=task_status)

    async def keep_board(self) -> None:
        while True:
            fact = await self.facts.receive()
            self.told.append(fact)
            entry: Entry = self.maker.entry(fact)
            self.view.publish(self.view.value.after([entry]))

    async def keep_liveness(self) -> None:
        """What the liveness service does, as far as these tests need it."""
        sequence = 0
        while True:
            sequence += 1
            for agent, worker in list(self.machine.workers.items()):
                if not worker.frozen and agent not in self.machine.blind:
                    self.machine.written[agent] = self.machine.written.get(agent, 0.0) + 1
                    self.tell(self.lives.grown(agent, trio.current_time()))
                if not worker.frozen and agent not in self.machine.mute and self.beats(agent):
                    beat = Beat(
                        agent,
                        worker.epoch,
                        self.now_us(),
                        pid=worker.identity.pid,
                        task=self.tasks.get(agent, ""),
                    )
                    if self.register.offer(beat, "socket") is None:
                        self.tell(self.lives.beat(ReceivedBeat(beat, trio.current_time(), "s")))
            due = self.lives.due(trio.current_time())
            self.tell(due.facts)
            unmet = [a for a in self.machine.workers if self.lives.process(a) is None]
            for agent in {*due.look_at, *unmet}:
                self.look(agent)
            self.register._waiting.clear()
            with suppress(StoreUnavailable):
                await self.store.save_lives(self.lives.records(trio.current_time(), self.now_utc()))
            await trio.sleep(TICK_S)

    def now_us(self) -> int:
        return int(self.now_utc().timestamp() * 1e6)

    def beats(self, agent: AgentId) -> bool:
        return agent in self.agents and self.agents[agent].beats

    def look(self, agent: AgentId) -> None:
        for seen in self.prober.look(agent, self.lives.process(agent)):
            self.tell(self.lives.observed(agent, seen, trio.current_time()))
        self.tell(self.lives.looked(agent, trio.current_time()))

    def ended(self, agent: AgentId, worker: Worker, exit_: Exit) -> None:
        """A watched process ended, and that was seen at once."""
        self.tell(self.lives.died(agent, worker.identity, exit_, trio.current_time()))

    def tell(self, facts: tuple[Fact, ...]) -> None:
        for fact in facts:
            self.facts_in.send_nowait(fact)

    def of(self, *kinds: type) -> list[Fact]:
        return [fact for fact in self.told if isinstance(fact, kinds)]

    async def rows(self) -> tuple[Restart, ...]:
        return await self.store.restarts(self.now_utc().replace(year=2000))

    async def ended_rows(self, state: RestartState) -> list[Restart]:
        return [row for row in await self.rows() if row.state is state]


def limits(settings: RestarterSettings, **changes: object) -> RestarterSettings:
    return replace(settings, limits=replace(settings.limits, **changes))  # type: ignore[arg-type]
