"""A restart that was cut off after the agent was told to end: it ends, by our doing."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from tests.idle_hands import idle_hands

from custosd.acting import ActingHalf, Remembered
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.config.agents import AgentSettings
from custosd.config.settings import Config
from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import Beat, ReceivedBeat
from custosd.core.evidence import (
    Condition,
    Exit,
    Health,
    Observation,
    ProcessIdentity,
    Source,
    Value,
)
from custosd.core.facts import Fact
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.lives import LifeRecord, ended_by_us
from custosd.core.restarts import Cause, Restart, RestartState, RestartStep, StepRecord, StepState
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.ports import HandOver
from custosd.services.procedure import Procedure, ProcedureLimits, ProcedurePorts

Clock = trio.testing.MockClock

ADA = AgentId("ada")
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
SOURCES = frozenset({Source.BEAT, Source.PROCESS, Source.UNIT})
HUNG = Health(Condition.HUNG, Value.BAD, "silent_and_stopped")


@dataclass
class Unit:
    """A unit that needs `ending_s` to end when it is told to; also its control and prober."""

    ending_s: float = 25.0
    says_so: bool = True
    ends_at: float = math.inf
    stopped: bool = True
    starts: int = 0
    calls: list[str] = field(default_factory=list)

    @property
    def process(self) -> ProcessIdentity:
        return ProcessIdentity(10 + self.starts, 70 + self.starts, "boot")

    def look(self) -> Observation:
        if trio.current_time() >= self.ends_at:
            return Observation(Source.UNIT, Value.BAD, "unit_inactive", exit=Exit(code=0))
        ends = self.ends_at < math.inf and self.says_so
        detail = "unit_deactivating" if ends else "unit_active"
        return Observation(Source.UNIT, Value.OK, detail, process=self.process)

    async def sight(self) -> Observation:
        await trio.lowlevel.checkpoint()
        return self.look()

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        await trio.lowlevel.checkpoint()
        unit = self.look()
        if unit.value is Value.BAD:
            return (unit,)
        told = (Value.BAD, "process_stopped") if self.stopped else (Value.OK, "process_there")
        return (Observation(Source.PROCESS, *told, 1.0, self.process), unit)

    async def interrupt(self) -> None:
        await self._do("interrupt")

    async def stop(self) -> None:
        await self._do("stop")
        self.ends_at = min(self.ends_at, trio.current_time() + self.ending_s)

    async def kill(self) -> None:
        await self._do("kill")
        self.ends_at = trio.current_time()

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        await self._do("spawn")
        self.starts += 1
        self.ends_at, self.stopped = math.inf, False

    async def _do(self, call: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(call)


class HungLives(Lives):
    """Holds that the agent hangs, until a new incarnation was started."""

    def health(self, agent: AgentId, now: float) -> Health:
        return super().health(agent, now) if self.epoch(agent) else HUNG


@dataclass
class Table:
    """One unit, a store, and one daemon after another that watches and restarts it."""

    now_utc: Callable[[], datetime]
    unit: Unit = field(default_factory=Unit)
    limits: ProcedureLimits = field(default_factory=lambda: ProcedureLimits(interrupt_s=0.0))
    records: tuple[LifeRecord, ...] = ()

    def __post_init__(self) -> None:
        self.actions = MemoryActions(self.now_utc)
        self.facts_in, self.facts = trio.open_memory_channel[Fact](math.inf)

    async def daemon(self, kind: type[Lives] = Lives) -> Lives:
        """The lives as another daemon takes them up; the last one ends without a word."""
        now, rows = trio.current_time(), await self.rows()
        lives = kind(LivenessLimits())
        lives.watch(Watched(ADA, "h", SOURCES), now)
        lives.restore(
            self.records, now, self.now_utc(), ended_by_us=ended_by_us(self.records, rows)
        )
        if not self.records:
            lives.beat(ReceivedBeat(Beat(ADA, 0, 1, pid=self.unit.process.pid), now, "socket"))
            lives.observed(ADA, self.unit.look(), now)
            self.records = lives.records(now, self.now_utc())
        self.lives = lives
        return lives

    async def rows(self) -> tuple[Restart, ...]:
        return await self.actions.restarts(NOON.replace(year=2000))

    def procedure(self, restart: Restart, owner: str) -> Procedure:
        ports = ProcedurePorts(
            self.actions,
            self.unit,
            self.unit,
            self.lives,
            self.facts_in,
            self.now_utc,
            lambda _: "",
            lambda restart: HandOver(restart.agent, restart.next_epoch, restart.cause),
            ended=lambda _: True,
        )
        return Procedure(restart, ports, self.limits, owner)

    async def told_to_end(self) -> None:
        """A daemon tells the hung unit to end, and is killed on the spot."""
        await self.daemon(HungLives)
        intent = Restart("r1", ADA, "k1", Cause.HANG, "", "custosd", 0, 1, self.now_utc())
        stored = await self.actions.intend_restart(intent)
        assert stored is not None
        with trio.move_on_after(3.5):
            await self.procedure(stored, "first").run()
        assert self.unit.calls == ["stop"]

    async def taken_up(self) -> Procedure:
        """Another daemon goes on with it, to its end."""
        await self.daemon()
        (row,) = await self.rows()
        procedure = self.procedure(row, "second")
        await procedure.run()
        return procedure

    async def speak(self) -> None:
        while True:
            await trio.sleep(1)
            if self.unit.starts:
                beat = Beat(ADA, 1, round(trio.current_time() * 10))
                self.lives.beat(ReceivedBeat(beat, trio.current_time(), "socket"))

    def look(self) -> None:
        now = trio.current_time()
        self.lives.saw(ADA, [self.unit.look()], now)


@pytest.fixture
def table(now_utc: Callable[[], datetime]) -> Table:
    return Table(now_utc)


async def test_what_takes_long_to_end_is_waited_for_and_started_again(
    table: Table, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """The new daemon sees it there, and knows of nothing that speaks against it."""
    await table.told_to_end()
    nursery.start_soon(table.speak)
    procedure = await table.taken_up()
    assert (procedure.restart.state, table.unit.starts) == (RestartState.SUCCEEDED, 1)
    assert table.unit.calls == ["stop", "spawn"]
    nursery.cancel_scope.cancel()


async def test_what_ends_after_it_was_waited_for_in_vain_is_dead_and_not_done(
    table: Table, autojump_clock: Clock
) -> None:
    """Its control does not say that it ends; when it does, it is started anew."""
    table.unit.says_so = False
    await table.told_to_end()
    procedure = await table.taken_up()
    assert procedure.restart.state is RestartState.ABANDONED
    assert table.lives.state(ADA) is not AgentState.RESTARTING
    await trio.sleep(60)
    table.look()
    assert table.lives.health(ADA, trio.current_time()).authorises_restart
    await table.daemon()
    table.look()
    assert table.lives.state(ADA) is AgentState.FAILED


async def test_while_it_is_waited_for_its_end_is_ours_already(
    table: Table, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Those who watch it look, too; what they see must not make it one that is done."""
    await table.told_to_end()
    lives = await table.daemon()
    (row,) = await table.rows()
    nursery.start_soon(table.procedure(row, "second").run)
    await trio.sleep(1)
    assert lives.state(ADA) is AgentState.RESTARTING
    gone = Observation(Source.UNIT, Value.BAD, "unit_inactive")
    lives.saw(ADA, [gone], trio.current_time())
    assert lives.health(ADA, trio.current_time()).authorises_restart
    nursery.cancel_scope.cancel()


async def test_a_unit_that_never_ends_is_not_waited_for_for_ever(
    table: Table, autojump_clock: Clock
) -> None:
    table.unit.ending_s = math.inf
    await table.told_to_end()
    table.unit.ends_at = trio.current_time() + 1e6
    began_at = trio.current_time()
    procedure = await table.taken_up()
    assert procedure.restart.state is RestartState.ABANDONED
    waited_s = trio.current_time() - began_at
    assert table.limits.ending_s <= waited_s < table.limits.ending_s + 10


async def test_who_is_continued_while_it_is_interrupted_is_left_alone(
    table: Table, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """It runs, and has not had the time to beat."""
    table.limits = ProcedureLimits()
    await table.daemon(HungLives)
    intent = Restart("r1", ADA, "k1", Cause.HANG, "", "custosd", 0, 1, table.now_utc())
    stored = await table.actions.intend_restart(intent)
    assert stored is not None

    async def go_on() -> None:
        await trio.sleep(5)
        table.unit.stopped = False

    nursery.start_soon(go_on)
    procedure = table.procedure(stored, "first")
    await procedure.run()
    assert (procedure.restart.state, procedure.code) == (RestartState.ABANDONED, "interrupted")
    assert table.unit.calls == ["interrupt"]


def half(stored: Remembered) -> ActingHalf:
    facts, _ = trio.open_memory_channel[Fact](math.inf)
    agents = (AgentSettings(id="ada", unit="ada.service"), AgentSettings(id="new"))
    config = Config(agents=agents)
    doors = config.doors.model_copy(update={"strangers": True, "most_agents": 3})
    return ActingHalf(
        config.model_copy(update={"doors": doors}),
        idle_hands(),
        MemoryStore(),
        Latest(FleetView()),
        facts,
        lambda: NOON,
        stored,
    )


@pytest.mark.parametrize("state", [RestartState.FAILED, RestartState.ABANDONED])
async def test_the_daemon_takes_up_whose_end_is_ours(
    state: RestartState, autojump_clock: Clock
) -> None:
    life = LifeRecord(ADA, 0, 1, AgentState.FAILED, NOON, NOON - timedelta(hours=2))
    steps = (StepRecord(RestartStep.GRACEFUL_STOP, 1, StepState.DONE, NOON, NOON, "stopped"),)
    restart = Restart("r", ADA, "k", Cause.HANG, "", "custosd", 0, 1, NOON, steps=steps)
    ended = replace(restart, state=state, ended_utc=NOON)
    for rows, authorised in (((ended,), True), ((), False)):
        lives = half(Remembered((life,), rows)).lives
        now = trio.current_time()
        lives.saw(ADA, [Observation(Source.UNIT, Value.BAD, "unit_inactive")], now)
        assert lives.health(ADA, now).authorises_restart is authorised


async def test_the_daemon_takes_up_no_ghosts_and_hears_whom_it_is_told_to_watch(
    autojump_clock: Clock,
) -> None:
    def life(name: str, days: int) -> LifeRecord:
        heard_utc = NOON - timedelta(days=days, hours=-1)
        return LifeRecord(AgentId(name), 0, 9, AgentState.TERMINATED, heard_utc, heard_utc)

    ghosts = [life(f"job-{number}", 80) for number in range(5)]
    register = half(Remembered((life("ada", 80), *ghosts, life("cyd", 1)))).register
    assert register.offer(Beat(ADA, 0, 9), "socket") == "replayed"
    assert register.offer(Beat(AgentId("cyd"), 0, 9), "socket") == "replayed"
    assert register.offer(Beat(AgentId("job-1"), 0, 1), "socket") is None
    assert register.offer(Beat(AgentId("job-2"), 0, 1), "socket") == "full"
    assert register.offer(Beat(AgentId("new"), 0, 1), "socket") is None
