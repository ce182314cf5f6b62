"""The embedded server: real processes, real signals, the real clock."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from custosd.adapters.postgres.binaries import (
    BinariesMissing,
    EmbeddedError,
    VersionMismatch,
    copied,
    find_binaries,
)
from custosd.adapters.postgres.bridge import Connection, open_database
from custosd.adapters.postgres.data_directory import EmbeddedBusy, socket_folder
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.postgres.processes import RootWay, wait_pid
from custosd.core.errors import StoreRefused

pytestmark = pytest.mark.postgres

DAEMON_LIKE = Path(__file__).with_name("daemon_like.py")
PROJECT = Path(__file__).resolve().parents[3]
SYSTEM_PYTHON = Path("/usr/bin/python3")
SYSTEM_15 = Path("/usr/lib/postgresql/15/bin")
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


async def fetchval(connection: Connection, sql: str) -> object:
    return await connection.fetchval(sql)


async def execute(connection: Connection, *statements: str) -> None:
    for statement in statements:
        await connection.execute(statement)


async def ask(dsn: str, sql: str) -> object:
    async with open_database(dsn, pool_size=1) as db:
        return await db.unit(fetchval, sql, tx=False)


def spawn(*command: object, **how: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)


def works(*command: object, **how: Any) -> bool:
    return subprocess.run(command, capture_output=True, check=False, **how).returncode == 0


@asynccontextmanager
async def process(*command: object, **how: Any) -> AsyncIterator[tuple[Any, list[str]]]:
    """A daemon-like process and its last words; killed at the end, its server waited for."""
    child = spawn(*command, **how)
    said: list[str] = []
    try:
        with trio.fail_after(40):
            while not said or "host=" not in said[-1]:
                line = await trio.to_thread.run_sync(child.stdout.readline)
                assert line, f"the daemon ended: {said}"
                said += line.decode().split()
        pid, version, dsn = said[-3:]
        yield child, [pid, version, dsn]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with trio.fail_after(20):
        await wait_pid(int(pid))


def daemon(*args: object) -> AbstractAsyncContextManager[tuple[Any, list[str]]]:
    return process(sys.executable, DAEMON_LIKE, *args)


def need_15(binaries: Path | None = SYSTEM_15) -> None:
    if binaries is not None and not binaries.is_dir():
        pytest.skip(f"no PostgreSQL 15: {binaries} is not installed")


def owner(pid: str) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def processes_on(data_dir: Path) -> list[str]:
    """The command lines of all processes that work in a data directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").readlink() == data_dir:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


# Life and death


@pytest.mark.parametrize("binaries", [None, SYSTEM_15], ids=["18", "15"])
async def test_data_is_there_after_a_restart(state_dir: Path, binaries: Path | None) -> None:
    """And a restart is quick: the times are printed."""
    need_15(binaries)
    data_dir = state_dir / "postgres"
    times_s = []
    for turn in range(3):
        began = time.perf_counter()
        async with embedded_postgres(data_dir, binaries=binaries) as server:
            async with open_database(server.dsn) as db:
                await db.unit(fetchval, "select 1", tx=False)
                times_s.append(time.perf_counter() - began)
                if turn == 0:
                    await db.unit(execute, "create table kept (n int)")
                await db.unit(execute, "insert into kept values (1)")
                assert await db.unit(fetchval, "select count(*) from kept") == turn + 1
                assert await db.unit(fetchval, "show fsync") == "on"
                assert await db.unit(fetchval, "show listen_addresses") == ""
                settings = "select datcollate || ' ' || pg_encoding_to_char(encoding)"
                locale = f"{settings} from pg_database where datname = current_database()"
                assert await db.unit(fetchval, locale) == "C.UTF-8 UTF8"
            assert data_dir.stat().st_mode & 0o777 == 0o700
            # A Ctrl-C at the terminal is the daemon's alone.
            assert os.getsid(server.pid) != os.getsid(0)
        assert processes_on(data_dir) == []
    first, *later = times_s
    print(f"to the first query: new {first:.3f} s, restart {min(later):.3f} s")


async def test_nothing_is_left_when_the_daemon_is_killed_and_the_data_is_there(
    data_dir: Path,
) -> None:
    async with daemon(data_dir, "", "keep") as (child, (pid, *_)):
        assert len(processes_on(data_dir)) > 1
        child.kill()
        with trio.fail_after(20):
            await wait_pid(int(pid))
    assert processes_on(data_dir) == []
    assert not (data_dir / "postmaster.pid").exists()
    async with embedded_postgres(data_dir) as server:
        assert await ask(server.dsn, "select n from kept") == 42


async def test_the_next_daemon_waits_for_a_server_that_is_still_shutting_down(
    data_dir: Path,
) -> None:
    async with daemon(data_dir, "", "keep") as (child, (pid, *_)):
        os.kill(int(pid), signal.SIGSTOP)  # its shut-down takes long
        try:
            child.kill()
            child.wait()
            with pytest.raises(EmbeddedBusy, match=f"server with pid {pid} still runs") as caught:
                async with embedded_postgres(data_dir, orphan_timeout_s=0.1):
                    pass
            assert caught.value.pid == int(pid)
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:

                    async def start() -> None:
                        async with embedded_postgres(data_dir) as server:
                            assert await ask(server.dsn, "select n from kept") == 42

                    nursery.start_soon(start)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    os.kill(int(pid), signal.SIGCONT)
        finally:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGCONT)


async def test_a_second_daemon_is_told_who_holds_the_data(data_dir: Path) -> None:
    async with daemon(data_dir) as (child, _said):
        with pytest.raises(EmbeddedBusy, match=f"daemon with pid {child.pid}") as caught:
            async with embedded_postgres(data_dir):
                pass
        assert caught.value.pid == child.pid


async def test_a_server_that_dies_is_started_again(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        for _ in range(2):
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(30):
                await server.wait_restarted(pid)
            assert await ask(server.dsn, "select 1") == 1
    assert processes_on(data_dir) == []


async def test_of_a_dead_servers_log_nothing_is_told_that_may_quote_a_value(
    data_dir: Path,
) -> None:
    """The log has the value: what a statement said is left out where the death is told."""
    with structlog.testing.capture_logs() as logs:
        async with embedded_postgres(data_dir) as server:
            pid = server.pid
            for text in ("SECRET", "SECRET\n2026-01-01 00:00:00 UTC [1] LOG:  SECRET"):
                with pytest.raises(StoreRefused):
                    await ask(server.dsn, f"select '{text}'::integer")
            os.kill(pid, signal.SIGQUIT)
            with trio.fail_after(30):
                await server.wait_restarted(pid)
    assert "SECRET" in data_dir.with_name(f"{data_dir.name}.log").read_text()
    (died,) = [line for line in logs if line["event"] == "postgres.died"]
    assert "LOG:  received immediate shutdown request" in died["said"]
    assert "SECRET" not in died["said"]


async def test_a_cancelled_body_stops_the_server_and_an_error_comes_out_as_it_is(
    data_dir: Path,
) -> None:
    with trio.CancelScope() as scope:
        async with embedded_postgres(data_dir):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert processes_on(data_dir) == []
    with pytest.raises(LookupError, match="plain"):
        async with embedded_postgres(data_dir):
            raise LookupError("plain")
    assert processes_on(data_dir) == []


@pytest.mark.parametrize("pid", ["dead", "reused", "cut short"])
async def test_a_stale_note_of_a_server_does_no_harm(data_dir: Path, pid: str) -> None:
    async with embedded_postgres(data_dir):
        note = (data_dir / "postmaster.pid").read_text()
    first = {"dead": "4194304", "reused": str(os.getpid()), "cut short": ""}[pid]
    (data_dir / "postmaster.pid").write_text("\n".join([first, *note.split("\n")[1:]]))
    async with embedded_postgres(data_dir) as server:
        assert await ask(server.dsn, "select 1") == 1


# Making the data directory


def fake_initdb(folder: Path, real: Path) -> Path:
    """Programs whose `initdb` makes half a data directory, says so on a pipe, and hangs."""
    folder.mkdir()
    (folder / "postgres").symlink_to(real / "postgres")
    script = (
        f'#!/bin/sh\necho 18 > "$2/PG_VERSION"\necho half-made > {folder}/pipe\nexec sleep 3600\n'
    )
    (folder / "initdb").write_text(script)
    (folder / "initdb").chmod(0o755)
    os.mkfifo(folder / "pipe")
    return folder


async def test_a_daemon_killed_while_it_makes_the_data_leaves_nothing_half_made(
    state_dir: Path,
) -> None:
    data_dir = state_dir / "postgres"
    fake = fake_initdb(state_dir / "fake", find_binaries(None, None).folder)
    child = spawn(sys.executable, DAEMON_LIKE, data_dir, fake)
    try:
        with trio.fail_after(30):
            said = await trio.to_thread.run_sync((fake / "pipe").read_text)
        assert said == "half-made\n"
        assert (state_dir / ".postgres.new" / "PG_VERSION").exists()
        assert not data_dir.exists()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    async with embedded_postgres(data_dir) as server:
        assert await ask(server.dsn, "select 1") == 1
    assert not (state_dir / ".postgres.new").exists()


async def test_a_cancelled_initialisation_ends_its_programs(state_dir: Path) -> None:
    data_dir = state_dir / "postgres"
    fake = fake_initdb(state_dir / "fake", find_binaries(None, None).folder)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                async with embedded_postgres(data_dir, binaries=fake):
                    pass

            nursery.start_soon(start)
            await trio.to_thread.run_sync((fake / "pipe").read_text)
            nursery.cancel_scope.cancel()
    assert not data_dir.exists()


async def test_a_folder_of_other_things_is_refused(state_dir: Path) -> None:
    (state_dir / "postgres").mkdir()
    (state_dir / "postgres" / "thesis.txt").write_text("mine")
    with pytest.raises(EmbeddedError, match="choose another state directory"):
        async with embedded_postgres(state_dir / "postgres"):
            pass


async def test_an_empty_folder_is_taken(state_dir: Path) -> None:
    (state_dir / "postgres").mkdir()
    async with embedded_postgres(state_dir / "postgres") as server:
        assert await ask(server.dsn, "select 1") == 1


async def test_a_server_that_does_not_start_is_quoted(state_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"FATAL.*postgres\.log"):
        async with embedded_postgres(state_dir / "postgres", shared_buffers_bytes=1 << 44):
            pass
    assert processes_on(state_dir / "postgres") == []


async def test_a_long_log_is_begun_anew_and_the_last_one_kept(state_dir: Path) -> None:
    (state_dir / "postgres.log").write_text("x" * (2 << 20))
    async with embedded_postgres(state_dir / "postgres"):
        pass
    assert (state_dir / "postgres.log").stat().st_size < 1 << 20
    assert (state_dir / "postgres.log.1").stat().st_size == 2 << 20


# Programs


async def test_the_programs_follow_the_version_of_the_data(state_dir: Path) -> None:
    need_15()
    async with embedded_postgres(state_dir / "postgres", binaries=SYSTEM_15) as server:
        assert server.version.startswith("15.")
    async with embedded_postgres(state_dir / "postgres") as server:
        assert server.version.startswith("15.")


async def test_data_of_a_version_that_is_not_at_hand_is_an_error_with_a_remedy(
    state_dir: Path,
) -> None:
    (state_dir / "postgres").mkdir()
    (state_dir / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(VersionMismatch, match=r"written by PostgreSQL 9.*pg_upgrade"):
        async with embedded_postgres(state_dir / "postgres"):
            pass


def test_a_folder_without_programs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BinariesMissing, match=str(tmp_path)):
        find_binaries(tmp_path, None)


def test_the_newest_programs_of_the_wheel_are_preferred() -> None:
    assert find_binaries(None, None).major == 18


# Paths


@pytest.mark.parametrize("name", ["a" * 120, "one,two", 'sp ace "quoted"'])
async def test_any_path_will_do(state_dir: Path, name: str) -> None:
    """A socket's address holds 107 bytes: for a longer path it lies in a short private folder."""
    data_dir = state_dir / name / "postgres"
    async with embedded_postgres(data_dir) as server:
        assert await ask(server.dsn, "select 1") == 1
        assert socket_folder(data_dir).stat().st_mode & 0o777 == 0o700
    if socket_folder(data_dir) != data_dir:
        assert not socket_folder(data_dir).exists()


async def test_a_short_folder_that_is_not_ours_alone_is_refused(state_dir: Path) -> None:
    data_dir = state_dir / ("a" * 120) / "postgres"
    folder = socket_folder(data_dir)
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        with pytest.raises(EmbeddedError, match="belongs to somebody else"):
            async with embedded_postgres(data_dir):
                pass
    finally:
        folder.rmdir()


# Users


@needs_root
@pytest.mark.parametrize("way", list(RootWay))
async def test_root_runs_it_either_way_with_programs_in_a_closed_home(
    state_dir: Path, way: RootWay
) -> None:
    home = state_dir / "home"
    home.mkdir()
    programs = copied(find_binaries(None, None), home / "site-packages")
    home.chmod(0o700)
    data_dir = state_dir / "state" / "postgres"
    for _ in range(2):
        async with embedded_postgres(
            data_dir, binaries=programs.folder, root_ways=(way,)
        ) as server:
            assert await ask(server.dsn, "select 1") == 1
            assert owner(str(server.pid)) == (0 if way is RootWay.NAMESPACE else NOBODY)
            copies = list((state_dir / "state").glob("postgresql-*"))
            assert len(copies) == (0 if way is RootWay.NAMESPACE else 1)
    assert processes_on(data_dir) == []


@needs_root
async def test_data_goes_from_one_way_to_the_other_and_back(data_dir: Path) -> None:
    for way in (RootWay.NOBODY, RootWay.NAMESPACE, RootWay.NOBODY):
        async with embedded_postgres(data_dir, root_ways=(way,)) as server:
            if way is RootWay.NOBODY and not await ask(server.dsn, "select to_regclass('t')::text"):
                async with open_database(server.dsn) as db:
                    await db.unit(execute, "create table t (n int)", "insert into t values (1)")
            assert await ask(server.dsn, "select n from t") == 1


@needs_root
@pytest.mark.parametrize("way", list(RootWay))
async def test_a_daemon_of_root_takes_its_server_with_it_either_way(
    data_dir: Path, way: RootWay
) -> None:
    """The death signal is set after the change of identity, which would clear it."""
    async with daemon(data_dir, "", "", way.value) as (child, (pid, *_)):
        child.kill()
        with trio.fail_after(20):
            await wait_pid(int(pid))
    assert processes_on(data_dir) == []


@needs_root
async def test_where_namespaces_are_forbidden_root_falls_back_to_nobody(state_dir: Path) -> None:
    """In a changed root the kernel makes no user namespace."""
    root = state_dir / "root"
    root.mkdir()
    data_dir = state_dir / "state" / "postgres"
    inner = f"mount --rbind / {root} && exec chroot {root} {sys.executable} {DAEMON_LIKE} $0"
    outer = ("unshare", "--mount", "--propagation", "private", "sh", "-c", inner, data_dir)
    if not works(*outer[:4], "true"):
        pytest.skip("no mount namespaces here")
    async with process(*outer) as (child, (pid, *_)):
        assert owner(pid) == NOBODY
        child.kill()


@needs_root
async def test_root_is_told_when_nobody_cannot_reach_the_state_directory(state_dir: Path) -> None:
    home = state_dir / "home"
    home.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=r"cannot enter .*home"):
        async with embedded_postgres(home / "state" / "postgres", root_ways=(RootWay.NOBODY,)):
            pass


@needs_root
@pytest.mark.parametrize("binaries", ["", str(SYSTEM_15)], ids=["18", "15"])
async def test_a_normal_user_runs_it(state_dir: Path, binaries: str) -> None:
    """Nobody, with the system's Python, as that of the tests may lie in a closed home."""
    need_15(Path(binaries))
    packages = Path(trio.__file__).parents[1]
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    path = {"PYTHONPATH": f"{PROJECT / 'daemon'}:{packages}", "PATH": os.environ["PATH"]}
    known = "import custosd.adapters.postgres.embedded"
    if not works(SYSTEM_PYTHON, "-c", known, env=path, **user):
        pytest.skip(f"{SYSTEM_PYTHON} as an unprivileged user does not get at our packages")
    home = state_dir / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    data_dir = home / "state" / "postgres"
    command = (SYSTEM_PYTHON, DAEMON_LIKE, data_dir, binaries)
    async with process(*command, env=path, **user) as (child, (pid, version, dsn)):
        assert version.startswith("15." if binaries else "18.")
        assert owner(pid) == NOBODY
        assert await ask(dsn, "select 1") == 1
        child.kill()
