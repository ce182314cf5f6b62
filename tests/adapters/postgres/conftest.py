"""A real PostgreSQL of each major version that is here, and a fresh database for each test."""

import itertools
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from custosd.adapters.postgres.bridge import Connection, Database, open_database
from custosd.adapters.postgres.embedded import EmbeddedServer, embedded_postgres
from custosd.adapters.postgres.migrations import migrate

SYSTEM_15 = Path("/usr/lib/postgresql/15/bin")

_numbers = itertools.count(1)
_migrated: set[int] = set()


def binaries_of(version: str) -> Path | None:
    """None: the wheel's, which are preferred."""
    if version == "18":
        return None
    if not SYSTEM_15.is_dir():
        pytest.skip(f"no PostgreSQL 15: {SYSTEM_15} is not installed")
    return SYSTEM_15


@pytest.fixture(scope="session", params=["18", "15"])
def postgres_version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short folder that any user may enter, as the state directory of a service is."""
    folder = Path(tempfile.mkdtemp(prefix="custosd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory to copy: making one takes a second."""
    made = tmp_path_factory.mktemp("made") / "postgres"

    async def make() -> None:
        async with embedded_postgres(made):
            pass

    trio.run(make)
    return made


@pytest.fixture
def data_dir(state_dir: Path, made_data: Path) -> Path:
    """A fresh server's data, in a state directory."""
    return shutil.copytree(made_data, state_dir / "postgres")


@pytest.fixture(scope="session")
def postgres_server(postgres_version: str) -> Iterator[EmbeddedServer]:
    """One server for all tests; it runs on a thread with a trio of its own."""
    binaries = binaries_of(postgres_version)
    started: queue.Queue[EmbeddedServer | BaseException] = queue.Queue()
    stop: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    async def serve(folder: str) -> None:
        async with embedded_postgres(
            Path(folder) / "postgres", binaries=binaries, shared_buffers_bytes=16 << 20
        ) as server:
            done = trio.Event()
            stop.append((trio.lowlevel.current_trio_token(), done))
            started.put(server)
            await done.wait()

    def run(folder: str) -> None:
        try:
            trio.run(serve, folder)
        except BaseException as error:  # noqa: BLE001 - handed to the fixture
            started.put(error)

    with tempfile.TemporaryDirectory(prefix="custosd-test-") as folder:
        thread = threading.Thread(target=run, args=(folder,), name="postgres-fixture")
        thread.start()
        server = started.get(timeout=50)
        if isinstance(server, BaseException):
            raise server
        yield server
        token, done = stop[0]
        token.run_sync_soon(done.set)
        thread.join()


async def _execute(connection: Connection, sql: str) -> None:
    await connection.execute(sql)


@asynccontextmanager
async def _new_database(server: EmbeddedServer, template: str) -> AsyncIterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    async with open_database(server.dsn, pool_size=1) as admin:
        await admin.unit(_execute, f"create database {name} template {template}", tx=False)
        yield server.dsn.replace("/postgres?", f"/{name}?", 1)
        await admin.unit(_execute, f"drop database {name} with (force)", tx=False)


@pytest.fixture
async def dsn(postgres_server: EmbeddedServer) -> AsyncIterator[str]:
    """The DSN of an empty database that this test has for itself."""
    async with _new_database(postgres_server, "template0") as name:
        yield name


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[Database]:
    """A pool of five on an empty database."""
    async with open_database(dsn, pool_size=5, release_timeout_s=5.0) as database:
        yield database


@pytest.fixture
async def database(postgres_server: EmbeddedServer) -> AsyncIterator[Database]:
    """A pool of five on a database with custosd's own schema in it."""
    if postgres_server.pid not in _migrated:
        async with open_database(postgres_server.dsn, pool_size=1) as admin:
            await admin.unit(_execute, "create database migrated template template0", tx=False)
        migrated = postgres_server.dsn.replace("/postgres?", "/migrated?", 1)
        async with open_database(migrated, pool_size=1) as fresh:
            await migrate(fresh)
        _migrated.add(postgres_server.pid)
    async with (
        _new_database(postgres_server, "migrated") as name,
        open_database(name, pool_size=5, release_timeout_s=5.0) as database,
    ):
        yield database
