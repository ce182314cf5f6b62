"""Sweeps: who is asked about, how often, and what a failing judge comes to."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.judges.scripted import ScriptedJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_spends import MemorySpends
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.detectors import DetectorLimits
from custosd.core.errors import JudgeError, StoreUnavailable
from custosd.core.evidence import Condition, Value
from custosd.core.facts import (
    AgentForgotten,
    AgentSeen,
    Entry,
    Fact,
    LifeChanged,
    StandingChanged,
    SweepFinished,
    TrajectoryAdvanced,
    VerdictReached,
)
from custosd.core.folds import Folds
from custosd.core.guardian import LONGEST_RETRY_S, GuardianLimits
from custosd.core.money import CONDUCTOR, Reservation
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import (
    Asked,
    EditRange,
    Ended,
    RunEnd,
    Said,
    Spent,
    StepKind,
    TranscriptEvent,
    Usage,
)
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason, Verdict
from custosd.core.view import AgentView, FleetView
from custosd.flow.gate import Gate
from custosd.flow.monitor import Monitor, in_force
from custosd.flow.pulse import Pulse
from custosd.ports import Answer, ContextPart, Judge, Question
from custosd.services.examinations import Examination
from custosd.services.guardian import Guardian, GuardianPorts, GuardianSetup, guard_trajectories
from custosd.services.purse import Purse

from .conftest import failing, opened, step

GOOD = Judgement(Standing.PROGRESSING, confidence=0.8)


class SlowContext:
    """One part answers, one never does."""

    async def part(self, name: str, agent: AgentView) -> ContextPart:
        if name == "changed_files":
            await trio.sleep_forever()
        return ContextPart(name, "the tail")


class Fleet:
    """A guardian over agents that exist in memory only."""

    def __init__(
        self, now_utc: Callable[[], datetime], judge: Judge, setup: GuardianSetup | None = None
    ) -> None:
        self.now_utc = now_utc
        self.store = MemoryStore()
        self.view = FleetView()
        facts_in, self._facts = trio.open_memory_channel[Fact](100_000)
        self.setup = setup or GuardianSetup(GuardianLimits(grace_s=0), DetectorLimits())
        ports = GuardianPorts(self.store, judge, SlowContext(), MsgpackCodec(), now_utc)
        self.folds = Folds(hot=10_000)
        self.guardian = Guardian(ports, self.setup, self.folds, facts_in, Pulse("guardian", 0.0))
        self._made = 0
        self.facts: list[Fact] = []

    def tell(self, *facts: Fact) -> None:
        entries = []
        for fact in facts:
            self._made += 1
            entries.append(Entry(f"e{self._made:05}", self.now_utc(), fact))
        self.view = self.view.after(entries)

    def grow(self, name: str, *events: TranscriptEvent, run: str = "", parent: str = "") -> None:
        ref = AgentRef(AgentId(name), RunId(run or name))
        fold = self.folds.get(ref)
        if fold is None:
            fold = Trajectory()
            self.tell(AgentSeen(ref, "t", f"/t/{name}", parent, self.now_utc()))
        for event in events:
            fold.advance(event)
        self.folds.keep_dirty(ref, fold)
        self.tell(TrajectoryAdvanced(ref, fold.digest(), len(events), self.now_utc()))

    async def sweep(self) -> SweepFinished:
        finished = await self.guardian.sweep(self.view)
        while True:
            try:
                fact = self._facts.receive_nowait()
            except trio.WouldBlock:
                return finished
            self.facts.append(fact)
            self.tell(fact)

    def verdicts(self) -> list[Verdict]:
        return [f.verdict for f in self.facts if isinstance(f, VerdictReached)]

    def held(self, name: str) -> Standing:
        return self.view.agents[AgentId(name)].standing


async def test_a_fleet_in_which_nothing_happens_costs_no_call_over_a_virtual_day(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    judge = ScriptedJudge([GOOD])
    fleet = Fleet(now_utc, judge)
    for n in range(20):
        fleet.grow(f"a{n}", *opened(f"a{n}", f"Goal number {n}"), step(1))
    await fleet.sweep()
    asked = len(judge.asked)
    assert asked == 20
    for _ in range(24 * 60):
        await trio.sleep(60)
        await fleet.sweep()
    # Silence itself was news once; after that nothing was.
    assert len(judge.asked) <= 2 * asked
    before = len(judge.asked)
    for _ in range(24 * 60):
        await trio.sleep(60)
        assert (await fleet.sweep()).due == 0
    assert len(judge.asked) == before


async def test_a_looping_agent_is_held_to_be_stuck_after_two_sweeps_that_agree(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("loop", *opened("loop"), *(failing(n) for n in range(6)))
    await fleet.sweep()
    assert fleet.verdicts()[-1].judgement.standing is Standing.STUCK
    assert fleet.held("loop") is not Standing.STUCK
    await trio.sleep(60)
    await fleet.sweep()
    assert fleet.held("loop") is Standing.STUCK
    assert len(fleet.verdicts()) == 1, "the second sweep confirms without asking again"


async def test_a_verdict_names_the_steps_that_show_it(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("loop", *opened("loop"), *(failing(n) for n in range(6)))
    await fleet.sweep()
    verdict = fleet.verdicts()[-1]
    assert verdict.judgement.evidence
    assert all(0 <= n < verdict.steps for n in verdict.judgement.evidence)


async def test_a_judge_that_fails_makes_the_verdict_unknown_with_the_reason(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """Never "fine", and what was held before is not forgotten."""
    judge = ScriptedJudge([GOOD, JudgeError("provider_down")])
    fleet = Fleet(now_utc, judge)
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    await fleet.sweep()
    assert fleet.held("a") is Standing.PROGRESSING
    fleet.grow("a", Said("", "Done.", final=True))
    finished = await fleet.sweep()
    verdict = fleet.verdicts()[-1]
    assert verdict.judgement.standing is Standing.UNKNOWN
    assert verdict.judgement.unknown_reason == "provider_down"
    assert (finished.judged, finished.failed) == (0, 1)
    assert fleet.held("a") is Standing.PROGRESSING


async def test_a_question_without_an_answer_is_asked_again(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    judge = ScriptedJudge([JudgeError("provider_down"), GOOD])
    fleet = Fleet(now_utc, judge)
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    await fleet.sweep()
    assert len(judge.asked) == 2
    assert fleet.verdicts()[-1].judgement.standing is Standing.PROGRESSING


async def test_a_judge_that_is_never_to_be_had_is_asked_ever_more_rarely(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """An agent that rests costs about nothing, also where each answer is paid for nothing."""
    judge = ScriptedJudge([JudgeError("model_malformed")])
    fleet = Fleet(now_utc, judge)
    fleet.grow("a", *opened("a"), step(1))
    asked_at: list[float] = []
    for _ in range(24 * 60):
        before = len(judge.asked)
        await fleet.sweep()
        asked_at += [trio.current_time()] * (len(judge.asked) - before)
        await trio.sleep(60)
    pauses = [after - before for before, after in pairwise(asked_at)]
    assert pauses[:4] == [60, 60, 120, 240]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_RETRY_S

    # Once it has grown, it is asked about at the cadence again.
    fleet.grow("a", step(2), step(3))
    before = len(judge.asked)
    for _ in range(2 * int(fleet.setup.limits.cadence_s) // 60):
        await fleet.sweep()
        await trio.sleep(60)
    assert 1 <= len(judge.asked) - before <= 3


async def test_a_judge_that_never_answers_is_cut_off(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, ScriptedJudge([None]))
    fleet.grow("a", *opened("a"), step(1))
    started_at = trio.current_time()
    await fleet.sweep()
    assert trio.current_time() - started_at == fleet.setup.judge_timeout_s
    assert fleet.verdicts()[-1].judgement.unknown_reason == "timeout"


async def test_a_judge_that_is_too_slow_is_accounted_for_as_failed_and_a_stop_as_cancelled(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """Our own limit of time is the judge's failure; our own end is nobody's."""
    fleet = Fleet(now_utc, ScriptedJudge([None]))
    fleet.grow("a", *opened("a"), step(1))
    with in_force(Monitor()) as monitor:
        await fleet.sweep()
        with trio.move_on_after(1):
            await fleet.sweep()
    (judge,) = (row for row in monitor.summary() if row.name == "judge")
    assert (judge.ok, judge.errors, judge.cancelled) == (0, {"JudgeError": 1}, 1)


async def test_a_sweep_counts_what_a_call_that_was_cut_off_is_held_to_have_cost(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    spends = Purse(MemorySpends(), now_utc)
    asked: list[Reservation] = []

    class CutOff(ScriptedJudge):
        async def judge(self, question: Question) -> Answer:
            given = await spends.reserve(question.ref.agent, "m", 0.5)
            assert isinstance(given, Reservation)
            asked.append(given)
            spends.settle(given, given.usd)
            raise JudgeError("model_timeout")

    fleet = Fleet(now_utc, CutOff([GOOD]))
    fleet.guardian.ports = replace(fleet.guardian.ports, charged_usd=lambda: spends.judging_usd)
    fleet.grow("a", *opened("a", "Goal"), step(1))
    swept = await fleet.sweep()
    assert (swept.failed, swept.cost_usd, swept.coverage) == (1, 0.5, 0.0)
    pair = await spends.reserve(CONDUCTOR, "m", 0.25)
    assert isinstance(pair, Reservation)
    spends.settle(pair, 0.25)
    assert (spends.judging_usd, spends.pairs_usd) == (0.5, 0.25)


async def test_what_is_not_known_of_an_agent_covers_nobody(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """An answer that is no verdict is an answer, and no knowledge."""
    nothing = Judgement(Standing.UNKNOWN, unknown_reason="malformed_answer")
    fleet = Fleet(now_utc, ScriptedJudge(lambda q: GOOD if q.ref.agent == "b" else nothing))
    for name in ("a", "b"):
        fleet.grow(name, *opened(name, f"Goal of {name}"), step(1))
    assert (await fleet.sweep()).coverage == 0.5


async def test_what_waits_for_the_judge_is_told_beside_how_long_the_judge_took(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    setup = GuardianSetup(
        GuardianLimits(grace_s=0), DetectorLimits(), concurrency=3, judge_concurrency=1
    )
    fleet = Fleet(now_utc, ScriptedJudge([GOOD], delay_s=2.0), setup)
    for n in range(4):
        fleet.grow(f"a{n}", *opened(f"a{n}", f"Goal number {n}"), step(1))
    with in_force(Monitor()) as monitor:
        await fleet.sweep()
    rows = {row.name: row for row in monitor.summary()}
    # Three at once are analysed, one at once is asked about: 0 + 2 + 4 + 4 seconds in line.
    assert rows["judge"].mean_s == pytest.approx(2.0)
    assert rows["judge"].queued_mean_s == pytest.approx(2.5)
    assert rows["analysis"].queued_longest_s == pytest.approx(2.0)
    assert rows["folds"].resources == {"hits": 4.0, "misses": 0.0}
    assert rows["signals"].resources == {"runs": 4.0}


async def test_no_more_questions_are_open_at_once_than_allowed(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """Forty agents, five at a time, two seconds each: sixteen seconds."""
    fleet = Fleet(now_utc, ScriptedJudge([GOOD], delay_s=2.0))
    for n in range(40):
        fleet.grow(f"a{n}", *opened(f"a{n}", f"Goal number {n}"), step(1))
    finished = await fleet.sweep()
    assert finished.duration_s == 16.0


async def test_a_part_of_the_context_that_does_not_come_is_absent_and_named(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    judge = ScriptedJudge([GOOD], wants=("verdicts", "transcript_tail", "changed_files"))
    fleet = Fleet(now_utc, judge)
    fleet.store.fail_with(StoreUnavailable("away"))
    fleet.grow("a", *opened("a"), step(1))
    with capture_logs():
        await fleet.sweep()
    context = {part.name: part for part in judge.asked[0].context}
    assert context["transcript_tail"].text == "the tail"
    assert context["changed_files"].text is None
    assert context["changed_files"].why_absent == "timeout"
    assert context["verdicts"].why_absent == "store_unavailable"
    assert fleet.verdicts()[0].absent == ("changed_files", "verdicts")


async def test_an_impossible_answer_is_not_believed(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, ScriptedJudge([Judgement(Standing.PROGRESSING, alignment=7.0)]))
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    assert fleet.verdicts()[0].judgement.unknown_reason == "impossible_answer"


async def test_a_newcomer_is_judged_but_not_to_be_steered(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    urgent = Judgement(
        Standing.STUCK,
        needs_steering=True,
        steering_kind=SteeringKind.CORRECTION,
        steering_reason=SteeringReason.STUCK,
        message="Stop.",
    )
    setup = GuardianSetup(GuardianLimits(grace_s=60.0), DetectorLimits())
    fleet = Fleet(now_utc, ScriptedJudge([urgent]), setup)
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    assert not fleet.verdicts()[-1].judgement.needs_steering
    await trio.sleep(60)
    fleet.grow("a", Said("", "Done.", final=True))
    await fleet.sweep()
    assert fleet.verdicts()[-1].judgement.needs_steering


async def test_after_a_restart_nothing_is_asked_again_that_was_answered(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    first = Fleet(now_utc, ScriptedJudge([GOOD]))
    for n in range(10):
        first.grow(f"a{n}", *opened(f"a{n}", f"Goal number {n}"), step(1))
    await first.sweep()
    await first.sweep()
    judge = ScriptedJudge([GOOD])
    second = Fleet(now_utc, judge)
    second.view, second.folds = first.view, first.folds
    second.guardian.remember(second.view)
    assert (await second.sweep()).due == 0
    assert judge.asked == []


GOAL = "Write temperature.py that converts between Celsius and Kelvin, with tests"


def writing(name: str, n: int = 1) -> TranscriptEvent:
    return step(
        n,
        "write",
        f"ok {n}",
        kind=StepKind.EDIT,
        files=(f"/{name}/temperature.py",),
        edits=(EditRange(f"/{name}/temperature.py", 1, 9, created=True),),
        changes_state=True,
    )


async def test_two_agents_with_one_goal_are_said_to_duplicate(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    for name in ("one", "two"):
        fleet.grow(name, *opened(name, GOAL), writing(name))
    await fleet.sweep()
    await fleet.sweep()
    assert [v.judgement.standing for v in fleet.verdicts()] == [Standing.DUPLICATING] * 2
    assert {f.ref.agent for f in fleet.facts if isinstance(f, StandingChanged)} == {"one", "two"}


async def test_a_twin_that_comes_later_is_news_to_the_one_that_did_not_change(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("one", *opened("one", GOAL), writing("one"))
    for _ in range(3):
        await fleet.sweep()
    fleet.grow("two", *opened("two", GOAL), writing("two"))
    for _ in range(3):
        await fleet.sweep()
    assert fleet.held("one") is fleet.held("two") is Standing.DUPLICATING
    assert (await fleet.sweep()).due == 0
    fleet.grow("two", Ended("", RunEnd.FINISHED))
    for _ in range(3):
        await fleet.sweep()
    assert fleet.held("one") is Standing.PROGRESSING


@pytest.mark.parametrize("end", [(Ended("", RunEnd.ABORTED),), ()])
async def test_work_that_ended_or_rests_for_an_hour_is_not_duplicated(
    end: tuple[TranscriptEvent, ...],
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("one", *opened("one", GOAL), writing("one"), *end)
    await fleet.sweep()
    await trio.sleep(3_601)
    fleet.grow("two", *opened("two", GOAL), writing("two"))
    await fleet.sweep()
    await fleet.sweep()
    assert fleet.held("two") is Standing.PROGRESSING


async def test_who_takes_up_what_another_gave_up_does_not_duplicate_it(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    words = "I could not get the tests to pass; it is not done."
    fleet.grow("one", *opened("one", GOAL), writing("one"), Said("", words, final=True))
    fleet.grow("two", *opened("two", GOAL), writing("two"))
    for _ in range(3):
        await fleet.sweep()
    assert fleet.held("two") is Standing.PROGRESSING
    fleet.grow("one", Asked("", "Try it once more."), writing("one", 2))
    for _ in range(3):
        await fleet.sweep()
    assert fleet.held("two") is Standing.DUPLICATING


async def test_who_takes_up_the_work_of_the_dead_does_not_duplicate_it(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("one", *opened("one", GOAL), writing("one"))
    state, end = AgentState.RUNNING, AgentState.UNRESPONSIVE
    fleet.tell(LifeChanged(AgentId("one"), 0, state, end, Condition.DEAD, Value.BAD, "exit"))
    fleet.grow("two", *opened("two", GOAL), writing("two"))
    for _ in range(3):
        await fleet.sweep()
    assert fleet.held("two") is Standing.PROGRESSING


async def test_a_helper_does_not_duplicate_the_agent_that_sent_it(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("one", *opened("one", GOAL), writing("one"))
    fleet.grow("one/a", *opened("one", GOAL), writing("one"), parent="one")
    await fleet.sweep()
    assert {v.judgement.standing for v in fleet.verdicts()} == {Standing.PROGRESSING}


async def test_a_stored_fold_that_cannot_be_read_leaves_only_its_agent_out(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("bad", *opened("bad"), step(1))
    fleet.grow("good", *opened("good"), step(1))
    ref = AgentRef(AgentId("bad"), RunId("bad"))
    fleet.store = Damaged(ref)
    fleet.guardian.ports = replace(fleet.guardian.ports, store=fleet.store)
    fleet.folds.forget(ref)
    with capture_logs() as logs:
        for _ in range(3):
            finished = await fleet.sweep()
        assert finished.due == 0, "it is not fetched again and again"
        fleet.tell(TrajectoryAdvanced(ref, fleet.view.agents[ref.agent].digest, 0, now_utc()))  # type: ignore[arg-type]
    assert [v.ref.agent for v in fleet.verdicts()] == ["good"]
    assert [line["agent"] for line in logs if line["event"] == "trajectory.discarded"] == ["bad"]
    fleet.grow("bad", *opened("bad"), step(1), step(2))
    await fleet.sweep()
    assert fleet.verdicts()[-1].ref == ref, "folded anew, it is judged again"


class Damaged(MemoryStore):
    """Has bytes of a fold that no version of ours wrote."""

    def __init__(self, ref: AgentRef) -> None:
        super().__init__()
        self._ref = ref

    async def trajectories(self, refs: Collection[AgentRef]) -> Mapping[AgentRef, bytes]:
        return {self._ref: b"?"} if self._ref in refs else {}


async def test_an_agreement_in_progress_goes_on_after_a_restart(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("loop", *opened("loop"), *(failing(n) for n in range(6)))
    await fleet.sweep()
    second = restarted(fleet, RulesJudge())
    await second.sweep()
    assert second.held("loop") is Standing.STUCK
    assert second.verdicts() == []


def restarted(fleet: Fleet, judge: Judge) -> Fleet:
    second = Fleet(fleet.now_utc, judge, fleet.setup)
    second.view = fleet.view
    second.folds = second.guardian.folds = fleet.folds
    second.guardian.remember(second.view)
    return second


async def test_what_got_no_answer_is_asked_again_after_a_restart(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, ScriptedJudge([JudgeError("provider_down")]))
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    judge = ScriptedJudge([GOOD])
    await restarted(fleet, judge).sweep()
    assert len(judge.asked) == 1


async def test_a_new_run_of_an_agent_is_judged_without_the_memory_of_the_old_one(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("loop", *opened("loop"), *(failing(n) for n in range(6)))
    await fleet.sweep()
    await fleet.sweep()
    assert fleet.held("loop") is Standing.STUCK
    fleet.grow("loop", *opened("second"), *(failing(n) for n in range(9)), run="second")
    await fleet.sweep()
    assert fleet.held("loop") is Standing.UNKNOWN
    await fleet.sweep()
    assert fleet.held("loop") is Standing.STUCK


async def test_nothing_is_kept_of_an_agent_that_left_the_view(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("one", *opened("one", GOAL), writing("one"))
    await fleet.sweep()
    assert list(fleet.guardian.memos)
    fleet.tell(AgentForgotten(AgentRef(AgentId("one"), RunId("one"))))
    await fleet.sweep()
    assert fleet.guardian.memos == {}
    assert fleet.guardian._watch.runs() == []
    assert list(fleet.guardian._works) == []


async def test_a_trajectory_that_changed_does_not_agree_with_what_was_said_before(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """It is asked about at once, and the new answer counts."""
    stuck = Judgement(Standing.STUCK, confidence=0.6)
    fleet = Fleet(now_utc, ScriptedJudge([stuck, GOOD]))
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    fleet.grow("a", step(2, "cat b.py", "something else"))
    await fleet.sweep()
    assert [v.judgement.standing for v in fleet.verdicts()] == [
        Standing.STUCK,
        Standing.PROGRESSING,
    ]
    assert fleet.held("a") is Standing.PROGRESSING


async def test_a_change_that_is_not_worth_asking_about_changes_nothing_that_is_held(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, ScriptedJudge([GOOD]))
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    memo = fleet.guardian.memos[AgentRef(AgentId("a"), RunId("a"))]
    fleet.grow("a", step(2, "cat b.py", "something else"))
    await fleet.sweep()
    after = fleet.guardian.memos[AgentRef(AgentId("a"), RunId("a"))]
    assert len(fleet.verdicts()) == 1
    assert after.agreed == memo.agreed


@pytest.mark.parametrize("restart", [False, True])
async def test_steering_that_the_grace_held_back_is_asked_for_when_it_ends(
    restart: bool,  # noqa: FBT001 - a parameter of the test
    autojump_clock: trio.testing.MockClock,
    now_utc: Callable[[], datetime],
) -> None:
    setup = GuardianSetup(GuardianLimits(grace_s=60.0), DetectorLimits())
    fleet = Fleet(now_utc, RulesJudge(), setup)
    fleet.grow("loop", *opened("loop"), *(failing(n) for n in range(10)))
    await fleet.sweep()
    await fleet.sweep()
    if restart:
        fleet = restarted(fleet, RulesJudge())
    for _ in range(5):
        await trio.sleep(60)
        await fleet.sweep()
    steered = [v.judgement.needs_steering for v in fleet.verdicts()]
    assert steered == ([True] if restart else [False, True])


async def test_growth_that_says_nothing_ends_a_silence_all_the_same(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    await trio.sleep(1_000)
    await fleet.sweep()
    assert fleet.held("a") is Standing.SILENT
    fleet.grow("a", Spent("", Usage(10, 10)))
    await trio.sleep(60)
    await fleet.sweep()
    assert fleet.held("a") is Standing.PROGRESSING


class JumpingClock:
    """A wall clock that can be set."""

    def __init__(self, now_utc: Callable[[], datetime]) -> None:
        self._now_utc = now_utc
        self.off = timedelta(0)

    def __call__(self) -> datetime:
        return self._now_utc() + self.off


async def test_a_wall_clock_set_forward_makes_nobody_silent(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    clock = JumpingClock(now_utc)
    fleet = Fleet(clock, RulesJudge())
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    await trio.sleep(30)
    fleet.grow("a", step(2, "cat b.py", "something else"))
    await trio.sleep(30)
    clock.off = timedelta(hours=1)
    await fleet.sweep()
    await trio.sleep(60)
    await fleet.sweep()
    assert fleet.held("a") is Standing.PROGRESSING
    await trio.sleep(900)
    await fleet.sweep()
    assert fleet.held("a") is Standing.SILENT


async def test_a_wall_clock_set_back_hides_no_silence(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    clock = JumpingClock(now_utc)
    fleet = Fleet(clock, RulesJudge())
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    clock.off = timedelta(hours=-1)
    await trio.sleep(900)
    await fleet.sweep()
    assert fleet.held("a") is Standing.SILENT


async def test_the_silence_before_a_start_counts_also_once_its_last_words_are_settled(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    fleet.grow("a", *opened("a"), step(1), Said("", "Here is the list."))
    before = fleet.view.agents[AgentId("a")]
    await trio.sleep(7_200)
    await fleet.sweep()
    ref = before.ref
    fold = fleet.folds.get(ref)
    assert fold is not None
    fold.settle()
    assert before.grown_utc is not None
    fleet.tell(TrajectoryAdvanced(ref, fold.digest(), 0, before.grown_utc))
    await fleet.sweep()
    assert "120 min" in fleet.verdicts()[-1].judgement.summary


async def test_an_error_of_a_judge_that_is_not_its_own_kind_is_a_defect_and_propagates(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    def broken(_: Question) -> Judgement:
        raise ZeroDivisionError

    fleet = Fleet(now_utc, ScriptedJudge(broken))
    fleet.grow("a", *opened("a"), step(1))
    with pytest.raises(ExceptionGroup) as raised:
        await fleet.sweep()
    assert raised.value.subgroup(ZeroDivisionError) is not None


async def test_over_a_day_sweeps_keep_to_their_times_however_long_answers_take(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime], nursery: trio.Nursery
) -> None:
    """One that takes longer than the interval stands for those that it missed, and no more."""
    judge, looks_at = ScriptedJudge([GOOD], delay_s=7.0), list[float]()
    fleet = Fleet(now_utc, judge)
    start = trio.current_time()

    def view() -> FleetView:
        looks_at.append(trio.current_time() - start)
        return fleet.view

    await nursery.start(guard_trajectories, fleet.guardian, view, 60.0)
    for hour in range(24):
        judge._delay_s = 58.0 if hour % 6 else 7.0
        fleet.grow(f"a{hour}", *opened(f"a{hour}", f"Goal number {hour}"), step(1))
        await trio.sleep(3_600)
    grid = [60 * n for n in range(24 * 60)]
    assert looks_at[: 24 * 60] == pytest.approx(grid, abs=1e-3)


async def test_a_sweep_longer_than_the_interval_stands_for_those_that_it_missed(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime], nursery: trio.Nursery
) -> None:
    setup = GuardianSetup(
        GuardianLimits(grace_s=0),
        DetectorLimits(),
        concurrency=1,
        judge_concurrency=1,
        judge_timeout_s=400.0,
    )
    judge = ScriptedJudge([GOOD], delay_s=200.0)
    fleet = Fleet(now_utc, judge, setup)
    fleet.grow("a", *opened("a"), step(1))
    start = trio.current_time()
    with capture_logs() as logs:
        await nursery.start(guard_trajectories, fleet.guardian, lambda: fleet.view, 60.0)
        assert trio.current_time() - start == 200
        await trio.sleep_until(start + 301)
    swept = [line["coalesced"] for line in logs if line["event"] == "sweep.finished"]
    assert swept == [0, 2, 0, 0]


async def test_an_examination_takes_two_round_trips_however_many_agents_are_named(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    class Counting(MemoryStore):
        asked: list[tuple[str, int]] = []  # noqa: RUF012 - of this test alone

        async def trajectories(self, refs: Collection[AgentRef]) -> Mapping[AgentRef, bytes]:
            self.asked.append(("trajectories", len(refs)))
            return await super().trajectories(refs)

        async def recent_verdicts(
            self, agents: Collection[AgentId], limit: int
        ) -> Mapping[AgentId, tuple[Verdict, ...]]:
            self.asked.append(("verdicts", len(agents)))
            return await super().recent_verdicts(agents, limit)

    fleet = Fleet(now_utc, ScriptedJudge([GOOD], wants=["verdicts"]))
    names = [AgentId(f"a{n}") for n in range(20)]
    for name in names:
        fleet.grow(name, *opened(name, f"Goal of {name}"), step(1))
    await fleet.sweep()
    store = Counting()
    fleet.guardian.ports = replace(fleet.guardian.ports, store=store)
    fleet.guardian.folds = Folds(hot=10)
    told: dict[AgentId, Examination] = {}
    await fleet.guardian.examine(fleet.view, names, lambda one: told.update({one.agent: one}))
    # Nothing of them is stored: each is told of, and none is judged on nothing.
    assert {one.why for one in told.values()} == {"store_unavailable"}
    assert store.asked == [("trajectories", 20)]
    fleet.guardian.folds = fleet.folds
    await fleet.guardian.examine(fleet.view, names, lambda one: told.update({one.agent: one}))
    assert {one.why for one in told.values()} == {""}
    assert store.asked == [("trajectories", 20), ("verdicts", 20)]


async def test_a_verdict_that_was_asked_for_at_once_counts_as_any_other(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    """The next sweep does not ask the same again, and agrees with it."""
    judge = ScriptedJudge([GOOD])
    fleet = Fleet(now_utc, judge)
    fleet.grow("loop", *opened("loop"), *(failing(n) for n in range(6)))
    await fleet.sweep()
    judge._script = lambda _: Judgement(Standing.STUCK)
    await fleet.guardian.examine(fleet.view, [AgentId("loop")], lambda _: None)
    assert len(judge.asked) == 2
    # Another question to a judge that remembers its answers, and the same one on record.
    assert judge.asked[0].input_hash != judge.asked[1].input_hash
    await trio.sleep(60)
    await fleet.sweep()
    hashes = [verdict.by.input_hash for verdict in fleet.verdicts()]
    assert hashes[0] == hashes[1]
    assert len(judge.asked) == 2
    assert fleet.held("loop") is Standing.STUCK


@pytest.mark.parametrize("held", ["analyses", "questions"])
async def test_a_sweeps_analysis_that_somebody_asks_for_goes_before_the_rest_of_the_sweep(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime], held: str
) -> None:
    """Whichever of the two gates it waits at: nothing more is asked, but it is asked sooner."""
    at_once = 1 if held == "analyses" else 4
    setup = GuardianSetup(
        GuardianLimits(grace_s=0), DetectorLimits(), concurrency=4, judge_concurrency=1
    )
    fleet = Fleet(now_utc, judge := ScriptedJudge([GOOD], delay_s=10.0), setup)
    fleet.guardian._analyses = Gate(at_once)
    for name in "abcd":
        fleet.grow(name, *opened(name, f"Goal of {name}"), step(1))
    told: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.sweep)
        await trio.sleep(1)
        waiting = [AgentId(name) for name in "abcd" if name != judge.asked[0].ref.agent]
        last = waiting[-1]
        await fleet.guardian.examine(fleet.view, [last], lambda _: told.append(trio.current_time()))
    assert [question.ref.agent for question in judge.asked][1] == last
    assert len(judge.asked) == 4
    assert len(told) == 1


async def test_an_agent_that_begins_anew_while_it_is_examined_harms_nothing(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, ScriptedJudge([GOOD], delay_s=5.0))
    fleet.grow("a", *opened("a"), step(1))
    await fleet.sweep()
    told: list[Examination] = []
    async with trio.open_nursery() as nursery:
        names = [AgentId("a")]
        nursery.start_soon(fleet.guardian.examine, fleet.view, names, told.append)
        await trio.sleep(1)
        fleet.grow("a", *opened("a"), step(1), run="second")
        await fleet.sweep()
    assert [(one.why, one.verdict is not None) for one in told] == [("", True)]
