"""Answers why an agent is held to be as it is, and what will happen to it; changes nothing.

    view, lives, restarter, record, messages ──► [ core.explanations ] ──► Explanation

Law: what does not answer in time is absent in the answer, and said so.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import trio

from custosd.core.agents import AgentId
from custosd.core.changes import change
from custosd.core.errors import StoreError
from custosd.core.explanations import (
    Asked,
    Explanation,
    LifeExplained,
    Record,
    SettingOf,
    forecast,
    only_keys,
    why,
)
from custosd.core.facts import Entry
from custosd.core.outlooks import outlooks_of_letters, outlooks_of_restart
from custosd.core.restart_policy import Forecast
from custosd.core.steering import Intervention
from custosd.core.steering_policy import Clearance
from custosd.core.view import FleetView

READ_TIMEOUT_S = 5.0
"""How long the store is waited for."""

ENTRIES_OF_AGENT = 300
ENTRIES_OF_ALL = 300
"""So many entries of the record are looked through for what concerned the agent."""


class Lives(Protocol):
    """What is asked of liveness."""

    def explain(self, agent: AgentId, now: float) -> LifeExplained | None:
        """What is held of an agent's life, and why; None: it has none that is watched."""
        ...


class RestartForecaster(Protocol):
    """What is asked of whoever restarts agents."""

    def forecast(self, agent: AgentId, now: float) -> Forecast | None:
        """What it will do with an agent, and when; None: it has nothing to do with it."""
        ...


class SteeringForecaster(Protocol):
    """What is asked of whoever sends messages to agents."""

    def outlook(self, agent: AgentId) -> Sequence[tuple[Intervention, Clearance]]:
        """The open messages to an agent, and what each of them waits for."""
        ...


class History(Protocol):
    """The part of a store that tells what happened."""

    async def recent_entries(self, agent: AgentId | None, limit: int) -> tuple[Entry, ...]:
        """The newest entries of the record, of one agent or of all, newest first."""
        ...


class Explainer:
    """Whoever knows a part of an agent's story, brought together."""

    def __init__(
        self,
        lives: Lives,
        restarter: RestartForecaster,
        steerer: SteeringForecaster,
        history: History,
        view: Callable[[], FleetView],
        now_utc: Callable[[], datetime],
        setting_of: SettingOf = only_keys,
    ) -> None:
        self._lives = lives
        self._restarter = restarter
        self._steerer = steerer
        self._history = history
        self._view = view
        self._now_utc = now_utc
        self._setting_of = setting_of

    async def why(self, agent: AgentId) -> Explanation:
        """The chain of evidence to the agent's present state; waits for the store, not long."""
        record = await self._record(agent)
        asked = self._asked(agent)
        return why(asked, self._lives.explain(agent, asked.now), record)

    def forecast(self, agent: AgentId) -> Explanation:
        """What will happen when, unless what; never waits."""
        asked = self._asked(agent)
        restart = self._restarter.forecast(agent, asked.now)
        outlooks = [
            *(outlooks_of_restart(restart) if restart else ()),
            *outlooks_of_letters(self._steerer.outlook(agent), asked.now_utc),
        ]
        return forecast(asked, self._lives.explain(agent, asked.now), outlooks)

    def _asked(self, agent: AgentId) -> Asked:
        now, now_utc = trio.current_time(), self._now_utc()
        return Asked(agent, self._view(), now, now_utc, self._setting_of)

    async def _record(self, agent: AgentId) -> Record:
        """What the record tells of an agent, and of what concerned everybody."""
        try:
            with trio.fail_after(READ_TIMEOUT_S):
                own = await self._history.recent_entries(agent, ENTRIES_OF_AGENT)
                all_ = await self._history.recent_entries(None, ENTRIES_OF_ALL)
        except (StoreError, trio.TooSlowError) as error:
            return Record((), f"the record could not be read ({_words(error)})")
        known = {entry.id: entry for entry in (*own, *all_) if change(entry.fact, agent)}
        newest = sorted(known.values(), key=lambda entry: (entry.at_utc, entry.id), reverse=True)
        return Record(tuple(newest))


def _words(error: Exception) -> str:
    return str(error) or "no answer in time"
