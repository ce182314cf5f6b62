"""Tells of concerns by posting them somewhere.

Laws: redirections are not followed (a token goes where it was meant to go), the answer's
body is not read, and whatever is wrong is a `NotifyError` whose message holds no secret.
"""

from pathlib import Path

import httpx
import trio

from custosd.adapters.notify.notices import notice_json, notice_key
from custosd.core.errors import NotifyError
from custosd.ports import Notice, Notifier

LONGEST_TOKEN = 4_096
"""Bytes of the token's file that are read."""


class HttpNotifier(Notifier):
    """Posts each notice as JSON to one URL; a status from 200 to 299 means told.

    `token_file` is read anew for each notice, so that its content may be replaced at any
    time; what it holds goes as a bearer token. `Idempotency-Key` is one for one notice.
    """

    def __init__(
        self,
        url: str,
        token_file: Path | None = None,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url
        self._token_file = token_file
        self._timeout_s = timeout_s
        self._transport = transport

    @property
    def name(self) -> str:
        """The way, as it is called in facts."""
        return "http"

    async def notify(self, notice: Notice) -> None:
        """Post it; raises `NotifyError` "timeout", "status_N", "unreachable", "no_token"."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": notice_key(notice),
            **await self._authorization(),
        }
        with trio.move_on_after(self._timeout_s) as scope:
            await self._post(notice_json(notice), headers)
        if scope.cancelled_caught:
            raise NotifyError("timeout", f"no answer to the notice in {self._timeout_s:g} s")

    async def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            async with await trio.open_file(self._token_file, "rb") as file:
                token = (await file.read(LONGEST_TOKEN)).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"the token file {self._token_file} cannot be read; see [alerts]"
            raise NotifyError("no_token", message) from error
        if not token.isprintable() or not token:
            raise NotifyError("no_token", f"{self._token_file} holds no token on one line")
        return {"Authorization": f"Bearer {token}"}

    async def _post(self, body: bytes, headers: dict[str, str]) -> None:
        # One connection a notice: they are rare, and a stale one would cost the first try.
        try:
            async with (
                httpx.AsyncClient(
                    transport=self._transport, timeout=self._timeout_s, trust_env=False
                ) as client,
                client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                status = response.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"the notice could not be posted: {type(error).__name__}"
            raise NotifyError("unreachable", message) from error
        if not httpx.codes.is_success(status):
            raise NotifyError(f"status_{status}", f"the notice was answered with {status}")
