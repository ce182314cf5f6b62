"""What was seen on forges, on PostgreSQL: records, cursors, works, deliveries, ends of tasks.

Laws:

1. As `store`, 1 and 2: a method is one crossing and one unit of a constant number of
   statements, and what is not understood is left out, counted and said.
2. Words about works are merged by the core's rule, under one lock of their repository; what
   was known is read and what changed is written in the same transaction.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import structlog

from custosd.adapters.encoding import (
    check_closing,
    check_time,
    check_works,
    decode_json,
    encode_json,
    original,
    storable,
)
from custosd.adapters.postgres.bridge import Connection, Database, Record
from custosd.adapters.postgres.rows import columns
from custosd.core.forge import (
    Closing,
    Delivery,
    ForgeWork,
    Link,
    RepositoryRecord,
    WorkQuery,
    absorbed,
)

log = structlog.get_logger()

T = TypeVar("T")

PRUNE_BATCH = 2_000

_LOCK = 7_302_013
"""The first number of the advisory locks under which works of a repository are merged."""

_TAKE_LOCK = "select pg_advisory_xact_lock($1::int, hashtext($2))"

_READ_RECORDS = """
select repository, body::text as body from custosd.sync_repositories order by repository
"""

_SAVE_RECORD = """
insert into custosd.sync_repositories (repository, body) values ($1, $2::text::jsonb)
on conflict (repository) do update set body = excluded.body
"""

_READ_CURSORS = "select stream, cursor from custosd.sync_cursors where repository = $1"

_SAVE_CURSOR = """
insert into custosd.sync_cursors (repository, stream, cursor, at_utc) values ($1, $2, $3, $4)
on conflict (repository, stream) do update set cursor = excluded.cursor, at_utc = excluded.at_utc
"""

_READ_KNOWN = """
select body::text as body from custosd.works
where repository = $1 and (kind, key) in (
    select kind, key from unnest($2::text[], $3::text[]) as told (kind, key))
"""

_SAVE_WORKS = """
insert into custosd.works as known (repository, kind, key, state, updated_utc, version, unread,
    at_utc, body)
select repository, kind, key, state, updated_utc, 1, unread, at_utc, body::jsonb
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::boolean[],
            $7::timestamptz[], $8::text[])
    as told (repository, kind, key, state, updated_utc, unread, at_utc, body)
on conflict (repository, kind, key) do update set
    state = excluded.state, updated_utc = excluded.updated_utc, version = known.version + 1,
    unread = excluded.unread, at_utc = excluded.at_utc, body = excluded.body
"""

_TAKE_DELIVERY = """
insert into custosd.deliveries (forge, id, digest, at_utc) values ($1, $2, $3, $4)
on conflict do nothing returning id
"""


def works_query(query: WorkQuery) -> tuple[str, list[object]]:
    """The statement that reads works, and what it is asked with.

    It holds only what is asked for: of "this one, or any" a plan for all cases reads the table.
    """
    asked: list[object] = [query.limit]
    wanted = ["true"]

    def want(condition: str, value: object) -> None:
        asked.append(value)
        wanted.append(condition.format(f"${len(asked)}"))

    if query.repository:
        want("work.repository = {}", storable(query.repository))
    if query.kinds:
        want("work.kind = any({}::text[])", sorted(kind.value for kind in query.kinds))
    if query.states:
        want("work.state = any({}::text[])", sorted(state.value for state in query.states))
    if query.task is not None:
        key = "(work.repository, work.kind, work.key)"
        links = "select repository, kind, key from custosd.work_links where task_id = {}"
        want(f"{key} in ({links})", storable(query.task))
    where = " and ".join(wanted)
    statement = f"""
    select work.body::text as body from custosd.works as work where {where}
    order by work.updated_utc desc, work.repository, work.kind, work.key limit $1
    """  # noqa: S608 - constant parts
    return statement, asked


_READ_UNREAD = """
select body::text as body, version from custosd.works where unread
order by at_utc, repository, kind, key limit $1
"""

_SAVE_LINKS = """
insert into custosd.work_links (task_id, repository, kind, key, body)
select task_id, work.repository, work.kind, work.key, told.body::jsonb
from unnest($4::text[], $5::text[]) as told (task_id, body)
join custosd.works as work on (work.repository, work.kind, work.key) = ($1, $2, $3)
on conflict do nothing returning task_id
"""

_MARK_READ = """
update custosd.works set unread = false
where (repository, kind, key) = ($1, $2, $3) and version = $4 and unread
"""

_INTEND = """
insert into custosd.closings (task_id, repository, kind, key, intended_utc, done_utc, body)
values ($1, $2, $3, $4, $5, $6, $7::text::jsonb) on conflict do nothing
"""

_READ_CLOSING = """
select body::text as body from custosd.closings
where (task_id, repository, kind, key) = ($1, $2, $3, $4)
"""

_CLOSE = """
update custosd.closings set done_utc = $5, body = $6::text::jsonb
where (task_id, repository, kind, key) = ($1, $2, $3, $4) and done_utc is null
"""

_READ_CLOSINGS = """
select body::text as body from custosd.closings
order by intended_utc desc, task_id, repository, kind, key limit $1
"""

_PRUNE = (
    """
    with gone as (delete from custosd.works where (repository, kind, key) in (
        select repository, kind, key from custosd.works where at_utc < $1 and not unread
            and (kind not in ('pull_request', 'issue') or state <> 'open')
        limit $2) returning 1)
    select count(*) from gone
    """,
    """
    with gone as (delete from custosd.sync_cursors where (repository, stream) in (
        select repository, stream from custosd.sync_cursors where at_utc < $1 limit $2)
        returning 1)
    select count(*) from gone
    """,
    """
    with gone as (delete from custosd.deliveries where (forge, id) in (
        select forge, id from custosd.deliveries where at_utc < $1 limit $2) returning 1)
    select count(*) from gone
    """,
    """
    with gone as (delete from custosd.closings where (task_id, repository, kind, key) in (
        select task_id, repository, kind, key from custosd.closings where done_utc < $1 limit $2)
        returning 1)
    select count(*) from gone
    """,
)


class PostgresSync:
    """`ports.SyncStore` on an open database whose schema is in place."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """How many values could not be understood since the start: a newer version's."""
        return self._skipped

    async def records(self) -> tuple[RepositoryRecord, ...]:
        """How following each repository went, by its id."""
        rows = await self._database.unit(_fetch, _READ_RECORDS, tx=False)
        return self._known(rows, RepositoryRecord, "records")

    async def save_record(self, record: RepositoryRecord) -> None:
        """Replace what is remembered of following one."""
        name, body = storable(record.repository), encode_json(record)
        await self._database.unit(_execute, _SAVE_RECORD, name, body, tx=False)

    async def cursors(self, repository: str) -> Mapping[str, str]:
        """How far each stream of a repository was followed."""
        rows = await self._database.unit(_fetch, _READ_CURSORS, storable(repository), tx=False)
        return {original(row["stream"]): original(row["cursor"]) for row in rows}

    async def save_page(
        self,
        repository: str,
        stream: str,
        cursor: str,
        works: Sequence[ForgeWork],
        at_utc: datetime,
    ) -> tuple[ForgeWork, ...]:
        """Store works with how far they were followed; those that changed, as they stand."""
        check_time(at_utc)
        check_works(works, repository)
        return await self._database.unit(
            _save_page, repository, stream, cursor, tuple(works), at_utc
        )

    async def take_delivery(
        self, forge: str, delivery: Delivery, at_utc: datetime
    ) -> tuple[ForgeWork, ...] | None:
        """Store what a delivery told; None where its id or digest was taken before."""
        check_time(at_utc)
        check_works(delivery.works, delivery.repository)
        return await self._database.unit(_take_delivery, forge, delivery, at_utc)

    async def works(self, query: WorkQuery) -> tuple[ForgeWork, ...]:
        """What is known of works, the newest first."""
        statement, asked = works_query(query)
        rows = await self._database.unit(_fetch, statement, *asked, tx=False)
        return self._known(rows, ForgeWork, "works")

    async def unread(self, limit: int) -> tuple[tuple[ForgeWork, int], ...]:
        """Works whose links were not looked at since they changed; each with its version."""
        rows = await self._database.unit(_fetch, _READ_UNREAD, limit, tx=False)
        found = [(decode_json(row["body"], ForgeWork), row["version"]) for row in rows]
        return tuple((work, version) for work, version in found if work is not None)

    async def read(self, work: ForgeWork, version: int, links: Sequence[Link]) -> tuple[Link, ...]:
        """Its links were looked at, and these belong to tasks; the new ones."""
        return await self._database.unit(_read, work, version, tuple(links))

    async def intend(self, closing: Closing) -> Closing:
        """Write that a work is to end a task; what was written before, where that was."""
        check_closing(closing)
        return await self._database.unit(_intend, closing)

    async def close(self, closing: Closing) -> None:
        """It is over: `done_utc` and `told` are set; once they are, they stay."""
        check_closing(closing)
        told = (*_closing_key(closing), closing.done_utc, encode_json(closing))
        await self._database.unit(_execute, _CLOSE, *told, tx=False)

    async def closings(self, limit: int) -> tuple[Closing, ...]:
        """Which works ended which tasks, the newest first."""
        rows = await self._database.unit(_fetch, _READ_CLOSINGS, limit, tx=False)
        return self._known(rows, Closing, "closings")

    async def prune(self, before_utc: datetime) -> int:
        """Drop what was not touched since, in bounded units; see the port."""
        check_time(before_utc)
        total = 0
        for query in _PRUNE:
            gone = PRUNE_BATCH
            while gone >= PRUNE_BATCH:
                rows = await self._database.unit(_fetch, query, before_utc, PRUNE_BATCH, tx=False)
                gone = int(rows[0]["count"])
                total += gone
        return total

    def _known(self, rows: Sequence[Record], shape: type[T], what: str) -> tuple[T, ...]:
        values = [decode_json(row["body"], shape) for row in rows]
        known = tuple(value for value in values if value is not None)
        if skipped := len(values) - len(known):
            self._skipped += skipped
            log.warning("record.skipped", during=what, count=skipped, total=self._skipped)
        return known


async def _fetch(connection: Connection, query: str, *parameters: object) -> list[Record]:
    return list(await connection.fetch(query, *parameters))


async def _execute(connection: Connection, query: str, *parameters: object) -> None:
    await connection.execute(query, *parameters)


async def _save_page(
    connection: Connection,
    repository: str,
    stream: str,
    cursor: str,
    works: tuple[ForgeWork, ...],
    at_utc: datetime,
) -> tuple[ForgeWork, ...]:
    changed = await _absorb(connection, repository, works, at_utc)
    of = storable(repository)
    await connection.execute(_SAVE_CURSOR, of, storable(stream), storable(cursor), at_utc)
    return changed


async def _take_delivery(
    connection: Connection, forge: str, delivery: Delivery, at_utc: datetime
) -> tuple[ForgeWork, ...] | None:
    taken = await connection.fetchrow(
        _TAKE_DELIVERY, storable(forge), storable(delivery.id), storable(delivery.digest), at_utc
    )
    if taken is None:
        return None
    return await _absorb(connection, delivery.repository, delivery.works, at_utc)


async def _absorb(
    connection: Connection, repository: str, works: tuple[ForgeWork, ...], at_utc: datetime
) -> tuple[ForgeWork, ...]:
    if not works:
        return ()
    of = storable(repository)
    await connection.execute(_TAKE_LOCK, _LOCK, of)
    kinds = [work.kind.value for work in works]
    keys = [storable(work.key) for work in works]
    rows = await connection.fetch(_READ_KNOWN, of, kinds, keys)
    known = [decode_json(row["body"], ForgeWork) for row in rows]
    changed = absorbed({work.id: work for work in known if work is not None}, works)
    if changed:
        told = [_work_row(work, at_utc) for work in changed]
        await connection.execute(_SAVE_WORKS, *columns(told))
    return changed


async def _read(
    connection: Connection, work: ForgeWork, version: int, links: tuple[Link, ...]
) -> tuple[Link, ...]:
    key = _work_key(work)
    new: set[str] = set()
    if links:
        tasks = [storable(link.task) for link in links]
        bodies = [encode_json(link) for link in links]
        new = {row["task_id"] for row in await connection.fetch(_SAVE_LINKS, *key, tasks, bodies)}
    await connection.execute(_MARK_READ, *key, version)
    return tuple(link for link in links if storable(link.task) in new)


async def _intend(connection: Connection, closing: Closing) -> Closing:
    key = _closing_key(closing)
    body = encode_json(closing)
    await connection.execute(_INTEND, *key, closing.intended_utc, closing.done_utc, body)
    row = await connection.fetchrow(_READ_CLOSING, *key)
    known = None if row is None else decode_json(row["body"], Closing)
    return closing if known is None else known


def _work_key(work: ForgeWork) -> tuple[str, str, str]:
    return storable(work.repository), work.kind.value, storable(work.key)


def _closing_key(closing: Closing) -> tuple[str, str, str, str]:
    return (
        storable(closing.task),
        storable(closing.repository),
        closing.kind.value,
        storable(closing.key),
    )


def _work_row(work: ForgeWork, at_utc: datetime) -> tuple[object, ...]:
    return (
        *_work_key(work),
        work.state.value,
        work.updated_utc,
        bool(work.links),
        at_utc,
        encode_json(work),
    )
