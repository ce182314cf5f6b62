"""A private PostgreSQL server that lives and dies with the daemon.

Laws. It listens on a unix socket in a folder of mode 0700 and nowhere else. It is a child
of the trio thread and shuts down when that thread ends, however it ends. One daemon a data
directory. A server that dies on its own is started again; one that still shuts down after
a daemon's death is waited for, never killed.
"""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from urllib.parse import quote

import outcome
import structlog
import trio

from custosd.adapters.postgres.binaries import Binaries, EmbeddedError, find_binaries
from custosd.adapters.postgres.data_directory import (
    PORT,
    data_major,
    drop_socket_folder,
    for_nobody,
    hand_over,
    initialise,
    make_socket_folder,
    only_user,
    socket_folder,
    wait_for_orphan,
)
from custosd.adapters.postgres.processes import (
    Journal,
    NamespaceRefused,
    RootWay,
    Runner,
    ended,
    failure,
    spawn,
    stop,
    wait_pid,
)
from custosd.flow.retry import FailedAttempt, RetryPolicy, retry, steady

log = structlog.get_logger()

_HARD_STOP_S = 5.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_SYNC_IO_MAJOR = 18
_IN_CLOSE_WRITE = 0x8
_LOOK_AGAIN_S = 0.02
# An error of a statement may quote a value, and thereby an agent; these are the server's own.
_OF_THE_SERVER = re.compile(r"\d{4}-\d\d-\d\d [^][]+ \[\d+\] (?:LOG|FATAL|PANIC): ")


@dataclass(slots=True)
class EmbeddedServer:
    """A running server; `pid` changes when it had to be started again."""

    dsn: str
    version: str
    pid: int
    _changed: trio.Event = field(default_factory=trio.Event, repr=False)

    async def wait_restarted(self, pid: int) -> None:
        """Wait until a server runs that is not the one with this pid."""
        while self.pid == pid:
            await self._changed.wait()

    def restarted(self, pid: int) -> None:
        """A new process serves from now on."""
        self.pid = pid
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path,
    *,
    binaries: Path | None = None,
    shared_buffers_bytes: int = 128 << 20,
    max_connections: int = 40,
    start_timeout_s: float = 60.0,
    stop_timeout_s: float = 20.0,
    orphan_timeout_s: float = 30.0,
    root_ways: Sequence[RootWay] = tuple(RootWay),
) -> AsyncGenerator[EmbeddedServer, None]:
    """Run a server on `data_dir`, which is made if it is not there; it is ready when entered.

    `binaries` is the folder of PostgreSQL's programs; without it they are searched. As root
    the `root_ways` are tried in turn. The log is `<data_dir>.log`. Raises `EmbeddedBusy`,
    `BinariesMissing`, `VersionMismatch`, `EmbeddedError`. At the end the server is stopped,
    fast within `stop_timeout_s`, then hard; that cannot be cancelled. Enter it from the
    thread that lives as long as the daemon.
    """
    data_dir = Path.cwd() / data_dir
    cluster = _Cluster(data_dir, shared_buffers_bytes, max_connections, start_timeout_s)
    with only_user(data_dir):
        await wait_for_orphan(data_dir, orphan_timeout_s)
        found = await trio.to_thread.run_sync(find_binaries, binaries, data_major(data_dir))
        process = await cluster.start_first(found, root_ways)
        try:
            server = EmbeddedServer(cluster.dsn, found.version, process.pid)
            body: outcome.Outcome[None] = outcome.Value(None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cluster.keep, server)
                # Carried past the nursery, which would wrap it in a group.
                try:
                    yield server
                except BaseException as error:  # noqa: BLE001 - unwrapped below
                    body = outcome.Error(error)
                nursery.cancel_scope.cancel()
        finally:
            await cluster.stop(stop_timeout_s)
        body.unwrap()


class _Cluster:
    """One data directory and the server that runs on it."""

    def __init__(
        self,
        data_dir: Path,
        shared_buffers_bytes: int,
        max_connections: int,
        start_timeout_s: float,
    ) -> None:
        self._data_dir = data_dir
        self._socket_folder = socket_folder(data_dir)
        self._journal = Journal(data_dir.with_name(f"{data_dir.name}.log"))
        self._shared_buffers_bytes = shared_buffers_bytes
        self._max_connections = max_connections
        self._start_timeout_s = start_timeout_s
        self._runner: Runner | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        host = quote(str(self._socket_folder), safe="/")
        return f"postgresql://custosd@/postgres?host={host}&port={PORT}"

    async def start_first(
        self, binaries: Binaries, root_ways: Sequence[RootWay]
    ) -> subprocess.Popen[bytes]:
        """Start the server as the first identity that works here."""
        refusal = "no way is allowed"
        for way in root_ways if os.geteuid() == 0 else (None,):
            try:
                runner = await trio.to_thread.run_sync(_runner, self._data_dir, binaries, way)
                await trio.to_thread.run_sync(hand_over, self._data_dir, runner.uid, runner.gid)
                if data_major(self._data_dir) is None:
                    await initialise(self._data_dir, runner, self._journal)
                    log.info("postgres.initialised", server_version=binaries.version)
                return await self._start(runner)
            except NamespaceRefused as error:
                refusal = str(error)
            except OSError as error:
                raise EmbeddedError(
                    f"{self._data_dir}: {error}; choose a state directory that is ours"
                ) from error
        raise EmbeddedError(f"PostgreSQL does not run as root: {refusal}; run as another user")

    async def _start(self, runner: Runner) -> subprocess.Popen[bytes]:
        began_at = trio.current_time()
        if self._socket_folder != self._data_dir:
            make_socket_folder(self._socket_folder, runner)
        arguments = self._arguments(runner)
        process = spawn(runner, "postgres", arguments, self._journal, signal.SIGINT)
        try:
            with trio.move_on_after(self._start_timeout_s):
                await _ready(process, self._data_dir)
            if not _says_ready(self._data_dir, process):
                raise self._failure(process)  # noqa: TRY301 - the child must not be left behind
        except BaseException:
            await stop(process, (signal.SIGINT, _HARD_STOP_S), (signal.SIGQUIT, _HARD_STOP_S))
            raise
        self._runner = runner
        self._process = process
        log.info(
            "postgres.started",
            server_pid=process.pid,
            server_version=runner.binaries.version,
            identity=runner.identity,
            took_s=round(trio.current_time() - began_at, 3),
        )
        return process

    def _failure(self, process: subprocess.Popen[bytes]) -> EmbeddedError:
        if process.poll() is None:
            what = f"the server was not ready within {self._start_timeout_s:g} s"
        else:
            what = "the server did not start"
        return failure(process.returncode, what, self._journal)

    def _arguments(self, runner: Runner) -> list[str]:
        folder = str(self._socket_folder).replace('"', '""')
        settings = {
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": f'"{folder}"',
            "unix_socket_permissions": "0700",
            "max_connections": self._max_connections,
            "shared_buffers": f"{max(self._shared_buffers_bytes >> 10, 128)}kB",
            "max_wal_size": "512MB",
            # Nobody replicates a private server, and less is logged without.
            "wal_level": "minimal",
            "max_wal_senders": 0,
            # Transcripts are other people's words: no statement and no row goes into the log.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
            "log_checkpoints": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if runner.binaries.major >= _SYNC_IO_MAJOR:
            settings["io_method"] = "sync"
        pairs = (("-c", f"{name}={value}") for name, value in settings.items())
        return ["-D", str(self._data_dir), *(word for pair in pairs for word in pair)]

    async def keep(self, server: EmbeddedServer) -> None:
        """Start the server again whenever it ends on its own; until cancelled."""
        while self._process is not None and self._runner is not None:
            status = await ended(self._process)
            said = self._journal.tail(_OF_THE_SERVER)
            log.error("postgres.died", server_pid=server.pid, status=status, said=said)
            # Its sessions notice its death by themselves; a new server refuses to start beside
            # them.
            await trio.sleep(_FIRST_PAUSE_S)
            process = await retry(
                partial(self._start, self._runner), _STARTS, on_failure=_tell_start_failed
            )
            server.restarted(process.pid)

    async def stop(self, limit_s: float) -> None:
        if self._process is not None:
            used = await stop(
                self._process,
                (signal.SIGINT, limit_s),
                (signal.SIGQUIT, _HARD_STOP_S),
                (signal.SIGKILL, _HARD_STOP_S),
            )
            log.info("postgres.stopped", signal=used.name if used else None)
        if self._socket_folder != self._data_dir:
            drop_socket_folder(self._socket_folder)


_STARTS = RetryPolicy(
    inf,
    2 * _FIRST_PAUSE_S,
    _LONGEST_PAUSE_S,
    retry_on=lambda error: isinstance(error, EmbeddedError | OSError),
    random=steady,
    patient=True,
)


def _tell_start_failed(failure: FailedAttempt) -> None:
    if failure.pause_s is not None:
        log.warning("postgres.start_failed", error=str(failure.error), retry_s=failure.pause_s)


def _runner(data_dir: Path, binaries: Binaries, way: RootWay | None) -> Runner:
    match way:
        case RootWay.NOBODY:
            return for_nobody(data_dir, binaries)
        case RootWay.NAMESPACE:
            return Runner(binaries, "namespace", os.geteuid(), os.getegid())
        case None:
            return Runner(binaries, "same", os.geteuid(), os.getegid())


async def _ready(process: subprocess.Popen[bytes], data_dir: Path) -> None:
    """Wait until the server takes connections, or has ended."""
    async with trio.open_nursery() as nursery:

        async def until_ended() -> None:
            await wait_pid(process.pid)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_ended)
        with _watch(data_dir) as watch:
            while not _says_ready(data_dir, process):
                await _change(watch)
        nursery.cancel_scope.cancel()


def _says_ready(data_dir: Path, process: subprocess.Popen[bytes]) -> bool:
    with suppress(OSError):
        lines = (data_dir / "postmaster.pid").read_text().split("\n")
        # The eighth line is the server's own word on its state.
        return lines[0] == str(process.pid) and [line.strip() for line in lines[7:8]] == ["ready"]
    return False


@contextmanager
def _watch(folder: Path) -> Generator[int | None, None, None]:
    """A descriptor that is readable when a file of the folder was written; None if none is left."""
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if watch < 0:
        yield None
        return
    try:
        libc.inotify_add_watch(watch, os.fsencode(folder), _IN_CLOSE_WRITE)
        yield watch
    finally:
        os.close(watch)


async def _change(watch: int | None) -> None:
    if watch is None:
        await trio.sleep(_LOOK_AGAIN_S)
        return
    await trio.lowlevel.wait_readable(watch)
    os.read(watch, 1 << 16)
