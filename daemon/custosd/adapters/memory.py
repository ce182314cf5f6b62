"""The store in memory: the shipped fake, with the laws of the real one.

It needs no clock and no thread, so services run on it in virtual time. `fail_with` makes it
unavailable, as a database that dies and comes back.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import trio

from custosd.adapters.encoding import check_entry, check_progress, check_time, day_of, subject_of
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.errors import StoreError
from custosd.core.facts import AgentSeen, Entry, StandingChanged, StateChanged, VerdictReached
from custosd.core.trajectory import TrajectoryDigest
from custosd.core.verdicts import Standing, Verdict
from custosd.core.view import AgentView
from custosd.ports import (
    DaemonBeat,
    MetricsSnapshot,
    Progress,
    Pruned,
    Restored,
    RetentionLimits,
    RunProgress,
    TranscriptPosition,
)


@dataclass(slots=True)
class _Run:
    ref: AgentRef
    seen_utc: datetime
    epoch: int = 0
    path: str = ""
    transcript_key: str = ""
    state: AgentState = AgentState.STARTING
    state_utc: datetime | None = None
    standing: Standing = Standing.UNKNOWN
    standing_utc: datetime | None = None
    grown_utc: datetime | None = None
    digest: TrajectoryDigest | None = None
    fold: bytes | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def tell_state(self, state: AgentState, at_utc: datetime) -> None:
        """The latest word wins by its own time, whoever brings it."""
        if self.state_utc is None or at_utc >= self.state_utc:
            self.state, self.state_utc = state, at_utc

    def last_heard_utc(self) -> datetime:
        """When the run grew last; where it never did, when it was last spoken of."""
        told = (self.seen_utc, self.state_utc, self.standing_utc)
        return self.grown_utc or max(at for at in told if at is not None)

    def latest_verdict(self) -> Verdict | None:
        """The run's last verdict, if there is one."""
        return max(self.verdicts.values(), key=_order, default=None)


@dataclass(slots=True)
class _Agent:
    format: str = ""
    parent: str = ""
    epoch: int = 0
    runs: dict[RunId, _Run] = field(default_factory=dict)

    def latest(self) -> _Run:
        """The run with the highest epoch; an agent without runs does not stay."""
        return max(self.runs.values(), key=lambda run: (run.epoch, run.seen_utc, run.ref.run))


class MemoryStore:
    """`ports.Store` without a database; forgets everything with its process."""

    def __init__(self) -> None:
        self._agents: dict[AgentId, _Agent] = {}
        self._positions: dict[str, tuple[TranscriptPosition, datetime | None]] = {}
        self._verdict_ids: set[str] = set()
        self._entries: dict[str, Entry] = {}
        self._days: set[date] = set()
        self._beats: dict[str, DaemonBeat] = {}
        self._metrics: dict[tuple[datetime, str], MetricsSnapshot] = {}
        self._error: StoreError | None = None
        self._answers_only = False

    def fail_with(self, error: StoreError | None, *, after_work: bool = False) -> None:
        """Let every method raise `error` from now on; None makes the store well again.

        `after_work`: the work is done first, as when a connection breaks after the commit.
        """
        self._error = error
        self._answers_only = after_work

    async def restore(self) -> Restored:
        """All agents with their latest run, verdict and standing, and all positions."""
        await self._begin()
        agents = tuple(map(_view, self._agents.values()))
        self._end()
        return Restored(agents, tuple(position for position, _ in self._positions.values()))

    async def save_progress(self, batch: Sequence[Progress]) -> None:
        """Store positions with the runs folded up to them; the last word on a run stays."""
        await self._begin()
        for progress in batch:
            check_progress(progress)
        for progress in batch:
            self._save(progress)
        self._end()

    async def trajectories(self, refs: Collection[AgentRef]) -> Mapping[AgentRef, bytes]:
        """The encoded folds of exactly these runs, where there are any."""
        await self._begin()
        found = {ref: run.fold for ref in refs if (run := self._run(ref)) and run.fold is not None}
        self._end()
        return found

    async def record(self, entries: Sequence[Entry]) -> None:
        """Append to the record; a bad entry refuses the whole batch, and is named."""
        await self._begin()
        for entry in entries:
            check_entry(entry)
        for entry in entries:
            self._entries.setdefault(entry.id, entry)
            self._apply(entry)
        self._end()

    async def recent_verdicts(
        self, agents: Collection[AgentId], limit: int
    ) -> Mapping[AgentId, tuple[Verdict, ...]]:
        """The last `limit` verdicts of each of these agents, newest first."""
        await self._begin()
        found = {}
        for id_ in agents:
            runs = self._agents[id_].runs.values() if id_ in self._agents else ()
            told = [verdict for run in runs for verdict in run.verdicts.values()]
            found[id_] = tuple(sorted(told, key=_order, reverse=True)[:limit])
        self._end()
        return found

    async def recent_entries(self, agent: AgentId | None, limit: int) -> tuple[Entry, ...]:
        """The newest entries of the record, of one agent or of all, newest first."""
        await self._begin()
        told = [
            entry
            for entry in self._entries.values()
            if agent is None or subject_of(entry.fact)[0] == agent
        ]
        self._end()
        return tuple(sorted(told, key=_order, reverse=True)[:limit])

    async def beat(self, beat: DaemonBeat) -> None:
        """Replace this daemon's sign of life."""
        await self._begin()
        check_time(beat.started_utc)
        check_time(beat.beat_utc)
        self._beats[beat.name] = beat
        self._end()

    async def beats(self) -> tuple[DaemonBeat, ...]:
        """Every daemon's last sign of life, newest first."""
        await self._begin()
        by_name = sorted(self._beats.values(), key=lambda beat: beat.name)
        self._end()
        return tuple(sorted(by_name, key=lambda beat: beat.beat_utc, reverse=True))

    async def record_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Keep a snapshot; of one daemon and moment the first one stays."""
        await self._begin()
        check_time(snapshot.at_utc)
        self._metrics.setdefault((snapshot.at_utc, snapshot.daemon), snapshot)
        self._end()

    async def recent_metrics(self, limit: int) -> tuple[MetricsSnapshot, ...]:
        """The newest snapshots of all daemons, newest first."""
        await self._begin()
        by_name = sorted(self._metrics.values(), key=lambda one: one.daemon)
        self._end()
        return tuple(sorted(by_name, key=lambda one: one.at_utc, reverse=True)[:limit])

    async def prepare_days(self, today_utc: datetime, ahead: int = 2) -> int:
        """Make the record's partitions for today and `ahead` days; returns how many were new."""
        await self._begin()
        check_time(today_utc)
        today = today_utc.astimezone(UTC).date()
        days = {today + timedelta(days=n) for n in range(ahead + 1)}
        new = len(days - self._days)
        self._days |= days
        self._end()
        return new

    async def prune(self, limits: RetentionLimits) -> Pruned:
        """Drop what is older than the limits; never a run that grew since."""
        await self._begin()
        for limit_utc in (limits.facts_utc, limits.verdicts_utc, limits.transcripts_utc):
            check_time(limit_utc)
        oldest_utc = day_of(limits.facts_utc)
        for old in [key for key in self._metrics if key[0] < oldest_utc]:
            del self._metrics[old]
        pruned = Pruned(
            self._prune_days(limits.facts_utc.astimezone(UTC).date()),
            self._prune_verdicts(limits.verdicts_utc),
            self._prune_runs(limits.transcripts_utc),
        )
        self._end()
        return pruned

    async def _begin(self) -> None:
        # Before any change: a cancelled method has done nothing.
        await trio.lowlevel.checkpoint()
        if self._error is not None and not self._answers_only:
            raise self._error

    def _end(self) -> None:
        if self._error is not None:
            raise self._error

    def _save(self, progress: Progress) -> None:
        at = progress.position
        _, before_utc = self._positions.get(at.key, (at, None))
        grown = [run.grown_utc for run in progress.runs]
        self._positions[at.key] = (
            at,
            max([*grown, before_utc] if before_utc else grown, default=None),
        )
        for told in progress.runs:
            self._save_run(told, at)

    def _save_run(self, told: RunProgress, at: TranscriptPosition) -> None:
        run = self._met(told.ref, told.seen_utc, at.format, told.parent)
        if run.epoch == 0:
            agent = self._agents[told.ref.agent]
            agent.epoch += 1
            run.epoch = agent.epoch
        run.path, run.transcript_key = at.path, at.key
        run.tell_state(told.state, told.state_utc)
        run.digest, run.fold, run.grown_utc = told.digest, told.trajectory, told.grown_utc

    def _met(self, ref: AgentRef, at_utc: datetime, source_format: str, parent: str) -> _Run:
        agent = self._agents.setdefault(ref.agent, _Agent())
        agent.format = source_format or agent.format
        agent.parent = parent or agent.parent
        run = agent.runs.setdefault(ref.run, _Run(ref, at_utc))
        run.seen_utc = min(run.seen_utc, at_utc)
        return run

    def _apply(self, entry: Entry) -> None:
        agent, run_id = subject_of(entry.fact)
        if agent is None or run_id is None:
            return
        run = self._met(AgentRef(agent, run_id), entry.at_utc, "", "")
        match entry.fact:
            case AgentSeen() as seen:
                self._met(seen.ref, seen.seen_utc, seen.format, seen.parent)
                run.path = run.path or seen.path
            case VerdictReached(verdict=verdict):
                if verdict.id not in self._verdict_ids:
                    self._verdict_ids.add(verdict.id)
                    run.verdicts[verdict.id] = verdict
            case StateChanged(after=state):
                run.tell_state(state, entry.at_utc)
            case StandingChanged(after=standing):
                if run.standing_utc is None or entry.at_utc >= run.standing_utc:
                    run.standing, run.standing_utc = standing, entry.at_utc
            case _:
                pass

    def _prune_days(self, limit: date) -> int:
        old = {day for day in self._days if day < limit}
        self._days -= old
        self._entries = {
            id_: entry
            for id_, entry in self._entries.items()
            if entry.at_utc.astimezone(UTC).date() >= limit
        }
        return len(old)

    def _prune_verdicts(self, limit_utc: datetime) -> int:
        gone = 0
        for run in self._all_runs():
            last = run.latest_verdict()
            old = [v.id for v in run.verdicts.values() if v.at_utc < limit_utc and v != last]
            for id_ in old:
                del run.verdicts[id_]
            self._verdict_ids.difference_update(old)
            gone += len(old)
        return gone

    def _prune_runs(self, limit_utc: datetime) -> int:
        old = [run for run in self._all_runs() if run.last_heard_utc() < limit_utc]
        for run in old:
            del self._agents[run.ref.agent].runs[run.ref.run]
            self._verdict_ids.difference_update(run.verdicts)
        self._agents = {id_: agent for id_, agent in self._agents.items() if agent.runs}
        read = {run.transcript_key for run in self._all_runs()}
        self._positions = {
            key: (at, grown_utc)
            for key, (at, grown_utc) in self._positions.items()
            if grown_utc is None or grown_utc >= limit_utc or key in read
        }
        return len(old)

    def _run(self, ref: AgentRef) -> _Run | None:
        agent = self._agents.get(ref.agent)
        return None if agent is None else agent.runs.get(ref.run)

    def _all_runs(self) -> list[_Run]:
        return [run for agent in self._agents.values() for run in agent.runs.values()]


def _view(agent: _Agent) -> AgentView:
    run = agent.latest()
    return AgentView(
        run.ref,
        agent.format,
        run.path,
        agent.parent,
        run.seen_utc,
        run.state,
        run.digest,
        run.grown_utc,
        run.standing,
        run.latest_verdict(),
    )


def _order(told: Verdict | Entry) -> tuple[datetime, str]:
    return told.at_utc, told.id
