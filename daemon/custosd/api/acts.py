"""`POST /api/v1/acts`: what a program with a token asks the daemon to do.

    {"act": "pause", "subject": "builder-1", "arguments": {"reason": "maintenance"}}
    {"outcome": "done", "message": "builder-1 is paused", "detail": {...}}

Laws:

1. Nothing is done without a token whose scopes name the act; `read` will do for those acts
   that only tell.
2. A request with a field that is not known is refused: whoever misspells `dry_run` must not
   have done what was only to be tried.
3. An act that has begun goes on to its end, also when the one who asked has gone.
"""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from custosd.api.answers import answer, problem, unauthorised
from custosd.api.bearers import Tokens, known_bearer
from custosd.api.bodies import Bodies
from custosd.core.acts import TELLING, Act, ActOutcome, ActRequest
from custosd.core.secrets import without_secrets
from custosd.core.tokens import Token
from custosd.ports import ActDoor

log = structlog.get_logger()

STATUS: Mapping[ActOutcome, HTTPStatus] = {
    ActOutcome.DONE: HTTPStatus.OK,
    ActOutcome.WOULD_BE_DONE: HTTPStatus.OK,
    ActOutcome.NOTHING_TO_DO: HTTPStatus.OK,
    ActOutcome.REFUSED: HTTPStatus.CONFLICT,
    ActOutcome.UNKNOWN_SUBJECT: HTTPStatus.NOT_FOUND,
    ActOutcome.FAILED: HTTPStatus.BAD_GATEWAY,
}

_READ = "read"
_LONGEST_WORDS = 200


class _Asked(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    act: Act
    subject: str = ""
    text: str = ""
    arguments: dict[str, str | int | float | bool] = {}
    dry_run: bool = False


_asked = msgspec.json.Decoder(_Asked)


class ActsEndpoint:
    """The route for acts."""

    def __init__(self, door: ActDoor, tokens: Tokens, bodies: Bodies) -> None:
        self._door = door
        self._tokens = tokens
        self._bodies = bodies

    async def post(self, request: Request) -> Response:
        """Do what the body asks for, if the token may."""
        token = known_bearer(request, self._tokens)
        if token is None:
            return unauthorised("an act needs a token that is known: Authorization: Bearer ...")
        async with self._bodies.body_of(request) as body:
            try:
                asked = _asked.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                return problem(HTTPStatus.BAD_REQUEST, "malformed", _words(error))
        if not _may(token, asked.act):
            log.warning("act.denied", token=token.id, act=asked.act.value)
            words = f"this token has no scope for {asked.act.value}"
            return problem(HTTPStatus.FORBIDDEN, "denied", words)
        done = await self._door.perform(
            ActRequest(
                asked.act,
                f"token:{token.id}",
                asked.subject,
                asked.text,
                asked.arguments,
                asked.dry_run,
            )
        )
        # An error's words may quote an address with its login.
        words = without_secrets(done.message)
        form = {"outcome": done.outcome, "message": words, "detail": dict(done.detail)}
        return answer(STATUS[done.outcome], form)


def _may(token: Token, act: Act) -> bool:
    return token.may(act.value) or (act in TELLING and token.may(_READ))


def _words(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
        case _:
            return f"no request: {error}"[:_LONGEST_WORDS]
