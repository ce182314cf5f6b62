"""The schema's history: numbered SQL files, each applied once, in order.

Laws. A file is `NNN_name.sql`, counted from 001 without a gap, and never changes once it
has been applied. Each is applied in one transaction, together with its line in
`custosd.migrations`, under a lock that one migrator holds at a time. A database that is
newer than the program is left alone.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import outcome
import trio

from custosd.adapters.postgres.bridge import Connection, Database
from custosd.core.errors import StoreConflict, StoreError, StoreRefused

SQL_FOLDER = Path(__file__).parent / "sql"

_FILE = re.compile(r"(?P<number>\d{3})_(?P<name>[a-z0-9_]+)\.sql")
# Any number will do, as long as every version of the program takes the same one.
_LOCK_KEY = 0x63757374  # "cust"
_LOCK_NOT_AVAILABLE = "55P03"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL; `digest` is the SHA-256 of its text, in hex."""

    number: int
    name: str
    sql: str
    digest: str

    @property
    def file_name(self) -> str:
        """What the file is called."""
        return f"{self.number:03}_{self.name}.sql"


@dataclass(frozen=True, slots=True)
class Applied:
    """One line of `custosd.migrations`."""

    number: int
    name: str
    digest: str
    applied_utc: datetime


class MigrationError(StoreError):
    """The schema cannot be brought to what this program needs."""


class MigrationChanged(MigrationError):
    """A file does not fit what was applied: changed, renamed, missing or out of order."""


class MigrationAhead(MigrationError):
    """The database has migrations that this program does not know: it is too old."""


class MigrationBusy(MigrationError):
    """Another migrator, or a lock that a migration needs, was not free in time."""


class MigrationFailed(MigrationError):
    """The server refused a migration; the database is as it was before that file."""


def read_migrations(folder: Path = SQL_FOLDER) -> tuple[Migration, ...]:
    """All migrations of a folder, in order; raises `MigrationError` where its law is broken."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path}: a migration is called NNN_name.sql, as 001_agents.sql")
        sql = path.read_text(encoding="utf-8")
        digest = hashlib.sha256(sql.encode()).hexdigest()
        found.append(Migration(int(match["number"]), match["name"], sql, digest))
        if found[-1].number != len(found):
            raise MigrationError(f"{path}: number {len(found):03} was expected here")
    return tuple(found)


def outstanding(
    migrations: Sequence[Migration], applied: Sequence[Applied]
) -> tuple[Migration, ...]:
    """What is still to be applied; both in order. Raises `MigrationChanged`, `MigrationAhead`."""
    if len(applied) > len(migrations) and applied[-1].number > len(migrations):
        raise MigrationAhead(
            f"the database has migration {applied[-1].number:03}_{applied[-1].name}, this program"
            f" ends at {len(migrations):03}: install the newer custosd that wrote it, or restore"
            " a backup"
        )
    for migration, done in zip(migrations, applied, strict=False):
        if (done.number, done.digest) != (migration.number, migration.digest):
            raise MigrationChanged(
                f"{migration.file_name} is not what was applied as {done.number:03}_{done.name} on"
                f" {done.applied_utc:%Y-%m-%d}: put the old file back and write a new migration"
            )
    return tuple(migrations[len(applied) :])


async def pending(db: Database, folder: Path = SQL_FOLDER) -> list[Migration]:
    """What `migrate` would apply now; writes nothing. Raises like `migrate`."""
    migrations = await trio.to_thread.run_sync(read_migrations, folder)
    return list(outstanding(migrations, await db.unit(_applied, tx=False)))


async def migrate(
    db: Database,
    folder: Path = SQL_FOLDER,
    *,
    lock_timeout_s: float = 60.0,
    step_timeout_s: float = 3600.0,
    on_step: Callable[[Migration], None] | None = None,
    step_every_s: float = 5.0,
) -> list[Applied]:
    """Apply what is outstanding; returns what this call applied, in order.

    `on_step` is called before each migration and each `step_every_s` while it runs: whoever
    waits for us can be told that we live. Raises `MigrationError` and its kinds, and
    `StoreUnavailable`; what was applied before stays. A second migrator waits at most
    `lock_timeout_s` for each migration of the first, and applies what that one left.
    """
    migrations = await trio.to_thread.run_sync(read_migrations, folder)
    applied: list[Applied] = []
    for migration in outstanding(migrations, await db.unit(_applied, tx=False)):
        async with trio.open_nursery() as nursery:
            if on_step is not None:
                on_step(migration)
                nursery.start_soon(_tell, on_step, migration, step_every_s)
            # Unwrapped outside: a nursery would hand on its errors in a group.
            result = await outcome.acapture(
                _apply, db, migrations, migration, lock_timeout_s, step_timeout_s
            )
            nursery.cancel_scope.cancel()
        if (done := result.unwrap()) is not None:
            applied.append(done)
    return applied


async def _tell(on_step: Callable[[Migration], None], migration: Migration, every_s: float) -> None:
    while True:
        await trio.sleep(every_s)
        on_step(migration)


async def _apply(
    db: Database,
    migrations: Sequence[Migration],
    migration: Migration,
    lock_timeout_s: float,
    step_timeout_s: float,
) -> Applied | None:
    try:
        return await db.unit(_step, migrations, migration, lock_timeout_s, step_timeout_s)
    except StoreConflict as conflict:
        if conflict.sqlstate != _LOCK_NOT_AVAILABLE:
            raise
        raise MigrationBusy(
            f"{migration.file_name}: no lock within {lock_timeout_s:g} s; another custosd is"
            " migrating, or a long transaction holds a table: wait for it, or end it"
        ) from conflict
    except StoreRefused as refused:
        raise MigrationFailed(f"{migration.file_name}: {refused}") from refused


async def _step(
    connection: Connection,
    migrations: Sequence[Migration],
    migration: Migration,
    lock_timeout_s: float,
    step_timeout_s: float,
) -> Applied | None:
    """Apply one migration, unless another migrator did; runs in its transaction."""
    await connection.execute(f"set local lock_timeout = {round(lock_timeout_s * 1000)}")
    await connection.execute(f"set local statement_timeout = {round(step_timeout_s * 1000)}")
    await connection.execute("set local idle_in_transaction_session_timeout = 0")
    await connection.execute(
        "select pg_advisory_xact_lock($1)", _LOCK_KEY, timeout=lock_timeout_s + 5
    )
    await connection.execute(
        """
        create schema if not exists custosd;
        create table if not exists custosd.migrations (
            number integer primary key,
            name text not null,
            digest text not null,
            applied_at timestamptz not null default now()
        );
        """
    )
    if migration not in outstanding(migrations, await _applied(connection)):
        return None
    await connection.execute(migration.sql, timeout=step_timeout_s + 5)
    applied_utc = await connection.fetchval(
        "insert into custosd.migrations (number, name, digest) values ($1, $2, $3)"
        " returning applied_at",
        migration.number,
        migration.name,
        migration.digest,
    )
    return Applied(migration.number, migration.name, migration.digest, applied_utc)


async def _applied(connection: Connection) -> tuple[Applied, ...]:
    if await connection.fetchval("select to_regclass('custosd.migrations')") is None:
        return ()
    rows = await connection.fetch(
        "select number, name, digest, applied_at from custosd.migrations order by number"
    )
    return tuple(Applied(*row) for row in rows)
