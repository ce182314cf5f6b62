"""The routes, and what stands between them and the server.

Laws:

1. Every answer but that of /metrics is JSON, that of an unknown path or method too.
2. A fault of ours is one 500, logged with its trace; no words of it go out.
3. Whoever is answered before its body was read is still read from until the answer is out:
   else server and client would wait for one another.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from custosd.api.acts import ActsEndpoint
from custosd.api.agents import AgentParts, AgentsEndpoint
from custosd.api.answers import Refused, answer, problem
from custosd.api.bearers import Tokens
from custosd.api.beats import BeatAdmission, BeatsEndpoint
from custosd.api.bodies import Bodies, BodyLimits
from custosd.api.coordination import CoordinationEndpoint
from custosd.api.metrics import Metrics, MetricsEndpoint
from custosd.api.sync import sync_routes
from custosd.api.tasks import task_routes
from custosd.core.intents import CLAIMS_PER_AGENT
from custosd.ports import ActDoor, CoordinationStore, SyncDoor, TaskDoor

log = structlog.get_logger()

Ready = Callable[[], tuple[bool, Sequence[str]]]
"""Whether the daemon is at work, and what is in the way if it is not."""


@dataclass(frozen=True, slots=True)
class ApiPorts:
    """Everybody whom the HTTP side hands over to.

    `metrics` None: there are none; `metrics_open`: they are for everybody, without a token.
    """

    beats: BeatAdmission
    acts: ActDoor
    tokens: Tokens
    ready: Ready
    metrics: Metrics | None = None
    metrics_open: bool = False
    coordination: CoordinationStore | None = None
    tasks: TaskDoor | None = None
    agents: AgentParts | None = None
    sync: SyncDoor | None = None
    claims_per_agent: int = CLAIMS_PER_AGENT


def application(ports: ApiPorts, limits: BodyLimits) -> ASGIApp:
    """The whole HTTP side, as an ASGI application without a lifespan."""
    bodies = Bodies(limits)
    acts = ActsEndpoint(ports.acts, ports.tokens, bodies)
    routes = [
        Route("/api/v1/beats", BeatsEndpoint(ports.beats, ports.tokens, bodies).post, methods=_P),
        Route("/api/v1/acts", acts.post, methods=_P),
        Route("/api/v1/emergency", acts.post_emergency, methods=_P),
        Route("/-/healthy", _healthy, methods=["GET"]),
        Route("/-/ready", _readiness(ports.ready), methods=["GET"]),
    ]
    if ports.metrics is not None:
        metrics = MetricsEndpoint(ports.metrics, ports.tokens, everybody=ports.metrics_open)
        routes.append(Route("/metrics", metrics.get, methods=["GET"]))
    if ports.coordination is not None:
        fleet = CoordinationEndpoint(
            ports.coordination, ports.tokens, bodies, ports.claims_per_agent
        )
        routes += [
            Route("/api/v1/claims", fleet.claims, methods=["GET", "POST"]),
            Route("/api/v1/claims/{id}", fleet.release, methods=["DELETE"]),
            Route("/api/v1/fleet", fleet.fleet, methods=["GET"]),
        ]
    if ports.tasks is not None:
        routes += task_routes(ports.tasks, ports.tokens, bodies)
    if ports.agents is not None:
        agents = AgentsEndpoint(ports.agents, ports.tokens)
        # An agent's id may have slashes in it.
        routes.append(Route("/api/v1/agents/{id:path}", agents.get, methods=["GET"]))
    if ports.sync is not None:
        routes += sync_routes(ports.sync, ports.tokens, bodies)
    handlers = {HTTPException: _no_route, Refused: _refused, Exception: _fault}
    app = Starlette(routes=routes, exception_handlers=handlers)
    # A path with one slash too many is another path, and says so.
    app.router.redirect_slashes = False
    return _Conversations(app)


_P = ["POST"]


async def _healthy(_request: Request) -> Response:
    return answer(HTTPStatus.OK, {"status": "ok"})


def _readiness(ready: Ready) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        is_ready, reasons = ready()
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return answer(status, {"ready": is_ready, "reasons": list(reasons)})

    return endpoint


async def _no_route(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    status = HTTPStatus(error.status_code)
    code = status.name.lower()
    return problem(status, code, status.description or status.phrase, error.headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - what it is registered for
    return error.answer


async def _fault(_request: Request, _error: Exception) -> Response:
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "a fault of the daemon's")


class _Conversations:
    """Law 2 and 3; and nobody is answered who has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        conversation = _Conversation(receive, send)
        try:
            await self._app(scope, conversation.receive, conversation.send)
        except Exception:
            log.exception("http.failed", method=scope["method"][:16], route=_route(scope))


def _route(scope: Scope) -> str:
    # The path as we know it: one that somebody made up belongs in no line.
    return getattr(scope.get("route"), "path", "")


class _Conversation:
    """One request, from its first to its last message."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._whole = self._gone = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        elif not message.get("more_body", False):
            self._whole = True
        return message

    async def send(self, message: Message) -> None:
        if self._gone:
            return
        if self._whole:
            await self._send(message)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain)
            await self._send(message)
            nursery.cancel_scope.cancel("answered")

    async def _drain(self) -> None:
        while not self._gone:
            await self.receive()
