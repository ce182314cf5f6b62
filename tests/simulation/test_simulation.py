"""The real services over simulated fleets: nobody healthy is touched, nobody ill is forgotten."""

from dataclasses import replace

import pytest
import structlog
from tests.simulation.faults import QUIET, Rates
from tests.simulation.run import quiet_logs, simulate, summary
from tests.simulation.witness import Excuses


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


def test_excused_time_is_counted_once_however_often_it_is_excused() -> None:
    excuses = Excuses()
    excuses.add(10, 20)
    excuses.add(15, 30)
    assert excuses.counted_s(0, 100) == 80
    assert excuses.counted_s(12, 18) == 0
