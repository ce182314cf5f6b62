"""Letters sent to an HTTP hook of the agent or its platform.

Laws:

1. The answer's status says what became of the letter; its body is read up to 64 KiB and can
   only add that the agent has read it. Whatever is wrong with the body takes nothing back.
2. No redirect is followed: the token goes to the configured place or nowhere.
3. The whole exchange has one time limit, however slowly the other side drips.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import trio

from custosd.adapters.channels.letters import checked_id, letter_json
from custosd.adapters.hooks import NoToken, address, authorization, below, open_hook
from custosd.adapters.http_client import HttpClient, HttpError, HttpRequest, place_of
from custosd.config.secret import Secret
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery, Letter, Receipt
from custosd.ports import SteeringChannel

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
    `GET URL/ID` will tell later, with the same object.
    """

    def __init__(self, settings: HttpChannelSettings) -> None:
        self._settings = settings
        self._url = address(settings.url, "an http channel")
        self._place = place_of(self._url)
        self._silent: dict[str, None] = {}

    @property
    def name(self) -> str:
        """See the port."""
        return "http"

    async def deliver(self, letter: Letter) -> Receipt:
        """See the port. To be retried: timeouts, no connection, 408, 425, 429 and 5xx."""
        headers = {"Idempotency-Key": checked_id(letter.id), "Content-Type": "application/json"}
        async with open_hook(self._settings.timeout_s) as http:
            answer = await self._exchange(http, "POST", self._url, headers, letter_json(letter))
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
        asked = [letter for letter in map(checked_id, ids) if letter not in self._silent]
        async with open_hook(self._settings.timeout_s) as http:
            for letter in asked:
                answer = await self._exchange(http, "GET", below(self._url, letter))
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
        self,
        http: HttpClient,
        method: str,
        url: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        content: bytes = b"",
    ) -> _Answer:
        timeout_s = self._settings.timeout_s
        try:
            secret = await authorization(self._settings.token)
        except NoToken as error:
            raise ChannelError("token_unreadable", str(error)) from error
        answer: _Answer | None = None
        failed: HttpError | None = None
        try:
            with trio.move_on_after(timeout_s):
                request = HttpRequest(method, url, headers, secret, content)
                async with http.exchange(request) as response:
                    answer = _Answer(response.status, {})
                    answer = _Answer(response.status, _parsed(await response.body()))
        except HttpError as error:
            # With a status the other side has answered, whatever came of the body.
            failed = error
        if answer is not None:
            return answer
        if failed is None or failed.kind == "timeout":
            raise ChannelError(
                "http_timeout",
                f"{self._place} did not answer within {timeout_s:g} s",
                retry=True,
            ) from failed
        raise ChannelError("http_unreachable", str(failed), retry=True) from failed

    def _refused(self, status: int) -> ChannelError:
        if status in _LATER or status >= _SERVERS_FAULT:
            return ChannelError(f"http_{status}", f"{self._place} answered {status}", retry=True)
        if status in _REDIRECT:
            return ChannelError(
                "http_redirected",
                f"{self._place} answered {status}: configure the address that it leads to",
            )
        return ChannelError(f"http_{status}", f"{self._place} refused the letter with {status}")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
