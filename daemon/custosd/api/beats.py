"""`POST /api/v1/beats`: one beat or an array, with a token for all or one in each beat.

Law: the status is 200 where at least one beat was let in; else it says why the first was not.
The body always says what became of each.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from custosd.api.answers import answer
from custosd.api.bearers import Tokens, bearer_in, known_bearer
from custosd.api.bodies import Bodies, Oversize
from custosd.core.beats import Refusal

DOOR = "http"
_MOST_TOLD = 1_000

STATUS: Mapping[Refusal, HTTPStatus] = {
    Refusal.MALFORMED: HTTPStatus.BAD_REQUEST,
    Refusal.OVERSIZE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Refusal.UNKNOWN_AGENT: HTTPStatus.FORBIDDEN,
    Refusal.FORGED: HTTPStatus.FORBIDDEN,
    Refusal.OLD_EPOCH: HTTPStatus.CONFLICT,
    Refusal.FUTURE_EPOCH: HTTPStatus.CONFLICT,
    Refusal.REPLAYED: HTTPStatus.CONFLICT,
    Refusal.FULL: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Admitted(Protocol):
    """What became of one message; `identified`: a token came with it that is one of ours."""

    @property
    def accepted(self) -> int:
        """How many beats were let in."""
        ...

    @property
    def identified(self) -> bool:
        """Whether one of its tokens is known."""
        ...

    @property
    def refusal(self) -> Refusal | None:
        """Why the first one that was refused was."""
        ...

    def form(self, most: int) -> dict[str, Any]:
        """What the sender is told."""
        ...


class BeatAdmission(Protocol):
    """Who reads beats, and lets them in or not. Never waits, never raises."""

    def admit(
        self, data: bytes | bytearray | memoryview, door: str, *, bearer: str = ""
    ) -> Admitted:
        """Let in what may come in."""
        ...

    def turned_away(self, refusal: Refusal, detail: str = "") -> Admitted:
        """Count what was not even read, and say so."""
        ...


class BeatsEndpoint:
    """The route for beats."""

    def __init__(self, admission: BeatAdmission, tokens: Tokens, bodies: Bodies) -> None:
        self._admission = admission
        self._tokens = tokens
        self._bodies = bodies

    async def post(self, request: Request) -> Response:
        """Take the beats in the body."""
        bearer = bearer_in(request)
        if bearer and known_bearer(request, self._tokens) is None:
            # Whoever presents a wrong key is not listened to, and its body not waited for.
            words = "the token is not known, or was revoked"
            return _told(self._admission.turned_away(Refusal.FORGED, words))
        try:
            async with self._bodies.body_of(request) as body:
                return _told(self._admission.admit(body, DOOR, bearer=bearer))
        except Oversize:
            self._admission.turned_away(Refusal.OVERSIZE)
            raise


def _told(admitted: Admitted) -> Response:
    form = admitted.form(_MOST_TOLD)
    refusal = admitted.refusal
    if admitted.accepted or refusal is None:
        return answer(HTTPStatus.OK, form)
    if refusal is Refusal.FORGED and not admitted.identified:
        scheme = {"www-authenticate": 'Bearer realm="custosd"'}
        return answer(HTTPStatus.UNAUTHORIZED, form, scheme)
    headers = {"retry-after": "5"} if refusal is Refusal.FULL else {}
    return answer(STATUS[refusal], form, headers)
