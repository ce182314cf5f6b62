"""Models behind HTTP: one protocol over one wire.

    Prompt ─► protocol.request ─► Wire ─► protocol.reply, or the fold of its events ─► Reply

The wire is the seam at which exchanges are recorded and replayed (`recorded`).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import trio

from custosd.adapters.http_client import HttpClient, HttpError, HttpRequest
from custosd.adapters.models.model import Model, ModelError, ModelErrorKind, Prompt, Reply
from custosd.adapters.models.wire import EventReader, ServerEvent, WireRequest, error_of
from custosd.config.problems import InvalidConfig
from custosd.config.secret import Secret
from custosd.core.transcript import Usage

READ_OUT_S = 0.5
"""How long a stream may take to end, once the answer in it has."""

_KINDS = {
    "timeout": ModelErrorKind.TIMEOUT,
    "unreachable": ModelErrorKind.UNAVAILABLE,
    "broken": ModelErrorKind.CUT_OFF,
    "malformed": ModelErrorKind.MALFORMED,
    "too_large": ModelErrorKind.ANSWER_TOO_LARGE,
    "refused_address": ModelErrorKind.BAD_REQUEST,
}


class WireAnswer(Protocol):
    """The head of an answer, and its body, which is read once."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; their names in small letters."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises `HttpError`."""
        ...


class Wire(Protocol):
    """A way to one provider."""

    @property
    def place(self) -> str:
        """What it is called in messages: scheme, host and port."""
        ...

    def exchange(
        self, request: WireRequest, within_s: float
    ) -> AbstractAsyncContextManager[WireAnswer]:
        """The answer, for the block, which is cancelled when all of it has taken `within_s`.

        Raises `HttpError`, in that case "timeout"; `ModelError` where there is no key to ask
        with.
        """
        ...


class ModelStream(Protocol):
    """Folds the events of one streamed answer."""

    @property
    def whole(self) -> bool:
        """Whether the answer has come to its end; what it cost may still follow."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        ...

    @property
    def usage(self) -> Usage:
        """What has been told of the cost so far."""
        ...

    def take(self, event: ServerEvent, now_utc: datetime, place: str) -> None:
        """Fold one event in; raises `ModelError`."""
        ...

    def reply(self, headers: Mapping[str, str], now_utc: datetime) -> Reply:
        """The reply, once the stream has ended; raises `ModelError`."""
        ...


class ModelProtocol(Protocol):
    """A provider's language; pure. See `anthropic` and `openai`."""

    def secret_headers(self, key: str) -> Mapping[str, str]:
        """What carries the key."""
        ...

    def request(self, prompt: Prompt, *, stream: bool) -> WireRequest:
        """The request that asks this."""
        ...

    def reply(self, headers: Mapping[str, str], body: bytes, now_utc: datetime) -> Reply:
        """The reply in a whole answer; raises `ModelError`."""
        ...

    def stream(self) -> ModelStream:
        """A reader of one streamed answer."""
        ...


@dataclass(frozen=True, slots=True)
class HttpWire(Wire):
    """To a base URL, with the key of a file that is read anew for each request."""

    client: HttpClient
    base_url: str
    secret_headers: Callable[[str], Mapping[str, str]]
    key: Secret | None = None
    read_s: float = 60.0

    @property
    def place(self) -> str:
        """As the port says; a base URL holds no login, which the configuration refuses."""
        scheme, _, rest = self.base_url.partition("://")
        return f"{scheme}://{rest.split('/', 1)[0]}"

    @asynccontextmanager
    async def exchange(self, request: WireRequest, within_s: float) -> AsyncGenerator[WireAnswer]:
        """See the port."""
        with trio.move_on_after(within_s) as scope:
            made = HttpRequest(
                "POST",
                self.base_url.rstrip("/") + request.path,
                request.headers,
                await self._secret_headers(),
                request.body,
                self.read_s,
            )
            async with self.client.exchange(made) as answer:
                yield answer
        if scope.cancelled_caught:
            raise HttpError("timeout", f"no whole answer of {self.place} in {within_s:g} s")

    async def _secret_headers(self) -> Mapping[str, str]:
        if self.key is None:
            return {}
        try:
            text = await trio.to_thread.run_sync(self.key.read)
        except InvalidConfig as error:
            raise ModelError(ModelErrorKind.UNAUTHORIZED, str(error)) from error
        if not (text.isascii() and text.isprintable()) or text != text.strip():
            raise ModelError(
                ModelErrorKind.UNAUTHORIZED,
                f"the key in {self.key.path} has characters that no header may have: it is to be"
                " the file's only line, without a space around it",
            )
        return self.secret_headers(text)


@dataclass(frozen=True, slots=True)
class HttpModel(Model):
    """One model of one provider; asks once, within `timeout_s` for all of it."""

    called: str
    protocol: ModelProtocol
    wire: Wire
    now_utc: Callable[[], datetime]
    timeout_s: float = 60.0
    stream: bool = False

    @property
    def name(self) -> str:
        """See the port."""
        return self.called

    async def ask(self, prompt: Prompt) -> Reply:
        """See the port. What a stream told of its cost before it failed is in the error."""
        fold = self.protocol.stream()
        try:
            return await self._ask(prompt, fold)
        except HttpError as error:
            raise ModelError(_KINDS[error.kind], str(error), usage=fold.usage) from error
        except ModelError as error:
            if error.usage == Usage():
                error.usage = fold.usage
            raise

    async def _ask(self, prompt: Prompt, fold: ModelStream) -> Reply:
        request = self.protocol.request(prompt, stream=self.stream)
        headers: Mapping[str, str] = {}
        try:
            async with self.wire.exchange(request, self.timeout_s) as answer:
                headers = answer.headers
                good = 200 <= answer.status < 300  # noqa: PLR2004 - success
                if good and "text/event-stream" in headers.get("content-type", "").lower():
                    await self._take_all(answer.chunks(), fold)
                    return fold.reply(headers, self.now_utc())
                body = b"".join([chunk async for chunk in answer.chunks()])
        except HttpError:
            # Whoever has all of an answer has it, however the connection ended.
            if fold.whole:
                return fold.reply(headers, self.now_utc())
            raise
        if not good:
            raise error_of(answer.status, headers, body, self.now_utc(), self.wire.place)
        return self.protocol.reply(headers, body, self.now_utc())

    async def _take_all(self, chunks: AsyncIterator[bytes], fold: ModelStream) -> None:
        """Fold the events in, to their end."""
        events = EventReader()
        async for chunk in chunks:
            for event in events.feed(chunk):
                fold.take(event, self.now_utc(), self.wire.place)
                if fold.ended:
                    await _read_out(chunks)
                    return


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read what is left, that the connection may be used again; what it is, says nothing."""
    with trio.move_on_after(READ_OUT_S), suppress(HttpError):
        async for _ in chunks:
            pass
