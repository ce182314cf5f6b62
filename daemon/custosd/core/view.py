"""The fleet as it stands: a frozen value, made anew by each batch of facts.

Laws:

1. `FleetView.after(entries)` is the only way to a new view; it never fails on a fact
   about an agent that it does not know (that agent is then simply met late).
2. Cost of a batch: one shallow copy of the table of agents plus the batch itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from custosd.core.agents import TRANSITIONS, AgentId, AgentRef, AgentState
from custosd.core.evidence import Condition
from custosd.core.facts import (
    AgentDismissed,
    AgentForgotten,
    AgentSeen,
    ConcernResolved,
    ConductorSwept,
    Entry,
    Escalated,
    Fact,
    HoldLifted,
    HoldPlaced,
    LifeChanged,
    RestartChanged,
    StandingChanged,
    StateChanged,
    SweepFinished,
    TrajectoryAdvanced,
    VerdictReached,
)
from custosd.core.holds import Hold, HoldKind
from custosd.core.lives import LifeView
from custosd.core.restarts import ENDED
from custosd.core.trajectory import TrajectoryDigest
from custosd.core.verdicts import Standing, Verdict


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent, as last heard. `standing` is what is held of it (after hysteresis)."""

    ref: AgentRef
    format: str
    path: str
    parent: str
    seen_utc: datetime
    state: AgentState = AgentState.STARTING
    digest: TrajectoryDigest | None = None
    grown_utc: datetime | None = None
    standing: Standing = Standing.UNKNOWN
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Concern:
    """What a person was asked to look at, and has not been resolved yet."""

    id: str
    kind: str
    agent: AgentId | None
    reason: str
    since_utc: datetime


@dataclass(frozen=True, slots=True)
class Hands:
    """The acting half: lives, restarts under way, holds and concerns, by agent, key and id.

    Apart from the agents' table, and shared by views between which none of it changed.
    """

    lives: Mapping[AgentId, LifeView] = field(default_factory=lambda: MappingProxyType({}))
    restarting: Mapping[AgentId, RestartChanged] = field(
        default_factory=lambda: MappingProxyType({})
    )
    holds: Mapping[tuple[HoldKind, str], Hold] = field(default_factory=lambda: MappingProxyType({}))
    concerns: Mapping[str, Concern] = field(default_factory=lambda: MappingProxyType({}))

    def after(self, told: Sequence[tuple[datetime, Fact]]) -> "Hands":
        """What follows when these facts have happened."""
        lives, restarting = dict(self.lives), dict(self.restarting)
        holds, concerns = dict(self.holds), dict(self.concerns)
        for at_utc, fact in told:
            match fact:
                case LifeChanged():
                    lives[fact.agent] = LifeView(
                        fact.agent,
                        fact.epoch,
                        fact.after,
                        fact.condition,
                        fact.value,
                        fact.reason,
                        at_utc,
                        fact.evidence,
                    )
                case AgentDismissed():
                    lives.pop(fact.agent, None)
                    restarting.pop(fact.agent, None)
                case RestartChanged():
                    restarting.pop(fact.agent, None)
                    if fact.state not in ENDED:
                        restarting[fact.agent] = fact
                case HoldPlaced(hold=hold):
                    holds[hold.key] = hold
                case HoldLifted():
                    holds.pop((fact.kind, fact.subject), None)
                case Escalated():
                    concerns.setdefault(
                        fact.concern,
                        Concern(fact.concern, fact.kind, fact.agent, fact.reason, at_utc),
                    )
                case ConcernResolved():
                    concerns.pop(fact.concern, None)
                case _:
                    pass
        return Hands(
            MappingProxyType(lives),
            MappingProxyType(restarting),
            MappingProxyType(holds),
            MappingProxyType(concerns),
        )


_FOR_HANDS = (
    LifeChanged,
    AgentDismissed,
    RestartChanged,
    HoldPlaced,
    HoldLifted,
    Escalated,
    ConcernResolved,
)


_GONE = frozenset({AgentState.TERMINATED, AgentState.FAILED})


@dataclass(frozen=True, slots=True)
class FleetView:
    """All agents, by id, and the last sweep. `version` grows by one a batch."""

    agents: Mapping[AgentId, AgentView] = field(default_factory=lambda: MappingProxyType({}))
    last_sweep: SweepFinished | None = None
    last_sweep_utc: datetime | None = None
    sweeps: int = 0
    version: int = 0
    hands: Hands = field(default_factory=Hands)
    conducted: ConductorSwept | None = None
    """How the fleet as a whole stood when the conductor looked last."""

    def is_gone(self, agent: AgentId) -> bool:
        """Whether it is known that nobody works under this name, nor is being started anew."""
        life, view = self.hands.lives.get(agent), self.agents.get(agent)
        if life is not None and agent not in self.hands.restarting:
            return life.condition is Condition.DEAD or life.state in _GONE
        return view is None or view.state in _GONE

    def after(self, entries: Iterable[Entry]) -> "FleetView":
        """The view that follows when these facts, in this order, have happened."""
        agents = dict(self.agents)
        sweep, sweep_utc, sweeps = self.last_sweep, self.last_sweep_utc, self.sweeps
        conducted = self.conducted
        for_hands: list[tuple[datetime, Fact]] = []
        for entry in entries:
            if isinstance(entry.fact, SweepFinished):
                sweep, sweep_utc, sweeps = entry.fact, entry.at_utc, sweeps + 1
            elif isinstance(entry.fact, ConductorSwept):
                conducted = entry.fact
            elif isinstance(entry.fact, _FOR_HANDS):
                for_hands.append((entry.at_utc, entry.fact))
            else:
                _apply(agents, entry)
        hands = self.hands.after(for_hands) if for_hands else self.hands
        version = self.version + 1
        table = MappingProxyType(agents)
        return FleetView(table, sweep, sweep_utc, sweeps, version, hands, conducted)


def _apply(agents: dict[AgentId, AgentView], entry: Entry) -> None:
    match entry.fact:
        case AgentSeen(ref=ref) as seen:
            agents[ref.agent] = AgentView(ref, seen.format, seen.path, seen.parent, seen.seen_utc)
        case AgentForgotten(ref=ref):
            if ref.agent in agents and agents[ref.agent].ref == ref:
                del agents[ref.agent]
        case TrajectoryAdvanced(ref=ref) as grown:
            known = _known(agents, ref, entry)
            agents[ref.agent] = replace(known, digest=grown.digest, grown_utc=grown.grown_utc)
        case VerdictReached(verdict=verdict):
            known = _known(agents, verdict.ref, entry)
            agents[known.ref.agent] = replace(known, verdict=verdict)
        case StandingChanged(ref=ref, after=after):
            agents[ref.agent] = replace(_known(agents, ref, entry), standing=after)
        case StateChanged(ref=ref, after=state):
            known = _known(agents, ref, entry)
            # A change that the table does not know is not believed (see core.agents).
            if state in TRANSITIONS[known.state]:
                agents[ref.agent] = replace(known, state=state)
        case _:
            pass


def _known(agents: dict[AgentId, AgentView], ref: AgentRef, entry: Entry) -> AgentView:
    known = agents.get(ref.agent)
    if known is None or known.ref != ref:
        known = AgentView(ref, "", "", "", entry.at_utc)
    return known
