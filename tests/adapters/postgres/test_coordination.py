"""What is kept of the fleet as a whole, on PostgreSQL: keeps the contract, and its words."""

import os
from collections.abc import AsyncIterator

import pytest
import trio
from tests.adapters.postgres.migrated import emptied, execute, migrated_dsn
from tests.contracts.coordination_contract import (
    A,
    B,
    CoordinationContract,
    finding,
    intent,
    reading,
)
from tests.contracts.store_values import NOON

from custosd.adapters.postgres.bridge import Database
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def coordination_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"coordination_{os.getpid()}")


@pytest.fixture
async def database(coordination_dsn: str) -> AsyncIterator[Database]:
    async with emptied(coordination_dsn) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PostgresCoordination:
    return PostgresCoordination(database)


class TestPostgresCoordination(CoordinationContract):
    """The contract, on the fixture `store` above."""


async def test_a_claim_runs_out_by_the_servers_clock(
    store: PostgresCoordination, database: Database
) -> None:
    await store.take_claim(intent(A, "a.py"), 60.0)
    assert (await store.take_claim(intent(B, "a.py"), 60.0)).claim is None
    await database.unit(
        execute,
        "update custosd.claims set taken_utc = now() - interval '2 min',"
        " expires_utc = now() - interval '1 min'",
    )
    assert await store.claims() == ()
    assert (await store.take_claim(intent(B, "a.py"), 60.0)).claim is not None


async def test_a_finding_of_a_newer_version_is_left_out(
    store: PostgresCoordination, database: Database
) -> None:
    await store.save_sweep(NOON, reading(), [finding()])
    await database.unit(execute, """update custosd.findings set body = '{"kind": "rivalry"}'""")
    assert await store.findings(NOON) == ()
    assert store.skipped == 1
    await trio.lowlevel.checkpoint()
