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
from custosd.core.transcript import EditRange, digest_of

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
    for line in lines:
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
    return EditRange(path, first, last, digest=digest_of("\n".join(wrote)))
