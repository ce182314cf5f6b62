"""What has changed in the folders since the last look, without reading any file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

from custosd.adapters.transcripts.discovery import Folder, Found, look_at, walk
from custosd.adapters.transcripts.incident import IncidentKind, quoted
from custosd.adapters.transcripts.inotify import Changes, Inotify
from custosd.adapters.transcripts.opening import error_name
from custosd.ports import Incident


@dataclass(slots=True)
class Followed:
    """A file that is followed: its encoded cursor, and its status when it was last read.

    `size` is -1 while the file is not there. `cursor` is empty before the first reading,
    and for a copy of another file. `introduced`: growth of it was handed out.
    """

    path: str
    root: str
    cursor: bytes = b""
    size: int = -1
    mtime_ns: int = 0
    inode: int = 0
    introduced: bool = False

    def differs(self, found: Found) -> bool:
        """Whether the file has changed since it was read, by its status alone."""
        return (self.size, self.mtime_ns, self.inode) != (
            found.size,
            found.mtime_ns,
            found.inode,
        )


@dataclass(slots=True)
class Survey:
    """What was found. `fresh` are files not followed yet, the newest first."""

    changed: list[str] = field(default_factory=list)
    fresh: list[Found] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)


@dataclass(slots=True)
class Surveyor:
    """Looks at folders and tells what is new; blocks, so call it in a thread.

    `room` is how many files more may be followed. Files not written since `oldest_ns`
    and not followed yet are left alone until they change.
    """

    folders: Sequence[Folder]
    followed: Mapping[str, Followed]
    watch: Inotify | None
    oldest_ns: int
    room: int
    _survey: Survey = field(default_factory=Survey)
    _candidates: dict[str, Found] = field(default_factory=dict)
    _visited: set[str] = field(default_factory=set)
    _blind: bool = False

    def everything(self) -> Survey:
        """All roots: what changed, what is new, and what is gone."""
        there: set[str] = set()
        for folder in self.folders:
            for found in walk(folder, self._tell, self._on_folder):
                there.add(found.path)
                self._take(found)
        for path, entry in self.followed.items():
            if entry.size >= 0 and path not in there:
                self._survey.changed.append(path)
        if self.watch is not None:
            self.watch.keep_only(self._visited)
        return self._finished()

    def these(self, changes: Changes) -> Survey:
        """What the watch told of: files that are not followed yet, and new folders."""
        for path in changes.files:
            for folder in self.folders:
                if found := look_at(path, folder, self._tell):
                    self._take(found)
                    break
        for start in changes.folders:
            for folder in self.folders:
                if folder.reaches(start):
                    for found in walk(folder, self._tell, self._on_folder, start):
                        self._take(found)
        return self._finished()

    def _tell(self, incident: Incident) -> None:
        self._survey.incidents.append(incident)

    def _take(self, found: Found) -> None:
        entry = self.followed.get(found.path)
        if entry is not None:
            if entry.differs(found):
                self._survey.changed.append(found.path)
        elif found.mtime_ns >= self.oldest_ns:
            self._candidates[found.path] = found
            if len(self._candidates) > 2 * self.room + 1_000:
                self._keep_newest()

    def _keep_newest(self) -> None:
        count = len(self._candidates)
        newest = nlargest(self.room, self._candidates.values(), key=_newness)
        self._candidates = {found.path: found for found in newest}
        if count > len(newest):
            limit = {"limit": len(self.followed) + self.room}
            where = quoted(self.folders[0].real)
            self._tell(Incident(IncidentKind.TOO_MANY_FILES, where, detail=limit))

    def _finished(self) -> Survey:
        self._keep_newest()
        self._survey.fresh = list(self._candidates.values())
        return self._survey

    def _on_folder(self, folder: str) -> None:
        self._visited.add(folder)
        if self.watch is None or self._blind:
            return
        try:
            self.watch.add(folder)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass  # gone, or told by the walk itself
        except OSError as error:
            self._blind = True
            detail: dict[str, int | str] = {"error": error_name(error), "folders": len(self.watch)}
            self._tell(Incident(IncidentKind.WATCH_UNAVAILABLE, quoted(folder), detail=detail))


def _newness(found: Found) -> tuple[int, str]:
    return found.mtime_ns, found.path
