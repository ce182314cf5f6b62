"""The store on PostgreSQL.

    value --> [ rows ] --> one statement a table --> value

Laws:

1. A method is one crossing to the database's thread, and there one transaction of a
   constant number of statements; values are encoded there too, so that a large batch does
   not hold up the daemon. `prune` alone is several, each bounded.
2. What a newer version wrote and this one does not understand is left out and counted
   (`skipped`), and said in the log; it never fails a read.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import structlog
import trio

from custosd.adapters.encoding import (
    check_entry,
    check_progress,
    check_time,
    day_of,
    encode_json,
    original,
    storable,
)
from custosd.adapters.postgres import queries, rows
from custosd.adapters.postgres.bridge import Connection, Database
from custosd.core.agents import AgentId, AgentRef, RunId, shard_of
from custosd.core.facts import Entry
from custosd.core.verdicts import Verdict
from custosd.ports import (
    DaemonBeat,
    MetricsSnapshot,
    Progress,
    Pruned,
    Restored,
    RetentionLimits,
)

log = structlog.get_logger()


class PostgresStore:
    """`ports.Store` on an open database whose schema is in place."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """How many values could not be understood since the start: a newer version's."""
        return self._skipped

    async def restore(self) -> Restored:
        """All agents with their latest run, verdict and standing, and all positions."""
        restored, unknown = await self._database.unit(_restore)
        self._skip(unknown, "restore")
        return restored

    async def save_progress(self, batch: Sequence[Progress]) -> None:
        """Store positions with the runs folded up to them; the last word on a run stays."""
        if not batch:
            await trio.lowlevel.checkpoint()
            return
        await self._database.unit(_save_progress, batch)

    async def trajectories(self, refs: Collection[AgentRef]) -> Mapping[AgentRef, bytes]:
        """The encoded folds of exactly these runs, where there are any."""
        return await self._database.unit(_trajectories, refs, tx=False)

    async def record(self, entries: Sequence[Entry]) -> None:
        """Append to the record; a bad entry refuses the whole batch, and is named."""
        if not entries:
            await trio.lowlevel.checkpoint()
            return
        await self._database.unit(_record, entries)

    async def recent_verdicts(
        self, agents: Collection[AgentId], limit: int
    ) -> Mapping[AgentId, tuple[Verdict, ...]]:
        """The last `limit` verdicts of each of these agents, newest first."""
        found, unknown = await self._database.unit(_recent_verdicts, agents, limit, tx=False)
        self._skip(unknown, "recent_verdicts")
        return found

    async def recent_entries(self, agent: AgentId | None, limit: int) -> tuple[Entry, ...]:
        """The newest entries of the record, of one agent or of all, newest first."""
        found, unknown = await self._database.unit(_recent_entries, agent, limit, tx=False)
        self._skip(unknown, "recent_entries")
        return found

    async def beat(self, beat: DaemonBeat) -> None:
        """Replace this daemon's sign of life."""
        await self._database.unit(_beat, beat, tx=False)

    async def beats(self) -> tuple[DaemonBeat, ...]:
        """Every daemon's last sign of life, newest first."""
        return await self._database.unit(_beats, tx=False)

    async def record_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Keep a snapshot; of one daemon and moment the first one stays."""
        await self._database.unit(_record_metrics, snapshot, tx=False)

    async def recent_metrics(self, limit: int) -> tuple[MetricsSnapshot, ...]:
        """The newest snapshots of all daemons, newest first."""
        found, unknown = await self._database.unit(_recent_metrics, limit, tx=False)
        self._skip(unknown, "recent_metrics")
        return found

    async def prepare_days(self, today_utc: datetime, ahead: int = 2) -> int:
        """Make the record's partitions for today and `ahead` days; returns how many were new."""
        check_time(today_utc)
        return await self._database.unit(_prepare_days, today_utc, ahead)

    async def prune(self, limits: RetentionLimits) -> Pruned:
        """Drop what is older than the limits, in bounded units of work.

        Cancelled or failed half-way, what was dropped is dropped; the next time goes on.
        """
        for limit_utc in (limits.facts_utc, limits.verdicts_utc, limits.transcripts_utc):
            check_time(limit_utc)
        days = await self._database.unit(_drop_days, limits.facts_utc)
        await self._drain(queries.PRUNE_METRICS, day_of(limits.facts_utc))
        verdicts = await self._drain(queries.PRUNE_VERDICTS, limits.verdicts_utc)
        runs = await self._drain(queries.PRUNE_RUNS, limits.transcripts_utc)
        await self._drain(queries.PRUNE_TRANSCRIPTS, limits.transcripts_utc)
        await self._drain(queries.PRUNE_AGENTS, limits.transcripts_utc)
        return Pruned(days, verdicts, runs)

    async def _drain(self, query: str, limit_utc: datetime) -> int:
        gone = 0
        while True:
            batch = await self._database.unit(_count, query, limit_utc, tx=False)
            gone += batch
            if batch < queries.PRUNE_BATCH:
                return gone

    def _skip(self, unknown: int, during: str) -> None:
        if unknown:
            self._skipped += unknown
            log.warning("record.skipped", during=during, count=unknown, total=self._skipped)


# The far side: coroutines that run on the database's thread, one for each unit of work.


async def _restore(conn: Connection) -> tuple[Restored, int]:
    found = await conn.fetch(queries.RESTORE_AGENTS)
    agents = tuple(map(rows.agent_of, found))
    unknown = sum(
        (view.digest is None and row["digest"] is not None)
        + (view.verdict is None and row["id"] is not None)
        for view, row in zip(agents, found, strict=True)
    )
    positions = await conn.fetch(queries.RESTORE_TRANSCRIPTS)
    return Restored(agents, tuple(map(rows.position_of, positions))), unknown


async def _save_progress(conn: Connection, batch: Sequence[Progress]) -> None:
    for progress in batch:
        check_progress(progress)
    told = rows.progress_columns(batch)
    await conn.execute(queries.SAVE_TRANSCRIPTS, *told.transcripts)
    if told.runs:
        await conn.execute(queries.ENSURE_AGENTS, *told.agents)
        await conn.execute(queries.GIVE_EPOCHS, *told.epochs)
        await conn.execute(queries.SAVE_RUNS, *told.runs)
        await conn.execute(queries.SAVE_TRAJECTORIES, *told.trajectories)


async def _record(conn: Connection, entries: Sequence[Entry]) -> None:
    for entry in entries:
        check_entry(entry)
    told = rows.record_columns(entries)
    await conn.execute(queries.RECORD_FACTS, *told.facts)
    if told.runs:
        await conn.execute(queries.ENSURE_AGENTS, *told.agents)
        await conn.execute(queries.ENSURE_RUNS, *told.runs)
    if told.verdicts:
        await conn.execute(queries.RECORD_VERDICTS, *told.verdicts)
    if told.signals:
        await conn.execute(queries.RECORD_SIGNALS, *told.signals)
    if told.changes:
        await conn.execute(queries.RECORD_CHANGES, *told.changes)


async def _trajectories(conn: Connection, refs: Collection[AgentRef]) -> dict[AgentRef, bytes]:
    shards, agents = _keys([ref.agent for ref in refs])
    runs = [storable(ref.run) for ref in refs]
    found = await conn.fetch(queries.READ_TRAJECTORIES, shards, agents, runs)
    return {
        AgentRef(AgentId(original(row["agent_id"])), RunId(original(row["run_id"]))): row["fold"]
        for row in found
    }


async def _recent_verdicts(
    conn: Connection, agents: Collection[AgentId], limit: int
) -> tuple[dict[AgentId, tuple[Verdict, ...]], int]:
    found = await conn.fetch(queries.READ_VERDICTS, *_keys(agents), limit)
    verdicts: dict[AgentId, list[Verdict]] = {agent: [] for agent in agents}
    unknown = 0
    for row in found:
        agent = AgentId(original(row["agent_id"]))
        verdict = rows.verdict_of(row, AgentRef(agent, RunId(original(row["run_id"]))))
        if verdict is None:
            unknown += 1
        else:
            verdicts[agent].append(verdict)
    newest_first = {
        agent: tuple(sorted(told, key=lambda verdict: (verdict.at_utc, verdict.id), reverse=True))
        for agent, told in verdicts.items()
    }
    return newest_first, unknown


async def _recent_entries(
    conn: Connection, agent: AgentId | None, limit: int
) -> tuple[tuple[Entry, ...], int]:
    if agent is None:
        found = await conn.fetch(queries.READ_FACTS, limit)
    else:
        found = await conn.fetch(
            queries.READ_FACTS_OF_AGENT, shard_of(agent), storable(agent), limit
        )
    entries = tuple(entry for row in found if (entry := rows.entry_of(row)) is not None)
    return entries, len(found) - len(entries)


async def _beat(conn: Connection, beat: DaemonBeat) -> None:
    check_time(beat.started_utc)
    check_time(beat.beat_utc)
    await conn.execute(
        queries.SAVE_DAEMON,
        storable(beat.name),
        beat.pid,
        storable(beat.version),
        beat.started_utc,
        beat.beat_utc,
        beat.agents,
        beat.sweeps,
        beat.stopped,
    )


async def _beats(conn: Connection) -> tuple[DaemonBeat, ...]:
    return tuple(map(rows.beat_of, await conn.fetch(queries.READ_DAEMONS)))


async def _record_metrics(conn: Connection, snapshot: MetricsSnapshot) -> None:
    check_time(snapshot.at_utc)
    operations = encode_json(snapshot.operations)
    await conn.execute(queries.SAVE_METRICS, snapshot.at_utc, storable(snapshot.daemon), operations)


async def _recent_metrics(conn: Connection, limit: int) -> tuple[tuple[MetricsSnapshot, ...], int]:
    found = await conn.fetch(queries.READ_METRICS, limit)
    snapshots = tuple(one for row in found if (one := rows.metrics_of(row)) is not None)
    return snapshots, len(found) - len(snapshots)


async def _prepare_days(conn: Connection, today_utc: datetime, ahead: int) -> int:
    today = today_utc.astimezone(UTC).date()
    return int(await conn.fetchval(queries.PREPARE_FACT_DAYS, today, ahead))


async def _drop_days(conn: Connection, limit_utc: datetime) -> int:
    return int(await conn.fetchval(queries.DROP_FACT_DAYS, limit_utc))


async def _count(conn: Connection, query: str, limit_utc: datetime) -> int:
    return int(await conn.fetchval(query, limit_utc))


def _keys(agents: Collection[AgentId]) -> tuple[list[int], list[str]]:
    return [shard_of(agent) for agent in agents], [storable(agent) for agent in agents]
