"""Servers that do over real sockets what a test says, and count what comes in."""

import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from socket import AF_INET, IPPROTO_TCP, SO_LINGER, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any

import trio
import trio.testing

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True)
class Asked:
    """A request; `number` counts those of its connection, from 1."""

    number: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Asked, Stream], Awaitable[bool]]
"""Does something about a request; True if the connection is to stay open."""


def said(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An answer in bytes."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def saying(*pieces: bytes, stays: bool = True) -> Answer:
    """Always this; closed after it, or not."""

    async def answer(_asked: Asked, stream: Stream) -> bool:
        for piece in pieces:
            await stream.send_all(piece)
        return stays

    return answer


async def silent(_asked: Asked, stream: Stream) -> bool:
    """Nothing is said until the other side has gone."""
    await stream.receive_some(1)
    return False


def dripping(first: bytes, drop: bytes) -> Answer:
    """This, and then so much again and again, without an end."""

    async def answer(_asked: Asked, stream: Stream) -> bool:
        await stream.send_all(first)
        while True:
            await trio.sleep(0.005)
            await stream.send_all(drop)

    return answer


async def reset(stream: Stream) -> None:
    """Close it by a RST, and not by a FIN."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    stream.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
    await trio.lowlevel.checkpoint()


class Gate:
    """Answers nobody before so many have asked; then all, and it is shut again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.full = trio.Event()
        self._waiting = 0

    async def __call__(self, _asked: Asked, stream: Stream) -> bool:
        self._waiting += 1
        full = self.full
        if self._waiting == self.number:
            self._waiting, self.full = 0, trio.Event()
            full.set()
        await full.wait()
        await stream.send_all(said(200, b"yes"))
        return True


@dataclass
class Place:
    """A server at `url`: `opened` counts its connections, `open` those that are there now."""

    url: str = ""
    answer: Answer = field(default_factory=lambda: saying(said(200, b"yes")))
    asked: list[Asked] = field(default_factory=list)
    opened: int = 0
    open: int = 0
    most_open: int = 0
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def until_open(self, number: int) -> None:
        """Until no more than so many connections are there."""
        with trio.fail_after(20):
            while self.open > number:
                await self._changed.park()
        # The tasks that served them have ended, too.
        await trio.testing.wait_all_tasks_blocked()

    async def until_asked(self, number: int) -> None:
        """Until so many requests have come in."""
        with trio.fail_after(20):
            while len(self.asked) < number:
                await self._changed.park()

    async def serve(self, stream: Stream) -> None:
        self.opened += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            self.open -= 1
            self._changed.unpark_all()

    async def _converse(self, stream: Stream) -> None:
        number, stays = 0, True
        while stays and (asked := await read_request(stream, number := number + 1)):
            self.asked.append(asked)
            self._changed.unpark_all()
            stays = await self.answer(asked, stream)
        if not stays and isinstance(stream, trio.SocketStream) and stream.socket.fileno() >= 0:
            await stream.send_eof()


async def read_request(stream: Stream, number: int = 1) -> Asked | None:
    """The next request of a connection; None at its end."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some(65_536)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        chunk = await stream.receive_some(65_536)
        if not chunk:
            return None
        body += chunk
    return Asked(number, method, target, headers, body)


@asynccontextmanager
async def listening(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[int]:
    """Serve a free port of this machine for the block; yields the port."""
    async with trio.open_nursery() as nursery:
        listeners: Sequence[Any] = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel("the test has ended")


@asynccontextmanager
async def place(
    answer: Answer | None = None, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Place]:
    """A server for the block, over TLS where `tls` is given."""
    made = Place()
    if answer is not None:
        made.answer = answer

    async def serve(stream: trio.SocketStream) -> None:
        await made.serve(stream if tls is None else trio.SSLStream(
            stream, tls, server_side=True, https_compatible=True
        ))  # fmt: skip

    async with listening(serve) as port:
        made.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        yield made


@dataclass
class Proxy:
    """An HTTP proxy: forwards whole URLs, and tunnels by CONNECT, unless it `refuses`."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    opened: int = 0
    refuses: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.opened += 1
        async with stream:
            try:
                while asked := await read_request(stream):
                    self.asked.append(asked)
                    if self.refuses:
                        await stream.send_all(said(self.refuses))
                    elif asked.method == "CONNECT":
                        await self._tunnel(asked, stream)
                        return
                    else:
                        await self._forward(asked, stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _tunnel(self, asked: Asked, stream: trio.SocketStream) -> None:
        host, _, port = asked.target.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as both:
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            both.start_soon(_copy, stream, far, both.cancel_scope)
            both.start_soon(_copy, far, stream, both.cancel_scope)

    async def _forward(self, asked: Asked, stream: trio.SocketStream) -> None:
        authority, _, path = asked.target.removeprefix("http://").partition("/")
        host, _, port = authority.partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as far:
            head = [f"{asked.method} /{path} HTTP/1.1", "Connection: close"]
            head += [f"{name}: {value}" for name, value in asked.headers.items()]
            await far.send_all("\r\n".join([*head, "", ""]).encode() + asked.body)
            await stream.send_all(await far.receive_some(65_536))


class Names(trio.abc.HostnameResolver):
    """Names stand for what a test says; `asked` are those that were looked up."""

    def __init__(self, address_of: Callable[[str], str]) -> None:
        self.asked: list[str] = []
        self._address_of = address_of

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the interface's own word
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        name = (host or b"").decode()
        self.asked.append(name)
        return [(AF_INET, SOCK_STREAM, IPPROTO_TCP, "", (self._address_of(name), port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


class Detours(trio.abc.SocketFactory):
    """Sockets that go to `port` of this machine, wherever they are told to go.

    So what is connected to a public address can be seen here; `connected` are the addresses.
    """

    def __init__(self, port: int) -> None:
        self.connected: list[str] = []
        self._port = port

    def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> trio.socket.SocketType:  # noqa: A002
        made = trio.socket.from_stdlib_socket(socket(AF_INET, SOCK_STREAM))
        connected, port = self.connected, self._port

        class Detour(made.__class__):  # type: ignore[name-defined,misc]
            async def connect(self, address: tuple[str, int]) -> None:
                connected.append(address[0])
                await super().connect(("127.0.0.1", port))

        made.__class__ = Detour
        return made


async def _copy(source: trio.SocketStream, to: trio.SocketStream, scope: trio.CancelScope) -> None:
    async for chunk in source:
        await to.send_all(chunk)
    scope.cancel("one side has ended")


@asynccontextmanager
async def proxy() -> AsyncGenerator[Proxy]:
    """A proxy for the block."""
    made = Proxy()
    async with listening(made.serve) as port:
        made.url = f"http://127.0.0.1:{port}"
        yield made
