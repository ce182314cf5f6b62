"""The numbers of the daemon are those of the view, zeros included."""

from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from custosd.core.agents import AgentId, AgentState
from custosd.core.coherence import FleetStatus, Trend
from custosd.core.evidence import Condition, Value
from custosd.core.facts import ConductorSwept
from custosd.core.lives import LifeView
from custosd.core.money import BudgetLine, Limit, Rung, Scope, Span
from custosd.core.view import FleetView, Hands
from custosd.services.gauges import fleet_gauges, money_gauges, queue_gauges

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_lives_are_counted_by_their_condition_and_nobody_is_a_zero() -> None:
    lives = {
        AgentId(name): LifeView(AgentId(name), 1, AgentState.RUNNING, condition, Value.BAD, "", NOW)
        for name, condition in (("a", Condition.DEAD), ("b", Condition.DEAD), ("c", Condition.LATE))
    }
    view = replace(FleetView(sweeps=7), hands=Hands(lives=MappingProxyType(lives)))
    numbers = {(one.name, *one.labels.values()): one.value for one in fleet_gauges(view)}
    assert numbers["lives", "dead"] == 2
    assert numbers["lives", "late"] == 1
    assert numbers["lives", "alive"] == 0
    assert numbers["agents", "stuck"] == 0
    assert numbers["sweeps",] == 7


def test_coherence_has_a_number_where_it_is_known_and_none_elsewhere() -> None:
    assert "coherence" not in {one.name for one in fleet_gauges(FleetView())}
    swept = ConductorSwept(
        status=FleetStatus.WARNING,
        before=None,
        score=0.4,
        coverage=1.0,
        trend=Trend.STEADY,
        agents=9,
        duplicates=2,
        conflicts=1,
        opened=0,
        resolved=0,
        suspicions=3,
        asked=0,
        failed=0,
        waiting=0,
        duration_s=0.1,
    )
    found = fleet_gauges(FleetView(conducted=swept))
    numbers = {(one.name, *one.labels.values()): one.value for one in found}
    assert numbers["coherence",] == 0.4
    assert (numbers["findings", "duplicate"], numbers["findings", "conflict"]) == (2, 1)
    unknown = fleet_gauges(FleetView(conducted=replace(swept, score=None)))
    assert "coherence" not in {one.name for one in unknown}


def test_queues_are_told_by_what_waits_and_what_was_dropped() -> None:
    found = list(queue_gauges({"facts": 3}, {"entries": 4}))
    assert [(one.name, one.labels["queue"], one.value, one.counts) for one in found] == [
        ("queue_items", "facts", 3, False),
        ("dropped", "entries", 4, True),
    ]


def test_each_limit_has_its_numbers_and_each_model_its_cost() -> None:
    line = BudgetLine(Limit(Scope.MODEL, Span.WEEK, 20.0, "sonnet"), 17.0, 0.5, Rung.SMALLER, None)
    found = {(one.name, *one.labels.values()): one.value for one in money_gauges([line], {"m": 2})}
    assert found == {
        ("budget_usd", "model/week/sonnet"): 20.0,
        ("budget_spent_usd", "model/week/sonnet"): 17.0,
        ("budget_reserved_usd", "model/week/sonnet"): 0.5,
        ("budget_rung", "model/week/sonnet"): 1,
        ("judging_usd", "m"): 2,
    }
