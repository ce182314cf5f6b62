"""A unix socket at a path: made safely, and taken away at the end.

Laws:

1. A socket is replaced only where nobody listens on it, and nothing but a socket ever is.
2. There is no moment in which it is open to more users than it should be.
3. At the end it is taken away if it is still the one that was made here.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

_BACKLOG = 64
_LONGEST_PATH_BYTES = 107
_LOCK_TRIES = 20
_LOCK_PAUSE_S = 0.05


@asynccontextmanager
async def bound_socket(
    kind: socket.SocketKind, path: Path, mode: int
) -> AsyncGenerator[socket.socket]:
    """A non-blocking socket of this kind, bound to `path` with this mode, for the block.

    One of streams listens already: without that it would be taken for a dead one.
    The folder is made if it is missing. Raises `OSError`, in words, where the folder could be
    changed by others, something else is at the path, or somebody listens there.
    """
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as sock:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _folder(path.parent) as folder:
            await _lock(folder, path)
            _make_way(kind, path, folder)
            # Before it is bound, so that the file never has a wider mode; after it, too, for
            # the umask has narrowed that.
            os.fchmod(sock.fileno(), mode)
            sock.bind(short_address(path, folder))
            os.chmod(path.name, mode, dir_fd=folder)
            made = os.lstat(path.name, dir_fd=folder)
            if kind is socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
        try:
            yield sock
        finally:
            _take_away(path, (made.st_dev, made.st_ino))


def short_address(path: Path, folder: int) -> str:
    """An address of `path` that the kernel takes, however deep its open folder lies."""
    if len(os.fsencode(path)) <= _LONGEST_PATH_BYTES:
        return str(path)
    return f"/proc/self/fd/{folder}/{path.name}"


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        open_to_all = about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX
        if open_to_all or about.st_uid not in {0, os.geteuid()}:
            raise PermissionError(
                errno.EPERM,
                "its folder must belong to root or to this process's user, and others must not"
                " write to it",
                str(path),
            )
        yield descriptor
    finally:
        os.close(descriptor)


async def _lock(folder: int, path: Path) -> None:
    """Be the only one who makes a socket in this folder; ends with the descriptor."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await trio.sleep(_LOCK_PAUSE_S)
        else:
            return
    raise OSError(errno.EBUSY, "another process is making a socket there; try again", str(path))


def _make_way(kind: socket.SocketKind, path: Path, folder: int) -> None:
    try:
        found = os.lstat(path.name, dir_fd=folder)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "something that is no socket is there", str(path))
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        answered = probe.connect_ex(short_address(path, folder))
    if answered not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise OSError(errno.EADDRINUSE, "somebody listens there", str(path))
    with suppress(FileNotFoundError):
        os.unlink(path.name, dir_fd=folder)


def _take_away(path: Path, made: tuple[int, int]) -> None:
    with suppress(OSError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == made:
            path.unlink()
