"""Runs the real daemon over a simulated fleet, for virtual hours, from one seed.

    python -m tests.simulation.run --agents 1000 --hours 10 --seeds 1-10

A failing seed is printed with what broke; run with the same seed it does the same again.
"""

import argparse
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
import trio
import trio.testing
from tests.simulation.faults import DaemonFault, Rates, plan
from tests.simulation.witness import Excuses, Illness, Witness, broken, illnesses
from tests.simulation.world import (
    SimulatedControl,
    SimulatedProber,
    SimulatedWatch,
    World,
)

from custosd.acting import Doors, Hands, restarter_settings
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.scripted_source import ScriptedSource
from custosd.app import Outside, supervise_fleet
from custosd.config.acting import RestartSettings
from custosd.config.agents import AgentSettings
from custosd.config.reading import Reading
from custosd.config.settings import Config
from custosd.core.agents import AgentId
from custosd.core.errors import StoreUnavailable
from custosd.core.evidence import ProcessIdentity
from custosd.ports import Restored, TranscriptSource

Strike = Callable[[World, float], None]
"""Puts things of a test's own on the world's calendar, which begins at this time."""

START_UTC = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed: `problems` is empty if every invariant held."""

    seed: int
    agent_hours: float
    problems: tuple[str, ...]
    illnesses: tuple[Illness, ...]
    spawns: int
    beats: int
    looks: int
    unknowable: int
    wall_s: float
    digest: int


@dataclass(slots=True)
class Simulation:
    """One seed's run; the stores outlive the daemon's restarts."""

    seed: int
    agents: int
    hours: float
    rates: Rates
    restarts: RestartSettings = field(default_factory=RestartSettings)
    strike: Strike | None = None
    wall_offset_s: float = 0.0
    away: bool = False
    lives: int = 0
    set_forward: bool = False
    """The wall clock, since the daemon was started last."""
    store: MemoryStore = field(default_factory=MemoryStore)
    witness: Witness = field(default_factory=Witness)
    excuses: Excuses = field(default_factory=Excuses)

    async def run(self) -> Outcome:
        """Live through the hours. Raises what the daemon raises: that is a problem, too."""
        began = time.monotonic()
        world = World(self.seed, self.agents)
        actions = MemoryActions()
        start = trio.current_time()
        end = start + self.hours * 3600
        faults = plan(world, self.rates, self.hours, start)
        if self.strike is not None:
            self.strike(world, start)
        async with trio.open_nursery() as nursery:
            await nursery.start(world.turn)
            nursery.start_soon(self._spoil_store, actions, faults)
            nursery.start_soon(self._set_clocks, faults)
            for fault in [*(f for f in faults if f.kind == "restart"), None]:
                until = end if fault is None else fault.at
                await self._live(world, actions, until)
                if fault is None or trio.current_time() >= end:
                    break
                down_at = trio.current_time()
                await trio.sleep_until(min(end, max(fault.at + fault.length, down_at)))
                # While it is away and for the amnesty after that, nothing can be seen.
                self.excuses.add(down_at, trio.current_time() + 400)
                if self.set_forward:
                    self.excuses.recounted.append(trio.current_time())
                self.set_forward = False
            nursery.cancel_scope.cancel()
        told = tuple(illnesses(world, self.witness, self.excuses))
        limits = restarter_settings(self.restarts).limits
        problems = broken(world, self.witness, self.excuses, end, limits)
        return Outcome(
            self.seed,
            self.agents * self.hours,
            tuple(problems),
            told,
            sum(deed.what == "spawn" for deed in world.deeds),
            world.said,
            world.looks,
            world.unknowable,
            time.monotonic() - began,
            hash(tuple((round(d.at, 6), d.agent, d.what) for d in world.deeds)),
        )

    def now_utc(self) -> datetime:
        """The wall clock, which may be set."""
        return START_UTC + timedelta(seconds=trio.current_time() + self.wall_offset_s)

    async def _live(self, world: World, actions: MemoryActions, until: float) -> None:
        """One life of the daemon, to a kill: nothing is drained."""
        if trio.current_time() >= until:
            return
        agents = tuple(
            AgentSettings(
                id=agent.id,
                account=agent.account,
                host=agent.host,
                control="command",
                start=("x",),
                # Every other one is known by its beats and its process alone.
                workspace=Path("/") if number % 2 else None,
            )
            for number, agent in enumerate(world.agents.values())
        )
        config = Config(agents=agents, restarts=self.restarts)
        async with trio.open_nursery() as life:
            outside = Outside(
                self.store,
                self._open_source,
                lambda _: nullcontext(RulesJudge()),
                RecordingServiceManager(),
                self.now_utc,
                self._hands(world, actions),
                lambda: Reading(config, {}),
                seen=lambda view: life.start_soon(self.witness.watch, view),
            )
            life.start_soon(supervise_fleet, config, outside, trio.Event())
            await trio.sleep_until(until)
            # A kill: nothing that is in flight, or that it would still like to write, arrives.
            self._cut_off(actions)
            life.cancel_scope.cancel()
        self._connect(actions)
        world.door = None
        world.watches.clear()

    @asynccontextmanager
    async def _open_source(self, restored: Restored) -> AsyncIterator[TranscriptSource]:
        yield ScriptedSource(self.now_utc, restored.positions)

    def _hands(self, world: World, actions: MemoryActions) -> Hands:
        async def serve(doors: Doors, task_status: trio.TaskStatus[None]) -> None:
            world.door = doors.beats
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                world.door = None

        def identify(pid: int) -> ProcessIdentity | None:
            owner = world.owners.get(pid)
            return world.identity(owner) if owner is not None and owner.pid == pid else None

        self.lives += 1
        return Hands(
            actions,
            lambda _roster: SimulatedProber(world),
            SimulatedWatch(world),
            lambda agent: SimulatedControl(world, world.agents[AgentId(agent.id)]),
            lambda _agent: None,
            lambda _alerts: (),
            serve,
            identify,
            trio.current_time,
            f"custosd:{self.lives}",
            lambda owner: owner != f"custosd:{self.lives}",
        )

    async def _spoil_store(self, actions: MemoryActions, faults: Sequence[DaemonFault]) -> None:
        for fault in faults:
            if fault.kind != "store":
                continue
            await trio.sleep_until(fault.at)
            self.away = True
            self._cut_off(actions)
            await trio.sleep(fault.length)
            self.away = False
            self._connect(actions)
            self.excuses.add(fault.at, trio.current_time() + 400)

    def _cut_off(self, actions: MemoryActions) -> None:
        self.store.fail_with(StoreUnavailable("the simulated database is away"))
        actions.fail_with(StoreUnavailable("the simulated database is away"))

    def _connect(self, actions: MemoryActions) -> None:
        if not self.away:
            self.store.fail_with(None)
            actions.fail_with(None)

    async def _set_clocks(self, faults: Sequence[DaemonFault]) -> None:
        for fault in faults:
            if fault.kind == "wall":
                await trio.sleep_until(fault.at)
                self.wall_offset_s += fault.length
                self.set_forward |= fault.length > 0


def simulate(
    seed: int,
    agents: int,
    hours: float,
    rates: Rates,
    restarts: RestartSettings | None = None,
    strike: Strike | None = None,
) -> Outcome:
    """Run one seed in its own event loop and virtual time."""
    # trio shuffles ready tasks; seeded, the same seed meets the same order.
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    trio._core._run._r = random.Random(seed)  # type: ignore[attr-defined]
    random.seed(seed)
    simulation = Simulation(seed, agents, hours, rates, restarts or RestartSettings(), strike)
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(simulation.run, clock=clock)


def quiet_logs() -> None:
    """Say nothing of what the daemon logs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Figures over all outcomes, for people."""
    lines = []
    hours = sum(outcome.agent_hours for outcome in outcomes)
    for what in ("crashed", "froze", "hollowed"):
        ills = [ill for outcome in outcomes for ill in outcome.illnesses if ill.what == what]
        seen = sorted(ill.seen_s for ill in ills if ill.seen_s is not None)
        answered = sorted(ill.answered_s for ill in ills if ill.answered_s is not None)
        if ills:
            lines.append(
                f"{what:9} {len(ills):7}   seen {len(seen):7}: {_quantiles(seen)}"
                f"   answered {len(answered):7}: {_quantiles(answered)}"
            )
    spawns = sum(outcome.spawns for outcome in outcomes)
    beats = sum(outcome.beats for outcome in outcomes)
    wall_s = sum(outcome.wall_s for outcome in outcomes)
    lines.append(
        f"{hours:,.0f} agent-hours, {spawns} restarts, {beats:,} beats in {wall_s:.0f} s;"
        f" {sum(len(outcome.problems) for outcome in outcomes)} broken invariants,"
        f" {sum(outcome.unknowable for outcome in outcomes)} acts where nothing could be known"
    )
    return "\n".join(lines)


def _quantiles(ordered: Sequence[float]) -> str:
    if not ordered:
        return "-"
    half, most = (
        ordered[len(ordered) // 2],
        ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    )
    return f"p50 {half:6.1f} s, p99 {most:7.1f} s"


def main() -> None:
    """Run seeds one after another; exit with 1 if an invariant broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--hours", type=float, default=5.0)
    parser.add_argument("--seeds", type=_seeds, default=range(1, 6))
    parser.add_argument("--times", type=float, default=1.0, help="how much more often")
    asked = parser.parse_args()
    quiet_logs()
    outcomes = []
    for seed in asked.seeds:
        outcome = simulate(seed, asked.agents, asked.hours, Rates().times(asked.times))
        outcomes.append(outcome)
        verdict = "held" if not outcome.problems else f"BROKEN ({len(outcome.problems)})"
        print(
            f"seed {seed}: {verdict}, {outcome.spawns} restarts, {outcome.wall_s:.1f} s", flush=True
        )
        for problem in outcome.problems[:10]:
            print(f"    {problem}")
    print(summary(outcomes))
    sys.exit(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    main()
