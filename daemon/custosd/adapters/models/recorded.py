"""Exchanges with models, written down and played again: no network, no key, bit for bit.

One line of JSON an exchange: what was asked (scrubbed; the call's nonce as `NONCE`), and the
status, the headers that matter and the body as they came, in the pieces in which they came.

Laws:

1. An exchange is found by what was asked, so a changed prompt finds none, and is told so.
2. Equal questions get their recorded answers in order, the last one again and again.
3. Failures are played too, where they came: no answer, one that broke off, one that took too
   long. Only what the asker himself gave up is not recorded.
4. No key is ever in a record: keys are added behind this seam, and one that comes back in an
   answer is taken out like any secret. Nobody else may read the file.
"""

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import trio

from custosd.adapters.http_client import HttpError
from custosd.adapters.models.clean_record import Clean, cleaned, cleaner
from custosd.adapters.models.http import Wire, WireAnswer
from custosd.adapters.models.model import ModelError, ModelErrorKind
from custosd.adapters.models.wire import WireRequest
from custosd.core.errors import CustosdError

NONCE = b"NONCE"

_KEPT_HEADERS = ("content-type", "date", "request-id", "retry-after", "retry-after-ms",
                 "x-request-id")  # fmt: skip
_KEPT_PREFIXES = ("anthropic-ratelimit-", "x-ratelimit-")

Failure = Literal[
    "", "timeout", "unreachable", "broken", "malformed", "too_large", "refused_address"
]


class Exchange(msgspec.Struct, frozen=True):
    """One exchange. `key` is of what was asked; `pieces` of the body are base64 in the file.

    `error` is the kind of the `HttpError` that ended it, "" where none did; status 0 is one
    that ended before there was an answer.
    """

    key: str
    path: str
    asked: str
    status: int
    headers: dict[str, str]
    pieces: tuple[bytes, ...]
    error: Failure = ""


class NotRecorded(CustosdError):
    """The file cannot be written."""


def key_of(request: WireRequest) -> str:
    """16 hex digits of what is asked, whatever the call's nonce."""
    return hashlib.sha256(request.path.encode() + b"\n" + _bare(request)).hexdigest()[:16]


def _bare(request: WireRequest) -> bytes:
    nonce = request.nonce.encode()
    return request.body.replace(nonce, NONCE) if nonce else request.body


@dataclass(slots=True)
class Recording(Wire):
    """Lets exchanges through to `wire`, and appends each to `file` when it has ended.

    `hidden` are words that are never written, whatever they look like: the keys.
    """

    wire: Wire
    file: Path
    hidden: tuple[str, ...] = field(default=(), repr=False)
    _writing: trio.Lock = field(default_factory=trio.Lock)

    @property
    def place(self) -> str:
        """The wire's own."""
        return self.wire.place

    @asynccontextmanager
    async def exchange(self, request: WireRequest, within_s: float) -> AsyncGenerator[WireAnswer]:
        """As the wire's; one that is cancelled from outside is not recorded.

        Raises `NotRecorded` too.
        """
        heard = _Heard()
        try:
            async with self.wire.exchange(request, within_s) as answer:
                heard.answer = answer
                yield heard
        except HttpError as error:
            await self._write(request, heard, error.kind)
            raise
        except ModelError:
            # The answer was read as far as it could be.
            if heard.answer is not None:
                await self._write(request, heard)
            raise
        await self._write(request, heard)

    async def _write(self, request: WireRequest, heard: "_Heard", error: str = "") -> None:
        def write() -> None:
            # A large answer takes seconds to be searched for secrets.
            exchange = _exchange(request, heard, error, cleaner(self.hidden))
            append(self.file, msgspec.json.encode(exchange) + b"\n")

        async with self._writing:
            await trio.to_thread.run_sync(write)


@dataclass(slots=True)
class _Heard(WireAnswer):
    """An answer, of which every piece is kept."""

    answer: WireAnswer | None = None
    pieces: list[bytes] = field(default_factory=list[bytes])

    @property
    def status(self) -> int:
        """See the port."""
        return self.answer.status if self.answer else 0

    @property
    def headers(self) -> Mapping[str, str]:
        """See the port."""
        return self.answer.headers if self.answer else {}

    def chunks(self) -> AsyncIterator[bytes]:
        """See the port."""
        assert self.answer is not None  # noqa: S101 - it is given out with its answer only
        return _Kept(self.answer.chunks(), self.pieces)


class _Kept(AsyncIterator[bytes]):
    def __init__(self, chunks: AsyncIterator[bytes], pieces: list[bytes]) -> None:
        self._chunks, self._pieces = chunks, pieces

    async def __anext__(self) -> bytes:
        piece = await anext(self._chunks)
        self._pieces.append(piece)
        return piece


class Replayed(Wire):
    """Answers from recorded exchanges; knows no network. `missed` counts what had no record."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.missed = 0
        self._left: dict[str, list[Exchange]] = {}
        for exchange in exchanges:
            self._left.setdefault(exchange.key, []).append(exchange)

    @property
    def place(self) -> str:
        """Where the answers come from."""
        return "the record"

    @asynccontextmanager
    async def exchange(
        self,
        request: WireRequest,
        within_s: float,  # noqa: ARG002 - what was recorded takes no time
    ) -> AsyncGenerator[WireAnswer]:
        """The recorded answer, or the recorded `HttpError`.

        Raises the `ModelError` "not_recorded" for neither.
        """
        left = self._left.get(key_of(request))
        if not left:
            self.missed += 1
            raise ModelError(
                ModelErrorKind.NOT_RECORDED,
                f"the record has no answer to question {key_of(request)}: the prompt, the model's"
                " settings or the transcript are not what they were; record it anew",
            )
        exchange = left.pop(0) if len(left) > 1 else left[0]
        await trio.lowlevel.checkpoint()
        if exchange.error and not exchange.status:
            raise HttpError(exchange.error, "as recorded")
        yield _Played(exchange)


@dataclass(frozen=True, slots=True)
class _Played(WireAnswer):
    """A recorded answer."""

    exchange: Exchange

    @property
    def status(self) -> int:
        """See the port."""
        return self.exchange.status

    @property
    def headers(self) -> Mapping[str, str]:
        """See the port."""
        return self.exchange.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """See the port."""
        return _Pieces(self.exchange)


class _Pieces(AsyncIterator[bytes]):
    def __init__(self, exchange: Exchange) -> None:
        self._left, self._error = iter(exchange.pieces), exchange.error

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for piece in self._left:
            return piece
        if self._error:
            raise HttpError(self._error, "as recorded")
        raise StopAsyncIteration


def read_exchanges(file: Path) -> list[Exchange]:
    """The exchanges of a record; raises `OSError`, and `ValueError` with the line's number."""
    found = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found.append(msgspec.json.decode(line, type=Exchange))
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ValueError(f"{file}:{number}: no recorded exchange: {error}") from None
    return found


def append(file: Path, line: bytes) -> None:
    """Write at the file's end; blocks as a file does. Raises `NotRecorded`."""
    try:
        # What agents and models wrote is in it.
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "ab") as out:
            out.write(line)
    except OSError as error:
        raise NotRecorded(f"nothing can be recorded in {file}: {error.strerror}") from error


def _exchange(request: WireRequest, heard: _Heard, error: str, clean: Clean) -> Exchange:
    kept = {
        name: clean(value)
        for name, value in heard.headers.items()
        if name in _KEPT_HEADERS or name.startswith(_KEPT_PREFIXES)
    }
    return msgspec.convert(
        {
            "key": key_of(request),
            "path": request.path,
            "asked": clean(_bare(request).decode("utf-8", "replace")),
            "status": heard.status,
            "headers": kept,
            "pieces": tuple(cleaned(heard.pieces, clean)),
            "error": error,
        },
        Exchange,
    )
