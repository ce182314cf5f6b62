"""Values of the core as rows, and rows as values.

Writing, a batch becomes columns: one list for each parameter of its statement. Reading,
a row that this version cannot understand is None (`adapters.encoding`, law 2).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from custosd.adapters.encoding import (
    decode_fact,
    decode_json,
    encode_fact,
    encode_json,
    original,
    storable,
    subject_of,
)
from custosd.adapters.postgres.bridge import Record
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId, shard_of
from custosd.core.facts import AgentSeen, Entry, StandingChanged, StateChanged, VerdictReached
from custosd.core.signals import Signal
from custosd.core.trajectory import TrajectoryDigest
from custosd.core.transcript import Usage
from custosd.core.verdicts import (
    JudgedBy,
    Judgement,
    Phase,
    Standing,
    SteeringKind,
    SteeringReason,
    Verdict,
)
from custosd.core.view import AgentView
from custosd.flow.monitor import OperationSummary
from custosd.ports import (
    DaemonBeat,
    MetricsSnapshot,
    Progress,
    RunProgress,
    TranscriptPosition,
)

Row = tuple[Any, ...]
Columns = list[list[Any]]

_NO_AGENT_SHARD = 0


def columns(rows: Iterable[Row]) -> Columns:
    """Rows turned into one list for each column; no lists where there are no rows."""
    return [list(column) for column in zip(*rows, strict=True)]


@dataclass(slots=True)
class AgentMention:
    """What a batch tells of an agent; the latest word that says something wins."""

    format: str = ""
    parent: str = ""
    seen_utc: datetime | None = None

    def told(self, source_format: str, parent: str, seen_utc: datetime) -> None:
        """Add one word."""
        self.format = source_format or self.format
        self.parent = parent or self.parent
        self.seen_utc = min(self.seen_utc or seen_utc, seen_utc)


@dataclass(frozen=True, slots=True)
class ProgressColumns:
    """One batch of progress, by statement."""

    transcripts: Columns
    agents: Columns
    epochs: Columns
    runs: Columns
    trajectories: Columns


def progress_columns(batch: Sequence[Progress]) -> ProgressColumns:
    """A batch by statement; where one transcript or run comes twice, its last word stays."""
    agents: dict[AgentId, AgentMention] = {}
    positions: dict[str, Row] = {}
    runs: dict[AgentRef, tuple[int, RunProgress, TranscriptPosition]] = {}
    for progress in batch:
        at = progress.position
        grown = max((run.grown_utc for run in progress.runs), default=None)
        positions[at.key] = _position_row(at, grown)
        for run in progress.runs:
            told = agents.setdefault(run.ref.agent, AgentMention())
            told.told(at.format, run.parent, run.seen_utc)
            place, last = runs[run.ref][:2] if run.ref in runs else (len(runs), run)
            runs[run.ref] = (place, _last_word(last, run), at)
    rows = sorted(((_key(ref), *rest) for ref, rest in runs.items()), key=lambda row: row[0])
    return ProgressColumns(
        transcripts=columns(sorted(positions.values())),
        agents=agent_columns(agents),
        epochs=columns((*key, run.seen_utc, place) for key, place, run, _ in rows),
        runs=columns(_run_row(key, run, at) for key, _, run, at in rows),
        trajectories=columns(
            (*key, encode_json(run.digest), run.trajectory) for key, _, run, _ in rows
        ),
    )


def agent_columns(agents: dict[AgentId, AgentMention]) -> Columns:
    """What a batch tells of its agents, for `queries.ENSURE_AGENTS`."""
    return columns(
        sorted(
            (
                shard_of(agent),
                storable(agent),
                storable(told.format),
                storable(told.parent),
                told.seen_utc,
            )
            for agent, told in agents.items()
        )
    )


def _last_word(before: RunProgress, after: RunProgress) -> RunProgress:
    """`after`, but a thread once told stays, and so does a state that holds since later."""
    after = after if after.thread else replace(after, thread=before.thread)
    if after.state_utc >= before.state_utc:
        return after
    return replace(after, state=before.state, state_utc=before.state_utc)


def _position_row(at: TranscriptPosition, grown_utc: datetime | None) -> Row:
    return (
        shard_of(AgentId(at.key)),
        storable(at.key),
        storable(at.path),
        storable(at.format),
        storable(at.session),
        storable(at.agent),
        at.offset,
        at.cursor,
        grown_utc,
    )


def _run_row(key: Row, run: RunProgress, at: TranscriptPosition) -> Row:
    return (
        *key,
        storable(run.thread),
        storable(at.key),
        storable(at.path),
        run.state.value,
        run.state_utc,
        run.digest.steps,
        run.seen_utc,
        run.grown_utc,
        None if run.digest.end is None else run.digest.end.value,
    )


def _key(ref: AgentRef) -> Row:
    return (shard_of(ref.agent), storable(ref.agent), storable(ref.run))


@dataclass(slots=True)
class RunMention:
    """What a batch of facts tells of a run; the latest change by its own time wins."""

    seen_utc: datetime
    path: str = ""
    state: AgentState | None = None
    state_utc: datetime | None = None
    standing: Standing | None = None
    standing_utc: datetime | None = None

    def told(self, entry: Entry) -> None:
        """Add one entry."""
        self.seen_utc = min(self.seen_utc, entry.at_utc)
        match entry.fact:
            case AgentSeen() as seen:
                self.seen_utc = min(self.seen_utc, seen.seen_utc)
                self.path = self.path or seen.path
            case StateChanged(after=state):
                if self.state_utc is None or entry.at_utc >= self.state_utc:
                    self.state, self.state_utc = state, entry.at_utc
            case StandingChanged(after=standing):
                if self.standing_utc is None or entry.at_utc >= self.standing_utc:
                    self.standing, self.standing_utc = standing, entry.at_utc
            case _:
                pass


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """One batch of entries, by statement."""

    facts: Columns
    agents: Columns
    runs: Columns
    verdicts: Columns
    signals: Columns
    changes: Columns


def record_columns(entries: Sequence[Entry]) -> RecordColumns:
    """A batch of entries by statement; the entries have been checked."""
    agents: dict[AgentId, AgentMention] = {}
    runs: dict[AgentRef, RunMention] = {}
    verdicts: dict[str, Verdict] = {}
    for entry in entries:
        agent, run = subject_of(entry.fact)
        if agent is None or run is None:
            continue
        seen = entry.fact if isinstance(entry.fact, AgentSeen) else None
        mention = runs.setdefault(AgentRef(agent, run), RunMention(entry.at_utc))
        mention.told(entry)
        agents.setdefault(agent, AgentMention()).told(
            seen.format if seen else "", seen.parent if seen else "", mention.seen_utc
        )
        if isinstance(entry.fact, VerdictReached):
            verdicts.setdefault(entry.fact.verdict.id, entry.fact.verdict)
    told = sorted((_key(ref), mention) for ref, mention in runs.items())
    return RecordColumns(
        facts=columns(sorted(map(_fact_row, entries), key=lambda row: row[:3])),
        agents=agent_columns(agents),
        runs=columns((*key, storable(run.path), run.seen_utc) for key, run in told),
        verdicts=columns(sorted(map(_verdict_row, verdicts.values()), key=lambda row: row[:2])),
        signals=columns(
            _signal_row(verdict, place, signal)
            for verdict in verdicts.values()
            for place, signal in enumerate(verdict.signals)
        ),
        changes=columns(
            (*key, run.state, run.state_utc, run.standing, run.standing_utc)
            for key, run in told
            if run.state is not None or run.standing is not None
        ),
    )


def _fact_row(entry: Entry) -> Row:
    agent, run = subject_of(entry.fact)
    kind, body = encode_fact(entry.fact)
    return (
        entry.at_utc,
        _NO_AGENT_SHARD if agent is None else shard_of(agent),
        storable(entry.id),
        kind,
        None if agent is None else storable(agent),
        None if run is None else storable(run),
        body,
    )


def _verdict_row(verdict: Verdict) -> Row:
    said, by = verdict.judgement, verdict.by
    return (
        shard_of(verdict.ref.agent),
        storable(verdict.id),
        storable(verdict.ref.agent),
        storable(verdict.ref.run),
        verdict.at_utc,
        verdict.steps,
        said.standing.value,
        said.phase.value,
        said.alignment,
        said.confidence,
        said.needs_steering,
        said.steering_kind and said.steering_kind.value,
        said.steering_reason and said.steering_reason.value,
        storable(said.message),
        storable(said.summary),
        storable(said.focus),
        storable(said.goal),
        _integers(said.evidence),
        storable(said.unknown_reason),
        storable(by.judge),
        storable(by.model),
        storable(by.prompt_version),
        storable(by.input_hash),
        by.usage.input_tokens,
        by.usage.output_tokens,
        by.usage.cached_tokens,
        by.usage.cost_usd,
        by.latency_s,
        _texts(verdict.absent),
    )


def _signal_row(verdict: Verdict, place: int, signal: Signal) -> Row:
    return (
        shard_of(verdict.ref.agent),
        storable(verdict.id),
        place,
        signal.kind.value,
        signal.severity.value,
        _integers(signal.steps),
        signal.measure,
        signal.limit,
        storable(signal.about),
        _texts(signal.peers),
    )


# Arrays of arrays must be rectangular in PostgreSQL; a column of lists travels as literals.


def _integers(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def _texts(texts: Iterable[str]) -> str:
    quoted = (storable(text).replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def agent_of(row: Record) -> AgentView:
    """One row of `queries.RESTORE_AGENTS`; a digest or verdict not understood is None."""
    ref = AgentRef(AgentId(original(row["agent_id"])), RunId(original(row["run_id"])))
    digest = row["digest"]
    return AgentView(
        ref,
        original(row["format"]),
        original(row["path"]),
        original(row["parent"]),
        row["seen_utc"],
        AgentState(row["state"]),
        None if digest is None else decode_json(digest, TrajectoryDigest),
        row["grown_utc"],
        Standing(row["run_standing"]),
        None if row["id"] is None else verdict_of(row, ref),
    )


def verdict_of(row: Record, ref: AgentRef) -> Verdict | None:
    """The verdict that a row holds; None where a word in it is not known here."""
    signals = decode_json(row["signals"] or "[]", tuple[Signal, ...])
    if signals is None:
        return None
    try:
        judgement = _judgement_of(row)
    except ValueError:
        return None
    usage = Usage(row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["cost_usd"])
    by = JudgedBy(
        original(row["judge"]),
        original(row["model"]),
        original(row["prompt_version"]),
        original(row["input_hash"]),
        usage,
        row["latency_s"],
    )
    absent = tuple(map(original, row["absent"]))
    return Verdict(
        original(row["id"]), ref, row["at_utc"], row["steps"], judgement, signals, by, absent
    )


def _judgement_of(row: Record) -> Judgement:
    kind, reason = row["steering_kind"], row["steering_reason"]
    return Judgement(
        Standing(row["standing"]),
        Phase(row["phase"]),
        row["alignment"],
        row["confidence"],
        row["needs_steering"],
        None if kind is None else SteeringKind(kind),
        None if reason is None else SteeringReason(reason),
        original(row["message"]),
        original(row["summary"]),
        original(row["focus"]),
        original(row["goal"]),
        tuple(row["evidence"]),
        original(row["unknown_reason"]),
    )


def position_of(row: Record) -> TranscriptPosition:
    """One row of `queries.RESTORE_TRANSCRIPTS`."""
    return TranscriptPosition(
        original(row["key"]),
        original(row["path"]),
        original(row["format"]),
        original(row["session"]),
        row["byte_offset"],
        row["cursor"],
        original(row["agent"]),
    )


def entry_of(row: Record) -> Entry | None:
    """The entry that a row of the record holds; None where its fact is not known here."""
    fact = decode_fact(row["kind"], row["body"])
    return None if fact is None else Entry(original(row["id"]), row["at_utc"], fact)


def beat_of(row: Record) -> DaemonBeat:
    """One row of `queries.READ_DAEMONS`."""
    return DaemonBeat(
        original(row["name"]),
        row["pid"],
        original(row["version"]),
        row["started_utc"],
        row["beat_utc"],
        row["agents"],
        row["sweeps"],
        stopped=row["stopped"],
    )


def metrics_of(row: Record) -> MetricsSnapshot | None:
    """One row of `queries.READ_METRICS`; None where this version does not understand it."""
    operations = decode_json(row["operations"], tuple[OperationSummary, ...])
    if operations is None:
        return None
    return MetricsSnapshot(original(row["daemon"]), row["at_utc"], operations)
