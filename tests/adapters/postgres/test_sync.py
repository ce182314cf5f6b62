"""What was seen on forges, on PostgreSQL: keeps the contract, also where two write at once."""

import os
from collections.abc import AsyncIterator

import pytest
import trio
from tests.adapters.postgres.migrated import emptied, execute, migrated_dsn
from tests.contracts.store_values import MINUTE, NOON
from tests.contracts.sync_contract import ALL, REPOSITORY, SyncContract, commit, delivery, pull

from custosd.adapters.postgres.bridge import Connection, Database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.adapters.postgres.sync import PostgresSync, works_query
from custosd.core.forge import WorkKind, WorkQuery, WorkState
from custosd.core.tasks import TaskId

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def sync_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"sync_{os.getpid()}")


@pytest.fixture
async def database(sync_dsn: str) -> AsyncIterator[Database]:
    async with emptied(sync_dsn) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PostgresSync:
    return PostgresSync(database)


class TestPostgresSync(SyncContract):
    """The contract, on the fixture `store` above."""


async def test_words_that_cross_lose_nothing(store: PostgresSync) -> None:
    """Twenty writers at once, each with its own branch of one commit and its own word."""

    async def write(number: int) -> None:
        works = [
            commit("c1", f"branch-{number:02}"),
            pull("1", WorkState.OPEN, NOON + number * MINUTE, title=f"{number}"),
        ]
        await store.save_page(REPOSITORY, f"s{number}", "", works, NOON)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(write, number)
    kept = {work.kind.value: work for work in await store.works(ALL)}
    assert len(kept["commit"].branches) == 20
    assert kept["pull_request"].title == "19"


async def test_of_deliveries_at_once_one_is_taken(store: PostgresSync) -> None:
    taken: list[object] = []

    async def take() -> None:
        taken.append(await store.take_delivery("memory", delivery("d", "x", pull()), NOON))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(take)
    assert sorted(it is None for it in taken) == [False] + 9 * [True]


async def test_what_a_newer_version_wrote_is_left_out(
    store: PostgresSync, database: Database
) -> None:
    await store.save_page(REPOSITORY, "pulls", "", [pull()], NOON)
    await database.unit(execute, """update custosd.works set body = '{"kind": "epic"}'""")
    assert await store.works(ALL) == ()
    assert store.skipped == 1


SEED = """
insert into custosd.works (repository, kind, key, state, updated_utc, version, unread, at_utc, body)
select 'memory:ada/r' || n % 20, 'pull_request', n, case when n % 100 = 0 then 'open' else
    'merged' end, timestamptz '2026-03-14Z' + n * interval '1 s', 1, false, '2026-03-14Z', '{}'
from generate_series(1, 20000) as n
"""


@pytest.mark.parametrize(
    "query",
    [
        ALL,
        WorkQuery("memory:ada/r0", frozenset({WorkKind.PULL_REQUEST}), frozenset({WorkState.OPEN})),
        WorkQuery(task=TaskId("T-1")),
        WorkQuery("memory:ada/none"),
    ],
    ids=["all", "open pulls", "of a task", "of none"],
)
async def test_works_are_listed_by_index_however_many_there_are(
    database: Database, query: WorkQuery
) -> None:
    async def plan(connection: Connection) -> str:
        await connection.execute(SEED)
        await connection.execute("analyze custosd.works, custosd.work_links")
        statement, asked = works_query(query)
        rows = await connection.fetch(f"explain {statement}", *asked)
        return "\n".join(row[0] for row in rows)

    found = await database.unit(plan)
    assert "Index" in found
    assert "Seq Scan on works" not in found
