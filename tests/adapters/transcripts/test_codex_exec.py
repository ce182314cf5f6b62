import json
from typing import Any

from tests.adapters.transcripts.reading import events_of, said_finally, sample, spent, steps

from custosd.adapters.transcripts.codex_exec import FORMAT, CodexExecState
from custosd.core.transcript import (
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    StepKind,
    Unread,
    Usage,
    Waiting,
)

EVENTS = events_of(FORMAT, sample("codex-exec.jsonl"))


def read(*records: Any) -> list[Any]:
    return events_of(FORMAT, "\n".join(map(json.dumps, records)).encode())


def item(kind: str, ident: str = "item_0", stage: str = "completed", **fields: Any) -> Any:
    return {"type": f"item.{stage}", "item": {"id": ident, "type": kind, **fields}}


def test_each_item_that_acts_is_a_step() -> None:
    reading, changing, closing = steps(EVENTS)
    assert (reading.kind, reading.action.excerpt, reading.exit_code) == (
        StepKind.READ,
        "cat a.txt",
        1,
    )
    assert (reading.result, reading.error) == (Result.ERROR, ErrorClass.MISSING_FILE)
    assert (changing.kind, changing.files, changing.changes_state) == (
        StepKind.EDIT,
        ("/w/a.txt",),
        True,
    )
    assert (closing.tool, closing.result) == ("tracker__close", Result.ERROR)


def test_a_completed_turn_ends_the_run_with_its_last_message() -> None:
    assert said_finally(EVENTS) == ["Made a.txt."]
    assert EVENTS[-1] == Ended("", RunEnd.FINISHED, "Made a.txt.")
    assert spent(EVENTS) == Usage(900, 70, 100)
    assert EVENTS[0] == Opened("", "ex1")


def test_a_failed_turn_ends_the_run_in_error() -> None:
    failed = {"type": "turn.failed", "error": {"message": "You've hit your usage limit."}}
    assert read(failed) == [
        Waiting("", "rate_limit"),
        Ended("", RunEnd.ERROR, "You've hit your usage limit."),
    ]


def test_what_was_started_and_never_completed_is_unanswered() -> None:
    begun = item("command_execution", stage="started", command="sleep 9")
    assert [s.result for s in steps(read(begun))] == [Result.UNANSWERED]


def test_items_of_a_second_turn_have_keys_of_their_own() -> None:
    turn = [{"type": "turn.started"}, item("command_execution", command="ls", exit_code=0)]
    assert [s.key for s in steps(read(*turn, *turn))] == ["item_0", "2.item_0"]


def test_a_declined_command_is_rejected() -> None:
    (step,) = steps(read(item("command_execution", command="rm -r x", status="declined")))
    assert step.result is Result.REJECTED


def test_what_is_unknown_is_counted_by_its_name() -> None:
    state = CodexExecState()
    assert FORMAT.read('{"type":"brand.new"}', state) == [Unread("codex-exec:brand.new")]
    line = json.dumps(item("brand_new"))
    assert FORMAT.read(line, state) == [Unread("codex-exec:item-brand_new")]
