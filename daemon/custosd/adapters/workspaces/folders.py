"""Folders and files of an agent, opened so that nothing in there leads out or waits.

Laws:

1. Below the folder every step is taken by name from an open folder: a link is never followed,
   also one that was put there a moment ago.
2. Only regular files are opened: a pipe, a socket or a device is refused before.
3. Where the folder is only claimed (`owner`), it and every file must belong to that user.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from custosd.adapters.transcripts.opening import error_name
from custosd.core.errors import WorkspaceError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


class NotRead(Exception):
    """A file or folder that is not read; the message is a short code for why."""


@contextmanager
def opened_workspace(folder: str, claimed_by: str) -> Iterator[tuple[int, int | None]]:
    """The open folder, and who must own what lies in it (None: anybody).

    Raises `WorkspaceError`: not_absolute, gone, not_a_folder, not_owned, or the errno's name.
    """
    if not folder.startswith("/") or "\0" in folder:
        raise WorkspaceError("not_absolute", "a workspace is an absolute path")
    try:
        owner = os.lstat(claimed_by).st_uid if claimed_by else None
        fd = os.open(folder, _FOLDER)
    except FileNotFoundError as error:
        raise WorkspaceError("gone", f"{folder} is not there") from error
    except NotADirectoryError as error:
        raise WorkspaceError("not_a_folder", f"{folder} is no folder") from error
    except (OSError, ValueError) as error:
        reason = error_name(error) if isinstance(error, OSError) else "malformed"
        raise WorkspaceError(reason, f"{folder} cannot be opened: {reason}") from error
    try:
        if owner is not None and os.fstat(fd).st_uid != owner:
            words = "its transcript belongs to another user"
            raise WorkspaceError("not_owned", f"{folder} is not this agent's: {words}")
        yield fd, owner
    finally:
        os.close(fd)


@contextmanager
def folder_in(fd: int, name: str) -> Iterator[int]:
    """A folder in an open folder. Raises `NotRead`, as for a link; `FileNotFoundError`."""
    try:
        inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # a link, too: of a folder, it is none
        raise NotRead("not_a_folder") from error
    except OSError as error:
        raise NotRead(error_name(error)) from error
    try:
        yield inner
    finally:
        os.close(inner)


@contextmanager
def file_in(fd: int, name: str, owner: int | None = None) -> Iterator[tuple[int, os.stat_result]]:
    """A regular file in an open folder. Raises `NotRead`; `FileNotFoundError`."""
    try:
        _refuse(os.stat(name, dir_fd=fd, follow_symlinks=False), owner)
        inner = os.open(name, _FILE, dir_fd=fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotRead(error_name(error)) from error
    try:
        status = os.fstat(inner)
        _refuse(status, owner)
        yield inner, status
    finally:
        os.close(inner)


def _refuse(status: os.stat_result, owner: int | None) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NotRead("link_refused")
    if not stat.S_ISREG(status.st_mode):
        raise NotRead("not_a_file")
    if owner is not None and status.st_uid != owner:
        raise NotRead("not_owned")
