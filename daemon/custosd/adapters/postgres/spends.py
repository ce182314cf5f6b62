"""What judging has cost, on PostgreSQL.

Laws: as `store`, 1. A call that is settled in the store stays as it is; which of two writings
comes last does not matter.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime

import trio

from custosd.adapters.encoding import check_spends, check_time, original, storable
from custosd.adapters.postgres.bridge import Connection, Database
from custosd.core.agents import AgentId, shard_of
from custosd.core.money import BUCKET_S, Spend, Spent

PRUNE_BATCH = 2_000
"""As many rows as `PRUNE_SPENDS` takes away at most; a limit stands in the text."""

SAVE_SPENDS = """
insert into custosd.spends as known
    (shard, id, at_utc, agent_id, model, reserved_usd, settled_usd, settled_utc)
select * from unnest($1::smallint[], $2::text[], $3::timestamptz[], $4::text[], $5::text[],
                     $6::float8[], $7::float8[], $8::timestamptz[])
on conflict (shard, id) do update set
    settled_usd = excluded.settled_usd, settled_utc = excluded.settled_utc
    where known.settled_usd is null
"""

_READ_SPENT = """
select floor(extract(epoch from coalesce(settled_utc, at_utc)) / $2::integer)::bigint as bucket,
    agent_id, model, sum(coalesce(settled_usd, reserved_usd)) as usd
from custosd.spends
where at_utc >= $1 and coalesce(settled_usd, reserved_usd) > 0{whose}
group by 1, 2, 3
order by 1, 2, 3
"""

READ_SPENT = _READ_SPENT.format(whose="")
READ_SPENT_OF = _READ_SPENT.format(whose=" and shard = $3 and agent_id = $4")

SAVE_FLEET_DAY = """
insert into custosd.fleet_days as known (day, spent_usd) values ($1, $2)
on conflict (day) do update set spent_usd = greatest(known.spent_usd, excluded.spent_usd)
"""

READ_FLEET_DAY = "select spent_usd from custosd.fleet_days where day = $1"

PRUNE_FLEET_DAYS = "delete from custosd.fleet_days where day < $1"

PRUNE_SPENDS = """
with gone as (
    delete from custosd.spends where (shard, id) in (
        select shard, id from custosd.spends where at_utc < $1 order by shard, id limit 2000)
    returning 1
)
select count(*) from gone
"""


class PostgresSpends:
    """`ports.SpendStore` on an open database whose schema is in place."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save_spends(self, spends: Sequence[Spend]) -> None:
        """See the port."""
        if not spends:
            await trio.lowlevel.checkpoint()
            return
        await self._database.unit(_save, spends, tx=False)

    async def spent(self, since_utc: datetime, agent: AgentId | None = None) -> tuple[Spent, ...]:
        """See the port."""
        check_time(since_utc)
        return await self._database.unit(_spent, since_utc, agent, tx=False)

    async def save_fleet_day(self, at_utc: datetime, usd: float) -> None:
        """See the port."""
        check_time(at_utc)
        await self._database.unit(_execute, SAVE_FLEET_DAY, _day(at_utc), usd, tx=False)

    async def fleet_day(self, at_utc: datetime) -> float | None:
        """See the port."""
        check_time(at_utc)
        return await self._database.unit(_fleet_day, _day(at_utc), tx=False)

    async def prune_spends(self, before_utc: datetime) -> int:
        """See the port."""
        check_time(before_utc)
        await self._database.unit(_execute, PRUNE_FLEET_DAYS, _day(before_utc), tx=False)
        gone = 0
        while True:
            batch = await self._database.unit(_prune, before_utc, tx=False)
            gone += batch
            if batch < PRUNE_BATCH:
                return gone


def _day(at_utc: datetime) -> date:
    return at_utc.astimezone(UTC).date()


async def _save(conn: Connection, spends: Sequence[Spend]) -> None:
    check_spends(spends)
    # Of one call the last word stands; sorted, so that two daemons lock in the same order.
    last = {(shard_of(spend.agent), storable(spend.id)): spend for spend in spends}
    rows = sorted(last.items(), key=lambda row: row[0])
    await conn.execute(
        SAVE_SPENDS,
        [shard for (shard, _), _ in rows],
        [id_ for (_, id_), _ in rows],
        [spend.at_utc for _, spend in rows],
        [storable(spend.agent) for _, spend in rows],
        [storable(spend.model) for _, spend in rows],
        [spend.reserved_usd for _, spend in rows],
        [spend.settled_usd for _, spend in rows],
        [spend.settled_utc for _, spend in rows],
    )


async def _spent(conn: Connection, since_utc: datetime, agent: AgentId | None) -> tuple[Spent, ...]:
    if agent is None:
        found = await conn.fetch(READ_SPENT, since_utc, BUCKET_S)
    else:
        key = (shard_of(agent), storable(agent))
        found = await conn.fetch(READ_SPENT_OF, since_utc, BUCKET_S, *key)
    return tuple(
        Spent(
            datetime.fromtimestamp(row["bucket"] * BUCKET_S, UTC),
            AgentId(original(row["agent_id"])),
            original(row["model"]),
            row["usd"],
        )
        for row in found
    )


async def _fleet_day(conn: Connection, day: date) -> float | None:
    found = await conn.fetchval(READ_FLEET_DAY, day)
    return None if found is None else float(found)


async def _execute(conn: Connection, query: str, *args: object) -> None:
    await conn.execute(query, *args)


async def _prune(conn: Connection, before_utc: datetime) -> int:
    return int(await conn.fetchval(PRUNE_SPENDS, before_utc))
