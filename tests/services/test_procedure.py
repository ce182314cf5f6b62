"""One restart: cut between any two instructions and taken up again, it is done exactly once."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest
import trio
import trio.testing
from tests.services.restart_stage import (
    ADA,
    SOURCES,
    CutActions,
    CutControl,
    Cuts,
    Machine,
    MachineControl,
    MachineProber,
    PowerCut,
)

from custosd.adapters.memory_actions import MemoryActions
from custosd.core.beats import Beat, ReceivedBeat
from custosd.core.errors import StoreUnavailable
from custosd.core.evidence import Condition, Observation, Source, Value
from custosd.core.facts import Fact, RestartChanged, RestartStepped
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.restarts import Cause, Restart, RestartState, RestartStep, StepState
from custosd.ports import AgentControl, HandOver, Lease
from custosd.services.beats import BeatRegister
from custosd.services.procedure import LeaseLost, Procedure, ProcedureLimits, ProcedurePorts

NowUtc = Callable[[], datetime]
S, P = RestartState, RestartStep


@dataclass
class Table:
    """One agent, its store, and procedures on it, one after the other or at once."""

    now_utc: NowUtc
    machine: Machine = field(default_factory=Machine)
    held: str = ""
    limits: ProcedureLimits = field(default_factory=ProcedureLimits)
    beats: bool = True

    def __post_init__(self) -> None:
        self.actions = MemoryActions(self.now_utc)
        self.facts_in, self.facts = trio.open_memory_channel[Fact](math.inf)
        self.register = BeatRegister(lambda _: True)
        self.lives = Lives(LivenessLimits(), self.register)

    def watch(self) -> Lives:
        """What a daemon would know of the agent that looks at it now, long after its last beat."""
        now = trio.current_time()
        worker = self.machine.workers.get(ADA)
        self.register = BeatRegister(lambda _: True)
        lives = Lives(LivenessLimits(), self.register)
        lives.watch(Watched(ADA, "", SOURCES, self.beats), now - 2000)
        lives.beat(ReceivedBeat(Beat(ADA, 0, 1), now - 1900, "socket"))
        lives.due(now)
        prober = MachineProber(self.machine)
        if worker is not None and worker.epoch:
            lives.spawned(ADA, worker.epoch, now - 1)
            lives.beat(ReceivedBeat(Beat(ADA, worker.epoch, 2), now, "socket"))
        for seen in prober.look(ADA, lives.process(ADA)):
            lives.observed(ADA, seen, now)
        lives.looked(ADA, now)
        self.lives = lives
        return lives

    async def intend(self, cause: Cause = Cause.KILLED) -> Restart:
        intent = Restart("r1", ADA, "k1", cause, "", "custosd", 0, 1, self.now_utc())
        stored = await self.actions.intend_restart(intent)
        assert stored is not None
        return stored

    def procedure(self, restart: Restart, cuts: Cuts | None = None, owner: str = "d1") -> Procedure:
        control: AgentControl = MachineControl(self.machine, ADA)
        store = self.actions
        if cuts is not None:
            control, store = CutControl(control, cuts), CutActions(self.actions, cuts)
        ports = ProcedurePorts(
            store,
            control,
            MachineProber(self.machine),
            self.lives,
            self.facts_in,
            self.now_utc,
            lambda _: self.held,
            lambda restart: HandOver(restart.agent, restart.next_epoch, restart.cause),
            self.beats,
        )
        return Procedure(restart, ports, self.limits, owner)

    async def speak(self) -> None:
        """New incarnations beat a second after they were started, until this is cancelled."""
        while True:
            await trio.sleep(1)
            worker = self.machine.workers.get(ADA)
            if worker is not None and not worker.frozen and ADA not in self.machine.mute:
                sequence = int(trio.current_time() * 1000) + 10
                beat = Beat(ADA, worker.epoch, sequence)
                if self.register.offer(beat, "socket") is None:
                    self.lives.beat(ReceivedBeat(beat, trio.current_time(), "socket"))

    async def row(self) -> Restart:
        (row,) = await self.actions.restarts(self.now_utc().replace(year=2000))
        return row

    def told(self) -> list[Fact]:
        found: list[Fact] = []
        while True:
            try:
                found.append(self.facts.receive_nowait())
            except trio.WouldBlock:
                return found


@pytest.fixture
def table(now_utc: NowUtc) -> Table:
    return Table(now_utc)


def hung(table: Table) -> None:
    table.machine.start(ADA).frozen = True
    table.machine.deaf.add(ADA)
    table.watch()
    assert table.lives.health(ADA, trio.current_time()).condition is Condition.HUNG


def dead(table: Table) -> None:
    worker = table.machine.start(ADA)
    table.machine.end(ADA)
    table.watch()
    gone = Observation(Source.PROCESS, Value.BAD, "process_gone", None, worker.identity)
    table.lives.observed(ADA, gone, trio.current_time())
    assert table.lives.health(ADA, trio.current_time()).condition is Condition.DEAD


def results(restart: Restart) -> dict[RestartStep, str]:
    return {record.step: record.result for record in restart.steps}


async def test_a_hung_agent_is_interrupted_asked_killed_seen_dead_and_replaced(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    nursery.start_soon(table.speak)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert ended.state is S.SUCCEEDED
    assert [call for call, _ in table.machine.calls] == ["interrupt", "stop", "kill", "spawn"]
    assert results(ended) == {
        P.LEASE: "taken",
        P.EVIDENCE: "seen_hung",
        P.GRACEFUL_STOP: "still_there",
        P.FORCED_STOP: "killed",
        P.VERIFY_DEAD: "gone",
        P.SPAWN: "spawned",
        P.FIRST_BEAT: "heard",
        P.HAND_OVER: "given_with_spawn",
    }
    assert ended == await table.row()
    told = table.told()
    assert [f.state for f in told if isinstance(f, RestartChanged)] == [S.RUNNING, S.SUCCEEDED]
    assert [f.step for f in told if isinstance(f, RestartStepped)] == list(P)[1:]
    assert table.machine.handed == [HandOver(ADA, 1, Cause.HANG)]


async def test_an_interrupt_that_helps_ends_it(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    hung(table)
    table.machine.wakes.add(ADA)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert (ended.state, results(ended)[P.EVIDENCE]) == (S.ABANDONED, "interrupted")
    assert [call for call, _ in table.machine.calls] == ["interrupt"]


async def test_who_beats_again_between_the_samples_is_left_alone(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    table.machine.workers[ADA].frozen = False
    nursery.start_soon(table.speak)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert ended.state is S.ABANDONED
    assert results(ended)[P.EVIDENCE] in ("healthy_again", "not_known")
    assert table.machine.calls == []


async def test_work_between_the_samples_is_seen_whatever_health_says(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)

    async def write() -> None:
        await trio.sleep(1)
        table.machine.written[ADA] = 7.0

    nursery.start_soon(write)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert results(ended)[P.EVIDENCE] == "progress_seen"
    assert table.machine.calls == []


@pytest.mark.parametrize("how", [hung, dead])
async def test_what_cannot_be_seen_is_neither_stopped_nor_replaced(
    table: Table, how: Callable[[Table], None], autojump_clock: trio.testing.MockClock
) -> None:
    how(table)
    table.machine.blind.add(ADA)
    ended = await table.procedure(await table.intend()).run()
    assert (ended.state, results(ended)[P.EVIDENCE]) == (S.ABANDONED, "not_seen")
    assert table.machine.calls == []


async def test_a_dead_one_whose_process_is_there_is_not_replaced(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    """Somebody else has started it again."""
    dead(table)
    table.machine.start(ADA)
    ended = await table.procedure(await table.intend()).run()
    assert results(ended)[P.EVIDENCE] == "still_there"
    assert table.machine.calls == []


async def test_who_was_stopped_by_somebody_is_not_started_again_however_late_others_see_it(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    dead(table)
    table.machine.stopped_units.add(ADA)
    ended = await table.procedure(await table.intend()).run()
    assert (ended.state, results(ended)[P.EVIDENCE]) == (S.ABANDONED, "not_known")
    assert table.machine.calls == []
    assert table.lives.health(ADA, trio.current_time()).reason == "unit_inactive"


async def test_who_ended_because_we_interrupted_it_is_started_again(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(table.speak)
    hung(table)
    table.machine.ends_when_interrupted.add(ADA)
    table.machine.stopped_units.add(ADA)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert (ended.state, ended.failure) == (S.SUCCEEDED, "")
    assert [call for call, _ in table.machine.calls] == ["interrupt", "spawn"]
    nursery.cancel_scope.cancel()


async def test_an_order_needs_no_evidence_and_keeps_it(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    table.machine.start(ADA)
    table.watch()
    nursery.start_soon(table.speak)
    ended = await table.procedure(await table.intend(Cause.REQUESTED)).run()
    assert ended.state is S.SUCCEEDED
    assert [call for call, _ in table.machine.calls] == ["stop", "spawn"]


async def test_beats_of_the_old_incarnation_are_refused_once_the_new_one_is_there(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    dead(table)
    nursery.start_soon(table.speak)
    assert table.register.offer(Beat(ADA, 1, 5), "socket") is None  # nothing was known of it
    table.watch()
    dead(table)
    await table.procedure(await table.intend()).run()
    assert table.register.offer(Beat(ADA, 0, 10**9), "socket") == "old_epoch"
    assert table.register.offer(Beat(ADA, 2, 10**9), "socket") == "future_epoch"


async def test_the_next_incarnation_is_heard_from_its_start_on_and_not_before(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """An old one that calls itself the next would else vouch for what was never started."""
    hung(table)
    assert table.register.offer(Beat(ADA, 0, 1), "socket") is None
    nursery.start_soon(table.speak)
    told: list[tuple[str, str | None]] = []

    class Speaking(Cuts):
        async def call(self, name: str, act: Callable[[], Awaitable[object]]) -> object:
            answer = await super().call(name, act)
            beat = Beat(ADA, 1, len(told) + 1)
            told.append((name, table.register.offer(beat, "socket")))
            return answer

    procedure = table.procedure(await table.intend(Cause.HANG))
    control = CutControl(procedure.ports.control, Speaking())
    procedure.ports = replace(procedure.ports, control=control)
    ended = await procedure.run()
    assert ended.state is S.SUCCEEDED
    early = [(name, "future_epoch") for name in ("interrupt", "stop", "kill")]
    assert told == [*early, ("spawn", None)]


@pytest.mark.parametrize(
    ("trouble", "code", "starts"),
    [
        ("immortal", "still_there", 0),
        ("mute", "not_heard", 1),
        ("stillborn", "died_at_once", 1),
    ],
)
async def test_a_step_that_fails_ends_it_with_the_reason(
    table: Table,
    trouble: str,
    code: str,
    starts: int,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    hung(table)
    getattr(table.machine, trouble).add(ADA)
    nursery.start_soon(table.speak)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert (ended.state, ended.failure) == (S.FAILED, code)
    assert ended.ended_utc is not None
    assert len(table.machine.starts) == starts
    last = ended.steps[-1]
    assert (last.state, last.result) == (StepState.FAILED, code)


async def test_dead_and_gone_out_of_sight_is_not_taken_for_dead(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)

    table.machine.blinds = "kill"
    table.machine.immortal.add(ADA)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert (ended.state, ended.failure) == (S.FAILED, "not_seen")
    assert ended.steps[-1].step is P.VERIFY_DEAD
    assert table.machine.starts == []


async def test_a_stop_that_cannot_be_asked_for_is_followed_by_force(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    table.machine.unable[ADA] = ["interrupt", "stop"]
    nursery.start_soon(table.speak)
    ended = await table.procedure(await table.intend(Cause.HANG)).run()
    assert ended.state is S.SUCCEEDED
    assert results(ended)[P.GRACEFUL_STOP] == "not_done"


async def test_a_spawn_is_tried_again_and_not_for_ever(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    dead(table)
    table.machine.unable[ADA] = ["spawn", "spawn"]
    nursery.start_soon(table.speak)
    ended = await table.procedure(await table.intend()).run()
    assert ended.state is S.SUCCEEDED
    assert [r.result for r in ended.steps if r.step is P.SPAWN] == [
        "not_done",
        "not_done",
        "spawned",
    ]


async def test_a_spawn_that_never_works_fails(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    dead(table)
    table.machine.unable[ADA] = ["spawn"] * 9
    ended = await table.procedure(await table.intend()).run()
    assert (ended.state, ended.failure) == (S.FAILED, "spawn_not_done")


async def test_who_does_not_beat_must_stay(
    now_utc: NowUtc, autojump_clock: trio.testing.MockClock
) -> None:
    table = Table(now_utc, beats=False)
    table.machine.mute.add(ADA)
    dead(table)
    ended = await table.procedure(await table.intend()).run()
    assert (ended.state, results(ended)[P.FIRST_BEAT]) == (S.SUCCEEDED, "stays")


async def test_who_was_started_by_somebody_else_meanwhile_is_not_started_again(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    dead(table)
    procedure = table.procedure(await table.intend())

    def somebody_starts_it(_: Restart) -> str:
        table.machine.start(ADA)
        return ""

    procedure.ports = replace(procedure.ports, withheld=somebody_starts_it)
    ended = await procedure.run()
    assert (ended.state, procedure.code) == (S.ABANDONED, "came_back")
    assert table.machine.calls == []


async def test_who_was_spawned_and_died_before_anybody_looked_is_not_spawned_again(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """That is another death, which costs another restart."""
    dead(table)
    table.machine.forgetful = True
    restart = await table.intend()
    with trio.move_on_after(4):
        table.machine.mute.add(ADA)
        await table.procedure(restart).run()
    assert results(await table.row())[P.SPAWN] == "spawned"
    table.machine.end(ADA)
    ended = await taken_up(table, restart)
    assert (ended.state, ended.failure) == (S.FAILED, "not_seen")
    assert len(table.machine.starts) == 1


async def test_a_restart_that_is_over_is_not_begun_again(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    dead(table)
    nursery.start_soon(table.speak)
    restart = await table.intend()
    await table.procedure(restart).run()
    table.machine.end(ADA)
    table.machine.calls.clear()
    with pytest.raises(LeaseLost, match="is over"):
        await table.procedure(restart, owner="other").run()
    assert table.machine.calls == []


HELD_AT = {"interrupt": 0, "stop": 1, "kill": 2, "spawn": 3}


@pytest.mark.parametrize("before", ["interrupt", "stop", "kill", "spawn"])
async def test_an_emergency_stop_ends_it_before_the_next_act(
    table: Table, before: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever has been done by then, nothing is done after it."""
    hung(table)
    procedure = table.procedure(await table.intend(Cause.HANG))

    def withheld(_: Restart) -> str:
        return "estop" if len(table.machine.calls) >= HELD_AT[before] else ""

    procedure.ports = replace(procedure.ports, withheld=withheld)
    ended = await procedure.run()
    assert (ended.state, procedure.code) == (S.ABANDONED, "estop")
    assert before not in [call for call, _ in table.machine.calls]
    assert ended.steps[-1].result == "estop"
    assert ended.failure == ""


async def test_a_hold_that_came_while_it_was_looked_for_is_seen_before_the_spawn(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """It was out of sight for three seconds, in which a person said stop."""
    dead(table)
    procedure = table.procedure(await table.intend())

    async def come_into_sight() -> None:
        await trio.sleep(3)
        table.held = "estop"
        table.machine.blind.clear()

    def withheld(_: Restart) -> str:
        if not table.machine.blind and not table.held:
            table.machine.blind.add(ADA)
            nursery.start_soon(come_into_sight)
        return table.held

    procedure.ports = replace(procedure.ports, withheld=withheld)
    ended = await procedure.run()
    assert (ended.state, procedure.code) == (S.ABANDONED, "estop")
    assert ended.steps[-1].step is P.SPAWN
    assert table.machine.calls == []


async def test_who_cannot_be_seen_right_before_the_spawn_is_not_started_a_second_time(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    """Verified dead, and out of sight then: there may be one already."""
    dead(table)
    procedure = table.procedure(await table.intend())

    def go_out_of_sight(_: Restart) -> str:
        table.machine.blind.add(ADA)
        return ""

    procedure.ports = replace(procedure.ports, withheld=go_out_of_sight)
    ended = await procedure.run()
    assert (ended.state, ended.failure) == (S.FAILED, "not_seen")
    assert ended.steps[-1].step is P.SPAWN
    assert table.machine.calls == []


class SlowOnce(MemoryActions):
    """A store that writes each lease down at once, and tells of one of them 20 s later."""

    def __init__(self, now_utc: NowUtc, slow: int) -> None:
        super().__init__(now_utc)
        self._slow = slow
        self._asked = 0

    async def take_lease(self, name: str, owner: str, ttl_s: float) -> Lease | None:
        lease = await super().take_lease(name, owner, ttl_s)
        self._asked += 1
        if self._asked == self._slow:
            await trio.sleep(20)
        return lease


@pytest.mark.parametrize("slow", range(1, 7))
async def test_however_late_the_store_answers_the_lease_outlasts_the_act(
    table: Table, slow: int, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Else another daemon could take over while it is still being done."""
    hung(table)
    nursery.start_soon(table.speak)
    store = table.actions = SlowOnce(table.now_utc, slow)
    left_s: dict[str, float] = {}

    class Noting(Cuts):
        async def call(self, name: str, act: Callable[[], Awaitable[object]]) -> object:
            lease = store._leases["restart:ada"]
            left_s[name] = (lease.expires_utc - table.now_utc()).total_seconds()
            return await super().call(name, act)

    procedure = table.procedure(await table.intend(Cause.HANG))
    control = CutControl(procedure.ports.control, Noting())
    procedure.ports = replace(procedure.ports, control=control)
    await procedure.run()
    assert left_s.keys() == {"interrupt", "stop", "kill", "spawn"}
    assert min(left_s.values()) >= table.limits.act_s, left_s


async def test_a_store_that_is_away_holds_up_the_act_and_evidence_is_taken_anew(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    restart = await table.intend(Cause.HANG)
    table.limits = ProcedureLimits(interrupt_s=0)

    async def lose_store() -> None:
        await trio.sleep(1)
        table.actions.fail_with(StoreUnavailable("away"))
        await trio.sleep(40)
        assert table.machine.calls == []
        table.machine.workers[ADA].frozen = False  # it recovers while nobody can act
        nursery.start_soon(table.speak)
        await trio.sleep(5)
        table.actions.fail_with(None)

    nursery.start_soon(lose_store)
    ended = await table.procedure(restart).run()
    assert (ended.state, table.machine.calls) == (S.ABANDONED, [])
    assert [record.result for record in ended.steps][1:3] == ["seen_hung", "evidence_old"]


async def test_a_store_that_is_away_for_longer_than_the_lease_ends_it_for_this_daemon(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    restart = await table.intend(Cause.HANG)

    async def lose_store() -> None:
        await trio.sleep(1)
        table.actions.fail_with(StoreUnavailable("away"))
        await trio.sleep(100)
        table.actions.fail_with(None)

    nursery.start_soon(lose_store)
    with pytest.raises(LeaseLost):
        await table.procedure(restart).run()
    assert not table.machine.destroyed(ADA)
    nursery.start_soon(table.speak)
    assert (await taken_up(table, restart)).state is S.SUCCEEDED


async def test_two_daemons_never_both_act(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    nursery.start_soon(table.speak)
    restart = await table.intend(Cause.HANG)
    outcomes: list[str] = []

    async def one(owner: str) -> None:
        try:
            outcomes.append((await table.procedure(restart, owner=owner).run()).owner)
        except LeaseLost:
            outcomes.append("left")

    async with trio.open_nursery() as both:
        both.start_soon(one, "d1")
        both.start_soon(one, "d2")
    assert sorted(outcomes)[1] == "left"
    assert [call for call, _ in table.machine.calls] == ["interrupt", "stop", "kill", "spawn"]


async def test_a_daemon_that_was_frozen_past_its_lease_does_nothing_more(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    """Another one has taken over meanwhile, and may have started what would be stopped now."""
    hung(table)
    restart = await table.intend(Cause.HANG)
    procedure = table.procedure(restart, owner="frozen")

    def freeze(_: Restart) -> str:
        lease = table.actions._leases["restart:ada"]
        table.actions._leases["restart:ada"] = replace(lease, owner="other", fence=lease.fence + 1)
        return ""

    procedure.ports = replace(procedure.ports, withheld=freeze)
    with pytest.raises(LeaseLost):
        await procedure.run()
    assert [call for call, _ in table.machine.calls] == ["interrupt"]
    assert not (await table.row()).ended


async def taken_up(table: Table, restart: Restart) -> Restart:
    """Fresh daemons, as many as it takes, until the restart has ended."""
    while True:
        table.watch()
        try:
            return await table.procedure(restart, owner=f"at{trio.current_time()}").run()
        except LeaseLost:
            if (await table.row()).ended:
                return await table.row()
            await trio.sleep(10)


MOST_CALLS = 36


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("how", [hung, dead])
@pytest.mark.parametrize("at", range(1, MOST_CALLS))
async def test_cut_at_any_call_and_taken_up_again_it_is_done_exactly_once(
    table: Table,
    how: Callable[[Table], None],
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    *,
    at: int,
    after: bool,
) -> None:
    how(table)
    table.machine.forgetful = True  # what a control remembers is the second line of defence
    nursery.start_soon(table.speak)
    restart = await table.intend(Cause.HANG)
    cuts = Cuts(at, after=after)
    try:
        await table.procedure(restart, cuts).run()
    except PowerCut:
        ended = await taken_up(table, restart)
    else:
        assert len(cuts.calls) < at or cuts.calls[at - 1] == "release"
        ended = await table.row()
    assert ended.state is S.SUCCEEDED, (cuts.calls, ended.steps)
    assert table.machine.starts == [(ADA, "r1", 1)], cuts.calls
    assert table.machine.doubled == []
    assert all(record.state is not StepState.RUNNING for record in ended.steps)
    assert table.machine.workers[ADA].epoch == 1


async def test_the_cuts_reach_beyond_the_last_call(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Else the test above would leave some calls out."""
    hung(table)
    nursery.start_soon(table.speak)
    cuts = Cuts()
    await table.procedure(await table.intend(Cause.HANG), cuts).run()
    assert {"stop", "kill", "spawn", "lease", "release", "interrupt"} <= set(cuts.calls)
    assert len(cuts.calls) < MOST_CALLS


async def test_cancelled_it_stays_open_and_the_next_daemon_ends_it(
    table: Table, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hung(table)
    nursery.start_soon(table.speak)
    restart = await table.intend(Cause.HANG)
    with trio.move_on_after(20):
        await table.procedure(restart).run()
    assert not (await table.row()).ended
    ended = await taken_up(table, restart)
    assert ended.state is S.SUCCEEDED
    assert len(table.machine.starts) == 1
