"""Stops and starts an agent by a hook: whoever runs it answers a few HTTP requests.

    GET  URL/status     {"state": "running" | "gone" | "unknown", "progress": 12.5,
                         "exit": {"code": 1} or {"signal": 9, "oom": true}}
    POST URL/interrupt  404, 405 and 501 say that there is no way to do that
    POST URL/stop, URL/kill
    POST URL/spawn      {"key", "agent", "epoch", "cause", "summary", "goal", "task",
                         "constraints"}

Laws:

1. Only an answer 2xx is a yes, and only a status that says so is "gone". Each spawn has an
   Idempotency-Key; of one key the hook starts one incarnation, and says yes each time.
2. No redirect is followed: the token goes to the configured place or nowhere.
3. The whole exchange has one time limit, however slowly the other side drips, and an answer
   is read up to 64 KiB.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec
import trio

from custosd.adapters.control.handover import as_form, plain
from custosd.adapters.hooks import (
    LARGEST_ANSWER_BYTES,
    NoToken,
    address,
    authorization,
    below,
    open_hook,
)
from custosd.adapters.http_client import HttpError, HttpRequest, place_of
from custosd.config.secret import Secret
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, Source, Value
from custosd.ports import AgentControl, HandOver

_NO_WAY = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
)
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_SUCCESS = range(200, 300)
_REDIRECT = range(300, 400)


class _Exit(msgspec.Struct):
    code: int | None = None
    signal: int | None = None
    oom: bool = False


class _Status(msgspec.Struct):
    state: Literal["running", "gone", "unknown"]
    exit: _Exit | None = None
    progress: float | None = None


class HttpControl(AgentControl):
    """One agent's hook. The token is read at each request, from a file that others can not read."""

    def __init__(
        self, url: str, *, token_file: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        self._url = address(url, "an http control")
        self._place = place_of(self._url)
        self._token = Secret("agent.control_token_file", token_file) if token_file else None
        self._timeout_s = timeout_s

    async def sight(self) -> Observation:
        """See the port. Never raises: a hook that can not be asked knows nothing."""
        try:
            told = msgspec.json.decode(await self._ask("GET", "status"), type=_Status)
        except ControlError as error:
            return Observation(Source.PROCESS, Value.UNKNOWN, error.reason)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return Observation(Source.PROCESS, Value.UNKNOWN, "garbled_status")
        match told.state:
            case "running":
                return Observation(Source.PROCESS, Value.OK, "process_there", told.progress)
            case "gone":
                how = Exit(told.exit.code, told.exit.signal, told.exit.oom) if told.exit else None
                return Observation(Source.PROCESS, Value.BAD, "process_gone", exit=how)
            case _:
                return Observation(Source.PROCESS, Value.UNKNOWN, "hook_does_not_know")

    async def interrupt(self) -> None:
        """See the port."""
        await self._ask("POST", "interrupt", unless=_NO_WAY)

    async def stop(self) -> None:
        """See the port."""
        await self._ask("POST", "stop")

    async def kill(self) -> None:
        """See the port."""
        await self._ask("POST", "kill")

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port. The environment of the new incarnation is the hook's to make."""
        headers = {
            "Idempotency-Key": plain(key, "the key of a restart"),
            "Content-Type": "application/json",
        }
        await self._ask(
            "POST", "spawn", headers, json.dumps({"key": key} | as_form(hand_over)).encode()
        )

    async def _ask(
        self,
        method: str,
        verb: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        content: bytes = b"",
        *,
        unless: frozenset[HTTPStatus] = frozenset(),
    ) -> bytes:
        """The body of an answer 2xx to a GET; raises `ControlError` for everything else.

        A status that is in `unless` is taken for a yes.
        """
        try:
            secret = await authorization(self._token)
        except NoToken as error:
            raise ControlError("no_token", str(error)) from error
        request = HttpRequest(method, below(self._url, verb), headers, secret, content)
        try:
            with trio.fail_after(self._timeout_s):
                async with open_hook(self._timeout_s) as http, http.exchange(request) as answer:
                    if answer.status not in _SUCCESS and answer.status not in unless:
                        raise self._refused(answer.status, verb)
                    return await answer.body() if method == "GET" else b""
        except trio.TooSlowError as error:
            raise self._took_too_long() from error
        except HttpError as error:
            raise self._failed(error) from error

    def _took_too_long(self) -> ControlError:
        words = f"{self._place} did not answer within {self._timeout_s:g} s"
        return ControlError("took_too_long", words)

    def _failed(self, error: HttpError) -> ControlError:
        match error.kind:
            case "timeout":
                return self._took_too_long()
            case "too_large":
                words = f"{self._place} said more than {LARGEST_ANSWER_BYTES} bytes"
                return ControlError("answer_too_long", words)
            case _:
                return ControlError("unreachable", f"{error}; does the hook run?")

    def _refused(self, status: int, verb: str) -> ControlError:
        place = f"{self._place} answered {verb} with {status}"
        if status in _REFUSED:
            return ControlError("not_allowed", f"{place}: check control_token_file")
        if status in _REDIRECT:
            return ControlError(
                f"status_{status}", f"{place}: configure the address that it leads to"
            )
        return ControlError(f"status_{status}", place)
