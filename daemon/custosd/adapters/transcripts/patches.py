"""Which lines a change wrote, read from the forms in which agents state changes.

Total: text that is no such form reads as no edits. Context lines do not count: two
edits that touch only each other's context are no conflict.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from custosd.adapters.transcripts.calls import MAX_PATH_CHARS, whole_file
from custosd.adapters.transcripts.fields import count, record, rows, text
from custosd.core.commands import MAX_FILES
from custosd.core.transcript import Change, EditRange, digest_of

_JOINED_ROWS = 2
"""Changes with so few rows between them are told as one."""

_MOST_CHANGES = 16

_HUNK = re.compile(r"@@ -\d{1,9}(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@")
_SECTION = re.compile(r"^\*\*\* (Add|Update|Delete) File: (.+)$", re.MULTILINE)


def hunk_edits(path: str, hunks: Any) -> tuple[EditRange, ...]:
    """One range for each hunk of {"newStart", "lines": [" a", "-b", "+c"]}."""
    if not path:
        return ()
    found = (
        _range(
            path, count(record(hunk).get("newStart")), map(text, rows(record(hunk).get("lines")))
        )
        for hunk in islice(rows(hunks), MAX_FILES)
    )
    return tuple(edit for edit in found if edit is not None)


def diff_edits(path: str, diff: str) -> tuple[EditRange, ...]:
    """One range for each hunk of a unified diff of one file."""
    if not path:
        return ()
    found = (_range(path, start, lines) for start, lines in islice(_hunks(diff), MAX_FILES))
    return tuple(edit for edit in found if edit is not None)


def envelope_edits(patch: str) -> tuple[EditRange, ...]:
    """The edits of a "*** Begin Patch" envelope: it names files, but no line numbers."""
    edits: list[EditRange] = []
    sections = list(islice(_SECTION.finditer(patch), MAX_FILES + 1))
    for at, section in enumerate(sections[:MAX_FILES]):
        end = sections[at + 1].start() if at + 1 < len(sections) else len(patch)
        rows_of = patch[section.end() + 1 : end].splitlines()
        path = section[2].strip()[:MAX_PATH_CHARS]
        wrote = "\n".join(row[1:] for row in rows_of if row.startswith("+"))
        if section[1] == "Add":
            edits.append(whole_file(path, wrote))
            continue
        moved = next((row[13:].strip() for row in rows_of if row.startswith("*** Move to: ")), "")
        edits.append(EditRange(moved[:MAX_PATH_CHARS] or path, digest=digest_of(wrote)))
    return tuple(edits)


def _hunks(diff: str) -> Iterator[tuple[int, list[str]]]:
    start, lines = 0, list[str]()
    for row in diff.splitlines():
        if head := _HUNK.match(row):
            if start:
                yield start, lines
            start, lines = int(head[1]), []
        elif start:
            lines.append(row)
    if start:
        yield start, lines


def _range(path: str, start: int, lines: Iterable[str]) -> EditRange | None:
    """From the first to the last line that a hunk wrote, or removed before."""
    at, first, last = start, 0, 0
    wrote: list[str] = []
    changes = _Changes()
    for line in lines:
        changes.row(at, line[:1])
        mark = line[:1]
        if mark == "+":
            wrote.append(line[1:])
        if mark in ("+", "-"):
            first = first or max(1, at)
            last = max(last, first, at if mark == "+" else at - 1)
        if mark not in ("-", "\\"):
            at += 1
    if not first:
        return None
    digest = digest_of("\n".join(wrote))
    return EditRange(path, first, last, digest=digest, changes=changes.found())


def replacing(at: int, old: str, new: str) -> tuple[Change, ...]:
    """The change that puts `new` at line `at` in the place of `old`; () for an unknown line.

    Lines that both begin or end with are none of it: they are there to find the place.
    """
    if at < 1:
        return ()
    before, after = old.splitlines(), new.splitlines()
    shortest = min(len(before), len(after))
    same = next((i for i in range(shortest) if before[i] != after[i]), shortest)
    left = shortest - same
    tail = next((i for i in range(left) if before[-1 - i] != after[-1 - i]), left)
    return (Change(at + same, len(before) - same - tail, len(after) - same - tail),)


class _Changes:
    """The runs of changed rows of one hunk; those that lie next to each other are one."""

    def __init__(self) -> None:
        self._found: list[Change] = []
        self._same = 0

    def row(self, at: int, mark: str) -> None:
        if mark not in ("+", "-"):
            self._same += mark != "\\"
            return
        apart = self._same > _JOINED_ROWS and len(self._found) < _MOST_CHANGES
        if not self._found or apart:
            self._found.append(Change(at, 0, 0))
            self._same = 0
        last = self._found.pop()
        self._found.append(
            Change(
                last.at,
                last.removed + self._same + (mark == "-"),
                last.added + self._same + (mark == "+"),
            )
        )
        self._same = 0

    def found(self) -> tuple[Change, ...]:
        return tuple(self._found)
