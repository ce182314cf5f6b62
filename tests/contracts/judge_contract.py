"""What every `ports.Judge` promises; collected for each by a subclass with a fixture `judge`."""

import trio
import trio.testing

from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.detectors import DetectorLimits, question_hash, signals
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import Asked, Usage
from custosd.core.verdicts import Standing
from custosd.ports import Answer, ContextPart, Judge, Question

ADA = AgentRef(AgentId("ada"), RunId("1"))


def question(goal: str = "Fix src/parser.py", quiet_s: float = 0.0) -> Question:
    trajectory = Trajectory()
    trajectory.advance(Asked("", goal))
    found = signals(trajectory, DetectorLimits(), quiet_s)
    digest = trajectory.digest()
    return Question(
        ref=ADA,
        digest=digest,
        signals=found,
        quiet_s=quiet_s,
        context=(ContextPart("files", None, "timed out"),),
        input_hash=question_hash(digest, found),
    )


class JudgeContract:
    """Subclass with a fixture `judge`: one that answers without failing."""

    async def test_an_answer_is_consistent_in_itself(self, judge: Judge) -> None:
        answer = await judge.judge(question())
        verdict = answer.judgement
        assert isinstance(answer, Answer)
        assert answer.judge
        for share in (verdict.alignment, verdict.confidence):
            assert share is None or 0 <= share <= 1
        assert (verdict.standing is Standing.UNKNOWN) == bool(verdict.unknown_reason)
        assert verdict.needs_steering == (verdict.steering_kind is not None)
        assert verdict.needs_steering == (verdict.steering_reason is not None)
        assert bool(verdict.message) == verdict.needs_steering
        assert isinstance(answer.usage, Usage)

    async def test_questions_may_be_asked_at_once(self, judge: Judge) -> None:
        answers: list[Answer] = []

        async def ask(number: int) -> None:
            answers.append(await judge.judge(question(f"Fix file_{number}.py")))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
        assert len(answers) == 20

    async def test_a_cancelled_question_leaves_the_judge_usable(self, judge: Judge) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await judge.judge(question())
        answer = await judge.judge(question())
        assert answer.judgement.standing in Standing
