"""A database with the whole schema, made once for a module and emptied for each test."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from custosd.adapters.postgres.bridge import Connection, Database, open_database
from custosd.adapters.postgres.migrations import migrate


async def fetch(conn: Connection, sql: str, *args: Any) -> list[Mapping[str, Any]]:
    return list(await conn.fetch(sql, *args))


async def fetchval(conn: Connection, sql: str, *args: Any) -> Any:
    return await conn.fetchval(sql, *args)


async def execute(conn: Connection, sql: str, *args: Any) -> None:
    await conn.execute(sql, *args)


def migrated_dsn(server_dsn: str, name: str) -> str:
    """Make a database of this name and its schema; returns where it is."""
    dsn = server_dsn.replace("/postgres?", f"/{name}?", 1)

    async def make() -> None:
        async with open_database(server_dsn, pool_size=1) as admin:
            await admin.unit(execute, f"create database {name}", tx=False)
        async with open_database(dsn, pool_size=1) as database:
            await migrate(database)

    trio.run(make)
    return dsn


_EMPTY = """
delete from custosd.task_edges;
delete from custosd.tasks;
delete from custosd.agents;
delete from custosd.lives;
delete from custosd.epochs;
delete from custosd.restarts;
delete from custosd.interventions;
delete from custosd.holds;
delete from custosd.tokens;
delete from custosd.transcripts;
delete from custosd.daemons;
delete from custosd.leases;
delete from custosd.findings;
delete from custosd.readings;
delete from custosd.claims;
delete from custosd.work_links;
delete from custosd.works;
delete from custosd.sync_repositories;
delete from custosd.sync_cursors;
delete from custosd.deliveries;
delete from custosd.closings;
delete from custosd.facts;
delete from custosd.spends;
delete from custosd.fleet_days;
select custosd.drop_fact_days('2900-01-01');
"""


@asynccontextmanager
async def emptied(dsn: str) -> AsyncIterator[Database]:
    """The database at `dsn`, open, with nothing in it."""
    async with open_database(dsn, pool_size=5, release_timeout_s=5.0) as database:
        await database.unit(execute, _EMPTY)
        yield database
