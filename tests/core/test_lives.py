"""What is known of lives after our own end: theirs went on."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from custosd.core.agents import AgentId, AgentState
from custosd.core.lives import LifeRecord, ended_by_us, still_known, with_given_epochs
from custosd.core.restarts import Cause, Restart, RestartState, RestartStep, StepRecord, StepState

ADA = AgentId("ada")
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
LIFE = LifeRecord(ADA, 2, 77, AgentState.RUNNING, NOON)
RESTART = Restart("r", ADA, "k", Cause.CRASH, "", "custosd", 2, 3, NOON)


def ended(state: RestartState, spawn: StepState | None) -> Restart:
    steps = () if spawn is None else (StepRecord(RestartStep.SPAWN, 1, spawn, NOON, NOON, ""),)
    return replace(RESTART, state=state, steps=steps, ended_utc=NOON)


@pytest.mark.parametrize("state", [RestartState.SUCCEEDED, RestartState.FAILED])
def test_whoever_was_started_speaks_in_its_own_name_whatever_became_of_the_restart(
    state: RestartState,
) -> None:
    """It was started and not heard in time, or its life was not stored before we ended."""
    assert with_given_epochs([LIFE], [ended(state, StepState.DONE)]) == (
        replace(LIFE, epoch=3, sequence=0),
    )


@pytest.mark.parametrize("spawn", [None, StepState.FAILED])
def test_where_nobody_was_started_the_old_incarnation_goes_on(spawn: StepState | None) -> None:
    assert with_given_epochs([LIFE], [ended(RestartState.FAILED, spawn)]) == (LIFE,)


def test_an_epoch_never_goes_back() -> None:
    later = replace(LIFE, epoch=5)
    assert with_given_epochs([later], [ended(RestartState.SUCCEEDED, StepState.DONE)]) == (later,)


def test_a_restart_that_is_open_is_gone_on_with_and_gives_its_epoch_then() -> None:
    steps = (StepRecord(RestartStep.SPAWN, 1, StepState.DONE, NOON, NOON, ""),)
    open_ = replace(RESTART, state=RestartState.RUNNING, steps=steps)
    assert with_given_epochs([LIFE], [open_]) == (LIFE,)


def stopped(state: RestartState, stop: StepState = StepState.DONE, epoch: int = 3) -> Restart:
    """A restart that told the agent to end, and ended so a minute after noon."""
    over = state not in (RestartState.INTENDED, RestartState.RUNNING)
    return replace(
        RESTART,
        id=f"r{epoch}",
        next_epoch=epoch,
        state=state,
        steps=(StepRecord(RestartStep.GRACEFUL_STOP, 1, stop, NOON),),
        ended_utc=NOON + timedelta(minutes=1) if over else None,
    )


@pytest.mark.parametrize(
    "state", [RestartState.RUNNING, RestartState.FAILED, RestartState.ABANDONED]
)
def test_what_we_told_to_end_and_did_not_start_again_ended_by_our_doing(
    state: RestartState,
) -> None:
    assert ended_by_us([LIFE], [stopped(state)]) == {ADA}
    assert ended_by_us([LIFE], [stopped(state, StepState.RUNNING)]) == {ADA}
    assert ended_by_us([], [stopped(state)]) == {ADA}


def test_an_end_is_ours_only_where_we_may_have_told_it_to_end() -> None:
    assert ended_by_us([LIFE], [stopped(RestartState.ABANDONED, StepState.SKIPPED)]) == frozenset()
    assert ended_by_us([LIFE], [ended(RestartState.ABANDONED, None)]) == frozenset()


def test_a_new_incarnation_or_its_own_voice_makes_its_end_its_own_again() -> None:
    failed = stopped(RestartState.FAILED)
    later = replace(ended(RestartState.FAILED, StepState.DONE), next_epoch=4)
    assert ended_by_us([LIFE], [later, failed]) == frozenset(), "whatever their order"
    given_up = replace(ended(RestartState.ABANDONED, None), next_epoch=4)
    assert ended_by_us([LIFE], [failed, given_up]) == {ADA}, "it is down still"
    minutes = {0: {ADA}, 2: set()}
    for minute, found in minutes.items():
        heard = replace(LIFE, heard_utc=NOON + timedelta(minutes=minute))
        assert ended_by_us([heard], [failed]) == found


def test_lives_of_those_whom_nobody_has_configured_are_forgotten_when_they_were_silent() -> None:
    bob, cyd = AgentId("bob"), AgentId("cyd")
    lives = (
        LIFE,
        replace(LIFE, agent=bob, heard_utc=NOON - timedelta(days=80)),
        replace(LIFE, agent=cyd, heard_utc=NOON - timedelta(hours=1)),
    )
    known = still_known(lives, {ADA}, NOON - timedelta(days=1))
    assert [life.agent for life in known] == [ADA, cyd]
