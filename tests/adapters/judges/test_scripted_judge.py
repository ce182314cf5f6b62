"""The scripted judge keeps the contract, and answers, fails and hangs as it is told."""

import pytest
import trio
from tests.contracts.judge_contract import JudgeContract, question
from trio.testing import MockClock

from custosd.adapters.judges.scripted import ScriptedJudge
from custosd.core.errors import JudgeError
from custosd.core.verdicts import Judgement, Standing
from custosd.ports import Answer

FINE = Judgement(Standing.PROGRESSING)
STUCK = Judgement(Standing.STUCK)


class TestScriptedJudge(JudgeContract):
    @pytest.fixture
    def judge(self) -> ScriptedJudge:
        return ScriptedJudge([FINE])


async def test_it_answers_in_order_and_repeats_the_last() -> None:
    judge = ScriptedJudge([FINE, Answer(STUCK, judge="other")])
    standings = [(await judge.judge(question())).judgement.standing for _ in range(3)]
    assert standings == [Standing.PROGRESSING, Standing.STUCK, Standing.STUCK]
    assert len(judge.asked) == 3


async def test_it_answers_by_the_question() -> None:
    judge = ScriptedJudge(lambda asked: STUCK if "loop" in asked.digest.goal else FINE)
    assert (await judge.judge(question("loop"))).judgement is STUCK
    assert (await judge.judge(question())).judgement is FINE


async def test_it_fails_as_told_and_goes_on() -> None:
    judge = ScriptedJudge([JudgeError("provider_down"), FINE])
    with pytest.raises(JudgeError) as caught:
        await judge.judge(question())
    assert caught.value.reason == "provider_down"
    assert (await judge.judge(question())).judgement is FINE


async def test_it_hangs_until_cancelled(autojump_clock: MockClock) -> None:
    with trio.move_on_after(3_600) as scope:
        await ScriptedJudge([None]).judge(question())
    assert scope.cancelled_caught


async def test_it_takes_its_time(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    await ScriptedJudge([FINE], delay_s=30).judge(question())
    assert trio.current_time() - began == 30


async def test_without_a_script_it_says_unknown() -> None:
    judgement = (await ScriptedJudge().judge(question())).judgement
    assert (judgement.standing, judgement.unknown_reason) == (Standing.UNKNOWN, "no_script")
