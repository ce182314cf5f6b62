"""SWE-agent's .traj documents in the normal form."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.transcripts.laws import (
    JSON,
    SAMPLES,
    mutated,
    read_or_refuse_document,
    read_whole,
    sample_of,
    steps_of,
)

from custosd.adapters.transcripts.format import GarbledRecord
from custosd.adapters.transcripts.swe_agent import FORMAT, read_action
from custosd.core.transcript import (
    Asked,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Spent,
    StepKind,
    Usage,
)

FILE = SAMPLES / "swe-agent.traj"


def test_the_file_is_recognised() -> None:
    assert FORMAT.matches(sample_of(FILE))


def test_each_element_of_the_trajectory_is_a_step() -> None:
    steps = steps_of(read_whole(FORMAT, FILE.read_bytes()))
    assert [(step.kind, step.verb, step.result, step.error) for step in steps] == [
        (StepKind.EDIT, "create", Result.OK, None),
        (StepKind.EDIT, "edit", Result.OK, None),
        (StepKind.EDIT, "edit", Result.REJECTED, ErrorClass.EDIT_REJECTED),
        (StepKind.RUN, "python", Result.ERROR, ErrorClass.MISSING_MODULE),
        (StepKind.SEARCH, "search_dir", Result.OK, None),
        (StepKind.EDIT, "insert", Result.OK, None),
        (StepKind.SUBMIT, "submit", Result.OK, None),
    ]


def test_edits_tell_file_and_lines() -> None:
    create, edit, refused, *_, insert, _ = steps_of(read_whole(FORMAT, FILE.read_bytes()))
    assert [(e.path, e.created) for e in create.edits] == [("repro.py", True)]
    assert [(e.path, e.first_line, e.last_line) for e in edit.edits] == [("/r/repro.py", 1, 2)]
    assert (refused.edits, refused.files) == ((), ("/r/repro.py",))
    assert [(e.path, e.first_line, e.last_line) for e in insert.edits] == [("/r/src/calc.py", 5, 6)]


def test_the_goal_is_the_issue_and_no_demonstration() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    assert [event.text for event in events if isinstance(event, Asked)] == [
        "Solve this issue: add subtracts"
    ]
    assert [event.cwd for event in events if isinstance(event, Opened)] == ["/r"]


def test_what_the_harness_submitted_at_a_limit_is_a_limit() -> None:
    *_, spent, ended = read_whole(FORMAT, FILE.read_bytes())
    assert isinstance(ended, Ended)
    assert ended.end is RunEnd.LIMIT
    assert spent == Spent("", Usage(1000, 50, 0, 1.5))


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ("submitted", RunEnd.SUBMITTED),
        ("submitted (exit_context)", RunEnd.LIMIT),
        ("submitted (exit_format)", RunEnd.ERROR),
        ("exit_cost", RunEnd.LIMIT),
        ("exit_total_execution_time", RunEnd.LIMIT),
        ("exit_forfeit", RunEnd.GAVE_UP),
        ("exit_format", RunEnd.ERROR),
        ("exit_command_timeout", RunEnd.ERROR),
        ("exit_api", RunEnd.ERROR),
        ("exit_environment_error", RunEnd.ERROR),
        ("early_exit", RunEnd.ABORTED),
        ("something new", RunEnd.ERROR),
    ],
)
def test_the_exit_status_tells_the_end(status: str, end: RunEnd) -> None:
    document = {"trajectory": [], "info": {"exit_status": status}}
    *_, ended = FORMAT.read(json.dumps(document).encode())
    assert isinstance(ended, Ended)
    assert ended.end is end


def test_a_run_without_exit_status_goes_on() -> None:
    """Neither end nor cost is told before: the totals would change with each writing."""
    document = json.loads(FILE.read_bytes())
    document["info"]["exit_status"] = None
    events = read_whole(FORMAT, json.dumps(document).encode())
    assert not any(isinstance(event, Ended | Spent) for event in events)


@pytest.mark.parametrize(
    ("action", "kind", "files"),
    [
        ("open 'src/a b.py' 10", StepKind.READ, ("src/a b.py",)),
        ("goto 20", StepKind.READ, ("/r/open.py",)),
        ("scroll_down", StepKind.READ, ("/r/open.py",)),
        ("search_file foo", StepKind.SEARCH, ("/r/open.py",)),
        ("search_dir foo src", StepKind.SEARCH, ("src",)),
        ("find_file a.py src", StepKind.SEARCH, ("src",)),
        ("str_replace_editor view /r/a.py --view_range 1 20", StepKind.READ, ("/r/a.py",)),
        ("python -m pytest tests", StepKind.TEST, ()),
        ("exit_forfeit", StepKind.SUBMIT, ()),
    ],
)
def test_its_own_tools_are_read(action: str, kind: StepKind, files: tuple[str, ...]) -> None:
    call = read_action(action, "fine", "/r/open.py")
    assert (call.kind, call.files) == (kind, files)
    assert not call.changes_state


def test_a_replacing_edit_finds_its_lines_in_the_answer() -> None:
    answer = "Text replaced.\n[File: /r/a.py (9 lines total)]\n3:a\n4:new\n5:text\n6:b"
    call = read_action("edit 'old' 'new\ntext'", answer, "")
    (edit,) = call.edits
    assert (edit.path, edit.first_line, edit.last_line) == ("/r/a.py", 4, 5)


def test_no_trajectory_is_garbled() -> None:
    with pytest.raises(GarbledRecord):
        FORMAT.read(b"[]")


@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    read_or_refuse_document(FORMAT, value)
    read_or_refuse_document(FORMAT, {"trajectory": [value, {"action": value, "state": value}]})
    read_or_refuse_document(FORMAT, {"trajectory": value, "history": value, "info": value})


@given(JSON, st.integers(0, 2**32))
def test_a_document_with_any_part_changed_is_read_or_refused(value: Any, seed: int) -> None:
    document = json.loads(FILE.read_bytes())
    read_or_refuse_document(FORMAT, mutated(document, value, random.Random(seed)))


@given(st.text(max_size=200), st.none() | st.text(max_size=200))
def test_any_action_is_read(action: str, observation: str | None) -> None:
    read_action(action, observation, "/r/a.py")
    read_action(f"edit {action}", observation, "/r/a.py")
    read_action(f"str_replace_editor {action}", observation, "")


@pytest.mark.transcripts
def test_real_runs_have_the_steps_and_ends_of_their_labels(transcripts_dir: Path) -> None:
    read = 0
    for line in (transcripts_dir / "labels.jsonl").read_text().splitlines():
        label = json.loads(line)
        if not label["path"].startswith("swe-agent/"):
            continue
        path = transcripts_dir / label["path"]
        events = read_whole(FORMAT, path.read_bytes())
        assert FORMAT.matches(sample_of(path))
        assert len(steps_of(events)) == label["steps"]
        assert any(isinstance(event, Asked) for event in events)
        ends = [event.end for event in events if isinstance(event, Ended)]
        assert ends == ([RunEnd.SUBMITTED] if label["exit_status"] == "submitted" else [])
        read += 1
    assert read
