"""What is kept of the fleet as a whole, on PostgreSQL: keeps the contract, and its words."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing
from tests.adapters.postgres.migrated import emptied, execute, fetchval, migrated_dsn
from tests.contracts.coordination_contract import (
    A,
    B,
    CoordinationContract,
    finding,
    intent,
    reading,
)
from tests.contracts.store_values import NOON

from custosd.adapters.postgres import coordination
from custosd.adapters.postgres.bridge import Connection, Database
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.core.agents import AgentId

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
    assert await store.claims(9) == ()
    assert (await store.take_claim(intent(B, "a.py"), 60.0)).claim is not None


async def test_a_finding_of_a_newer_version_is_left_out(
    store: PostgresCoordination, database: Database
) -> None:
    await store.save_sweep(NOON, reading(), [finding()])
    await database.unit(execute, """update custosd.findings set body = '{"kind": "rivalry"}'""")
    assert await store.findings(NOON) == ()
    assert store.skipped == 1
    await trio.lowlevel.checkpoint()


async def test_the_thousandth_claim_costs_about_what_the_tenth_did(
    store: PostgresCoordination,
) -> None:
    """Whoever comes late compares with nobody: what is in its way is looked up."""

    async def fill(number: int) -> None:
        files = [f"src/part{number}/module{file}.py" for file in range(12)]
        taken = await store.take_claim(intent(AgentId(f"a{number // 20}"), *files), 600.0)
        assert taken.claim is not None

    async def cost_s() -> float:
        """Of a large claim; the least of some, so that what else goes on here does not count."""
        large = intent(B, *(f"docs/page{file}.md" for file in range(200)))
        took_s: list[float] = []
        for _ in range(10):
            began_at = time.perf_counter()
            assert (await store.take_claim(large, 600.0)).claim is not None
            took_s.append(time.perf_counter() - began_at)
            assert await store.release_claim(B, large.id)
        return min(took_s)

    for number in range(10):
        await fill(number)
    before_s = await cost_s()
    async with trio.open_nursery() as nursery:
        for number in range(10, 1_000):
            nursery.start_soon(fill, number)
    assert await cost_s() < 5 * before_s
    held = await store.take_claim(intent(B, "src/part700/"), 600.0)
    assert [claim.intent.agent for claim in held.held] == ["a35"]


async def test_what_a_claim_left_goes_with_it(
    store: PostgresCoordination, database: Database
) -> None:
    taken = await store.take_claim(intent(A, "src/a.py", "docs/"), 60.0)
    assert taken.claim is not None
    count = "select count(*) from custosd.claim_marks"
    assert await database.unit(fetchval, count) == 3
    await store.release_claim(A, taken.claim.id)
    assert await database.unit(fetchval, count) == 0
    await store.take_claim(intent(A, "src/a.py"), 60.0)
    await database.unit(
        execute,
        "update custosd.claims set taken_utc = now() - interval '2 min',"
        " expires_utc = now() - interval '1 min'",
    )
    await store.take_claim(intent(A, goal="Something else"), 60.0)
    assert await database.unit(fetchval, count) == 1


async def test_claims_that_wait_for_one_another_hold_up_nobody_else(
    store: PostgresCoordination, database: Database
) -> None:
    """Another daemon takes a claim in the same repository, and does not come to an end."""
    trio_token, locked = trio.lowlevel.current_trio_token(), trio.Event()
    ends: list[Callable[[], object]] = []

    async def hold(conn: Connection) -> None:
        number = coordination._number_of("r")
        lock = "select pg_advisory_xact_lock($1, $2)"
        await conn.execute(lock, coordination._REPOSITORY_LOCK, number)
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        trio_token.run_sync_soon(locked.set)
        await end.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.unit, hold)
        await locked.wait()
        nursery.start_soon(store.take_claim, intent(A, "a.py"), 60.0)
        await trio.testing.wait_all_tasks_blocked()
        elsewhere = intent(B, "a.py", repository="another")
        assert (await store.take_claim(elsewhere, 60.0)).claim is not None
        for number in range(9):
            nursery.start_soon(store.take_claim, intent(A, f"{number}.py"), 60.0)
        await trio.testing.wait_all_tasks_blocked()
        assert await database.unit(fetchval, "select 1") == 1
        assert len(await store.claims(99)) == 1
        ends[0]()
    assert len(await store.claims(99)) == 11
