"""External sync: what was seen on forges, and what forges tell by themselves.

    GET  /api/v1/sync                what is followed, and how it goes
    POST /api/v1/webhooks/github     as GitHub sends it, signed

Laws:

1. A hook needs no token: its signature is its proof, over the raw body as it came.
2. It is stored before it is answered; one that was taken before is answered 409, one that
   could not be stored 503: it may come again.
3. Of a body that is too large nothing is read; what it told is found by asking.
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
from custosd.core.errors import StoreError
from custosd.core.forge import ForgeWork, HookRefusal, HookRefused, WorkQuery
from custosd.ports import SyncDoor, SyncStore

WORKS_SHOWN = 50
CLOSINGS_SHOWN = 50

_READ = "read"
_STATUS: Mapping[HookRefusal, HTTPStatus] = {
    HookRefusal.UNSIGNED: HTTPStatus.UNAUTHORIZED,
    HookRefusal.MALFORMED: HTTPStatus.BAD_REQUEST,
    HookRefusal.REPLAYED: HTTPStatus.CONFLICT,
    HookRefusal.UNKNOWN: HTTPStatus.NOT_FOUND,
    HookRefusal.UNVERIFIED: HTTPStatus.FORBIDDEN,
    HookRefusal.BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
}


def sync_routes(door: SyncDoor, tokens: Tokens, bodies: Bodies) -> list[Route]:
    """The routes, before a door."""
    endpoint = _SyncEndpoint(door, tokens, bodies)
    return [
        Route("/api/v1/sync", endpoint.get, methods=["GET"]),
        Route("/api/v1/webhooks/{forge}", endpoint.post, methods=["POST"]),
    ]


class _SyncEndpoint:
    def __init__(self, door: SyncDoor, tokens: Tokens, bodies: Bodies) -> None:
        self._door = door
        self._tokens = tokens
        self._bodies = bodies

    async def get(self, request: Request) -> Response:
        token = known_bearer(request, self._tokens)
        if token is None or not token.may(_READ):
            return unauthorised('sync is told to a token with the scope "read"')
        try:
            return answer(HTTPStatus.OK, await sync_form(self._door.store))
        except StoreError:
            return _busy("the database does not answer; try again")

    async def post(self, request: Request) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        async with self._bodies.body_of(request) as body:
            try:
                forge = request.path_params["forge"]
                changed = await self._door.receive(forge, headers, bytes(body))
            except HookRefused as refused:
                if refused.refusal is HookRefusal.BUSY:
                    return _busy(str(refused))
                return problem(_STATUS[refused.refusal], refused.refusal.value, str(refused))
        return answer(HTTPStatus.ACCEPTED, {"changed": changed})


async def sync_form(store: SyncStore) -> dict[str, Any]:
    """What is known of sync, as programs see it: repositories, works, ends of tasks."""
    return {
        "repositories": [msgspec.to_builtins(record) for record in await store.records()],
        "works": [work_form(work) for work in await store.works(WorkQuery(limit=WORKS_SHOWN))],
        "closings": [
            msgspec.to_builtins(closing) for closing in await store.closings(CLOSINGS_SHOWN)
        ],
    }


def work_form(work: ForgeWork) -> dict[str, Any]:
    """A work as programs see it."""
    form: dict[str, Any] = msgspec.to_builtins(work)
    return form


def _busy(words: str) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", words, {"retry-after": "1"})
