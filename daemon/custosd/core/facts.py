"""Everything that may happen, in the past tense: the unit of the record.

Laws:

1. A fact is told after it happened, by whoever made or saw it happen.
2. Facts are folded into the view by one writer (`view.FleetView.after`), and written to
   the store by one other; nobody else reads them.
3. An `Entry` is a fact with its place in the record: `id` makes a second writing harmless.
"""

from dataclasses import dataclass
from datetime import datetime

from custosd.core.acts import Act, ActOutcome
from custosd.core.agents import AgentId, AgentRef, AgentState
from custosd.core.beats import Refusal
from custosd.core.coherence import FleetStatus, Trend
from custosd.core.evidence import Condition, Evidence, Value
from custosd.core.findings import FindingKind, Resolution
from custosd.core.forge import LinkHow, SyncOutcome, Told, Trouble, WorkKind
from custosd.core.holds import Hold, HoldKind
from custosd.core.money import Rung
from custosd.core.restarts import Cause, RestartState, RestartStep, StepState
from custosd.core.steering import InterventionState
from custosd.core.tasks import FailureKind, TaskId, TaskState
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
    """One guardian sweep: how many agents there are, changed, were asked about, judged.

    `cost_usd` is what the answers cost; `coverage` the share of agents whose last question got
    an answer (None: there is nobody); `coalesced` the missed sweeps that it stands for.
    """

    agents: int
    due: int
    asked: int
    judged: int
    failed: int
    duration_s: float
    cost_usd: float = 0.0
    coverage: float | None = None
    coalesced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductorSwept:
    """One look of the conductor at the whole fleet: what it read, found and could not judge.

    `score` is 0..1, None where nothing is known. `waiting` suspicions were left for later.
    `cost_usd` is what the answers cost; `coalesced` the missed sweeps that it stands for.
    """

    status: FleetStatus
    before: FleetStatus | None
    score: float | None
    coverage: float
    trend: Trend
    agents: int
    duplicates: int
    conflicts: int
    opened: int
    resolved: int
    suspicions: int
    asked: int
    failed: int
    waiting: int
    duration_s: float
    cost_usd: float = 0.0
    coalesced: int = 0


@dataclass(frozen=True, slots=True)
class FindingOpened:
    """The conductor found a duplicate or a conflict. Who and where is in the store."""

    finding: str
    kind: FindingKind
    agents: tuple[AgentId, ...]


@dataclass(frozen=True, slots=True)
class FindingResolved:
    """A finding is over."""

    finding: str
    kind: FindingKind
    agents: tuple[AgentId, ...]
    resolution: Resolution


@dataclass(frozen=True, slots=True)
class FactsDropped:
    """The record has a hole: so many facts could not be kept while the store was away."""

    count: int


@dataclass(frozen=True, slots=True)
class LifeChanged:
    """An agent's life changed its state or its condition, on this evidence."""

    agent: AgentId
    epoch: int
    before: AgentState
    after: AgentState
    condition: Condition
    value: Value
    reason: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentDismissed:
    """An agent is watched no longer: it left the configuration, or its time was up."""

    agent: AgentId


@dataclass(frozen=True, slots=True)
class BeatMissed:
    """An agent was not heard for so many of its intervals; told once for each rung."""

    agent: AgentId
    epoch: int
    misses: int
    silent_s: float


@dataclass(frozen=True, slots=True)
class BeatsRefused:
    """So many beats were not let in since the last time this was told; `agent` if known."""

    refusal: Refusal
    count: int
    agent: AgentId | None = None


@dataclass(frozen=True, slots=True)
class BeatsSuperseded:
    """So many beats gave way to a newer one of their agent before they were looked at."""

    count: int


@dataclass(frozen=True, slots=True)
class AmnestyGranted:
    """We could not have heard: no silence counts until a full deadline from here on."""

    reason: str
    gap_s: float
    grace_s: float
    agents: int


@dataclass(frozen=True, slots=True)
class RestartChanged:
    """A restart was intended, began, or ended."""

    restart_id: str
    agent: AgentId
    epoch: int
    next_epoch: int
    state: RestartState
    cause: Cause
    requested_by: str
    reason: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class RestartStepped:
    """One step of a restart ended, so."""

    restart_id: str
    agent: AgentId
    step: RestartStep
    attempt: int
    state: StepState
    result: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class RestartWithheld:
    """An agent is known to need a restart and does not get one now; told once a reason.

    `until_s` is in how many seconds it will be looked at again, if that is known.
    """

    agent: AgentId
    epoch: int
    cause: Cause
    why: str
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Escalated:
    """A person is needed: `concern` is its id until it is resolved ("quarantine:builder-1")."""

    concern: str
    kind: str
    agent: AgentId | None
    reason: str


@dataclass(frozen=True, slots=True)
class ConcernResolved:
    """What had been escalated is over."""

    concern: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notified:
    """A person was told of a concern, or of its end, by this way; `failure` "" if it arrived."""

    concern: str
    way: str
    resolved: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class HoldPlaced:
    """Something is held from now on."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class HoldLifted:
    """A hold was lifted, or ran out (`by` "time")."""

    kind: HoldKind
    subject: str
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InterventionChanged:
    """A steering message went on in its life. Its text is in the store, not here."""

    id: str
    agent: AgentId
    before: InterventionState | None
    after: InterventionState
    by: str
    reason: str = ""
    hold_out: bool = False


@dataclass(frozen=True, slots=True)
class BudgetReached:
    """A limit of what judging may cost came to a rung of the ladder; once a window and rung.

    `limit` is its id ("fleet/day", "agent/day/builder-1"); `until_utc`: when money comes back,
    None: not at a known time. `agent` is whose limit it is, None: not one agent's.
    """

    limit: str
    rung: Rung
    spent_usd: float
    most_usd: float
    until_utc: datetime | None = None
    agent: AgentId | None = None


@dataclass(frozen=True, slots=True)
class BudgetRenewed:
    """A limit that was reached lets calls through again."""

    limit: str
    agent: AgentId | None = None


@dataclass(frozen=True, slots=True)
class AnalysisSkipped:
    """An agent was not judged by `judge` but `by` another one: for want of money.

    Told once an agent, limit and window; `until_utc` as in `BudgetReached`.
    """

    agent: AgentId
    judge: str
    by: str
    limit: str
    until_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class RepositoryFollowed:
    """A followed repository had news, or following it went otherwise than before."""

    repository: str
    outcome: SyncOutcome
    pages: int
    changed: int
    duration_s: float
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class ForgesSwept:
    """All followed repositories were looked at once: how many went how, and what came of it.

    `resting` were left alone after failures; of `pages` `unchanged` cost nothing; of `works`
    that were read `changed` were news.
    """

    repositories: int
    synced: int
    held: int
    failed: int
    resting: int
    pages: int
    unchanged: int
    works: int
    changed: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class WorkLinked:
    """A commit, pull request or issue was found to belong to a task."""

    task: TaskId
    repository: str
    kind: WorkKind
    key: str
    how: LinkHow


@dataclass(frozen=True, slots=True)
class WorkLanded:
    """Work that belongs to a task has landed, and the task is over; what its agent was told."""

    task: TaskId
    repository: str
    kind: WorkKind
    key: str
    told: Told
    agent: AgentId | None = None


@dataclass(frozen=True, slots=True)
class ActPerformed:
    """Somebody asked for an act; this is who, and what came of it."""

    act: Act
    author: str
    subject: str
    outcome: ActOutcome
    dry_run: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TaskChanged:
    """A task went on, by whose word; its texts are in the store, not here.

    `before` None: it was added. `agent` and `fence` are those of the claim that began or ended.
    `root` is whose end took this one along.
    """

    task: TaskId
    before: TaskState | None
    after: TaskState
    by: str
    agent: AgentId | None = None
    fence: int = 0
    kind: FailureKind | None = None
    root: TaskId | None = None


@dataclass(frozen=True, slots=True)
class ConfigReloaded:
    """The configuration was read again: these keys hold from now on, these after a restart."""

    changed: tuple[str, ...]
    after_restart: tuple[str, ...] = ()
    failure: str = ""


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
    | ConductorSwept
    | FindingOpened
    | FindingResolved
    | FactsDropped
    | LifeChanged
    | AgentDismissed
    | BeatMissed
    | BeatsRefused
    | BeatsSuperseded
    | AmnestyGranted
    | RestartChanged
    | RestartStepped
    | RestartWithheld
    | Escalated
    | ConcernResolved
    | Notified
    | HoldPlaced
    | HoldLifted
    | InterventionChanged
    | BudgetReached
    | BudgetRenewed
    | AnalysisSkipped
    | RepositoryFollowed
    | ForgesSwept
    | WorkLinked
    | WorkLanded
    | ActPerformed
    | TaskChanged
    | ConfigReloaded
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
