"""One connection of the HTTP side: hypercorn's own, with what it lacks.

Laws:

1. A client that does not read is given up: hypercorn shields what it sends from being
   cancelled, so without a bound of ours one such client would hold up our own end for ever.
2. HTTP/1 alone is spoken, whatever a client would like to go over to: the streams of HTTP/2
   would escape the bounds that are set for connections, and a WebSocket that begins wrong is
   answered and then held for ever.
3. A request ends within `request_s`, whatever keeps it.
4. Whatever a connection dies of, only that connection dies of it.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from custosd.api.answers import encoded

log = structlog.get_logger()


class BoundedStream(trio.abc.HalfCloseableStream):
    """A socket's stream whose sends end within `send_s`, done or broken."""

    def __init__(self, stream: trio.SocketStream, send_s: float) -> None:
        self._stream = stream
        self._send_s = send_s
        self.socket = stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As the stream's own; raises `trio.BrokenResourceError` for who does not read."""
        with trio.move_on_after(self._send_s) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            self.close()
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream's own."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As the stream's own."""
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """As the stream's own."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """As the stream's own."""
        await self._stream.aclose()

    def close(self) -> None:
        """Close without a word, and at once."""
        self.socket.close()


class _Http1(H11Protocol):
    """Law 2."""

    _unsent = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        # An `Upgrade` may be ignored (RFC 9110, 7.8), and is.
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == b"upgrade" for name, _ in request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=[(name, value) for name, value in request.headers if name != b"upgrade"],
                http_version=request.http_version,
            )
        await super()._create_stream(request)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # The head of an answer waits for what follows it: one packet, not two or three.
        try:
            self._unsent += self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if self._unsent and not isinstance(event, h11.Response):
            data, self._unsent = self._unsent, b""
            await self.send(RawData(data))

    async def _send_error_response(self, status_code: int) -> None:
        # What was garbled is its sender's fault, whatever h11 proposes (501 for a coding).
        known = status_code < HTTPStatus.INTERNAL_SERVER_ERROR
        status = HTTPStatus(status_code) if known else HTTPStatus.BAD_REQUEST
        body = encoded({"error": status.name.lower(), "message": "this is no request in HTTP/1"})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class Connection(TCPServer):
    """One client, until it leaves or is shown out. `idle`: no request of it is under way."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        send_s: float,
        request_s: float,
    ) -> None:
        self._request_s = request_s
        self._bounded = BoundedStream(stream, send_s)
        super().__init__(app, config, context, ConnectionState({}), cast("Any", self._bounded))
        self._scope = trio.CancelScope()
        self.idle = True

    async def serve(self, ended: Callable[["Connection"], None]) -> None:
        """Run to the end, whatever that is; then `ended` is called."""
        try:
            with self._scope:
                await self.run()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* Exception as group:
            log.warning("http.broke", exc_info=group)
        finally:
            self._bounded.close()
            ended(self)

    def show_out(self) -> None:
        """End it where it stands."""
        self._scope.cancel("shown out")

    async def run(self) -> None:
        """As hypercorn's own, without TLS and without the ways to other protocols."""
        socket = self._bounded.socket
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with TaskGroup() as tasks:
                self._task_group = tasks
                state = ConnectionState({})
                parts = (self.app, self.config, self.context, tasks, state, False, client, server)
                self.protocol = cast("Any", _Http1(*parts, self.protocol_send))
                self._allow(self.config.keep_alive_timeout)
                await self._read_data()
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """What hypercorn's protocol wants sent, or noted."""
        if not isinstance(event, Updated):
            await super().protocol_send(event)
            return
        # A deadline in place of hypercorn's task that waits for the end of each idle time.
        self.idle = event.idle
        self._allow(self.config.keep_alive_timeout if event.idle else self._request_s)

    def _allow(self, seconds: float) -> None:
        self._scope.deadline = trio.current_time() + seconds
