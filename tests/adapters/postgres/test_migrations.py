"""The schema's history on real servers, with small folders of SQL of our own."""

from pathlib import Path

import pytest
import trio

from custosd.adapters.postgres.bridge import Connection, Database, open_database
from custosd.adapters.postgres.migrations import (
    SQL_FOLDER,
    Migration,
    MigrationAhead,
    MigrationBusy,
    MigrationChanged,
    MigrationError,
    MigrationFailed,
    migrate,
    pending,
    read_migrations,
)

pytestmark = pytest.mark.postgres

ONE = "create table custosd.agents (id int primary key);\ninsert into custosd.agents values (1);"
TWO = "alter table custosd.agents add name text not null default '';"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "001_agents.sql").write_text(ONE)
    (tmp_path / "002_names.sql").write_text(TWO)
    return tmp_path


async def fetch(connection: Connection, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(sql)]


async def execute(connection: Connection, sql: str) -> None:
    await connection.execute(sql)


async def test_each_migration_is_applied_once_in_order_and_recorded(
    db: Database, folder: Path
) -> None:
    assert [migration.name for migration in await pending(db, folder)] == ["agents", "names"]
    applied = await migrate(db, folder)
    assert [(done.number, done.name) for done in applied] == [(1, "agents"), (2, "names")]
    assert await pending(db, folder) == []
    assert await migrate(db, folder) == []
    rows = await db.unit(fetch, "select number, name, digest from custosd.migrations order by 1")
    assert rows == [(done.number, done.name, done.digest) for done in applied]
    assert await db.unit(fetch, "select id, name from custosd.agents") == [(1, "")]


async def test_asking_what_is_pending_writes_nothing(db: Database, folder: Path) -> None:
    await pending(db, folder)
    schemas = "select nspname from pg_namespace where nspname = 'custosd'"
    assert await db.unit(fetch, schemas) == []


async def test_a_new_file_is_applied_to_an_old_database(db: Database, folder: Path) -> None:
    await migrate(db, folder)
    (folder / "003_more.sql").write_text("create table custosd.more ();")
    assert [done.number for done in await migrate(db, folder)] == [3]


async def test_a_changed_file_is_an_error_that_names_it(db: Database, folder: Path) -> None:
    await migrate(db, folder)
    (folder / "001_agents.sql").write_text(ONE + "-- late thought")
    with pytest.raises(MigrationChanged, match=r"001_agents\.sql"):
        await migrate(db, folder)
    with pytest.raises(MigrationChanged, match="put the old file back"):
        await pending(db, folder)


async def test_a_database_newer_than_the_program_is_left_alone(db: Database, folder: Path) -> None:
    await migrate(db, folder)
    (folder / "002_names.sql").unlink()
    with pytest.raises(MigrationAhead, match="002_names, this program ends at 001"):
        await migrate(db, folder)


async def test_a_failing_migration_leaves_nothing_of_itself_and_keeps_those_before(
    db: Database, folder: Path
) -> None:
    (folder / "002_names.sql").write_text("create table custosd.half (); select nonsense;")
    with pytest.raises(MigrationFailed, match=r"002_names\.sql: .*nonsense"):
        await migrate(db, folder)
    assert await db.unit(fetch, "select number from custosd.migrations") == [(1,)]
    assert await db.unit(fetch, "select to_regclass('custosd.half')::text") == [(None,)]


async def test_of_two_migrators_exactly_one_applies_each(dsn: str, tmp_path: Path) -> None:
    for number in range(1, 9):
        (tmp_path / f"{number:03}_step.sql").write_text(
            f"create table custosd.t{number} (); select pg_sleep(0.01);"
        )
    applied: list[int] = []

    async def run() -> None:
        async with open_database(dsn, pool_size=2) as db:
            applied.extend(done.number for done in await migrate(db, tmp_path))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run)
    assert sorted(applied) == list(range(1, 9))


async def test_a_lock_that_stays_taken_is_an_error_in_time(db: Database, folder: Path) -> None:
    locked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def hold(connection: Connection) -> None:
        await connection.execute("select pg_advisory_xact_lock(x'63757374'::int)")
        token.run_sync_soon(locked.set)
        await connection.execute("select pg_sleep(3600)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.unit, hold)
        await locked.wait()
        with pytest.raises(MigrationBusy, match="another custosd is migrating"):
            await migrate(db, folder, lock_timeout_s=0.05)
        nursery.cancel_scope.cancel()
    assert len(await migrate(db, folder)) == 2


async def test_whoever_waits_is_told_before_each_step_and_while_it_runs(
    db: Database, folder: Path
) -> None:
    (folder / "002_names.sql").write_text("select pg_sleep(0.2);")
    told: list[str] = []

    def on_step(migration: Migration) -> None:
        told.append(migration.file_name)

    await migrate(db, folder, on_step=on_step, step_every_s=0.02)
    assert told[0] == "001_agents.sql"
    assert told.count("002_names.sql") > 1


async def test_a_cancelled_migration_is_rolled_back(db: Database, folder: Path) -> None:
    (folder / "002_names.sql").write_text(
        "create table custosd.half (); select pg_sleep(3600);",
    )
    with trio.CancelScope() as scope:

        def on_step(migration: Migration) -> None:
            if migration.number == 2:
                scope.cancel()

        await migrate(db, folder, on_step=on_step, step_every_s=0.01)
    assert scope.cancelled_caught
    assert await db.unit(fetch, "select to_regclass('custosd.half')::text") == [(None,)]
    assert [migration.number for migration in await pending(db, folder)] == [2]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("003-dash.sql", "NNN_name"),
        ("1_short.sql", "NNN_name"),
        ("004_gap.sql", "003 was expected"),
        ("002_twice.sql", "003 was expected"),
    ],
)
def test_a_folder_that_breaks_the_law_is_refused(folder: Path, name: str, complaint: str) -> None:
    (folder / name).write_text("select 1;")
    with pytest.raises(MigrationError, match=complaint):
        read_migrations(folder)


async def test_the_programs_own_migrations_apply(db: Database) -> None:
    own = read_migrations(SQL_FOLDER)
    assert [done.number for done in await migrate(db)] == [migration.number for migration in own]
