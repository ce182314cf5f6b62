"""What changed below an agent's folders, told as one number; bounded in entries and in time.

    look at folders ──► Sum (all was seen) ──► differs whenever anything changed
                    └─► Newest (only a part) ─► counts only when it went up

Laws:

1. "Nothing changed" is said only where everything was looked at. Of a part, only a change is
   believed; everything else about it is unknown.
2. Times are those of the inode's change: they cannot be set, and every write moves them. They
   are summed, because a clock that is set back hides a change from the newest of them.
3. No link is followed, nothing is opened but folders, and no file is read.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_ENTRIES = 20_000
"""Files and folders of one agent that are looked at, of one source."""

LONGEST_LOOK_S = 2.0

LEFT_OUT = frozenset({".git", "node_modules", ".venv", "__pycache__", ".mypy_cache"})
"""Folders that are not gone into: large, and nothing changes in them alone."""

_MODULUS = 2**52
"""Below it every whole number is a float."""


@dataclass(slots=True)
class FolderLook:
    """What one look saw. `whole`: everything; `newest_ns` is the latest change."""

    entries: int = 0
    changes: int = 0
    newest_ns: int = 0
    whole: bool = True
    why_not: str = ""

    def add(self, status: os.stat_result) -> None:
        """Count one file or folder in."""
        self.entries += 1
        mark = hash((status.st_ctime_ns, status.st_size, status.st_ino))
        self.changes = (self.changes + mark) % _MODULUS
        self.newest_ns = max(self.newest_ns, status.st_ctime_ns)

    def cut(self, why: str) -> None:
        """Something was not seen."""
        self.whole, self.why_not = False, self.why_not or why


def look_below(
    folders: Iterable[Path], most: int = MOST_ENTRIES, longest_s: float = LONGEST_LOOK_S
) -> FolderLook:
    """Look at these folders and all below them; blocks as the file system does.

    A folder that is not there is none, and no obstacle.
    """
    look = FolderLook()
    ends_at = time.monotonic() + longest_s
    left: list[str] = []
    for folder in folders:
        try:
            look.add(folder.stat())
            left.append(str(folder))
        except FileNotFoundError:
            continue
        except OSError:
            look.cut("folder_denied")
    while left:
        if look.entries >= most or time.monotonic() > ends_at:
            look.cut("too_many_files" if look.entries >= most else "too_slow")
            return look
        left += _look_into(left.pop(), look, most)
    return look


def _look_into(folder: str, look: FolderLook, most: int) -> list[str]:
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if look.entries >= most:
                    look.cut("too_many_files")
                    break
                try:
                    look.add(entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue  # gone since; its folder has changed
                if entry.is_dir(follow_symlinks=False) and entry.name not in LEFT_OUT:
                    found.append(entry.path)
    except FileNotFoundError:
        pass
    except OSError:
        look.cut("folder_denied")
    return found
