"""What is known of lives after our own end: theirs went on."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from custosd.core.agents import AgentId, AgentState
from custosd.core.lives import LifeRecord, with_given_epochs
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
