"""Which files changed below a folder since a time: what git would ignore is left out.

Laws:

1. Times are those of the inode's change: they cannot be set, and every write moves them.
2. No link is followed; entries, depth and time are bounded; what was not seen is a gap.
3. Where `owner` is given nothing of another user's is told, gone into or believed.
"""

import heapq
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

from custosd.adapters.folder_looks import LEFT_OUT
from custosd.adapters.workspaces.folders import NotRead, folder_in
from custosd.adapters.workspaces.ignoring import Rules, with_file_of
from custosd.core.secrets import without_secrets
from custosd.core.workspaces import ChangedFile, Changes, Gap, WorkspacePart

MOST_ENTRIES = 20_000
DEEPEST = 64
MOST_GAPS = 20
"""Gaps of one look that are told one by one; of more it is told that there are more."""


@dataclass(slots=True)
class ChangeLook:
    """One look for changes. `ends_at` is a time of `time.monotonic`.

    `inside` is the folder's path below the working copy: "" or one that ends in a slash.
    `owner` is who must own each file and folder; None: anybody.
    """

    since_utc: datetime
    most: int
    ends_at: float
    gaps: list[Gap]
    inside: str = ""
    owner: int | None = None
    entries: int = 0
    count: int = 0
    _ended: bool = False
    _latest: list[tuple[int, str, int]] = field(default_factory=list)

    def changes(self, root: int, rules: Rules) -> Changes:
        """What changed below an open folder."""
        since_ns = int(self.since_utc.timestamp() * 1e9)
        for path, status in self._files(root, self.inside, rules, 0):
            if status.st_ctime_ns < since_ns:
                continue
            self.count += 1
            heapq.heappush(self._latest, (status.st_ctime_ns, path, status.st_size))
            if len(self._latest) > self.most:
                heapq.heappop(self._latest)
        files = tuple(
            ChangedFile(without_secrets(path), size, datetime.fromtimestamp(at_ns / 1e9, UTC))
            for at_ns, path, size in sorted(self._latest, reverse=True)
        )
        return Changes(self.since_utc, files, self.count)

    def _files(
        self, fd: int, above: str, rules: Rules, depth: int
    ) -> Iterator[tuple[str, os.stat_result]]:
        rules, trouble = with_file_of(rules, fd, above, owner=self.owner)
        if trouble:
            self._gap(f"{above}.gitignore", trouble)
        folders: list[str] = []
        for name, is_folder, status in self._entries(fd, above):
            path = f"{above}{name}"
            if is_folder:
                if name not in LEFT_OUT and not rules.ignores(f"{path}/"):
                    folders.append(name)
            elif not rules.ignores(path):
                yield path.removeprefix(self.inside), status
        for name in folders:
            if depth >= DEEPEST:
                self._gap(above, "too_deep")
                return
            if self._over(above):
                return
            yield from self._files_in(fd, name, f"{above}{name}/", rules, depth + 1)

    def _files_in(
        self, fd: int, name: str, path: str, rules: Rules, depth: int
    ) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with folder_in(fd, name) as inner:
                yield from self._files(inner, path, rules, depth)
        except FileNotFoundError:
            return  # gone since
        except NotRead as why:
            self._gap(path, str(why))

    def _entries(self, fd: int, above: str) -> Iterator[tuple[str, bool, os.stat_result]]:
        with ExitStack() as stack:
            try:
                listed = stack.enter_context(os.scandir(fd))
            except OSError as error:
                self._gap(above, type(error).__name__)
                return
            for entry in listed:
                if self._over(above):
                    return
                self.entries += 1
                try:
                    status = entry.stat(follow_symlinks=False)
                    is_folder = entry.is_dir(follow_symlinks=False)
                except OSError:
                    continue  # gone since
                if self.owner is not None and status.st_uid != self.owner:
                    self._gap(f"{above}{entry.name}", "not_owned")
                    continue
                yield entry.name, is_folder, status

    def _over(self, path: str) -> bool:
        late = time.monotonic() > self.ends_at
        if not self._ended and (late or self.entries >= MOST_ENTRIES):
            self._ended = True
            self._gap(path, "too_slow" if late else "too_many_files")
        return self._ended

    def _gap(self, path: str, reason: str) -> None:
        mine = [gap for gap in self.gaps if gap.part is WorkspacePart.CHANGES]
        if len(mine) > MOST_GAPS:
            return
        if len(mine) == MOST_GAPS:
            path, reason = "", "more_gaps"
        gap = Gap(WorkspacePart.CHANGES, without_secrets(path.removeprefix(self.inside)), reason)
        if gap not in mine:
            self.gaps.append(gap)
