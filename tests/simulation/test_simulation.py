"""The real services over simulated fleets: nobody healthy is touched, nobody ill is forgotten."""

from dataclasses import replace
from functools import partial
from itertools import accumulate

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from tests.simulation.faults import QUIET, Rates
from tests.simulation.run import quiet_logs, simulate, summary
from tests.simulation.witness import ROUNDING, Excuses, over_budget
from tests.simulation.world import Deed, World

from custosd.acting import restarter_settings
from custosd.config.acting import RestartSettings
from custosd.core.agents import AgentId
from custosd.core.evidence import Exit
from custosd.core.restart_budget import RestartLimits, heal_s

LIMITS = RestartLimits()


@pytest.fixture(autouse=True)
def silence():
    quiet_logs()
    yield
    structlog.reset_defaults()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 5])
def test_all_that_can_go_wrong_at_once_breaks_no_invariant(seed: int) -> None:
    outcome = simulate(seed, agents=60, hours=2, rates=Rates().times(3))
    assert outcome.problems == (), f"replay: --agents 60 --hours 2 --times 3 --seeds {seed}"
    assert outcome.spawns >= 5
    assert {ill.what for ill in outcome.illnesses} >= {"crashed", "froze"}
    print(summary([outcome]))


@pytest.mark.timeout(200)
def test_a_fleet_without_faults_is_left_alone_for_hours() -> None:
    outcome = simulate(11, agents=60, hours=1, rates=QUIET)
    assert (outcome.problems, outcome.spawns, outcome.illnesses) == ((), 0, ())
    assert outcome.beats > 10_000
    assert outcome.looks / outcome.agent_hours < 20


@pytest.mark.timeout(200)
def test_the_same_seed_does_the_same_and_another_does_not() -> None:
    rates = Rates(crashes=1.0, freezes=1.0)
    first, again, other = (simulate(seed, 10, 0.5, rates).digest for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.timeout(200)
def test_crashes_that_are_watched_are_seen_within_two_seconds() -> None:
    outcome = simulate(7, agents=60, hours=1, rates=replace(QUIET, crashes=1.5))
    seen = sorted(ill.seen_s for ill in outcome.illnesses if ill.seen_s is not None)
    assert len(seen) == len(outcome.illnesses) > 30
    assert seen[len(seen) * 99 // 100] <= 2.0
    # Each is looked into at once and then now and then, not again and again.
    assert outcome.looks / outcome.agent_hours < 60


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("share", "hours"), [(0.01, 0.9), (0.2, 0.4)], ids=["fleet", "hosts"])
def test_a_mass_death_heals_at_the_pace_of_the_budgets_and_no_slower(
    share: float, hours: float
) -> None:
    """Two of three hosts lose all that they have; with the larger share each waits for itself."""
    died: dict[AgentId, float] = {}
    worlds: list[World] = []

    def strike(world: World, start: float) -> None:
        worlds.append(world)
        for number, agent in enumerate(world.agents.values()):
            if agent.host in {"host-0", "host-1"}:
                died[agent.id] = start + 600 + number / 4
                world.at(died[agent.id], partial(world.crash, agent, Exit(signal=9)))

    settings = RestartSettings(fleet_share=share)
    outcome = simulate(2, 60, hours, QUIET, settings, strike)
    assert outcome.problems == ()
    starts = [deed for deed in worlds[0].deeds if deed.what == "spawn"]
    assert sorted(deed.agent for deed in starts) == sorted(died)
    limits = restarter_settings(settings).limits
    bound_s = max(heal_s(40, 60, limits), heal_s(20, 20, limits))
    assert bound_s - 60 <= starts[-1].at - min(died.values()) <= bound_s + 180


@pytest.mark.timeout(200)
def test_agents_that_die_of_whatever_they_do_are_given_up_and_the_others_are_not() -> None:
    """Each new process of three of them dies within seconds: burst, back-off and quarantine."""

    def strike(world: World, start: float) -> None:
        for number, agent in enumerate(list(world.agents.values())[:3]):
            agent.poisoned = True
            world.at(start + 600 + 300 * number, partial(world.crash, agent, Exit(code=1)))

    outcome = simulate(2, 12, 1.25, QUIET, strike=strike)
    assert outcome.problems == ()
    assert outcome.spawns == 3 * RestartSettings().burst


def told_of(world: World, *deeds: Deed) -> list[str]:
    world.deeds = list(deeds)
    return over_budget(world, Excuses(), LIMITS)


@given(st.lists(st.floats(0, 300), max_size=60), st.integers(1, 400))
def test_a_budget_that_is_overdrawn_by_one_is_noticed(gaps: list[float], agents: int) -> None:
    """What the witness reckons in one pass is what is true of every stretch of time."""
    world = World(1, agents, hosts=1)
    times = list(accumulate(gaps))
    deeds = [Deed(at, AgentId("agent-0"), "spawn") for at in times]
    size, per_s = LIMITS.at_once(agents) + LIMITS.concurrency, LIMITS.per_s(agents)
    excess = [
        last - first + 1 - size - (times[last] - times[first]) * per_s
        for last in range(len(times))
        for first in range(last + 1)
    ]
    assert bool(told_of(world, *deeds)) == any(one > ROUNDING for one in excess)


def test_a_stretch_that_begins_in_an_absence_counts_from_its_beginning() -> None:
    world = World(1, 10, hosts=1)
    world.deeds = [Deed(700.0, AgentId("agent-0"), "spawn")] * 20
    excuses = Excuses()
    assert over_budget(world, excuses, LIMITS)
    excuses.add(90.0, 500.0)
    excuses.add(400.0, 800.0)
    assert over_budget(world, excuses, LIMITS) == []
    assert excuses.away_since(850.0) == 850.0


def test_excused_time_is_counted_once_however_often_it_is_excused() -> None:
    excuses = Excuses()
    excuses.add(10, 20)
    excuses.add(15, 30)
    assert excuses.counted_s(0, 100) == 80
    assert excuses.counted_s(12, 18) == 0
