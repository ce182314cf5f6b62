import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from custosd.core.agents import TRANSITIONS, AgentId, AgentState
from custosd.core.beats import Beat, BeatStatus, DeclaredWait, ReceivedBeat, WaitKind
from custosd.core.evidence import (
    Condition,
    Exit,
    Health,
    Observation,
    ProcessIdentity,
    Source,
    Value,
)
from custosd.core.facts import AmnestyGranted, BeatMissed, Fact, LifeChanged
from custosd.core.holds import FLEET
from custosd.core.ladder import Gaps, deadline, interval_of, rung_s
from custosd.core.liveness import (
    LivenessLimits,
    Lives,
    Watched,
    breaker_open,
    slowness_of,
)
from custosd.core.restarts import Sample, objection

ADA = AgentId("ada")
LIMITS = LivenessLimits()
PROCESS = ProcessIdentity(7, 70, "boot")
NEXT_PROCESS = ProcessIdentity(8, 90, "boot")
ALL = frozenset({Source.BEAT, Source.PROCESS, Source.TRANSCRIPT, Source.WORKSPACE})
UTC_0 = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING, IDLE = BeatStatus.RUNNING, BeatStatus.IDLE


@dataclass
class Case:
    """One agent under watch; time goes on by what happens to it."""

    sources: frozenset[Source] = ALL
    beats: bool = True
    limits: LivenessLimits = LIMITS
    agent: AgentId = ADA
    now: float = 1000.0
    facts: list[Fact] = field(default_factory=list)
    told: list[tuple[float, Fact]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    sees: Callable[[Source], Observation | None] = lambda _: None

    def __post_init__(self) -> None:
        self.lives = Lives(self.limits)
        self.lives.watch(Watched(self.agent, "h1", self.sources, self.beats), self.now)
        self.sequence = 0
        self.pass_time(0.0)

    def tell(self, facts: tuple[Fact, ...]) -> None:
        self.facts += facts
        self.told += [(self.now, fact) for fact in facts]

    def beat(self, status: BeatStatus = RUNNING, **fields: object) -> None:
        self.sequence += 1
        beat = Beat(self.agent, 0, self.sequence, status)
        beat = replace(beat, **fields)  # type: ignore[arg-type]
        self.tell(self.lives.beat(ReceivedBeat(beat, self.now, "socket")))

    def pass_time(self, seconds: float, *, beating_s: float = 0.0) -> None:
        """Let time pass, deadlines and looks included; with beats each `beating_s`, if any."""
        end = self.now + seconds
        next_beat = self.now + beating_s if beating_s else math.inf
        while True:
            at = min(self.lives.next_at(), next_beat)
            if at > end:
                break
            self.now = max(self.now, at)
            if next_beat <= self.now:
                self.beat()
                next_beat = self.now + beating_s
            self.keep()
        self.now = end

    def keep(self) -> None:
        due = self.lives.due(self.now)
        self.tell(due.facts)
        assert self.lives.next_at() > self.now
        for agent in due.look_at:
            self.asked.append(self.now)
            sources = sorted(self.sources - {Source.BEAT})
            seen = [one for source in sources if (one := self.sees(source)) is not None]
            self.tell(self.lives.saw(agent, seen, self.now))
            self.tell(self.lives.looked(agent, self.now))

    @property
    def health(self) -> tuple[Condition, Value, str]:
        health = self.lives.health(self.agent, self.now)
        return health.condition, health.value, health.reason

    @property
    def state(self) -> AgentState | None:
        return self.lives.state(self.agent)

    def misses(self) -> list[int]:
        return [fact.misses for fact in self.facts if isinstance(fact, BeatMissed)]

    def reasons(self) -> list[str]:
        return [fact.reason for fact in self.facts if isinstance(fact, LifeChanged)]


def there(progress: float = 1.0) -> Observation:
    return Observation(Source.PROCESS, Value.OK, "process_there", progress, PROCESS)


GONE = Observation(Source.PROCESS, Value.BAD, "process_gone", None, PROCESS)
STOPPED = Observation(Source.PROCESS, Value.BAD, "process_stopped", 1.0, PROCESS)


def frozen(source: Source) -> Observation:
    """Everything can be seen, and nothing moves."""
    if source is Source.PROCESS:
        return there()
    return Observation(source, Value.OK, "folder_seen", 5.0)


def unseen(source: Source) -> Observation:
    return Observation(source, Value.UNKNOWN, "look_failed")


# --- deadlines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "declared_s", "own_s", "expected"),
    [
        (IDLE, None, None, (30.0, "liveness.idle_interval")),
        (BeatStatus.WAITING, None, None, (30.0, "liveness.idle_interval")),
        (RUNNING, None, None, (15.0, "liveness.running_interval")),
        (BeatStatus.MONITORING, None, None, (5.0, "liveness.monitor_interval")),
        (RUNNING, None, 20.0, (20.0, "agent.beat_interval")),
        (RUNNING, 40.0, 20.0, (40.0, "")),
        (RUNNING, 1e9, None, (3600.0, "")),
        (RUNNING, 0.0, None, (1.0, "")),
    ],
)
def test_an_interval_is_declared_configured_or_follows_from_the_status(
    status: BeatStatus,
    declared_s: float | None,
    own_s: float | None,
    expected: tuple[float, str],
) -> None:
    assert interval_of(status, declared_s, own_s, LIMITS) == expected


@pytest.mark.parametrize(
    ("interval_s", "usual_gap_s", "silent_s", "key"),
    [
        (15.0, 15.0, 50.0, "liveness.margin"),
        (5.0, 5.0, 50.0, "liveness.shortest_deadline"),
        (15.0, 90.0, 110.0, "liveness.gaps"),
        (15.0, 1000.0, 300.0, "liveness.longest_deadline"),
        (600.0, 600.0, 1805.0, "liveness.margin"),
    ],
)
def test_a_suspect_deadline_says_what_decided_it(
    interval_s: float, usual_gap_s: float, silent_s: float, key: str
) -> None:
    decided = deadline(interval_s, usual_gap_s, LIMITS)
    assert (decided.silent_s, decided.key) == (silent_s, key)


@given(st.floats(1, 3600), st.floats(0, 7200))
def test_rungs_come_one_after_another_and_never_on_a_multiple_of_the_interval(
    interval_s: float, usual_gap_s: float
) -> None:
    rungs = [rung_s(rung, interval_s, usual_gap_s, LIMITS) for rung in (1, 2, 3)]
    assert rungs == sorted(set(rungs))
    assert all(rung >= n * interval_s + 5 for n, rung in enumerate(rungs, 1))
    assert rungs[2] <= max(3 * interval_s + 5, 300)


@given(st.lists(st.floats(0, 400), min_size=1, max_size=300))
def test_the_usual_gap_is_the_quantile_of_the_last_gaps(gaps_s: list[float]) -> None:
    gaps = Gaps()
    for gap_s in gaps_s:
        gaps.add(gap_s, LIMITS)
    gaps.reckon(LIMITS)
    last = sorted(min(gap, 300.0) for gap in gaps_s[-200:])
    expected = last[math.ceil(0.985 * len(last)) - 1]
    assert expected - 1e-9 <= gaps.usual_s <= expected + 0.1 + 1e-9
    assert len(gaps.last(500)) == len(last)


def test_an_agent_that_often_beats_late_gets_a_longer_deadline() -> None:
    """What adapts is learned from late beats, or there would be nothing to adapt to."""
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    for n in range(100):
        case.pass_time(90.0 if n % 10 == 0 else 15.0)
        case.beat()
    told = len(case.misses())
    case.pass_time(100)
    assert case.health[0] is Condition.UNKNOWN or case.health[0] is Condition.ALIVE
    assert case.misses()[told:] == [1, 2]
    case.pass_time(11)
    assert case.health[:2] == (Condition.LATE, Value.UNKNOWN)


@given(st.floats(0, 1e6), st.booleans(), st.floats(0, 1))
def test_own_slowness_is_bounded_and_never_shortens(
    lag_s: float,
    away: bool,  # noqa: FBT001 - a drawn value
    share: float,
) -> None:
    assert 1.0 <= slowness_of(lag_s, away, share) <= 4.0
    assert slowness_of(0.0, away, 1.0) == 1.0 + away


# --- the ladder ---------------------------------------------------------------------------


def test_each_rung_is_told_once_a_silence_whoever_looks_how_often() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    for _ in range(400):
        case.pass_time(0.5)
        case.keep()
    assert case.misses() == [1, 2, 3]
    case.beat()
    case.pass_time(400)
    assert case.misses() == [1, 2, 3, 1, 2, 3]


def test_misses_are_counted_in_elapsed_intervals_even_when_nobody_looked() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.now += 36
    case.keep()
    assert case.misses() == [1, 2]
    assert case.state is AgentState.DEGRADED


def test_silence_alone_is_late_and_never_bad_and_is_told_to_be_unknowable() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.pass_time(51)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "cannot_be_known")
    case.pass_time(3 * 24 * 3600)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "cannot_be_known")
    assert case.state is AgentState.DEGRADED
    assert case.reasons()[-1] == "cannot_be_known"


def test_two_beats_undo_degraded() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.pass_time(40)
    assert case.state is AgentState.DEGRADED
    case.beat()
    assert case.state is AgentState.DEGRADED
    case.pass_time(15)
    case.beat()
    assert case.state is AgentState.RUNNING


def test_the_interval_that_an_agent_declares_holds() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat(interval_s=120.0)
    case.pass_time(124)
    assert case.misses() == []
    case.pass_time(2)
    assert case.misses() == [1]
    case.pass_time(365 - 126 - 1)
    assert case.misses() == [1, 2]
    case.pass_time(2)
    assert case.misses() == [1, 2, 3]


@pytest.mark.parametrize("kind", list(WaitKind))
def test_a_declared_wait_suspends_the_ladder_and_ends_with_a_full_deadline(kind: WaitKind) -> None:
    case = Case(sees=frozen)
    case.beat(BeatStatus.WAITING, wait=DeclaredWait(kind, 2000.0))
    case.pass_time(2000)
    assert case.misses() == []
    assert case.state is AgentState.WAITING
    assert f"waits_{kind}" in case.reasons()
    case.pass_time(94)
    assert case.misses() == [1, 2]
    case.pass_time(2)
    assert case.misses() == [1, 2, 3]
    assert case.health[1] is Value.UNKNOWN


def test_a_wait_ends_with_the_next_beat_that_does_not_repeat_it() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat(BeatStatus.WAITING, wait=DeclaredWait(WaitKind.HUMAN, 3600.0))
    case.pass_time(30)
    case.beat()
    case.pass_time(51)
    assert case.misses() == [1, 2, 3]


def test_no_wait_is_longer_than_a_day() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat(BeatStatus.WAITING, wait=DeclaredWait(WaitKind.HUMAN, 1e9))
    case.pass_time(24 * 3600 + 96)
    assert case.misses() == [1, 2, 3]


def test_an_agent_has_its_start_up_grace() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.pass_time(79)
    assert case.misses() == []
    assert case.health == (Condition.UNKNOWN, Value.UNKNOWN, "not_heard_yet")
    assert case.state is AgentState.STARTING
    case.pass_time(32)
    assert case.misses() == [1, 2, 3]
    assert case.health[:2] == (Condition.LATE, Value.UNKNOWN)


def test_own_slowness_puts_rungs_off_and_they_come_when_it_passes() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.lives.slowness(4.0)
    case.pass_time(79)
    assert case.misses() == []
    case.lives.slowness(1.0)
    case.pass_time(5)
    assert case.misses() == [1, 2, 3]


# --- death --------------------------------------------------------------------------------


def dying_case() -> Case:
    case = Case(sees=lambda _: None)
    case.beat(pid=7)
    case.tell(case.lives.observed(ADA, there(), case.now))
    return case


def test_the_end_of_the_watched_process_is_death_at_once() -> None:
    case = dying_case()
    case.tell(case.lives.died(ADA, PROCESS, Exit(signal=9), case.now))
    assert case.health == (Condition.DEAD, Value.BAD, "process_gone")
    assert case.state is AgentState.FAILED
    assert case.lives.exit_of(ADA) == Exit(signal=9)
    assert case.lives.health(ADA, case.now).authorises_restart
    case.pass_time(100_000)
    assert case.health == (Condition.DEAD, Value.BAD, "process_gone")


@pytest.mark.parametrize("detail", ["process_gone", "unit_failed", "unit_gone"])
def test_a_look_that_finds_it_gone_is_death_at_once(detail: str) -> None:
    case = dying_case()
    source = Source.PROCESS if detail == "process_gone" else Source.UNIT
    case.tell(case.lives.observed(ADA, Observation(source, Value.BAD, detail), case.now))
    assert case.health == (Condition.DEAD, Value.BAD, detail)


def test_the_end_of_another_process_is_nothing() -> None:
    case = dying_case()
    assert case.lives.died(ADA, NEXT_PROCESS, None, case.now) == ()
    case.tell(case.lives.observed(ADA, replace(GONE, process=NEXT_PROCESS), case.now))
    assert case.health[0] is Condition.ALIVE


@pytest.mark.parametrize("status", [BeatStatus.STOPPING, BeatStatus.FINISHED])
def test_what_said_that_it_ends_is_terminated_and_not_dead(status: BeatStatus) -> None:
    case = dying_case()
    case.beat(status)
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    assert case.state is AgentState.TERMINATED
    assert case.health[1] is Value.UNKNOWN
    case.pass_time(10_000)
    assert case.misses() == []


def test_what_said_that_it_stops_and_falls_silent_has_ended_without_a_word_of_misses() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.beat(BeatStatus.STOPPING)
    case.pass_time(100)
    assert (case.state, case.misses()) == (AgentState.TERMINATED, [])
    assert case.health == (Condition.UNKNOWN, Value.UNKNOWN, "ended_as_told")


def test_a_unit_that_was_stopped_is_terminated_though_its_process_ended_first() -> None:
    case = dying_case()
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    inactive = Observation(Source.UNIT, Value.BAD, "unit_inactive", exit=Exit(code=0))
    case.sees = lambda source: inactive if source is Source.PROCESS else None
    case.pass_time(3)
    assert case.state is AgentState.TERMINATED
    assert not case.lives.health(ADA, case.now).authorises_restart


def test_what_we_stopped_ourselves_is_dead_and_not_terminated() -> None:
    """Or an agent whose restart failed half-way would be taken for one that is done."""
    case = dying_case()
    case.tell(case.lives.restart_began(ADA, case.now))
    assert case.state is AgentState.RESTARTING
    case.beat(BeatStatus.STOPPING)
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    inactive = Observation(Source.UNIT, Value.BAD, "unit_inactive")
    case.tell(case.lives.observed(ADA, inactive, case.now))
    assert case.state is AgentState.RESTARTING
    case.tell(case.lives.restart_ended(ADA, False, case.now))  # noqa: FBT003 - the port's
    assert (case.state, case.health[0]) == (AgentState.FAILED, Condition.DEAD)


def test_one_late_word_of_the_dead_is_looked_into_before_anything_is_held() -> None:
    case = dying_case()
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    case.pass_time(0.5)
    case.sees = lambda source: GONE if source is Source.PROCESS else None
    case.beat(pid=7)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "contradicted")
    case.pass_time(2.5)
    assert case.health == (Condition.DEAD, Value.BAD, "process_gone")


def test_a_process_that_was_wrongly_taken_for_the_agent_does_not_kill_it() -> None:
    """It beats on and on though 'its' process is gone, as from within a container."""
    case = dying_case()
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    case.sees = lambda source: GONE if source is Source.PROCESS else None
    case.pass_time(15)
    case.beat(pid=7)
    case.pass_time(14)
    case.beat(pid=7)
    for _ in range(100):
        case.pass_time(15)
        case.beat(pid=7)
        assert case.health[1] is not Value.BAD
    case.pass_time(100)
    assert case.health == (Condition.DEAD, Value.BAD, "process_gone")


def test_a_death_is_undone_when_another_process_works_for_the_agent() -> None:
    case = dying_case()
    case.tell(case.lives.died(ADA, PROCESS, Exit(code=1), case.now))
    unit = Observation(Source.UNIT, Value.OK, "unit_active", process=NEXT_PROCESS)
    case.tell(case.lives.saw(ADA, [GONE, unit], case.now + 1))
    assert case.health[0] is not Condition.DEAD
    assert case.lives.process(ADA) == NEXT_PROCESS


def test_a_unit_with_another_main_process_does_not_displace_the_one_that_beats() -> None:
    case = dying_case()
    unit = Observation(Source.UNIT, Value.OK, "unit_active", process=NEXT_PROCESS)
    case.tell(case.lives.observed(ADA, unit, case.now))
    assert case.lives.process(ADA) == PROCESS
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    assert case.health[0] is Condition.DEAD
    case.tell(case.lives.observed(ADA, unit, case.now + 1))
    assert case.health[0] is Condition.ALIVE


# --- silent, and looked at ----------------------------------------------------------------


def test_a_suspect_is_looked_at_again_and_again_while_it_is_silent() -> None:
    case = Case(sees=unseen)
    case.beat()
    case.asked.clear()
    case.pass_time(120)
    assert [at - 1000.0 for at in case.asked] == pytest.approx([2.0, 35.0, 50.0, 80.0, 110.0])
    assert case.health == (Condition.LATE, Value.UNKNOWN, "cannot_be_known")


def test_work_that_is_seen_during_silence_means_that_only_the_beats_are_lost() -> None:
    case = Case()
    case.beat()
    for _ in range(20):
        case.pass_time(60)
        case.tell(case.lives.grown(ADA, case.now))
    assert case.health == (Condition.ALIVE, Value.OK, "beats_lost_progress_seen")
    assert case.state is AgentState.DEGRADED


def test_two_kinds_that_agree_that_nothing_moves_make_a_silent_agent_unresponsive() -> None:
    case = Case(sees=frozen)
    case.beat()
    case.pass_time(900)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "silent_but_there")
    case.pass_time(100)
    assert case.health == (Condition.HUNG, Value.BAD, "silent_and_no_progress")
    assert case.state is AgentState.UNRESPONSIVE
    blamed = [one for one in case.lives.health(ADA, case.now).evidence if one.value is Value.BAD]
    assert {one.source for one in blamed} == {Source.PROCESS, Source.TRANSCRIPT, Source.WORKSPACE}


def test_one_kind_that_moves_outweighs_all_that_do_not_also_right_after_a_beat() -> None:
    """Work was seen, then a beat was heard, then nothing for as long as makes a suspect."""
    work = 0.0

    def sees(source: Source) -> Observation:
        seen = frozen(source)
        return replace(seen, progress=work) if source is Source.WORKSPACE else seen

    case = Case(sees=sees)
    for n in range(100):
        work += n < 94
        case.beat()
        case.pass_time(15)
    case.pass_time(50)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "silent_but_there")
    assert {one.detail for one in case.lives.health(ADA, case.now).evidence} >= {"no_progress"}


def test_one_kind_alone_never_makes_it_bad() -> None:
    case = Case(sees=lambda source: frozen(source) if source is Source.PROCESS else unseen(source))
    case.beat()
    case.pass_time(24 * 3600)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "cannot_be_known")


def test_an_idle_agent_that_is_silent_is_not_hung_for_doing_nothing() -> None:
    case = Case(sees=frozen)
    case.beat(IDLE)
    case.pass_time(24 * 3600)
    assert case.health[:2] == (Condition.LATE, Value.UNKNOWN)


def test_a_stopped_process_is_told_of_the_moment_that_no_work_vouches_for_it_any_more() -> None:
    """Its last work was seen after its last beat: the deadline of silence comes first."""
    case = Case()
    case.beat()
    case.pass_time(20)
    case.tell(case.lives.grown(ADA, case.now))
    worked_at = case.now
    case.sees = lambda source: STOPPED if source is Source.PROCESS else unseen(source)
    case.pass_time(300)
    assert case.state is AgentState.UNRESPONSIVE
    told_at = next(
        at
        for at, fact in case.told
        if isinstance(fact, LifeChanged) and fact.condition is Condition.HUNG
    )
    assert told_at == worked_at + 50


def test_a_silent_agent_whose_process_stands_stopped_is_hung_after_its_deadline() -> None:
    case = Case(sees=lambda source: STOPPED if source is Source.PROCESS else frozen(source))
    case.beat(IDLE)
    case.pass_time(94)
    assert case.health[1] is not Value.BAD
    case.pass_time(32)
    assert case.health == (Condition.HUNG, Value.BAD, "silent_and_stopped")


def test_what_was_seen_long_ago_does_not_count() -> None:
    """A verdict that rests on looks ends when nobody can look any more."""
    case = Case(sees=frozen)
    case.beat()
    case.pass_time(1000)
    assert case.health[1] is Value.BAD
    case.sees = unseen
    case.pass_time(200)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "cannot_be_known")


# --- heard, and not working ---------------------------------------------------------------


def test_beats_on_time_do_not_vouch_for_one_that_does_not_work() -> None:
    case = Case(sees=frozen)
    case.beat()
    case.pass_time(850, beating_s=15)
    assert case.health == (Condition.ALIVE, Value.OK, "heard")
    case.pass_time(2 * 900 - 850 + 60, beating_s=15)
    assert case.health == (Condition.HUNG, Value.BAD, "no_progress")
    assert case.state is AgentState.UNRESPONSIVE
    case.tell(case.lives.grown(ADA, case.now))
    assert case.health == (Condition.ALIVE, Value.OK, "heard")
    assert case.state is AgentState.RUNNING


def test_with_one_source_only_it_is_neither_hung_nor_vouched_for() -> None:
    case = Case(frozenset({Source.BEAT, Source.PROCESS}), sees=frozen)
    case.beat()
    case.pass_time(3600, beating_s=15)
    assert case.health == (Condition.ALIVE, Value.UNKNOWN, "no_progress_seen")


def test_an_agent_that_only_beats_is_taken_at_its_word() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.pass_time(24 * 3600, beating_s=15)
    assert case.health == (Condition.ALIVE, Value.OK, "heard")


@pytest.mark.parametrize("status", [IDLE, BeatStatus.WAITING])
def test_who_does_not_say_that_it_works_is_never_hung(status: BeatStatus) -> None:
    case = Case(sees=frozen)
    for _ in range(300):
        case.beat(status)
        case.pass_time(29)
    assert case.health == (Condition.ALIVE, Value.OK, "heard")


def test_new_words_about_progress_are_not_believed_and_not_punished_either() -> None:
    case = Case(sees=frozen)
    for n in range(300):
        case.beat(progress=str(n))
        case.pass_time(14)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "only_claims_progress")


def test_words_that_do_not_change_are_one_kind_among_others() -> None:
    case = Case(frozenset({Source.BEAT, Source.PROCESS}), sees=frozen)
    for _ in range(200):
        case.beat(progress="step 3")
        case.pass_time(14)
    assert case.health == (Condition.HUNG, Value.BAD, "no_progress")


def test_a_busy_processor_is_work_for_an_hour_and_then_it_is_not_known() -> None:
    case = Case()
    case.sees = lambda source: there(case.now) if source is Source.PROCESS else frozen(source)
    case.beat()
    case.pass_time(3500, beating_s=15)
    assert case.health == (Condition.ALIVE, Value.OK, "heard")
    case.pass_time(3600, beating_s=15)
    assert case.health == (Condition.HUNG, Value.BAD, "no_progress")


def test_a_thread_that_only_beats_is_no_busy_processor() -> None:
    case = Case(frozenset({Source.BEAT, Source.PROCESS, Source.WORKSPACE}))
    case.sees = lambda s: there(case.now * 0.01) if s is Source.PROCESS else frozen(s)
    case.beat()
    case.pass_time(1900, beating_s=15)
    assert case.health == (Condition.HUNG, Value.BAD, "no_progress")


def test_a_child_that_ended_is_a_sign_of_work() -> None:
    case = Case(frozenset({Source.BEAT, Source.PROCESS, Source.WORKSPACE}))
    case.sees = lambda s: there(1e6 - case.now) if s is Source.PROCESS else frozen(s)
    case.beat()
    case.pass_time(3000, beating_s=15)
    assert case.health == (Condition.ALIVE, Value.OK, "heard")


def test_time_spent_in_a_declared_wait_is_no_lack_of_progress() -> None:
    case = Case(sees=frozen)
    case.beat()
    case.pass_time(800, beating_s=15)
    case.beat(BeatStatus.RUNNING, wait=DeclaredWait(WaitKind.COMMAND, 5000.0))
    case.pass_time(4999)
    assert case.health == (Condition.ALIVE, Value.OK, "waits_command")
    case.beat()
    case.pass_time(890, beating_s=15)
    assert case.health == (Condition.ALIVE, Value.OK, "heard")


# --- agents that do not beat --------------------------------------------------------------


def test_without_beats_the_other_sources_decide() -> None:
    case = Case(ALL - {Source.BEAT}, beats=False, sees=frozen)
    case.pass_time(60)
    assert case.health == (Condition.ALIVE, Value.OK, "seen")
    case.tell(case.lives.grown(ADA, case.now, RUNNING))
    assert case.state is AgentState.RUNNING
    case.pass_time(850)
    assert case.health == (Condition.ALIVE, Value.OK, "seen")
    case.pass_time(1000)
    assert case.health == (Condition.HUNG, Value.BAD, "no_progress")
    assert case.misses() == []


def test_without_beats_one_that_rests_is_not_hung_and_one_unseen_is_not_known() -> None:
    case = Case(ALL - {Source.BEAT}, beats=False, sees=frozen)
    case.tell(case.lives.grown(ADA, case.now, IDLE))
    case.pass_time(24 * 3600)
    assert case.health == (Condition.ALIVE, Value.OK, "seen")
    case.sees = unseen
    case.pass_time(1000)
    assert case.health == (Condition.UNKNOWN, Value.UNKNOWN, "not_seen")


def test_without_beats_a_process_that_stands_stopped_is_hung() -> None:
    case = Case(ALL - {Source.BEAT}, beats=False, sees=frozen)
    case.pass_time(60)
    case.sees = lambda source: STOPPED if source is Source.PROCESS else frozen(source)
    case.pass_time(200)
    assert case.health == (Condition.HUNG, Value.BAD, "stopped")


# --- what we could not hear ---------------------------------------------------------------


def test_after_an_amnesty_nobody_is_late_for_a_full_deadline() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.pass_time(18)
    case.now += 40
    case.tell(case.lives.amnesty("stall", 40.0, case.now))
    case.pass_time(49)
    assert case.misses() == [1, 2]
    assert case.health == (Condition.UNKNOWN, Value.UNKNOWN, "excused")
    case.pass_time(2)
    assert case.misses() == [1, 2, 3]
    granted = next(fact for fact in case.facts if isinstance(fact, AmnestyGranted))
    assert granted == AmnestyGranted("stall", 40.0, 50.0, 1)


def test_an_amnesty_vouches_for_nobody_and_tells_no_rung_twice() -> None:
    case = Case(sees=frozen)
    case.beat()
    case.pass_time(1000)
    assert case.health[1] is Value.BAD
    case.tell(case.lives.amnesty("suspend", 600.0, case.now))
    assert case.health == (Condition.LATE, Value.UNKNOWN, "amnesty")
    case.pass_time(49)
    assert case.health == (Condition.LATE, Value.UNKNOWN, "amnesty")
    case.pass_time(1000)
    assert case.health == (Condition.HUNG, Value.BAD, "silent_and_no_progress")
    assert case.misses() == [1, 2, 3]


def test_stalls_of_ours_now_and_then_do_not_hide_one_that_does_not_work() -> None:
    case = Case(sees=frozen)
    case.beat()
    for _ in range(8):
        case.pass_time(300, beating_s=15)
        case.tell(case.lives.amnesty("stall", 6.0, case.now))
    assert case.health == (Condition.HUNG, Value.BAD, "no_progress")


def restored(case: Case, down_s: float, ended_by_us: frozenset[AgentId] = frozenset()) -> Case:
    """The same agent under a daemon that was started anew."""
    records = case.lives.records(case.now, UTC_0)
    after = Case(case.sources, case.beats, sees=case.sees, now=50.0)
    after.facts.clear()
    then_utc = UTC_0 + timedelta(seconds=down_s)
    after.lives.restore(records, after.now, then_utc, ended_by_us=ended_by_us)
    after.sequence = case.sequence
    after.pass_time(0)
    return after


def test_a_wall_clock_that_was_set_back_makes_no_wait_longer() -> None:
    case = Case(sees=frozen)
    case.beat(BeatStatus.WAITING, wait=DeclaredWait(WaitKind.HUMAN, 600.0))
    after = restored(case, -3600)
    after.pass_time(600 - 1)
    assert after.health == (Condition.ALIVE, Value.OK, "waits_human")
    after.pass_time(120)
    assert after.misses() == [1, 2, 3]


def test_our_own_downtime_is_nobodys_silence_and_nobody_is_vouched_for_after_it() -> None:
    case = dying_case()
    case.pass_time(60, beating_s=15)
    after = restored(case, 3600)
    assert after.health == (Condition.UNKNOWN, Value.UNKNOWN, "excused")
    assert after.state is AgentState.RUNNING
    assert after.facts[0] == AmnestyGranted("downtime", 3600.0, 50.0, 1)
    assert isinstance(after.facts[1], LifeChanged)
    assert after.lives.process(ADA) == PROCESS
    after.pass_time(19)
    assert after.misses() == []
    after.pass_time(40)
    assert after.misses() == [1, 2, 3]


def test_what_is_known_of_a_life_outlives_us() -> None:
    case = Case()
    for _ in range(50):
        case.pass_time(80)
        case.beat(IDLE)
    case.beat(BeatStatus.WAITING, wait=DeclaredWait(WaitKind.HUMAN, 1000.0))
    before = case.lives.explain(ADA, case.now)
    after = restored(case, 10).lives
    account = after.explain(ADA, 50.0)
    assert before is not None
    assert account is not None
    assert account.wait_left_s == pytest.approx(990)
    assert account.wait_kind is WaitKind.HUMAN
    assert account.deadline.silent_s == before.deadline.silent_s
    assert after.state(ADA) is AgentState.WAITING


def test_a_death_while_we_were_down_is_seen_at_once() -> None:
    case = dying_case()
    after = restored(case, 60)
    after.tell(after.lives.died(ADA, PROCESS, None, after.now))
    assert after.health == (Condition.DEAD, Value.BAD, "process_gone")


def test_a_wall_clock_that_was_set_back_while_we_were_down_makes_nothing_future() -> None:
    after = restored(dying_case(), -7200)
    assert after.health[1] is not Value.BAD
    after.pass_time(60)
    assert after.misses() == [1, 2, 3]


# --- restarts -----------------------------------------------------------------------------


class Fences:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def expect(self, agent: AgentId, epoch: int) -> None:
        self.calls.append(("expect", epoch))

    def fence(self, agent: AgentId, epoch: int) -> None:
        self.calls.append(("fence", epoch))


def test_a_new_incarnation_begins_with_nothing_held_against_it() -> None:
    fences = Fences()
    lives = Lives(LIMITS, fences)
    lives.watch(Watched(ADA, "", ALL), 0.0)
    lives.beat(ReceivedBeat(Beat(ADA, 0, 1, pid=7), 1.0, "socket"))
    lives.observed(ADA, there(), 1.0)
    lives.died(ADA, PROCESS, None, 2.0)
    facts = lives.restart_began(ADA, 3.0)
    assert isinstance(facts[-1], LifeChanged)
    assert facts[-1].after is AgentState.RESTARTING
    lives.spawned(ADA, 1, 4.0)
    assert not lives.heard(ADA, 1)
    assert lives.health(ADA, 4.0).value is Value.UNKNOWN
    assert fences.calls == [("fence", 1)]
    # A look that began before, and the words and the end of the old one, say nothing.
    lives.observed(ADA, replace(GONE, process=None), 5.0, since=3.5)
    lives.observed(ADA, GONE, 5.0)
    lives.died(ADA, PROCESS, None, 5.0)
    lives.beat(ReceivedBeat(Beat(ADA, 0, 2, pid=7), 5.0, "socket"))
    assert lives.health(ADA, 5.0).value is Value.UNKNOWN
    lives.beat(ReceivedBeat(Beat(ADA, 1, 1, pid=8, task="t1"), 6.0, "socket"))
    facts = lives.restart_ended(ADA, True, 7.0)  # noqa: FBT003 - the port's
    assert lives.heard(ADA, 1)
    assert (lives.state(ADA), lives.epoch(ADA)) == (AgentState.RUNNING, 1)
    assert lives.task(ADA) == "t1"


def test_an_agent_that_was_restarted_and_is_not_heard_is_suspected_in_the_end() -> None:
    case = dying_case()
    case.tell(case.lives.restart_began(ADA, case.now))
    case.pass_time(1000)
    assert case.misses() == []
    case.tell(case.lives.spawned(ADA, 1, case.now))
    case.tell(case.lives.restart_ended(ADA, True, case.now))  # noqa: FBT003 - the port's
    case.pass_time(59 + 50)
    assert case.misses() == [1, 2]
    case.pass_time(2)
    assert case.misses() == [1, 2, 3]


def test_quarantine_holds_until_release() -> None:
    case = dying_case()
    case.tell(case.lives.quarantined(ADA, case.now))
    assert case.lives.quarantined(ADA, case.now) == ()
    case.beat(pid=7)
    assert case.state is AgentState.QUARANTINED
    case.tell(case.lives.released(ADA, case.now))
    assert case.state is AgentState.RUNNING


# --- the breaker --------------------------------------------------------------------------


def test_too_many_suspects_at_once_are_a_cause_of_their_own() -> None:
    assert not breaker_open(5, 20, 5, 0.05)
    assert breaker_open(6, 20, 5, 0.05)
    assert not breaker_open(50, 1000, 5, 0.05)
    assert breaker_open(51, 1000, 5, 0.05)


def fleet(hosts: dict[str, int]) -> tuple[Lives, list[AgentId]]:
    lives, agents = Lives(LIMITS), []
    for host, count in hosts.items():
        for n in range(count):
            agents.append(AgentId(f"{host}-{n}"))
            lives.watch(Watched(agents[-1], host), 0.0)
    return lives, agents


def test_the_breaker_opens_for_a_host_and_for_the_fleet_and_closes_when_they_are_heard() -> None:
    lives, agents = fleet({"a": 10, "b": 300})
    for agent in agents:
        lives.beat(ReceivedBeat(Beat(agent, 0, 1), 0.0, "socket"))
    for agent in agents[6:]:
        lives.beat(ReceivedBeat(Beat(agent, 0, 2), 45.0, "socket"))
    lives.due(51.0)
    assert lives.breakers(51.0) == {"a"}
    assert lives.breakers(200.0) == {"a"}, "they are suspects still"
    lives.beat(ReceivedBeat(Beat(agents[0], 0, 3), 201.0, "socket"))
    assert lives.breakers(202.0) == frozenset()
    lives.due(300.0)
    assert lives.breakers(300.0) == {"b", FLEET}, "those of a fell silent one by one"
    lives.amnesty("stall", 50.0, 301.0)
    assert lives.breakers(301.0) == frozenset()


# --- what is asked ------------------------------------------------------------------------


def test_an_account_names_every_number_and_the_key_that_it_comes_from() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.pass_time(10)
    account = case.lives.explain(ADA, case.now)
    assert account is not None
    assert account.heard_ago_s == 10
    assert (account.interval_s, account.interval_key) == (15.0, "liveness.running_interval")
    assert (account.next_rung, account.next_rung_in_s, account.misses) == (1, 10.0, 0)
    assert account.deadline.silent_s == 50
    outlooks = {outlook.what: outlook.in_s for outlook in account.outlooks}
    assert outlooks == {"a beat is missed": 10.0, "degraded": 25.0, "suspected": 40.0}
    assert {"liveness.running_interval", "liveness.margin"} <= set(account.keys)
    assert case.lives.explain(AgentId("nobody"), case.now) is None


def test_who_is_not_watched_is_not_known() -> None:
    lives = Lives(LIMITS)
    assert lives.health(ADA, 0.0).value is Value.UNKNOWN
    assert lives.beat(ReceivedBeat(Beat(ADA, 0, 1), 0.0, "socket")) == ()
    assert lives.died(ADA, PROCESS, None, 0.0) == ()
    assert lives.next_at() == math.inf


def test_other_limits_hold_from_now_on() -> None:
    case = Case(frozenset({Source.BEAT}))
    case.beat()
    case.lives.limits = replace(LIMITS, running_interval_s=5.0, shortest_deadline_s=20.0)
    case.pass_time(21)
    assert case.misses() == [1, 2, 3]


# --- whatever happens, in whatever order ----------------------------------------------------

Op = tuple[str, float, int]

SPEAKING = {"beat", "idle", "wait", "stopping", "finished", "ended_ok", "restored"}
"""After these a silence begins anew."""

OPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "beat",
                "beat",
                "idle",
                "wait",
                "old_beat",
                "grown",
                "there",
                "stopped",
                "still",
                "unknown",
                "amnesty",
                "slow",
                "began",
                "spawned",
                "ended_ok",
                "ended_badly",
                "quarantine",
                "release",
                "gone",
                "died",
                "inactive",
                "stopping",
                "finished",
                "restored",
            ]
        ),
        st.sampled_from([0.0, 0.3, 4.0, 14.0, 21.0, 36.0, 51.0, 130.0, 400.0, 1000.0]),
        st.integers(0, 3),
    ),
    max_size=40,
)


class Play:
    """Plays operations on one agent, and keeps what was told."""

    def __init__(self) -> None:
        self.lives = self.fresh(0.0)
        self.now = 0.0
        self.sequence = 0
        self.facts: list[Fact] = []

    def fresh(self, now: float) -> Lives:
        lives = Lives(LIMITS)
        lives.watch(Watched(ADA, "h", ALL | {Source.UNIT}), now)
        return lives

    def say(self, status: BeatStatus, wait: DeclaredWait | None = None, epoch: int = 0) -> None:
        self.sequence += 1
        beat = Beat(ADA, epoch, self.sequence, status, None, wait, 7, str(self.sequence // 4))
        self.facts += self.lives.beat(ReceivedBeat(beat, self.now, "socket"))

    def see(self, *seen: Observation) -> None:
        self.facts += self.lives.saw(ADA, seen, self.now)

    def keep_until(self, end: float) -> None:
        while (at := self.lives.next_at()) <= end:
            self.now = max(self.now, at)
            due = self.lives.due(self.now)
            self.facts += due.facts
            assert self.lives.next_at() > self.now
            for agent in due.look_at:
                self.facts += self.lives.looked(agent, self.now)
        self.now = end

    def play(self, op: str, n: int) -> None:  # noqa: PLR0912 - one case an operation
        lives, now = self.lives, self.now
        epoch = lives.epoch(ADA)
        match op:
            case "beat" | "idle" | "stopping" | "finished":
                status = RUNNING if op == "beat" else BeatStatus(op)
                self.say(status, epoch=epoch)
            case "wait":
                self.say(BeatStatus.WAITING, DeclaredWait(WaitKind.COMMAND, 100.0 * n), epoch)
            case "old_beat":
                self.say(RUNNING, epoch=max(0, epoch - 1))
            case "grown":
                self.facts += lives.grown(ADA, now)
            case "there":
                self.see(there(now))
            case "stopped":
                self.see(STOPPED)
            case "still":
                self.see(*map(frozen, sorted(ALL - {Source.BEAT})))
            case "unknown":
                self.see(*map(unseen, sorted(ALL - {Source.BEAT})))
            case "amnesty":
                self.facts += lives.amnesty("stall", 10.0 * n, now)
            case "slow":
                lives.slowness(1.0 + n)
            case "began":
                self.facts += lives.restart_began(ADA, now)
            case "spawned":
                self.facts += lives.spawned(ADA, epoch + 1, now)
            case "ended_ok" | "ended_badly":
                self.facts += lives.restart_ended(ADA, op == "ended_ok", now)
            case "quarantine":
                self.facts += lives.quarantined(ADA, now)
            case "release":
                self.facts += lives.released(ADA, now)
            case "gone":
                self.see(replace(GONE, process=lives.process(ADA)))
            case "died":
                if (process := lives.process(ADA)) is not None:
                    self.facts += lives.died(ADA, process, None, now)
            case "inactive":
                self.see(Observation(Source.UNIT, Value.BAD, "unit_inactive"))
            case "restored":
                records = lives.records(now, UTC_0)
                self.lives = self.fresh(now)
                self.lives.restore(records, now, UTC_0 + timedelta(seconds=60 * n))
                self.facts += self.lives.due(now).facts
            case _:
                raise AssertionError(op)


def played(ops: list[Op]) -> Play:
    play = Play()
    for op, wait_s, n in ops:
        play.play(op, n)
        play.keep_until(play.now + wait_s)
    return play


@given(OPS)
def test_states_follow_the_table_and_rungs_are_told_once_a_silence(ops: list[Op]) -> None:
    state, rung, epoch = AgentState.STARTING, 0, 0
    play = Play()
    for op, wait_s, n in ops:
        before = len(play.facts)
        play.play(op, n)
        spoke = op in SPEAKING or (op == "old_beat" and epoch == 0)
        if spoke or play.lives.epoch(ADA) != epoch:
            rung, epoch = 0, play.lives.epoch(ADA)
        if op == "restored":
            # The new daemon says anew how everybody stands.
            state = next(f.before for f in play.facts[before:] if isinstance(f, LifeChanged))
        play.keep_until(play.now + wait_s)
        for fact in play.facts[before:]:
            if isinstance(fact, BeatMissed):
                assert fact.misses > rung
                rung = fact.misses
            if isinstance(fact, LifeChanged):
                assert fact.before is state
                assert fact.after is state or fact.after in TRANSITIONS[state]
                if state is AgentState.TERMINATED and fact.after is not state:
                    rung = 0  # who is back begins anew
                state = fact.after
                bad = [one for one in fact.evidence if one.value is Value.BAD]
                assert bad or fact.value is not Value.BAD, "bad names its evidence"
        assert play.lives.state(ADA) is state
        assert play.lives.overdue(play.now, 0.001) == ()


@given(OPS)
def test_the_same_events_at_the_same_times_give_the_same_facts(ops: list[Op]) -> None:
    first, second = played(ops), played(ops)
    assert first.facts == second.facts
    assert first.lives.health(ADA, first.now) == second.lives.health(ADA, second.now)
    assert first.lives.next_at() == second.lives.next_at()


@given(OPS.map(lambda ops: [op for op in ops if op[0] not in {"began", "spawned", "restored"}]))
def test_whatever_was_before_a_seen_death_is_death_at_once(ops: list[Op]) -> None:
    play = played(ops)
    play.say(RUNNING)
    play.see(replace(there(), process=NEXT_PROCESS), replace(there(), process=PROCESS))
    process = play.lives.process(ADA)
    assert process is not None
    play.keep_until(play.now + 0.1)
    play.facts += play.lives.died(ADA, process, None, play.now)
    health = play.lives.health(ADA, play.now)
    assert (health.condition, health.value) == (Condition.DEAD, Value.BAD)


HARMLESS = {
    "beat",
    "idle",
    "wait",
    "old_beat",
    "grown",
    "there",
    "unknown",
    "amnesty",
    "slow",
    "quarantine",
    "release",
    "stopping",
    "finished",
    "restored",
    "ended_ok",
}


@given(OPS.map(lambda ops: [op for op in ops if op[0] in HARMLESS]))
@example([("beat", 1000.0, 0), ("unknown", 1000.0, 0), ("amnesty", 1000.0, 3)])
def test_what_is_not_known_never_makes_bad(ops: list[Op]) -> None:
    """Silence, failed looks, restarts of ours: without positive evidence nothing is bad."""
    play = Play()
    for op, wait_s, n in ops:
        play.play(op, n)
        assert not play.lives.health(ADA, play.now).authorises_restart
        play.keep_until(play.now + wait_s)
        assert not play.lives.health(ADA, play.now).authorises_restart
    play.keep_until(play.now + 10_000)
    assert not any(isinstance(f, LifeChanged) and f.value is Value.BAD for f in play.facts)


@dataclass
class Healthy:
    """The truth about a healthy agent, and a bad line between it and us.

    Either its beats come within its deadline or most of them are lost; it works now and then,
    with pauses of some minutes. What is seen of it is true, and late, twice, or not at all.
    """

    seed: int
    mute: bool
    works_by: Source
    hours: float = 3.0

    def run(self) -> None:  # noqa: PLR0912 - one case an event
        rng = random.Random(self.seed)
        lives = Lives(LIMITS)
        lives.watch(Watched(ADA, "h", ALL), 0.0)
        events: list[tuple[float, int, str, object]] = []
        work = {Source.PROCESS: 0.0, Source.TRANSCRIPT: 0.0, Source.WORKSPACE: 0.0}
        order = sequence = 0
        heard = -1

        def at(when: float, what: str, about: object = None) -> None:
            nonlocal order
            order += 1
            heapq.heappush(events, (when, order, what, about))

        at(1.0, "beat")
        at(2.0, "work")
        now = 0.0
        while now < self.hours * 3600:
            due_at = lives.next_at()
            now = min(events[0][0], due_at)
            assert not lives.health(ADA, now).authorises_restart, f"{self} at {now}"
            if due_at <= events[0][0]:
                for agent in lives.due(now).look_at:
                    at(now + rng.uniform(0.0, 10.0), "seen", (agent, now, self.look(rng, work)))
            else:
                _, _, what, about = heapq.heappop(events)
                match what:
                    case "beat":
                        sequence += 1
                        beat = Beat(ADA, 0, sequence, pid=7)
                        at(now + rng.uniform(10, 18), "beat")
                        if not self.mute or rng.random() < 0.02:
                            late_s = rng.choice([0.0, 0.0, 0.0, 25.0]) * rng.random()
                            for _ in range(rng.choice([1, 1, 2])):
                                at(now + late_s + rng.random(), "heard", beat)
                    case "heard" if isinstance(about, Beat) and about.sequence > heard:
                        heard = about.sequence
                        lives.beat(ReceivedBeat(about, now, "socket"))
                    case "work":
                        work[self.works_by] += 20.0 if self.works_by is Source.PROCESS else 1.0
                        if self.works_by is Source.TRANSCRIPT and rng.random() < 0.5:
                            at(now + rng.uniform(0, 20), "grown")
                        at(now + rng.uniform(1, 400), "work")
                        if rng.random() < 0.02:
                            lives.amnesty("stall", rng.uniform(5, 60), now)
                            lives.slowness(rng.uniform(1, 4))
                    case "grown":
                        lives.grown(ADA, now)
                    case "seen" if isinstance(about, tuple):
                        agent, since, seen = about
                        lives.saw(agent, seen, now, since)
                        lives.looked(agent, now)
                        if rng.random() < 0.2:
                            at(now + rng.uniform(0, 90), "again", about)
                    case "again" if isinstance(about, tuple):
                        lives.saw(about[0], about[2], now, about[1])
                    case _:
                        pass

    def look(self, rng: random.Random, work: dict[Source, float]) -> tuple[Observation, ...]:
        seen = []
        for source in sorted(work):
            if source is not self.works_by and rng.random() < 0.3:
                seen.append(unseen(source))
            elif source is Source.PROCESS:
                seen.append(there(work[source]))
            else:
                seen.append(Observation(source, Value.OK, "folder_seen", work[source]))
        return tuple(seen)


@settings(max_examples=60)
@given(
    st.builds(
        Healthy,
        st.integers(0, 2**32),
        st.booleans(),
        st.sampled_from([Source.TRANSCRIPT, Source.WORKSPACE]),
    )
)
def test_a_healthy_agent_is_never_held_to_be_bad(healthy: Healthy) -> None:
    """Whatever the order, delay, loss and duplication of what we hear and see of it."""
    healthy.run()


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.booleans())
def test_nor_is_one_of_which_only_the_processor_shows_its_work(
    seed: int,
    mute: bool,  # noqa: FBT001 - a drawn value
) -> None:
    Healthy(seed, mute, Source.PROCESS, hours=0.9).run()


# --- ends, and what comes after them ------------------------------------------------------

UNIT = frozenset({Source.BEAT, Source.PROCESS, Source.UNIT})
STOPPED_UNIT = Observation(Source.UNIT, Value.BAD, "unit_inactive", exit=Exit(code=0))
PERSON_S = 600.0


def unit_of(process: ProcessIdentity | None) -> Callable[[Source], Observation | None]:
    """What is seen of a unit: one that runs this process, or one that somebody stopped."""

    def sees(source: Source) -> Observation | None:
        if process is None:
            return STOPPED_UNIT if source is Source.UNIT else None
        if source is Source.UNIT:
            return Observation(source, Value.OK, "unit_active", process=process)
        return Observation(source, Value.OK, "process_there", 1.0, process)

    return sees


def unit_case(*, beats: bool) -> Case:
    """An agent that runs as a unit, and does its work."""
    sources = UNIT if beats else UNIT - {Source.BEAT}
    case = Case(sources, beats, sees=unit_of(PROCESS))
    if beats:
        case.beat()
    case.pass_time(121, beating_s=15.0 * beats)
    return case


def test_that_we_told_it_to_end_is_known_after_our_own_restart() -> None:
    """Else a restart that was held up half-way would leave it down, and nobody told of it."""
    case = unit_case(beats=True)
    case.tell(case.lives.restart_began(ADA, case.now))
    case.sees = unit_of(None)
    case.tell(case.lives.saw(ADA, [STOPPED_UNIT], case.now))
    case.tell(case.lives.restart_ended(ADA, ok=False, now=case.now))
    assert case.health == (Condition.DEAD, Value.BAD, "unit_inactive")
    for ours, expected in (({ADA}, AgentState.FAILED), (set(), AgentState.TERMINATED)):
        after = restored(case, 60, frozenset(ours))
        after.pass_time(3600)
        assert after.state is expected
        assert after.lives.health(ADA, after.now).authorises_restart is bool(ours)


def test_what_was_told_to_end_and_says_that_it_ends_does_so_by_our_doing() -> None:
    case = unit_case(beats=True)
    case.tell(case.lives.restart_began(ADA, case.now))
    case.tell(case.lives.restart_ended(ADA, ok=False, now=case.now))
    case.beat(BeatStatus.STOPPING)
    case.tell(case.lives.saw(ADA, [STOPPED_UNIT], case.now + 1))
    assert case.health == (Condition.DEAD, Value.BAD, "unit_inactive")


@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize("anew", [True, False])
def test_a_unit_that_a_person_stopped_is_watched_again_when_a_person_started_it(
    *, beats: bool, anew: bool
) -> None:
    """With or without a new daemon in between: its next death would be seen by nobody."""
    case = unit_case(beats=beats)
    case.sees = unit_of(None)
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    case.pass_time(PERSON_S)
    assert case.state is AgentState.TERMINATED
    if anew:
        case = restored(case, PERSON_S)
        case.pass_time(PERSON_S)
        assert case.state is AgentState.TERMINATED
    misses = case.misses()
    case.sees = unit_of(NEXT_PROCESS)
    case.pass_time(61)
    assert case.lives.process(ADA) == NEXT_PROCESS
    assert case.state is (AgentState.STARTING if beats else AgentState.RUNNING)
    assert case.misses() == misses, "it has its grace, as at any start"
    if beats:
        case.beat()
    case.sees = lambda source: (
        Observation(source, Value.BAD, "unit_failed") if source is Source.UNIT else None
    )
    case.tell(case.lives.died(ADA, NEXT_PROCESS, None, case.now + 30))
    case.pass_time(60)
    assert case.state is AgentState.FAILED


@pytest.mark.parametrize("beats", [True, False])
def test_a_unit_that_a_person_started_while_we_were_down_is_watched_again(*, beats: bool) -> None:
    case = unit_case(beats=beats)
    case.sees = unit_of(None)
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    case.pass_time(PERSON_S)
    after = restored(case, PERSON_S)
    after.sees = unit_of(NEXT_PROCESS)
    after.pass_time(30)
    assert after.state is (AgentState.STARTING if beats else AgentState.RUNNING)
    assert after.misses() == []
    after.tell(after.lives.died(ADA, NEXT_PROCESS, None, after.now))
    assert after.state is AgentState.FAILED


def test_a_unit_that_was_started_again_and_never_beats_is_suspected() -> None:
    case = unit_case(beats=True)
    case.sees = unit_of(None)
    case.tell(case.lives.died(ADA, PROCESS, None, case.now))
    case.pass_time(PERSON_S)
    case.sees = unit_of(NEXT_PROCESS)
    case.pass_time(PERSON_S)
    assert case.health[0] is Condition.LATE


@pytest.mark.parametrize("anew", [True, False])
def test_who_said_that_it_had_finished_may_stay_and_is_expected_to_do_nothing(
    *, anew: bool
) -> None:
    case = unit_case(beats=True)
    case.tell(case.lives.saw(ADA, [STOPPED_UNIT], case.now))
    case.pass_time(60, beating_s=15)
    assert case.state is AgentState.RUNNING
    case.beat(BeatStatus.FINISHED)
    if anew:
        case = restored(case, PERSON_S)
    case.pass_time(PERSON_S)
    assert case.state is AgentState.TERMINATED
    case.sees = unit_of(None)
    case.pass_time(PERSON_S)
    assert case.state is AgentState.TERMINATED
    case.sees = unit_of(NEXT_PROCESS)
    case.pass_time(PERSON_S)
    assert case.state is not AgentState.TERMINATED, "a person has started it again"


def test_those_who_have_ended_are_looked_at_once_a_minute_and_only_for_being_there() -> None:
    case = Case(UNIT | {Source.WORKSPACE}, sees=unit_of(None))
    case.beat(BeatStatus.FINISHED)
    case.pass_time(600)
    case.asked.clear()
    case.pass_time(600)
    assert len(case.asked) == 10
    assert case.lives.to_look_at(ADA) == {Source.PROCESS, Source.UNIT}
    assert Case().lives.to_look_at(ADA) == ALL - {Source.BEAT}


def test_a_number_of_a_hook_is_no_processor_time_however_slowly_it_grows() -> None:
    """One percent of something in a minute may be good work."""
    hooked = frozenset({Source.BEAT, Source.PROCESS, Source.WORKSPACE})
    case = Case(hooked)

    def sees(source: Source) -> Observation:
        if source is Source.PROCESS:
            return Observation(source, Value.OK, "process_there", 0.01 * (case.now // 60))
        return Observation(source, Value.OK, "folder_seen", 5.0)

    case.sees = sees
    case.beat()
    case.pass_time(7200, beating_s=15)
    assert "no_progress" not in case.reasons()
    assert case.health[1] is Value.OK


def test_a_number_of_another_kind_is_measured_anew() -> None:
    """Of a process that was found meanwhile it is its processor time: nothing has moved."""
    case = Case(frozenset({Source.BEAT, Source.PROCESS}))
    case.beat()
    hook = Observation(Source.PROCESS, Value.OK, "process_there", 500.0)
    for seen in (hook, there(3.0), hook, there(3.0)):
        case.tell(case.lives.observed(ADA, seen, case.now))
        case.now += 60
    account = case.lives.explain(ADA, case.now)
    assert account is not None
    assert account.worked_ago_s is None


def test_looks_that_nobody_takes_any_more_are_asked_for_again() -> None:
    case = Case()
    case.beat()
    asked = case.lives.due(case.now + 2).look_at
    assert asked == (ADA,)
    assert case.lives.due(case.now + 12).look_at == ()
    case.lives.looks_lost(case.now + 12)
    assert case.lives.due(case.now + 13).look_at == (ADA,)


# --- what speaks against a restart --------------------------------------------------------


def sample(
    reason: str, *seen: Observation, sight: Value = Value.OK, condition: Condition = Condition.HUNG
) -> Sample:
    return Sample(sight, Health(condition, Value.BAD, reason), seen)


@pytest.mark.parametrize("reason", ["stopped", "silent_and_stopped"])
def test_one_that_stood_stopped_is_stopped_by_us_only_while_it_stands(reason: str) -> None:
    """A person who brings it back to the foreground must not lose it."""
    stands, runs, blind = sample(reason, STOPPED), sample(reason, there()), sample(reason)
    ask = {"requested": False, "told_to_end": False}
    assert objection(stands, stands, **ask) == ""
    assert objection(runs, runs, **ask) == "stopped_no_more"
    assert objection(stands, runs, **ask) == "stopped_no_more"
    assert objection(runs, stands, **ask) == "stopped_no_more"
    assert objection(stands, blind, **ask) == "not_known"
    assert objection(blind, stands, **ask) == "not_known"


@pytest.mark.parametrize("condition", [Condition.HUNG, Condition.DEAD])
@pytest.mark.parametrize("seen", [STOPPED, there()])
def test_what_its_control_does_not_see_and_others_do_is_never_replaced(
    condition: Condition, seen: Observation
) -> None:
    """Its first process was started by a person: a second one would run beside it."""
    one = sample("no_progress", seen, sight=Value.BAD, condition=condition)
    for requested, told_to_end in ((False, False), (True, False), (False, True)):
        found = objection(one, one, requested=requested, told_to_end=told_to_end)
        assert found == "still_there"


def test_one_that_hung_and_is_gone_must_be_seen_to_be_gone() -> None:
    ask = {"requested": False, "told_to_end": False}
    there_, gone = sample("no_progress", there()), sample("no_progress", GONE, sight=Value.BAD)
    assert objection(there_, gone, **ask) == ""
    assert objection(gone, gone, **ask) == ""
    assert objection(gone, there_, **ask) == "came_back"
    unseen_ = sample("no_progress", unseen(Source.PROCESS), sight=Value.BAD)
    assert objection(there_, unseen_, **ask) == "not_seen"
    assert objection(there_, sample("no_progress", sight=Value.BAD), **ask) == "not_seen"
