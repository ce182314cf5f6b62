"""Opening a file that an agent may have put there: regular files inside the root only.

Law: nothing that can block, run a driver or lead elsewhere is ever opened. A pipe, a
socket or a device is refused before the open, a link by the open, and a folder on the
way that was swapped for a link by where the open file turns out to lie.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from custosd.adapters.transcripts.incident import IncidentKind
from custosd.core.errors import CustosdError

PATH_BYTES = 1_024
"""The longest path that is followed."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


class FileRefused(CustosdError):
    """A file that is not read; `kind` says why, `error` is the errno's name or empty."""

    def __init__(self, kind: IncidentKind, error: str = "") -> None:
        super().__init__(f"{kind} {error}".strip())
        self.kind = kind
        self.error = error


class FileGone(CustosdError):
    """There is no file at this path."""


@contextmanager
def opened(path: str, root: str | None) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; yields its descriptor and status.

    `root` is the real path of the folder that it must lie in, None for a file that a
    person named. Raises `FileGone` or `FileRefused`; never waits for another process.
    """
    fd = _open(path)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused(IncidentKind.NOT_A_FILE)
        if root is not None and not is_inside(_real_path(fd, path), root):
            raise FileRefused(IncidentKind.LINK_REFUSED)
        yield fd, status
    finally:
        os.close(fd)


def is_inside(path: str, root: str) -> bool:
    """Whether a real path lies in a folder given by its real path."""
    return path.startswith(root if root.endswith("/") else root + "/")


def error_name(error: OSError) -> str:
    """`EACCES` and the like: the errno's name."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _open(path: str) -> int:
    if len(os.fsencode(path)) > PATH_BYTES:
        raise FileRefused(IncidentKind.PATH_TOO_LONG)
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            raise FileRefused(IncidentKind.LINK_REFUSED)
        if not stat.S_ISREG(mode):
            raise FileRefused(IncidentKind.NOT_A_FILE)
        return os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileGone(path) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileRefused(IncidentKind.LINK_REFUSED) from error
        raise FileRefused(IncidentKind.UNREADABLE, error_name(error)) from error


def _real_path(fd: int, path: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 a str as the kernel gives it
    except OSError:  # no /proc: the second best, which a swap in between could deceive
        return os.path.realpath(path)
