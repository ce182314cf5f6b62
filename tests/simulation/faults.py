"""What goes wrong in a simulated fleet, drawn from a seed, and when."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.simulation.world import Body, SimulatedAgent, World

from custosd.core.evidence import Exit

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Rates:
    """How often each thing happens: for each agent and hour, or for the fleet and hour."""

    crashes: float = 0.05
    freezes: float = 0.03
    hollows: float = 0.02
    mutes: float = 0.05
    waits: float = 0.3
    finishes: float = 0.01
    poisoned: float = 0.002
    mass_deaths: float = 0.1
    beat_outages: float = 0.2
    watch_outages: float = 0.1
    probe_outages: float = 0.1
    control_outages: float = 0.1
    store_outages: float = 0.2
    daemon_restarts: float = 0.2
    wall_steps: float = 0.2

    def times(self, factor: float) -> "Rates":
        """Everything so many times as often."""
        return Rates(*(getattr(self, name) * factor for name in self.__slots__))


QUIET = Rates().times(0)
"""Nothing goes wrong."""


@dataclass(frozen=True, slots=True)
class DaemonFault:
    """What happens to the daemon and its surroundings: "store", "restart" or "wall"."""

    at: float
    kind: str
    length: float
    """Seconds of absence, or by how many seconds the wall clock is set."""


def _times(rng: random.Random, rate: float, hours: float) -> list[float]:
    """Poisson arrivals, in seconds from the start, not in the first five minutes."""
    times: list[float] = []
    now = 300.0
    while rate > 0:
        now += rng.expovariate(rate / HOUR_S)
        if now >= hours * HOUR_S:
            break
        times.append(now)
    return times


def plan(world: World, rates: Rates, hours: float, start: float) -> tuple[DaemonFault, ...]:
    """Put the world's faults on its calendar; return those of the daemon, in order."""
    rng = random.Random(world.random.random())
    for agent in world.agents.values():
        _plan_agent(world, agent, rates, hours, start, rng)
    _plan_fleet(world, rates, hours, start, rng)
    daemon = [
        *((t, "store", rng.uniform(5, 120)) for t in _times(rng, rates.store_outages, hours)),
        *((t, "restart", rng.uniform(1, 900)) for t in _times(rng, rates.daemon_restarts, hours)),
        *((t, "wall", rng.choice([-3600, 3600])) for t in _times(rng, rates.wall_steps, hours)),
    ]
    return tuple(DaemonFault(start + t, kind, length) for t, kind, length in sorted(daemon))


def _plan_agent(
    world: World,
    agent: SimulatedAgent,
    rates: Rates,
    hours: float,
    start: float,
    rng: random.Random,
) -> None:
    def often(rate: float, do: Callable[[], None]) -> None:
        for t in _times(rng, rate, hours):
            world.at(start + t, do)

    often(rates.crashes, lambda: world.crash(agent, rng.choice(EXITS)))
    often(rates.freezes, lambda: world.freeze(agent))
    often(rates.hollows, lambda: world.hollow(agent))
    often(rates.mutes, lambda: world.mute(agent, rng.uniform(60, 1200)))
    often(rates.waits, lambda: world.wait(agent, rng.uniform(60, 3000)))
    often(rates.finishes, lambda: world.finish(agent))
    agent.stops_badly = rng.random() < 0.2
    agent.interval_s = rng.choice([15.0, 15.0, 30.0])
    for t in _times(rng, rates.poisoned, hours):
        world.at(start + t, partial(_poison, world, agent))


EXITS = (Exit(code=1), Exit(signal=9), Exit(signal=11), Exit(signal=9, out_of_memory=True))


def _poison(world: World, agent: SimulatedAgent) -> None:
    agent.poisoned = True
    world.crash(agent, Exit(code=1))


def _plan_fleet(world: World, rates: Rates, hours: float, start: float, rng: random.Random) -> None:
    def mass_death() -> None:
        how = rng.choice(EXITS)
        for agent in world.agents.values():
            if agent.body is Body.HEALTHY and rng.random() < 0.4:
                world.after(rng.uniform(0, 20), partial(world.crash, agent, how))

    for t in _times(rng, rates.mass_deaths, hours):
        world.at(start + t, mass_death)
    for name, rate, share in (
        ("loss", rates.beat_outages, 0.3),
        ("watch_fails", rates.watch_outages, 1.0),
        ("probe_fails", rates.probe_outages, 0.7),
        ("control_fails", rates.control_outages, 0.5),
    ):
        for t in _times(rng, rate, hours):
            world.at(start + t, partial(setattr, world, name, share))
            world.at(start + t + rng.uniform(60, 600), partial(setattr, world, name, 0.0))
