"""The real liveness service with nothing around it but what a benchmark gives it."""

import time
from datetime import UTC, datetime
from typing import Any

import trio
from tests.idle_hands import BlindProber, DeafWatch

from custosd.core.agents import AgentId
from custosd.core.evidence import Source
from custosd.core.facts import Fact
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.ports import ActionStore, ProcessWatch
from custosd.services.beats import BeatRegister
from custosd.services.liveness import LivenessPorts, LivenessSettings, LivenessWatch


def now_utc() -> datetime:
    return datetime.now(UTC)


def names(agents: int) -> list[AgentId]:
    """The ids that `beat_client` beats for."""
    return [AgentId(f"agent-{n:06d}") for n in range(agents)]


class Rig:
    """A register, the lives behind it, and the service between them; `told` gets its facts."""

    def __init__(
        self,
        agents: int,
        store: ActionStore,
        limits: LivenessLimits | None = None,
        watch: ProcessWatch | None = None,
        sources: frozenset[Source] = frozenset({Source.BEAT}),
        since_s: float = 0.0,
        **ports: Any,
    ) -> None:
        limits = limits or LivenessLimits()
        self.agents = names(agents)
        self.store = store
        self.register = BeatRegister(lambda _agent: True, most_agents=agents + 1)
        self.lives = Lives(limits, self.register)
        now = trio.current_time()
        for agent in self.agents:
            self.lives.watch(Watched(agent, sources=sources), now - since_s)
        self.facts, self.told = trio.open_memory_channel[Fact](1_000_000)
        given = {
            "identify": lambda _pid: None,
            "boottime": lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        }
        self.ports = LivenessPorts(
            register=self.register,
            watch=watch or DeafWatch(),
            prober=BlindProber(),
            store=store,
            view=Latest(FleetView()),
            facts=self.facts,
            now_utc=now_utc,
            **(given | ports),
        )

    def service(self, **settings: Any) -> LivenessWatch:
        return LivenessWatch(
            self.lives, self.ports, LivenessSettings(self.lives.limits, **settings)
        )
