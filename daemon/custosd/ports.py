"""What services need of the outside world, as roles. Adapters fill them.

Each port has a real adapter and a shipped fake from its first day; one contract test
runs on both (`tests/contracts/`). Each port has one family of errors, and a subclass
only where a caller does something different on it (`custosd.core.errors`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from custosd.core.agents import AgentId, AgentRef, AgentState
from custosd.core.facts import Entry
from custosd.core.signals import Signal
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import TranscriptEvent, Usage
from custosd.core.verdicts import Judgement, Verdict
from custosd.core.view import AgentView


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

    async def prepare_days(self, today_utc: datetime, ahead: int = 2) -> int:
        """Make the record's partitions for today and `ahead` days; returns how many were new."""
        ...

    async def prune(self, limits: RetentionLimits) -> Pruned:
        """Drop what is older than the limits, in bounded units; never a run that grew since.

        Facts go by whole days (UTC); each run keeps its last verdict; a transcript goes
        when all its runs are gone, one of which no run was ever told stays.
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
