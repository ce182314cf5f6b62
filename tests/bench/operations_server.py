"""What stands for the far side in `bench_operations`: a database's distance, a model, a forge.

    python tests/bench/operations_server.py FOLDER SOCKET      (prints its address)

In FOLDER it listens as a PostgreSQL server would, and hands on to the one behind SOCKET, each
message later by as much as it was told: that is the way to the database. Over HTTP it answers
as a model, as one that compares two agents, and as GitHub, each after its own time. It serves
until its input ends.

`POST /control` with `{"database_s": 0.01, ...}` sets the times, and answers how often each was
asked since the last time: of the database, how often a client spoke after the server had.
"""

import asyncio
import json
import os
import re
import sys
from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

from tests.adapters.github_place import (  # noqa: E402 - after the path
    about_form,
    commit_form,
    issue_form,
    pull_form,
)

WORKS_A_PAGE = 10
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_END = b"\r\n\r\n"
_GOAL = re.compile(rb"Make (feature \d+) work")
_REPOSITORY = re.compile(r"/repos/([^/?]+/[^/?]+)(?:/(\w+))?")


@dataclass(slots=True)
class Far:
    """How far everything is, and how often it was asked."""

    delays_s: dict[str, float] = field(default_factory=dict[str, float])
    asked: Counter[str] = field(default_factory=Counter[str])

    def controlled(self, body: bytes) -> bytes:
        told = json.dumps(self.asked).encode()
        self.asked.clear()
        self.delays_s = json.loads(body or b"{}")
        return told


class Later:
    """Hands bytes on after a time, in their order."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.target: Transport | None = None
        self._loop = loop
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: TimerHandle | None = None

    def put(self, data: bytes, delay_s: float) -> None:
        self._waiting.append((self._loop.time() + delay_s, data))
        self.flush()

    def flush(self) -> None:
        if self.target is None:
            return
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            self.target.write(self._waiting.popleft()[1])
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._waiting[0][0], self.flush) if self._waiting else None


class Server(asyncio.Protocol):
    """The database's side of one connection."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.later.target = cast("Transport", transport)
        self._client.later.flush()

    def data_received(self, data: bytes) -> None:
        self._client.answered = True
        self._client.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.transport.close()


class Client(asyncio.Protocol):
    """The daemon's side of one connection."""

    transport: Transport

    def __init__(self, loop: AbstractEventLoop, far: Far, socket: str) -> None:
        self.later = Later(loop)
        self.answered = True
        self._loop, self._far, self._socket = loop, far, socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("Transport", transport)
        dialled = self._loop.create_unix_connection(lambda: Server(self), self._socket)
        self._dialling = self._loop.create_task(dialled)

    def data_received(self, data: bytes) -> None:
        if self.answered:
            self._far.asked["database"] += 1
            self.answered = False
        self.later.put(data, self._far.delays_s.get("database_s", 0.0))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.later.target is not None:
            self.later.target.close()


class Calls(asyncio.Protocol):
    """One HTTP connection; one call at a time."""

    def __init__(self, loop: AbstractEventLoop, far: Far) -> None:
        self._loop, self._far, self._read = loop, far, b""
        self._transport: Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(_END)
        found = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
        if not end or len(body) < int(found[1] if found else 0):
            return
        self._read = b""
        self._asked(head.split(b" ", 2)[1].decode(), body)

    def _asked(self, target: str, body: bytes) -> None:
        if target == "/control":
            self._answer(self._far.controlled(body))
            return
        if target.startswith("/repos/"):
            name, answer = "forge", json.dumps(_of_repository(target)).encode()
        elif target == "/pair":
            name, answer = "pair", b'{"same": false}'
        else:
            name, answer = "model", _verdict(body)
        self._far.asked[name] += 1
        self._loop.call_later(self._far.delays_s.get(f"{name}_s", 0.0), self._answer, answer)

    def _answer(self, body: bytes) -> None:
        if not self._transport.is_closing():
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            )
            self._transport.write(head % len(body) + body)


def _verdict(body: bytes) -> bytes:
    """A chat completion: a verdict that names the goal which it was asked about."""
    found = _GOAL.search(body)
    verdict: dict[str, Any] = {
        "standing": "progressing",
        "phase": "implementing",
        "alignment": 0.8,
        "confidence": 0.7,
        "needs_steering": False,
        "steering_kind": None,
        "steering_reason": None,
        "message": "",
        "summary": found[1].decode() if found else "",
        "focus": "",
        "goal": "",
        "evidence": [],
    }
    choice = {"message": {"role": "assistant", "content": json.dumps(verdict)}}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100}
    said = {"model": "m", "choices": [{**choice, "finish_reason": "stop"}], "usage": usage}
    return json.dumps(said).encode()


def _of_repository(target: str) -> Any:
    found = _REPOSITORY.match(target)
    assert found is not None, target
    numbers = range(1, WORKS_A_PAGE + 1)
    match found[2]:
        case "pulls":
            return [pull_form(number, number, merged=True) for number in numbers]
        case "issues":
            return [issue_form(100 + number, number) for number in numbers]
        case "commits":
            return [commit_form(f"{number:040x}", number) for number in numbers]
        case _:
            return about_form(found[1])


async def serve(folder: str, socket: str) -> None:
    loop, far = asyncio.get_running_loop(), Far()
    http = await loop.create_server(lambda: Calls(loop, far), "127.0.0.1", 0, backlog=512)
    listening = f"{folder}/{Path(socket).name}"
    await loop.create_unix_server(lambda: Client(loop, far, socket), listening, backlog=512)
    print(f"http://127.0.0.1:{http.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, os.read, sys.stdin.fileno(), 1)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:3]))
