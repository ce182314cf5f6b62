"""When to ask, what to believe, and what to hold."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from custosd.core.guardian import (
    OPINIONS,
    GuardianLimits,
    Memo,
    Sight,
    after_standing,
    checked,
    is_due,
    is_worth_asking,
    with_grace,
)
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Activity, Trajectory, TrajectoryDigest
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason

LIMITS = GuardianLimits(agreement=2, cadence_s=900, grace_s=60)
LOOP = Signal(SignalKind.REPEATING, Severity.ALARM, (1, 2, 3), 3, 3)
NOTE = replace(LOOP, severity=Severity.NOTE)


def digest(fingerprint: str = "a", activity: Activity = Activity.WORKING) -> TrajectoryDigest:
    return replace(Trajectory().digest(), fingerprint=fingerprint, activity=activity)


def looked(**changes: object) -> Memo:
    memo = Memo(fingerprint="a", question="q", activity=Activity.WORKING, asked_at=0)
    return replace(memo, **changes)  # type: ignore[arg-type]


def seen(fingerprint: str = "a", activity: Activity = Activity.WORKING, **fields: object) -> Sight:
    return Sight(digest(fingerprint, activity), **fields)  # type: ignore[arg-type]


def test_an_agent_that_did_not_change_is_not_looked_at() -> None:
    assert not is_due(looked(), seen(quiet_s=1e9), LIMITS)


def test_growth_makes_an_agent_due() -> None:
    assert is_due(looked(), seen("b"), LIMITS)


def test_time_alone_makes_an_agent_due_exactly_at_its_quiet_deadline() -> None:
    memo = looked(deadline_s=300.0)
    assert not is_due(memo, seen(quiet_s=299.999), LIMITS)
    assert is_due(memo, seen(quiet_s=300.0), LIMITS)


def test_quiet_that_ended_makes_an_agent_due_without_a_new_fingerprint() -> None:
    memo = looked(deadline_s=300.0, passed=True)
    assert not is_due(memo, seen(quiet_s=300.0), LIMITS)
    assert is_due(memo, seen(quiet_s=1.0), LIMITS)


def test_a_twin_that_comes_or_goes_makes_an_agent_due() -> None:
    assert is_due(looked(), seen(peers=("b",)), LIMITS)
    assert not is_due(looked(peers=("b",)), seen(peers=("b",)), LIMITS)
    assert is_due(looked(peers=("b",)), seen(), LIMITS)


def test_the_end_of_the_grace_is_looked_at_and_asked_about_once() -> None:
    memo = looked(graced=True)
    assert not is_due(memo, seen(known_s=59.9), LIMITS)
    assert is_due(memo, seen(known_s=60.0), LIMITS)
    assert not is_worth_asking(memo, "q", seen(known_s=59.9), (LOOP,), 0, LIMITS)
    assert is_worth_asking(memo, "q", seen(known_s=60.0), (LOOP,), 0, LIMITS)


def test_what_is_not_yet_confirmed_stays_due() -> None:
    assert is_due(looked(candidate=Standing.STUCK), seen(), LIMITS)


def test_a_change_is_asked_about_at_once_while_something_is_not_yet_confirmed() -> None:
    assert is_worth_asking(looked(candidate=Standing.STUCK), "r", seen("b"), (), 1, LIMITS)


def test_the_same_question_is_never_asked_again() -> None:
    memo = looked(kinds=frozenset({SignalKind.REPEATING}), asked_at=-1e9)
    assert not is_worth_asking(memo, "q", seen("b"), (LOOP,), 0, LIMITS)


def test_a_new_suspicion_is_asked_about_at_once_and_so_is_its_end() -> None:
    assert is_worth_asking(looked(), "r", seen("b"), (LOOP,), 1, LIMITS)
    memo = looked(kinds=frozenset({SignalKind.REPEATING}))
    assert is_worth_asking(memo, "r", seen("b"), (), 1, LIMITS)


def test_a_change_without_suspicion_waits_for_the_cadence() -> None:
    assert not is_worth_asking(looked(), "r", seen("b"), (NOTE,), 899.9, LIMITS)
    assert is_worth_asking(looked(), "r", seen("b"), (NOTE,), 900.0, LIMITS)


def test_a_turn_that_ends_is_asked_about_at_once() -> None:
    assert is_worth_asking(looked(), "r", seen("b", Activity.TURN_ENDED), (), 1, LIMITS)


def test_one_opinion_changes_nothing_two_that_agree_do() -> None:
    memo = Memo(held=Standing.PROGRESSING, candidate=Standing.PROGRESSING)
    once = after_standing(memo, Standing.STUCK, LIMITS)
    assert once.held is Standing.PROGRESSING
    assert not once.settled
    assert after_standing(once, Standing.STUCK, LIMITS).held is Standing.STUCK


def test_who_was_held_to_be_stuck_is_cleared_by_two_sweeps_that_agree() -> None:
    memo = Memo(held=Standing.STUCK, candidate=Standing.STUCK)
    once = after_standing(memo, Standing.PROGRESSING, LIMITS)
    assert once.held is Standing.STUCK
    assert after_standing(once, Standing.PROGRESSING, LIMITS).held is Standing.PROGRESSING


def test_opinions_that_alternate_never_change_what_is_held() -> None:
    memo = Memo(held=Standing.PROGRESSING, candidate=Standing.PROGRESSING)
    for standing in [Standing.STUCK, Standing.DRIFTING] * 10:
        memo = after_standing(memo, standing, LIMITS)
        assert memo.held is Standing.PROGRESSING


def test_what_the_transcript_states_holds_at_once() -> None:
    memo = after_standing(Memo(held=Standing.STUCK), Standing.WAITING, LIMITS)
    assert memo.held is Standing.WAITING


@given(st.lists(st.sampled_from(Standing)))
def test_unknown_never_changes_what_is_held(standings: list[Standing]) -> None:
    memo = Memo()
    for standing in standings:
        before = memo
        memo = after_standing(memo, standing, LIMITS)
        if standing is Standing.UNKNOWN:
            assert memo.held is before.held
            assert memo.settled


@given(st.lists(st.sampled_from(sorted(OPINIONS - {Standing.PROGRESSING}))))
def test_an_accusation_is_never_held_after_one_sweep(standings: list[Standing]) -> None:
    memo, last = Memo(), None
    for standing in standings:
        before = memo.held
        memo = after_standing(memo, standing, LIMITS)
        if memo.held is not before:
            assert last is standing
        last = standing


def test_an_impossible_answer_is_unknown_and_says_so() -> None:
    for judgement in (
        Judgement(Standing.PROGRESSING, alignment=1.5),
        Judgement(Standing.PROGRESSING, confidence=-0.1),
        Judgement(Standing.STUCK, needs_steering=True),
        Judgement(Standing.PROGRESSING, alignment=float("nan")),
    ):
        answer = checked(judgement, steps=10)
        assert answer.standing is Standing.UNKNOWN
        assert answer.unknown_reason == "impossible_answer"
        assert not answer.needs_steering


def test_evidence_that_does_not_exist_is_left_out_or_discredits_the_answer() -> None:
    mixed = Judgement(Standing.STUCK, evidence=(3, 99))
    assert checked(mixed, steps=10).evidence == (3,)
    invented = checked(Judgement(Standing.STUCK, evidence=(98, 99)), steps=10)
    assert invented.unknown_reason == "evidence_not_found"


def test_a_newcomer_is_not_steered_within_its_grace() -> None:
    urgent = Judgement(
        Standing.STUCK,
        needs_steering=True,
        steering_kind=SteeringKind.CORRECTION,
        steering_reason=SteeringReason.STUCK,
        message="stop",
    )
    assert not with_grace(urgent, known_s=59.9, limits=LIMITS).needs_steering
    assert with_grace(urgent, known_s=60.0, limits=LIMITS) == urgent
