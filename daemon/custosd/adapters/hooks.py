"""Requests to what others run: hooks of agents, pagers of persons.

Laws:

1. A token is read at each request, from a file that others can not read; neither it nor what
   an address may hold of secrets (user, query) is in a message.
2. A client is opened for each call of a port, so connections live as long as one call: calls
   are rare, and an act (a stop, a letter, a notice) is a POST, which must not meet a kept
   connection that the other side is about to close, for it cannot be sent twice. What asks
   several things in one call asks them over one connection.
3. An answer is read up to 64 KiB.
"""

from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

import httpx
import trio

from custosd.adapters.http_client import HttpClient, HttpLimits, open_http
from custosd.config.problems import InvalidConfig
from custosd.config.secret import Secret

LARGEST_ANSWER_BYTES = 64 * 1024


class NoToken(Exception):
    """The token cannot be had; the message names the file and the remedy."""


def open_hook(timeout_s: float) -> AbstractAsyncContextManager[HttpClient]:
    """A client for one call. `timeout_s` bounds each wait; all of it is the caller's to bound.

    Addresses of hooks come from the configuration, or were seen to lead to this machine, so
    private ones are no reason to refuse.
    """
    return open_http(
        HttpLimits(
            connections=1,
            connect_s=timeout_s,
            write_s=timeout_s,
            read_s=timeout_s,
            pool_s=timeout_s,
            largest_body_bytes=LARGEST_ANSWER_BYTES,
        )
    )


def address(url: str, what: str) -> str:
    """The URL, as it is; raises `ValueError`, which says `what` needs one."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{what} needs a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{what} needs a URL with http or https and a host")
    return url


def below(url: str, name: str) -> str:
    """The address of `name` in the folder that `url` is; the query stays."""
    folder = httpx.URL(url)
    path, mark, query = folder.raw_path.decode("ascii").partition("?")
    target = f"{path.rstrip('/')}/{quote(name, safe='')}{mark}{query}"
    return str(folder.copy_with(raw_path=target.encode("ascii")))


async def authorization(token: Secret | None) -> dict[str, str]:
    """The header that carries the token, none where there is none; raises `NoToken`."""
    if token is None:
        return {}
    try:
        text = await trio.to_thread.run_sync(token.read)
    except InvalidConfig as error:
        raise NoToken(str(error)) from error
    if not (text.isascii() and text.isprintable()):
        raise NoToken(f"the token in {token.path} has characters that no header may have")
    return {"Authorization": f"Bearer {text}"}
