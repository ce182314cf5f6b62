"""The folder of an inbox, worked on through its descriptors; blocking, for a thread.

Law: the folder belongs to the agent. Its path is walked once, when it is opened; from then
on every name is looked up in an open folder, and no symbolic link is followed.
"""

import itertools
import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from custosd.flow.file_writer import write_whole

PARTS = ("tmp", "new", "claimed", "done")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER_MODE = 0o2770
_LETTER_MODE = 0o640
LONGEST_LISTING = 2_000
_LARGEST_LETTER_BYTES = 256 * 1024
_NAME_END = ".json"


@dataclass(frozen=True, slots=True)
class InboxFolder:
    """The open folders of one inbox, by the names in `PARTS`."""

    folders: dict[str, int]

    def has(self, part: str, letter: str) -> bool:
        """Whether there is a regular file for this letter; links and pipes are none."""
        return self._status(part, letter + _NAME_END) is not None

    def waiting(self) -> int:
        """How many names are in new; no more than the bound of a listing are counted."""
        return len(self._names("new"))

    def put(self, letter: str, text: bytes) -> None:
        """Write a letter and let it appear in new, durably. Raises OSError."""
        # The umask is the daemon's; the group must be able to read.
        write_whole(
            text,
            letter + _NAME_END,
            self.folders["new"],
            mode=_LETTER_MODE,
            beside=self.folders["tmp"],
        )

    def tidy(self, now: datetime, claim_s: float, kept_s: float) -> None:
        """Put back what was claimed in vain; remove what has run out, was read, or is left over.

        The age of a claim is the time since its file was renamed (its change time). A name
        that cannot be moved or removed stays: it must not hide the others.
        """
        for name in self._names("claimed"):
            if self._has_name("done", name) or self._expired("claimed", name, now):
                self._remove_older("claimed", name, now, claim_s)
            elif (status := self._status("claimed", name)) and _age_s(status, now) > claim_s:
                self._put_back(name)
        for name in self._names("new"):
            if self._has_name("done", name) or self._expired("new", name, now):
                self._remove_older("new", name, now, 0)
        for name in self._names("done"):
            self._remove_older("done", name, now, kept_s)
        for name in self._names("tmp"):
            self._remove_older("tmp", name, now, claim_s)

    def _put_back(self, name: str) -> None:
        # Its claimer may acknowledge, or give it back, at this very moment.
        with suppress(OSError):
            self._move("claimed", name, "new", name)
            if self._has_name("done", name):
                os.unlink(name, dir_fd=self.folders["new"])

    def _expired(self, part: str, name: str, now: datetime) -> bool:
        try:
            expires = datetime.fromisoformat(json.loads(self._read(part, name))["expires_utc"])
            return expires.astimezone(UTC) <= now
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            # Not a letter of ours, or being written by somebody: its time is not known.
            return False

    def _read(self, part: str, name: str) -> bytes:
        fd = os.open(name, _OLD_FILE, dir_fd=self.folders[part])
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return b""
            data = os.read(fd, _LARGEST_LETTER_BYTES + 1)
        finally:
            os.close(fd)
        return data if len(data) <= _LARGEST_LETTER_BYTES else b""

    def _remove_older(self, part: str, name: str, now: datetime, age_s: float) -> None:
        status = self._status(part, name)
        if status is not None and _age_s(status, now) >= age_s:
            with suppress(OSError):
                os.unlink(name, dir_fd=self.folders[part])

    def _move(self, source: str, name: str, target: str, new_name: str) -> None:
        os.rename(name, new_name, src_dir_fd=self.folders[source], dst_dir_fd=self.folders[target])

    def _has_name(self, part: str, name: str) -> bool:
        return self._status(part, name) is not None

    def _status(self, part: str, name: str) -> os.stat_result | None:
        try:
            status = os.stat(name, dir_fd=self.folders[part], follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if stat.S_ISREG(status.st_mode) else None

    def _names(self, part: str) -> list[str]:
        with os.scandir(self.folders[part]) as entries:
            return [entry.name for entry in itertools.islice(entries, LONGEST_LISTING)]


@contextmanager
def opened(path: Path) -> Iterator[InboxFolder]:
    """Open an inbox; what is missing of it is made, for its owner and group. Raises OSError."""
    with ExitStack() as stack:
        root = _folder(str(path), None)
        stack.callback(os.close, root)
        folders: dict[str, int] = {}
        for part in PARTS:
            folders[part] = _folder(part, root)
            stack.callback(os.close, folders[part])
        yield InboxFolder(folders)


def _folder(name: str, parent: int | None) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
    fd = os.open(name, _FOLDER, dir_fd=parent)
    try:
        os.fchmod(fd, _FOLDER_MODE)
    except OSError:
        os.close(fd)
        raise
    return fd


def _age_s(status: os.stat_result, now: datetime) -> float:
    return now.timestamp() - status.st_ctime
