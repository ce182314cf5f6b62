"""A server that speaks both protocols over real sockets, and misbehaves on command.

Shares no code with the clients: it is written from the providers' published descriptions.
"""

import json
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import h11
import trio

VERDICT = {
    "standing": "progressing",
    "phase": "implementing",
    "alignment": 0.8,
    "confidence": 0.7,
    "needs_steering": False,
    "steering_kind": None,
    "steering_reason": None,
    "message": "",
    "summary": "Writes the parser.",
    "focus": "parser",
    "goal": "Fix the parser",
    "evidence": [],
}


@dataclass(frozen=True)
class Well:
    """Answer as a provider does; `text` is what the model says."""

    text: str = json.dumps(VERDICT)
    stop: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Status:
    """An error status, with the provider's words for it."""

    status: int
    word: str = "api_error"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


@dataclass(frozen=True)
class Cut:
    """Close in the middle: of a stream after so many events, of a body after so many bytes."""

    after: int


@dataclass(frozen=True)
class Raw:
    """Status 200 and this body, whatever it is."""

    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Huge:
    """A body without end."""


@dataclass(frozen=True)
class Slow:
    """Answer well, one byte each `pause_s`."""

    pause_s: float


@dataclass(frozen=True)
class Hang:
    """Take the request and say nothing."""


@dataclass(frozen=True)
class Stuck:
    """Stop in the middle, as `Cut` does, and keep the connection open."""

    after: int


@dataclass(frozen=True)
class Linger:
    """Stream all of an answer, and end the stream so much later; by default never."""

    pause_s: float = inf


@dataclass(frozen=True)
class Together:
    """Answer well once so many are asking at the same time."""

    number: int


@dataclass(frozen=True)
class Disconnect:
    """Close without an answer."""


@dataclass(frozen=True)
class Stale:
    """Answer well, then close the connection without having said so."""


@dataclass(frozen=True)
class Garbage:
    """Bytes that are no HTTP."""


@dataclass(frozen=True)
class StreamError:
    """An error event in the middle of a stream."""

    word: str


Fault = (
    Well | Status | Cut | Stuck | Linger | Together | Raw | Huge | Slow | Hang | Disconnect
    | Stale | Garbage | StreamError
)  # fmt: skip


@dataclass
class FaultServer:
    """Does what `faults` says, one a request, then `always`."""

    url: str = ""
    always: Fault | Callable[[dict[str, Any]], Fault] = field(default_factory=Well)
    faults: list[Fault] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    waiting: int = 0
    together: trio.Event = field(default_factory=trio.Event)
    opened: int = 0
    open: int = 0
    most_open: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.opened += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, h11.ProtocolError):
            pass
        finally:
            self.open -= 1
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            request, body = await self._read(connection, stream)
            if request is None:
                return
            self.headers.append({k.decode(): v.decode() for k, v in request.headers})
            asked = json.loads(body) if body else {}
            self.requests.append(asked)
            self.bodies.append(body)
            fault = self.faults.pop(0) if self.faults else self.always
            if callable(fault):
                fault = fault(asked)
            if not await self._answer(stream, request.target.decode(), asked, fault):
                return
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()

    async def _read(
        self, connection: h11.Connection, stream: trio.SocketStream
    ) -> tuple[h11.Request | None, bytes]:
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(65_536)
                if not data and request is None:
                    return None, b""
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return request, body
            else:
                return None, b""

    async def _answer(
        self, stream: trio.SocketStream, path: str, asked: dict[str, Any], fault: Fault
    ) -> bool:
        """Answer; True if the connection stays open."""
        anthropic = path.endswith("/v1/messages")
        if not anthropic and not path.endswith("/chat/completions"):
            fault = Status(404, "not_found_error")
        if isinstance(fault, Together):
            self.waiting += 1
            if self.waiting >= fault.number:
                self.together.set()
            await self.together.wait()
            fault = Well()
        match fault:
            case Well() | Stale() | Slow() | Cut() | Stuck() | StreamError() | Linger():
                return await _speak(stream, asked, fault, anthropic=anthropic)
            case Status():
                error = {"type": fault.word, "message": "no", "code": fault.word}
                body = json.dumps({"type": "error", "error": error}).encode()
                body = body if fault.body is None else fault.body
                head = _head(fault.status, "application/json", len(body), fault.headers)
                await stream.send_all(head + body)
                return True
            case Raw():
                head = _head(200, fault.kind, len(fault.body), fault.headers)
                await stream.send_all(head + fault.body)
                return True
            case Huge():
                await stream.send_all(_head(200, "application/json", 1 << 40) + b'{"a": "')
                while True:
                    await stream.send_all(b"x" * 65_536)
            case Hang():
                await stream.receive_some(1)
            case Garbage():
                await stream.send_all(b"\x00\x01 this is no HTTP\r\n\r\n")
            case Disconnect() | Together():
                pass
        return False


async def _speak(
    stream: trio.SocketStream, asked: dict[str, Any], fault: Fault, *, anthropic: bool
) -> bool:
    """Answer well, as far as the fault lets it; True if the connection stays open."""
    streamed = bool(asked.get("stream"))
    well = fault if isinstance(fault, Well) else Well()
    kind = "text/event-stream" if streamed else "application/json"
    whole = _events if streamed else _whole
    parts = whole(asked, well, fault, anthropic=anthropic)
    body = b"".join(parts)
    head = _head(200, kind, len(body), well.headers)
    match fault:
        case Cut() | Stuck():
            kept = b"".join(parts[: fault.after]) if streamed else body[: fault.after]
            await stream.send_all(head + kept)
            if isinstance(fault, Stuck):
                await stream.receive_some(1)
            return False
        case Linger():
            lines = ["HTTP/1.1 200 X", "content-type: Text/Event-Stream; charset=utf-8",
                     "transfer-encoding: chunked", "", f"{len(body):x}"]  # fmt: skip
            await stream.send_all("\r\n".join([*lines, body.decode(), ""]).encode())
            with trio.move_on_after(fault.pause_s):
                await stream.receive_some(1)
                return False
            await stream.send_all(b"0\r\n\r\n")
            return True
        case Slow():
            await stream.send_all(head)
            for byte in body:
                await trio.sleep(fault.pause_s)
                await stream.send_all(bytes([byte]))
            return True
        case _:
            await stream.send_all(head + body)
            return not isinstance(fault, Stale)


@asynccontextmanager
async def fault_server() -> AsyncGenerator[FaultServer]:
    """A server on a free port of this machine, for the block."""
    server = FaultServer()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(  # noqa: ASYNC105 - the nursery awaits it
                server.serve, 0, host="127.0.0.1", task_status=task_status
            )
        )
        port = listeners[0].socket.getsockname()[1]
        server.url = f"http://127.0.0.1:{port}"
        yield server
        nursery.cancel_scope.cancel()


@contextmanager
def fault_server_apart() -> Iterator[FaultServer]:
    """The same on a thread of its own, for who blocks; stopped when the block is left."""
    ready: queue.Queue[tuple[FaultServer, trio.lowlevel.TrioToken, trio.Event]] = queue.Queue()

    async def serve() -> None:
        async with fault_server() as server:
            over = trio.Event()
            ready.put((server, trio.lowlevel.current_trio_token(), over))
            await over.wait()

    thread = threading.Thread(target=trio.run, args=[serve])
    thread.start()
    server, token, over = ready.get(timeout=10)
    try:
        yield server
    finally:
        token.run_sync_soon(over.set)
        thread.join()


def _head(status: int, kind: str, length: int, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _whole(asked: dict[str, Any], well: Well, _fault: Fault, *, anthropic: bool) -> list[bytes]:
    if anthropic:
        answer: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": asked.get("model", "") + "-20260101",
            "content": [_content(asked, well)],
            "stop_reason": well.stop or ("tool_use" if asked.get("tools") else "end_turn"),
            "stop_sequence": None,
            "usage": {
                "input_tokens": 1_000,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 200,
                "output_tokens": 100,
            },
        }
    else:
        refusal = "I cannot" if well.stop == "refusal" else None
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": asked.get("model", "") + "-20260101",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": well.text, "refusal": refusal},
                    "finish_reason": "stop" if refusal else well.stop or "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 1_200,
                "completion_tokens": 100,
                "total_tokens": 1_300,
                "prompt_tokens_details": {"cached_tokens": 200},
            },
        }
    return [json.dumps(answer).encode()]


def _content(asked: dict[str, Any], well: Well) -> dict[str, Any]:
    if not asked.get("tools"):
        return {"type": "text", "text": well.text}
    try:
        given = json.loads(well.text)
    except (ValueError, RecursionError):
        return {"type": "text", "text": well.text}
    if not isinstance(given, dict):
        return {"type": "text", "text": well.text}
    return {"type": "tool_use", "id": "toolu_1", "name": asked["tools"][0]["name"], "input": given}


def _events(asked: dict[str, Any], well: Well, fault: Fault, *, anthropic: bool) -> list[bytes]:
    third = max(1, len(well.text) // 3)
    pieces = [well.text[at : at + third] for at in range(0, len(well.text), third)]
    error = (
        {"error": {"type": fault.word, "code": fault.word, "message": "no"}}
        if isinstance(fault, StreamError)
        else None
    )
    return (
        _anthropic_events(asked, well, pieces, error)
        if anthropic
        else _openai_events(asked, well, pieces, error)
    )


def _anthropic_events(
    asked: dict[str, Any], well: Well, pieces: list[str], error: dict[str, Any] | None
) -> list[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": asked.get("model", "") + "-20260101",
        "stop_reason": None,
        "usage": {"input_tokens": 1_000, "cache_read_input_tokens": 200, "output_tokens": 1},
    }
    tools = asked.get("tools")
    block = (
        {"type": "tool_use", "id": "toolu_1", "name": tools[0]["name"], "input": {}}
        if tools
        else {"type": "text", "text": ""}
    )
    events = [
        event("message_start", message=message),
        event("content_block_start", index=0, content_block=block),
        event("ping"),
    ]
    for piece in pieces:
        delta = (
            {"type": "input_json_delta", "partial_json": piece}
            if tools
            else {"type": "text_delta", "text": piece}
        )
        events.append(event("content_block_delta", index=0, delta=delta))
    if error is not None:
        return [*events, event("error", **error)]
    reason = well.stop or ("tool_use" if tools else "end_turn")
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        *events,
        event("content_block_stop", index=0),
        event("message_delta", delta=delta, usage={"output_tokens": 100}),
        event("message_stop"),
    ]


def _openai_events(
    asked: dict[str, Any], well: Well, pieces: list[str], error: dict[str, Any] | None
) -> list[bytes]:
    def chunk(**fields: Any) -> bytes:
        made = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": asked.get("model", "") + "-20260101",
        }
        return f"data: {json.dumps({**made, **fields})}\n\n".encode()

    def choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": reason}

    refused = well.stop == "refusal"
    events = [chunk(choices=[choice({"role": "assistant", "content": ""})])]
    if refused:
        events.append(chunk(choices=[choice({"refusal": "I cannot"})]))
    events += [chunk(choices=[choice({"content": piece})]) for piece in pieces]
    if error is not None:
        return [*events, f"data: {json.dumps(error)}\n\n".encode()]
    usage = {
        "prompt_tokens": 1_200,
        "completion_tokens": 100,
        "total_tokens": 1_300,
        "prompt_tokens_details": {"cached_tokens": 200},
    }
    return [
        *events,
        chunk(choices=[choice({}, "stop" if refused else well.stop or "stop")]),
        chunk(choices=[], usage=usage),
        b"data: [DONE]\n\n",
    ]
