"""Wherever text leaves or is kept, a secret that came so far goes no further.

What transcripts bring is cleared at their door, end to end; see `end_to_end/test_secrets.py`.
These are the other ways, and each door by itself.
"""

import io
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog
import trio

from custosd.adapters.beats.reading import PresentedBeat, read_beats
from custosd.adapters.control.handover import as_form, write_hand_over
from custosd.adapters.control_socket import _encoded_answer
from custosd.adapters.notify.notices import notice_json
from custosd.adapters.transcripts.clearing import cleared, cleared_state
from custosd.adapters.transcripts.registry import format_named
from custosd.api.acts import ActsEndpoint
from custosd.core.acts import ActAnswer, ActOutcome
from custosd.core.agents import AgentId
from custosd.core.effects import text_of
from custosd.core.errors import StoreUnavailable
from custosd.core.tokens import Token, hash_of, presented
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import (
    Acted,
    Asked,
    EditRange,
    Ended,
    Result,
    RunEnd,
    Said,
    Spent,
    Step,
    StepKind,
    Usage,
)
from custosd.logs import configure_logging
from custosd.ports import HandOver, Notice

SECRET = "ghp_" + "Zq7Lw2Xc9Vb4Nm1Kj6Hg3Fd8Sa5Po0Iu2Yt7"
LOGIN = "postgres://ann:hunter22x@db.example/shop"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_line_holds_no_secret_whoever_wrote_it(form: Any) -> None:
    stream = io.StringIO()
    configure_logging(form, "info", stream=stream)
    try:
        log = structlog.get_logger()
        nested = {"a": [SECRET, {SECRET: 1}]}
        log.warning("store.lost", error=f"no answer from {LOGIN}", nested=nested)
        log.error("service.failed", exc_info=StoreUnavailable(f"no answer from {LOGIN}"))
        log.info("agent.seen", path=f"/x/{SECRET}/" + "y" * 9_000 + SECRET)
        log.info("agent.seen", path="y" * (8_192 - 10) + SECRET)
        log.info("agent.seen", hidden=SECRET[:9] + "\x00" + SECRET[9:])
        logging.getLogger("somebody").warning("GET %s", LOGIN)
    finally:
        structlog.reset_defaults()
    text = stream.getvalue()
    assert text.count("\n") >= 6
    assert "hunter22x" not in text
    assert "Zq7Lw2Xc" not in text
    assert text.count("[redacted ") >= 6


def test_digests_and_identifiers_stay_in_the_log() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream=stream)
    fields = {
        "text_sha256": "9f86d081884c7d65", "run": "3f2b8c1e-9d4a-4c6b-8e2f-1a7d5b9c0e3f",
        "input_tokens": 12_345_678, "token": "9f86d081884c",
    }  # fmt: skip
    try:
        structlog.get_logger().info("model.called", **fields)
    finally:
        structlog.reset_defaults()
    line = json.loads(stream.getvalue())
    assert {name: line[name] for name in fields} == fields


def test_a_notice_holds_no_secret() -> None:
    notice = Notice("c", "k", "a", f"the database is away: {LOGIN}", resolved=False, at_utc=NOW)
    assert json.loads(notice_json(notice))["text"] == (
        "the database is away: postgres://ann:[redacted login in a URL]@db.example/shop"
    )


async def test_what_is_handed_over_holds_no_secret(tmp_path: Path) -> None:
    texts = (f"used {SECRET}", f"deploy with {SECRET}", "t1", (f"never write {SECRET}",))
    hand_over = HandOver(AgentId("a"), 1, "crash", *texts)
    await write_hand_over(tmp_path, "r-1", hand_over)
    for data in ((tmp_path / "a/handover.json").read_text(), json.dumps(as_form(hand_over))):
        assert "Zq7Lw2Xc" not in data
        assert data.count("[redacted github token]") == 3


def test_an_answer_at_the_control_socket_holds_no_secret() -> None:
    answer = ActAnswer(ActOutcome.FAILED, f"the database did not take it: {LOGIN}")
    assert b"hunter22x" not in _encoded_answer(answer)


async def test_an_answer_over_http_holds_no_secret() -> None:
    class Door:
        async def perform(self, request: object) -> ActAnswer:
            await trio.lowlevel.checkpoint()
            return ActAnswer(ActOutcome.FAILED, f"the database did not take it: {LOGIN}")

    class Bodies:
        def body_of(self, request: object) -> "Bodies":
            return self

        async def __aenter__(self) -> bytes:
            await trio.lowlevel.checkpoint()
            return b'{"act": "estop"}'

        async def __aexit__(self, *_: object) -> None:
            await trio.lowlevel.checkpoint()

    token = Token("t1", hash_of("s"), NOW, "ann", "", frozenset({"*"}))
    endpoint = ActsEndpoint(Door(), lambda: {"t1": token}, Bodies())  # type: ignore[arg-type]
    request: Any = SimpleNamespace(headers={"authorization": f"Bearer {presented('t1', 's')}"})
    answer = await endpoint.post(request)
    assert b"the database did not take it" in answer.body
    assert b"hunter22x" not in answer.body


def test_the_task_of_a_beat_is_kept_without_secrets() -> None:
    beat = {"agent": "a", "epoch": 1, "seq": 1, "task": f"deploy {SECRET}"}
    (read,) = read_beats(json.dumps(beat).encode())
    assert isinstance(read, PresentedBeat)
    assert read.beat.task == "deploy [redacted github token]"


def step(kind: StepKind, action: str, **fields: Any) -> Acted:
    made = Step("s1", kind, "shell", "cat", text_of(action), text_of("out"), Result.OK)
    return Acted("", replace(made, **fields))


def test_nothing_that_a_trajectory_keeps_of_a_transcript_holds_a_secret() -> None:
    fold = Trajectory()
    events = [
        Asked("", f"Deploy with {SECRET}. Never write to src/{SECRET}.py."),
        Said("", f"I have {SECRET}"),
        step(StepKind.READ, f"cat {SECRET}", files=(f"src/{SECRET}.py",)),
        step(StepKind.EDIT, "write", edits=(EditRange(f"src/{SECRET}.py"),), verb=SECRET),
        *[step(StepKind.RUN, "x", verb=SECRET)] * 9,
        step(StepKind.SUBMIT, f"the key is {SECRET}"),
        Ended("", RunEnd.FINISHED, f"done with {SECRET}"),
    ]
    data = b""
    for event in cleared(events):
        fold.advance(event)
        data = msgspec.json.encode(fold) + msgspec.json.encode(fold.digest())
        assert b"Zq7Lw2Xc" not in data
    assert b"[redacted github token]" in data


def test_what_holds_no_secret_is_the_same_object() -> None:
    events = (Asked("", "Fix it."), Spent("", Usage(1)), step(StepKind.RUN, f"echo {SECRET}"))
    assert all(one is other for one, other in zip(cleared(events), events, strict=True))


@pytest.mark.parametrize("name", ["claude-code", "codex"])
def test_what_a_format_remembers_holds_no_secret_and_is_read_on_as_before(name: str) -> None:
    """A call without an answer waits in the stored cursor."""
    fmt: Any = format_named(name)
    command = f"export GITHUB_TOKEN={SECRET}; ls"
    if name == "codex":
        payload = {"type": "function_call", "name": "shell", "call_id": "k1",
                   "arguments": json.dumps({"command": ["bash", "-lc", command]})}  # fmt: skip
        answer = {"type": "function_call_output", "call_id": "k1", "output": "a.py"}
        lines = [{"timestamp": "2026-02-01T10:00:00Z", "type": "response_item", "payload": one}
                 for one in (payload, answer)]  # fmt: skip
    else:
        call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": command}}
        told = {"type": "tool_result", "tool_use_id": "t1", "content": "a.py"}
        lines = [
            {"sessionId": "s", "type": kind, "uuid": kind, "timestamp": "2026-02-01T10:00:00Z",
             "message": {"role": kind, "content": [one], "id": "m", "model": "x"}}
            for kind, one in (("assistant", call), ("user", told))
        ]  # fmt: skip
    state = fmt.state()
    fmt.read(json.dumps(lines[0]), state)
    stored = msgspec.msgpack.encode(state)
    assert b"Zq7Lw2Xc" in stored
    clean = cleared_state(stored)
    assert b"Zq7Lw2Xc" not in clean
    event, as_before = (
        next(e for e in fmt.read(json.dumps(lines[1]), one) if isinstance(e, Acted))
        for one in (fmt.stored.decode(clean), state)
    )
    assert event.step.result is as_before.step.result
    assert event.step.action.digest == as_before.step.action.digest
    assert cleared_state(clean) == clean
