import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
import structlog
import trio
import trio.testing

from custosd.adapters.memory_actions import MemoryActions
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.beats import Beat, BeatStatus, Refusal
from custosd.core.errors import StoreConflict, StoreRefused, StoreUnavailable
from custosd.core.evidence import Condition, Exit, Observation, ProcessIdentity, Source, Value
from custosd.core.facts import (
    AmnestyGranted,
    BeatMissed,
    BeatsRefused,
    BeatsSuperseded,
    Fact,
    LifeChanged,
)
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.lives import LifeRecord
from custosd.core.view import AgentView, FleetView
from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, Monitor, in_force
from custosd.flow.pulse import Pulses
from custosd.ports import Death
from custosd.services.beats import BeatRegister
from custosd.services.liveness import (
    MOST_REFUSED,
    LivenessPorts,
    LivenessSettings,
    LivenessWatch,
)

Clock = trio.testing.MockClock
NowUtc = Callable[[], datetime]

ADA, BOB, CYD = AgentId("ada"), AgentId("bob"), AgentId("cyd")
ALL = frozenset({Source.BEAT, Source.PROCESS, Source.WORKSPACE})


class FakeWatch:
    """`ports.ProcessWatch` that a test tells who died."""

    def __init__(self) -> None:
        self.watched: dict[AgentId, ProcessIdentity] = {}
        self.able = True
        self._send, self._deaths = trio.open_memory_channel[Death](math.inf)

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        if self.able:
            self.watched[agent] = process
        return self.able

    def forget(self, agent: AgentId) -> None:
        self.watched.pop(agent, None)

    def end(self, agent: AgentId, how: Exit | None = None) -> None:
        self._send.send_nowait(Death(agent, self.watched.pop(agent), how))

    async def next_deaths(self) -> Sequence[Death]:
        return [await self._deaths.receive()]


@dataclass
class FakeProber:
    """`ports.Prober` that sees what a test sets, after so long."""

    sees: dict[Source, Observation] = field(default_factory=dict)
    takes_s: dict[Source, float] = field(default_factory=dict)
    asked: list[tuple[float, AgentId, Source]] = field(default_factory=list)
    looking: int = 0
    most_looking: int = 0

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        self.looking += 1
        self.most_looking = max(self.most_looking, self.looking)
        try:
            for source in sources:
                self.asked.append((trio.current_time(), agent, source))
                await trio.sleep(self.takes_s.get(source, 0.01))
            return tuple(self.sees[source] for source in sources if source in self.sees)
        finally:
            self.looking -= 1


class CountingActions(MemoryActions):
    """A store that remembers each call that saved lives."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[list[LifeRecord]] = []
        self.takes_s = 0.0
        self.refused: set[AgentId] = set()
        self.asked = 0

    async def save_lives(self, lives: Sequence[LifeRecord]) -> None:
        self.asked += 1
        await trio.sleep(self.takes_s)
        if any(life.agent in self.refused for life in lives):
            raise StoreRefused("bad data")
        await super().save_lives(lives)
        self.saved.append(list(lives))


@dataclass
class Stage:
    """A liveness service, and the world around it."""

    clock: Clock
    now_utc: NowUtc
    agents: Sequence[Watched] = (Watched(ADA, "h", ALL),)
    limits: LivenessLimits = field(default_factory=LivenessLimits)
    room_for_facts: float = math.inf

    def __post_init__(self) -> None:
        self.facts_in, self.facts_out = trio.open_memory_channel[Fact](self.room_for_facts)
        self.listens = trio.Event()
        if self.room_for_facts:
            self.listens.set()
        self.told: list[tuple[float, Fact]] = []
        self.register = BeatRegister(lambda _: True)
        self.lives = Lives(self.limits, self.register)
        self.watch, self.prober, self.store = FakeWatch(), FakeProber(), CountingActions()
        self.view = Latest(FleetView())
        self.slept_s = 0.0
        self.processes = {7: ProcessIdentity(7, 70, "boot"), 8: ProcessIdentity(8, 80, "boot")}
        self.identified: list[int] = []
        self.sequence = 0
        self.pulses = Pulses()
        for watched in self.agents:
            self.lives.watch(watched, trio.current_time())

    def identify(self, pid: int) -> ProcessIdentity | None:
        self.identified.append(pid)
        return self.processes.get(pid)

    def boottime(self) -> float:
        return trio.current_time() + self.slept_s

    async def run(
        self, settings: LivenessSettings | None = None, *, task_status: trio.TaskStatus[None]
    ) -> None:
        ports = LivenessPorts(
            self.register,
            self.watch,
            self.prober,
            self.store,
            self.view,
            self.facts_in,
            self.identify,
            self.boottime,
            self.now_utc,
        )
        settings = settings or LivenessSettings(self.limits)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.listen)
            await LivenessWatch(self.lives, ports, settings).run(
                self.pulses, task_status=task_status
            )

    async def listen(self) -> None:
        while True:
            await self.listens.wait()
            fact = await self.facts_out.receive()
            self.told.append((trio.current_time(), fact))

    def say(self, agent: AgentId = ADA, door: str = "socket", **fields: object) -> None:
        self.sequence += 1
        beat = replace(Beat(agent, 0, self.sequence), **fields)  # type: ignore[arg-type]
        assert self.register.offer(beat, door) is None

    async def beating(self, for_s: float, *agents: AgentId, pid: int = 0) -> None:
        for _ in range(round(for_s / 15)):
            for agent in agents or (ADA,):
                self.say(agent, pid=pid)
            await trio.sleep(15)

    def of(self, kind: type[Fact]) -> list[Fact]:
        return [fact for _, fact in self.told if isinstance(fact, kind)]

    def at(self, condition: Condition, agent: AgentId = ADA) -> float:
        """When an agent was first told to be in this condition."""
        return next(
            at
            for at, fact in self.told
            if isinstance(fact, LifeChanged) and fact.agent == agent and fact.condition is condition
        )

    def condition(self, agent: AgentId = ADA) -> Condition:
        return self.lives.health(agent, trio.current_time()).condition


@pytest.fixture
async def stage(autojump_clock: Clock, now_utc: NowUtc) -> Stage:
    return Stage(autojump_clock, now_utc)


async def test_an_agent_is_heard_missed_suspected_and_looked_at(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(60)
    assert stage.lives.state(ADA) is AgentState.RUNNING
    silent_from = trio.current_time() - 15
    stage.prober.asked.clear()
    await trio.sleep(40)
    misses = [(at - silent_from, f.misses) for at, f in stage.told if isinstance(f, BeatMissed)]
    assert misses == [(20.0, 1), (35.0, 2), (50.0, 3)]
    assert {source for _, _, source in stage.prober.asked} == {Source.PROCESS, Source.WORKSPACE}
    assert stage.condition() is Condition.LATE
    nursery.cancel_scope.cancel()


async def test_the_process_that_beats_is_watched_and_its_end_is_told_at_once(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    stage.say(pid=7)
    await trio.sleep(5)
    assert stage.watch.watched == {ADA: stage.processes[7]}
    stage.watch.end(ADA, Exit(signal=9))
    at = trio.current_time()
    await trio.sleep(0.1)
    assert stage.at(Condition.DEAD) == at
    assert stage.lives.exit_of(ADA) == Exit(signal=9)
    nursery.cancel_scope.cancel()


async def test_ids_of_processes_are_believed_from_this_machine_only(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    stage.say(door="http", pid=7)
    await trio.sleep(1)
    assert stage.identified == []
    stage.say(pid=99)
    stage.say(pid=99)
    await trio.sleep(1)
    stage.say(pid=99)
    await trio.sleep(1)
    assert stage.identified == [99], "one that cannot be found is not looked for at each beat"
    stage.say(pid=8)
    await trio.sleep(1)
    assert stage.watch.watched == {ADA: stage.processes[8]}
    nursery.cancel_scope.cancel()


async def test_a_process_that_cannot_be_watched_is_looked_at_from_time_to_time(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    stage.watch.able = False
    await nursery.start(stage.run)
    await stage.beating(240, ADA, pid=7)
    stage.prober.sees[Source.PROCESS] = Observation(
        Source.PROCESS, Value.BAD, "process_gone", None, stage.processes[7]
    )
    await trio.sleep(61)
    assert stage.condition() is Condition.DEAD
    nursery.cancel_scope.cancel()


async def test_processes_known_from_before_are_watched_at_the_start(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery, now_utc: NowUtc
) -> None:
    process = stage.processes[7]
    record = LifeRecord(ADA, 3, 9, AgentState.RUNNING, now_utc(), now_utc(), process=process)
    stage.lives.restore([record], trio.current_time(), now_utc() + timedelta(hours=1))
    await nursery.start(stage.run)
    assert stage.watch.watched == {ADA: process}
    await trio.sleep(1)
    assert stage.of(AmnestyGranted) == [AmnestyGranted("downtime", 3600.0, 50.0, 1)]
    assert stage.register.offer(Beat(ADA, 2, 99), "socket") is Refusal.OLD_EPOCH
    nursery.cancel_scope.cancel()


async def test_looks_wait_their_turn_and_that_is_told_apart_from_how_long_they_take(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    agents = [Watched(AgentId(f"a{n}"), "h", ALL) for n in range(6)]
    stage = Stage(autojump_clock, now_utc, agents)
    stage.prober.takes_s[Source.WORKSPACE] = 4
    settings = LivenessSettings(probe_concurrency=2)
    with in_force(Monitor()) as monitor:
        await nursery.start(stage.run, settings)
        await trio.sleep(2 + 3 * 4 + 1)
        nursery.cancel_scope.cancel()
        (looks,) = (row for row in monitor.summary() if row.name == "look")
    assert (looks.ok, looks.kind) == (6, Kind.BACKGROUND)
    assert looks.mean_s == pytest.approx(4, rel=0.01)
    assert looks.queued_longest_s == pytest.approx(8, rel=0.01)


async def test_a_defect_in_a_look_ends_the_service_and_a_stop_does_not_count_as_one(
    stage: Stage, autojump_clock: Clock
) -> None:
    """Whoever supervises it is to know; and looks that a stop cuts short are no defects."""
    stage.prober.takes_s[Source.PROCESS] = 3600
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.run)
        await trio.sleep(5)
        assert stage.prober.looking > 0
        nursery.cancel_scope.cancel()
    stage.prober.sees = Defect()
    stage.prober.takes_s.clear()
    with trio.fail_after(600), pytest.raises(ExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            await nursery.start(stage.run)
    assert raised.group_contains(ZeroDivisionError)


class Defect(dict[Source, Observation]):
    """What no look should come upon."""

    def __contains__(self, key: object) -> bool:
        raise ZeroDivisionError


async def test_looks_are_bounded_in_number_and_time_and_one_that_hangs_spoils_no_other(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    agents = [Watched(AgentId(f"a{n}"), "h", ALL) for n in range(30)]
    stage = Stage(autojump_clock, now_utc, agents)
    stage.prober.takes_s[Source.WORKSPACE] = 3600
    stage.prober.sees[Source.PROCESS] = Observation(Source.PROCESS, Value.BAD, "process_gone")
    settings = LivenessSettings(probe_concurrency=5)
    await nursery.start(stage.run, settings)
    await trio.sleep(2 + 6 * 10 + 1)
    assert stage.prober.most_looking == 2 * 5
    assert all(stage.condition(watched.agent) is Condition.DEAD for watched in agents)
    nursery.cancel_scope.cancel()


async def test_two_kinds_of_looks_that_agree_find_the_one_that_hangs(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    stage.prober.sees = {
        Source.PROCESS: Observation(
            Source.PROCESS, Value.OK, "process_there", 1.0, stage.processes[7]
        ),
        Source.WORKSPACE: Observation(Source.WORKSPACE, Value.OK, "folder_seen", 1.0),
    }
    await nursery.start(stage.run)
    await stage.beating(2 * 900 + 60, ADA, pid=7)
    assert stage.condition() is Condition.HUNG
    assert stage.lives.state(ADA) is AgentState.UNRESPONSIVE
    nursery.cancel_scope.cancel()


async def test_growth_of_the_transcript_is_a_sign_of_life_from_the_second_look_on(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery, now_utc: NowUtc
) -> None:
    def grow() -> None:
        ref = AgentRef(ADA, RunId("r"))
        grown = AgentView(ref, "", "", "", now_utc(), AgentState.RUNNING, grown_utc=now_utc())
        stage.view.publish(replace(stage.view.value, agents={ADA: grown}))

    grow()
    await nursery.start(stage.run)
    await stage.beating(30)
    await trio.sleep(60)
    assert stage.condition() is Condition.LATE
    grow()
    await trio.sleep(2)
    health = stage.lives.health(ADA, trio.current_time())
    assert (health.value, health.reason) == (Value.OK, "beats_lost_progress_seen")
    nursery.cancel_scope.cancel()


# --- what we could not hear ---------------------------------------------------------------


async def test_a_stall_of_our_own_is_an_amnesty_before_any_deadline_is_kept(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(60)
    with structlog.testing.capture_logs() as logged:
        stage.clock.jump(120)
        await trio.sleep(0.1)
    assert [(e["event"], e["reason"]) for e in logged if e["event"] == "amnesty.granted"] == [
        ("amnesty.granted", "stall")
    ]
    assert len(stage.of(AmnestyGranted)) == 1
    assert stage.of(BeatMissed) == []
    await trio.sleep(18)
    assert stage.of(BeatMissed) == []
    await trio.sleep(40)
    assert [f.misses for f in stage.of(BeatMissed) if isinstance(f, BeatMissed)] == [1, 2]
    nursery.cancel_scope.cancel()


async def test_what_waits_to_be_heard_is_heard_before_deadlines_are_kept(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    """Beats that nobody has come to take in, since the board is slow, are no silence."""
    stage = Stage(autojump_clock, now_utc, [Watched(ADA), Watched(BOB)], room_for_facts=0)
    stage.lives.watch(Watched(CYD, interval_s=600.0), 0.0)
    stage.listens.set()
    await nursery.start(stage.run)
    await stage.beating(60, ADA, BOB)
    stage.listens = trio.Event()
    for status in (BeatStatus.RUNNING, BeatStatus.IDLE, BeatStatus.RUNNING):
        stage.say(CYD, status=status)
        await trio.sleep(0.1)
    await stage.beating(120, ADA, BOB)
    stage.listens.set()
    await trio.sleep(1)
    assert stage.of(BeatMissed) == []
    nursery.cancel_scope.cancel()


async def test_what_came_about_last_is_told_last_however_slow_the_board_is(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    """Else one who is dead would be held for alive by everybody, until something happens again."""
    agents = [Watched(ADA, "h", ALL), Watched(BOB), Watched(CYD)]
    stage = Stage(autojump_clock, now_utc, agents, room_for_facts=0)
    stage.listens.set()
    await nursery.start(stage.run)
    for _ in range(4):
        stage.say(ADA, pid=7)
        for agent in (BOB, CYD):
            stage.say(agent)
        await trio.sleep(5)
    stage.listens = trio.Event()
    for agent in (BOB, CYD):
        stage.say(agent, status=BeatStatus.IDLE)
    stage.say(ADA, pid=7, status=BeatStatus.IDLE)
    await trio.sleep(1)
    stage.watch.end(ADA)
    await trio.sleep(1)
    stage.listens.set()
    await trio.sleep(0.1)
    told = [fact for fact in stage.of(LifeChanged) if fact.agent == ADA]
    assert [fact.condition for fact in told[-2:]] == [Condition.ALIVE, Condition.DEAD]
    assert stage.condition() is Condition.DEAD
    nursery.cancel_scope.cancel()


async def test_a_sleep_of_the_machine_is_an_amnesty(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(30)
    stage.slept_s = 7200
    await trio.sleep(2)
    (granted,) = stage.of(AmnestyGranted)
    assert isinstance(granted, AmnestyGranted)
    assert (granted.reason, round(granted.gap_s)) == ("suspend", 7200)
    nursery.cancel_scope.cancel()


async def test_a_store_that_was_away_for_long_is_an_amnesty_when_it_is_back(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    with structlog.testing.capture_logs() as logged:
        await stage.beating(30)
        stage.store.fail_with(StoreUnavailable("away"))
        await stage.beating(90)
        assert stage.of(AmnestyGranted) == []
        stage.store.fail_with(None)
        await stage.beating(15)
    (granted,) = stage.of(AmnestyGranted)
    assert isinstance(granted, AmnestyGranted)
    assert granted.reason == "database_gap"
    events = [e["event"] for e in logged if str(e["event"]).startswith("store.")]
    assert events == ["store.lost", "store.returned"]
    assert [record.agent for record in stage.store.saved[-1]] == [ADA]
    nursery.cancel_scope.cancel()


async def test_deadlines_are_longer_while_the_store_is_away(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(30)
    stage.store.fail_with(StoreUnavailable("away"))
    await stage.beating(15)
    await trio.sleep(20)
    assert stage.of(BeatMissed) == []
    await trio.sleep(10)
    assert len(stage.of(BeatMissed)) == 1
    nursery.cancel_scope.cancel()


async def test_no_healthy_fleet_is_suspected_over_a_day(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    stage = Stage(autojump_clock, now_utc, [Watched(ADA), Watched(BOB), Watched(CYD)])
    await nursery.start(stage.run)
    await stage.beating(24 * 3600 / 8, ADA, BOB, CYD)
    assert stage.of(BeatMissed) == []
    assert len(stage.of(LifeChanged)) <= 3 * 3
    nursery.cancel_scope.cancel()


# --- what is stored and told from time to time --------------------------------------------


async def test_lives_are_stored_each_ten_seconds_in_one_call_if_they_changed(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    stage = Stage(autojump_clock, now_utc, [Watched(ADA), Watched(BOB)])
    await nursery.start(stage.run)
    stage.say(ADA)
    stage.say(BOB)
    await trio.sleep(11)
    await trio.sleep(10)
    stage.say(BOB)
    await trio.sleep(10)
    saved = [[record.agent for record in lives] for lives in stage.store.saved]
    assert saved == [[ADA, BOB], [BOB]]
    nursery.cancel_scope.cancel()


async def test_what_the_store_refuses_is_told_and_not_tried_for_ever(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    stage.store.fail_with(StoreRefused("bad data"))
    stage.say(ADA)
    with structlog.testing.capture_logs() as logged:
        await trio.sleep(12)
    assert [e["event"] for e in logged if e["log_level"] == "error"] == ["lives.refused"]
    stage.store.fail_with(StoreConflict("again"))
    stage.say(ADA)
    await trio.sleep(10)
    stage.store.fail_with(None)
    await trio.sleep(10)
    assert stage.store.saved[-1][0].sequence == 2
    nursery.cancel_scope.cancel()


async def test_at_the_end_all_that_was_heard_is_stored(stage: Stage, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.run)
        stage.say(ADA)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [record.sequence for record in stage.store.saved[-1]] == [1]


async def test_what_is_heard_during_a_save_is_stored_by_the_next(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(60)
    await trio.sleep(1)  # past the last flush, which is due at that very moment
    stage.store.takes_s = 5.0
    stage.say(ADA)
    saves = len(stage.store.saved)
    await trio.sleep(12)
    assert len(stage.store.saved) == saves
    stage.say(ADA)
    await trio.sleep(20)
    assert stage.store.saved[-1][0].sequence == stage.sequence
    nursery.cancel_scope.cancel()


async def test_refusals_are_told_once_a_minute_as_counts(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    stage.say(ADA)
    for _ in range(3):
        stage.register.offer(Beat(ADA, 0, 1), "socket")
    stage.register.refuse(Refusal.MALFORMED)
    stage.say(ADA)
    with structlog.testing.capture_logs() as logged:
        await trio.sleep(61)
    assert stage.of(BeatsRefused) == [
        BeatsRefused(Refusal.REPLAYED, 3, ADA),
        BeatsRefused(Refusal.MALFORMED, 1, None),
    ]
    assert stage.of(BeatsSuperseded) == [BeatsSuperseded(1)]
    refused = [(e["reason"], e["count"]) for e in logged if e["event"] == "beats.refused"]
    assert refused == [("replayed", 3), ("malformed", 1)]
    nursery.cancel_scope.cancel()


async def test_a_deadline_that_was_lost_is_found_by_the_scan(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(15)
    stage.lives._heap.clear()
    stage.lives._lives[ADA].next_at = trio.current_time() + 1e6
    with structlog.testing.capture_logs() as logged:
        await trio.sleep(60)
    assert "deadline.lost" in {e["event"] for e in logged}
    assert len(stage.of(BeatMissed)) == 3
    nursery.cancel_scope.cancel()


async def test_a_stranger_that_beats_is_watched_and_let_go_when_it_has_ended(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    stage.say(BOB, pid=8)
    await trio.sleep(1)
    assert stage.lives.state(BOB) is AgentState.RUNNING
    assert stage.watch.watched == {BOB: stage.processes[8]}
    stage.say(BOB, status=BeatStatus.FINISHED)
    await trio.sleep(130)
    assert BOB not in stage.lives
    assert stage.watch.watched == {}
    assert ADA in stage.lives
    nursery.cancel_scope.cancel()


async def test_every_part_shows_that_it_moves(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    await stage.beating(300)
    assert stage.pulses.stale(trio.current_time(), 5.0) == {}
    nursery.cancel_scope.cancel()


async def test_one_life_that_is_refused_costs_no_other(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    agents = [AgentId(f"a{n:02}") for n in range(30)]
    stage = Stage(autojump_clock, now_utc, [Watched(agent) for agent in agents])
    stage.store.refused = {agents[7]}
    await nursery.start(stage.run)
    for agent in agents:
        stage.say(agent)
    with structlog.testing.capture_logs() as logged:
        await trio.sleep(12)
    stored = {record.agent for lives in stage.store.saved for record in lives}
    assert stored == set(agents) - {agents[7]}
    refused = [(e["count"], e["first"]) for e in logged if e["event"] == "lives.refused"]
    assert refused == [(1, agents[7])]
    nursery.cancel_scope.cancel()


async def test_a_store_that_refuses_everything_is_not_asked_for_each_life(
    autojump_clock: Clock, now_utc: NowUtc, nursery: trio.Nursery
) -> None:
    agents = [AgentId(f"a{n:03}") for n in range(500)]
    stage = Stage(autojump_clock, now_utc, [Watched(agent) for agent in agents])
    stage.store.refused = set(agents)
    await nursery.start(stage.run)
    # What was stored at the start is not looked at.
    await trio.sleep(1)
    stage.store.asked = 0
    for agent in agents:
        stage.say(agent)
    with structlog.testing.capture_logs() as logged:
        await trio.sleep(12)
    assert 0 < stage.store.asked < 4 * MOST_REFUSED
    assert sum(e["count"] for e in logged if e["event"] == "lives.refused") == len(agents)
    nursery.cancel_scope.cancel()


async def test_waiting_for_the_store_is_no_stand_still_of_ours(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    await nursery.start(stage.run)
    stage.store.takes_s = 400.0
    await stage.beating(300)
    assert stage.pulses.stale(trio.current_time(), 5.0) == {}
    nursery.cancel_scope.cancel()


async def test_who_is_configured_after_it_beat_as_a_stranger_is_one_no_longer(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """Else it would be let go when it is silent for long, or says that it has finished."""
    await nursery.start(stage.run)
    stage.say(BOB)
    await trio.sleep(20)
    configured = Watched(BOB, "h", ALL)
    stage.lives.watch(configured, trio.current_time())
    stage.say(BOB, status=BeatStatus.FINISHED)
    await trio.sleep(300)
    assert stage.lives.watched(BOB) is configured
    assert stage.register.offer(Beat(BOB, 1, 10**9), "socket") is Refusal.FUTURE_EPOCH
    nursery.cancel_scope.cancel()


async def test_a_stranger_is_let_go_though_the_service_was_run_anew(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    async with trio.open_nursery() as first:
        await first.start(stage.run)
        stage.say(BOB)
        await trio.sleep(1)
        first.cancel_scope.cancel()
    await nursery.start(stage.run)
    stage.say(BOB, status=BeatStatus.FINISHED)
    await trio.sleep(130)
    assert BOB not in stage.lives
    assert ADA in stage.lives
    nursery.cancel_scope.cancel()


async def test_a_look_that_ended_with_the_service_is_begun_again_by_the_next(
    stage: Stage, autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """A reload runs it anew; suspects are looked at soon for all that."""
    async with trio.open_nursery() as first:
        await first.start(stage.run)
        await stage.beating(60)
        stage.prober.takes_s = {Source.PROCESS: 9.0, Source.WORKSPACE: 9.0}
        await trio.sleep(40)
        assert stage.condition() is Condition.LATE
        assert stage.prober.looking == 2
        first.cancel_scope.cancel()
    stage.prober.asked.clear()
    await nursery.start(stage.run)
    await trio.sleep(10)
    assert {source for _, _, source in stage.prober.asked} == {Source.PROCESS, Source.WORKSPACE}
    nursery.cancel_scope.cancel()
