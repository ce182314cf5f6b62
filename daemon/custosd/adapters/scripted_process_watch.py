"""A watch over processes that are only told of: the shipped fake, for tests and drills."""

from collections.abc import Sequence

import trio

from custosd.core.agents import AgentId
from custosd.core.evidence import Exit, ProcessIdentity
from custosd.ports import Death, ProcessWatch


class ScriptedProcessWatch(ProcessWatch):
    """Every process lives until `kill`. `watched` is what is watched now, of each agent.

    `most`: so many can be watched at once; None for any number.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.watched: dict[AgentId, ProcessIdentity] = {}
        self._gone: dict[ProcessIdentity, Exit | None] = {}
        self._told, self._deaths = trio.open_memory_channel[Death](10_000)

    def kill(self, process: ProcessIdentity, exit_: Exit | None = None) -> None:
        """End a process; told of at once for each agent that it is watched for."""
        self._gone[process] = exit_
        for agent in [agent for agent, one in self.watched.items() if one == process]:
            del self.watched[agent]
            self._told.send_nowait(Death(agent, process, exit_))

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        """See the port."""
        self.forget(agent)
        if process in self._gone:
            self._told.send_nowait(Death(agent, process, self._gone[process]))
            return True
        if self.most is not None and len(self.watched) >= self.most:
            return False
        self.watched[agent] = process
        return True

    def forget(self, agent: AgentId) -> None:
        """See the port."""
        self.watched.pop(agent, None)

    async def next_deaths(self) -> Sequence[Death]:
        """See the port."""
        return [await self._deaths.receive()]
