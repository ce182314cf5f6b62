"""OpenHands: event streams, run records and output files in the normal form."""

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
    read_or_refuse_lines,
    read_whole,
    read_with_crashes,
    sample_of,
    steps_of,
)

from custosd.adapters.transcripts.format import GarbledRecord
from custosd.adapters.transcripts.openhands import FORMATS
from custosd.core.transcript import (
    Asked,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    StepKind,
    Usage,
    Waiting,
)

STREAM, OUTPUT = FORMATS
STREAM_FILE = SAMPLES / "openhands-stream.json"
OUTPUT_FILE = SAMPLES / "openhands-output.jsonl"


def test_each_shape_is_recognised_by_one_format() -> None:
    assert STREAM.matches(sample_of(STREAM_FILE))
    assert not OUTPUT.matches(sample_of(STREAM_FILE))
    assert OUTPUT.matches(sample_of(OUTPUT_FILE))
    assert not STREAM.matches(sample_of(OUTPUT_FILE))


def test_a_stream_joins_each_action_with_the_observation_that_it_caused() -> None:
    events = read_whole(STREAM, STREAM_FILE.read_bytes())
    told = [(step.key, step.kind, step.verb, step.result, step.error) for step in steps_of(events)]
    assert told == [
        ("1", StepKind.READ, "view", Result.OK, None),
        ("3", StepKind.EDIT, "str_replace", Result.REJECTED, ErrorClass.EDIT_REJECTED),
        ("5", StepKind.EDIT, "str_replace", Result.OK, None),
        ("7", StepKind.OTHER, "invalid_call", Result.ERROR, ErrorClass.TOOL_MISUSE),
        ("8", StepKind.TEST, "pytest", Result.ERROR, ErrorClass.TEST_FAILURE),
        ("12", StepKind.PLAN, "think", Result.OK, None),
        ("14", StepKind.DELEGATE, "delegate", Result.UNANSWERED, None),
    ]


def test_an_edit_tells_its_lines_and_a_refused_one_changes_nothing() -> None:
    _, refused, done, *_ = steps_of(read_whole(STREAM, STREAM_FILE.read_bytes()))
    assert (refused.edits, refused.changes_state) == ((), False)
    (edit,) = done.edits
    assert (edit.path, edit.first_line, edit.last_line) == ("/w/calc.py", 2, 2)
    assert done.changes_state


def test_talk_waits_and_the_end_are_told() -> None:
    events = read_whole(STREAM, STREAM_FILE.read_bytes())
    asked = [event.text for event in events if isinstance(event, Asked)]
    assert asked == ["Make the tests of calc pass", "Yes"]
    assert [e.text for e in events if isinstance(e, Said) and e.final] == ["Shall I go on?"]
    assert [e.on for e in events if isinstance(e, Waiting)] == ["human", "rate_limit"]
    ends = [(event.end, event.claim) for event in events if isinstance(event, Ended)]
    assert ends == [(RunEnd.FINISHED, "All tests pass.")]


def test_a_model_call_is_paid_once() -> None:
    events = read_whole(STREAM, STREAM_FILE.read_bytes())
    assert [e.usage for e in events if isinstance(e, Spent)] == [Usage(100, 10, 60)]


def test_each_line_of_an_output_file_is_a_run_of_its_own() -> None:
    events = read_whole(OUTPUT, OUTPUT_FILE.read_bytes())
    opened = [(event.thread, event.session) for event in events if isinstance(event, Opened)]
    assert opened == [("demo__one-1", "demo__one-1"), ("demo__two-2", "demo__two-2")]
    goals = [(event.thread, event.text) for event in events if isinstance(event, Asked)]
    assert goals == [("demo__one-1", "Say hello"), ("demo__two-2", "Say hello again")]
    ends = [(event.thread, event.end) for event in events if isinstance(event, Ended)]
    assert ends == [("demo__one-1", RunEnd.LIMIT), ("demo__two-2", RunEnd.ERROR)]
    first, second = steps_of(events)
    assert (first.verb, first.exit_code, first.edits[0].path) == ("echo", 0, "hello.txt")
    assert (second.verb, second.result) == ("touch", Result.OK)


def test_an_output_file_is_read_the_same_over_crashes() -> None:
    data = OUTPUT_FILE.read_bytes()
    assert read_with_crashes(OUTPUT, data, 1) == read_whole(OUTPUT, data)


def test_a_half_written_stream_is_garbled() -> None:
    with pytest.raises(GarbledRecord):
        STREAM.read(STREAM_FILE.read_bytes()[:500])


@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    read_or_refuse_document(STREAM, value)
    read_or_refuse_document(STREAM, [value, {"action": value, "args": value, "id": 1}])
    read_or_refuse_lines(OUTPUT, [json.dumps(value), json.dumps({"history": value})])


@given(JSON, st.integers(0, 2**32))
def test_a_stream_with_any_part_changed_is_read_or_refused(value: Any, seed: int) -> None:
    stream = json.loads(STREAM_FILE.read_bytes())
    read_or_refuse_document(STREAM, mutated(stream, value, random.Random(seed)))
    line = json.loads(OUTPUT_FILE.read_text().split("\n")[0])
    changed = mutated(line, value, random.Random(seed))
    read_or_refuse_lines(OUTPUT, [json.dumps(changed)])


@pytest.mark.transcripts
def test_real_runs_have_as_many_steps_as_they_have_answered_actions(transcripts_dir: Path) -> None:
    silent = ("system", "message", "recall", "finish", None)
    for path in (transcripts_dir / "openhands").iterdir():
        document = json.loads(path.read_bytes())
        history = document["history"] if isinstance(document, dict) else document
        actions = sum(event.get("action") not in silent for event in history)
        calls_refused = sum(event.get("observation") == "error" for event in history)
        events = read_whole(STREAM, path.read_bytes())
        assert STREAM.matches(sample_of(path))
        assert len(steps_of(events)) == actions + calls_refused
        assert sum(isinstance(event, Ended) for event in events) == 1
        assert isinstance(events[0], Opened)
        assert isinstance(events[1], Asked)


@pytest.mark.transcripts
def test_real_runs_end_as_their_labels_say(transcripts_dir: Path) -> None:
    labels = {
        record["path"]: record
        for record in map(json.loads, (transcripts_dir / "labels.jsonl").read_text().splitlines())
        if record["path"].startswith("openhands/") and "end" in record
    }
    for name, label in labels.items():
        (end,) = (
            event.end
            for event in read_whole(STREAM, (transcripts_dir / name).read_bytes())
            if isinstance(event, Ended)
        )
        assert end is {"finished": RunEnd.FINISHED}.get(label["end"], RunEnd.LIMIT)
