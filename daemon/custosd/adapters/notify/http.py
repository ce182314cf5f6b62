"""Tells of concerns by posting them somewhere.

Laws: those of `hooks`; the answer's body is not read, and whatever is wrong is a
`NotifyError` whose message holds no secret.
"""

from pathlib import Path

import trio

from custosd.adapters.hooks import NoToken, address, authorization, open_hook
from custosd.adapters.http_client import HttpError, HttpRequest
from custosd.adapters.notify.notices import notice_json, notice_key
from custosd.config.secret import Secret
from custosd.core.errors import NotifyError
from custosd.ports import Notice, Notifier

_SUCCESS = range(200, 300)


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
        headers = {"Content-Type": "application/json", "Idempotency-Key": notice_key(notice)}
        body = notice_json(notice)
        request = HttpRequest("POST", self._url, headers, await self._authorization(), body)
        with trio.move_on_after(self._timeout_s) as scope:
            await self._post(request)
        if scope.cancelled_caught:
            raise self._took_too_long()

    async def _authorization(self) -> dict[str, str]:
        try:
            return await authorization(self._token)
        except NoToken as error:
            raise NotifyError("no_token", str(error)) from error

    async def _post(self, request: HttpRequest) -> None:
        try:
            async with open_hook(self._timeout_s) as http, http.exchange(request) as answer:
                status = answer.status
        except HttpError as error:
            if error.kind == "timeout":
                raise self._took_too_long() from error
            message = f"the notice could not be posted: {error}"
            raise NotifyError("unreachable", message) from error
        if status not in _SUCCESS:
            raise NotifyError(f"status_{status}", f"the notice was answered with {status}")

    def _took_too_long(self) -> NotifyError:
        return NotifyError("timeout", f"no answer to the notice in {self._timeout_s:g} s")
