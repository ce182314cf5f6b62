"""A context that says what it was told to: the shipped fake of `ContextSource`."""

from collections.abc import Mapping

import trio

from custosd.core.view import AgentView
from custosd.ports import ContextPart, ContextSource


class ScriptedContext(ContextSource):
    """Parts by their names, the same for every agent; `asked` says which were asked for."""

    def __init__(self, parts: Mapping[str, str]) -> None:
        self._parts = dict(parts)
        self.asked: list[str] = []

    async def part(self, name: str, agent: AgentView) -> ContextPart:
        """See the port; a name that was not told of is absent."""
        del agent
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        if name not in self._parts:
            return ContextPart(name, None, "unknown_part")
        return ContextPart(name, self._parts[name])
