"""Tells of concerns by posting them somewhere.

Laws: those of `http_calls`; the answer's body is not read, and whatever is wrong is a
`NotifyError` whose message holds no secret.
"""

from pathlib import Path

import httpx
import trio

from custosd.adapters.http_calls import NoToken, address, answered, authorization
from custosd.adapters.notify.notices import notice_json, notice_key
from custosd.config.secret import Secret
from custosd.core.errors import NotifyError
from custosd.ports import Notice, Notifier


class HttpNotifier(Notifier):
    """Posts each notice as JSON to one URL; a status from 200 to 299 means told.

    `token_file` is read anew for each notice, so that its content may be replaced at any
    time; what it holds goes as a bearer token, and others must not be able to read it.
    `Idempotency-Key` is one for one notice.
    """

    def __init__(self, url: str, token_file: Path | None = None, timeout_s: float = 10.0) -> None:
        self._url = address(url, "an http notifier")
        self._token = Secret("alerts.url_token_file", token_file) if token_file else None
        self._timeout_s = timeout_s

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
        try:
            return await authorization(self._token)
        except NoToken as error:
            raise NotifyError("no_token", str(error)) from error

    async def _post(self, body: bytes, headers: dict[str, str]) -> None:
        try:
            async with answered("POST", self._url, headers, body, self._timeout_s) as response:
                status = response.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"the notice could not be posted: {type(error).__name__}"
            raise NotifyError("unreachable", message) from error
        if not httpx.codes.is_success(status):
            raise NotifyError(f"status_{status}", f"the notice was answered with {status}")
