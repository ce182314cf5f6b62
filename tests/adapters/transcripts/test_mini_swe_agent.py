"""mini-swe-agent's three forms of a trajectory in the normal form."""

import json
import random
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
    read_or_refuse_document,
    read_whole,
    sample_of,
    steps_of,
)

from custosd.adapters.transcripts.format import GarbledRecord
from custosd.adapters.transcripts.mini_swe_agent import FORMAT
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
)

LIST = SAMPLES / "mini-swe-agent-list.traj.json"
OBJECT = SAMPLES / "mini-swe-agent.traj.json"


def test_both_forms_are_recognised() -> None:
    assert FORMAT.matches(sample_of(LIST))
    assert FORMAT.matches(sample_of(OBJECT))


def test_the_bare_list_is_read_from_fenced_blocks() -> None:
    events = read_whole(FORMAT, LIST.read_bytes())
    told = [
        (step.kind, step.verb, step.exit_code, step.result, step.error) for step in steps_of(events)
    ]
    assert told == [
        (StepKind.READ, "cat", 1, Result.ERROR, ErrorClass.MISSING_FILE),
        (StepKind.OTHER, "invalid_call", None, Result.ERROR, ErrorClass.TOOL_MISUSE),
        (StepKind.EDIT, "cat", 0, Result.OK, None),
        (StepKind.SUBMIT, "submit", None, Result.OK, None),
    ]
    assert [event.text for event in events if isinstance(event, Asked)] == [
        "Please solve this issue: add subtracts"
    ]
    assert [e.text for e in events if isinstance(e, Said)] == ["I do not know what to do."]
    assert events[-1] == Ended("", RunEnd.SUBMITTED, "diff --git a/calc.py b/calc.py")


def test_the_object_is_read_from_its_structured_fields() -> None:
    events = read_whole(FORMAT, OBJECT.read_bytes())
    assert events[0] == Opened("", "", cwd="/testbed", model="m-2")
    answered, unanswered = steps_of(events)
    assert (answered.kind, answered.exit_code, answered.error) == (
        StepKind.TEST,
        1,
        ErrorClass.TEST_FAILURE,
    )
    assert answered.started_utc == datetime.fromtimestamp(1750000000.5, UTC)
    assert (unanswered.verb, unanswered.result) == ("sleep", Result.UNANSWERED)
    spent = [event.usage for event in events if isinstance(event, Spent)]
    assert spent == [Usage(90, 9, 30, 0.01), Usage(cost_usd=0.02)]
    (ended,) = (event for event in events if isinstance(event, Ended))
    assert ended.end is RunEnd.LIMIT


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ("Submitted", RunEnd.SUBMITTED),
        ("LimitsExceeded", RunEnd.LIMIT),
        ("TimeExceeded", RunEnd.LIMIT),
        ("RepeatedFormatError", RunEnd.ERROR),
        ("AuthenticationError", RunEnd.ERROR),
        ("UserInterruption", RunEnd.ABORTED),
    ],
)
def test_the_exit_status_tells_the_end(status: str, end: RunEnd) -> None:
    document = {"info": {"exit_status": status}, "messages": []}
    *_, ended = FORMAT.read(json.dumps(document).encode())
    assert isinstance(ended, Ended)
    assert ended.end is end


def test_a_run_without_an_exit_goes_on_and_its_last_call_is_unanswered() -> None:
    document = json.loads(OBJECT.read_bytes())
    document["info"]["exit_status"] = ""
    document["messages"].pop()
    *_, last = read_whole(FORMAT, json.dumps(document).encode())
    assert [step.result for step in steps_of([last])] == [Result.UNANSWERED]


def test_a_command_out_of_time_says_so() -> None:
    messages = [
        {"role": "user", "content": "Solve"},
        {"role": "assistant", "content": "```bash\nsleep 99\n```"},
        {
            "role": "user",
            "content": "The last command <command>sleep 99</command> timed out and was killed.",
        },
    ]
    (step,) = steps_of(FORMAT.read(json.dumps(messages).encode()))
    assert (step.result, step.error) == (Result.ERROR, ErrorClass.TIMEOUT)


def test_no_messages_are_garbled() -> None:
    for data in (b"{}", b"3", b'{"messages": 3}', b"[{"):
        with pytest.raises(GarbledRecord):
            FORMAT.read(data)


@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    read_or_refuse_document(FORMAT, value)
    reply = {"role": "assistant", "content": value, "extra": {"actions": value}}
    answer = {"role": "user", "content": value, "extra": value}
    read_or_refuse_document(FORMAT, [value, reply, answer, reply])
    read_or_refuse_document(FORMAT, {"messages": [reply, {"role": "exit"}], "info": value})


@given(JSON, st.integers(0, 2**32), st.sampled_from([LIST, OBJECT]))
def test_a_document_with_any_part_changed_is_read_or_refused(
    value: Any, seed: int, path: Path
) -> None:
    document = json.loads(path.read_bytes())
    read_or_refuse_document(FORMAT, mutated(document, value, random.Random(seed)))


@pytest.mark.transcripts
def test_real_runs_have_a_step_for_each_command(transcripts_dir: Path) -> None:
    for path in (transcripts_dir / "mini-swe-agent").iterdir():
        messages = json.loads(path.read_bytes())
        commands = sum(
            "```mswea_bash_command" in message["content"]
            for message in messages
            if message["role"] == "assistant"
        )
        events = read_whole(FORMAT, path.read_bytes())
        assert FORMAT.matches(sample_of(path))
        assert len(steps_of(events)) == commands
        assert isinstance(events[1], Asked)
        assert isinstance(events[-1], Ended)
