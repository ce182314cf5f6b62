"""The table of an agent's states, and the shard that an agent's rows live in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import (
    SHARDS,
    TRANSITIONS,
    AgentId,
    AgentState,
    ImpossibleTransition,
    path_to,
    shard_of,
    transition,
)

states = st.sampled_from(AgentState)


def test_every_state_has_a_row_and_no_state_follows_itself() -> None:
    assert set(TRANSITIONS) == set(AgentState)
    assert all(state not in after for state, after in TRANSITIONS.items())


@given(states, states)
def test_a_change_happens_only_where_the_table_has_it(
    before: AgentState, after: AgentState
) -> None:
    if after in TRANSITIONS[before]:
        assert transition(before, after) is after
    else:
        with pytest.raises(ImpossibleTransition, match=f"from {before} to {after}"):
            transition(before, after)


@given(states, states)
def test_a_path_is_made_of_possible_changes_and_ends_where_it_should(
    before: AgentState, after: AgentState
) -> None:
    here = before
    for state in path_to(before, after):
        here = transition(here, state)
    assert here in {before, after}
    assert (here is before) == (path_to(before, after) == ())


def test_an_ended_agent_that_goes_on_is_started_again() -> None:
    path = path_to(AgentState.TERMINATED, AgentState.RUNNING)
    assert path == (AgentState.STARTING, AgentState.RUNNING)


def test_a_shard_is_what_it_was_when_the_first_rows_were_written() -> None:
    """Stored rows carry the number: these may never change."""
    assert SHARDS == 256
    assert shard_of(AgentId("claude-code:a")) == 212
    assert shard_of(AgentId("codex:ü\udc80")) == 24


@given(st.text())
def test_every_agent_has_a_shard(name: str) -> None:
    assert 0 <= shard_of(AgentId(name)) < SHARDS
