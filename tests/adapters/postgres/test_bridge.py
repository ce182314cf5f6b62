"""The bridge and its pool, on real servers and the real clock."""

import asyncio
import contextlib
import contextvars
import math
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from custosd.adapters.postgres.bridge import (
    Bridge,
    BridgeDied,
    Connection,
    Database,
    open_bridge,
    open_database,
)
from custosd.adapters.postgres.embedded import EmbeddedServer, embedded_postgres
from custosd.adapters.postgres.pool import one_dsn_each
from custosd.core.errors import StoreConflict, StoreRefused, StoreUnavailable

pytestmark = pytest.mark.postgres

flavour: contextvars.ContextVar[str] = contextvars.ContextVar("flavour", default="none")


async def fetchval(connection: Connection, sql: str, *args: object) -> object:
    return await connection.fetchval(sql, *args)


async def execute(connection: Connection, *statements: str) -> None:
    for statement in statements:
        await connection.execute(statement)


async def backend_pid(connection: Connection) -> int:
    pid: int = await connection.fetchval("select pg_backend_pid()")
    return pid


def tell(event: trio.Event) -> Callable[[], None]:
    """What the loop's thread calls to set an event of ours."""
    token = trio.lowlevel.current_trio_token()
    return lambda: token.run_sync_soon(event.set)


async def say_then(connection: Connection, say: Callable[[], None], sql: str) -> object:
    say()  # the statement is on the wire before the loop can hear of a cancellation
    return await connection.fetchval(sql)


async def warm(db: Database) -> None:
    """Open every connection that the pool may have: each unit waits for the others."""
    size = db.usage.size
    together = asyncio.Barrier(size)

    async def meet(_connection: Connection) -> None:
        await together.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(size):
            nursery.start_soon(db.unit, meet)


# The bridge alone


async def test_a_crossing_returns_the_value_or_the_error() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        if number < 0:
            raise ValueError(number)
        return number * 2

    async with open_bridge() as bridge:
        assert await bridge.run(double, 4) == 8
        with pytest.raises(ValueError, match="-1"):
            await bridge.run(double, -1)


async def test_many_tasks_cross_at_once_and_each_gets_its_own_answer() -> None:
    got: dict[int, int] = {}

    async def echo(number: int) -> int:
        await asyncio.sleep(random.random() / 100)
        return number

    async def caller(bridge: Bridge, number: int) -> None:
        got[number] = await bridge.run(echo, number)

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(caller, bridge, number)
    assert got == {number: number for number in range(500)}


async def test_the_far_side_sees_the_callers_context_and_cannot_change_it() -> None:
    async def taste() -> str:
        seen = flavour.get()
        flavour.set("changed")
        return seen

    async with open_bridge() as bridge:
        flavour.set("salt")
        seen: list[str] = []

        async def other() -> None:
            flavour.set("pepper")
            seen.append(await bridge.run(taste))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
        seen.append(await bridge.run(taste))
        assert seen == ["pepper", "salt"]
        assert flavour.get() == "salt"


async def test_a_cancelled_caller_waits_for_the_tasks_clean_up() -> None:
    steps: list[str] = []
    running = trio.Event()
    say = tell(running)

    async def slow() -> None:
        say()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleaned")

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, slow)
        await running.wait()
        nursery.cancel_scope.cancel()
    assert steps == ["cleaned"]


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a stuck thread waits for; set at the end, so that it ends."""
    event = threading.Event()
    before = set(threading.enumerate())
    yield event
    event.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)


async def test_a_stuck_thread_holds_up_neither_the_cancelled_nor_the_end(
    release: threading.Event,
) -> None:
    running = trio.Event()
    say = tell(running)

    async def stuck() -> None:
        say()
        release.wait()

    with trio.fail_after(10), structlog.testing.capture_logs() as logs:
        async with open_bridge(stuck_s=0.05) as bridge, trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, stuck)
            await running.wait()
            nursery.cancel_scope.cancel()
    assert [(line["event"], line["during"]) for line in logs] == [
        ("bridge.stuck", "cancel"),
        ("bridge.stuck", "stop"),
    ]


STUCK = """
import sys, threading, trio
from custosd.adapters.postgres.bridge import open_database

async def main():
    running, token = trio.Event(), trio.lowlevel.current_trio_token()

    async def stuck(_conn):
        token.run_sync_soon(running.set)
        threading.Event().wait()

    with trio.fail_after(20):
        async with open_database(sys.argv[1], stuck_s=0.05) as database:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(database.unit, stuck)
                await running.wait()
                nursery.cancel_scope.cancel()
    print("closed", flush=True)

trio.run(main)
"""


async def test_a_database_closes_beside_a_stuck_thread(postgres_server: EmbeddedServer) -> None:
    """In a process of its own: what the stuck thread holds goes with the process."""
    done = await trio.run_process(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", STUCK, postgres_server.dsn],
        capture_stdout=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "daemon")},
    )
    assert done.stdout.splitlines()[-1] == b"closed"


async def test_a_task_that_ends_all_the_same_returns_its_value_to_the_cancelled() -> None:
    running = trio.Event()
    say = tell(running)

    async def stubborn() -> str:
        say()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "kept"
        return "slept"

    async with open_bridge() as bridge, trio.open_nursery() as nursery:

        async def cancel() -> None:
            await running.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(cancel)
        assert await bridge.run(stubborn) == "kept"


async def test_a_cancelled_scope_starts_nothing() -> None:
    started: list[int] = []

    async def note() -> None:
        started.append(1)

    async with open_bridge() as bridge:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bridge.run(note)
    assert started == []


@pytest.mark.parametrize("how", ["exit", "stop"])
async def test_when_the_loops_thread_dies_present_and_later_callers_hear_of_it(how: str) -> None:
    async def forever() -> None:
        await asyncio.sleep(3600)

    async def die() -> None:
        if how == "exit":
            raise SystemExit(3)
        asyncio.get_running_loop().stop()
        await asyncio.sleep(3600)

    died: list[BridgeDied] = []

    async def caller(bridge: Bridge, fn: Callable) -> None:
        try:
            await bridge.run(fn)
        except BridgeDied as error:
            died.append(error)

    async with open_bridge() as bridge:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(caller, bridge, forever)
                await trio.testing.wait_all_tasks_blocked()
                if how == "exit":
                    with pytest.raises((SystemExit, BridgeDied)):
                        await bridge.run(die)
                else:
                    nursery.start_soon(caller, bridge, die)
        assert len(died) == (5 if how == "exit" else 6)
        with pytest.raises(BridgeDied, match="restart the daemon"):
            await bridge.run(forever)
    assert not [thread for thread in threading.enumerate() if thread.name == "custosd-postgres"]


def test_an_answer_that_comes_after_trio_has_ended_is_dropped() -> None:
    async def escape() -> Bridge:
        async with open_bridge() as bridge:
            return bridge

    bridge = trio.run(escape)
    bridge._far.post_outward(lambda: None)


async def test_the_switch_interval_is_put_back() -> None:
    before_s = sys.getswitchinterval()
    async with open_bridge():
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert sys.getswitchinterval() == before_s


# Units of work


async def test_a_unit_is_kept_as_a_whole_or_not_at_all(db: Database) -> None:
    async def two(connection: Connection, *, fail: bool) -> None:
        await connection.execute("insert into things values (1)")
        if fail:
            raise LookupError
        await connection.execute("insert into things values (2)")

    async def failing(connection: Connection) -> None:
        await two(connection, fail=True)

    async def working(connection: Connection) -> None:
        await two(connection, fail=False)

    await db.unit(execute, "create table things (n int)")
    with pytest.raises(LookupError):
        await db.unit(failing)
    assert await db.unit(fetchval, "select count(*) from things", tx=False) == 0
    await db.unit(working)
    assert await db.unit(fetchval, "select count(*) from things", tx=False) == 2


async def test_the_session_is_set_as_promised(db: Database) -> None:
    shown = {
        name: await db.unit(fetchval, f"show {name}", tx=False)
        for name in ("application_name", "jit", "timezone", "statement_timeout")
    }
    assert shown == {
        "application_name": "custosd",
        "jit": "off",
        "timezone": "UTC",
        "statement_timeout": "30s",
    }


async def test_what_a_failed_unit_left_in_the_session_is_gone(dsn: str) -> None:
    async def litter(connection: Connection) -> None:
        await connection.execute("set work_mem = '1MB'")
        await connection.execute("select pg_advisory_lock(7)")
        raise LookupError

    async with open_database(dsn, pool_size=1) as db:
        pid = await db.unit(backend_pid)
        with pytest.raises(LookupError):
            await db.unit(litter, tx=False)
        assert await db.unit(fetchval, "show work_mem", tx=False) == "4MB"
        locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = $1"
        assert await db.unit(fetchval, locks, pid) == 0
        assert await db.unit(backend_pid) == pid


async def test_an_open_transaction_does_not_go_back_into_the_pool(dsn: str) -> None:
    async with open_database(dsn, pool_size=1) as db:
        await db.unit(execute, "begin", "create table t ()", tx=False)
        assert await db.unit(fetchval, "select to_regclass('t')::text", tx=False) is None


async def test_a_cancelled_query_ends_on_the_server_and_its_connection_goes_back(
    db: Database,
) -> None:
    running = trio.Event()
    say = tell(running)
    pid = await db.unit(backend_pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.unit, say_then, say, "select pg_sleep(3600)")
        await running.wait()
        nursery.cancel_scope.cancel()
    sleeping = "select count(*) from pg_stat_activity where query like $1 and state <> 'idle'"
    assert await db.unit(fetchval, sleeping, "select pg_sleep%", tx=False) == 0
    assert await db.unit(backend_pid) == pid
    assert (db.usage.lent, db.usage.idle) == (0, 1)


async def test_random_cancellations_lose_no_connection_and_mix_up_no_answer(db: Database) -> None:
    """720 short queries by 12 tasks through five connections, two in three with a deadline."""
    random.seed(11)
    await warm(db)
    done = cancelled = 0

    async def worker(number: int) -> None:
        nonlocal done, cancelled
        for turn in range(60):
            wanted = number * 1000 + turn
            pause_s = random.random() / 500
            sql = f"select $1::int + 0 * length(pg_sleep({pause_s:.6f})::text)"
            limit_s = random.random() / 50 if turn % 3 else math.inf
            with trio.move_on_after(limit_s) as scope:
                assert await db.unit(fetchval, sql, wanted) == wanted
                done += 1
            cancelled += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(worker, number)
    print(f"{done} done, {cancelled} cancelled")
    assert done + cancelled == 720
    assert done >= 240
    assert cancelled > 0
    assert db.usage.lent == 0
    assert db.usage.idle <= 5
    mine = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and state <> 'idle' and pid <> pg_backend_pid()"
    )
    assert await db.unit(fetchval, mine, tx=False) == 0
    for number in range(20):
        assert await db.unit(fetchval, "select $1::int", number) == number


@pytest.mark.parametrize("tx", [True, False])
async def test_a_frozen_backend_holds_a_cancelled_caller_no_longer_than_the_limit(
    dsn: str,
    tx: bool,  # noqa: FBT001
) -> None:
    async with open_database(dsn, pool_size=1, release_timeout_s=0.3) as db:
        pid = await db.unit(backend_pid)
        running = trio.Event()
        say = tell(running)
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:

                    async def frozen() -> None:
                        await db.unit(say_then, say, "select 1", tx=tx)

                    nursery.start_soon(frozen)
                    if tx:  # its `begin` is never answered: nothing is said
                        await trio.testing.wait_all_tasks_blocked(0.05)
                    else:
                        await running.wait()
                    nursery.cancel_scope.cancel()
                assert (db.usage.lent, db.usage.idle) == (0, 0)
                assert await db.unit(backend_pid) != pid
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_frozen_backend_is_noticed_without_a_cancellation(dsn: str) -> None:
    async with open_database(
        dsn, pool_size=1, statement_timeout_s=0.2, release_timeout_s=0.2
    ) as db:
        pid = await db.unit(backend_pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(20), pytest.raises(StoreUnavailable, match="no answer in time"):
                await db.unit(fetchval, "select 1", tx=False)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_pool_that_stays_exhausted_says_so(dsn: str) -> None:
    running = trio.Event()
    say = tell(running)
    async with open_database(dsn, pool_size=1, acquire_timeout_s=0.05) as db:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.unit, say_then, say, "select pg_sleep(3600)")
            await running.wait()
            with pytest.raises(StoreUnavailable, match="all 1 are in use"):
                await db.unit(backend_pid)
            nursery.cancel_scope.cancel()
        assert await db.unit(backend_pid)


# Errors


async def test_a_violated_constraint_is_refused_by_name_and_without_the_data(db: Database) -> None:
    await db.unit(execute, "create table t (name text constraint one_name primary key)")
    insert = "insert into t values ('s3cret'), ('s3cret')"
    with pytest.raises(StoreRefused) as caught:
        await db.unit(execute, insert)
    assert (caught.value.constraint, caught.value.sqlstate) == ("one_name", "23505")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("sql", "args"),
    [("select 's3cret'::int", ()), ("select $1::int", ("s3cret",)), ("select nonsense", ())],
)
async def test_bad_sql_and_bad_data_are_refused_without_the_data(
    db: Database, sql: str, args: tuple[object, ...]
) -> None:
    with pytest.raises(StoreRefused) as caught:
        await db.unit(fetchval, sql, *args)
    assert "s3cret" not in str(caught.value)
    assert await db.unit(fetchval, "select 1") == 1


async def test_a_unit_that_swallows_an_error_is_not_taken_for_kept(db: Database) -> None:
    async def careless(connection: Connection) -> None:
        await connection.execute("create table t ()")
        with contextlib.suppress(Exception):
            await connection.execute("select nonsense")

    with pytest.raises(StoreRefused, match="nothing was kept"):
        await db.unit(careless)


async def test_a_statement_past_its_limit_is_unavailable(dsn: str) -> None:
    async with open_database(dsn, statement_timeout_s=0.1) as db:
        with pytest.raises(StoreUnavailable) as caught:
            await db.unit(fetchval, "select pg_sleep(3600)")
    assert caught.value.sqlstate == "57014"


async def test_concurrent_serializable_units_conflict(db: Database) -> None:
    await db.unit(execute, "create table t (n int)", "insert into t values (0)")
    isolation = "set transaction isolation level repeatable read"

    async def outer(connection: Connection) -> None:
        await execute(connection, isolation, "select n from t")
        say()
        await go_on.wait()
        await connection.execute("update t set n = n + 1")

    go_on = asyncio.Event()
    read = trio.Event()
    say = tell(read)
    conflicts: list[StoreConflict] = []

    async def caller() -> None:
        try:
            await db.unit(outer)
        except StoreConflict as conflict:
            conflicts.append(conflict)

    async def update_and_release(connection: Connection) -> None:
        await connection.execute("update t set n = n + 1")

    async def release(_connection: Connection) -> None:
        go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        await read.wait()
        await db.unit(update_and_release)
        await db.unit(release)
    assert [conflict.sqlstate for conflict in conflicts] == ["40001"]


async def test_a_changed_table_under_a_prepared_statement_is_a_conflict(dsn: str) -> None:
    async with open_database(dsn, pool_size=1) as db, open_database(dsn, pool_size=1) as other:
        await db.unit(execute, "create table t (n int)")
        await db.unit(fetchval, "select * from t")
        await other.unit(execute, "alter table t alter n type text")
        with pytest.raises(StoreConflict):
            await db.unit(fetchval, "select * from t")
        await db.unit(fetchval, "select * from t")


# Hosts


def test_a_dsn_of_several_hosts_is_divided() -> None:
    assert one_dsn_each("postgresql://u:p@a:1,b:2,[::1]:3/d?x=y") == (
        "postgresql://u:p@a:1/d?x=y",
        "postgresql://u:p@b:2/d?x=y",
        "postgresql://u:p@[::1]:3/d?x=y",
    )
    assert one_dsn_each("postgresql://u@/d?host=/a,/b&port=5") == (
        "postgresql://u@/d?host=%2Fa&port=5",
        "postgresql://u@/d?host=%2Fb&port=5",
    )
    assert one_dsn_each("postgresql://u@/d?host=/a") == ("postgresql://u@/d?host=/a",)
    assert one_dsn_each("postgresql:///d") == ("postgresql:///d",)


async def test_a_frozen_first_host_does_not_hide_the_primary_behind_it(
    dsn: str, state_dir: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as frozen:  # takes connections and says nothing
        frozen.bind(str(state_dir / ".s.PGSQL.5432"))
        frozen.listen()
        both = dsn.replace("host=", f"host={state_dir},", 1)
        with trio.fail_after(10):
            async with open_database(both, connect_timeout_s=60) as db:
                assert await db.unit(fetchval, "select 1") == 1


async def test_when_no_host_answers_each_is_named_and_the_password_is_not(state_dir: Path) -> None:
    nowhere = f"postgresql://u:s3cret@/d?host={state_dir}/a,{state_dir}/b"
    async with open_database(nowhere, password="s3cret") as db:
        with pytest.raises(StoreUnavailable) as caught:
            await db.unit(backend_pid)
    assert f"{state_dir}/a: " in str(caught.value)
    assert f"{state_dir}/b: " in str(caught.value)
    assert "s3cret" not in str(caught.value)


# The server dies


async def test_a_server_killed_under_a_query_is_unavailable_and_then_works_again(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the driver's library tells the root logger nothing of it."""
    running = trio.Event()
    say = tell(running)
    lost: list[StoreUnavailable] = []

    async def caller(db: Database) -> None:
        try:
            await db.unit(say_then, say, "select pg_sleep(3600)")
        except StoreUnavailable as error:
            lost.append(error)

    async with (
        embedded_postgres(state_dir / "postgres") as server,
        open_database(server.dsn, pool_size=4) as db,
    ):
        await db.unit(execute, "create table kept (n int)", "insert into kept values (7)")
        await warm(db)  # idle connections, for the crash to break
        with trio.fail_after(30):
            first_pid = server.pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller, db)
                await running.wait()
                os.kill(first_pid, signal.SIGKILL)
            await server.wait_restarted(first_pid)
            assert await db.unit(fetchval, "select n from kept") == 7
    assert len(lost) == 1
    assert caplog.records == []


async def test_a_terminated_backend_costs_its_own_unit_only(
    db: Database, postgres_server: EmbeddedServer
) -> None:
    with pytest.raises(StoreUnavailable):
        await db.unit(fetchval, "select pg_terminate_backend(pg_backend_pid())", tx=False)
    assert await db.unit(fetchval, "select 1") == 1
