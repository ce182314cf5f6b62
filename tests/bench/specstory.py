"""Reads real sessions out of SpecStory's pages: who looked into and wrote which file, when."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from custosd.core.effects import text_of
from custosd.core.transcript import (
    Acted,
    Asked,
    EditRange,
    Opened,
    Result,
    Step,
    StepKind,
    TranscriptEvent,
)

REPOSITORY = "/Users/sean/Source/SpecStory/getspecstory"
_HEAD = re.compile(r"_\*\*(User|Agent) \((?:.*? )?(\d{4}-\d\d-\d\d[T ][\d:.]+Z)\)\*\*_")
_TOOL = re.compile(r'<tool-use data-tool-type="(read|write)" data-tool-name="(\w+)"')
_PATH = re.compile(
    r"The file (/\S+?)(?: has been| *$)|(?:Add|Update|Edit file): `?([\w./-]+)`?|^ `([^`\n]+)`$"
    r"|File created successfully at: (\S+)",
    re.MULTILINE,
)


def read_page(path: Path) -> Iterator[TranscriptEvent]:
    """The events of one session; steps of other kinds than reading and writing are left out."""
    yield Opened("", path.stem, cwd=REPOSITORY)
    at: datetime | None = None
    parts = re.split(r"(?m)^(?=_\*\*(?:User|Agent) )", path.read_text())
    for number, part in enumerate(parts):
        head = _HEAD.match(part)
        if head is None:
            continue
        at = datetime.fromisoformat(head[2].replace(" ", "T"))
        if head[1] == "User":
            yield Asked("", part[head.end() :].strip("\n -")[:2_000], at)
            continue
        for tool in _TOOL.finditer(part):
            body = part[tool.end() : part.find("</tool-use>", tool.end())]
            found = _PATH.search(body)
            refused = "tool_use_error" in body or "doesn't want to proceed" in body
            if found is None or refused:
                continue
            named = next(group for group in found.groups() if group)
            yield Acted("", _step(f"{number}", tool[1] == "write", tool[2], named, at))


def _step(key: str, writes: bool, tool: str, named: str, at: datetime) -> Step:  # noqa: FBT001 - a reader's own
    path = named if named.startswith("/") else f"{REPOSITORY}/{named.removeprefix('./')}"
    kind = StepKind.EDIT if writes else StepKind.READ
    edits = (EditRange(path, created=tool == "Write"),) if writes else ()
    return Step(
        key,
        kind,
        tool,
        tool.lower(),
        text_of(named),
        text_of(""),
        Result.OK,
        files=(path,),
        edits=edits,
        changes_state=writes,
        started_utc=at,
        ended_utc=at,
    )
