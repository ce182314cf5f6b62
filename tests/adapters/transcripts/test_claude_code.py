import json
from typing import Any

import pytest
from tests.adapters.transcripts.reading import (
    asked,
    events_of,
    said_finally,
    sample,
    spent,
    steps,
)

from custosd.adapters.transcripts.claude_code import FORMAT, MAX_OWNERS, ClaudeState
from custosd.adapters.transcripts.format import GarbledRecord
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
    StepKind,
    Unread,
    Usage,
    Waiting,
)

EVENTS = events_of(FORMAT, sample("claude-code.jsonl"))


def record(kind: str, **fields: Any) -> str:
    head = {
        "isSidechain": False,
        "sessionId": "s",
        "cwd": "/w",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    return json.dumps({**head, "type": kind, **fields})


def user(content: Any, **fields: Any) -> str:
    return record("user", message={"role": "user", "content": content}, **fields)


def assistant(*blocks: Any, ident: str = "m", stop: str | None = None, **fields: Any) -> str:
    message = {"id": ident, "role": "assistant", "content": list(blocks), "stop_reason": stop}
    return record("assistant", message=message, **fields)


def use(ident: str, name: str = "Bash", **args: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": ident, "name": name, "input": args}


def answer(ident: str, content: Any = "ok", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": ident, "content": content, **fields}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def read(*lines: str, settled: bool = True) -> list[Any]:
    return events_of(FORMAT, "\n".join(lines).encode(), settled=settled)


def test_people_are_heard_and_the_program_is_not() -> None:
    assert asked(EVENTS) == [
        "The total is wrong for empty carts. Do not touch the tests.",
        "No notes please. Are you done?",
    ]


def test_each_call_becomes_a_step_with_its_answer() -> None:
    reading, testing, editing, delegating, rejected = steps(EVENTS, "")
    assert reading.kind is StepKind.READ
    assert reading.files == ("/home/ann/shop/cart.py",)
    assert reading.thought is not None
    assert reading.thought.excerpt == "I will look at the cart first."
    assert (testing.kind, testing.result, testing.error, testing.exit_code) == (
        StepKind.TEST,
        Result.ERROR,
        ErrorClass.TEST_FAILURE,
        1,
    )
    assert (editing.result, editing.changes_state) == (Result.OK, True)
    assert [(e.path, e.first_line, e.last_line) for e in editing.edits] == [
        ("/home/ann/shop/cart.py", 2, 2)
    ]
    assert delegating.kind is StepKind.DELEGATE
    assert (rejected.result, rejected.edits, rejected.changes_state) == (Result.REJECTED, (), False)
    assert not [e for e in EVENTS if isinstance(e, Unread)]


def test_a_sub_agent_is_a_thread_of_its_own_with_a_goal_and_an_end() -> None:
    assert asked(EVENTS, "s1") == ["Write the change log."]
    (writing,) = steps(EVENTS, "s1")
    assert [(e.path, e.first_line, e.last_line, e.created) for e in writing.edits] == [
        ("/home/ann/shop/CHANGES", 1, 2, True)
    ]
    (end,) = [e for e in EVENTS if isinstance(e, Ended)]
    assert (end.thread, end.end) == ("s1", RunEnd.FINISHED)
    assert {e.session for e in EVENTS if isinstance(e, Opened)} == {"5e55"}


def test_a_message_in_several_records_is_paid_for_once_and_in_full() -> None:
    assert spent(EVENTS, "") == Usage(1104 + 1106 + 6 + 6 + 6, 80 + 40 + 10 + 10 + 12, 1000 + 1100)
    assert spent(EVENTS, "s1") == Usage(2, 10)


def test_an_interruption_ends_the_open_calls_and_leaves_the_agent_waiting() -> None:
    events = read(
        user("go"),
        assistant(use("t", command="sleep 9")),
        user([words("[Request interrupted by user]")]),
    )
    assert [s.result for s in steps(events)] == [Result.INTERRUPTED]
    assert [e.on for e in events if isinstance(e, Waiting)] == ["human"]


def test_a_compaction_is_told_once_and_its_summary_is_nobodys_wish() -> None:
    assert len([e for e in EVENTS if isinstance(e, Compacted)]) == 1
    summary = user("This session is being continued", isCompactSummary=True)
    assert [type(e) for e in read(user("go"), summary)] == [Opened, Asked, Compacted]


def test_the_last_text_is_final_where_the_record_says_so() -> None:
    assert said_finally(EVENTS) == ["Yes, the total is fixed."]


def test_a_text_without_stop_reason_is_final_once_nothing_more_comes() -> None:
    lines = [user("go"), assistant(words("Done."))]
    assert said_finally(read(*lines, settled=False)) == []
    assert said_finally(read(*lines)) == ["Done."]
    after = record("system", subtype="turn_duration")
    assert said_finally(read(*lines, after, settled=False)) == ["Done."]
    assert said_finally(read(*lines, assistant(use("t", command="ls")))) == []


def test_a_slash_command_asks_with_what_it_expands_to() -> None:
    command = user("<command-message>fix</command-message><command-name>/fix</command-name>"
                   "<command-args>the cart</command-args>")  # fmt: skip
    assert asked(read(command, user([words("Fix what is broken.")], isMeta=True))) == [
        "/fix the cart\n\nFix what is broken."
    ]
    assert asked(read(command, assistant(words("On it.")))) == ["/fix the cart"]
    stdout = user("<local-command-stdout>cleared</local-command-stdout>")
    assert asked(read(command, stdout, assistant(words("Hello.")))) == []


def test_reminders_are_cut_out_of_what_a_person_says() -> None:
    said = "<system-reminder>Be nice.</system-reminder>\nFix it."
    assert asked(read(user([words(said)]))) == ["Fix it."]


@pytest.mark.parametrize(
    ("content", "extra", "double", "result", "exit_code"),
    [
        ("ok", {}, {"stdout": "ok", "interrupted": False}, Result.OK, 0),
        ("bad", {"is_error": True}, "Error: bad", Result.ERROR, None),
        ("Exit code 2\nbad", {"is_error": True}, None, Result.ERROR, 2),
        ("<tool_use_error>No</tool_use_error>", {}, None, Result.ERROR, None),
        ("part", {}, {"stdout": "part", "interrupted": True}, Result.INTERRUPTED, None),
        ("ok", {}, {"interrupted": False, "backgroundTaskId": "b1"}, Result.OK, None),
        ([{"type": "text", "text": "a"}, {"type": "image"}], {}, 7, Result.OK, None),
    ],
)
def test_how_a_command_ended(
    content: Any, extra: dict[str, Any], double: Any, result: Result, exit_code: int | None
) -> None:
    lines = [assistant(use("t", command="make"))]
    lines.append(user([answer("t", content, **extra)], toolUseResult=double))
    (step,) = steps(read(*lines))
    assert (step.result, step.exit_code) == (result, exit_code)


def test_a_question_waits_for_a_person() -> None:
    events = read(assistant(use("t", "AskUserQuestion", questions=[])), settled=False)
    assert [e.on for e in events if isinstance(e, Waiting)] == ["human"]
    assert [s.kind for s in steps(read(assistant(use("t", "ExitPlanMode", plan="p"))))] == [
        StepKind.ASK
    ]


@pytest.mark.parametrize(
    ("said", "on"),
    [
        ("Claude AI usage limit reached|1767600000", "rate_limit"),
        ("API Error: 529 overloaded_error", "rate_limit"),
        ("Invalid API key · Please run /login", "human"),
    ],
)
def test_a_model_that_cannot_be_reached_is_waited_for(said: str, on: str) -> None:
    events = read(user("go"), assistant(words(said), isApiErrorMessage=True))
    assert [e.on for e in events if isinstance(e, Waiting)] == [on]
    assert said_finally(events) == []


def test_parallel_sub_agents_are_told_apart_by_their_chains() -> None:
    side = {"isSidechain": True}
    goals = [user(f"goal {n}", uuid=f"{n}0", parentUuid=None, **side) for n in "ab"]
    calls = [
        assistant(use(f"t{n}", command="ls"), ident=n, uuid=f"{n}1", parentUuid=f"{n}0", **side)
        for n in "ba"
    ]
    answers = [user([answer(f"t{n}")], uuid=f"{n}2", parentUuid=f"{n}1", **side) for n in "ab"]
    events = read(*goals, *calls, *answers)
    assert [(e.thread, e.step.key) for e in events if isinstance(e, Acted)] == [
        ("a0", "ta"),
        ("b0", "tb"),
    ]
    assert asked(events, "a0") == ["goal a"]


def test_a_side_chain_whose_parent_is_forgotten_goes_on_and_is_counted() -> None:
    state, side = ClaudeState(), {"isSidechain": True}
    FORMAT.read(user("goal", uuid="u0", parentUuid=None, **side), state)
    for n in range(1, MAX_OWNERS + 5):
        FORMAT.read(assistant(words("x"), uuid=f"u{n}", parentUuid=f"u{n - 1}", **side), state)
    assert len(state.owners) == MAX_OWNERS
    late = assistant(use("t", command="ls"), uuid="z", parentUuid="u0", isSidechain=True)
    events = FORMAT.read(late, state)
    assert Unread("claude-code:orphan") in events
    assert state.calls.waiting["t"].thread == "u0"


def test_a_sub_agent_with_a_file_of_its_own_is_named_by_its_id() -> None:
    side = {"isSidechain": True, "agentId": "ab12"}
    events = read(
        user("Look.", uuid="1", parentUuid=None, **side),
        assistant(words("Found."), stop="end_turn", uuid="2", parentUuid="1", **side),
    )
    assert [(e.thread, e.session) for e in events if isinstance(e, Opened)] == [("ab12", "s")]
    assert [(e.thread, e.claim) for e in events if isinstance(e, Ended)] == [("ab12", "Found.")]


def test_a_run_without_a_terminal_is_read_from_its_stream() -> None:
    events = events_of(FORMAT, sample("claude-code-stream.jsonl"))
    assert [(e.thread, e.end) for e in events if isinstance(e, Ended)] == [
        ("t1", RunEnd.FINISHED),
        ("", RunEnd.FINISHED),
    ]
    assert [s.key for s in steps(events, "t1")] == ["t2"]
    assert spent(events) == Usage(32, 12, 0, 0.25)


def test_calls_without_ids_are_answered_in_order() -> None:
    call = {"type": "tool_use", "name": "Bash", "input": {"command": "ls"}}
    reply = {"type": "tool_result", "content": "a"}
    events = read(
        assistant(call, call), user([reply]), user([{**reply, "content": "b"}], isMeta=True)
    )
    assert [(s.key, s.observation.excerpt) for s in steps(events)] == [
        ("Bash#1", "a"),
        ("Bash#2", "b"),
    ]


def test_what_is_unknown_is_counted_by_its_name_and_never_quoted() -> None:
    assert FORMAT.read(record("brand-new"), ClaudeState()) == [Unread("claude-code:brand-new")]
    assert FORMAT.read(record("agent text\n!"), ClaudeState()) == [Unread("claude-code:unnamed")]
    assert FORMAT.read("[1]", ClaudeState()) == [Unread("claude-code:record")]


def test_half_a_surrogate_pair_costs_a_character_and_not_the_record() -> None:
    line = user("PLACE").replace("PLACE", 'cut \\ud83d here", "n": NaN, "big": 1e999, "x": "')
    (text,) = asked(read(line))
    assert text == "cut \ufffd here"


@pytest.mark.parametrize("line", ["{", "nul", '{"a":', "[" * 100_000, '{"type":"user"}}'])
def test_what_is_no_json_is_garbled(line: str) -> None:
    state = ClaudeState()
    with pytest.raises(GarbledRecord):
        FORMAT.read(line, state)
    assert state == ClaudeState()


def test_calls_that_pile_up_are_let_go_as_unanswered() -> None:
    events = read(*(assistant(use(f"t{i}", command="ls")) for i in range(300)), settled=False)
    assert len(steps(events)) == 300 - 256
    assert {s.result for s in steps(events)} == {Result.UNANSWERED}


def test_long_speech_is_kept_bounded() -> None:
    events = read(user("x" * 1_000_000), assistant(words("y" * 1_000_000)))
    assert max(len(e.text) for e in events if isinstance(e, Asked | Said)) <= 20_001
