"""Everything that may happen, in the past tense: the unit of the record.

Laws:

1. A fact is told after it happened, by whoever made or saw it happen.
2. Facts are folded into the view by one writer (`view.FleetView.after`), and written to
   the store by one other; nobody else reads them.
3. An `Entry` is a fact with its place in the record: `id` makes a second writing harmless.
"""

from dataclasses import dataclass
from datetime import datetime

from custosd.core.agents import AgentId, AgentRef, AgentState
from custosd.core.trajectory import TrajectoryDigest
from custosd.core.verdicts import Standing, Verdict


@dataclass(frozen=True, slots=True)
class DaemonStarted:
    """This process began to supervise."""

    version: str
    pid: int


@dataclass(frozen=True, slots=True)
class DaemonStopped:
    """This process ended on purpose."""

    reason: str


@dataclass(frozen=True, slots=True)
class AgentSeen:
    """An agent, or a new run of one, was met for the first time."""

    ref: AgentRef
    format: str
    path: str
    parent: str
    seen_utc: datetime


@dataclass(frozen=True, slots=True)
class AgentForgotten:
    """An agent has not grown for longer than its record is kept; it left the view."""

    ref: AgentRef


@dataclass(frozen=True, slots=True)
class TrajectoryAdvanced:
    """An agent's transcript grew by `new_steps` steps (0: only words)."""

    ref: AgentRef
    digest: TrajectoryDigest
    new_steps: int
    grown_utc: datetime


@dataclass(frozen=True, slots=True)
class TrajectoryRewound:
    """A transcript was rewritten or replaced; its run was folded anew from the start."""

    ref: AgentRef
    steps_before: int


@dataclass(frozen=True, slots=True)
class VerdictReached:
    """The guardian reached a verdict."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class StandingChanged:
    """Enough agreeing verdicts: what is held of the agent is different now."""

    ref: AgentRef
    before: Standing
    after: Standing
    verdict_id: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """An agent went from one state of its life to another (`agents.TRANSITIONS`)."""

    ref: AgentRef
    before: AgentState
    after: AgentState
    reason: str


@dataclass(frozen=True, slots=True)
class SourceTroubled:
    """A transcript could not be read as it should be; `kind` is an `Incident`'s."""

    kind: str
    path: str
    line: int
    agent: AgentId | None = None


@dataclass(frozen=True, slots=True)
class SweepFinished:
    """One guardian sweep: how many agents there are, changed, were asked about, judged."""

    agents: int
    due: int
    asked: int
    judged: int
    failed: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class FactsDropped:
    """The record has a hole: so many facts could not be kept while the store was away."""

    count: int


Fact = (
    DaemonStarted
    | DaemonStopped
    | AgentSeen
    | AgentForgotten
    | TrajectoryAdvanced
    | TrajectoryRewound
    | VerdictReached
    | StandingChanged
    | StateChanged
    | SourceTroubled
    | SweepFinished
    | FactsDropped
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A fact in the record. `id` is unique over all daemons and restarts."""

    id: str
    at_utc: datetime
    fact: Fact


def kind_of(fact: Fact) -> str:
    """The name under which a fact is stored: `VerdictReached` -> `verdict_reached`."""
    name = type(fact).__name__
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


def ref_of(fact: Fact) -> AgentRef | None:
    """Which agent a fact is about, where it is about one."""
    if isinstance(fact, VerdictReached):
        return fact.verdict.ref
    return getattr(fact, "ref", None)
