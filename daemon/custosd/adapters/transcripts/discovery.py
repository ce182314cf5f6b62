"""Finding transcript files: the roots, and what lies in them now.

Laws:

1. No symbolic link below a root is followed: inside the root its target is found by
   itself, outside it has no business here.
2. One entry that cannot be read costs itself; the walk goes on.
3. The walk keeps one open folder at a time and one name a folder not yet visited.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from custosd.adapters.transcripts.incident import IncidentKind, quoted
from custosd.adapters.transcripts.opening import PATH_BYTES, error_name, is_inside
from custosd.ports import Incident

MOST_DEEP = 8
"""How many folders below its root a transcript may lie."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder to look in. `globs` are matched against the path below it.

    `*` and `?` stay within one name, `**/` stands for any number of folders.
    """

    path: Path
    globs: tuple[str, ...] = ("**/*.jsonl", "**/*.json")


@dataclass(frozen=True, slots=True)
class Found:
    """One transcript file as the folder shows it; nothing of it has been read."""

    path: str
    root: str
    size: int
    mtime_ns: int
    device: int
    inode: int


class Folder:
    """A root that exists: its real path, and what matches below it."""

    __slots__ = ("_globs", "real")

    def __init__(self, root: Root) -> None:
        self.real = os.path.realpath(root.path.expanduser())
        self._globs = re.compile("|".join(map(_pattern, root.globs)) or r"(?!)", re.DOTALL)

    def wants(self, path: str) -> bool:
        """Whether a path below this root is a transcript's, by its name alone."""
        return is_inside(path, self.real) and bool(
            self._globs.fullmatch(path, len(self.real.rstrip("/")) + 1)
        )

    def reaches(self, folder: str) -> bool:
        """Whether a folder lies in this root, and not too deep."""
        return is_inside(folder, self.real) and self.depth(folder) <= MOST_DEEP

    def depth(self, folder: str) -> int:
        """How many folders below the root it lies."""
        return folder.count("/") - self.real.rstrip("/").count("/")


def well_known_roots(environment: Mapping[str, str], home: Path) -> tuple[Root, ...]:
    """Where the usual agents keep their sessions, as far as these folders exist.

    `environment` is asked for CLAUDE_CONFIG_DIR and CODEX_HOME.
    """
    claude = {home / ".claude"}
    if configured := environment.get("CLAUDE_CONFIG_DIR"):
        # A list separated by commas is allowed by its reader.
        claude |= {Path(part.strip()) for part in configured.split(",") if part.strip()}
    codex = Path(environment.get("CODEX_HOME") or home / ".codex")
    candidates = [
        *(Root(folder / "projects", ("**/*.jsonl",)) for folder in sorted(claude)),
        Root(codex / "sessions", ("**/rollout-*.jsonl",)),
        Root(home / ".gemini" / "tmp", ("*/chats/*.json", "*/chats/*.jsonl")),
        Root(home / ".pi" / "agent" / "sessions", ("**/*.jsonl",)),
    ]
    return tuple(root for root in candidates if root.path.is_dir())


def walk(
    folder: Folder,
    tell: Callable[[Incident], None],
    on_folder: Callable[[str], None],
    start: str | None = None,
) -> Iterator[Found]:
    """Every transcript file below a root (or below its folder `start`), in no order.

    `on_folder` is called with each folder before it is listed: a watch that is set
    there misses nothing that is written afterwards. Blocks: call it in a thread.
    """
    stack = [start or folder.real]
    while stack:
        here = stack.pop()
        on_folder(here)
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if folder.wants(entry.path):
                            tell(Incident(IncidentKind.NOT_A_FILE, quoted(entry.path)))
                        _descend(entry, folder, stack, tell)
                    elif found := _found(entry, folder, tell):
                        yield found
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone while we walked
        except OSError as error:
            detail = {"error": error_name(error)}
            tell(Incident(IncidentKind.UNREADABLE, quoted(here), detail=detail))


def look_at(path: str, folder: Folder, tell: Callable[[Incident], None]) -> Found | None:
    """One path, as `walk` would have found it; None where there is no such transcript."""
    if not folder.wants(path):
        return None
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return _judged(path, status, folder, tell)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _descend(
    entry: "os.DirEntry[str]", folder: Folder, stack: list[str], tell: Callable[[Incident], None]
) -> None:
    if folder.depth(entry.path) > MOST_DEEP:
        tell(Incident(IncidentKind.TOO_DEEP, quoted(folder.real), detail={"limit": MOST_DEEP}))
    elif len(os.fsencode(entry.path)) > PATH_BYTES:
        detail = {"limit": PATH_BYTES}
        tell(Incident(IncidentKind.PATH_TOO_LONG, quoted(folder.real), detail=detail))
    else:
        stack.append(entry.path)


def _found(
    entry: "os.DirEntry[str]", folder: Folder, tell: Callable[[Incident], None]
) -> Found | None:
    wanted = folder.wants(entry.path)
    if entry.is_symlink():
        _check_link(entry.path, folder, tell)
        return None
    if not wanted:
        return None
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None  # gone while we walked
    return _judged(entry.path, status, folder, tell)


def _judged(
    path: str, status: os.stat_result, folder: Folder, tell: Callable[[Incident], None]
) -> Found | None:
    if stat.S_ISLNK(status.st_mode):
        _check_link(path, folder, tell)
        return None
    if not stat.S_ISREG(status.st_mode):
        tell(Incident(IncidentKind.NOT_A_FILE, quoted(path)))
        return None
    if len(os.fsencode(path)) > PATH_BYTES:
        detail = {"limit": PATH_BYTES}
        tell(Incident(IncidentKind.PATH_TOO_LONG, quoted(folder.real), detail=detail))
        return None
    return Found(
        path, folder.real, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino
    )


def _check_link(path: str, folder: Folder, tell: Callable[[Incident], None]) -> None:
    target = os.path.realpath(path)
    if target != folder.real and not is_inside(target, folder.real):
        tell(Incident(IncidentKind.LINK_REFUSED, quoted(path)))


def _pattern(glob: str) -> str:
    parts = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", glob):
        match token:
            case "**/":
                parts.append("(?:[^/]+/)*")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case _:
                parts.append(re.escape(token))
    return "".join(parts)
