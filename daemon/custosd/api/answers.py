"""What the HTTP side answers: JSON, always, with one form for everything that went wrong.

{"error": "oversize", "message": "a body has at most 1048576 bytes"}
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

_PLAIN: Mapping[str, str] = {"cache-control": "no-store"}


class Refused(Exception):
    """A request that goes no further; `answer` is what its sender is told."""

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def answer(
    status: HTTPStatus, form: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with this JSON object."""
    return Response(encoded(form), status, {**_PLAIN, **(headers or {})}, "application/json")


def problem(
    status: HTTPStatus, error: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that says what is wrong: a snake-case code, and words."""
    return answer(status, {"error": error, "message": message}, headers)


def unauthorised(message: str) -> Response:
    """Nobody knows who asks."""
    scheme = {"www-authenticate": 'Bearer realm="custosd"'}
    return problem(HTTPStatus.UNAUTHORIZED, "unauthorised", message, scheme)


def encoded(form: Mapping[str, Any]) -> bytes:
    """JSON of whatever values; what it has no word for is told as text."""
    try:
        return msgspec.json.encode(form, enc_hook=str)
    except UnicodeEncodeError:
        # Half a surrogate pair has no UTF-8, but an escape.
        return json.dumps(msgspec.to_builtins(form, enc_hook=str)).encode()
