"""Several judges: how they are combined, and who is asked where one cannot be had."""

from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.judge_contract import JudgeContract, question
from trio.testing import MockClock

from custosd.adapters.judges.ensemble import EnsembleJudge, FallbackJudge, combined
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.judges.scripted import ScriptedJudge
from custosd.core.errors import JudgeError
from custosd.core.transcript import Usage
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason
from custosd.ports import Answer, Judge

FINE = Judgement(Standing.PROGRESSING, confidence=0.8, alignment=0.9)
STUCK = Judgement(Standing.STUCK, confidence=0.6, alignment=0.3)
STEERED = replace(
    STUCK,
    needs_steering=True,
    steering_kind=SteeringKind.CORRECTION,
    steering_reason=SteeringReason.STUCK,
    message="Try another way.",
)
UNKNOWN = Judgement(Standing.UNKNOWN, unknown_reason="model_unsure")
PAID = Usage(10, 1, 0, 0.01)


def paid(judgement: Judgement) -> ScriptedJudge:
    return ScriptedJudge([Answer(judgement, "m", "model-x", "v1", PAID)])


class TestEnsembleJudge(JudgeContract):
    @pytest.fixture
    def judge(self) -> Judge:
        return EnsembleJudge([ScriptedJudge([STEERED]), ScriptedJudge([STEERED]), RulesJudge()])


class TestFallbackJudge(JudgeContract):
    @pytest.fixture
    def judge(self) -> Judge:
        return FallbackJudge([ScriptedJudge([JudgeError("model_timeout")]), RulesJudge()])


async def test_the_majority_stands_and_disagreement_lowers_confidence() -> None:
    together = await EnsembleJudge([paid(FINE), paid(FINE), paid(FINE)]).judge(question())
    split = await EnsembleJudge([paid(FINE), paid(STUCK), paid(FINE)]).judge(question())
    assert together.judgement.standing is split.judgement.standing is Standing.PROGRESSING
    assert together.judgement.confidence == 0.8
    assert split.judgement.confidence == pytest.approx(0.8 * 2 / 3)
    assert split.judgement.alignment == 0.9
    assert split.usage == PAID + PAID + PAID


async def test_a_tie_is_unknown() -> None:
    answer = await EnsembleJudge([paid(FINE), paid(STUCK)]).judge(question())
    assert answer.judgement.unknown_reason == "judges_disagree"


async def test_failures_have_no_vote() -> None:
    down = ScriptedJudge([JudgeError("model_unavailable")])
    answer = await EnsembleJudge([down, paid(STUCK), paid(UNKNOWN)]).judge(question())
    assert answer.judgement.standing is Standing.STUCK
    assert answer.judgement.confidence == pytest.approx(0.6 / 2)


async def test_where_nobody_answers_nobody_answered() -> None:
    down = ScriptedJudge([JudgeError("model_unavailable")])
    with pytest.raises(JudgeError) as caught:
        await EnsembleJudge([down, down]).judge(question())
    assert caught.value.reason == "no_judge_answered"


async def test_stragglers_are_cut(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    ensemble = EnsembleJudge(
        [paid(FINE), paid(FINE), ScriptedJudge([None])], enough=2, straggler_s=5
    )
    assert (await ensemble.judge(question())).judgement.standing is Standing.PROGRESSING
    assert trio.current_time() - began == 5


async def test_steering_needs_a_majority_of_its_own_and_the_mildest_kind_is_taken() -> None:
    mild = replace(STEERED, steering_kind=SteeringKind.GUIDANCE)
    two = (
        await EnsembleJudge([paid(STEERED), paid(mild), paid(STUCK)]).judge(question())
    ).judgement
    assert (two.needs_steering, two.steering_kind) == (True, SteeringKind.GUIDANCE)
    one = (
        await EnsembleJudge([paid(STEERED), paid(STUCK), paid(STUCK)]).judge(question())
    ).judgement
    assert not one.needs_steering
    assert (one.message, one.steering_kind, one.steering_reason) == ("", None, None)


@given(st.lists(st.sampled_from([FINE, STUCK, STEERED, UNKNOWN]), min_size=1, max_size=7))
def test_what_comes_of_any_votes_is_consistent(votes: list[Judgement]) -> None:
    joint = combined(votes)
    assert (joint.standing is Standing.UNKNOWN) == bool(joint.unknown_reason)
    assert joint.needs_steering == (joint.steering_kind is not None) == bool(joint.message)
    assert joint.confidence is None or joint.confidence <= 0.8
    if joint.needs_steering:
        assert votes.count(STEERED) * 2 > len([vote for vote in votes if vote is not UNKNOWN])


async def test_the_next_is_asked_where_one_cannot_be_had() -> None:
    down, second = ScriptedJudge([JudgeError("model_timeout")]), paid(STUCK)
    assert (await FallbackJudge([down, second]).judge(question())).judgement is STUCK
    assert (await FallbackJudge([second, down]).judge(question())).judgement is STUCK
    assert len(down.asked) == 1
    with pytest.raises(JudgeError):
        await FallbackJudge([down, down]).judge(question())


# Time: whoever waits has a deadline


HANGS = ScriptedJudge([None])


async def test_a_judge_that_hangs_does_not_take_the_others_votes_with_it(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        answer = await EnsembleJudge([paid(FINE), HANGS, paid(FINE)]).judge(question())
    assert answer.judgement.standing is Standing.PROGRESSING
    assert answer.judgement.confidence == 0.8
    assert trio.current_time() == pytest.approx(59)


async def test_where_all_hang_nobody_answered_and_in_time(autojump_clock: MockClock) -> None:
    with trio.fail_after(60), pytest.raises(JudgeError, match="cut, cut"):
        await EnsembleJudge([HANGS, HANGS]).judge(question())


async def test_the_next_is_asked_while_there_is_time_for_it(autojump_clock: MockClock) -> None:
    slow = ScriptedJudge([Answer(STUCK, "slow")], delay_s=8.0)
    with trio.fail_after(60):
        answer = await FallbackJudge([HANGS, slow]).judge(question())
    assert (answer.judge, trio.current_time()) == ("slow", pytest.approx(58))


async def test_each_in_a_chain_of_the_hanging_leaves_time_for_those_behind(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        answer = await FallbackJudge([HANGS, HANGS, HANGS, RulesJudge()]).judge(question())
    assert answer.judge == "rules"
    began = trio.current_time()
    with trio.fail_after(4):
        await FallbackJudge([HANGS, RulesJudge()]).judge(question())
    assert trio.current_time() - began == pytest.approx(2), "of little time an equal share"


async def test_without_a_deadline_a_judge_has_all_the_time(autojump_clock: MockClock) -> None:
    late = ScriptedJudge([Answer(STUCK, "late")], delay_s=86_400.0)
    chain = FallbackJudge([EnsembleJudge([late, late]), RulesJudge()])
    assert (await chain.judge(question())).judgement.standing is Standing.STUCK


def test_alignment_and_confidence_are_medians() -> None:
    votes = [
        replace(FINE, alignment=alignment, confidence=confidence)
        for alignment, confidence in ((0.1, 0.9), (0.8, 0.3), (0.9, 0.5))
    ]
    joint = combined([*votes, UNKNOWN])
    assert joint.alignment == 0.8
    assert joint.confidence == pytest.approx(0.5 * 3 / 4)


def test_who_asks_for_steering_and_not_of_which_kind_has_no_vote_on_it() -> None:
    odd = replace(STEERED, steering_kind=None)
    assert not combined([odd, odd]).needs_steering
    assert combined([odd, STEERED, STEERED]).needs_steering
