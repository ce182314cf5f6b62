"""Which value a key has at this moment, and the line that gives it: for answers to "why"."""

from custosd.config.agents import AgentSettings
from custosd.config.kinds import as_toml
from custosd.config.reading import Reading
from custosd.config.section import KeyPath, key_of
from custosd.config.tree import entry_at
from custosd.core.agents import AgentId
from custosd.core.explanations import Setting


class InForce:
    """The configuration that the daemon runs on; a reload puts the new one in its place."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def setting(self, agent: AgentId, key: str) -> Setting:
        """A key as it is in force for an agent: `agent.KEY` is one of the agent's own table.

        Without a value where there is no such table, or no such key.
        """
        path = self._path(agent, key)
        entry = None if path is None else entry_at(path)
        if path is None or entry is None:
            return Setting(key)
        value = as_toml(entry.plain(self.reading.config, path))
        origin = self.reading.origins.get(path)
        return Setting(key, value, "" if origin is None else str(origin))

    def table(self, agent: AgentId) -> tuple[Setting, ...]:
        """All keys of an agent's own table, as they apply; () where it has none."""
        if self._path(agent, "agent") is None:
            return ()
        names = [key_of(name) for name in AgentSettings.model_fields]
        return tuple(self.setting(agent, f"agent.{name}") for name in names)

    def _path(self, agent: AgentId, key: str) -> KeyPath | None:
        table, *rest = key.split(".")
        if table != "agent":
            return (table, *rest)
        for index, settings in enumerate(self.reading.config.agents):
            if settings.id == agent:
                return (table, index, *rest)
        return None
