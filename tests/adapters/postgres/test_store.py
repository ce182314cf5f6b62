"""The store on PostgreSQL keeps the contract, its promises of cost, and its data."""

import functools
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog.testing
import trio
from tests.adapters.postgres.conftest import binaries_of
from tests.adapters.postgres.migrated import emptied, execute, fetch, fetchval, migrated_dsn
from tests.contracts import store_values as some
from tests.contracts.store_contract import StoreContract
from tests.contracts.store_values import ADA, ADA_AGAIN, BOB, DAY, MINUTE, NOON

from custosd.adapters.encoding import encode_json
from custosd.adapters.postgres import queries
from custosd.adapters.postgres.bridge import Connection, Database, open_database
from custosd.adapters.postgres.embedded import EmbeddedServer, embedded_postgres
from custosd.adapters.postgres.migrations import migrate
from custosd.adapters.postgres.store import PostgresStore
from custosd.core.agents import AgentState
from custosd.core.errors import StoreRefused, StoreUnavailable
from custosd.core.facts import Entry
from custosd.core.verdicts import Standing
from custosd.ports import RetentionLimits

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def store_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"store_{os.getpid()}")


@pytest.fixture
async def database(store_dsn: str) -> AsyncIterator[Database]:
    async with emptied(store_dsn) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PostgresStore:
    return PostgresStore(database)


class TestPostgresStore(StoreContract):
    """The contract, on the fixture `store` above."""


# epochs


async def epochs(database: Database) -> dict[str, int]:
    found = await database.unit(fetch, "select run_id, epoch from custosd.runs")
    return {row["run_id"]: row["epoch"] for row in found}


async def test_epochs_grow_with_each_run_of_an_agent(
    database: Database, store: PostgresStore
) -> None:
    await store.save_progress([some.progress(some.run(ADA)), some.progress(some.run(BOB))])
    await store.save_progress([some.progress(some.run(ADA)), some.progress(some.run(ADA_AGAIN))])
    assert await epochs(database) == {"ada-1": 1, "ada-2": 2, "bob-1": 1}


async def test_a_run_known_from_facts_gets_its_epoch_with_its_progress(
    database: Database, store: PostgresStore
) -> None:
    await store.record([some.entry("a", some.seen(ADA)), some.entry("b", some.seen(ADA_AGAIN))])
    assert await epochs(database) == {"ada-1": 0, "ada-2": 0}
    await store.save_progress([some.progress(some.run(ADA_AGAIN))])
    await store.save_progress([some.progress(some.run(ADA))])
    assert await epochs(database) == {"ada-1": 2, "ada-2": 1}


async def test_an_epoch_is_not_given_again_when_its_run_was_pruned(
    database: Database, store: PostgresStore
) -> None:
    old = some.run(ADA_AGAIN, grown_utc=NOON - 9 * DAY)
    await store.save_progress([some.progress(some.run(ADA)), some.progress(old)])
    await store.prune(RetentionLimits(NOON - DAY, NOON - DAY, NOON - DAY))
    await store.save_progress([some.progress(old)])
    assert await epochs(database) == {"ada-1": 1, "ada-2": 3}


async def test_writers_at_the_same_time_never_give_one_epoch_twice(
    database: Database, store: PostgresStore
) -> None:
    """Twelve new runs of one agent in twelve transactions at once."""
    refs = [replace(ADA, run=f"run-{n}") for n in range(12)]
    async with trio.open_nursery() as nursery:
        for n, ref in enumerate(refs):
            nursery.start_soon(store.save_progress, [some.progress(some.run(ref), key=f"t{n}")])
    assert sorted((await epochs(database)).values()) == list(range(1, 13))


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
        # Not the driver's own, when a connection meets a type of array for the first time.
        if "custosd." in record.query:
            self.statements.append(record.query)


def calls_of(
    store: PostgresStore, n: int
) -> dict[str, tuple[int, Callable[[], Awaitable[object]]]]:
    """Every method over `n` agents, with the number of statements that it may cost."""
    refs = [some.ref(k) for k in range(n)]
    ids = [ref.agent for ref in refs]
    batch = [some.progress(some.run(ref), key=f"t{ref.run}") for ref in refs]
    entries = [
        entry
        for ref in refs
        for entry in (
            some.entry(f"a{ref.run}", some.seen(ref)),
            *some.verdict_entries([some.verdict(f"v{ref.run}", ref)]),
            some.entry(f"b{ref.run}", some.standing_changed(Standing.STUCK, ref)),
            some.entry(f"c{ref.run}", some.state_changed(AgentState.IDLE, ref)),
        )
    ]
    limits = RetentionLimits(NOON - DAY, NOON - DAY, NOON - DAY)
    partial = functools.partial
    return {
        "save_progress": (5, partial(store.save_progress, batch)),
        "record": (6, partial(store.record, entries)),
        "restore": (2, store.restore),
        "trajectories": (1, partial(store.trajectories, refs)),
        "recent_verdicts": (1, partial(store.recent_verdicts, ids, 10)),
        "recent_entries": (1, partial(store.recent_entries, None, n)),
        "record_metrics": (1, partial(store.record_metrics, some.metrics())),
        "recent_metrics": (1, partial(store.recent_metrics, n)),
        "prune": (6, partial(store.prune, limits)),
    }


async def test_the_number_of_statements_does_not_grow_with_the_agents(database: Database) -> None:
    for n in (1, 150):
        counting = CountingDatabase(database)
        store = PostgresStore(counting)  # type: ignore[arg-type]
        for name, (allowed, call) in calls_of(store, n).items():
            counting.statements.clear()
            counting.crossings = 0
            await call()
            assert len(counting.statements) == allowed, (n, name)
            assert counting.crossings == (6 if name == "prune" else 1), (n, name)


async def test_repeated_progress_stays_in_its_page(store_dsn: str) -> None:
    """At least 9 of 10 updates are HOT: they write no index and need no vacuum."""
    tables = ("runs", "trajectories", "transcripts")
    sql = f"select relname, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname in {tables}"  # noqa: E501
    async with emptied(store_dsn) as database, open_database(store_dsn, pool_size=1) as single:
        del database
        store = PostgresStore(single)
        await single.unit(execute, "vacuum custosd.runs, custosd.trajectories", tx=False)
        await single.unit(fetchval, "select pg_stat_reset()")
        for steps in range(20):
            await store.save_progress(
                [
                    some.progress(some.run(some.ref(n), steps), key=f"t{n}", offset=steps)
                    for n in range(400)
                ]
            )
        await single.unit(fetchval, "select pg_stat_force_next_flush()")
        found = {row["relname"]: row for row in await single.unit(fetch, sql)}
    for table in tables:
        updated, hot = found[table]["n_tup_upd"], found[table]["n_tup_hot_upd"]
        assert updated >= 19 * 400
        assert hot / updated >= 0.9, (table, hot, updated)


# What is not said here is said by the plans: at 10,000 agents no statement about a few of
# them reads a table whole, neither with its arguments known nor prepared for any.

_POPULATION = """
set local synchronous_commit = off;
insert into custosd.agents (shard, agent_id, first_seen_utc, epoch)
    select n % 256, 'a' || n, now(), 1 from generate_series(1, 10000) as n;
insert into custosd.runs (shard, agent_id, run_id, epoch, seen_utc)
    select shard, agent_id, 'r' || agent_id, 1, now() from custosd.agents;
insert into custosd.trajectories select shard, agent_id, run_id, '{DIGEST}', '' from custosd.runs;
insert into custosd.verdicts (shard, id, agent_id, run_id, at_utc, steps, standing, phase,
        needs_steering, judge)
    select shard, agent_id || '-' || n, agent_id, run_id, now() - n * interval '1 minute', 1,
        'stuck', 'testing', false, 'rules'
    from custosd.runs cross join generate_series(1, 3) as n;
insert into custosd.signals (shard, verdict_id, place, kind, severity, measure, threshold)
    select shard, id, 0, 'stale', 'note', 1, 1 from custosd.verdicts;
insert into custosd.transcripts (shard, key, path, format, session, byte_offset, cursor)
    select shard, agent_id, '', '', '', 0, '' from custosd.agents;
select custosd.prepare_fact_days(current_date - 2, 2);
insert into custosd.facts (at_utc, shard, id, kind, agent_id, run_id, body)
    select current_date - n * interval '1 day' + interval '1 hour', shard, agent_id || n, 'k',
        agent_id, run_id, '{}'
    from custosd.runs cross join generate_series(0, 2) as n;
"""


async def plan(conn: Connection, sql: str, values: list[str], *, generic: bool) -> str:
    mode = "force_generic_plan" if generic else "force_custom_plan"
    await conn.execute(f"set local plan_cache_mode = {mode}")
    await conn.execute(f"prepare looked_at as {sql}")
    found = await conn.fetchval(f"explain (format json) execute looked_at({', '.join(values)})")
    await conn.execute("deallocate looked_at")
    return str(found)


def scanned(node: Any) -> set[str]:
    """The tables of ours that a plan reads whole."""
    if isinstance(node, list):
        return set().union(*map(scanned, node))
    if not isinstance(node, dict):
        return set()
    own = {node["Relation Name"]} if node.get("Node Type") == "Seq Scan" else set()
    return own.union(*map(scanned, node.values()))


@pytest.fixture
async def populated(database: Database) -> Database:
    await database.unit(execute, _POPULATION.replace("{DIGEST}", encode_json(some.digest())))
    await database.unit(execute, "analyze", tx=False)
    return database


async def test_statements_about_some_agents_use_indexes(populated: Database) -> None:
    some_agents = [f"a{n}" for n in range(1, 10_000, 1_000)]
    shards = f"'{{{','.join(str(int(a[1:]) % 256) for a in some_agents)}}}'"
    ids = f"'{{{','.join(some_agents)}}}'"
    runs = f"'{{{','.join('r' + a for a in some_agents)}}}'"
    texts, numbers = f"'{{{','.join('x' for _ in some_agents)}}}'", shards
    times = f"'{{{','.join(['2026-01-01'] * len(some_agents))}}}'"
    jsons = f"array_fill('{{}}'::text, array[{len(some_agents)}])"
    states = f"array_fill('idle'::text, array[{len(some_agents)}])"
    cases = {
        queries.READ_TRAJECTORIES: [shards, ids, runs],
        queries.READ_VERDICTS: [shards, ids, "10"],
        queries.ENSURE_AGENTS: [shards, ids, texts, texts, times],
        queries.GIVE_EPOCHS: [shards, ids, runs, times, numbers],
        queries.SAVE_RUNS: [
            *(shards, ids, runs, texts, texts, texts, states, times, numbers, times, times),
            "null",
        ],
        queries.SAVE_TRAJECTORIES: [shards, ids, runs, jsons, texts],
        queries.ENSURE_RUNS: [shards, ids, runs, texts, times],
        queries.RECORD_CHANGES: [shards, ids, runs, states, times, texts, times],
        queries.READ_FACTS: ["50"],
        queries.READ_FACTS_OF_AGENT: ["1", "'a1'", "50"],
    }
    for sql, values in cases.items():
        for generic in (True, False):
            found = await populated.unit(
                functools.partial(plan, generic=generic), sql, values, tx=True
            )
            whole = scanned(json.loads(found)) - {"facts_default"}
            assert whole == set(), (generic, sql, found)
    # Old verdicts are looked for from the oldest on, however many there are.
    found = await populated.unit(
        functools.partial(plan, generic=True), queries.PRUNE_VERDICTS, ["'2020-01-01'"]
    )
    assert "verdicts_age" in found


async def test_restoring_10_000_agents_takes_two_statements(
    populated: Database,
) -> None:
    counting = CountingDatabase(populated)
    restored = await PostgresStore(counting).restore()  # type: ignore[arg-type]
    assert len(counting.statements) == 2
    assert len(restored.agents) == len(restored.positions) == 10_000
    assert all(view.verdict and view.verdict.id.endswith("-1") for view in restored.agents)


# what is stored beside the contract


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_a_thread_once_told_is_never_forgotten(
    database: Database, store: PostgresStore, *, in_one_batch: bool
) -> None:
    told = [some.progress(some.run(thread=name)) for name in ("explore", "")]
    for batch in [told] if in_one_batch else [[one] for one in told]:
        await store.save_progress(batch)
    assert await database.unit(fetchval, "select thread from custosd.runs") == "explore"


# what a newer version wrote


async def test_facts_of_kinds_unknown_here_are_skipped_and_counted(
    database: Database, store: PostgresStore
) -> None:
    known = [some.entry(f"e{n}", some.seen(BOB)) for n in range(2)]
    await store.record(known)
    await database.unit(
        execute,
        """
        insert into custosd.facts (at_utc, shard, id, kind, body) values
            ('2026-03-14 12:00Z', 0, 'x', 'teleported', '{"ref": 1}'),
            ('2026-03-14 12:00Z', 0, 'y', 'daemon_stopped', '{"code": 3}'),
            ('2026-03-14 12:00Z', 0, 'z', 'daemon_stopped', '{"reason": "", "more": [1]}')
        """,
    )
    with structlog.testing.capture_logs() as logged:
        entries = await store.recent_entries(None, 10)
    assert {entry.id for entry in entries} == {"e0", "e1", "z"}
    assert store.skipped == 2
    assert [line["event"] for line in logged] == ["record.skipped"]


async def test_a_digest_of_another_shape_costs_the_digest_not_the_agent(
    database: Database, store: PostgresStore
) -> None:
    await store.save_progress([some.progress(some.run())])
    await database.unit(execute, """update custosd.trajectories set digest = '{"goal": 3}'""")
    (view,) = (await store.restore()).agents
    assert (view.ref, view.digest) == (ADA, None)
    assert store.skipped == 1


# days


async def days(database: Database) -> list[str]:
    found = await database.unit(
        fetch,
        "select c.relname, (select count(*) from custosd.facts f where f.tableoid = c.oid) as n"
        " from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'custosd.facts'::regclass order by 1",
    )
    return [f"{row['relname'].removeprefix('facts_')}:{row['n']}" for row in found]


async def test_facts_lie_in_the_partition_of_their_day(
    database: Database, store: PostgresStore
) -> None:
    """Rows that came before their day was made are moved; the others stay in the default."""
    told = [some.entry(f"e{n}", some.seen(), NOON + n * DAY) for n in range(-1, 4)]
    await store.record(told)
    assert await days(database) == ["default:5"]
    await store.prepare_days(NOON)
    assert await days(database) == ["20260314:1", "20260315:1", "20260316:1", "default:2"]
    await store.record(told)
    await store.prune(RetentionLimits(NOON + DAY, NOON, NOON))
    assert await days(database) == ["20260315:1", "20260316:1", "default:1"]


async def test_days_are_made_while_others_write_and_prepare(
    database: Database, store: PostgresStore
) -> None:
    told = [
        [some.entry(f"e{k}-{n}", some.seen(), NOON + n * MINUTE) for n in range(50)]
        for k in range(20)
    ]
    made: list[int] = []

    async def prepare() -> None:
        made.append(await store.prepare_days(NOON))

    async with trio.open_nursery() as nursery:
        for batch in told[:10]:
            nursery.start_soon(store.record, batch)
        nursery.start_soon(prepare)
        nursery.start_soon(prepare)
        for batch in told[10:]:
            nursery.start_soon(store.record, batch)
    assert sorted(made) == [0, 3]
    assert await days(database) == ["20260314:1000", "20260315:0", "20260316:0", "default:0"]


async def test_pruning_goes_on_beyond_one_batch(store: PostgresStore) -> None:
    verdicts = [some.bare_verdict(f"v{n:05}", ADA, NOON + n * MINUTE) for n in range(4_500)]
    await store.record(some.verdict_entries(verdicts))
    limits = RetentionLimits(NOON - DAY, NOON + 90 * DAY, NOON - DAY)
    assert (await store.prune(limits)).verdicts == 4_499


async def test_a_run_that_grows_while_it_is_pruned_stays(
    store_dsn: str, database: Database, store: PostgresStore
) -> None:
    """Its progress is not committed yet when the pruning looks at it."""
    await store.save_progress([some.progress(some.run(grown_utc=NOON - 9 * DAY))])

    async def grow_and_prune(growing: Connection) -> Any:
        await growing.execute("update custosd.runs set grown_utc = $1", NOON)
        pruning = await asyncpg.connect(store_dsn, timeout=5, command_timeout=5)
        try:
            return await pruning.fetchval(queries.PRUNE_RUNS, NOON - DAY)
        finally:
            await pruning.close()

    assert await database.unit(grow_and_prune) == 0
    assert len((await store.restore()).agents) == 1


# bad data that only the server finds


async def test_what_the_server_refuses_is_refused_as_a_whole(store: PostgresStore) -> None:
    huge = replace(some.verdict("huge"), steps=2**70)
    good = some.entry("good", some.seen(BOB))
    with pytest.raises(StoreRefused):
        await store.record([good, *some.verdict_entries([huge])])
    assert await store.recent_entries(None, 10) == ()
    await store.record([good])
    assert await store.recent_entries(None, 10) == (good,)


# the server dies


class DyingDatabase:
    """Kills the server after the n-th statement of a unit, or, at -1, after its commit."""

    def __init__(self, database: Database, server: EmbeddedServer) -> None:
        self._database = database
        self._server = server
        self.deadly = 0

    async def unit(self, fn: Callable[..., Awaitable[Any]], *args: Any, tx: bool = True) -> Any:
        done = 0

        async def watched(conn: Connection) -> Any:
            def watch(_record: object) -> None:
                nonlocal done
                done += 1
                if done == self.deadly:
                    self.deadly = 0
                    # The session first: it would work on for a while without its server.
                    os.kill(conn.get_server_pid(), signal.SIGKILL)
                    os.kill(self._server.pid, signal.SIGKILL)

            with conn.query_logger(watch):
                return await fn(conn, *args)

        result = await self._database.unit(watched, tx=tx)
        if self.deadly < 0:
            self.deadly = 0
            os.kill(self._server.pid, signal.SIGKILL)
            raise StoreUnavailable("the answer to the commit is lost")
        return result


@asynccontextmanager
async def dying(state_dir: Path, version: str) -> AsyncIterator[tuple[DyingDatabase, Any]]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            embedded_postgres(
                state_dir / "postgres",
                binaries=binaries_of(version),
                shared_buffers_bytes=16 << 20,
            )
        )
        database = await stack.enter_async_context(open_database(server.dsn))
        await migrate(database)
        yield DyingDatabase(database, server), server


async def repeat(call: Callable[[], Awaitable[object]]) -> int:
    """Call until it succeeds, as the services do; returns how often it failed."""
    failed = 0
    while True:
        try:
            await call()
        except StoreUnavailable:
            failed += 1
            await trio.sleep(0.05)
        else:
            return failed


async def test_a_server_killed_in_mid_unit_keeps_each_thing_exactly_once(
    state_dir: Path, postgres_version: str
) -> None:
    """After the first, a middle and the last statement of a unit, and at its commit."""
    async with dying(state_dir, postgres_version) as (database, server):
        store = PostgresStore(database)  # type: ignore[arg-type]
        told: list[Entry] = []
        for n, deadly in enumerate((1, 4, 6, -1)):
            of = some.ref(n)
            entries = [
                some.entry(f"{n}a", some.seen(of)),
                *some.verdict_entries([some.verdict(f"v{n}", of)]),
                some.entry(f"{n}s", some.standing_changed(Standing.STUCK, of)),
            ]
            told += entries
            pid, database.deadly = server.pid, deadly
            failed = await repeat(functools.partial(store.record, entries))
            # Of a statement the loggers are told a moment later: behind the last one the commit
            # may be quicker than the death.
            assert failed or deadly == 6
            await server.wait_restarted(pid)
            saved = [some.progress(some.run(of), key=f"t{n}")]
            await repeat(functools.partial(store.save_progress, saved))
        restored = await store.restore()
        assert {view.ref for view in restored.agents} == {some.ref(n) for n in range(4)}
        assert all(v.standing is Standing.STUCK and v.verdict for v in restored.agents)
        found = await store.recent_entries(None, 100)
        assert len(found) == len(told)
        assert set(found) == set(told)
