"""What every `ports.PairJudge` promises; collected for each by a subclass with `judge`."""

import trio

from custosd.core.agents import AgentId
from custosd.core.findings import FindingKind
from custosd.core.footprints import Clash
from custosd.core.pairs import Suspicion, Work, content_of
from custosd.core.transcript import Usage
from custosd.ports import PairJudge, PairQuestion


def question(likeness: float = 0.9, *, conflict: bool = False) -> PairQuestion:
    one, other = (Work(AgentId(name), "1", "Fix the parser of dates") for name in "ab")
    kind = FindingKind.CONFLICT if conflict else FindingKind.DUPLICATE
    met = Clash(3, 5, sure=True) if conflict else None
    suspicion = Suspicion(kind, one.agent, other.agent, likeness, ("src/a.py",), met)
    content = content_of(suspicion, {one.agent: one, other.agent: other})
    return PairQuestion(suspicion, one, other, content)


class PairJudgeContract:
    """Subclass with a fixture `judge`: one that answers without failing."""

    async def test_an_answer_is_consistent_in_itself(self, judge: PairJudge) -> None:
        for asked in (question(), question(0.1), question(conflict=True)):
            answer = await judge.compare(asked)
            assert answer.judge
            assert 0 <= answer.judgement.confidence <= 1
            assert isinstance(answer.usage, Usage)

    async def test_questions_may_be_asked_at_once(self, judge: PairJudge) -> None:
        answers: list[str] = []

        async def ask(number: int) -> None:
            answers.append((await judge.compare(question(number / 20))).judge)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
        assert len(answers) == 20

    async def test_a_cancelled_question_leaves_the_judge_usable(self, judge: PairJudge) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await judge.compare(question())
        assert (await judge.compare(question())).judge
