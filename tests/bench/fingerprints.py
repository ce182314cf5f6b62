"""Runs that are known by their hashes only, as events of a transcript.

A line holds steps of the form [action, observation, loose observation, failed, _, kind,
length of the observation in hundreds, files]: hashes stand for the texts.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from readings import LabelledRun

from custosd.core.steps import PAGING_VERBS
from custosd.core.transcript import (
    Acted,
    EditRange,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Step,
    StepKind,
    Text,
    TranscriptEvent,
)

LISTING_HUNDREDS = 10
_WORDS = {
    hashlib.sha1(word.encode()).hexdigest()[:8]: word for word in (*sorted(PAGING_VERBS), "submit")
}
_ENDS = {
    "submitted": RunEnd.SUBMITTED,
    "submitted (exit_cost)": RunEnd.LIMIT,
    "exit_cost": RunEnd.LIMIT,
    "early_exit": RunEnd.ABORTED,
}


def read_fingerprints(path: Path) -> Iterator[LabelledRun]:
    """Every run of the file; shapes are those of the module's head."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield LabelledRun(
                source=row["src"],
                id=row["id"],
                task=row["task"],
                events=list(_events(row)),
                failed=row["fail"],
                exit=row["exit"] or "",
                human_labels={},
            )


def _events(row: dict[str, Any]) -> Iterator[TranscriptEvent]:
    yield Opened("", row["id"])
    opened = ""
    listing = 0
    for number, fields in enumerate(row["steps"]):
        if fields[5] == "submit" and row["exit"] != "submitted":
            continue  # the harness handed in for an agent that was cut off
        step = _step(number, fields, opened, listing)
        opened = step.files[0] if step.files else opened
        if step.kind is StepKind.READ:
            listing = step.observation.length // 100
        yield Acted("", step)
    if (end := _ENDS.get(row["exit"] or "")) is not None:
        yield Ended("", end)


def _failed(kind: StepKind, *, raw_failed: bool, hundreds: int, listing: int) -> bool:
    """Whether a step failed. The flag comes from words in the answer, and a listing of
    source has such words of its own: an answer as long as a listing is one.
    """
    if not raw_failed or kind is StepKind.SUBMIT:
        return False
    if kind in {StepKind.READ, StepKind.SEARCH}:
        return hundreds < LISTING_HUNDREDS
    if kind is StepKind.EDIT and listing >= LISTING_HUNDREDS:
        # A taken edit is answered with the lines around it, a refused one with less.
        return hundreds < listing - 5
    return True


def _error(kind: StepKind, hundreds: int) -> ErrorClass:
    if kind is StepKind.EDIT:
        return ErrorClass.EDIT_REJECTED
    # No traceback and no test report has less than 200 characters: it could not start.
    return ErrorClass.MISSING_COMMAND if hundreds <= 1 else ErrorClass.OTHER


def _step(number: int, fields: list[Any], opened: str, listing: int) -> Step:
    action, observation, loose, failed, _, kind_name, hundreds, files = fields
    kind = StepKind(kind_name)
    # The flag comes from words in the answer; in a long listing they are the source's own.
    failed = _failed(kind, raw_failed=bool(failed), hundreds=hundreds, listing=listing)
    result = Result.OK
    if failed:
        result = Result.REJECTED if kind is StepKind.EDIT else Result.ERROR
    target = files[0] if files else opened
    created = bool(files) and not hundreds
    edits = (EditRange(target, created=created, digest=action),) if kind is StepKind.EDIT else ()
    return Step(
        key=str(number),
        kind=kind,
        tool=kind_name,
        verb=_WORDS.get(str(action), kind.value),
        action=Text("", 1, action, action),
        observation=Text("", max(1, hundreds * 100), observation, loose),
        result=result,
        error=_error(kind, hundreds) if failed else None,
        files=tuple(files),
        edits=edits,
        changes_state=kind is StepKind.EDIT,
    )
