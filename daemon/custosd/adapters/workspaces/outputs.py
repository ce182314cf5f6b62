"""The ends of an agent's output files; never more of a file than its end is read.

Laws:

1. A file that is cut or rotated while it is read is read once more; if it happens again, what
   was read is shown, and said to be so.
2. Secrets are taken out before the text is cut down to lines, with what stands before those
   (`LEAD_CHARS`; all that was read where a key of many lines may begin there): what a cut left
   over of a secret no detector would know.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from custosd.adapters.workspaces.decoding import ALIGNMENT_BYTES, BINARY, MARK_BYTES, decoded
from custosd.adapters.workspaces.folders import NotRead, file_in, folder_in
from custosd.core.secrets import without_secrets
from custosd.core.workspaces import Gap, OutputFile, WorkspacePart

MOST_OUTPUTS = 20
"""Output files of one agent that are read."""

LEAD_CHARS = 512
"""Taking secrets out costs more here than all the rest: not all that was read goes through it."""

_KEY_OF_LINES = "PRIVATE KEY"

_MOST_NAMES = 10_000
"""Names of one folder that patterns are held against."""

_WILD = re.compile(r"[*?\[]")
_DOUBTFUL_CHARS = 64
_LONGEST_WORD = 1_024
_WORD_ENDS = re.compile(r"[\s\"',;]")


@dataclass(frozen=True, slots=True)
class TailLimits:
    """Which files are output, by patterns whose `*` stays in its folder, and how much is read."""

    patterns: tuple[str, ...]
    lines: int = 20
    most_bytes: int = 16_384


def output_files(
    root: int, limits: TailLimits, owner: int | None, ends_at: float, gaps: list[Gap]
) -> Iterator[OutputFile]:
    """The ends of the files that the patterns fit; what is not read is a gap.

    A name that is not there is none. `ends_at` is a time of `time.monotonic`.
    """
    seen: set[str] = set()
    for pattern in limits.patterns:
        for folder, name, path in _found(root, pattern.split("/"), "", gaps):
            if path in seen:
                continue
            if len(seen) >= MOST_OUTPUTS or time.monotonic() > ends_at:
                reason = "too_many_files" if len(seen) >= MOST_OUTPUTS else "too_slow"
                gaps.append(Gap(WorkspacePart.OUTPUTS, path, reason))
                return
            seen.add(path)
            try:
                yield replace(end_of(folder, name, limits, owner), path=without_secrets(path))
            except FileNotFoundError:
                continue
            except NotRead as why:
                gaps.append(Gap(WorkspacePart.OUTPUTS, path, str(why)))


def _found(
    fd: int, parts: list[str], above: str, gaps: list[Gap]
) -> Iterator[tuple[int, str, str]]:
    """(open folder, name, path) of all that a pattern fits, in the order of names."""
    first, *rest = parts
    for name in _names(fd, first, above, gaps):
        path = f"{above}{name}"
        if not rest:
            yield fd, name, path
            continue
        try:
            with folder_in(fd, name) as inner:
                yield from _found(inner, rest, f"{path}/", gaps)
        except FileNotFoundError:
            continue
        except NotRead as why:
            # A pattern's folder may fit files, too; only a folder by its name is missed.
            if str(why) != "not_a_folder" or not _WILD.search(first):
                gaps.append(Gap(WorkspacePart.OUTPUTS, path, str(why)))


def _names(fd: int, pattern: str, above: str, gaps: list[Gap]) -> list[str]:
    if not _WILD.search(pattern):
        return [pattern]
    fitting: list[str] = []
    try:
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries):
                if number >= _MOST_NAMES:
                    gaps.append(Gap(WorkspacePart.OUTPUTS, above, "too_many_files"))
                    break
                if fnmatchcase(entry.name, pattern):
                    fitting.append(entry.name)
    except OSError as error:
        gaps.append(Gap(WorkspacePart.OUTPUTS, above, type(error).__name__))
    return sorted(fitting)


def end_of(
    folder: int,
    name: str,
    limits: TailLimits,
    owner: int | None = None,
    read: Callable[[int, int, int], bytes] = os.pread,
) -> OutputFile:
    """The end of one file. Raises `NotRead`; `FileNotFoundError`."""
    found = _read_end(folder, name, limits, owner, read)
    if found.note:
        found = _read_end(folder, name, limits, owner, read)
    size, begins, note = found.size, found.begins, found.note
    text, encoding = decoded(found.beginning, found.data, cut=begins > 0)
    changed_utc = datetime.fromtimestamp(found.changed_at, UTC)
    if text is None:
        return OutputFile(name, size, changed_utc, None, encoding, note=BINARY)
    text = (_from_a_line(text) if begins else text).removesuffix("\n")
    whole = not begins and text.count("\n") < limits.lines
    last = without_secrets(_with_its_lead(text, limits.lines)).split("\n")
    shown = "\n".join(last[-limits.lines :])
    return OutputFile(name, size, changed_utc, shown, encoding, whole, note)


@dataclass(frozen=True, slots=True)
class _End:
    """What was read: `data` from `begins` on, and what the file begins with."""

    size: int
    begins: int
    data: bytes
    beginning: bytes
    changed_at: float
    note: str


def _read_end(
    folder: int,
    name: str,
    limits: TailLimits,
    owner: int | None,
    read: Callable[[int, int, int], bytes],
) -> _End:
    with file_in(folder, name, owner) as (fd, status):
        size = status.st_size
        begins = max(0, size - limits.most_bytes)
        begins += -begins % ALIGNMENT_BYTES
        data = read(fd, size - begins, begins)
        beginning = data[:MARK_BYTES] if not begins else read(fd, MARK_BYTES, 0)
        note = _troubled(fd, folder, name, len(data) < size - begins)
        return _End(size, begins, data, beginning, status.st_mtime, note)


def _with_its_lead(text: str, lines: int) -> str:
    """The last lines and whole ones before them, at least `LEAD_CHARS` where there are so many."""
    if _KEY_OF_LINES in text:
        return text
    at = len(text)
    for _ in range(lines):
        at = text.rfind("\n", 0, at)
        if at < 0:
            return text
    before = text.rfind("\n", 0, max(0, at - LEAD_CHARS))
    return text[before + 1 :]


def _troubled(fd: int, folder: int, name: str, short: bool) -> str:  # noqa: FBT001 - of one call
    """What happened to the file while it was read: "" for nothing, or growth alone."""
    if short:
        return "cut_while_read"
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return "rotated_while_read"
    held = os.fstat(fd)
    same = (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
    return "" if same else "rotated_while_read"


def _from_a_line(text: str) -> str:
    """Without the line that a cut divided; of a single long one, without its first word."""
    _, newline, rest = text.partition("\n")
    if newline and rest:
        return rest
    found = _WORD_ENDS.search(text, _DOUBTFUL_CHARS, _LONGEST_WORD)
    return text[found.end() if found else _LONGEST_WORD :]
