"""A model behind HTTP, where its answer fails halfway, or its key does: nothing paid is lost."""

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from tests.adapters.models.fault_server import (
    VERDICT,
    Cut,
    Fault,
    FaultServer,
    Linger,
    Raw,
    Status,
    StreamError,
    Stuck,
    Well,
    fault_server,
)

from custosd.adapters.http_client import Connections, HttpLimits, open_http
from custosd.adapters.models import wire
from custosd.adapters.models.anthropic import AnthropicProtocol
from custosd.adapters.models.http import HttpModel, HttpWire
from custosd.adapters.models.model import ModelError, ModelErrorKind, Prices, Prompt, Turn
from custosd.adapters.models.openai import OpenAiProtocol
from custosd.adapters.models.wire import EventReader
from custosd.config.secret import Secret

K = ModelErrorKind
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PROMPT = Prompt("Judge.", (Turn("user", "data"),), {"type": "object"}, "verdict", "n0nce")
PROTOCOLS = {"anthropic": AnthropicProtocol, "openai": OpenAiProtocol}
PATHS = {"anthropic": "", "openai": "/v1"}

both = pytest.mark.parametrize("kind", ["anthropic", "openai"])


@asynccontextmanager
async def asked(
    kind: str, fault: Fault, *, stream: bool = True, key: Path | None = None, timeout_s: float = 5.0
) -> AsyncGenerator[tuple[HttpModel, FaultServer, Connections]]:
    protocol = PROTOCOLS[kind]("judge-1", Prices(3.0, 15.0, 0.3))
    async with fault_server() as server, open_http(HttpLimits(largest_body_bytes=200_000)) as http:
        server.always = fault
        secret = None if key is None else Secret("model.key_file", key)
        wire = HttpWire(http, server.url + PATHS[kind], protocol.secret_headers, secret, timeout_s)
        model = HttpModel("judge", protocol, wire, lambda: NOW, timeout_s, stream)
        yield model, server, http.connections


async def failure(kind: str, fault: Fault, timeout_s: float = 5.0) -> ModelError:
    async with asked(kind, fault, timeout_s=timeout_s) as (model, server, _):
        with pytest.raises(ModelError) as caught:
            await model.ask(PROMPT)
        assert len(server.requests) == 1, "who asks once asks once"
        return caught.value


TOLD_FIRST = pytest.approx((1_000 * 3 + 200 * 0.3 + 15) / 1e6)
"""What the first event of Anthropic's stream tells: the question, and one token of the answer."""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Cut(4), K.CUT_OFF),
        (Stuck(4), K.TIMEOUT),
        (StreamError("overloaded_error"), K.OVERLOADED),
        (StreamError("made_up"), K.UNAVAILABLE),
    ],
    ids=repr,
)
async def test_what_a_stream_told_of_its_cost_before_it_failed_is_in_the_error(
    fault: Fault, expected: ModelErrorKind
) -> None:
    error = await failure("anthropic", fault, timeout_s=0.3)
    assert (error.kind, error.usage.input_tokens) == (expected, 1_200)
    assert error.usage.cost_usd == TOLD_FIRST


def events(*data: str, name: str = "message") -> Raw:
    body = "".join(f"event: {name}\ndata: {each}\n\n" for each in data)
    return Raw(body.encode(), "text/event-stream")


START = json.dumps({"type": "message_start", "message": {"usage": {"input_tokens": 70}}})


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("{", K.MALFORMED),
        ("[]", K.MALFORMED),
        ("\ufffe" * 9, K.MALFORMED),
        ("[" * 10_000, K.MALFORMED),
        ('"' + "x" * wire.LARGEST_EVENT_BYTES + '"', K.ANSWER_TOO_LARGE),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_a_malformed_event_is_an_error_with_what_was_told_before_it(
    second: str, expected: ModelErrorKind
) -> None:
    protocol = AnthropicProtocol("m")
    limits = HttpLimits(largest_body_bytes=4 * wire.LARGEST_EVENT_BYTES)
    async with fault_server() as server, open_http(limits) as http:
        server.always = events(START, second)
        asking = HttpWire(http, server.url, protocol.secret_headers)
        with pytest.raises(ModelError) as caught:
            await HttpModel("m", protocol, asking, lambda: NOW, 10.0, stream=True).ask(PROMPT)
    assert (caught.value.kind, caught.value.usage.input_tokens) == (expected, 70)


async def test_bytes_that_are_no_text_are_a_malformed_stream() -> None:
    raw = Raw(b"data: \xff\xfe\n\n", "text/event-stream")
    assert (await failure("openai", raw)).kind is K.MALFORMED


@both
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("after", [0, 1, 3])
async def test_silence_is_a_timeout_wherever_it_begins(
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
    after: int,
) -> None:
    async with asked(kind, Stuck(after), stream=stream, timeout_s=0.2) as (model, server, counts):
        with pytest.raises(ModelError) as caught:
            await model.ask(PROMPT)
        assert caught.value.kind is K.TIMEOUT
        server.always = Well()
        assert json.loads((await model.ask(PROMPT)).text) == VERDICT
        assert counts.in_use == 0


@both
async def test_an_answer_that_came_whole_is_one_though_its_stream_never_ends(kind: str) -> None:
    async with asked(kind, Linger(), timeout_s=30.0) as (model, _, counts):
        with trio.fail_after(5.0):
            reply = await model.ask(PROMPT)
        assert (json.loads(reply.text), reply.usage.input_tokens) == (VERDICT, 1_200)
        assert counts.in_use == 0


@both
async def test_an_answer_that_came_whole_is_one_though_its_connection_broke(kind: str) -> None:
    async with asked(kind, Well()) as (model, _, _):
        whole = await model.ask(PROMPT)
    # Of what OpenAI sends, all but the cost and the end; nothing of Anthropic's can be missed.
    fault = Cut(6) if kind == "openai" else Stuck(100)
    async with asked(kind, fault) as (model, _, _):
        assert (await model.ask(PROMPT)).text == whole.text


@both
@pytest.mark.parametrize("fault", [Well(), Linger(0.02)], ids=repr)
async def test_a_stream_that_ended_leaves_its_connection_to_the_next(
    kind: str, fault: Fault
) -> None:
    """Also where the end of the stream comes a little after the answer's."""
    async with asked(kind, fault) as (model, server, counts):
        for _ in range(5):
            await model.ask(PROMPT)
        assert (server.opened, counts.opened) == (1, 1)


@both
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"error": {"code": 429, "message": "slow down"}}, K.RATE_LIMITED),
        ({"error": {"code": "502", "message": "?"}}, K.UNAVAILABLE),
        ({"error": {"type": "overloaded_error"}}, K.OVERLOADED),
        ({"error": "broken"}, K.UNAVAILABLE),
        ({"error": {"message": "Prompt is too long: 1 > 0"}}, K.TOO_LARGE),
    ],
    ids=repr,
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_error_under_a_good_status_is_that_error(
    kind: str,
    said: dict[str, object],
    expected: ModelErrorKind,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    raw = events(json.dumps(said)) if stream else Raw(json.dumps(said).encode())
    assert (await failure(kind, raw)).kind is expected


@both
@pytest.mark.parametrize(
    ("status", "prose", "expected"),
    [
        (400, "prompt is too long: 250000 tokens > 200000 maximum", K.TOO_LARGE),
        (400, "This model's maximum context length is 8192 tokens", K.TOO_LARGE),
        (400, "Your credit balance is too low to access the API", K.UNAUTHORIZED),
        (400, "tools.0: no such field", K.BAD_REQUEST),
        (409, "conflict", K.UNAVAILABLE),
    ],
)
async def test_what_is_only_said_in_prose_is_understood_and_not_repeated(
    kind: str, status: int, prose: str, expected: ModelErrorKind
) -> None:
    said = {"error": {"type": "invalid_request_error", "code": None, "message": prose}}
    error = await failure(kind, Status(status, body=json.dumps(said).encode()))
    assert error.kind is expected
    assert prose not in str(error)


@both
@pytest.mark.parametrize("content_type", ["text/html", "", "application/octet-stream"])
async def test_a_page_in_place_of_an_answer_is_malformed(kind: str, content_type: str) -> None:
    error = await failure(kind, Raw(b"<html>Sign in to this network</html>", content_type))
    assert error.kind is K.MALFORMED


@both
async def test_json_is_read_where_a_stream_was_asked_for(kind: str) -> None:
    """Some services answer whole, whatever they were asked."""
    said: dict[str, object] = (
        {"type": "message", "content": [{"type": "text", "text": "{}"}], "stop_reason": "end_turn"}
        if kind == "anthropic"
        else {"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}
    )
    async with asked(kind, Raw(json.dumps(said).encode())) as (model, server, _):
        assert (await model.ask(PROMPT)).text == "{}"
        assert server.requests[0]["stream"] is True


async def test_of_two_uses_of_the_tool_the_first_is_the_answer() -> None:
    def delta(index: int, text: str) -> str:
        piece = {"type": "input_json_delta", "partial_json": text}
        return json.dumps({"type": "content_block_delta", "index": index, "delta": piece})

    fault = events(START, delta(0, '{"a"'), delta(1, '{"b": 2}'), delta(0, ": 1}"),
                   json.dumps({"type": "message_stop"}))  # fmt: skip
    async with asked("anthropic", fault) as (model, _, _):
        assert (await model.ask(PROMPT)).text == '{"a": 1}'


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("s3cr3t")
    file.chmod(0o600)
    return file


def _written(key: Path, data: bytes) -> None:
    key.write_bytes(data)


@both
@pytest.mark.parametrize("written", ["s3cr3t", "s3cr3t\n", "s3cr3t\r\n"], ids=repr)
async def test_a_line_end_behind_the_key_is_not_of_it(kind: str, key: Path, written: str) -> None:
    _written(key, written.encode())
    async with asked(kind, Well(), key=key) as (model, server, _):
        await model.ask(PROMPT)
        headers = server.headers[0]
    sent = headers["x-api-key" if kind == "anthropic" else "authorization"]
    assert sent.removeprefix("Bearer ") == "s3cr3t"


@pytest.mark.parametrize(
    "written",
    [b"", b"\n", b"s3cr3t\n\n", b"s3c\nr3t", b" s3cr3t", b"s3cr3t ", b"s3cr3\xc3\xa9", b"\xff",
     b"s3cr3t\x00", b"s3cr3t" * 100_000],
    ids=lambda written: repr(written)[:20],
)  # fmt: skip
async def test_a_key_that_no_header_may_have_is_told_and_not_sent(
    key: Path, written: bytes
) -> None:
    _written(key, written)
    async with asked("openai", Well(), key=key) as (model, server, _):
        with pytest.raises(ModelError) as caught:
            await model.ask(PROMPT)
        assert not server.requests
    assert caught.value.kind is K.UNAUTHORIZED
    assert str(key) in str(caught.value)
    assert "s3c" not in str(caught.value)


def spoil(key: Path, trouble: str) -> None:
    if trouble == "mode":
        key.chmod(0o604)
        return
    key.unlink()
    if trouble == "folder":
        key.mkdir()
    elif trouble == "pipe":
        os.mkfifo(key)


def mend(key: Path) -> None:
    if key.is_dir():
        key.rmdir()
    key.unlink(missing_ok=True)
    key.write_text("s3cr3t")
    key.chmod(0o600)


@pytest.mark.parametrize("trouble", ["missing", "mode", "folder", "pipe"])
async def test_a_key_file_that_cannot_be_trusted_is_told_and_read_again(
    key: Path, trouble: str
) -> None:
    spoil(key, trouble)
    async with asked("anthropic", Well(), key=key) as (model, server, _):
        with pytest.raises(ModelError) as caught:
            await model.ask(PROMPT)
        assert caught.value.kind is K.UNAUTHORIZED
        assert str(key) in str(caught.value)
        assert not server.requests
        mend(key)
        await model.ask(PROMPT)
        assert len(server.requests) == 1, "mended without a restart"


def test_a_long_line_that_comes_byte_by_byte_costs_its_length() -> None:
    """Each byte is looked at once: a million would else take minutes, and stop everything."""
    reader, size = EventReader(), 200_000
    for _ in range(size):
        assert not list(reader.feed(b"x"))
    assert len(reader._line_so_far) == size, "nothing was joined, nothing searched again"
    with pytest.raises(ModelError) as caught:
        list(reader.feed(b"x" * wire.LARGEST_EVENT_BYTES))
    assert caught.value.kind is K.ANSWER_TOO_LARGE
