"""What the restarter tells: each concern once until it is over, each reason to wait once.

Laws: a concern that was escalated stays until it is resolved here, whatever became of its
reason. What was told before our own restart is taken up from the view, not told again.
"""

from collections.abc import Callable, Collection, Iterable
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.errors import StoreError
from custosd.core.facts import ConcernResolved, Escalated, Fact, RestartWithheld
from custosd.core.holds import Hold, HoldKind
from custosd.core.incidents import BREAKER, Incident, IncidentNews, Incidents, IncidentTurn
from custosd.core.restarts import Cause
from custosd.services.holds import Holds

log = structlog.get_logger()

US = "custosd"
"""Who places the holds that no person has placed."""

_KINDS = ("life", "quarantine", "incident")


class RestartConcerns:
    """Concerns "life:AGENT", "quarantine:AGENT" and "incident:ID"; who waits, and why."""

    def __init__(self, facts: trio.MemorySendChannel[Fact], known: Collection[str] = ()) -> None:
        self._facts = facts
        self._open = {name for name in known if name.split(":", 1)[0] in _KINDS}
        self._withheld: dict[AgentId, tuple[int, str]] = {}

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """What the open concerns of one kind are about."""
        prefix = f"{kind}:"
        return tuple(
            sorted(name.removeprefix(prefix) for name in self._open if name.startswith(prefix))
        )

    async def escalate(self, kind: str, subject: str, reason: str) -> None:
        """A person is needed; told once until it is resolved."""
        name = f"{kind}:{subject}"
        if name not in self._open:
            self._open.add(name)
            agent = None if kind == "incident" else AgentId(subject)
            log.warning("concern.opened", concern=name, reason=reason)
            await self._facts.send(Escalated(name, kind, agent, reason))

    async def resolve(self, kind: str, subject: str, reason: str) -> None:
        """It is over; nothing is told where nothing was."""
        name = f"{kind}:{subject}"
        if name in self._open:
            self._open.discard(name)
            log.info("concern.closed", concern=name, reason=reason)
            await self._facts.send(ConcernResolved(name, reason))

    async def withhold(
        self, agent: AgentId, epoch: int, cause: Cause, why: str, until_s: float | None
    ) -> None:
        """An agent that needs a restart does not get one now; told once for each reason."""
        if self._withheld.get(agent) != (epoch, why):
            self._withheld[agent] = (epoch, why)
            log.info("restart.withheld", agent=agent, cause=cause, why=why, until_s=_short(until_s))
            await self._facts.send(RestartWithheld(agent, epoch, cause, why, until_s))

    def untold(self, agents: Iterable[AgentId], why: str) -> list[AgentId]:
        """Those of these agents of whom this was not what was told last."""
        return [agent for agent in agents if self._withheld.get(agent, (0, ""))[1] != why]

    def no_longer_withheld(self, agent: AgentId) -> None:
        """The next reason to withhold is a new one."""
        self._withheld.pop(agent, None)


class IncidentDesk:
    """Brings what became of incidents to holds, the record and people."""

    def __init__(
        self,
        incidents: Incidents,
        holds: Holds,
        concerns: RestartConcerns,
        now_utc: Callable[[], datetime],
    ) -> None:
        self._incidents = incidents
        self._holds = holds
        self._concerns = concerns
        self._now_utc = now_utc
        self._placed: set[str] = set()

    def restore(self, now: float) -> None:
        """Take up the incidents that were open before our own restart."""
        for hold in self._ours():
            self._placed.add(hold.subject)
            agents = frozenset(AgentId(name) for name in hold.agents)
            self._incidents.restore(hold.subject, agents, now)

    async def tell(self, news: Iterable[IncidentNews]) -> None:
        """Tell each turn; hold, or let go, the agents of each incident once for all turns."""
        latest: dict[str, IncidentNews] = {}
        for turn in news:
            latest[turn.incident.id] = turn
            incident = turn.incident
            log.warning(
                "incident.changed",
                incident=incident.id,
                turn=turn.turn,
                agents=len(incident.agents),
                failures=incident.failures,
                reason=turn.reason,
            )
            if turn.turn is IncidentTurn.OPENED:
                reason = reason_of(incident.id)
                await self._concerns.escalate("incident", incident.id, reason)
        for turn in latest.values():
            if turn.turn is IncidentTurn.CLOSED:
                await self._let_go(turn.incident.id, turn.reason)
                await self._concerns.resolve("incident", turn.incident.id, turn.reason)
            else:
                await self._hold(turn.incident)

    async def follow(self) -> tuple[IncidentNews, ...]:
        """End the incidents whose hold a person has lifted; lift what should be lifted."""
        news: list[IncidentNews] = []
        for name in sorted(self._placed):
            if self._holds.get(HoldKind.INCIDENT, name) is None:
                self._placed.discard(name)
                news += self._incidents.lift(name)
        for hold in self._ours():
            if self._incidents.get(hold.subject) is None:
                await self._let_go(hold.subject, "over")
        return tuple(news)

    async def _hold(self, incident: Incident) -> None:
        agents = tuple(sorted(incident.agents))
        known = self._holds.get(HoldKind.INCIDENT, incident.id)
        if known is not None and known.agents == agents:
            return
        since_utc = self._now_utc() if known is None else known.since_utc
        self._placed.add(incident.id)
        await self._holds.place(
            Hold(HoldKind.INCIDENT, incident.id, US, "common_cause", since_utc, agents=agents)
        )

    async def _let_go(self, name: str, reason: str) -> None:
        self._placed.discard(name)
        try:
            await self._holds.lift(HoldKind.INCIDENT, name, US, reason)
        except StoreError as error:
            # Nothing waits for it any more; `follow` tries again with the next look.
            log.info("hold.unlifted", kind=HoldKind.INCIDENT, subject=name, error=str(error))

    def _ours(self) -> tuple[Hold, ...]:
        return tuple(
            hold for hold in self._holds.all() if hold.kind is HoldKind.INCIDENT and hold.by == US
        )


def reason_of(incident: str) -> str:
    """Why a person is asked about an incident."""
    return "many_suspects" if incident.startswith(f"{BREAKER}/") else "agents_fail_alike"


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
