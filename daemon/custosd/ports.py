"""What services need of the outside world, as roles. Adapters fill them.

Each port has a real adapter and a shipped fake from its first day; one contract test
runs on both (`tests/contracts/`). Each port has one family of errors, and a subclass
only where a caller does something different on it (`custosd.core.errors`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from custosd.core.acts import ActAnswer, ActRequest
from custosd.core.agents import AgentId, AgentRef, AgentState
from custosd.core.beats import Beat, Refusal
from custosd.core.coherence import Coherence
from custosd.core.errors import WorkspaceError
from custosd.core.evidence import Exit, Observation, ProcessIdentity, Source
from custosd.core.facts import Entry
from custosd.core.findings import Finding
from custosd.core.forge import (
    Closing,
    Delivery,
    ForgeWork,
    Link,
    Quota,
    Repository,
    RepositoryRecord,
    WorkQuery,
)
from custosd.core.holds import Hold, HoldKind
from custosd.core.intents import CLAIMS_PER_AGENT, Claim, ClaimAnswer, Intent
from custosd.core.lives import LifeRecord
from custosd.core.money import Limit, NoMoney, Reservation, Rung, Spend, Spent
from custosd.core.pairs import PairJudgement, Place, Suspicion, Work
from custosd.core.restarts import Restart
from custosd.core.signals import Signal
from custosd.core.steering import Intervention, InterventionState, Letter, Receipt
from custosd.core.task_forms import Asker
from custosd.core.tasks import (
    Claimed,
    ClaimRequest,
    Expiry,
    Failure,
    Holder,
    NewTask,
    ScoredTask,
    Settlement,
    Task,
    TaskChange,
    TaskId,
    TaskQuery,
)
from custosd.core.tokens import Token
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import TranscriptEvent, Usage
from custosd.core.verdicts import Judgement, Verdict
from custosd.core.view import AgentView
from custosd.core.workspaces import ALL_PARTS, WorkPlace, Workspace, WorkspacePart
from custosd.flow.monitor import OperationSummary


@dataclass(frozen=True, slots=True)
class TranscriptPosition:
    """How far a transcript has been read. `cursor` is the source's own, opaque here.

    `session` and `agent` are the names that the transcript gave ("" until it did).
    """

    key: str
    path: str
    format: str
    session: str
    offset: int
    cursor: bytes
    agent: str = ""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """One run, as folded up to a position. `trajectory` is the fold's encoded state.

    `state` holds since `state_utc`; what was stored of a later time stays.
    """

    ref: AgentRef
    thread: str
    parent: str
    state: AgentState
    digest: TrajectoryDigest
    trajectory: bytes
    seen_utc: datetime
    grown_utc: datetime
    state_utc: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """What one reading of one transcript changed: stored as a whole or not at all."""

    position: TranscriptPosition
    runs: tuple[RunProgress, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What the store knew at start: enough to rebuild the board and go on reading."""

    agents: tuple[AgentView, ...] = ()
    positions: tuple[TranscriptPosition, ...] = ()


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """What is older than these times is pruned."""

    facts_utc: datetime
    verdicts_utc: datetime
    transcripts_utc: datetime


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much a pruning took away: days of facts, rows of the others."""

    fact_days: int = 0
    verdicts: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class DaemonBeat:
    """One daemon's sign of life, as `custosd status` reads it."""

    name: str
    pid: int
    version: str
    started_utc: datetime
    beat_utc: datetime
    agents: int
    sweeps: int
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """How one daemon's operations went since its start, as counted at `at_utc`."""

    daemon: str
    at_utc: datetime
    operations: tuple[OperationSummary, ...]


class Store(Protocol):
    """What must outlive the daemon.

    Every method is one unit of work: all of it or nothing, one crossing, bounded in
    time. Repeating one that may have happened does no harm. Raises `StoreUnavailable`
    (retry later), `StoreConflict` (retry at once) or `StoreRefused` (a bug or bad data).
    """

    async def restore(self) -> Restored:
        """All agents with their latest run, its verdict and standing, and all positions.

        The latest run of an agent is the one whose first progress came last; a run
        of which only the record speaks is the latest only where there is no other.
        """
        ...

    async def save_progress(self, batch: Sequence[Progress]) -> None:
        """Store positions with the runs folded up to them, in one transaction.

        A run met for the first time is created, and its agent with it. Where one
        transcript or run comes twice in a batch, its last word stays.
        """
        ...

    async def trajectories(self, refs: Collection[AgentRef]) -> Mapping[AgentRef, bytes]:
        """The encoded folds of exactly these runs, where there are any."""
        ...

    async def record(self, entries: Sequence[Entry]) -> None:
        """Append to the record; verdicts, signals, standings and states go to their tables.

        An entry whose id is known already is left as it is. Of changes of state and
        standing the latest by its own time stays, in whatever order they come. Agents
        and runs that are not known yet are created with what the entries tell. A bad
        entry refuses its whole batch (`StoreRefused`): halve it to find the one.
        """
        ...

    async def recent_verdicts(
        self, agents: Collection[AgentId], limit: int
    ) -> Mapping[AgentId, tuple[Verdict, ...]]:
        """The last `limit` verdicts of each of these agents, newest first; () where none."""
        ...

    async def recent_entries(self, agent: AgentId | None, limit: int) -> tuple[Entry, ...]:
        """The newest entries of the record, of one agent or of all, newest first."""
        ...

    async def beat(self, beat: DaemonBeat) -> None:
        """Replace this daemon's sign of life."""
        ...

    async def beats(self) -> tuple[DaemonBeat, ...]:
        """Every daemon's last sign of life, newest first."""
        ...

    async def record_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Keep a snapshot; of one daemon and moment the first one stays."""
        ...

    async def recent_metrics(self, limit: int) -> tuple[MetricsSnapshot, ...]:
        """The newest snapshots of all daemons, newest first."""
        ...

    async def prepare_days(self, today_utc: datetime, ahead: int = 2) -> int:
        """Make the record's partitions for today and `ahead` days; returns how many were new."""
        ...

    async def prune(self, limits: RetentionLimits) -> Pruned:
        """Drop what is older than the limits, in bounded units; never a run that grew since.

        Facts go by whole days (UTC), and metrics with them; each run keeps its last verdict;
        a transcript goes when all its runs are gone, one of which no run was ever told stays.
        """
        ...


@dataclass(frozen=True, slots=True)
class ContextPart:
    """One part of what a judge is told; `text` is None where it could not be had."""

    name: str
    text: str | None
    why_absent: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked about one trajectory.

    `input_hash` is equal for equal questions: the same question need not be asked twice.
    `quiet_s` is how long the transcript has not grown.
    """

    ref: AgentRef
    digest: TrajectoryDigest
    signals: tuple[Signal, ...]
    quiet_s: float
    context: tuple[ContextPart, ...]
    input_hash: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's answer and what it cost."""

    judgement: Judgement
    judge: str
    model: str = ""
    prompt_version: str = ""
    usage: Usage = Usage()


class Judge(Protocol):
    """Who answers the guardian's questions.

    Raises `JudgeError` when no answer can be had: the guardian then says "unknown".
    `wants` names the parts of the context that it reads; no others are gathered.
    """

    @property
    def wants(self) -> frozenset[str]:
        """Names out of "verdicts", "transcript_tail", "changed_files"."""
        ...

    async def judge(self, question: Question) -> Answer:
        """Judge one trajectory; may take long, may be cancelled at any time."""
        ...


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """What a judge is asked about two agents: whether this suspicion is true.

    `input_hash` is equal for equal questions: the same question need not be asked twice.
    """

    suspicion: Suspicion
    one: Work
    other: Work
    input_hash: str


@dataclass(frozen=True, slots=True)
class PairAnswer:
    """A judge's answer about a pair, and what it cost."""

    judgement: PairJudgement
    judge: str
    model: str = ""
    prompt_version: str = ""
    usage: Usage = Usage()


class PairJudge(Protocol):
    """Who says whether two agents do the same work, or are in each other's way.

    Raises `JudgeError` when no answer can be had: the pair is then left as it stood.
    """

    async def compare(self, question: PairQuestion) -> PairAnswer:
        """Judge one pair; may take long, may be cancelled at any time."""
        ...


class Places(Protocol):
    """Where folders lie: in which working copy of which repository."""

    async def place(self, folder: str, branch: str) -> Place:
        """The place of an agent that works in this folder; never raises for one that is gone.

        `branch` is what the agent itself said, for where nothing better is known.
        """
        ...


class Workspaces(Protocol):
    """What lies in the folders that agents work in. Nothing of it is ever changed."""

    async def look(
        self,
        places: Sequence[WorkPlace],
        parts: Collection[WorkspacePart] = ALL_PARTS,
        since_utc: datetime | None = None,
    ) -> tuple[Workspace | WorkspaceError, ...]:
        """Look at many folders at once; the answers come in the order of the places.

        Bounded in time for each place; a place that cannot be looked at is an error in its
        own answer, and harms no other. `since_utc` None: changes as far back as configured.
        """
        ...


class CoordinationStore(Protocol):
    """What is kept of the fleet as a whole: readings, findings, and claims.

    As `Store`: one unit of work a method, all or nothing, harmless to repeat; the same
    errors.
    """

    async def findings(self, since_utc: datetime) -> tuple[Finding, ...]:
        """All findings that are open, and those resolved since, the first seen first."""
        ...

    async def save_sweep(
        self, at_utc: datetime, coherence: Coherence, findings: Sequence[Finding]
    ) -> None:
        """Store a reading, and the findings that it changed, in one transaction.

        Of one kind and pair one finding is open at most: `StoreRefused` for another.
        """
        ...

    async def readings(self, limit: int) -> tuple[tuple[datetime, Coherence], ...]:
        """The last readings with their times, the newest first."""
        ...

    async def take_claim(
        self, intent: Intent, ttl_s: float, most: int = CLAIMS_PER_AGENT
    ) -> ClaimAnswer:
        """Lease an intent, by the store's clock, if no other agent's claim is in its way.

        An agent that has the same intent already has it for `ttl_s` from now on; of others it
        has at most `most`. Costs what the intent is large, however many claims last.
        """
        ...

    async def release_claim(self, agent: AgentId, claim_id: str) -> bool:
        """Give a claim back, if it is this agent's; False: there is none."""
        ...

    async def claims(self, limit: int, agent: AgentId | None = None) -> tuple[Claim, ...]:
        """Claims that have not run out, by the store's clock; the oldest `limit`, these first.

        `agent`: only those of one.
        """
        ...

    async def prune(self, before_utc: datetime) -> int:
        """Drop readings and findings that were over before this time, and claims that are.

        How many that were.
        """
        ...


@dataclass(frozen=True, slots=True)
class ForgePage:
    """One answer of a forge. `cursor` is its own, opaque here: from where to go on.

    `more`: there is another page of this pass. `unchanged`: nothing is new, at no cost.
    `forge_id` and `full_name` are told by the stream that knows them; `moved`: it answers by
    another name than the one that was asked for.
    """

    cursor: str
    works: tuple[ForgeWork, ...] = ()
    more: bool = False
    unchanged: bool = False
    quota: Quota | None = None
    forge_id: str = ""
    full_name: str = ""
    moved: bool = False


class Forge(Protocol):
    """Where code is kept and merged. Knows its protocol; decides nothing about tasks.

    Raises `ForgeError` for what it could not be asked, `HookRefused` for what is not let in.
    """

    def streams(self, repository: Repository, open_works: Sequence[ForgeWork]) -> tuple[str, ...]:
        """What there is to follow of a repository, in order; `open_works` the newest first."""
        ...

    async def page(self, repository: Repository, stream: str, cursor: str) -> ForgePage:
        """The next page of a stream, from "" on; may be cancelled, and asked again."""
        ...

    async def delivery(
        self,
        headers: Mapping[str, str],
        body: bytes,
        find: Callable[[str, str], Repository | None],
    ) -> Delivery:
        """What a signed delivery tells; `find` knows a repository by its name and forge's id.

        Names of headers are in small letters. Nothing of it is read before it is verified.
        """
        ...


class SyncStore(Protocol):
    """What was seen on forges, and how far.

    As `Store`: one unit of work a method, all or nothing, harmless to repeat; the same
    errors. Works are merged with what is known (`core.forge.merged`), whoever writes at once.
    """

    async def records(self) -> tuple[RepositoryRecord, ...]:
        """How following each repository went, by its id."""
        ...

    async def save_record(self, record: RepositoryRecord) -> None:
        """Replace what is remembered of following one."""
        ...

    async def cursors(self, repository: str) -> Mapping[str, str]:
        """How far each stream of a repository was followed."""
        ...

    async def save_page(
        self,
        repository: str,
        stream: str,
        cursor: str,
        works: Sequence[ForgeWork],
        at_utc: datetime,
    ) -> tuple[ForgeWork, ...]:
        """Store works with how far they were followed; those that changed, as they stand."""
        ...

    async def take_delivery(
        self, forge: str, delivery: Delivery, at_utc: datetime
    ) -> tuple[ForgeWork, ...] | None:
        """Store what a delivery told; None where its id or digest was taken before."""
        ...

    async def works(self, query: WorkQuery) -> tuple[ForgeWork, ...]:
        """What is known of works, the newest first."""
        ...

    async def unread(self, limit: int) -> tuple[tuple[ForgeWork, int], ...]:
        """Works whose links were not looked at since they changed; each with its version."""
        ...

    async def read(self, work: ForgeWork, version: int, links: Sequence[Link]) -> tuple[Link, ...]:
        """Its links were looked at, and these belong to tasks; the new ones.

        A work that changed since that version stays unread.
        """
        ...

    async def intend(self, closing: Closing) -> Closing:
        """Write that a work is to end a task; what was written before, where that was."""
        ...

    async def close(self, closing: Closing) -> None:
        """It is over: `done_utc` and `told` are set; once they are, they stay."""
        ...

    async def closings(self, limit: int) -> tuple[Closing, ...]:
        """Which works ended which tasks, the newest first."""
        ...

    async def prune(self, before_utc: datetime) -> int:
        """Drop works, cursors, deliveries and closings not touched since; how many.

        Pull requests and issues stay while they are open, and what is unread. Checks that
        are not over go too: of a commit that was left behind nobody tells any more.
        """
        ...


class ContextSource(Protocol):
    """Where the guardian finds what a judge should know beside the trajectory."""

    async def part(self, name: str, agent: AgentView) -> ContextPart:
        """One part: "transcript_tail" or "changed_files".

        Never raises for missing data: a part that cannot be had comes back absent, with
        the reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class Incident:
    """A transcript that could not be read as it should be; told once, the rest goes on.

    `kind` is from a closed vocabulary (EVENTS.md, `transcript.troubled`); `line` is
    1-based, 0 where it is about the whole file. `detail` never holds agent text.
    """

    kind: str
    path: str
    line: int = 0
    detail: Mapping[str, int | str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Growth:
    """New events of one transcript, read up to `position`.

    `rewound`: the file was rewritten; the events replace all that was told before.
    `grown_utc` is when the file was last written, by the file system's clock. Events may
    be empty where only the position moved or only incidents are to be told.
    """

    position: TranscriptPosition
    events: tuple[TranscriptEvent, ...]
    rewound: bool
    grown_utc: datetime
    incidents: tuple[Incident, ...] = ()


class TranscriptSource(Protocol):
    """Where transcripts grow. Never raises for a single bad transcript: see `Incident`."""

    async def next_batch(self) -> Sequence[Growth]:
        """Wait until something grew, and return it; each growth once, in order.

        A transcript that is read for the first time after a start goes on from the
        position that the source was opened with. Nothing is read while nobody waits, and
        a cancelled wait loses nothing.
        """
        ...


class TrajectoryCodec(Protocol):
    """Turns folds into bytes and back, so that they outlive the process."""

    def encode(self, trajectory: Trajectory) -> bytes:
        """The whole state of the fold."""
        ...

    def decode(self, data: bytes) -> Trajectory:
        """The fold, ready to go on; raises `StoreRefused` for bytes of another version."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to act, until it runs out. `fence` grows with each new owner."""

    name: str
    owner: str
    fence: int
    expires_utc: datetime


class ActionStore(Protocol):
    """What is written before, and about, what the daemon does to agents.

    As `Store`: one unit of work a method, all or nothing, harmless to repeat; the same
    errors. Whoever acts writes here first, and acts only when that has returned.
    """

    async def lives(self) -> tuple[LifeRecord, ...]:
        """Every life that is remembered."""
        ...

    async def life(self, agent: AgentId) -> LifeRecord | None:
        """What is remembered of one agent's life; None: nothing."""
        ...

    async def save_lives(self, lives: Sequence[LifeRecord]) -> None:
        """Store lives, in one statement. A stored epoch or sequence never goes back."""
        ...

    async def intend_restart(self, restart: Restart) -> Restart | None:
        """Write the intent, and give it the agent's next epoch; return it as stored.

        `next_epoch` is given here: one more than any the agent ever had. Repeating one that
        is stored (same id) returns it as it stands. None: another restart of the agent is
        open, or one of the same key was intended before.
        """
        ...

    async def save_restart(self, restart: Restart) -> bool:
        """Store a restart and its steps as they stand; False: the fence was overtaken.

        Only a restart that has not ended can change, and only under its stored fence or a
        higher one.
        """
        ...

    async def restarts(
        self, since_utc: datetime, agent: AgentId | None = None
    ) -> tuple[Restart, ...]:
        """All restarts that are open, and those intended since, oldest first.

        `agent`: only those of one.
        """
        ...

    async def propose(self, intervention: Intervention) -> bool:
        """Store a new intervention; False: one with its id or (agent, key) is there already."""
        ...

    async def save_intervention(
        self, intervention: Intervention, before: InterventionState
    ) -> bool:
        """Store it as it stands, if its stored state is `before`; False: it is another by now."""
        ...

    async def interventions(self, since_utc: datetime) -> tuple[Intervention, ...]:
        """All interventions that are open, and those proposed since, oldest first."""
        ...

    async def place_hold(self, hold: Hold) -> None:
        """Place a hold; one of the same key is replaced."""
        ...

    async def place_holds(self, holds: Sequence[Hold]) -> None:
        """Place holds, all or none, in one statement; of one key the last one stays."""
        ...

    async def lift_hold(self, kind: HoldKind, subject: str) -> bool:
        """Lift a hold; False: there is none."""
        ...

    async def lift_holds(self, keys: Collection[tuple[HoldKind, str]]) -> int:
        """Lift holds by kind and subject, in one statement; return how many there were."""
        ...

    async def holds(self) -> tuple[Hold, ...]:
        """All holds, whether they have run out or not."""
        ...

    async def take_lease(self, name: str, owner: str, ttl_s: float) -> Lease | None:
        """Take or renew a lease, by the store's clock; None: somebody else has it.

        The owner's fence stays while it renews in time; after a lapse, and for a new
        owner, it is one higher.
        """
        ...

    async def release_lease(self, name: str, owner: str) -> None:
        """Give a lease back, if it is this owner's; its fence is remembered."""
        ...

    async def tokens(self) -> tuple[Token, ...]:
        """All tokens that have not been revoked; secrets only as hashes."""
        ...

    async def save_token(self, token: Token) -> None:
        """Store a token that was issued."""
        ...

    async def revoke_token(self, token_id: str) -> bool:
        """Take a token away for good; False: there is none."""
        ...

    async def prune(self, before_utc: datetime) -> int:
        """Drop what was over before this time; return how many rows that were.

        Restarts that have ended, interventions that are closed, and lives that nothing was
        heard or seen of since. No epoch is given twice because of it. In bounded units of
        work: cancelled or failed half-way, the next time goes on.
        """
        ...


class SpendStore(Protocol):
    """What judging has cost, so that a restart does not make it free.

    As `Store`: one unit of work a method, all or nothing, harmless to repeat; the same errors.
    """

    async def save_spends(self, spends: Sequence[Spend]) -> None:
        """Store calls' money; one that is settled in the store stays as it is."""
        ...

    async def spent(self, since_utc: datetime, agent: AgentId | None = None) -> tuple[Spent, ...]:
        """What counts as spent of what was reserved since then, by all daemons.

        Added up by agent, model and five minutes; also what is stamped with the future. What
        is not settled counts as it was reserved. `agent`: only what one cost.
        """
        ...

    async def save_fleet_day(self, at_utc: datetime, usd: float) -> None:
        """What the agents themselves spent on the day (UTC) of that time; it never shrinks."""
        ...

    async def fleet_day(self, at_utc: datetime) -> float | None:
        """What they spent on that day, as far as it was stored; None: nothing was."""
        ...

    async def prune_spends(self, before_utc: datetime) -> int:
        """Drop what was spent before; return how many calls that were. In bounded units."""
        ...


class Purse(Protocol):
    """Who gives money for calls of models; see `custosd.core.money`."""

    async def reserve(
        self, agent: AgentId, model: str, estimate_usd: float
    ) -> Reservation | NoMoney:
        """Keep money for one call; it is on record when this returns, if the store answers.

        Waits, a bounded time, for what others have under way where only that is in the way.
        Cancelled, nothing is kept. Whatever is given must be settled or released.
        """
        ...

    def settle(self, reservation: Reservation, actual_usd: float) -> None:
        """Tell what the call cost; only the first word on a reservation counts."""
        ...

    def release(self, reservation: Reservation) -> None:
        """Give the money back: nothing was bought."""
        ...

    def rung(self, agent: AgentId, model: str) -> tuple[Rung, Limit | None]:
        """How far down the ladder such a call is, and because of which limit."""
        ...

    def refused(self, agent: AgentId) -> Limit | None:
        """The limit that the agent's last call was refused by; None where it was let through."""
        ...

    def skipped(self, agent: AgentId, judge: str, by: str, limit: Limit) -> None:
        """Tell that one judge was not asked but another, because of a limit."""
        ...


class TaskStore(Protocol):
    """The fleet's tasks: what each waits for, who has which, how urgent they are.

    As `Store`: one unit of work a method, all or nothing, the same errors; besides,
    `TaskRefused` for what makes no sense. All times are by the store's own clock. Changes come
    sorted by task. Repeating does no harm: `claim` by its key, words about a claim by its fence.
    """

    async def add(self, tasks: Sequence[NewTask], author: str) -> tuple[TaskChange, ...]:
        """Add tasks, which may wait for each other; those there already are passed over.

        Raises `TaskRefused`: a dependency is unknown or has ended badly, the id is another
        task's; `TaskCycle` where they would wait for each other for ever.
        """
        ...

    async def link(self, edges: Sequence[tuple[TaskId, TaskId]]) -> tuple[TaskChange, ...]:
        """Let each first task wait for the second. Raises as `add`, and for tasks begun."""
        ...

    async def next_tasks(self, limit: int, capabilities: Collection[str]) -> tuple[ScoredTask, ...]:
        """The most urgent tasks that may be claimed with these capabilities, with their scores."""
        ...

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Lease the most urgent tasks to an agent; each to one only, whoever else asks.

        Waits for nobody: what another is taking at this moment is passed over.
        """
        ...

    async def extend(self, task: TaskId, holder: Holder, lease_s: float) -> Settlement:
        """Let a lease last from now on; never beyond the attempt's time limit."""
        ...

    async def complete(self, task: TaskId, holder: Holder, result: str = "") -> Settlement:
        """End a task well; who waited for it alone is ready by the same statement."""
        ...

    async def fail(self, task: TaskId, holder: Holder, failure: Failure) -> Settlement:
        """End an attempt badly: the task rests and is ready again, or has failed for good.

        A task that nobody has, failed with authority, has failed for good.
        """
        ...

    async def cancel(self, tasks: Collection[TaskId], reason: str = "") -> tuple[TaskChange, ...]:
        """End those of the tasks that are open, and all that waits for them."""
        ...

    async def release(self, dead: Mapping[AgentId, int]) -> tuple[TaskChange, ...]:
        """Take away what these agents' incarnations up to the given epoch have claimed."""
        ...

    async def expire(self) -> Expiry:
        """Take away leases that ran out, and say when the next thing is due."""
        ...

    async def tasks(self, ids: Collection[TaskId]) -> Mapping[TaskId, Task]:
        """Those of the tasks that there are."""
        ...

    async def find(self, query: TaskQuery) -> tuple[Task, ...]:
        """Tasks by state, agent and end, newest first.

        Raises `TaskRefused` where the task is gone after which to go on.
        """
        ...

    async def assigned(self, agents: Collection[AgentId]) -> Mapping[AgentId, tuple[Task, ...]]:
        """What each of these agents has claimed, () where nothing; in one statement."""
        ...

    async def prune(self, before_utc: datetime) -> int:
        """Drop tasks that ended before this time; return how many. In bounded units of work."""
        ...


class Prober(Protocol):
    """Looks at an agent from outside, by several kinds of sources that do not fail together.

    Never raises for what cannot be seen: that is an `Observation` of value UNKNOWN. Bounded in
    time by the caller; may be cancelled.
    """

    async def probe(
        self, agent: AgentId, process: ProcessIdentity | None, sources: frozenset[Source]
    ) -> tuple[Observation, ...]:
        """One observation for each of these sources that this agent has."""
        ...


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a process that was watched: seen, not inferred."""

    agent: AgentId
    process: ProcessIdentity
    exit: Exit | None = None


class ProcessWatch(Protocol):
    """Tells of the end of processes the moment it happens."""

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        """Watch this process for this agent, instead of an earlier one of it.

        One that is gone already is told of at once. False: it cannot be watched (no
        descriptors left, no kernel support); probes must do then.
        """
        ...

    def forget(self, agent: AgentId) -> None:
        """Watch no process of this agent any more."""
        ...

    async def next_deaths(self) -> Sequence[Death]:
        """Wait until a process ended; each end once. A cancelled wait loses nothing."""
        ...


@dataclass(frozen=True, slots=True)
class HandOver:
    """What a new incarnation is told of the work of the last one."""

    agent: AgentId
    epoch: int
    cause: str
    summary: str = ""
    goal: str = ""
    task: str = ""
    constraints: tuple[str, ...] = ()


class AgentControl(Protocol):
    """How one agent is stopped and started. All of it may be repeated without harm.

    Each method is bounded by its adapter's own timeout. Raises `ControlError` when it could
    not be done, or it is not known whether it was.
    """

    async def sight(self) -> Observation:
        """Whether the agent's process is there (OK), gone (BAD), or that is not known."""
        ...

    async def interrupt(self) -> None:
        """Ask the agent to leave off what it does, and stay; nothing where there is no way."""
        ...

    async def stop(self) -> None:
        """Ask the agent to end; returns without waiting for it."""
        ...

    async def kill(self) -> None:
        """End the agent, whatever it does, with everything it started."""
        ...

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """Start the incarnation `hand_over.epoch`; returns when it is on its way.

        It finds CUSTOSD_AGENT, CUSTOSD_EPOCH and CUSTOSD_HANDOVER (a file, JSON) in its
        environment. Of one `key` at most one is started, also when this is repeated.
        """
        ...


class SteeringChannel(Protocol):
    """How one agent is told something. Raises `ChannelError`: not told, and why."""

    @property
    def name(self) -> str:
        """How it is called in facts: "inbox", "http", "command", "tmux"."""
        ...

    async def deliver(self, letter: Letter) -> Receipt:
        """Bring a letter to where the agent reads it, once, whoever often this is repeated."""
        ...

    async def receipts(self, ids: Collection[str]) -> Sequence[Receipt]:
        """What has been proved of letters delivered earlier, since."""
        ...


@dataclass(frozen=True, slots=True)
class Notice:
    """What a person is told: one line, and facts for programs. No agent text."""

    concern: str
    kind: str
    agent: str
    text: str
    resolved: bool
    at_utc: datetime


class Notifier(Protocol):
    """How a person is told. Raises `NotifyError` when it did not arrive."""

    @property
    def name(self) -> str:
        """The way, as it is called in facts."""
        ...

    async def notify(self, notice: Notice) -> None:
        """Tell it; returns when it has been taken over by the other side."""
        ...


class BeatDoor(Protocol):
    """What the doors for beats hand over to. Never waits."""

    def offer(self, beat: Beat, door: str) -> Refusal | None:
        """Let a beat in, or say why not. Whether it is forged was looked at by the door."""
        ...

    def refuse(self, refusal: Refusal, agent: AgentId | None = None) -> None:
        """Count what was refused at the door already."""
        ...


class TaskDoor(Protocol):
    """What the doors for tasks hand over to."""

    async def ask(self, operation: str, form: Mapping[str, Any], asker: Asker) -> ActAnswer:
        """Do what was asked, or say why not. Never raises for a bad request; bounded in time."""
        ...


class SyncDoor(Protocol):
    """What the doors for sync hand over to."""

    @property
    def store(self) -> SyncStore:
        """Where everything about it is read."""
        ...

    async def receive(self, forge: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take what a forge told by itself; how many works changed. Raises `HookRefused`."""
        ...


class ActDoor(Protocol):
    """What the doors for acts hand over to."""

    async def perform(self, request: ActRequest) -> ActAnswer:
        """Do it, or say why not. Never raises for a bad request; bounded in time."""
        ...
