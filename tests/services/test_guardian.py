"""Sweeps: who is asked about, how often, and what a failing judge comes to."""

from collections.abc import Callable
from datetime import datetime

import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.judges.scripted import ScriptedJudge
from custosd.adapters.memory import MemoryStore
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.detectors import DetectorLimits
from custosd.core.errors import JudgeError, StoreUnavailable
from custosd.core.facts import (
    AgentSeen,
    Entry,
    Fact,
    StandingChanged,
    SweepFinished,
    TrajectoryAdvanced,
    VerdictReached,
)
from custosd.core.folds import Folds
from custosd.core.guardian import GuardianLimits
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import Said, TranscriptEvent
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason, Verdict
from custosd.core.view import AgentView, FleetView
from custosd.flow.pulse import Pulse
from custosd.ports import ContextPart, Judge
from custosd.services.guardian import Guardian, GuardianPorts, GuardianSetup

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

    def grow(self, name: str, *events: TranscriptEvent) -> None:
        ref = AgentRef(AgentId(name), RunId(name))
        fold = self.folds.get(ref)
        if fold is None:
            fold = Trajectory()
            self.tell(AgentSeen(ref, "t", f"/t/{name}", "", self.now_utc()))
        for event in events:
            fold.advance(event)
        self.folds.keep(ref, fold)
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


async def test_a_judge_that_never_answers_is_cut_off(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, ScriptedJudge([None]))
    fleet.grow("a", *opened("a"), step(1))
    started_at = trio.current_time()
    await fleet.sweep()
    assert trio.current_time() - started_at == fleet.setup.judge_timeout_s
    assert fleet.verdicts()[-1].judgement.unknown_reason == "timeout"


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


async def test_two_agents_with_one_goal_and_the_same_files_are_said_to_duplicate(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    fleet = Fleet(now_utc, RulesJudge())
    from custosd.core.transcript import EditRange, StepKind

    for name in ("one", "two"):
        goal = "Write temperature.py that converts between Celsius and Kelvin, with tests"
        write = step(
            1,
            "write",
            "ok",
            kind=StepKind.EDIT,
            files=(f"/{name}/temperature.py",),
            edits=(EditRange(f"/{name}/temperature.py", 1, 9, created=True),),
            changes_state=True,
        )
        fleet.grow(name, *opened(name, goal), write)
    await fleet.sweep()
    await fleet.sweep()
    assert [v.judgement.standing for v in fleet.verdicts()] == [Standing.DUPLICATING] * 2
    assert {f.ref.agent for f in fleet.facts if isinstance(f, StandingChanged)} == {"one", "two"}
