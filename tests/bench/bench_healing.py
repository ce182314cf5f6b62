"""How long a mass death takes to heal, against what the budgets allow: virtual time, real CPU.

The real daemon over a simulated fleet and stores in memory. One agent in ten dies in the same
moment. "healed" is when every one of them beats again; `heal_s` is the least that budgets and
concurrency allow where one restart takes its usual time, so a ratio below 1 says that restarts
were faster than usual, and one far above 1 that somebody waited who need not have.

    python tests/bench/bench_healing.py [agents ...]

CPU is that of the whole process, the simulated agents included; what a quiet time as long costs
is taken off where it says "net".
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import trio  # noqa: E402 - after the path
import trio.testing  # noqa: E402
from tests.simulation.faults import QUIET  # noqa: E402
from tests.simulation.run import Simulation, quiet_logs  # noqa: E402
from tests.simulation.witness import Witness  # noqa: E402
from tests.simulation.world import SimulatedAgent, World  # noqa: E402

from custosd.adapters.memory_actions import MemoryActions  # noqa: E402
from custosd.core.agents import AgentId  # noqa: E402
from custosd.core.beats import Beat  # noqa: E402
from custosd.core.evidence import Exit  # noqa: E402
from custosd.core.restart_budget import RestartLimits, heal_s  # noqa: E402
from custosd.core.view import FleetView  # noqa: E402
from custosd.flow.latest import Latest  # noqa: E402

SIZES = (100, 1_000, 10_000)
"""The last one, with 1,000 dead, is as many agents as one daemon should have."""

SHARE = 0.1
SETTLED_S = 120.0
"""When all live and have been heard, and the start-up grace is over."""

QUIET_S = 120.0
"""For so long nothing happens then, and what that costs is measured."""

BEAT_S = 300.0
DECLARED_S = 600.0
"""Agents beat seldom and say so: what is measured is healing, not beating."""

PATIENCE = 5.0
"""So many times as long as the budgets need, and the rest counts as not healed."""


class RareBeats(World):
    """A world whose agents beat seldom; it notes when each incarnation is first heard."""

    def __init__(self, seed: int, agents: int) -> None:
        super().__init__(seed, agents)
        for agent in self.agents.values():
            agent.interval_s = BEAT_S
        self.heard_at: dict[tuple[AgentId, int], float] = {}
        self.missing: set[AgentId] = set()
        self.healed = trio.Event()

    def say(self, agent: SimulatedAgent) -> None:
        agent.sequence += 1
        self.said += 1
        if self.door is None:
            return
        beat = Beat(
            agent.id,
            agent.epoch,
            agent.sequence,
            agent.status,
            DECLARED_S,
            pid=agent.pid,
            progress=str(agent.work),
        )
        self.door.offer(beat, "socket")
        self.heard_at.setdefault((agent.id, agent.epoch), trio.current_time())
        if agent.id in self.missing:
            self.missing.discard(agent.id)
            if not self.missing:
                self.healed.set()

    def kill(self, count: int) -> None:
        """End so many processes at once."""
        dead = self.random.sample(list(self.agents.values()), count)
        self.missing = {agent.id for agent in dead}
        for agent in dead:
            self.crash(agent, Exit(signal=9))


class NoWitness(Witness):
    """Looks at nothing: it would look at all lives whenever one changes."""

    async def watch(self, view: Latest[FleetView]) -> None:
        return


@dataclass(frozen=True, slots=True)
class Healing:
    """What came of one mass death; seconds of virtual time after it, and of CPU."""

    dead: int
    healed_s: tuple[float, ...]
    spawns: int
    broken: int
    quiet_share: float
    heal_cpu_s: float
    virtual_s: float

    @property
    def net_cpu_s(self) -> float:
        """CPU that healing took beyond what a quiet time as long takes."""
        return self.heal_cpu_s - self.quiet_share * self.virtual_s


async def heal(agents: int) -> Healing:
    dead = round(agents * SHARE)
    allowed_s = heal_s(dead, agents, RestartLimits())
    simulation = Simulation(1, agents, 0.0, QUIET, witness=NoWitness())
    world = RareBeats(1, agents)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.turn)
        end = SETTLED_S + QUIET_S + PATIENCE * allowed_s
        nursery.start_soon(simulation._live, world, MemoryActions(), end)
        await trio.sleep(SETTLED_S)
        settled = time.process_time()
        await trio.sleep(QUIET_S)
        killed = time.process_time()
        died_at = trio.current_time()
        world.kill(dead)
        missing = frozenset(world.missing)
        with trio.move_on_at(end - 1):
            await world.healed.wait()
        ended = time.process_time()
        nursery.cancel_scope.cancel()
    times = sorted(
        at - died_at
        for (agent, epoch), at in world.heard_at.items()
        if agent in missing - world.missing and epoch == world.agents[agent].epoch
    )
    return Healing(
        dead,
        tuple(times),
        sum(deed.what == "spawn" for deed in world.deeds),
        len(world.broken),
        (killed - settled) / QUIET_S,
        ended - killed,
        trio.current_time() - died_at,
    )


def row(agents: int, healing: Healing) -> str:
    limits = RestartLimits()
    dead, times = healing.dead, healing.healed_s
    allowed_s = heal_s(dead, agents, limits)
    budget_s = max(0, dead - limits.at_once(agents)) / limits.per_s(agents)
    last_s = times[-1] if len(times) == dead else float("inf")
    median_s = times[len(times) // 2] if times else float("inf")
    return (
        f"{agents:>7} {dead:>6} {len(times):>7} {healing.spawns:>9} {healing.broken:>7}"
        f" {median_s:>8.0f} {last_s:>8.0f} {budget_s:>9.0f} {allowed_s:>7.0f}"
        f" {last_s / allowed_s:>7.2f} {healing.quiet_share * 100:>6.2f} %"
        f" {healing.heal_cpu_s / healing.virtual_s * 100:>6.2f} %"
        f" {healing.net_cpu_s / dead * 1e3:>12.1f}"
    )


def main() -> None:
    quiet_logs()
    print(
        f"{'agents':>7} {'dead':>6} {'healed':>7} {'restarts':>9} {'broken':>7} {'half, s':>8}"
        f" {'all, s':>8} {'budget, s':>9} {'heal_s':>7} {'ratio':>7} {'quiet':>8} {'healing':>8}"
        f" {'net ms/dead':>12}"
    )
    for agents in map(int, sys.argv[1:] or SIZES):
        clock = trio.testing.MockClock(autojump_threshold=0)
        print(row(agents, trio.run(heal, agents, clock=clock)), flush=True)
    print(
        "quiet, healing: CPU of one processor, by virtual time."
        f" Load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
