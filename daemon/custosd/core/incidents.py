"""Common causes: agents that fail alike are one incident, and one of them goes first.

    strike, breaker --> [ Incidents ] --> gate: may this agent be restarted now?
    restarted, recovered ────┘   └── tick: what opened, grew, failed, ended

Laws:

1. While an incident is open, of the agents that it names one at a time is restarted. When
   that one has lived for `probe_stable_s`, the incident is over; when it has not, the next
   try waits, longer each time.
2. An incident that is over does not open again for the same deaths.
3. Times are trio's clock. What is told is told once, by the call that made it so.
"""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from custosd.core.agents import AgentId
from custosd.core.evidence import Condition
from custosd.core.restart_budget import RestartLimits

BREAKER = "breaker"
"""Incidents with an id below this are the fleet breaker's: too many suspects at once."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One common cause. `id` is what the agents have in common.

    `probe` is the one that goes first, `alive_at` since when it is up again; `passed`: one
    has proved that it can be done, though the fleet breaker is still open.
    """

    id: str
    opened_at: float
    agents: frozenset[AgentId] = frozenset()
    probe: AgentId | None = None
    alive_at: float | None = None
    failures: int = 0
    next_probe_at: float = -math.inf
    passed: bool = False


class IncidentTurn(StrEnum):
    """What became of an incident."""

    OPENED = "opened"
    GREW = "grew"
    PROBE_FAILED = "probe_failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class IncidentNews:
    """One turn of one incident; `reason` says why it closed."""

    turn: IncidentTurn
    incident: Incident
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether incidents let an agent through; `probe` is the incident it would go first for.

    Where it does not, `incident` says which one holds it, `until_at` when to ask again.
    """

    open: bool
    incident: str = ""
    until_at: float | None = None
    probe: str = ""


_FREE = Gate(open=True)
_WELL: tuple[str, float] = ("", -math.inf)


@dataclass(slots=True)
class Incidents:
    """All incidents that are open, and what may become one."""

    limits: RestartLimits
    _open: dict[str, Incident] = field(default_factory=dict)
    _struck: dict[AgentId, tuple[str, float]] = field(default_factory=dict)
    _recent: dict[str, dict[AgentId, float]] = field(default_factory=dict)
    _cured: dict[str, float] = field(default_factory=dict)
    _fresh: dict[AgentId, tuple[str, float]] = field(default_factory=dict)

    def open_ones(self) -> tuple[Incident, ...]:
        """Every incident that is open, oldest first."""
        return tuple(sorted(self._open.values(), key=lambda one: (one.opened_at, one.id)))

    def get(self, incident: str) -> Incident | None:
        """The open incident of this id."""
        return self._open.get(incident)

    def restore(self, incident: str, agents: frozenset[AgentId], now: float) -> None:
        """Take up an incident that was open before our own restart; it looks for a probe."""
        self._open.setdefault(incident, Incident(incident, now, agents))

    def strike(
        self, agent: AgentId, fingerprint: str, at: float, alike: int
    ) -> tuple[IncidentNews, ...]:
        """An agent died, or hangs, so. `alike`: so many are a common cause.

        To be told once for each death; repeating it does no harm.
        """
        if self._struck.get(agent, _WELL)[0] == fingerprint:
            return ()
        self._struck[agent] = (fingerprint, at)
        news = list(self._failed_probe(agent, at))
        recent = self._recent.setdefault(fingerprint, {})
        recent[agent] = at
        start = max(at - self.limits.common_period_s, self._cured.get(fingerprint, -math.inf))
        for other in [other for other, then in recent.items() if then < start]:
            del recent[other]
        incident = self._open.get(fingerprint)
        if incident is not None:
            news += self._grown(incident, frozenset({agent}))
        elif len(recent) >= alike:
            # Who died of it and is up again already is not waited for.
            members = frozenset(
                other for other in recent if self._struck.get(other, _WELL)[0] == fingerprint
            )
            opened = Incident(fingerprint, at, members)
            if alike == 1:
                # One is enough where the cause lies outside: it is not tried again at once.
                opened = replace(opened, next_probe_at=at + self.limits.backoff_s)
            self._open[fingerprint] = opened
            news.append(IncidentNews(IncidentTurn.OPENED, opened))
        return tuple(news)

    def breaker(
        self, scope: str, agents: frozenset[AgentId], now: float, *, is_open: bool
    ) -> tuple[IncidentNews, ...]:
        """The fleet breaker of a scope stands so; `agents` are those in it that are bad."""
        key = f"{BREAKER}/{scope}"
        incident = self._open.get(key)
        if not is_open:
            return () if incident is None else (self._closed(incident, "breaker_closed"),)
        if incident is None:
            self._open[key] = opened = Incident(key, now, agents)
            return (IncidentNews(IncidentTurn.OPENED, opened),)
        return self._grown(incident, agents)

    def breakers(self) -> frozenset[str]:
        """The scopes whose breaker is open."""
        return frozenset(
            one.id.removeprefix(f"{BREAKER}/")
            for one in self._open.values()
            if one.id.startswith(f"{BREAKER}/")
        )

    def gate(self, agent: AgentId, condition: Condition, now: float) -> Gate:
        """Whether this agent may be restarted now, as far as common causes go."""
        probes = ""
        for incident in self.open_ones():
            if agent not in incident.agents:
                continue
            if incident.id.startswith(f"{BREAKER}/") and condition is not Condition.DEAD:
                # So many suspects may be our own trouble: what still runs is left alone.
                return Gate(open=False, incident=incident.id)
            if incident.passed or incident.probe == agent:
                continue
            if incident.probe is not None:
                until_at = None
                if incident.alive_at is not None:
                    until_at = incident.alive_at + self.limits.probe_stable_s
                return Gate(open=False, incident=incident.id, until_at=until_at)
            if now < incident.next_probe_at:
                return Gate(open=False, incident=incident.id, until_at=incident.next_probe_at)
            probes = incident.id
        return _FREE if not probes else Gate(open=True, probe=probes)

    def names(self, agent: AgentId) -> str:
        """An open incident that names this agent; "" where none does."""
        return next((one.id for one in self.open_ones() if agent in one.agents), "")

    def cured(self, agent: AgentId) -> bool:
        """Whether what this agent died of has been shown to be over since."""
        fingerprint, at = self._struck.get(agent, _WELL)
        return self._cured.get(fingerprint, -math.inf) > at

    def began(self, agent: AgentId) -> None:
        """An agent is being restarted: where it is named, and nobody goes first, it does."""
        for incident in self.open_ones():
            if agent in incident.agents and incident.probe is None and not incident.passed:
                self._open[incident.id] = replace(incident, probe=agent, alive_at=None)

    def restarted(
        self, agent: AgentId, now: float, *, succeeded: bool, abandoned: bool = False
    ) -> tuple[IncidentNews, ...]:
        """A restart ended. One that was abandoned leaves its place to the next agent."""
        if succeeded:
            fingerprint = self._struck.pop(agent, _WELL)[0]
            self._fresh[agent] = (fingerprint, now)
            for incident in self._probed_by(agent):
                self._open[incident.id] = replace(incident, alive_at=now)
            return ()
        if not abandoned:
            return self._failed_probe(agent, now)
        for incident in self._probed_by(agent):
            self._open[incident.id] = replace(incident, probe=None, alive_at=None)
        return ()

    def recovered(self, agent: AgentId) -> tuple[IncidentNews, ...]:
        """An agent is well again; one that nobody restarted needs nobody to go first."""
        if agent in self._fresh or any(self._probed_by(agent)):
            return ()
        self._struck.pop(agent, None)
        news: list[IncidentNews] = []
        for incident in self.open_ones():
            if agent in incident.agents:
                left = replace(incident, agents=incident.agents - {agent})
                self._open[incident.id] = left
                if not left.agents and not left.id.startswith(f"{BREAKER}/"):
                    news.append(self._closed(left, "recovered"))
        return tuple(news)

    def lift(self, incident: str) -> tuple[IncidentNews, ...]:
        """Somebody says that it is over."""
        known = self._open.get(incident)
        if known is None:
            return ()
        self._remember_cure(known.id, max(known.opened_at, self._last_strike(known)))
        return (self._closed(known, "lifted"),)

    def tick(self, now: float) -> tuple[IncidentNews, ...]:
        """Close what has been proved to be over by `now`."""
        news: list[IncidentNews] = []
        for agent, (fingerprint, alive_at) in list(self._fresh.items()):
            if now < alive_at + self.limits.probe_stable_s:
                continue
            del self._fresh[agent]
            self._remember_cure(fingerprint, alive_at)
            for incident in self.open_ones():
                if incident.id != fingerprint and incident.probe != agent:
                    continue
                if incident.id.startswith(f"{BREAKER}/"):
                    self._open[incident.id] = replace(incident, passed=True)
                else:
                    self._remember_cure(incident.id, alive_at)
                    news.append(self._closed(incident, "probe_lived"))
        return tuple(news)

    def next_at(self, now: float) -> float:
        """The next time after `now` at which `tick` or `gate` says something new; inf: none."""
        lives = [alive_at + self.limits.probe_stable_s for _, alive_at in self._fresh.values()]
        tries = [one.next_probe_at for one in self._open.values() if one.probe is None]
        return min((at for at in [*lives, *tries] if at > now), default=math.inf)

    def _grown(self, incident: Incident, agents: frozenset[AgentId]) -> tuple[IncidentNews, ...]:
        if agents <= incident.agents:
            return ()
        grown = self._open[incident.id] = replace(incident, agents=incident.agents | agents)
        return (IncidentNews(IncidentTurn.GREW, grown),)

    def _failed_probe(self, agent: AgentId, now: float) -> tuple[IncidentNews, ...]:
        self._fresh.pop(agent, None)
        news: list[IncidentNews] = []
        for incident in self._probed_by(agent):
            failures = incident.failures + 1
            again_at = now + self.limits.pause_s(failures, 0.0)
            failed = self._open[incident.id] = replace(
                incident, probe=None, alive_at=None, failures=failures, next_probe_at=again_at
            )
            news.append(IncidentNews(IncidentTurn.PROBE_FAILED, failed))
        return tuple(news)

    def _probed_by(self, agent: AgentId) -> tuple[Incident, ...]:
        return tuple(one for one in self._open.values() if one.probe == agent)

    def _closed(self, incident: Incident, reason: str) -> IncidentNews:
        self._open.pop(incident.id, None)
        return IncidentNews(IncidentTurn.CLOSED, incident, reason)

    def _last_strike(self, incident: Incident) -> float:
        struck = (self._struck.get(agent, _WELL) for agent in incident.agents)
        return max((at for _, at in struck), default=-math.inf)

    def _remember_cure(self, fingerprint: str, at: float) -> None:
        if not fingerprint:
            return
        self._cured[fingerprint] = max(at, self._cured.get(fingerprint, -math.inf))
