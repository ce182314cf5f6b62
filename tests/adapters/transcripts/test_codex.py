import json
from typing import Any

import pytest
from tests.adapters.transcripts.reading import asked, events_of, said_finally, sample, spent, steps

from custosd.adapters.transcripts.codex import FORMAT, CodexState, command_line
from custosd.core.transcript import (
    Compacted,
    ErrorClass,
    Opened,
    Result,
    Said,
    StepKind,
    Unread,
    Usage,
    Waiting,
)

EVENTS = events_of(FORMAT, sample("codex.jsonl"))


def item(kind: str, **payload: Any) -> str:
    return json.dumps({"type": "response_item", "payload": {"type": kind, **payload}})


def event(kind: str, **payload: Any) -> str:
    return json.dumps({"type": "event_msg", "payload": {"type": kind, **payload}})


def call(name: str = "shell", key: str = "k", **arguments: Any) -> str:
    return item("function_call", name=name, call_id=key, arguments=json.dumps(arguments))


def reply(output: Any, key: str = "k") -> str:
    return item("function_call_output", call_id=key, output=output)


def read(*lines: str, settled: bool = True) -> list[Any]:
    return events_of(FORMAT, "\n".join(lines).encode(), settled=settled)


def test_what_stands_twice_is_told_once_and_context_never() -> None:
    assert asked(EVENTS) == ["Rename the flag.", "Is it renamed?"]
    assert [e.final for e in EVENTS if isinstance(e, Said)] == [False, True]
    assert said_finally(EVENTS) == ["It is renamed."]


def test_each_call_becomes_a_step_with_its_answer() -> None:
    searching, patching, testing, sleeping = steps(EVENTS)
    assert (searching.kind, searching.verb, searching.exit_code) == (StepKind.SEARCH, "rg", 0)
    assert searching.observation.excerpt == "src/a.py:3:flag\n"
    assert searching.thought is not None
    assert searching.thought.excerpt == "**Searching**"
    assert (patching.kind, patching.result) == (StepKind.EDIT, Result.OK)
    assert (testing.kind, testing.error, testing.exit_code) == (
        StepKind.TEST,
        ErrorClass.TEST_FAILURE,
        1,
    )
    assert sleeping.result is Result.INTERRUPTED
    assert not [e for e in EVENTS if isinstance(e, Unread)]


def test_a_patch_tells_its_lines_where_the_rollout_knows_them() -> None:
    _, patching, *_ = steps(EVENTS)
    assert [(e.path, e.first_line, e.last_line, e.created) for e in patching.edits] == [
        ("src/a.py", 3, 3, False),
        ("src/b.py", 1, 2, True),
    ]
    lines = [
        line for line in sample("codex.jsonl").decode().split("\n") if "patch_apply_end" not in line
    ]
    _, patching, *_ = steps(events_of(FORMAT, "\n".join(lines).encode()))
    assert [(e.path, e.first_line, e.last_line, e.created) for e in patching.edits] == [
        ("src/a.py", 0, 0, False),
        ("src/b.py", 1, 2, True),
    ]


def test_totals_are_told_as_growth() -> None:
    assert spent(EVENTS) == Usage(300, 30, 150)
    count = [
        event("token_count", info={"total_token_usage": {"input_tokens": n, "output_tokens": 1}})
        for n in (10, 10, 30, 5)
    ]
    assert spent(read(*count, event("token_count", info=None))) == Usage(10 + 20 + 5, 1 + 0 + 1)


def test_a_compaction_is_told_once_in_both_forms() -> None:
    assert len([e for e in EVENTS if isinstance(e, Compacted)]) == 1
    record = json.dumps({"type": "compacted", "payload": {"message": ""}})
    assert len(read(record, record)) == 2
    pair = [record, event("context_compacted")]
    assert len(read(*pair, *pair)) == 2


def test_what_the_agent_waits_for() -> None:
    assert [e.on for e in EVENTS if isinstance(e, Waiting)] == ["human", "rate_limit"]
    assert read(event("exec_approval_request")) == [Waiting("", "permission")]


def test_the_first_versions_have_no_envelope() -> None:
    events = events_of(FORMAT, sample("codex-bare.jsonl"))
    assert asked(events) == ["Count the files."]
    assert [e.session for e in events if isinstance(e, Opened)] == ["0ld"]
    assert [s.exit_code for s in steps(events)] == [0]
    assert said_finally(events) == ["There are 12."]


@pytest.mark.parametrize(
    ("output", "shown", "exit_code", "result"),
    [
        ('{"output":"a","metadata":{"exit_code":0}}', "a", 0, Result.OK),
        ('{"output":"a","metadata":{"exit_code":3}}', "a", 3, Result.ERROR),
        ({"output": "a", "metadata": {"exit_code": 3}}, "a", 3, Result.ERROR),
        ({"content": "a", "success": True}, "a", None, Result.OK),
        (
            [{"type": "input_text", "text": "Exit code: 7\nOutput:\na"}],
            "Exit code: 7\nOutput:\na",
            7,
            Result.ERROR,
        ),
        (
            "Process exited with code 0\nOutput:\na",
            "Process exited with code 0\nOutput:\na",
            0,
            Result.OK,
        ),
        ('{"not":"an answer"}', '{"not":"an answer"}', None, Result.UNKNOWN),
        ("exec command rejected by user", "exec command rejected by user", None, Result.REJECTED),
        ("aborted by user after 3.2s", "aborted by user after 3.2s", None, Result.INTERRUPTED),
        (None, "", None, Result.UNKNOWN),
    ],
)
def test_an_answer_in_any_version_is_read(
    output: Any, shown: str, exit_code: int | None, result: Result
) -> None:
    (step,) = steps(read(call(command=["bash", "-lc", "make"]), reply(output)))
    assert (step.observation.excerpt, step.exit_code, step.result) == (shown, exit_code, result)


def test_an_exit_code_of_an_event_is_the_calls() -> None:
    lines = [
        call(command=["make"]),
        event("exec_command_end", call_id="k", exit_code=2),
        reply("x"),
    ]
    (step,) = steps(read(*lines))
    assert (step.exit_code, step.result) == (2, Result.ERROR)


def test_a_command_is_the_line_that_a_shell_would_run() -> None:
    assert command_line(["bash", "-lc", "ls | wc"]) == "ls | wc"
    assert command_line(["/bin/zsh", "-c", "ls"]) == "ls"
    assert command_line(["ls", "a b"]) == "ls 'a b'"
    assert command_line("ls") == "ls"
    assert command_line({"ls": 1}) == ""


def test_a_patch_given_to_the_shell_is_an_edit() -> None:
    patch = "*** Begin Patch\n*** Update File: a.py\n@@\n-x\n+y\n*** End Patch"
    (step,) = steps(read(call(command=["apply_patch", patch]), reply("Success.")))
    assert (step.kind, step.files) == (StepKind.EDIT, ("a.py",))


def test_searches_of_the_provider_are_steps_at_once() -> None:
    (step,) = steps(
        read(item("web_search_call", id="w", status="completed", action={"query": "q"}))
    )
    assert (step.kind, step.result) == (StepKind.BROWSE, Result.OK)


def test_a_forked_rollout_keeps_the_name_of_its_own_session() -> None:
    meta = [
        json.dumps({"type": "session_meta", "payload": {"id": name}}) for name in ("new", "old")
    ]
    assert [e.session for e in read(*meta)] == ["new"]


def test_a_spawned_agent_names_its_parent() -> None:
    source = {"subagent": {"thread_spawn": {"parent_thread_id": "up", "depth": 1}}}
    meta = json.dumps({"type": "session_meta", "payload": {"id": "me", "source": source}})
    assert [(e.session, e.parent) for e in read(meta)] == [("me", "up")]


def test_what_is_unknown_is_counted_by_its_name() -> None:
    state = CodexState()
    assert FORMAT.read(event("brand_new"), state) == [Unread("codex:event-brand_new")]
    assert FORMAT.read(item("brand_new"), state) == [Unread("codex:item-brand_new")]
    assert FORMAT.read(reply("x"), state) == [Unread("codex:answer-to-nothing")]
