"""Requests that are made to programs of others: hooks of agents, pagers of persons.

Laws:

1. No redirect is followed and no proxy of the environment is used: a token goes to the
   configured place or nowhere.
2. A token is read at each request, from a file that others can not read; neither it nor what
   an address may hold of secrets (user, query) is in a message.
3. Connections are made for each request: they are rare, an idle one to each place would cost
   more than it saves, and a stale one would cost the first try.
"""

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import cache

import httpx
import trio

from custosd.config.problems import InvalidConfig
from custosd.config.secret import Secret

LARGEST_ANSWER_BYTES = 64 * 1024


class NoToken(Exception):
    """The token cannot be had; the message names the file and the remedy."""


def address(url: str, what: str) -> httpx.URL:
    """The URL, parsed; raises `ValueError`, which says `what` needs one."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{what} needs a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{what} needs a URL with http or https and a host")
    return parsed


def place_of(url: httpx.URL) -> str:
    """The address as far as a message may name it: scheme, host and port."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def below(url: httpx.URL, name: str) -> httpx.URL:
    """The address of `name` in the folder that `url` is."""
    return url.copy_with(path=f"{url.path.rstrip('/')}/{name}")


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


@asynccontextmanager
async def answered(
    method: str,
    url: httpx.URL,
    headers: Mapping[str, str],
    content: str | bytes | None,
    timeout_s: float,
) -> AsyncGenerator[httpx.Response, None]:
    """The head of the answer; its body is read in the block, or not at all.

    `timeout_s` bounds each wait; how long all of it may take is the caller's to say. Raises
    what httpx raises.
    """
    async with (
        httpx.AsyncClient(
            verify=_tls() if url.scheme == "https" else False,
            follow_redirects=False,
            trust_env=False,
            timeout=timeout_s,
        ) as client,
        client.stream(
            method, url, headers={**headers, "Accept-Encoding": "identity"}, content=content
        ) as response,
    ):
        yield response


async def body_of(response: httpx.Response) -> bytes | None:
    """The body of an answer; None where it is longer than `LARGEST_ANSWER_BYTES`."""
    body = b""
    with trio.CancelScope() as reading:
        # Raw, because a small body may unpack to a huge one. Cancelled and not left, because
        # the generators below this one end properly in no other way.
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > LARGEST_ANSWER_BYTES:
                reading.cancel()
    return None if reading.cancel_called else body


@cache
def _tls() -> ssl.SSLContext:
    # One for all: reading the certificates takes tens of milliseconds.
    return ssl.create_default_context()
