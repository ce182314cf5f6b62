"""What judging has cost, on a real PostgreSQL."""

import os
from collections.abc import AsyncIterator

import pytest
from tests.adapters.postgres.migrated import emptied, fetchval, migrated_dsn
from tests.contracts.spend_contract import NOON, SpendContract, spend

from custosd.adapters.postgres import spends
from custosd.adapters.postgres.bridge import Database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.adapters.postgres.spends import PostgresSpends

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def spends_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"spends_{os.getpid()}")


@pytest.fixture
async def database(spends_dsn: str) -> AsyncIterator[Database]:
    async with emptied(spends_dsn) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PostgresSpends:
    return PostgresSpends(database)


class TestPostgresSpends(SpendContract):
    """The contract, on the fixture `store` above."""


async def test_pruning_goes_on_until_nothing_is_left(store: PostgresSpends) -> None:
    await store.save_spends([spend(f"s{n}") for n in range(2 * spends.PRUNE_BATCH + 1)])
    assert await store.prune_spends(NOON.replace(hour=13)) == 2 * spends.PRUNE_BATCH + 1


async def test_settling_touches_no_index(database: Database) -> None:
    """A call's second writing is a heap-only update: half of all writings are such."""
    columns = (
        "select count(*) from pg_index x join pg_attribute a on a.attrelid = x.indrelid"
        " and a.attnum = any(x.indkey) where x.indrelid = 'custosd.spends'::regclass"
        " and a.attname in ('settled_usd', 'settled_utc')"
    )
    assert await database.unit(fetchval, columns) == 0
