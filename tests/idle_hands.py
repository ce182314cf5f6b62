"""Hands that do nothing: for tests of everything else."""

from collections.abc import Sequence

import trio

from custosd.acting import Hands, no_doors
from custosd.adapters.memory_actions import MemoryActions
from custosd.core.agents import AgentId
from custosd.core.evidence import Observation, ProcessIdentity, Source, Value
from custosd.ports import ActionStore, Death


class BlindProber:
    """Sees nothing."""

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(Observation(source, Value.UNKNOWN, "blind") for source in sorted(sources))


class DeafWatch:
    """Hears of no death."""

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        return False

    def forget(self, agent: AgentId) -> None:
        return

    async def next_deaths(self) -> Sequence[Death]:
        await trio.sleep_forever()
        raise AssertionError


def idle_hands(actions: ActionStore | None = None) -> Hands:
    """Nothing to act with, and no doors."""
    return Hands(
        actions or MemoryActions(),
        lambda _roster: BlindProber(),
        DeafWatch(),
        lambda _agent: None,
        lambda _agent: None,
        lambda _alerts: (),
        no_doors,
        lambda _pid: None,
        trio.current_time,
    )
