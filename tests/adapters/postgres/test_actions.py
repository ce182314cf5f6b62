"""What is written about acts, on PostgreSQL: keeps the contract, its cost, and its promises."""

import functools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
import structlog.testing
import trio
from tests.adapters.postgres.migrated import emptied, execute, fetch, fetchval, migrated_dsn
from tests.contracts import store_values as some
from tests.contracts.action_contract import (
    ActionContract,
    ended,
    intended,
    intent,
    leased,
    life,
    message,
    running,
    token,
)
from tests.contracts.store_values import ADA, NOON

from custosd.adapters.postgres import action_queries
from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.bridge import Connection, Database, open_database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.core.agents import AgentId, shard_of
from custosd.core.errors import StoreRefused
from custosd.core.holds import HoldKind
from custosd.core.lives import LifeRecord
from custosd.core.restarts import Restart, RestartStep, StepRecord, StepState
from custosd.core.steering import InterventionState

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def actions_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"actions_{os.getpid()}")


@pytest.fixture
async def database(actions_dsn: str) -> AsyncIterator[Database]:
    async with emptied(actions_dsn) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PostgresActions:
    return PostgresActions(database)


class TestPostgresActions(ActionContract):
    """The contract, on the fixture `store` above."""


# several writers at once, each on a connection of its own


async def all_at_once(calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    answers: list[Any] = []

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        answers.append(await call())

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(one, call)
    return answers


async def backends(conn: Connection) -> int:
    found: int = await conn.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database()"
    )
    return found


async def test_of_many_intents_at_once_one_is_stored(
    database: Database, store: PostgresActions
) -> None:
    """Five connections; ten intents, of which nobody knows the others."""
    partial = functools.partial
    calls = [partial(store.intend_restart, intent(f"r{n}", epoch=n)) for n in range(10)]
    won = [answer for answer in await all_at_once(calls) if answer is not None]
    assert len(won) == 1
    assert won[0].next_epoch == won[0].epoch + 1
    assert await store.restarts(NOON) == tuple(won)
    assert await database.unit(backends) > 1


async def test_of_one_intent_told_many_times_at_once_all_get_the_same(
    store: PostgresActions,
) -> None:
    answers = await all_at_once([functools.partial(store.intend_restart, intent())] * 10)
    assert set(answers) == {replace(intent(), next_epoch=1)}


async def test_no_epoch_is_given_twice(store: PostgresActions) -> None:
    """Ten writers that each end the restart of another as soon as they see it."""
    given: list[int] = []

    async def restarts_once(n: int) -> None:
        restart = intent(f"r{n}")
        while (stored := await store.intend_restart(restart)) is None:
            for other in await store.restarts(NOON):
                if not other.ended:
                    await store.save_restart(ended(other))
        given.append(stored.next_epoch)

    async with trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(restarts_once, n)
    assert sorted(given) == list(range(1, 11))


async def test_a_writer_waits_for_one_that_gives_an_epoch(
    actions_dsn: str, database: Database, store: PostgresActions
) -> None:
    key = (shard_of(ADA.agent), ADA.agent)
    await store.save_restart(ended(await intended(store, intent("r0"))))

    async def give(conn: Connection) -> None:
        await conn.execute(action_queries.LOCK_EPOCH, *key)
        other = await asyncpg.connect(actions_dsn, server_settings={"lock_timeout": "50"})
        try:
            with pytest.raises(asyncpg.LockNotAvailableError):
                await other.execute(action_queries.LOCK_EPOCH, *key)
        finally:
            await other.close()
        await conn.execute(
            "update custosd.epochs set epoch = 41 where shard = $1 and agent_id = $2", *key
        )

    await database.unit(give)
    assert (await intended(store, intent())).next_epoch == 42


async def test_of_many_owners_at_once_one_gets_the_lease(store: PostgresActions) -> None:
    for fence in (1, 2, 3):
        calls = [functools.partial(leased, store, f"owner-{n}") for n in range(10)]
        won = [lease for lease in await all_at_once(calls) if lease is not None]
        assert [lease.fence for lease in won] == [fence]
        await store.release_lease("restart:a", won[0].owner)


async def test_of_many_proposals_at_once_one_is_stored(store: PostgresActions) -> None:
    calls = [functools.partial(store.propose, message(f"m{n}", key="k")) for n in range(10)]
    assert sorted(await all_at_once(calls)) == [False] * 9 + [True]


async def test_lives_told_by_several_at_once_end_at_the_furthest(store: PostgresActions) -> None:
    agents = [AgentId(f"a{n}") for n in range(50)]
    batches = [[life(agent, 1, k) for agent in agents[:: (-1) ** k]] for k in range(20)]
    await all_at_once([functools.partial(store.save_lives, batch) for batch in batches])
    assert {record.sequence for record in await store.lives()} == {19}


# leases by the server's clock


async def test_a_lease_that_ran_out_is_free_and_its_fence_grows(
    database: Database, store: PostgresActions
) -> None:
    """Time passes by setting the lease back: the server's clock is nobody's to set."""
    back = (
        "update custosd.leases set taken_utc = taken_utc - interval '1 hour',"
        " expires_utc = expires_utc - interval '1 hour'"
    )
    for fence, owner in ((1, "one"), (2, "two"), (3, "two")):
        lease = await leased(store, owner)
        assert lease is not None
        assert lease.fence == fence
        assert await leased(store, "other") is None
        await database.unit(execute, back)
    now_utc = await database.unit(fetchval, "select now()")
    lease = await leased(store, "two", 60.0)
    assert lease is not None
    assert 0 < (lease.expires_utc - now_utc).total_seconds() - 60.0 < 60.0


# cost


class CountingDatabase:
    """A database that counts the crossings and the statements of its units."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.crossings = 0
        self.statements: list[str] = []

    async def unit(self, fn: Callable[..., Awaitable[Any]], *args: Any, tx: bool = True) -> Any:
        self.crossings += 1

        async def counted(conn: Connection) -> Any:
            with conn.query_logger(self._count):
                return await fn(conn, *args)

        return await self._database.unit(counted, tx=tx)

    def _count(self, record: Any) -> None:
        if "custosd." in record.query:
            self.statements.append(record.query)


def with_steps(restart: Restart, n: int) -> Restart:
    steps = (StepRecord(RestartStep.SPAWN, k + 1, StepState.FAILED, NOON, NOON) for k in range(n))
    return replace(restart, steps=tuple(steps))


def calls_of(
    store: PostgresActions, n: int
) -> dict[str, tuple[int, Callable[[], Awaitable[object]]]]:
    """Every method with `n` of what it takes, and the number of statements it may cost."""
    partial = functools.partial
    agent = AgentId(f"a{n}")
    restart = intent(f"r{n}", agent)
    return {
        "save_lives": (1, partial(store.save_lives, [life(AgentId(f"l{k}")) for k in range(n)])),
        "lives": (1, store.lives),
        "intend_restart": (4, partial(store.intend_restart, with_steps(restart, n))),
        "intended before": (1, partial(store.intend_restart, restart)),
        "save_restart": (1, partial(store.save_restart, with_steps(running(restart), n))),
        "restarts": (1, partial(store.restarts, NOON)),
        "propose": (1, partial(store.propose, message(f"m{n}"))),
        "save_intervention": (
            1,
            partial(store.save_intervention, message(f"m{n}"), InterventionState.PROPOSED),
        ),
        "interventions": (1, partial(store.interventions, NOON)),
        "place_hold": (1, partial(store.place_hold, some.hold(agents=("a",) * n))),
        "place_holds": (
            1,
            partial(store.place_holds, [some.hold(subject=f"h{k}") for k in range(n)]),
        ),
        "holds": (1, store.holds),
        "lift_hold": (1, partial(store.lift_hold, HoldKind.QUARANTINE, "x")),
        "lift_holds": (
            1,
            partial(store.lift_holds, [(HoldKind.QUARANTINE, f"h{k}") for k in range(n)]),
        ),
        "take_lease": (1, partial(store.take_lease, "x", "o", 1.0)),
        "release_lease": (1, partial(store.release_lease, "x", "o")),
        "save_token": (1, partial(store.save_token, token(f"t{n}"))),
        "tokens": (1, store.tokens),
        "revoke_token": (1, partial(store.revoke_token, "x")),
    }


async def test_the_number_of_statements_does_not_grow(database: Database) -> None:
    for n in (1, 150):
        counting = CountingDatabase(database)
        store = PostgresActions(counting)  # type: ignore[arg-type]
        for name, (allowed, call) in calls_of(store, n).items():
            counting.statements.clear()
            counting.crossings = 0
            await call()
            assert len(counting.statements) == allowed, (n, name)
            assert counting.crossings == 1, (n, name)


async def test_a_hundred_thousand_lives_are_one_unit_of_bounded_slices(
    database: Database,
) -> None:
    counting = CountingDatabase(database)
    store = PostgresActions(counting)  # type: ignore[arg-type]
    n = 100_000
    lives = [replace(life(), agent=AgentId(f"a{k}")) for k in range(n)]
    await store.save_lives(lives)
    assert counting.crossings == 1
    assert len(counting.statements) == -(-n // action_queries.LIVES_SLICE)
    assert await database.unit(fetchval, "select count(*) from custosd.lives") == n
    counting.crossings = 0
    bad = [*lives[:-1], replace(life(), agent=AgentId(""))]
    with pytest.raises(StoreRefused):
        await store.save_lives([replace(one, sequence=9) for one in bad])
    kept = "select count(*) from custosd.lives where sequence = 5"
    assert await database.unit(fetchval, kept) == n


async def test_repeated_lives_stay_in_their_page(actions_dsn: str) -> None:
    """At least 9 of 10 updates are HOT: they write no index and need no vacuum."""
    async with emptied(actions_dsn) as database, open_database(actions_dsn, pool_size=1) as single:
        del database
        store = PostgresActions(single)
        await single.unit(execute, "vacuum custosd.lives", tx=False)
        await single.unit(fetchval, "select pg_stat_reset()")
        for sequence in range(20):
            lives = [replace(life(some.ref(n).agent), sequence=sequence) for n in range(400)]
            await store.save_lives(lives)
        await single.unit(fetchval, "select pg_stat_force_next_flush()")
        (found,) = await single.unit(
            fetch,
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'lives'",
        )
    assert found["n_tup_upd"] >= 19 * 400
    assert found["n_tup_hot_upd"] / found["n_tup_upd"] >= 0.9, dict(found)


_POPULATION = """
set local synchronous_commit = off;
insert into custosd.lives (shard, agent_id, epoch, sequence, state, since_utc)
    select n % 256, 'a' || n, 1, 1, 'idle', now() from generate_series(1, 10000) as n;
insert into custosd.epochs select shard, agent_id, 1 from custosd.lives;
insert into custosd.restarts (shard, id, agent_id, idempotency_key, cause, requested_by, epoch,
        next_epoch, state, intended_utc, ended_utc)
    select shard, agent_id || 'r', agent_id, 'k', 'crash', '', 0, 1, 'abandoned',
        now() - interval '1 year', now() from custosd.lives;
insert into custosd.restart_steps (shard, restart_id, step, attempt, place, state, started_utc)
    select shard, id, 'spawn', 1, 0, 'running', now() from custosd.restarts;
insert into custosd.interventions (shard, id, agent_id, idempotency_key, kind, message,
        proposed_by, state, proposed_utc, expires_utc, closed_utc)
    select shard, agent_id || 'm', agent_id, 'k', 'guidance', 'm', '', 'expired',
        now() - interval '1 year', now(), now() from custosd.lives;
"""


def scanned(node: Any) -> set[str]:
    """The tables of ours that a plan reads whole."""
    if isinstance(node, list):
        return set().union(*map(scanned, node))
    if not isinstance(node, dict):
        return set()
    own = {node["Relation Name"]} if node.get("Node Type") == "Seq Scan" else set()
    return own.union(*map(scanned, node.values()))


async def plan(conn: Connection, sql: str, values: list[str], *, generic: bool) -> str:
    mode = "force_generic_plan" if generic else "force_custom_plan"
    await conn.execute(f"set local plan_cache_mode = {mode}")
    await conn.execute(f"prepare looked_at as {sql}")
    found = await conn.fetchval(f"explain (format json) execute looked_at({', '.join(values)})")
    await conn.execute("deallocate looked_at")
    return str(found)


async def test_statements_about_one_agent_and_of_late_use_indexes(database: Database) -> None:
    await database.unit(execute, _POPULATION)
    await database.unit(execute, "analyze", tx=False)
    restart = ["1", "'x'", "'crash'", *["''"] * 4, "'[]'", "'intended'", "''", "0", "''"]
    restart += ["null"] * 2
    restart += ["'{spawn}'", "'{1}'", "'{0}'", "'{running}'", "'{now}'", "'{null}'", "'{x}'"]
    message_row = ["1", "'x'", "'guidance'", "'m'", "''", "'now'", "null", "''", "'queued'"]
    message_row += ["false", "''", "''", "''", "1", *["null"] * 11]
    lives = [*["'{1,2,3}'", "'{a1,a2,a3}'", "'{1,1,1}'", "'{2,2,2}'", "'{idle,idle,idle}'"]]
    lives += ["'{now,now,now}'", *["null"] * 7, "'{{},{},{}}'", "null"]
    lives[-2] = """array['{}', '{}', '{}']"""
    cases = {
        action_queries.SAVE_LIVES: lives,
        action_queries.READ_RESTART: ["1", "'x'"],
        action_queries.READ_RESTARTS: ["now()"],
        action_queries.LOCK_EPOCH: ["1", "'a1'"],
        action_queries.INTEND_RESTART: [*restart, "'a1'", "'key'", "1", "'now'"],
        action_queries.SAVE_RESTART: restart,
        action_queries.READ_INTERVENTIONS: ["now()"],
        action_queries.SAVE_INTERVENTION: [*message_row, "'proposed'"],
    }
    for sql, values in cases.items():
        for generic in (True, False):
            found = await database.unit(
                functools.partial(plan, generic=generic), sql, values, tx=True
            )
            assert scanned(json.loads(found)) == set(), (generic, sql, found)


# what a newer version wrote


async def test_words_unknown_here_are_skipped_and_counted(
    database: Database, store: PostgresActions
) -> None:
    await store.save_lives([life(), LifeRecord(AgentId("b"), 0, 0, life().state, NOON)])
    await intended(store, intent())
    await store.propose(message())
    await store.place_hold(some.hold())
    rules = {}
    for domain, table, column in (
        ("agent_state", "lives", "state"),
        ("restart_cause", "restarts", "cause"),
        ("steering_kind", "interventions", "kind"),
        ("hold_kind", "holds", "kind"),
    ):
        rules[domain] = await database.unit(fetchval, _RULE, f"{domain}_known")
        dropped = f"alter domain custosd.{domain} drop constraint {domain}_known"
        await database.unit(execute, dropped)
        where = " where agent_id = 'b'" if table == "lives" else ""
        await database.unit(execute, f"update custosd.{table} set {column} = 'newer'{where}")
    with structlog.testing.capture_logs() as logged:
        assert await store.lives() == (life(),)
        assert await store.restarts(NOON) == ()
        assert await store.interventions(NOON) == ()
        assert await store.holds() == ()
        with pytest.raises(StoreRefused):
            await store.intend_restart(intent())
    assert store.skipped == 4
    assert [line["event"] for line in logged] == ["record.skipped"] * 4
    for domain, rule in rules.items():
        again = f"alter domain custosd.{domain} add constraint {domain}_known {rule} not valid"
        await database.unit(execute, again)


_RULE = "select pg_get_constraintdef(oid) from pg_constraint where conname = $1"
