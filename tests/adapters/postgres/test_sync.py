"""What was seen on forges, on PostgreSQL: keeps the contract, also where two write at once."""

import os
from collections.abc import AsyncIterator

import pytest
import trio
from tests.adapters.postgres.migrated import emptied, execute, migrated_dsn
from tests.contracts.store_values import MINUTE, NOON
from tests.contracts.sync_contract import ALL, REPOSITORY, SyncContract, commit, delivery, pull

from custosd.adapters.postgres.bridge import Database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.adapters.postgres.sync import PostgresSync
from custosd.core.forge import WorkState

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
