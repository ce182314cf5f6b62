"""Both judges of pairs keep the contract; the scripted one does as it is told."""

import pytest
import trio
import trio.testing
from tests.contracts.pair_judge_contract import PairJudgeContract, question

from custosd.adapters.judges.pair_rules import RulesPairJudge
from custosd.adapters.judges.pair_scripted import ScriptedPairJudge
from custosd.core.errors import JudgeError
from custosd.core.pairs import PairJudgement


class TestRulesPairJudge(PairJudgeContract):
    @pytest.fixture
    def judge(self) -> RulesPairJudge:
        return RulesPairJudge()


class TestScriptedPairJudge(PairJudgeContract):
    @pytest.fixture
    def judge(self) -> ScriptedPairJudge:
        return ScriptedPairJudge(lambda _: PairJudgement(None))


async def test_a_scripted_judge_raises_and_hangs_as_it_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(JudgeError):
        await ScriptedPairJudge(lambda _: JudgeError("overloaded")).compare(question())
    with trio.move_on_after(100) as scope:
        await ScriptedPairJudge(lambda _: None).compare(question())
    assert scope.cancelled_caught
