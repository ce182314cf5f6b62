"""A server that answers each call after the time that the call asks for, and says how long it took.

    python tests/bench/latency_server.py        (prints its address, serves until stdin ends)

`POST /sleep/<microseconds>` answers 2 kB after so long; its header `x-server-us` is the time from
the whole request to the answer, by this server's own clock. `GET /connections` tells how many
connections made calls since it was asked last, and how many calls they made. A bare protocol on
uvloop, so that a client is compared with the least a server can cost.
"""

import asyncio
import json
import os
import socket
import sys
from asyncio import AbstractEventLoop, Transport
from typing import cast

import uvloop

BODY = b'{"completion": "' + b"x" * 2_000 + b'"}'
_END = b"\r\n\r\n"


class Counts:
    """What came in since it was asked last."""

    def __init__(self) -> None:
        self.connections = self.calls = 0

    def taken(self) -> bytes:
        told = json.dumps({"connections": self.connections, "calls": self.calls}).encode()
        self.connections = self.calls = 0
        return told


class Calls(asyncio.Protocol):
    """One connection; one call at a time, as HTTP/1.1 without pipelining."""

    def __init__(self, loop: AbstractEventLoop, counts: Counts) -> None:
        self._loop, self._counts = loop, counts
        self._read = b""
        self._called = False
        self._transport: Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its class.
        self._transport = cast("Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, rest = self._read.partition(_END)
        if not end:
            return
        length = 0
        for line in head.lower().split(b"\r\n")[1:]:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self._read = rest[length:]
        self._asked(head.split(b" ", 2)[1])

    def _asked(self, path: bytes) -> None:
        now = self._loop.time()
        if path == b"/connections":
            self._answer(now, self._counts.taken())
            return
        if not self._called:
            self._called = True
            self._counts.connections += 1
        self._counts.calls += 1
        delay_us = int(path.rpartition(b"/")[2])
        if delay_us:
            self._loop.call_later(delay_us / 1e6, self._answer, now, BODY)
        else:
            self._answer(now, BODY)

    def _answer(self, asked_at: float, body: bytes) -> None:
        if self._transport.is_closing():
            return
        took_us = int((self._loop.time() - asked_at) * 1e6)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-server-us: %d\r\n"
            b"content-length: %d\r\n\r\n%b" % (took_us, len(body), body)
        )


async def serve() -> None:
    loop, counts = asyncio.get_running_loop(), Counts()
    # As deep a queue as the system gives: a burst of connections is no matter of the server.
    server = await loop.create_server(
        lambda: Calls(loop, counts), "127.0.0.1", 0, backlog=socket.SOMAXCONN
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, os.read, sys.stdin.fileno(), 1)


if __name__ == "__main__":
    uvloop.run(serve())
