"""Letters sent to an HTTP hook of the agent or its platform.

Laws:

1. The answer's status says what became of the letter; its body is read up to 64 KiB and can
   only add that the agent has read it. Whatever is wrong with the body takes nothing back.
2. No redirect is followed: the token goes to the configured place or nowhere.
3. The whole exchange has one time limit, however slowly the other side drips.
"""

import json
import ssl
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

import httpx
import trio

from custosd.adapters.channels.letters import checked_id, letter_json
from custosd.config.problems import InvalidConfig
from custosd.config.secret import Secret
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery, Letter, Receipt
from custosd.ports import SteeringChannel

LARGEST_ANSWER_BYTES = 64 * 1024

_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_SERVERS_FAULT = 500
_SUCCESS = range(200, 300)
_REDIRECT = range(300, 400)
_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class HttpChannelSettings:
    """Where letters are posted, the bearer token, and the limit of a whole exchange, seconds."""

    url: str
    token: Secret | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A status and the JSON object that came with it; empty where there was none."""

    status: int
    body: dict[str, Any]


class HttpChannel(SteeringChannel):
    """POSTs a letter as JSON with its id as Idempotency-Key.

    The answer may be `{"acknowledged": true}`, or `{"receipts": true}` to say that
    `GET URL/ID` will tell later, with the same object. Connections are made for each letter:
    letters are rare, and an idle connection to each agent would cost more than it saves.
    """

    def __init__(self, settings: HttpChannelSettings) -> None:
        self._settings = settings
        try:
            self._url = httpx.URL(settings.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"an http channel needs a URL: {error}") from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ValueError("an http channel needs a URL with http or https and a host")
        self._silent: dict[str, None] = {}

    @property
    def name(self) -> str:
        """See the port."""
        return "http"

    async def deliver(self, letter: Letter) -> Receipt:
        """See the port. To be retried: timeouts, no connection, 408, 425, 429 and 5xx."""
        headers = {"Idempotency-Key": checked_id(letter.id), "Content-Type": "application/json"}
        answer = await self._exchange("POST", self._url, headers, letter_json(letter))
        if answer.status != HTTPStatus.CONFLICT and answer.status not in _SUCCESS:
            raise self._refused(answer.status)
        if answer.body.get("acknowledged") is True:
            return Receipt(letter.id, Delivery.ACKNOWLEDGED, "answer_acknowledged")
        if answer.body.get("receipts") is not True:
            self._stay_silent(letter.id)
        if answer.status == HTTPStatus.CONFLICT:
            return Receipt(letter.id, Delivery.DELIVERED, "has_it_already")
        return Receipt(letter.id, Delivery.DELIVERED, f"http_{answer.status}")

    async def receipts(self, ids: Collection[str]) -> Sequence[Receipt]:
        """See the port. A hook that did not offer receipts for a letter is not asked for it.

        Of letters that an earlier life of the daemon sent, each is asked for, until the hook
        says that it knows nothing of it. Raises `ChannelError` where it cannot be reached.
        """
        proved: list[Receipt] = []
        for letter in map(checked_id, ids):
            if letter in self._silent:
                continue
            url = self._url.copy_with(path=self._url.path.rstrip("/") + "/" + letter)
            answer = await self._exchange("GET", url, {}, None)
            if answer.status in _SUCCESS and answer.body.get("acknowledged") is True:
                proved.append(Receipt(letter, Delivery.ACKNOWLEDGED, "answer_acknowledged"))
            elif answer.status < _SERVERS_FAULT and answer.status not in (*_SUCCESS, *_LATER):
                self._stay_silent(letter)
        return proved

    def _stay_silent(self, letter: str) -> None:
        self._silent[letter] = None
        while len(self._silent) > _REMEMBERED:
            del self._silent[next(iter(self._silent))]

    async def _exchange(
        self, method: str, url: httpx.URL, headers: dict[str, str], content: bytes | None
    ) -> _Answer:
        headers = headers | await self._authorization() | {"Accept-Encoding": "identity"}
        answer: _Answer | None = None
        try:
            with trio.move_on_after(self._settings.timeout_s):
                async with (
                    self._client() as client,
                    client.stream(method, url, headers=headers, content=content) as response,
                ):
                    answer = _Answer(response.status_code, {})
                    answer = _Answer(response.status_code, _parsed(await _body(response)))
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            # With a status the other side has answered, whatever came of the body.
            if answer is None:
                raise ChannelError(
                    "http_unreachable", f"{self._place}: {type(error).__name__}", retry=True
                ) from error
        if answer is None:
            raise ChannelError(
                "http_timeout",
                f"{self._place} did not answer within {self._settings.timeout_s:g} s",
                retry=True,
            )
        return answer

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=_tls() if self._url.scheme == "https" else False,
            follow_redirects=False,
            trust_env=False,
            timeout=self._settings.timeout_s,
        )

    async def _authorization(self) -> dict[str, str]:
        if self._settings.token is None:
            return {}
        try:
            token = await trio.to_thread.run_sync(self._settings.token.read)
        except InvalidConfig as error:
            raise ChannelError("token_unreadable", str(error)) from error
        if not (token.isascii() and token.isprintable()):
            raise ChannelError("token_unreadable", "the token has characters no header may have")
        return {"Authorization": f"Bearer {token}"}

    @property
    def _place(self) -> str:
        # Neither user nor query, which may hold secrets.
        return f"{self._url.scheme}://{self._url.netloc.decode('ascii', 'replace')}"

    def _refused(self, status: int) -> ChannelError:
        if status in _LATER or status >= _SERVERS_FAULT:
            return ChannelError(f"http_{status}", f"{self._place} answered {status}", retry=True)
        if status in _REDIRECT:
            return ChannelError(
                "http_redirected",
                f"{self._place} answered {status}: configure the address that it leads to",
            )
        return ChannelError(f"http_{status}", f"{self._place} refused the letter with {status}")


@cache
def _tls() -> ssl.SSLContext:
    # One for all channels: reading the certificates takes tens of milliseconds.
    return ssl.create_default_context()


async def _body(response: httpx.Response) -> bytes:
    body = b""
    with trio.CancelScope() as reading:
        # Raw, because a small body may unpack to a huge one. Cancelled and not left, because
        # the generators below this one end properly in no other way.
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > LARGEST_ANSWER_BYTES:
                reading.cancel()
    return b"" if reading.cancel_called else body


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
