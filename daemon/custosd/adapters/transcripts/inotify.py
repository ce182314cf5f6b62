"""Waking up when a file in a watched folder changes, by the kernel's inotify.

Bound here through ctypes because a follower of hostile folders needs what the libraries
do not give: no symbolic link is followed, a name that is not UTF-8 is a name like any
other, folders are added one by one, an overflow is said, and nothing runs while nothing
happens (no thread, no timer: the descriptor is waited for by trio).

Laws:

1. A watch is a hint. What it says is read again from the file system, and what it misses
   is found by the next rescan.
2. Nothing here blocks: adding is one system call, reading is of what is there.
"""

import ctypes
import os
import struct
from dataclasses import dataclass, field

_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_IN_CLOSE_WRITE = 0x8
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_MOVE_SELF = 0x800
_IN_Q_OVERFLOW = 0x4000
_IN_IGNORED = 0x8000
_IN_ONLYDIR = 0x1000000
_IN_DONT_FOLLOW = 0x2000000
_IN_EXCL_UNLINK = 0x4000000
_IN_ISDIR = 0x40000000

_MASK = (
    _IN_MODIFY
    | _IN_ATTRIB
    | _IN_CLOSE_WRITE
    | _IN_MOVED_FROM
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_MOVE_SELF
    | _IN_ONLYDIR
    | _IN_DONT_FOLLOW
    | _IN_EXCL_UNLINK
)
_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 64 * 1024


@dataclass(slots=True)
class Changes:
    """What was seen since the last look. `lost`: the kernel dropped some; rescan."""

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    lost: bool = False


class Inotify:
    """One inotify instance and the folders that it watches."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has none, or no more of them (EMFILE)."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "inotify_init1"):
            raise OSError(0, "this system has no inotify")
        self.fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._folders: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._folders)

    def add(self, folder: str) -> None:
        """Watch a folder (again: no harm). Raises OSError: ENOSPC when watches run out."""
        raw = ctypes.c_char_p(os.fsencode(folder))
        watch = self._checked(self._libc.inotify_add_watch(self.fd, raw, ctypes.c_uint32(_MASK)))
        self._folders[watch] = folder

    def keep_only(self, folders: set[str]) -> None:
        """Stop watching every folder that is not among these: moved away, or unwanted."""
        for watch, folder in list(self._folders.items()):
            if folder not in folders:
                self._libc.inotify_rm_watch(self.fd, watch)
                del self._folders[watch]

    def changes(self, limit: int) -> Changes:
        """Everything that is waiting; above `limit` names it says `lost` instead."""
        seen = Changes()
        while True:
            try:
                data = os.read(self.fd, _BUFFER_BYTES)
            except BlockingIOError:
                return seen
            self._take(data, seen)
            if len(seen.files) + len(seen.folders) > limit:
                seen.files.clear()
                seen.folders.clear()
                seen.lost = True

    def close(self) -> None:
        """Give the instance and all its watches back."""
        os.close(self.fd)

    def _take(self, data: bytes, seen: Changes) -> None:
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            folder = self._folders.get(watch)
            if mask & (_IN_Q_OVERFLOW | _IN_MOVE_SELF):
                seen.lost = True
            elif mask & _IN_IGNORED:
                self._folders.pop(watch, None)
            elif folder is not None and name:
                target = seen.folders if mask & _IN_ISDIR else seen.files
                target.add(f"{folder.rstrip('/')}/{os.fsdecode(name)}")

    def _checked(self, result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
