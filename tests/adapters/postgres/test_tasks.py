"""The fleet's tasks on PostgreSQL: keep the contract, among many at once, and by index."""

# ruff: noqa: ASYNC220 - processes are started before anything is waited for

import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.adapters.postgres.migrated import emptied, execute, fetchval, migrated_dsn
from tests.contracts.task_contract import ADA, BOB, Clock, TaskContract, claimed, holder, new

from custosd.adapters.postgres import task_queries
from custosd.adapters.postgres.bridge import Connection, Database
from custosd.adapters.postgres.embedded import EmbeddedServer
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.core.tasks import (
    AUTHORITY,
    ClaimRequest,
    Failure,
    ScoreRules,
    Settling,
    TaskCycle,
    TaskId,
    TaskQuery,
    TaskState,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def tasks_dsn(postgres_server: EmbeddedServer) -> str:
    return migrated_dsn(postgres_server.dsn, f"tasks_{os.getpid()}")


@pytest.fixture
async def database(tasks_dsn: str) -> AsyncIterator[Database]:
    async with emptied(tasks_dsn) as database:
        yield database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> PostgresTasks:
    return PostgresTasks(database, now_utc=clock)


class TestPostgresTasks(TaskContract):
    """The contract, on the fixture `store` above."""


# several at once

HERE = Path(__file__).resolve().parent
PROCESSES = 8
GRAPH_WAITERS = "select count(*) from pg_locks where locktype = 'advisory' and not granted"


async def all_at_once(calls: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
    answers: list[Any] = []

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        try:
            answers.append(await call())
        except TaskCycle as cycle:
            answers.append(cycle)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(one, call)
    return answers


async def until(database: Database, query: str, *args: Any) -> None:
    """Return when the server's answer is true; the test's own limit of time bounds it."""
    while not await database.unit(fetchval, query, *args, tx=False):
        await trio.lowlevel.checkpoint()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("batch", [1, 5])
async def test_eight_processes_claim_everything_and_nothing_twice(
    database: Database, tasks_dsn: str, batch: int
) -> None:
    """600 tasks in chains of three: each done once, under its first fence; all had a share."""
    store = PostgresTasks(database)
    tasks = [new(f"t{n:03}-0") for n in range(200)]
    tasks += [new(f"t{n:03}-{k}", f"t{n:03}-{k - 1}") for k in (1, 2) for n in range(200)]
    await store.add(tasks, "eve")
    claimants = [
        subprocess.Popen(
            [sys.executable, str(HERE / "claimant.py"), tasks_dsn, f"agent-{n}", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    try:
        for claimant in claimants:
            assert claimant.stdout is not None
            assert await trio.to_thread.run_sync(claimant.stdout.readline) == "up\n"
        told = await all_at_once(
            [
                partial(trio.to_thread.run_sync, claimant.communicate, "go\n")
                for claimant in claimants
            ]
        )
    finally:
        for claimant in claimants:
            claimant.kill()
            claimant.wait()
    lines = [line.split() for out, _ in told for line in out.splitlines()]
    assert Counter(word for _, word in lines) == {"1": 600}
    assert len({id_ for id_, _ in lines}) == 600
    assert [claimant.returncode for claimant in claimants] == [0] * PROCESSES
    assert all(out for out, _ in told)
    left = "select count(*) from custosd.tasks where state <> 'succeeded' or attempts <> 1"
    assert await database.unit(fetchval, left) == 0


async def test_a_claim_passes_over_what_another_is_taking_and_waits_for_nobody(
    store: PostgresTasks, database: Database
) -> None:
    """The 40 most urgent are locked: more than are looked at first."""
    await store.add([new(f"t{n:02}") for n in range(50)], "eve")
    asked, go = trio.Event(), trio.Event()
    ids = [f"t{n:02}" for n in range(40)]
    other = await asyncpg_session(database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            other, "select from custosd.tasks where id = any($1) for update", ids, asked, go
        )
        await asked.wait()
        found = (await store.claim(ClaimRequest(ADA, 60.0, 20))).tasks
        go.set()
    assert [task.id for task in found] == [f"t{n:02}" for n in range(40, 50)]


async def asyncpg_session(database: Database) -> Callable[..., Awaitable[None]]:
    """A transaction that does one statement and stays open until it is told to end."""

    async def hold(query: str, arg: Any, done: trio.Event, go: trio.Event) -> None:
        token = trio.lowlevel.current_trio_token()
        released = HeldOpen()

        async def unit(conn: Connection) -> None:
            await conn.execute(query, *([] if arg is None else [arg]))
            token.run_sync_soon(done.set)
            await released.wait(conn)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.unit, unit)
            await go.wait()
            released.set()

    return hold


class HeldOpen:
    """Set on trio's thread, awaited on the other by asking the server for the time."""

    def __init__(self) -> None:
        self._over = False

    def set(self) -> None:
        self._over = True

    async def wait(self, conn: Connection) -> None:
        while not self._over:
            await conn.execute("select pg_sleep(0.005)")


async def test_of_two_halves_of_a_circle_added_at_once_one_is_refused(
    store: PostgresTasks, database: Database
) -> None:
    """Both wait for the graph's lock, so both have begun; whoever comes second sees the first."""
    for n in range(5):
        a, b = TaskId(f"a{n}"), TaskId(f"b{n}")
        await store.add([new(a), new(b)], "eve")
        done, go = trio.Event(), trio.Event()
        hold = await asyncpg_session(database)
        answers: list[Any] = []

        async def link(first: TaskId, second: TaskId, answers: list[Any] = answers) -> None:
            answers += await all_at_once([partial(store.link, [(first, second)])])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, task_queries.LOCK_GRAPH, None, done, go)
            await done.wait()
            nursery.start_soon(link, a, b)
            nursery.start_soon(link, b, a)
            await until(database, f"select ({GRAPH_WAITERS}) = 2")
            go.set()
        assert sorted(isinstance(answer, TaskCycle) for answer in answers) == [False, True]
        edges = "select count(*) from custosd.task_edges where task_id in ($1, $2)"
        assert await database.unit(fetchval, edges, a, b) == 1


async def test_an_edge_added_while_what_it_waits_for_ends_is_not_forgotten(
    store: PostgresTasks, database: Database
) -> None:
    """Whatever comes first: who waits is ready when what it waits for has succeeded."""
    for n in range(20):
        a, b = TaskId(f"a{n}"), TaskId(f"b{n}")
        await store.add([new(a)], "eve")
        task = await claimed(store)
        assert task.id == a
        await all_at_once(
            [
                partial(store.complete, a, holder(task)),
                partial(store.add, [new(b, a)], "eve"),
            ]
        )
        assert (await store.tasks([b]))[b].state is TaskState.READY
        await store.complete(b, AUTHORITY)


async def test_many_endings_at_once_free_what_waits_for_all_of_them_once(
    store: PostgresTasks,
) -> None:
    firsts = [new(f"a{n}") for n in range(20)]
    names = [task.id for task in firsts]
    await store.add([*firsts, *(new(f"b{n}", *names) for n in range(5))], "eve")
    tasks = (await store.claim(ClaimRequest(ADA, 60.0, 20))).tasks
    answers = await all_at_once([partial(store.complete, t.id, holder(t)) for t in tasks])
    assert {answer.outcome for answer in answers} == {Settling.DONE}
    freed = Counter(
        change.task for answer in answers for change in answer.changes if change.before == "blocked"
    )
    assert freed == {f"b{n}": 1 for n in range(5)}
    ready = await store.find(TaskQuery(frozenset({TaskState.READY})))
    assert {task.unmet for task in ready} == {0}
    assert len(ready) == 5


async def test_the_same_claim_twice_at_once_is_one_claim(store: PostgresTasks) -> None:
    for n in range(10):
        await store.add([new(f"a{n}"), new(f"b{n}")], "eve")
        asked = ClaimRequest(ADA, 60.0, key=f"k{n}")
        first, second = await all_at_once([partial(store.claim, asked)] * 2)
        assert first.tasks == second.tasks
        assert len(first.tasks) == 1
        await store.cancel([TaskId(f"a{n}"), TaskId(f"b{n}")])


# what it costs


class Counted:
    """A database that counts the statements of its units."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.statements = 0

    async def unit(self, fn: Callable[..., Awaitable[Any]], *args: Any, tx: bool = True) -> Any:
        return await self._database.unit(self._counted, fn, args, tx=tx)

    async def _counted(
        self, conn: Connection, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> Any:
        def count(_record: Any) -> None:
            self.statements += 1

        with conn.query_logger(count):
            return await fn(conn, *args)


async def test_what_is_asked_most_is_one_statement_however_many_tasks_there_are(
    database: Database,
) -> None:
    counted = Counted(database)
    store = PostgresTasks(counted)  # type: ignore[arg-type]
    await store.add([new(f"t{n:03}") for n in range(300)], "eve")
    calls: list[tuple[str, int, Callable[[int], Awaitable[Any]]]] = [
        ("next", 1, lambda _n: store.next_tasks(100, [])),
        ("claim", 1, lambda _n: store.claim(ClaimRequest(ADA, 60.0, 100))),
        ("assigned", 1, lambda _n: store.assigned([ADA, BOB])),
        ("expire", 1, lambda _n: store.expire()),
        ("complete", 3, lambda n: store.complete(TaskId(f"t00{n}"), AUTHORITY)),
        ("fail", 3, lambda n: store.fail(TaskId(f"t01{n}"), AUTHORITY, Failure())),
        ("cancel", 2, lambda n: store.cancel([TaskId(f"t{k}{n}0") for k in range(10, 28)])),
    ]
    for name, expected, call in calls:
        await call(0)  # the driver asks once for each type that it does not know
        before = counted.statements
        await call(1)
        assert counted.statements - before == expected, name


async def test_claims_and_endings_read_no_table_whole(database: Database) -> None:
    """Among 20,000 tasks, 2,000 of them ready: only indexes, also by plans for any arguments."""
    await database.unit(
        execute,
        """
        insert into custosd.tasks (id, title, state, created_utc, ended_utc, ready_utc)
        select 't' || n, '-', case when n % 10 = 0 then 'ready' else 'succeeded' end, now(),
            case when n % 10 > 0 then now() end, now() from generate_series(1, 20000) as n
        """,
    )
    await database.unit(
        execute,
        "insert into custosd.task_edges (task_id, depends_on)"
        " select 't' || n, 't' || n - k from generate_series(4, 20000) as n,"
        " generate_series(1, 3) as k",
    )
    await database.unit(execute, "vacuum analyze custosd.tasks", tx=False)
    await database.unit(execute, "vacuum analyze custosd.task_edges", tx=False)

    async def plan(conn: Connection, query: str, types: str, values: str) -> str:
        await conn.execute("set local plan_cache_mode = force_generic_plan")
        await conn.execute(f"prepare it ({types}) as {query}")
        try:
            rows = await conn.fetch(f"explain execute it ({values})")
        finally:
            await conn.execute("deallocate it")
        return "\n".join(row[0] for row in rows)

    rules = ScoreRules()
    at, able = "timestamptz, text[]", "null, '{gpu}'"
    claim_types = f"{at}, int, smallint, text, bigint, interval, text"
    for query, types, values in (
        (task_queries.next_tasks(rules, 4), at, able),
        (task_queries.next_tasks(rules, 128), at, able),
        (task_queries.claim(rules, 4), claim_types, f"{able}, 1, 7, 'ada', 0, '60 s', ''"),
        (
            task_queries.COMPLETE,
            "timestamptz, text, text, bigint, text",
            "null, 't10', 'ada', 1, ''",
        ),
        (task_queries.EXTEND, "timestamptz, text, text, bigint, interval", "null,'a','b',1,'1 s'"),
        (task_queries.NEXT_DUE, "timestamptz", "null"),
    ):
        text = await database.unit(plan, query, types, values)
        assert "Seq Scan on tasks" not in text, text
        assert "Seq Scan on task_edges" not in text, text
