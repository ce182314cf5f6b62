"""custosd's own transcript format, as TRANSCRIPTS.md promises it."""

import json
import random
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.transcripts.laws import (
    JSON,
    SAMPLES,
    mutated,
    read_or_refuse_lines,
    read_whole,
    read_with_crashes,
    sample_of,
    steps_of,
)

from custosd.adapters.transcripts.format import GarbledRecord, Sample
from custosd.adapters.transcripts.steps import FORMAT, MAX_PENDING
from custosd.core.transcript import (
    Acted,
    Asked,
    Compacted,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    StepKind,
    Unread,
    Usage,
    Waiting,
)

FILE = SAMPLES / "custosd.jsonl"
PAGE = Path(__file__).resolve().parents[3] / "daemon" / "TRANSCRIPTS.md"


def read_line(**record: Any) -> list[Any]:
    state = FORMAT.state()
    return [*FORMAT.read(json.dumps(record), state), *FORMAT.settle(state)]


def test_the_file_is_recognised_by_its_header() -> None:
    assert FORMAT.matches(sample_of(FILE))
    assert not FORMAT.matches(Sample("x.jsonl", b'{"type":"step","action":"ls"}\n'))


def test_the_header_opens_the_session_and_states_the_goal() -> None:
    opened, asked, *_ = read_whole(FORMAT, FILE.read_bytes())
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert opened == Opened("", "s-1", cwd="/srv/app", model="m", agent="nightly", at_utc=at)
    assert asked == Asked("", "Make the build green", at)


def test_steps_calls_and_answers_are_told_once_each() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    told = [
        (e.thread, e.step.kind, e.step.verb, e.step.result, e.step.error)
        for e in events
        if isinstance(e, Acted)
    ]
    assert told == [
        ("", StepKind.TEST, "make test", Result.ERROR, ErrorClass.TEST_FAILURE),
        ("", StepKind.EDIT, "edit_file", Result.OK, None),
        ("", StepKind.RUN, "git push", Result.REJECTED, ErrorClass.OTHER),
        ("helper", StepKind.SEARCH, "grep", Result.UNANSWERED, None),
    ]
    test, edit, *_ = steps_of(events)
    assert (test.exit_code, test.started_utc) == (2, datetime.fromtimestamp(1767323046, UTC))
    assert test.ended_utc == datetime.fromtimestamp(1767323050.5, UTC)
    assert (edit.files, edit.changes_state) == (("a.py",), True)
    assert (edit.action.excerpt, edit.observation.excerpt) == ('{"path":"a.py"}', '{"lines":7}')


def test_the_other_lines_are_told() -> None:
    events = read_whole(FORMAT, FILE.read_bytes())
    rest = [e for e in events[2:] if not isinstance(e, Acted)]
    assert rest == [
        Spent("", Usage(10, 2, 0, 0.25)),
        Said("", "Nearly done", final=True),
        Waiting("", "permission"),
        Asked("", "Go on"),
        Compacted(""),
        Ended("", RunEnd.GAVE_UP, "I may not push"),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (Result.UNKNOWN, None)),
        ({"exit_code": 0}, (Result.OK, None)),
        ({"exit_code": 1}, (Result.ERROR, ErrorClass.EXIT_CODE)),
        ({"exit_code": 1, "ok": True}, (Result.OK, ErrorClass.EXIT_CODE)),
        ({"ok": False}, (Result.ERROR, ErrorClass.OTHER)),
        ({"ok": True, "result": "rejected"}, (Result.REJECTED, ErrorClass.OTHER)),
        ({"error": "auth"}, (Result.ERROR, ErrorClass.AUTH)),
        ({"observation": "bash: x: command not found"}, (Result.ERROR, ErrorClass.MISSING_COMMAND)),
    ],
)
def test_result_goes_before_ok_before_exit_code_before_the_text(
    fields: dict[str, Any], expected: tuple[Result, ErrorClass | None]
) -> None:
    (event,) = read_line(type="step", action="x", **fields)
    assert (event.step.result, event.step.error) == expected


def test_an_edit_that_failed_wrote_nothing() -> None:
    (event,) = read_line(
        type="step", tool="edit", kind="edit", action={}, edits=[{"path": "a"}], ok=False
    )
    assert (event.step.edits, event.step.changes_state) == ((), False)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"custosd":2,"session":"s"}',
        '{"custosd":1}',
        '{"type":"step"}',
        '{"type":"call","action":"ls"}',
        '{"type":"say","text":3}',
        '{"type":"end","how":"exploded"}',
        '{"type":"step","action":"ls","exit_code":"0"}',
        '{"custosd":1,"session":"' + "s" * 401 + '"}',
    ],
)
def test_a_wrong_line_is_garbled_and_the_state_stays(line: str) -> None:
    state = FORMAT.state()
    FORMAT.read('{"type":"call","id":"1","action":"ls"}', state)
    with pytest.raises(GarbledRecord):
        FORMAT.read(line, state)
    assert list(state.pending) == ["\n1"]


def test_unknown_types_fields_and_answers_are_passed_over() -> None:
    assert read_line(type="dance") == [Unread("custosd: unknown type")]
    assert read_line(type="answer", id="9") == [Unread("custosd: answer without a call")]
    assert len(read_line(type="step", action="ls", mood="good")) == 1
    assert read_whole(FORMAT, b"\n\n") == []


def test_calls_that_wait_are_bounded_and_the_oldest_is_given_up() -> None:
    state = FORMAT.state()
    given_up = []
    for number in range(MAX_PENDING + 5):
        line = json.dumps({"type": "call", "id": str(number), "action": "x" * 10_000})
        given_up += FORMAT.read(line, state)
    assert [event.step.key for event in given_up if isinstance(event, Acted)] == [*"01234"]
    assert len(state.pending) == MAX_PENDING


def test_half_a_surrogate_pair_does_not_garble_a_line() -> None:
    state = FORMAT.state()
    (event,) = FORMAT.read('{"type":"say","text":"cut \\ud83d"}', state)
    assert event == Said("", "cut \ufffd")


def test_the_state_is_stored_and_loaded_anywhere() -> None:
    data = FILE.read_bytes()
    for seed in range(20):
        assert read_with_crashes(FORMAT, data, seed) == read_whole(FORMAT, data)


@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    kinds = ["step", "call", "answer", "say", "ask", "wait", "spend", "compact", "end"]
    lines = [json.dumps(value), json.dumps({"custosd": value})]
    for kind in kinds:
        lines.append(json.dumps({"type": kind, "id": "1", "action": value, "observation": value}))
        lines.append(json.dumps({"type": kind, "id": value, "text": value, "at": value}))
    read_or_refuse_lines(FORMAT, lines)


@given(JSON, st.integers(0, 2**32))
def test_lines_with_any_part_changed_are_read_or_refused(value: Any, seed: int) -> None:
    chance = random.Random(seed)
    records = [json.loads(line) for line in FILE.read_text().splitlines()]
    lines = [json.dumps(mutated(record, value, chance)) for record in records]
    read_or_refuse_lines(FORMAT, lines)


def test_the_pages_shell_example_is_a_transcript(tmp_path: Path) -> None:
    """What people copy from TRANSCRIPTS.md works."""
    (example,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "transcripts").mkdir()
    subprocess.run(["sh", "-ec", example], env={"HOME": str(tmp_path)}, check=True)
    (path,) = (tmp_path / "transcripts").iterdir()
    assert FORMAT.matches(sample_of(path))
    opened, asked, acted = read_whole(FORMAT, path.read_bytes())
    assert isinstance(opened, Opened)
    assert isinstance(asked, Asked)
    assert isinstance(acted, Acted)
    assert acted.step.error is ErrorClass.TEST_FAILURE


def test_the_pages_json_example_is_one_step() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (event,) = read_whole(FORMAT, example.encode())
    assert isinstance(event, Acted)
    assert event.step.result is Result.OK


def test_the_page_names_every_type_and_word() -> None:
    page = PAGE.read_text(encoding="utf-8")
    words = [*StepKind, *ErrorClass, *RunEnd, Result.REJECTED, Result.INTERRUPTED]
    assert [word for word in words if f"`{word}`" not in page] == []
