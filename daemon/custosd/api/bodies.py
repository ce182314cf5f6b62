"""Takes bodies in: bounded in size, in time, and all of them together.

Law: what a header says of a body's length can only refuse it; what counts is what comes.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import trio
from starlette.requests import ClientDisconnect, Request

from custosd.api.answers import Refused, problem


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Of one body, how large it is and how long it takes; of all at a time, how large."""

    body_bytes: int = 1024 * 1024
    body_s: float = 10.0
    all_bytes: int = 32 * 1024 * 1024


class Oversize(Refused):
    """A body is too large."""


class Bodies:
    """The bodies that are held at the moment."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._held_bytes = 0

    @asynccontextmanager
    async def body_of(self, request: Request) -> AsyncGenerator[bytearray]:
        """The request's body, held for the block. Raises `Refused`: 400, 408, 413, 503."""
        body = bytearray()
        try:
            self._check_announced(request)
            with trio.fail_after(self._limits.body_s):
                await self._read(request, body)
            yield body
        except trio.TooSlowError as error:
            words = f"a body is whole within {self._limits.body_s:g} s"
            raise Refused(problem(HTTPStatus.REQUEST_TIMEOUT, "too_slow", words)) from error
        except ClientDisconnect as error:
            words = "the body is not whole"
            raise Refused(problem(HTTPStatus.BAD_REQUEST, "unfinished", words)) from error
        finally:
            self._held_bytes -= len(body)

    def _check_announced(self, request: Request) -> None:
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and len(announced) < 20:  # noqa: PLR2004 - digits of the largest number there is
            self._check_size(int(announced))

    def _check_size(self, size: int) -> None:
        if size > self._limits.body_bytes:
            words = f"a body has at most {self._limits.body_bytes} bytes"
            raise Oversize(problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "oversize", words))

    async def _read(self, request: Request, body: bytearray) -> None:
        # Not by `stream()`, which is a generator that nobody closes when we leave it early.
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, more = message.get("body", b""), message.get("more_body", False)
            self._check_size(len(body) + len(piece))
            if self._held_bytes + len(piece) > self._limits.all_bytes:
                raise Refused(
                    problem(
                        HTTPStatus.SERVICE_UNAVAILABLE,
                        "busy",
                        "too many bodies are under way; try again",
                        {"retry-after": "1"},
                    )
                )
            body += piece
            self._held_bytes += len(piece)
