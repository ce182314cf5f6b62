"""Stops and starts an agent by a hook: whoever runs it answers a few HTTP requests.

    GET  URL/status     {"state": "running" | "gone" | "unknown", "exit": {"code", "signal", "oom"}}
    POST URL/interrupt, URL/stop, URL/kill    any 2xx
    POST URL/spawn      {"agent", "epoch", "cause", "summary", "goal", "task", "constraints"}

Every POST carries an Idempotency-Key; of one key at most one incarnation may be started.
"""

from pathlib import Path
from typing import Literal

import httpx
import msgspec

from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, Source, Value
from custosd.ports import HandOver

LONGEST_ANSWER = 64 * 1024


class _Exit(msgspec.Struct):
    code: int | None = None
    signal: int | None = None
    oom: bool = False


class _Status(msgspec.Struct):
    state: Literal["running", "gone", "unknown"]
    exit: _Exit | None = None
    progress: float | None = None


class HttpControl:
    """`ports.AgentControl` over a hook. `token_file` is read at each request."""

    def __init__(
        self, url: str, *, token_file: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._timeout_s = timeout_s

    async def sight(self) -> Observation:
        """See the port."""
        try:
            told = msgspec.json.decode(await self._ask("GET", "status"), type=_Status)
        except ControlError as error:
            return Observation(Source.PROCESS, Value.UNKNOWN, error.reason)
        except msgspec.MsgspecError:
            return Observation(Source.PROCESS, Value.UNKNOWN, "garbled_status")
        match told.state:
            case "running":
                return Observation(Source.PROCESS, Value.OK, "process_there", told.progress)
            case "gone":
                how = Exit(told.exit.code, told.exit.signal, told.exit.oom) if told.exit else None
                return Observation(Source.PROCESS, Value.BAD, "process_gone", None, None, how)
            case _:
                return Observation(Source.PROCESS, Value.UNKNOWN, "hook_does_not_know")

    async def interrupt(self) -> None:
        """See the port."""
        await self._ask("POST", "interrupt")

    async def stop(self) -> None:
        """See the port."""
        await self._ask("POST", "stop")

    async def kill(self) -> None:
        """See the port."""
        await self._ask("POST", "kill")

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port."""
        body = msgspec.json.encode(
            {
                "agent": hand_over.agent,
                "epoch": hand_over.epoch,
                "cause": hand_over.cause,
                "summary": hand_over.summary,
                "goal": hand_over.goal,
                "task": hand_over.task,
                "constraints": list(hand_over.constraints),
            }
        )
        await self._ask("POST", "spawn", key=key, body=body)

    async def _ask(self, method: str, verb: str, *, key: str = "", body: bytes = b"") -> bytes:
        url = f"{self._url}/{verb}"
        headers = {"Idempotency-Key": key} if key else {}
        if body:
            headers["Content-Type"] = "application/json"
        try:
            if self._token_file is not None:
                headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
            async with (
                httpx.AsyncClient(timeout=self._timeout_s, trust_env=False) as client,
                client.stream(method, url, headers=headers, content=body) as response,
            ):
                return await _answer(response, url)
        except httpx.TimeoutException as error:
            raise ControlError("took_too_long", f"{url} did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ControlError("unreachable", f"{url}: {error}") from error
        except (OSError, UnicodeError) as error:
            raise ControlError("no_token", f"{self._token_file}: {error}") from error


async def _answer(response: httpx.Response, url: str) -> bytes:
    said = bytearray()
    async for chunk in response.aiter_bytes():
        said += chunk
        if len(said) > LONGEST_ANSWER:
            raise ControlError("answer_too_long", f"{url} said more than {LONGEST_ANSWER} bytes")
    if not response.is_success:
        refused = response.status_code in {401, 403}
        reason = "not_allowed" if refused else f"status_{response.status_code}"
        raise ControlError(reason, f"{url} answered with {response.status_code}")
    return bytes(said)
