"""`POST /api/v1/acts`: what a program with a token asks the daemon to do.

    {"act": "pause", "subject": "builder-1", "arguments": {"reason": "maintenance"}}
    {"outcome": "done", "message": "builder-1 is paused", "detail": {...}}

`POST /api/v1/emergency` is the act "emergency", for several agents: judged now, all at once.

    {"agents": ["builder-1", "builder-2"], "deadline_s": 60}
    {"outcome": "partly_done", "message": "1 of 2 ...", "detail": {"analyses": [...], ...}}

Laws:

1. Nothing is done without a token whose scopes name the act; `read` will do for those acts
   that only tell.
2. A request with a field that is not known is refused: whoever misspells `dry_run` must not
   have done what was only to be tried.
3. An act that has begun goes on to its end, also when the one who asked has gone.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from custosd.api.answers import answer, problem, unauthorised
from custosd.api.bearers import Tokens, known_bearer
from custosd.api.bodies import Bodies
from custosd.core.act_arguments import DEADLINE_S
from custosd.core.acts import TELLING, Act, ActOutcome, ActRequest
from custosd.core.secrets import without_secrets
from custosd.core.tokens import Token
from custosd.ports import ActDoor

log = structlog.get_logger()

STATUS: Mapping[ActOutcome, HTTPStatus] = {
    ActOutcome.DONE: HTTPStatus.OK,
    ActOutcome.PARTLY_DONE: HTTPStatus.OK,
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


class _Emergency(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    agents: list[str]
    deadline_s: float = DEADLINE_S
    reason: str = ""
    dry_run: bool = False


_asked = msgspec.json.Decoder(_Asked)
_emergency = msgspec.json.Decoder(_Emergency)


class ActsEndpoint:
    """The route for acts."""

    def __init__(self, door: ActDoor, tokens: Tokens, bodies: Bodies) -> None:
        self._door = door
        self._tokens = tokens
        self._bodies = bodies

    async def post(self, request: Request) -> Response:
        """Do what the body asks for, if the token may."""
        return await self._answered(request, _any_act)

    async def post_emergency(self, request: Request) -> Response:
        """Have the agents that the body names judged now, if the token may."""
        return await self._answered(request, _an_emergency)

    async def _answered(self, request: Request, read: Callable[[bytearray], _Asked]) -> Response:
        token = known_bearer(request, self._tokens)
        if token is None:
            return unauthorised("an act needs a token that is known: Authorization: Bearer ...")
        async with self._bodies.body_of(request) as body:
            try:
                asked = read(body)
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


def _any_act(body: bytearray) -> _Asked:
    return _asked.decode(body)


def _an_emergency(body: bytearray) -> _Asked:
    """Raises `msgspec.DecodeError`, also for a name of more than one line."""
    asked = _emergency.decode(body)
    if any("\n" in name for name in asked.agents):
        raise msgspec.ValidationError("a name of an agent is one line")
    arguments: dict[str, str | int | float | bool] = {"deadline_s": asked.deadline_s}
    if asked.reason:
        arguments["reason"] = asked.reason
    names = "\n".join(asked.agents)
    return _Asked(Act.EMERGENCY, names, "", arguments, asked.dry_run)


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
