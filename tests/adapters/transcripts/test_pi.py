import json
from typing import Any

from tests.adapters.transcripts.reading import asked, events_of, said_finally, sample, spent, steps

from custosd.adapters.transcripts.pi import FORMAT, PiState
from custosd.core.transcript import (
    Compacted,
    ErrorClass,
    Opened,
    Result,
    StepKind,
    Unread,
    Usage,
    Waiting,
)

EVENTS = events_of(FORMAT, sample("pi.jsonl"))


def message(**fields: Any) -> str:
    return json.dumps({"type": "message", "message": fields})


def test_a_persons_own_command_is_heard_but_states_no_goal() -> None:
    assert asked(EVENTS) == ["Speed up the parser.", "! git diff"]


def test_each_call_becomes_a_step_with_its_answer() -> None:
    running, editing, reading = steps(EVENTS)
    assert (running.exit_code, running.result, running.error) == (
        1,
        Result.ERROR,
        ErrorClass.MISSING_MODULE,
    )
    assert running.thought is not None
    assert running.thought.excerpt == "Measure first."
    assert (editing.kind, editing.result) == (StepKind.EDIT, Result.OK)
    assert [(e.path, e.first_line, e.last_line) for e in editing.edits] == [("parser.py", 12, 12)]
    assert reading.result is Result.INTERRUPTED
    assert not [e for e in EVENTS if isinstance(e, Unread)]


def test_the_stop_reason_says_what_the_turn_came_to() -> None:
    assert said_finally(EVENTS) == ["It is faster now."]
    assert [e.on for e in EVENTS if isinstance(e, Waiting)] == ["human", "rate_limit"]
    assert len([e for e in EVENTS if isinstance(e, Compacted)]) == 1


def test_tokens_and_money_are_summed() -> None:
    assert spent(EVENTS) == Usage(19, 24, 5, 0.75)


def test_a_change_of_model_names_the_session_again() -> None:
    opened = [(e.session, e.cwd, e.model) for e in EVENTS if isinstance(e, Opened)]
    assert opened == [("pi-1", "/home/cy/lib", "model-a"), ("pi-1", "/home/cy/lib", "model-b")]


def test_what_is_unknown_is_counted_by_its_name() -> None:
    state = PiState()
    assert FORMAT.read('{"type":"brand_new"}', state) == [Unread("pi:brand_new")]
    assert FORMAT.read(message(role="ghost"), state) == [Unread("pi:role-ghost")]
    assert FORMAT.read(message(role=7), state) == [Unread("pi:role-unnamed")]
    assert FORMAT.read(message(role="toolResult", toolCallId="x"), state) == [
        Unread("pi:answer-to-nothing")
    ]
