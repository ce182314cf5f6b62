"""One session under two names: which file is followed, and which is its copy.

Laws:

1. Two files are of one transcript when format, agent, session and thread are the same
   and the one begins with what was read of the other: the same bytes, or for documents
   the same events.
2. The longer one is followed, under the key of the one that was known first. A copy that
   outgrows the followed file, or outlives it, and still contains it, takes over.
3. Files that name one session and differ are transcripts of their own.
"""

import os
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from custosd.adapters.transcripts.cursor import Cursor, anchor_at
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.opening import FileGone, FileRefused, opened
from custosd.adapters.transcripts.tail import Formats, continues


class Relation(Enum):
    """What a file met for the first time is to one that is followed."""

    SEPARATE = auto()
    COPY = auto()
    LONGER = auto()


def relation(
    followed: Cursor, path: str, new: Cursor, new_path: str, formats: Formats, limits: ReadLimits
) -> Relation:
    """Compare two files that name one session; reads both, a few KiB of each.

    `new` is the cursor after the first reading of the file at `new_path`. Documents are
    read as a whole. Blocks: call it in a thread.
    """
    size, new_size = _size(path), _size(new_path)
    # What is in the followed file and was not read yet must be in its longer copy, too.
    ahead = _at_end(followed, path, size)
    if continues(ahead, new_path, formats, limits):
        return Relation.LONGER if new_size > size else Relation.COPY
    if new_size <= size and continues(new, path, formats, limits):
        return Relation.COPY
    return Relation.SEPARATE


@dataclass(slots=True)
class Copies:
    """Which followed files name which session, and which files are copies of which."""

    _by_name: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _of: dict[str, set[str]] = field(default_factory=dict)

    def namesakes(self, cursor: Cursor) -> tuple[str, ...]:
        """The paths followed under the names that a cursor holds; empty without a session."""
        return self._by_name.get(_name(cursor), ()) if cursor.session else ()

    def follow(self, cursor: Cursor, path: str) -> None:
        """From now on `path` is followed under its names."""
        if cursor.session and path not in self.namesakes(cursor):
            self._by_name[_name(cursor)] = (*self.namesakes(cursor), path)

    def leave(self, cursor: Cursor, path: str) -> None:
        """`path` is followed no more."""
        if rest := tuple(p for p in self.namesakes(cursor) if p != path):
            self._by_name[_name(cursor)] = rest
        else:
            self._by_name.pop(_name(cursor), None)

    def mark(self, copy: str, of: str) -> None:
        """`copy` is a copy of the followed file `of`."""
        self._of.setdefault(of, set()).add(copy)

    def unmark(self, path: str) -> frozenset[str]:
        """Forget which files are copies of `path`, and return them: look at them again."""
        return frozenset(self._of.pop(path, ()))


def _name(cursor: Cursor) -> int:
    # A hash: two that are equal by chance are still compared byte by byte.
    return hash((cursor.format, cursor.agent, cursor.session, cursor.thread))


def _at_end(cursor: Cursor, path: str, size: int) -> Cursor:
    """The cursor as it would stand after reading all of a line format's file."""
    if size <= cursor.offset or not cursor.anchor:
        return cursor
    try:
        with opened(path, None) as (fd, _):
            return msgspec.structs.replace(cursor, offset=size, anchor=anchor_at(fd, size))
    except (FileGone, FileRefused):
        return cursor


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1
