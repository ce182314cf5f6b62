"""Looks at folders that hang in the kernel: left behind, told, and not begun again.

Laws:

1. A look that its caller left keeps its thread; its folder is not looked at again before it
   has ended, and after `_HUNG_OF_MOUNT` of one file system none of that is.
2. No more than `MOST_HUNG` are left behind at all (and those that were under way just then).
3. One guard serves all who look: what hung one of them is not tried by another.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TypeVar

import trio

from custosd.core.errors import WorkspaceError
from custosd.flow.threads import Threads

MOST_HUNG = 32
_HUNG_OF_MOUNT = 4
_MOUNTS_KNOWN_S = 1.0
_ESCAPE = re.compile(r"\\([0-7]{3})")

R = TypeVar("R")


@dataclass(slots=True)
class _Unit:
    """One call in a thread; `begun` and `ended` are set there."""

    folder: str
    mount: str
    begun: bool = False
    ended: bool = False


class HungLooks:
    """The guard of this machine's folders."""

    def __init__(self) -> None:
        self._hung: set[int] = set()
        self._units: dict[int, _Unit] = {}
        self._mounts: Sequence[str] = ()
        self._mounts_read_at = -inf

    @property
    def hung(self) -> int:
        """How many looks were left behind, and still hang."""
        return len(self._left_behind())

    async def run(self, threads: Threads, folder: str, see: Callable[[], R]) -> R:
        """The result of `see()`, which looks at `folder` in one of these threads.

        Cancelled, it goes at once. Raises `WorkspaceError`, before anything is begun: hangs,
        file_system_hangs, too_many_hang; and what `see` raises.
        """
        unit = _Unit(folder, self._mount_of(folder))
        self._refuse_what_hangs(unit)

        def run() -> R:
            unit.begun = True
            try:
                return see()
            finally:
                unit.ended = True

        key = id(unit)
        self._units[key] = unit
        try:
            return await threads.run(run)
        finally:
            if unit.ended or not unit.begun:
                del self._units[key]
            else:
                self._hung.add(key)

    def _mount_of(self, folder: str) -> str:
        now = trio.current_time()
        if now - self._mounts_read_at >= _MOUNTS_KNOWN_S:
            self._mounts, self._mounts_read_at = mount_points(), now
        return next((each for each in self._mounts if f"{folder}/".startswith(each)), "/")

    def _left_behind(self) -> list[_Unit]:
        for key in [key for key in self._hung if self._units[key].ended]:
            self._hung.discard(key)
            del self._units[key]
        return [self._units[key] for key in self._hung]

    def _refuse_what_hangs(self, wanted: _Unit) -> None:
        left = self._left_behind()
        folder, mount = wanted.folder, wanted.mount
        if any(unit.folder == folder for unit in left):
            raise WorkspaceError("hangs", f"the last look at {folder} still hangs")
        if sum(unit.mount == mount for unit in left) >= _HUNG_OF_MOUNT:
            raise WorkspaceError("file_system_hangs", f"looks at other folders on {mount} hang")
        if len(left) >= MOST_HUNG:
            raise WorkspaceError("too_many_hang", f"{len(left)} looks at other folders hang")


def mount_points() -> tuple[str, ...]:
    """Where file systems are mounted, each with a slash at its end, the longest first."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return ()
    points = {os.fsdecode(line.split(b" ")[4]) for line in lines if line.count(b" ") > 4}  # noqa: PLR2004 - the fifth field
    plain = {_ESCAPE.sub(lambda code: chr(int(code[1], 8)), point) for point in points}
    return tuple(sorted((point.rstrip("/") + "/" for point in plain), key=len, reverse=True))
