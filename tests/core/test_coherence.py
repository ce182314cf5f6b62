"""Coherence: parts with names, unknown where little is known, worse at once, better by a margin."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import AgentId
from custosd.core.coherence import (
    Advice,
    CoherenceRules,
    FleetStatus,
    Member,
    Trend,
    alignment_of,
    components_of,
    read_coherence,
    score_of,
    status_of,
    trend_of,
)
from custosd.core.verdicts import Standing

RULES = CoherenceRules()
SHARES = st.floats(0, 1)
MEMBERS = st.lists(
    st.builds(
        Member,
        st.sampled_from([AgentId(name) for name in "abcdef"]),
        st.none() | SHARES,
        st.booleans(),
        st.booleans(),
        st.sampled_from(Standing),
        st.just(""),
        st.none() | st.just(AgentId("z")),
    ),
    max_size=8,
)


def member(name: str, alignment: float | None = 0.9, *, needs: bool = False) -> Member:
    return Member(AgentId(name), alignment, needs_steering=needs)


def test_the_score_is_the_formula() -> None:
    members = [member("a", 0.9), member("b", 0.4, needs=True), member("c", None)]
    members.append(Member(AgentId("d"), 0.8, duplicates=AgentId("a")))
    reading = read_coherence(members, [], RULES)
    # mean .7, misaligned 1 of 3 known, needs steering 1 of 3, a duplicate 1 of 4
    assert reading.score == pytest.approx(0.7 - 0.2 / 3 - 0.3 / 3 - 0.25)
    assert [part.name for part in reading.components] == [
        "mean_alignment",
        "misaligned_share",
        "needs_steering_share",
        "duplicate_share",
    ]
    assert reading.coverage == 0.75


@given(MEMBERS)
def test_a_score_is_a_share_and_the_sum_of_its_parts(members: list[Member]) -> None:
    components = components_of(members, RULES)
    score = score_of(components)
    assert (score is None) == all(m.alignment is None for m in members)
    if score is not None:
        assert 0 <= score <= 1
        total = sum(part.value * part.weight for part in components)
        assert score == pytest.approx(min(1, max(0, total)))


@given(MEMBERS, st.none() | st.sampled_from(FleetStatus))
def test_below_the_coverage_the_status_is_unknown_whatever_was_held(
    members: list[Member], held: FleetStatus | None
) -> None:
    reading = read_coherence(members, [], RULES, held)
    if not members:
        assert reading.status is FleetStatus.NO_AGENTS
    elif reading.coverage < RULES.coverage or reading.score is None:
        assert reading.status is FleetStatus.UNKNOWN
    else:
        assert reading.status not in {FleetStatus.UNKNOWN, FleetStatus.NO_AGENTS}


@pytest.mark.parametrize(
    ("score", "duplicates", "status"),
    [
        (0.29, 0.0, FleetStatus.CRITICAL),
        (0.3, 0.0, FleetStatus.WARNING),
        (0.49, 0.9, FleetStatus.WARNING),
        (0.5, 0.31, FleetStatus.INEFFICIENT),
        (0.8, 0.3, FleetStatus.NORMAL),
        (0.81, 0.0, FleetStatus.OPTIMAL),
    ],
)
def test_the_thresholds(score: float, duplicates: float, status: FleetStatus) -> None:
    assert status_of(score, 1.0, duplicates, 10, RULES) is status


@given(SHARES, SHARES, st.sampled_from(list(FleetStatus)[2:]))
def test_worse_is_said_at_once_and_better_never_exceeds_the_plain_reading(
    score: float, duplicates: float, held: FleetStatus
) -> None:
    rank = list(FleetStatus).index
    plain = status_of(score, 1.0, duplicates, 9, RULES)
    got = status_of(score, 1.0, duplicates, 9, RULES, held)
    if rank(plain) <= rank(held):
        assert got is plain
    else:
        assert rank(held) <= rank(got) <= rank(plain)


@given(st.lists(st.floats(0.785, 0.815), min_size=2, max_size=30))
def test_a_score_that_lies_on_a_threshold_changes_the_status_once_at_most(
    scores: list[float],
) -> None:
    held: FleetStatus | None = None
    seen: list[FleetStatus] = []
    for score in scores:
        held = status_of(score, 1.0, 0.0, 9, RULES, held)
        seen.append(held)
    changes = sum(a is not b for a, b in itertools.pairwise(seen))
    assert changes <= 1


def test_the_trend_needs_more_than_three_readings() -> None:
    assert trend_of([0.1, 0.9, 0.1]) is Trend.UNKNOWN
    assert trend_of([0.5, 0.5, 0.5, 0.8, 0.8, 0.8]) is Trend.RISING
    assert trend_of([0.8, 0.8, 0.8, 0.5, 0.5, 0.5]) is Trend.FALLING
    assert trend_of([0.8, 0.79, 0.8, 0.81, 0.8]) is Trend.STEADY


def test_recommendations_name_agents_and_reasons() -> None:
    members = [
        Member(AgentId("a"), 0.2, standing=Standing.STUCK, reason="stuck", needs_steering=True),
        Member(AgentId("b"), 0.3, standing=Standing.DRIFTING),
        Member(AgentId("c"), 0.9, duplicates=AgentId("d")),
    ]
    reading = read_coherence(members, [(AgentId("a"), AgentId("b"))], RULES)
    told = [(each.advice, each.agents, each.reason) for each in reading.recommendations]
    assert told == [
        (Advice.COORDINATE, ("a", "b"), "writes_to_the_same_place"),
        (Advice.STOP_DUPLICATE, ("c", "d"), "same_work"),
        (Advice.STEER, ("b",), "drifting"),
        (Advice.STEER, ("a",), "stuck"),
    ]


def test_an_unknown_fleet_names_those_of_whom_nothing_is_known() -> None:
    reading = read_coherence([member("a", None), member("b", None), member("c")], [], RULES)
    (advice,) = reading.recommendations
    assert (advice.advice, advice.agents) == (Advice.LOOK_INTO, ("a", "b"))


def test_a_judges_alignment_counts_before_what_a_standing_stands_for() -> None:
    assert alignment_of(0.1, Standing.PROGRESSING) == 0.1
    unknown = {Standing.UNKNOWN, Standing.SILENT}
    assert {s for s in Standing if alignment_of(None, s) is None} == unknown


def test_a_fleet_that_fell_silent_is_not_known_and_no_reason_for_alarm() -> None:
    members = [
        Member(f"a{n}", alignment_of(None, Standing.SILENT), standing=Standing.SILENT)
        for n in range(10)
    ]
    reading = read_coherence(members, [], RULES, FleetStatus.OPTIMAL)
    assert (reading.status, reading.score, reading.coverage) == (FleetStatus.UNKNOWN, None, 0.0)
