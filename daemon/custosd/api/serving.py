"""Serves the HTTP side with hypercorn's protocol, in our own nursery.

    clients ──► [ accept, at most so many ] ──► hypercorn ──► application ──► doors

hypercorn's own server ends with the first connection that fails in a way it does not know,
sets no bound to connections, and knows no end for a client that does not read. So the
accepting is done here, and hypercorn's connection is run with guards around it.

Laws:

1. A full house shows out whoever has been idle for longest; if nobody is idle, the newcomer is
   told to come again. Neither connections nor what they hold grow without bound.
2. Nobody is waited for: a head comes within `idle_s`, a body within `body_s`, and an answer is
   read within `send_s`.
"""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from custosd.api.answers import encoded
from custosd.api.application import ApiPorts, application
from custosd.api.bodies import BodyLimits
from custosd.api.connections import Connection
from custosd.api.listening import ApiAddress, listening, name_of
from custosd.flow.accepting import accepted
from custosd.flow.monitor import Kind, operation

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """What clients may cost.

    `idle_s` is how long a connection may stay without a whole head of a request; it is how
    long connections are kept between requests, too. `request_s` is more than any act takes, an
    emergency with the longest deadline too; what takes longer has gone wrong. `drain_s` is what
    requests that are under way at a stop have to end.
    """

    connections: int = 1_000
    head_bytes: int = 16 * 1024
    idle_s: float = 30.0
    send_s: float = 5.0
    request_s: float = 330.0
    drain_s: float = 5.0
    body: BodyLimits = field(default_factory=BodyLimits)


async def serve_api(
    address: ApiAddress,
    ports: ApiPorts,
    limits: ApiLimits,
    shutdown: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set, then let requests end within `drain_s`.

    Started: when it listens, with the addresses. When cancelled, requests are cut, and the
    end comes within `send_s`. Raises `ApiError` where it cannot listen.
    """
    house = _House(ports, limits)
    async with listening(address) as listeners, trio.open_nursery() as rooms:
        async with trio.open_nursery() as doors:
            names = [name_of(listener) for listener in listeners]
            for listener in listeners:
                doors.start_soon(_accept, listener, house, rooms)
            log.info("http.opened", addresses=names)
            task_status.started(names)
            await shutdown.wait()
            doors.cancel_scope.cancel("stopping")
        for listener in listeners:
            await listener.aclose()
        await house.close()
        rooms.cancel_scope.deadline = trio.current_time() + limits.drain_s


async def _accept(listener: trio.SocketListener, house: "_House", rooms: trio.Nursery) -> None:
    while True:
        stream = await accepted(listener.accept, _tell_starved)
        connection = house.admit(stream)
        if connection is not None:
            rooms.start_soon(_served, connection, house)


async def _served(connection: Connection, house: "_House") -> None:
    async with operation(Kind.STREAM, "http", slow_s=inf):
        await connection.serve(house.leave)


def _tell_starved(words: str) -> None:
    log.warning("http.starved", error=words)


class _House:
    """The connections that are open, the oldest first."""

    def __init__(self, ports: ApiPorts, limits: ApiLimits) -> None:
        # hypercorn's types of ASGI messages are its own, and narrower than Starlette's.
        self._app = ASGIWrapper(application(ports, limits.body))  # type: ignore[arg-type]
        self._config = _config(limits)
        self._limits = limits
        self._context = WorkerContext(None)
        self._open: dict[Connection, None] = {}

    def admit(self, stream: trio.SocketStream) -> Connection | None:
        """The new connection, to be served; None: there is no room, and it was told so."""
        if len(self._open) >= self._limits.connections and not self._make_room():
            _turn_away(stream)
            return None
        connection = Connection(
            self._app,
            self._config,
            self._context,
            stream,
            self._limits.send_s,
            self._limits.request_s,
        )
        self._open[connection] = None
        return connection

    def leave(self, connection: Connection) -> None:
        """It has ended."""
        self._open.pop(connection, None)

    async def close(self) -> None:
        """Let idle connections go, and others after their request."""
        await self._context.terminated.set()
        for connection in tuple(self._open):
            if connection.idle:
                connection.show_out()

    def _make_room(self) -> bool:
        oldest = next((one for one in self._open if one.idle), None)
        if oldest is None:
            return False
        # Its place is free from now on, though it takes it some turns to be gone.
        self.leave(oldest)
        oldest.show_out()
        return True


def _turn_away(stream: trio.SocketStream) -> None:
    body = encoded({"error": "busy", "message": "too many connections; try again"})
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
        f"retry-after: 1\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    with suppress(OSError):
        os.write(stream.socket.fileno(), head.encode() + body)
    stream.socket.close()


def _config(limits: ApiLimits) -> Config:
    config = Config()
    config.keep_alive_timeout = limits.idle_s
    config.graceful_timeout = limits.drain_s
    config.h11_max_incomplete_size = limits.head_bytes
    config.include_server_header = False
    # Pieces of a body that wait for the application are in nobody's count.
    config.max_app_queue_size = 1
    # No line for each request; what goes wrong comes by way of Python's logging.
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
