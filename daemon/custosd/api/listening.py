"""Where the HTTP side listens: an address, a socket file, or both."""

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from custosd.core.errors import CustosdError
from custosd.flow.local_socket import bound_socket

_BACKLOG = 512


class ApiError(CustosdError):
    """The HTTP side cannot listen where it should."""


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """`listen` is "host:port" ("": nowhere; port 0: a free one), `path` a socket file's."""

    listen: str = ""
    path: Path | None = None
    mode: int = 0o660


@asynccontextmanager
async def listening(address: ApiAddress) -> AsyncGenerator[Sequence[trio.SocketListener]]:
    """Listening sockets for the block. Raises `ApiError`."""
    async with AsyncExitStack() as stack:
        listeners: list[trio.SocketListener] = []
        try:
            if address.listen:
                listeners += await _on_network(address.listen)
                for listener in listeners:
                    stack.push_async_callback(listener.aclose)
            if address.path is not None:
                bound = bound_socket(socket.SOCK_STREAM, address.path, address.mode)
                sock = await stack.enter_async_context(bound)
                sock.listen(_BACKLOG)
                listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
        except (OSError, OverflowError) as error:
            where = " and ".join(str(part) for part in (address.listen, address.path) if part)
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise ApiError(f"the HTTP side cannot listen on {where}: {reason}") from error
        yield listeners


async def _on_network(listen: str) -> Sequence[trio.SocketListener]:
    host, _, port = listen.rpartition(":")
    return await trio.open_tcp_listeners(
        int(port), host=host.removeprefix("[").removesuffix("]"), backlog=_BACKLOG
    )


def name_of(listener: trio.SocketListener) -> str:
    """The address as a person would write it."""
    name = listener.socket.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
