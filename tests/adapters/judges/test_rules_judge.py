"""The rules judge keeps the contract and says what the rules say."""

import pytest
from tests.contracts.judge_contract import JudgeContract, question

from custosd.adapters.judges.rules import RulesJudge
from custosd.core.rules import judge_by_rules
from custosd.core.verdicts import Standing


class TestRulesJudge(JudgeContract):
    @pytest.fixture
    def judge(self) -> RulesJudge:
        return RulesJudge()


async def test_it_says_what_the_rules_say() -> None:
    asked = question(quiet_s=900)
    answer = await RulesJudge().judge(asked)
    assert answer.judgement == judge_by_rules(asked.digest, asked.signals, 900)
    assert answer.judgement.standing is Standing.SILENT


async def test_it_costs_nothing() -> None:
    answer = await RulesJudge().judge(question())
    assert answer.usage.cost_usd == 0
    assert answer.judge == "rules"
