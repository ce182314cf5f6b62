"""`GET /metrics`: the daemon in numbers, for Prometheus.

Law: it wants a token whose scopes hold `read`, unless it was opened to everybody: what agents
there are, and how they stand, is nothing for strangers.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from custosd.api.answers import problem, unauthorised
from custosd.api.bearers import Tokens, known_bearer

Metrics = Callable[[], Awaitable[bytes]]
"""The numbers as they stand, in Prometheus's text format 0.0.4."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_READ = "read"


class MetricsEndpoint:
    """The route for metrics."""

    def __init__(self, metrics: Metrics, tokens: Tokens, *, everybody: bool = False) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._everybody = everybody

    async def get(self, request: Request) -> Response:
        """Answer with the numbers, if whoever asks may see them."""
        if not self._everybody:
            token = known_bearer(request, self._tokens)
            if token is None:
                words = "metrics need a token that is known: Authorization: Bearer ..."
                return unauthorised(words)
            if not token.may(_READ):
                return problem(HTTPStatus.FORBIDDEN, "denied", "this token has no scope for read")
        headers = {"cache-control": "no-store", "content-type": CONTENT_TYPE}
        return Response(await self._metrics(), HTTPStatus.OK, headers)
