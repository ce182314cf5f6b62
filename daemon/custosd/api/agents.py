"""Everything about one agent, in parts: for whoever may read.

    GET /api/v1/agents/ID
    {"agent": "ID", "parts": {"verdicts": {"value": [...]}, "workspace": {"error": {...}}, ...}}

Law: a part that could not be had has an "error" (reason, message) and no "value".
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from custosd.api.answers import answer, problem, unauthorised
from custosd.api.bearers import Tokens, known_bearer
from custosd.api.coordination import finding_form
from custosd.api.forms import Form, agent_form, entry_form, verdict_form
from custosd.core.agent_data import AgentPart, Standing
from custosd.core.agents import AgentId
from custosd.core.secrets import without_secrets
from custosd.core.task_forms import task_form
from custosd.core.workspaces import Workspace

_READ = "read"

AgentParts = Callable[[AgentId], Awaitable[Mapping[str, AgentPart] | None]]
"""All parts of an agent; None where there is no such agent."""


class AgentsEndpoint:
    """The route for one agent."""

    def __init__(self, parts: AgentParts, tokens: Tokens) -> None:
        self._parts = parts
        self._tokens = tokens

    async def get(self, request: Request) -> Response:
        """What is known of the agent."""
        token = known_bearer(request, self._tokens)
        if token is None or not token.may(_READ):
            return unauthorised('an agent is told of to a token with the scope "read"')
        agent = AgentId(request.path_params["id"])
        parts = await self._parts(agent)
        if parts is None:
            return problem(HTTPStatus.NOT_FOUND, "not_found", "there is no such agent")
        return answer(HTTPStatus.OK, {"agent": agent, "parts": part_forms(parts)})


def part_forms(parts: Mapping[str, AgentPart]) -> Form:
    """The parts as programs see them: each `{"value": ...}` or `{"error": ...}`."""
    return {name: _part_form(part) for name, part in parts.items()}


def _part_form(part: AgentPart) -> Form:
    if part.reason:
        message = without_secrets(part.message)
        return {"error": {"reason": part.reason, "message": message}}
    return {"value": value_form(part)}


def value_form(part: AgentPart) -> Any:
    """The value of a part, in the form that it has everywhere."""
    match part.value:
        case Standing(view=view, life=life):
            if view is not None:
                return agent_form(view, life)
            return None if life is None else {"life": msgspec.to_builtins(life)}
        case Workspace() as seen:
            return workspace_form(seen)
        case tuple() as values:
            form = _FORMS[part.name]
            return [form(value) for value in values]
        case value:
            return msgspec.to_builtins(value)


def workspace_form(seen: Workspace) -> Form:
    """A folder as programs see it."""
    form: Form = msgspec.to_builtins(seen)
    if seen.repository is not None:
        form["repository"]["dirty"] = seen.repository.dirty
    return form


def _setting_form(setting: Any) -> Form:
    value = without_secrets(setting.value)
    return {"key": setting.key, "value": value, "place": setting.place}


_FORMS: Mapping[str, Callable[[Any], Any]] = {
    "configuration": _setting_form,
    "verdicts": verdict_form,
    "facts": entry_form,
    "tasks": task_form,
    "findings": lambda finding: msgspec.to_builtins(finding_form(finding)),
}
