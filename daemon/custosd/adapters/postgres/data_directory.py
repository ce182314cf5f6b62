"""The folder that a server keeps its data in: who holds it, who owns it, how it is made."""

import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from custosd.adapters.postgres.binaries import Binaries, EmbeddedError, copied
from custosd.adapters.postgres.processes import NOBODY, Journal, Runner, run_to_end, wait_pid

PORT = 5432

# The longest path that a socket's address holds, without its final NUL.
_SOCKET_BYTES = 107
_BUILTIN_LOCALE_MAJOR = 17


class EmbeddedBusy(EmbeddedError):
    """Another process uses the data directory; `pid` is its process id, 0 if unknown."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


@contextmanager
def only_user(data_dir: Path) -> Generator[None, None, None]:
    """Hold the data directory's lock file; raises `EmbeddedBusy` with its holder's pid.

    The lock ends with this process, however it ends; the file stays.
    """
    try:
        data_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = data_dir.with_name(f"{data_dir.name}.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedError(f"{data_dir.parent}: {error.strerror}; choose a writable one") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = int(os.read(lock, 32) or b"0")
            raise EmbeddedBusy(
                f"{data_dir} is used by the daemon with pid {pid}; stop it, or choose another"
                " state directory",
                pid,
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


async def wait_for_orphan(data_dir: Path, limit_s: float) -> None:
    """Let the server of a daemon that died finish its shut-down; never kills it.

    Raises `EmbeddedBusy` when it still runs after `limit_s`: then somebody else started it.
    """
    pid = _server_pid(data_dir)
    if pid is None:
        return
    with trio.move_on_after(limit_s) as scope:
        await wait_pid(pid)
    if scope.cancelled_caught:
        raise EmbeddedBusy(
            f"a server with pid {pid} still runs on {data_dir} after {limit_s:g} s; stop it"
            f" (kill -INT {pid}), or give its dsn",
            pid,
        )


def _server_pid(data_dir: Path) -> int | None:
    """The pid of a live server on this folder; forgets the note of one that is gone."""
    note = data_dir / "postmaster.pid"
    try:
        pid = int(note.read_text().split("\n", 1)[0])
    except FileNotFoundError:
        return None
    except ValueError:
        pid = 0  # cut short by a loss of power
    if _serves(pid, data_dir):
        return pid
    # The server would stumble over it, or take whoever has this pid now for another server.
    note.unlink(missing_ok=True)
    return None


def _serves(pid: int, data_dir: Path) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    if Path(os.fsdecode(arguments[0])).name not in {"postgres", "postmaster"}:
        return False
    with suppress(OSError):
        # A server works in its data directory.
        return Path(f"/proc/{pid}/cwd").readlink() == data_dir.resolve()
    return os.fsencode(data_dir) in arguments


def data_major(data_dir: Path) -> int | None:
    """The major version that wrote the data; None where there is none yet."""
    try:
        return int((data_dir / "PG_VERSION").read_text())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise EmbeddedError(f"{data_dir}/PG_VERSION cannot be read: {error}") from None
    with suppress(FileNotFoundError):
        if any(data_dir.iterdir()):
            raise EmbeddedError(
                f"{data_dir} is neither empty nor PostgreSQL's; choose another state directory"
            )
    return None


async def initialise(data_dir: Path, runner: Runner, journal: Journal) -> None:
    """Make the data directory, on disk as a whole or not at all; raises `EmbeddedError`."""
    fresh = data_dir.with_name(f".{data_dir.name}.new")
    await trio.to_thread.run_sync(_emptied, fresh, runner)
    locale = ["--locale=C.UTF-8", "--encoding=UTF8"]
    if runner.binaries.major >= _BUILTIN_LOCALE_MAJOR:
        # Sorted by PostgreSQL itself: an upgrade of the C library changes no index.
        locale.append("--locale-provider=builtin")
    arguments = ["-D", str(fresh), "-U", "custosd", "--auth=trust", "--no-instructions", *locale]
    await run_to_end(runner, "initdb", arguments, journal)
    await trio.to_thread.run_sync(_moved, fresh, data_dir)


def _emptied(folder: Path, runner: Runner) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    os.chown(folder, runner.uid, runner.gid)


def _moved(fresh: Path, data_dir: Path) -> None:
    fresh.rename(data_dir)
    folder = os.open(data_dir.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def hand_over(data_dir: Path, uid: int, gid: int) -> None:
    """Give the data to the user that the server runs as, if it is another's."""
    if not data_dir.exists() or data_dir.stat().st_uid == uid:
        return
    for root, folders, files in os.walk(data_dir, topdown=False):
        for name in (*folders, *files):
            os.chown(Path(root, name), uid, gid, follow_symlinks=False)
    os.chown(data_dir, uid, gid)


def for_nobody(data_dir: Path, binaries: Binaries) -> Runner:
    """A runner as the user nobody: opens the way to the data, copies what he cannot reach.

    Blocks while it copies some 40 MB, the first time. Raises `EmbeddedError`.
    """
    try:
        user = pwd.getpwnam("nobody")
        uid, gid = user.pw_uid, user.pw_gid
    except KeyError:
        uid = gid = NOBODY
    state_dir = data_dir.parent
    state_dir.chmod(state_dir.stat().st_mode | stat.S_IXOTH)
    for folder in state_dir.resolve().parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise EmbeddedError(
                f"PostgreSQL does not run as root, and the user nobody cannot enter {folder};"
                " choose a state directory such as /var/lib/custosd, or run as another user"
            )
    if not _reachable(binaries.folder.resolve()):
        binaries = copied(binaries, state_dir / f"postgresql-{binaries.version}")
    return Runner(binaries, f"{uid}:{gid}", uid, gid)


def _reachable(folder: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


def socket_folder(data_dir: Path) -> Path:
    """Where the socket lies: beside the data, or in a short private folder.

    A socket's path holds 107 bytes, and a comma would divide it into two hosts.
    """
    path = os.fsencode(data_dir / f".s.PGSQL.{PORT}")
    if len(path) <= _SOCKET_BYTES and b"," not in path:
        return data_dir
    parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    return parent / f"custosd-{os.geteuid()}-{name}"


def make_socket_folder(folder: Path, runner: Runner) -> None:
    """Make the short folder, or take our own of last time; refuses anybody else's."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = found.st_uid in {os.geteuid(), runner.uid} and stat.S_IMODE(found.st_mode) == 0o700  # noqa: PLR2004
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise EmbeddedError(
            f"{folder} belongs to somebody else; remove it, or choose a shorter state directory"
        )
    os.chown(folder, runner.uid, runner.gid)


def drop_socket_folder(folder: Path) -> None:
    """Remove the short folder, if the server has left nothing in it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
            raise
