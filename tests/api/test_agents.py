"""`GET /api/v1/agents/ID`: everything about one agent, for whoever may read."""

from collections.abc import Mapping

import pytest
import trio
from tests.api.conftest import Serve, Side, bearer

from custosd.core.agent_data import AgentPart
from custosd.core.agents import AgentId

KEY = "ghp_" + "Zq7Lw2Xc" * 5


async def parts(agent: AgentId) -> Mapping[str, AgentPart] | None:
    await trio.lowlevel.checkpoint()
    if agent != "codex:s1/sub":
        return None
    return {
        "verdicts": AgentPart("verdicts", ()),
        "facts": AgentPart("facts", reason="timeout", message=f"no answer; {KEY}"),
    }


@pytest.fixture
async def side(serve: Serve) -> Side:
    return await serve(Side(agents=parts))


async def test_parts_are_values_or_errors_and_never_both(side: Side) -> None:
    status, told = await side.ask("GET", "/api/v1/agents/codex:s1/sub", headers=bearer("reader"))
    assert status == 200
    assert told["agent"] == "codex:s1/sub"
    assert told["parts"]["verdicts"] == {"value": []}
    assert set(told["parts"]["facts"]) == {"error"}
    assert told["parts"]["facts"]["error"]["reason"] == "timeout"
    assert KEY not in str(told)


async def test_nobody_is_told_of_that_is_not_there(side: Side) -> None:
    status, told = await side.ask("GET", "/api/v1/agents/eve", headers=bearer("reader"))
    assert (status, told["error"]) == (404, "not_found")


@pytest.mark.parametrize("token", ["ada", "ops", "nobody"])
async def test_who_may_not_read_is_told_nothing(side: Side, token: str) -> None:
    path = "/api/v1/agents/codex:s1/sub"
    assert (await side.ask("GET", path, headers=bearer(token)))[0] == 401
    assert (await side.ask("GET", path))[0] == 401
