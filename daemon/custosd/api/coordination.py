"""What agents claim to do, and how the fleet stands as a whole.

    POST   /api/v1/claims        {"files": ["src/parser/"], "goal": "...", "ttl_s": 1800}
    DELETE /api/v1/claims/ID
    GET    /api/v1/claims?limit=100&agent=ada
    GET    /api/v1/fleet

Laws:

1. A token claims for the agent that it speaks for; one that speaks for all says for whom.
2. Who comes second gets 409 and is told who holds what is in its way, and until when.
3. An agent with as many claims as it may have gets 429, until it gives one back.
4. A list is cut at its limit, and says so.
5. The fleet is told to a token with the scope "read"; claims also to any that speaks for an
   agent, since it is for agents that they are there.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from custosd.api.answers import answer, problem, unauthorised
from custosd.api.bearers import Tokens, known_bearer
from custosd.api.bodies import Bodies
from custosd.core.agents import AgentId
from custosd.core.coherence import Coherence
from custosd.core.errors import StoreError
from custosd.core.findings import Finding
from custosd.core.intents import (
    CLAIMS_PER_AGENT,
    Claim,
    Intent,
    RefusedIntent,
    checked_intent,
)
from custosd.core.tokens import Token
from custosd.ports import CoordinationStore

TTL_S = 1_800.0

CLAIMS_TOLD = 100
MOST_CLAIMS_TOLD = 200
"""How many claims one answer tells of, where nothing else is said, and at most."""

_EVERYBODY = "*"
_READ = "read"
_LONGEST_WORDS = 200


class _Asked(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    agent: str = ""
    goal: str = ""
    files: list[str] = []
    repository: str = ""
    ttl_s: float = TTL_S


_asked = msgspec.json.Decoder(_Asked)


class CoordinationEndpoint:
    """The routes for claims and for the fleet."""

    def __init__(
        self,
        store: CoordinationStore,
        tokens: Tokens,
        bodies: Bodies,
        claims_per_agent: int = CLAIMS_PER_AGENT,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._bodies = bodies
        self._claims_per_agent = claims_per_agent

    async def claims(self, request: Request) -> Response:
        """Take a claim, or tell those that last, the oldest first."""
        token = known_bearer(request, self._tokens)
        if token is None or not (token.agent or token.may(_READ)):
            return unauthorised("claims need the token of an agent: Authorization: Bearer ...")
        try:
            if request.method == "POST":
                return await self._take(request, token)
            return await self._told(request)
        except StoreError:
            return _away()

    async def release(self, request: Request) -> Response:
        """Give a claim back."""
        token = known_bearer(request, self._tokens)
        if token is None or not token.agent:
            return unauthorised("a claim is given back with the token of its agent")
        agent = request.query_params.get("agent", "") or token.agent
        if not token.may_beat_for(agent) or agent == _EVERYBODY:
            return problem(HTTPStatus.FORBIDDEN, "denied", "this token speaks for another agent")
        try:
            done = await self._store.release_claim(AgentId(agent), request.path_params["id"])
        except StoreError:
            return _away()
        if not done:
            return problem(HTTPStatus.NOT_FOUND, "not_found", f"{agent} has no such claim")
        return answer(HTTPStatus.OK, {"released": True})

    async def fleet(self, request: Request) -> Response:
        """How the fleet stood when the conductor looked last, and what is open."""
        token = known_bearer(request, self._tokens)
        if token is None or not token.may(_READ):
            return unauthorised('the fleet is told to a token with the scope "read"')
        try:
            readings = await self._store.readings(1)
            findings = await self._store.findings(datetime(9999, 1, 1, tzinfo=UTC))
        except StoreError:
            return _away()
        return answer(HTTPStatus.OK, fleet_form(readings, findings))

    async def _told(self, request: Request) -> Response:
        given = request.query_params.get("limit", str(CLAIMS_TOLD))
        digits = given.isascii() and given.isdigit() and len(given) <= len(str(MOST_CLAIMS_TOLD))
        limit = int(given) if digits else 0
        if not 1 <= limit <= MOST_CLAIMS_TOLD:
            words = f"limit is a number from 1 to {MOST_CLAIMS_TOLD}"
            return problem(HTTPStatus.BAD_REQUEST, "malformed", words)
        agent = request.query_params.get("agent")
        found = await self._store.claims(limit + 1, None if agent is None else AgentId(agent))
        form = {"claims": claim_forms(found[:limit]), "more": len(found) > limit}
        return answer(HTTPStatus.OK, form)

    async def _take(self, request: Request, token: Token) -> Response:
        async with self._bodies.body_of(request) as body:
            try:
                asked = _asked.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                words = f"no claim: {error}"[:_LONGEST_WORDS]
                return problem(HTTPStatus.BAD_REQUEST, "malformed", words)
        agent = asked.agent or token.agent
        if not token.may_beat_for(agent) or agent == _EVERYBODY:
            words = "say for which agent" if agent == _EVERYBODY else "it speaks for another agent"
            return problem(HTTPStatus.FORBIDDEN, "denied", f"this token cannot claim: {words}")
        intent = Intent(AgentId(agent), asked.goal, tuple(asked.files), asked.repository)
        try:
            intent = checked_intent(intent, asked.ttl_s)
        except RefusedIntent as error:
            return problem(HTTPStatus.BAD_REQUEST, "malformed", str(error))
        told = await self._store.take_claim(intent, asked.ttl_s, self._claims_per_agent)
        if told.claim is not None:
            return answer(HTTPStatus.OK, {"claim": claim_forms([told.claim])[0]})
        if not told.held:
            words = (
                f"{agent} has {self._claims_per_agent} claims: give one back, or wait for an end"
            )
            return problem(HTTPStatus.TOO_MANY_REQUESTS, "too_many", words)
        first = told.held[0]
        words = f"{first.intent.agent} holds it until {first.expires_utc:%Y-%m-%dT%H:%M:%SZ}"
        form = {"error": "held", "message": words, "held": claim_forms(told.held)}
        return answer(HTTPStatus.CONFLICT, form)


def claim_forms(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Claims as programs see them."""
    return [
        {
            "id": claim.id,
            "agent": claim.intent.agent,
            "repository": claim.intent.repository,
            "files": claim.intent.files,
            "goal": claim.intent.goal,
            "taken_utc": claim.taken_utc,
            "expires_utc": claim.expires_utc,
        }
        for claim in claims
    ]


def finding_form(finding: Finding) -> dict[str, Any]:
    """A finding as programs see it."""
    sighting = finding.sighting
    return {
        "id": finding.id,
        "concern": finding.concern,
        "kind": sighting.kind,
        "agents": [sighting.one, sighting.other],
        "likeness": sighting.likeness,
        "confidence": sighting.confidence,
        "paths": sighting.paths,
        "first_line": sighting.first_line,
        "last_line": sighting.last_line,
        "judge": sighting.judge,
        "summary": sighting.summary,
        "said": sighting.said,
        "first_seen_utc": finding.first_seen_utc,
        "last_seen_utc": finding.last_seen_utc,
        "sightings": finding.sightings,
        "resolved_utc": finding.resolved_utc,
        "resolution": finding.resolution,
    }


def fleet_form(
    readings: Sequence[tuple[datetime, Coherence]], findings: Sequence[Finding]
) -> dict[str, Any]:
    """The last reading and findings as programs see them."""
    told: dict[str, Any] = {"at_utc": None, "coherence": None}
    if readings:
        at_utc, reading = readings[0]
        form = msgspec.to_builtins(reading) | {"coverage": reading.coverage}
        told = {"at_utc": at_utc, "coherence": form}
    return told | {"findings": [finding_form(finding) for finding in findings]}


def _away() -> Response:
    words = "the database does not answer; try again"
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", words, {"retry-after": "1"})
