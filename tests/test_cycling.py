"""The monitoring cycle in the whole daemon: each part on its own times, whatever the others do."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.cycling_daemon import GOOD, STUCK, URGENT, Daemon, of, paid

from custosd.adapters.judges.pair_scripted import ScriptedPairJudge
from custosd.adapters.judges.scripted import ScriptedJudge
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.config.settings import GuardianSettings
from custosd.core.acts import Act, ActOutcome
from custosd.core.errors import JudgeError
from custosd.core.facts import (
    ActPerformed,
    ConductorSwept,
    Escalated,
    InterventionChanged,
    SweepFinished,
    VerdictReached,
)
from custosd.core.findings import Finding
from custosd.core.pairs import PairJudgement
from custosd.core.steering import InterventionState
from custosd.ports import PairQuestion, Question

Clock = trio.testing.MockClock
HOURS_S = 7_200
PERIODS = {
    "sweep.finished": 60,
    "fleet.swept": 300,
    "health.swept": 30,
    "heartbeats.swept": 10,
}


class Times:
    """When which line came, on the virtual clock."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}
        self.lines: dict[str, list[Any]] = {}

    def __call__(self, _logger: Any, _method: str, line: Any) -> Any:
        self.of.setdefault(line["event"], []).append(trio.current_time())
        self.lines.setdefault(line["event"], []).append(line)
        return line


def late_s(times: Sequence[float], period_s: float) -> float:
    """How far from the grid of its first time the worst of these is."""
    first = times[0]
    return max(abs((at - first + period_s / 2) % period_s - period_s / 2) for at in times)


@pytest.fixture
def times() -> Any:
    found = Times()
    with capture_logs(processors=[found]):
        yield found


async def test_each_part_keeps_to_its_times_and_says_one_line_each_time(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([GOOD], delay_s=7.0), ["ada", "bob"])
    async with daemon.run():
        daemon.begin("ada")
        daemon.begin("bob")
        for _ in range(8):
            daemon.act("ada")
            await trio.sleep(HOURS_S / 8)
    for event, period_s in PERIODS.items():
        assert len(times.of[event]) == pytest.approx(HOURS_S / period_s, abs=2), event
        # A sweep's line comes at its end, and these take up to two answers of seven seconds.
        most_s = 8.0 if event == "sweep.finished" else 0.01
        assert late_s(times.of[event], period_s) < most_s, event


async def test_a_guardian_that_hangs_holds_up_nobody_else(
    autojump_clock: Clock, times: Times
) -> None:
    guardian = GuardianSettings(
        grace_s=0.0, concurrency=1, judge_concurrency=1, judge_timeout_s=100.0
    )
    crowd = [f"a{n}" for n in range(13)]
    daemon = Daemon(ScriptedJudge([None]), crowd, guardian=guardian)
    async with daemon.run():
        for name in crowd:
            daemon.begin(name)
        await trio.sleep(70)
        before = {event: len(times.of[event]) for event in PERIODS}
        await trio.sleep(900)
        got = {event: len(times.of[event]) - before[event] for event in PERIODS}
        assert got["sweep.finished"] == 0
        assert got["fleet.swept"] == 3
        assert got["health.swept"] == 30
        assert got["heartbeats.swept"] == 90
        # Each question is cut off at its limit, and one sweep stands for all that were missed.
        await trio.sleep(700)
        long, *_ = [line for line in times.lines["sweep.finished"] if line["asked"]]
        assert long["duration_s"] == pytest.approx(1_300)
        assert long["failed"] == 13
        await trio.sleep(1_300)
    late = [line["coalesced"] for line in times.lines["sweep.finished"] if line["coalesced"]]
    assert late[0] == 20


async def test_a_conductor_that_fails_and_one_that_is_slow_hold_up_nobody_else(
    autojump_clock: Clock, times: Times
) -> None:
    def broken(_question: PairQuestion) -> PairJudgement | None:
        raise ValueError("a defect of the judge of pairs")

    goals = "Rewrite the zebra importer so that broken rows are skipped"
    daemon = Daemon(ScriptedJudge([GOOD]), ["ada", "bob"], pair_judge=ScriptedPairJudge(broken))
    async with daemon.run():
        await trio.sleep(10)
        for name in ("ada", "bob"):
            daemon.begin(name, goals)
            daemon.act(name, "src/a.py")
        before = len(times.of["sweep.finished"])
        # It fails at its time, and is run again for as long as that takes.
        await trio.sleep(303)
        assert {line["service"] for line in times.lines["service.failed"]} == {"conductor"}
        assert len(times.of["sweep.finished"]) - before == 5
        await trio.sleep(1_500)
        assert len(times.of["service.failed"]) > 20
        assert all(line["again_in_s"] <= 60 for line in times.lines["service.failed"])
        assert len(times.of["sweep.finished"]) - before == 30
        assert daemon.view is not None
        assert daemon.view.value.hands.concerns["service:conductor"].kind == "service_failing"
        daemon.pair_judge._script = lambda _: None  # type: ignore[attr-defined]
        await trio.sleep(600)
        assert "service:conductor" not in daemon.view.value.hands.concerns
        assert len(times.of["sweep.finished"]) - before == 40
        assert late_s(times.of["sweep.finished"], 60) < 0.01
        # The grid outlived the failures.
        assert late_s(times.of["health.swept"], 30) < 0.01
    told = [fact for fact in await daemon.facts(Escalated) if fact.concern == "service:conductor"]
    assert len(told) == 1


class BrokenStore(MemoryCoordination):
    """Has a defect that nothing translates."""

    async def findings(self, since_utc: datetime) -> tuple[Finding, ...]:
        raise ValueError(f"a defect that {since_utc} meets")


async def test_a_conductor_that_fails_from_the_first_puts_off_no_start(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([GOOD]), ["ada"], coordination=BrokenStore())
    with trio.fail_after(1_000):
        async with daemon.run():
            await trio.sleep(930)
    assert {line["service"] for line in times.lines["service.failed"]} == {"conductor"}
    assert len(times.of["sweep.finished"]) == 16


async def test_steering_follows_the_verdicts_of_a_sweep_and_all_is_on_record(
    autojump_clock: Clock, times: Times
) -> None:
    judge = ScriptedJudge(lambda asked: STUCK if asked.ref.agent == of("ada") else GOOD)
    daemon = Daemon(judge, ["ada", "bob"], mode="act")
    async with daemon.run():
        daemon.begin("ada")
        daemon.begin("bob")
        await trio.sleep(200)
        letters = daemon.channels[of("ada")].letters
    changed = await daemon.facts(InterventionChanged)
    states = [fact.after for fact in changed]
    assert (states[0], states[-1]) == (InterventionState.PROPOSED, InterventionState.QUEUED)
    assert {fact.agent for fact in changed} == {of("ada")}
    assert letters == []  # it is in the middle of a turn: what is not urgent waits
    assert len(await daemon.facts(SweepFinished)) == 4
    assert len(await daemon.facts(ConductorSwept)) == 1
    assert len(await daemon.facts(VerdictReached)) >= 2


async def test_a_sweep_says_what_its_answers_cost_and_whom_it_covers(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([paid(GOOD, 0.25)]), ["ada", "bob"])
    async with daemon.run():
        await trio.sleep(5)
        daemon.begin("ada")
        daemon.begin("bob")
        await trio.sleep(118)
    lines = times.lines["sweep.finished"]
    assert [line["cost_usd"] for line in lines] == [0.0, 0.5, 0.0]
    assert [line["coverage"] for line in lines] == [None, 1.0, 1.0]


# --- one cycle at once ----------------------------------------------------------------------


async def test_a_cycle_that_is_asked_for_sweeps_at_once_and_tells_what_came_of_it(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([paid(GOOD, 0.25)], delay_s=5.0), ["ada", "bob"])
    async with daemon.run():
        await trio.sleep(5)
        daemon.begin("ada")
        daemon.begin("bob")
        await trio.sleep(1)
        began_at = trio.current_time()
        answer = await daemon.ask(Act.CYCLE, arguments={"deadline_s": 30.0})
        assert trio.current_time() - began_at == pytest.approx(5.0, abs=0.1)
        await trio.sleep(100)
    assert answer.outcome is ActOutcome.DONE
    assert answer.detail["guardian"]["judged"] == 2  # type: ignore[index]
    assert answer.detail["cost_usd"] == 0.5
    assert answer.detail["conductor"]["agents"] == 2  # type: ignore[index]
    assert answer.detail["missing"] == []
    assert late_s([times.of["sweep.finished"][0], *times.of["sweep.finished"][2:]], 60) < 0.01
    (fact,) = await daemon.facts(ActPerformed)
    assert (fact.act, fact.author, fact.outcome) == (Act.CYCLE, "uid:7 (ada)", ActOutcome.DONE)
    assert fact.reason.startswith("2 of 2 agents judged; the fleet is ")


async def test_cycles_that_are_asked_for_together_are_one(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([GOOD], delay_s=5.0), ["ada"])
    async with daemon.run():
        await trio.sleep(5)
        daemon.begin("ada")
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(daemon.ask, Act.CYCLE)
                await trio.sleep(0.1)
        # One for the first, which saw what it asked about; one for all who came during it.
        assert len(times.of["sweep.finished"]) == 3


async def test_a_cycle_that_is_not_done_in_time_says_which_part_is_missing(
    autojump_clock: Clock, times: Times
) -> None:
    guardian = GuardianSettings(grace_s=0.0, judge_timeout_s=50.0)
    daemon = Daemon(ScriptedJudge([None]), ["ada"], guardian=guardian)
    async with daemon.run():
        await trio.sleep(5)
        daemon.begin("ada")
        await trio.sleep(1)
        began_at = trio.current_time()
        answer = await daemon.ask(Act.CYCLE, arguments={"deadline_s": 10.0})
        assert trio.current_time() - began_at == pytest.approx(10.0, abs=0.1)
        before = len(times.of["sweep.finished"])
        await trio.sleep(45)
        # The sweep that was begun went on to its end.
        assert len(times.of["sweep.finished"]) == before + 1
    assert answer.outcome is ActOutcome.PARTLY_DONE
    assert answer.detail["missing"] == [{"part": "guardian", "why": "deadline"}]
    assert "guardian" not in answer.detail
    assert "missing: guardian (deadline)" in answer.message


async def test_a_cycle_can_be_tried(autojump_clock: Clock, times: Times) -> None:
    daemon = Daemon(ScriptedJudge([GOOD]), ["ada"])
    async with daemon.run():
        await trio.sleep(5)
        before = len(times.of["sweep.finished"])
        answer = await daemon.ask(Act.CYCLE, dry_run=True)
        assert len(times.of["sweep.finished"]) == before
    assert answer.outcome is ActOutcome.WOULD_BE_DONE


# --- emergencies ----------------------------------------------------------------------------

FIVE = ("ada", "bob", "cyd", "dan", "eve")


async def test_named_agents_are_judged_at_once_beside_the_fleet_and_what_is_missing_is_named(
    autojump_clock: Clock, times: Times
) -> None:
    """Also what is not new, and though they were asked about a moment ago."""

    def judge(asked: Question) -> Any:
        return None if slow and asked.ref.agent == of("eve") else paid(GOOD, 0.5)

    slow = False
    daemon = Daemon(ScriptedJudge(judge, delay_s=2.0), FIVE)
    async with daemon.run():
        for name in FIVE:
            daemon.begin(name)
        await trio.sleep(125)
        slow = True
        swept = len(times.of["fleet.swept"])
        began_at = trio.current_time()
        answer = await daemon.emergency(*FIVE, "zed", deadline_s=10.0)
        assert trio.current_time() - began_at == pytest.approx(10.0, abs=0.1)
        assert len(times.of["fleet.swept"]) == swept + 1
    assert answer.outcome is ActOutcome.PARTLY_DONE
    analyses: Any = answer.detail["analyses"]
    assert [one["agent"] for one in analyses] == [of(name) for name in FIVE[:4]]
    # Together, and not one after the other: each waited for its own answer alone.
    assert all(one["latency_s"] == pytest.approx(2.0, abs=0.1) for one in analyses)
    missing: Any = answer.detail["missing"]
    assert [(one["agent"], one["why"]) for one in missing] == [
        ("zed", "unknown_agent"),
        (of("eve"), "deadline"),
    ]
    assert all(one["words"] for one in missing)
    assert answer.detail["cost_usd"] == 2.0
    fleet: Any = answer.detail["fleet"]
    assert fleet["agents"] == 5
    (fact,) = await daemon.facts(ActPerformed)
    assert (fact.act, fact.author, fact.outcome) == (
        Act.EMERGENCY,
        "uid:7 (ada)",
        ActOutcome.PARTLY_DONE,
    )
    assert fact.subject.split("\n") == [*map(of, FIVE), "zed"]
    assert "4 of 5 agents analysed" in fact.reason
    assert "eve (deadline)" in fact.reason
    (line,) = times.lines["emergency.ended"]
    assert (line["agents"], line["analysed"], line["missing"]) == (5, 4, 2)
    assert line["cost_usd"] == 2.0


async def test_an_analysis_past_the_deadline_goes_on_and_its_verdict_is_told(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([GOOD], delay_s=20.0), ["ada"])
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(125)
        before = len(times.of["verdict.reached"])
        answer = await daemon.emergency("ada", deadline_s=5.0)
        assert answer.outcome is ActOutcome.PARTLY_DONE
        await trio.sleep(16)
        assert len(times.of["verdict.reached"]) == before + 1


async def test_emergencies_for_one_agent_are_one_analysis(
    autojump_clock: Clock, times: Times
) -> None:
    judge = ScriptedJudge([GOOD], delay_s=5.0)
    daemon = Daemon(judge, ["ada", "bob"])
    async with daemon.run():
        daemon.begin("ada")
        daemon.begin("bob")
        await trio.sleep(125)
        judge.asked.clear()
        answers: list[Any] = []

        async def ask(*names: str) -> None:
            answers.append(await daemon.emergency(*names))

        async with trio.open_nursery() as nursery:
            for names in (("ada",), ("ada", "bob"), ("ada",)):
                nursery.start_soon(ask, *names)
                await trio.sleep(1)
        assert sorted(asked.ref.agent for asked in judge.asked) == [of("ada"), of("bob")]
        ids = {answer.detail["analyses"][0]["verdict"] for answer in answers}
        assert len(ids) == 1
        # What is over is no longer under way: the next one is another.
        judge.asked.clear()
        await daemon.emergency("ada")
        assert len(judge.asked) == 1


async def test_an_emergency_goes_before_what_a_sweep_has_waiting_and_within_its_limits(
    autojump_clock: Clock, times: Times
) -> None:
    guardian = GuardianSettings(grace_s=0.0, concurrency=4, judge_concurrency=1)
    crowd = [f"a{n}" for n in range(8)]
    judge = ScriptedJudge([GOOD], delay_s=10.0)
    daemon = Daemon(judge, ["ada", *crowd], guardian=guardian)
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(125)
        for name in crowd:
            daemon.begin(name)
        await trio.sleep(60)
        # A sweep is at the first of eight; four of them are let in, one is asked about.
        judge.asked.clear()
        answer = await daemon.emergency("ada", deadline_s=60.0)
        asked = [question.ref.agent for question in judge.asked]
        assert answer.outcome is ActOutcome.DONE
        assert asked.index(of("ada")) <= 1
        assert len(asked) <= 3


async def test_one_whose_analysis_is_under_way_is_not_asked_about_twice(
    autojump_clock: Clock, times: Times
) -> None:
    judge = ScriptedJudge([GOOD], delay_s=30.0)
    daemon = Daemon(judge, ["ada"])
    async with daemon.run():
        await trio.sleep(30)
        daemon.begin("ada")
        await trio.sleep(40)
        assert len(judge.asked) == 1
        answer = await daemon.emergency("ada")
        assert answer.outcome is ActOutcome.DONE
        assert len(judge.asked) == 1


async def test_a_sweep_does_not_ask_about_one_that_an_emergency_is_at(
    autojump_clock: Clock, times: Times
) -> None:
    judge = ScriptedJudge([GOOD], delay_s=50.0)
    daemon = Daemon(judge, ["ada"])
    async with daemon.run():
        await trio.sleep(30)
        daemon.begin("ada")
        await trio.sleep(1)
        # A sweep comes in the middle of it, and would ask about what is new.
        answer = await daemon.emergency("ada")
        assert answer.outcome is ActOutcome.DONE
        await trio.sleep(100)
        assert len(judge.asked) == 1


async def test_a_young_agent_is_judged_and_not_steered_and_that_is_said(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([URGENT]), ["ada"], "act", GuardianSettings(grace_s=300.0))
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(5)
        answer = await daemon.emergency("ada")
        (analysis,) = answer.detail["analyses"]  # type: ignore[misc]
        assert analysis["graced"] is True
        assert answer.detail["interventions"] == []
        assert daemon.channels[of("ada")].letters == []


async def test_a_hold_keeps_an_emergency_from_steering_and_is_named(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([URGENT]), ["ada"], mode="act")
    async with daemon.run():
        await daemon.ask(Act.ESTOP)
        daemon.begin("ada")
        await trio.sleep(5)
        answer = await daemon.emergency("ada")
        (told,) = answer.detail["interventions"]  # type: ignore[misc]
        assert (told["state"], told["waits_for"]) == ("not_proposed", "estop on fleet")
        await trio.sleep(60)
        assert daemon.channels[of("ada")].letters == []


async def test_a_failed_judge_and_a_missing_transcript_are_named_and_never_an_empty_value(
    autojump_clock: Clock, times: Times
) -> None:
    failing: dict[str, Exception] = {}

    def judge(asked: Question) -> Any:
        error = failing.get(asked.ref.agent)
        if error is not None and not isinstance(error, JudgeError):
            raise error
        return error or GOOD

    # A defect is there at once, and answers come later.
    daemon = Daemon(ScriptedJudge(judge, delay_s=3.0), ["ada", "bob", "cyd", "dan", "mute"])
    async with daemon.run():
        for name in ("ada", "bob", "cyd", "dan"):
            daemon.begin(name)
        await trio.sleep(125)
        failing |= {
            of("bob"): JudgeError("model_unavailable"),
            of("cyd"): JudgeError("model_no_money"),
            of("dan"): ZeroDivisionError("a defect"),
        }
        answer = await daemon.emergency("ada", "bob", "cyd", "dan", "mute")
        missing: Any = answer.detail["missing"]
        assert {(one["agent"], one["why"]) for one in missing} == {
            (of("bob"), "judge_failed"),
            (of("cyd"), "no_money"),
            (of("dan"), "defect"),
            (of("mute"), "no_transcript"),
        }
        analyses: Any = answer.detail["analyses"]
        assert [one["agent"] for one in analyses] == [of("ada")]
        assert "service.failed" not in times.of, "one agent's defect is not the guardian's"
        assert "examination.failed" in times.of


async def test_where_nothing_could_be_done_that_is_the_answer(
    autojump_clock: Clock, times: Times
) -> None:
    daemon = Daemon(ScriptedJudge([GOOD]), ["ada"])
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(5)
        answer = await daemon.emergency("zed", "yon")
        assert answer.outcome is ActOutcome.UNKNOWN_SUBJECT
        assert "'zed'" in answer.message
        assert "'yon'" in answer.message
        for wrong in ({"deadline_s": 0.5}, {"deadline_s": 301}, {"deadline": 5}):
            refused = await daemon.ask(Act.EMERGENCY, "ada", arguments=wrong)
            assert refused.outcome is ActOutcome.REFUSED
        assert (await daemon.ask(Act.EMERGENCY, "")).outcome is ActOutcome.REFUSED
        many = "\n".join(f"a{n}" for n in range(101))
        assert (await daemon.ask(Act.EMERGENCY, many)).outcome is ActOutcome.REFUSED


@pytest.mark.parametrize(
    ("mode", "state"),
    [("observe", "only_told"), ("suggest", "awaits_approval"), ("act", "delivered")],
)
async def test_what_a_verdict_asks_for_is_proposed_as_the_mode_says_and_urgency_needs_no_second(
    autojump_clock: Clock, times: Times, mode: str, state: str
) -> None:
    said = [GOOD]
    daemon = Daemon(ScriptedJudge(lambda _: said[0]), ["ada"], mode=mode)
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(125)
        said[0] = URGENT
        answer = await daemon.emergency("ada")
        assert answer.outcome is ActOutcome.DONE
        (told,) = answer.detail["interventions"]  # type: ignore[misc]
        assert (told["agent"], told["kind"]) == (of("ada"), "emergency")
        assert told["state"] in ({state, "queued"} if mode == "act" else {state})
        assert told["message"] == URGENT.message
        await trio.sleep(5)
        letters = [letter.id for letter in daemon.channels[of("ada")].letters]
        assert letters == ([told["id"]] if mode == "act" else [])
        if mode == "suggest":
            approved = await daemon.ask(Act.APPROVE, told["id"])
            assert approved.outcome is ActOutcome.DONE
            await trio.sleep(5)
            assert len(daemon.channels[of("ada")].letters) == 1


async def test_one_opinion_that_is_not_urgent_waits_for_a_second(
    autojump_clock: Clock, times: Times
) -> None:
    said = [GOOD]
    daemon = Daemon(ScriptedJudge(lambda _: said[0]), ["ada"], mode="act")
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(125)
        said[0] = STUCK
        answer = await daemon.emergency("ada")
        (told,) = answer.detail["interventions"]  # type: ignore[misc]
        assert told["state"] == "awaits_agreement"
        assert daemon.channels[of("ada")].letters == []


async def test_an_emergency_can_be_tried(autojump_clock: Clock, times: Times) -> None:
    judge = ScriptedJudge([GOOD])
    daemon = Daemon(judge, ["ada"])
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(125)
        judge.asked.clear()
        answer = await daemon.emergency("ada", "zed", dry_run=True)
        assert judge.asked == []
    assert answer.outcome is ActOutcome.WOULD_BE_DONE
    assert answer.detail["agents"] == [of("ada")]
    (missing,) = answer.detail["missing"]  # type: ignore[misc]
    assert missing["why"] == "unknown_agent"


async def test_an_emergency_while_the_guardian_is_run_anew_is_served_by_the_next_one(
    autojump_clock: Clock, times: Times
) -> None:
    judge = ScriptedJudge([GOOD], delay_s=10.0)
    daemon = Daemon(judge, ["ada"])
    async with daemon.run():
        daemon.begin("ada")
        await trio.sleep(125)
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await daemon.emergency("ada"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(3)
            daemon.guardian = GuardianSettings(grace_s=0.0, concurrency=9)
            await daemon.ask(Act.RELOAD)
        assert answers[0].outcome is ActOutcome.DONE
