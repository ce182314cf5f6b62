"""A prober that sees what it is told: the shipped fake, for tests and drills."""

from collections import deque

import trio

from custosd.core.agents import AgentId
from custosd.core.evidence import Observation, ProcessIdentity, Source
from custosd.ports import Prober


class ScriptedProber(Prober):
    """Sees of each agent and source the next of its observations; the last one for ever.

    A source of which nothing was told is one that the agent does not have. Every probe takes
    `delay_s`. `probes` are the agents that were looked at, in order.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.probes: list[AgentId] = []
        self._seen: dict[tuple[AgentId, Source], deque[Observation]] = {}

    def will_see(self, agent: AgentId, *seen: Observation) -> None:
        """Let these be seen, in place of what was told before of their sources."""
        for source in {one.source for one in seen}:
            self._seen[agent, source] = deque(one for one in seen if one.source is source)

    async def probe(
        self,
        agent: AgentId,
        process: ProcessIdentity | None,  # noqa: ARG002 - the port's
        sources: frozenset[Source],
    ) -> tuple[Observation, ...]:
        """See the port."""
        self.probes.append(agent)
        await trio.sleep(self.delay_s)
        return tuple(
            self._next(agent, source) for source in sorted(sources) if (agent, source) in self._seen
        )

    def _next(self, agent: AgentId, source: Source) -> Observation:
        script = self._seen[agent, source]
        return script.popleft() if len(script) > 1 else script[0]
