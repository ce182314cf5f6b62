import json
from typing import Any

import pytest
from tests.adapters.transcripts.reading import asked, events_of, sample, spent, steps

from custosd.adapters.transcripts.format import GarbledRecord, Rereading
from custosd.adapters.transcripts.gemini_cli import FORMAT, LINE_FORMAT, GeminiState
from custosd.core.transcript import (
    ErrorClass,
    Opened,
    Result,
    Said,
    StepKind,
    Unread,
    Usage,
    Waiting,
)

DOCUMENT = json.loads(sample("gemini-cli.json"))
EVENTS = events_of(FORMAT, sample("gemini-cli.json"))
LINE_EVENTS = events_of(LINE_FORMAT, sample("gemini-cli.jsonl"))


def document(*messages: Any) -> bytes:
    return json.dumps({"sessionId": "s", "projectHash": "h", "messages": list(messages)}).encode()


def test_people_are_heard_in_both_forms_of_content() -> None:
    assert asked(EVENTS) == ["Add a licence.", "Go on."]


def test_each_tool_call_becomes_a_step() -> None:
    writing, installing, replacing, cancelled = steps(EVENTS)
    assert [(e.path, e.last_line, e.created) for e in writing.edits] == [("/p/LICENSE", 2, True)]
    assert writing.thought is not None
    assert writing.thought.excerpt == "I will write it."
    assert (installing.exit_code, installing.result, installing.error) == (
        127,
        Result.ERROR,
        ErrorClass.MISSING_COMMAND,
    )
    assert [(e.path, e.first_line, e.last_line) for e in replacing.edits] == [("/p/a.py", 8, 8)]
    assert cancelled.result is Result.INTERRUPTED


def test_tokens_count_thoughts_as_written() -> None:
    assert spent(EVENTS) == Usage(110, 9, 20)


def test_what_the_program_says_is_a_wait_or_nothing() -> None:
    assert [e.on for e in EVENTS if isinstance(e, Waiting)] == ["human", "rate_limit"]
    assert not [e for e in EVENTS if isinstance(e, Unread)]


def test_a_cancelled_edit_was_refused() -> None:
    call = {"id": "w", "name": "write_file", "args": {"file_path": "a"}, "status": "cancelled"}
    (step,) = steps(FORMAT.read(document({"type": "gemini", "content": "", "toolCalls": [call]})))
    assert (step.result, step.edits, step.changes_state) == (Result.REJECTED, (), False)


def test_a_growing_document_only_adds_events() -> None:
    """Each prefix of the messages, and the last message before its tools ran, is a prefix."""
    rereading, told = Rereading(), []
    messages = DOCUMENT["messages"]
    for end in range(len(messages) + 1):
        for without_tools in (True, False):
            shown = [dict(message) for message in messages[:end]]
            if without_tools and shown:
                shown[-1].pop("toolCalls", None)
            news = rereading.news(FORMAT.read(json.dumps({**DOCUMENT, "messages": shown}).encode()))
            assert not news.rewound
            told.extend(news.events)
    assert told == EVENTS


def test_a_call_that_is_not_over_is_held_back() -> None:
    call = {
        "id": "c",
        "name": "run_shell_command",
        "args": {"command": "ls"},
        "status": "executing",
    }
    running = FORMAT.read(
        document({"id": "1", "type": "gemini", "content": "", "toolCalls": [call]})
    )
    assert [s.result for s in steps(running)] == [Result.UNANSWERED]
    rereading = Rereading()
    assert steps(rereading.news(running).events) == []
    over = document(
        {"id": "1", "type": "gemini", "content": "", "toolCalls": [{**call, "status": "success"}]}
    )
    news = rereading.news(FORMAT.read(over))
    assert not news.rewound
    assert [s.result for s in steps(news.events)] == [Result.OK]


def test_the_oldest_form_has_a_history_of_parts() -> None:
    history = [
        {"role": "user", "parts": [{"text": "Hi."}], "ts": 1_700_000_000},
        {"role": "model", "parts": [{"text": "Hello."}]},
    ]
    events = FORMAT.read(json.dumps({"history": history}).encode())
    assert asked(events) == ["Hi."]
    assert [e.text for e in events if isinstance(e, Said)] == ["Hello."]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b'{"messages": ['])
def test_half_a_document_is_garbled(data: bytes) -> None:
    with pytest.raises(GarbledRecord):
        FORMAT.read(data)


def test_a_message_written_again_tells_only_what_is_new() -> None:
    assert [e.text for e in LINE_EVENTS if isinstance(e, Said)] == ["Listing.", "One file."]
    assert [(s.key, s.kind, s.result) for s in steps(LINE_EVENTS)] == [
        ("l1", StepKind.SEARCH, Result.OK)
    ]
    assert spent(LINE_EVENTS) == Usage(110, 12, 50)
    assert LINE_EVENTS[0] == Opened("", "gem-2", at_utc=LINE_EVENTS[0].at_utc)


def test_a_call_that_never_ends_is_unanswered_when_nothing_more_comes() -> None:
    lines = sample("gemini-cli.jsonl").decode().split("\n")[:5]
    events = events_of(LINE_FORMAT, "\n".join(lines).encode())
    assert [s.result for s in steps(events)] == [Result.UNANSWERED]


def test_what_is_unknown_is_counted_by_its_name() -> None:
    state = GeminiState()
    assert LINE_FORMAT.read('{"type":"brand-new"}', state) == [
        Unread("gemini-cli-jsonl:message-brand-new")
    ]
    assert LINE_FORMAT.read('{"a":1}', state) == [Unread("gemini-cli-jsonl:record")]
