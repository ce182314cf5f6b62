"""What is kept of the fleet as a whole, on PostgreSQL: readings, findings, claims.

Laws:

1. As `store`, 1 and 2: a method is one crossing and one unit of a constant number of
   statements, and what is not understood is left out, counted and said.
2. Who has a claim is decided under a lock of the server for each repository, by its clock and
   the core's rule, which is looked up in an index: nothing is compared on this side.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import structlog

from custosd.adapters.encoding import (
    check_findings,
    check_time,
    decode_json,
    encode_json,
    original,
    storable,
)
from custosd.adapters.postgres.bridge import Connection, Database, Record
from custosd.adapters.postgres.rows import columns
from custosd.core.agents import AgentId
from custosd.core.coherence import Coherence
from custosd.core.findings import Finding, Resolution, Sighting
from custosd.core.intents import (
    CLAIMS_PER_AGENT,
    MOST_HELD_TOLD,
    Claim,
    ClaimAnswer,
    Intent,
    marks_of,
    sought_by,
)
from custosd.core.transcript import digest_of
from custosd.flow.gate import Gate

log = structlog.get_logger()

T = TypeVar("T")

PRUNE_BATCH = 2_000

PRUNE_CLAIMS_BATCH = 100
"""Fewer: with each some hundreds of marks go."""

_CLAIMING = 2
"""How many claims are taken at once: who waits for a lock must not hold every connection."""

_AGENT_LOCK, _REPOSITORY_LOCK = 7_302_011, 7_302_012
"""The numbers of the advisory locks under which claims are taken, always in this order."""

_READ_FINDINGS = """
select id, first_seen_utc, last_seen_utc, sightings, missed, resolved_utc, resolution,
    body::text as body
from custosd.findings where resolved_utc is null or resolved_utc >= $1
order by first_seen_utc, id
"""

# What is over goes first, so that its pair is free for a new one in the same statement's
# transaction; of one id the later word counts.
_SAVE_FINDINGS = """
insert into custosd.findings as known (id, kind, one, other, first_seen_utc, last_seen_utc,
    sightings, missed, resolved_utc, resolution, body)
select id, kind, one, other, first_seen_utc, last_seen_utc, sightings, missed, resolved_utc,
    resolution, body::jsonb
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
            $6::timestamptz[], $7::bigint[], $8::integer[], $9::timestamptz[], $10::text[],
            $11::text[])
    as told (id, kind, one, other, first_seen_utc, last_seen_utc, sightings, missed,
        resolved_utc, resolution, body)
on conflict (id) do update set
    last_seen_utc = excluded.last_seen_utc, sightings = excluded.sightings,
    missed = excluded.missed, resolved_utc = excluded.resolved_utc,
    resolution = excluded.resolution, body = excluded.body
"""

_SAVE_READING = """
insert into custosd.readings (at_utc, status, score, body) values ($1, $2, $3, $4::text::jsonb)
on conflict (at_utc) do nothing
"""

_READ_READINGS = """
select at_utc, body::text as body from custosd.readings order by at_utc desc limit $1
"""

_CLAIM = "id, agent_id, repository, goal, files, taken_utc, expires_utc"

# The statements below are put together from the constant part above, never from data.
_READ_CLAIMS = f"""
select {_CLAIM} from custosd.claims
where expires_utc > now() and ($2::text is null or agent_id = $2)
order by taken_utc, id limit $1
"""  # noqa: S608 - constant parts

_LOCK_CLAIMS = "select pg_advisory_xact_lock($1, $2), pg_advisory_xact_lock($3, $4)"

_DROP_CLAIMS_OVER = "delete from custosd.claims where agent_id = $1 and expires_utc <= now()"

_READ_HELD = f"""
select {_CLAIM} from custosd.claims
where id = any(array(
        select distinct claim_id from custosd.claim_marks where mark = any($1::bigint[])))
    and agent_id <> $2 and expires_utc > now()
order by taken_utc, id limit {MOST_HELD_TOLD}
"""  # noqa: S608 - constant parts

_TAKE_CLAIM = f"""
insert into custosd.claims as known ({_CLAIM})
select $1::text, $2::text, $3::text, $4::text, $5::text[], now(),
    now() + make_interval(secs => $6)
where (select count(*) from custosd.claims
       where agent_id = $2::text and id <> $1::text) < $7::integer
on conflict (id) do update set expires_utc = excluded.expires_utc
returning {_CLAIM}
"""  # noqa: S608 - constant parts

_MARK_CLAIM = """
insert into custosd.claim_marks (mark, claim_id)
select mark, $2::text from unnest($1::bigint[]) as told (mark)
where not exists (select from custosd.claim_marks where claim_id = $2::text)
"""

_RELEASE_CLAIM = """
delete from custosd.claims where id = $1 and agent_id = $2 and expires_utc > now() returning id
"""

_PRUNE = (
    """
    with gone as (delete from custosd.findings where id = any(array(
        select id from custosd.findings where resolved_utc < $1 limit $2)) returning 1)
    select count(*) from gone
    """,
    """
    with gone as (delete from custosd.readings where at_utc = any(array(
        select at_utc from custosd.readings where at_utc < $1 limit $2)) returning 1)
    select count(*) from gone
    """,
    """
    with gone as (delete from custosd.claims where id = any(array(
        select id from custosd.claims
        where expires_utc <= now() and $1::timestamptz is not null limit $2)) returning 1)
    select count(*) from gone
    """,
)


class PostgresCoordination:
    """`ports.CoordinationStore` on an open database whose schema is in place."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claiming = Gate(_CLAIMING)
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """How many values could not be understood since the start: a newer version's."""
        return self._skipped

    async def findings(self, since_utc: datetime) -> tuple[Finding, ...]:
        """All findings that are open, and those resolved since, the first seen first."""
        check_time(since_utc)
        rows = await self._database.unit(_fetch, _READ_FINDINGS, since_utc, tx=False)
        return self._known(rows, _finding_of, "findings")

    async def save_sweep(
        self, at_utc: datetime, coherence: Coherence, findings: Sequence[Finding]
    ) -> None:
        """Store a reading, and the findings that it changed, in one transaction."""
        check_time(at_utc)
        check_findings(findings)
        await self._database.unit(_save_sweep, at_utc, coherence, tuple(findings))

    async def readings(self, limit: int) -> tuple[tuple[datetime, Coherence], ...]:
        """The last readings with their times, the newest first."""
        rows = await self._database.unit(_fetch, _READ_READINGS, limit, tx=False)
        return self._known(rows, _reading_of, "readings")

    async def take_claim(
        self, intent: Intent, ttl_s: float, most: int = CLAIMS_PER_AGENT
    ) -> ClaimAnswer:
        """Lease an intent if no other agent's claim is in its way; see the port."""
        # Digested here: the thread of the bridge is everybody's.
        marks, sought = sorted(marks_of(intent)), sorted(sought_by(intent))
        async with self._claiming.slot():
            return await self._database.unit(_take_claim, intent, ttl_s, most, marks, sought)

    async def release_claim(self, agent: AgentId, claim_id: str) -> bool:
        """Give a claim back, if it is this agent's; False: there is none."""
        rows = await self._database.unit(
            _fetch, _RELEASE_CLAIM, storable(claim_id), storable(agent), tx=False
        )
        return bool(rows)

    async def claims(self, limit: int, agent: AgentId | None = None) -> tuple[Claim, ...]:
        """Claims that have not run out, of one agent or of all; the oldest first."""
        name = None if agent is None else storable(agent)
        rows = await self._database.unit(_fetch, _READ_CLAIMS, limit, name, tx=False)
        return tuple(map(_claim_of, rows))

    async def prune(self, before_utc: datetime) -> int:
        """Drop what was over before this time, in bounded units; see the port."""
        check_time(before_utc)
        total = 0
        batches = (PRUNE_BATCH, PRUNE_BATCH, PRUNE_CLAIMS_BATCH)
        for query, batch in zip(_PRUNE, batches, strict=True):
            gone = batch
            while gone >= batch:
                rows = await self._database.unit(_fetch, query, before_utc, batch, tx=False)
                gone = int(rows[0]["count"])
                total += gone
        return total

    def _known(
        self, rows: Sequence[Record], value_of: Callable[[Record], T | None], what: str
    ) -> tuple[T, ...]:
        values = [value_of(row) for row in rows]
        known = tuple(value for value in values if value is not None)
        if skipped := len(values) - len(known):
            self._skipped += skipped
            log.warning("record.skipped", during=what, count=skipped, total=self._skipped)
        return known


async def _fetch(connection: Connection, query: str, *parameters: object) -> list[Record]:
    return list(await connection.fetch(query, *parameters))


async def _save_sweep(
    connection: Connection,
    at_utc: datetime,
    coherence: Coherence,
    findings: tuple[Finding, ...],
) -> None:
    last = {finding.id: finding for finding in findings}
    # What is over first: else the new finding of its pair would be the second open one.
    for over in (True, False):
        rows = [_finding_row(finding) for finding in last.values() if finding.open != over]
        if rows:
            await connection.execute(_SAVE_FINDINGS, *columns(sorted(rows)))
    score = coherence.score
    body = encode_json(coherence)
    await connection.execute(_SAVE_READING, at_utc, coherence.status.value, score, body)


async def _take_claim(
    connection: Connection,
    intent: Intent,
    ttl_s: float,
    most: int,
    marks: Sequence[int],
    sought: Sequence[int],
) -> ClaimAnswer:
    agent, repository = storable(intent.agent), storable(intent.repository)
    locks = (_AGENT_LOCK, _number_of(agent), _REPOSITORY_LOCK, _number_of(repository))
    await connection.execute(_LOCK_CLAIMS, *locks)
    await connection.execute(_DROP_CLAIMS_OVER, agent)
    if held := await connection.fetch(_READ_HELD, sought, agent):
        return ClaimAnswer(None, tuple(map(_claim_of, held)))
    row = await connection.fetchrow(
        _TAKE_CLAIM,
        intent.id,
        agent,
        repository,
        storable(intent.goal),
        [storable(path) for path in intent.files],
        ttl_s,
        most,
    )
    if row is None:
        return ClaimAnswer(None)
    await connection.execute(_MARK_CLAIM, marks, intent.id)
    return ClaimAnswer(_claim_of(row))


def _number_of(name: str) -> int:
    """A lock's second number: 32 bits of the name, with a sign."""
    return int(digest_of(name)[:8], 16) - 2**31


def _finding_row(finding: Finding) -> tuple[object, ...]:
    sighting = finding.sighting
    return (
        finding.id,
        sighting.kind.value,
        storable(sighting.one),
        storable(sighting.other),
        finding.first_seen_utc,
        finding.last_seen_utc,
        finding.sightings,
        finding.missed,
        finding.resolved_utc,
        None if finding.resolution is None else finding.resolution.value,
        encode_json(sighting),
    )


def _finding_of(row: Record) -> Finding | None:
    sighting = decode_json(row["body"], Sighting)
    try:
        resolution = None if row["resolution"] is None else Resolution(row["resolution"])
    except ValueError:
        return None
    if sighting is None:
        return None
    return Finding(
        row["id"],
        sighting,
        row["first_seen_utc"],
        row["last_seen_utc"],
        row["sightings"],
        row["missed"],
        row["resolved_utc"],
        resolution,
    )


def _reading_of(row: Record) -> tuple[datetime, Coherence] | None:
    reading = decode_json(row["body"], Coherence)
    return None if reading is None else (row["at_utc"], reading)


def _claim_of(row: Record) -> Claim:
    intent = Intent(
        AgentId(original(row["agent_id"])),
        original(row["goal"]),
        tuple(map(original, row["files"])),
        original(row["repository"]),
    )
    return Claim(row["id"], intent, row["taken_utc"], row["expires_utc"])
