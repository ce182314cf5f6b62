"""`/api/v1/tasks`: the fleet's tasks, for programs that order and agents that work.

    GET  /api/v1/tasks?state=ready&limit=100       POST /api/v1/tasks/add     {"tasks": [...]}
    GET  /api/v1/tasks?id=a&id=b                   POST /api/v1/tasks/claim   {"agent": ...}
    GET  /api/v1/tasks/next?limit=10               POST /api/v1/tasks/complete {"task": ...}
    GET  /api/v1/tasks/assigned?agent=builder-1    ... link, cancel, extend, fail

Laws:

1. Nothing is told or done without a token: scope `task` has authority over all tasks, `read`
   sees them; an agent's own token claims and ends that agent's work, under its fence.
2. What is not known in a request refuses it, as in `api.acts`.
3. A claim with a `key` may be sent again when its answer was lost.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from custosd.api.answers import answer, problem, unauthorised
from custosd.api.bearers import Tokens, known_bearer
from custosd.api.bodies import Bodies
from custosd.core.acts import Act, ActAnswer, ActOutcome
from custosd.core.task_forms import ORDERING, WORKING, Asker
from custosd.core.tokens import Token
from custosd.ports import TaskDoor

PATH = "/api/v1/tasks"
RETRY_AFTER_S = "1"

_READ = "read"
_STATUS: Mapping[str, HTTPStatus] = {
    "malformed": HTTPStatus.BAD_REQUEST,
    "denied": HTTPStatus.FORBIDDEN,
    "unknown_task": HTTPStatus.NOT_FOUND,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "store": HTTPStatus.BAD_GATEWAY,
}
_LISTS = {"state": "states", "agent": "agents", "capability": "capabilities", "id": "tasks"}


def task_routes(door: TaskDoor, tokens: Tokens, bodies: Bodies) -> list[Route]:
    """The routes, before a door."""
    endpoint = _TasksEndpoint(door, tokens, bodies)
    return [
        Route(PATH, endpoint.get, methods=["GET"]),
        Route(PATH + "/{operation}", endpoint.get_named, methods=["GET"]),
        Route(PATH + "/{operation}", endpoint.post, methods=["POST"]),
    ]


class _TasksEndpoint:
    def __init__(self, door: TaskDoor, tokens: Tokens, bodies: Bodies) -> None:
        self._door = door
        self._tokens = tokens
        self._bodies = bodies

    async def get(self, request: Request) -> Response:
        operation = "show" if "id" in request.query_params else "list"
        return await self._asked(request, operation, _form_of(request))

    async def get_named(self, request: Request) -> Response:
        operation = request.path_params["operation"]
        if operation not in {"next", "assigned"}:
            return _no_such(operation)
        return await self._asked(request, operation, _form_of(request))

    async def post(self, request: Request) -> Response:
        operation = request.path_params["operation"]
        if operation not in ORDERING | WORKING:
            return _no_such(operation)
        if known_bearer(request, self._tokens) is None:
            return _stranger()
        async with self._bodies.body_of(request) as body:
            try:
                form = msgspec.json.decode(body or b"{}")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                form = None
        if not isinstance(form, dict):
            return problem(HTTPStatus.BAD_REQUEST, "malformed", "the body is no JSON object")
        return await self._asked(request, operation, form)

    async def _asked(self, request: Request, operation: str, form: dict[str, Any]) -> Response:
        token = known_bearer(request, self._tokens)
        if token is None:
            return _stranger()
        return _answer_of(await self._door.ask(operation, form, _asker(token)))


def _asker(token: Token) -> Asker:
    return Asker(
        f"token:{token.id}",
        commands=token.may(Act.TASK.value),
        reads=token.may(_READ),
        speaks_for=token.may_beat_for,
    )


def _form_of(request: Request) -> dict[str, Any]:
    """A query as a form: names that may come several times become lists."""
    form: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _LISTS:
            form.setdefault(_LISTS[name], []).append(value)
        else:
            # What is no whole number is refused by whoever reads the form.
            is_whole = value.isascii() and value.isdigit() and len(value) < 10  # noqa: PLR2004 - digits that fit
            form[name] = int(value) if is_whole and name == "limit" else value
    return form


def _answer_of(told: ActAnswer) -> Response:
    good = told.outcome in {ActOutcome.DONE, ActOutcome.NOTHING_TO_DO}
    if good:
        return answer(HTTPStatus.OK, {"message": told.message, **told.detail})
    code = str(told.detail.get("error", "refused"))
    status = _STATUS.get(code, HTTPStatus.CONFLICT)
    headers = {"retry-after": RETRY_AFTER_S} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    return answer(status, {**told.detail, "error": code, "message": told.message}, headers)


def _stranger() -> Response:
    return unauthorised("tasks need a token that is known: Authorization: Bearer ...")


def _no_such(operation: str) -> Response:
    known = ", ".join(sorted(ORDERING | WORKING))
    words = f"there is no {operation[:50]!r} here; posted are: {known}"
    return problem(HTTPStatus.NOT_FOUND, "not_found", words)
