"""Claims and the fleet over HTTP: for those who may, and with who holds what."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.api.conftest import Serve, Side, bearer
from tests.contracts.coordination_contract import finding, reading
from tests.contracts.store_values import NOON

from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.core.errors import StoreUnavailable

CLAIMS = "/api/v1/claims"


@pytest.fixture
def store() -> MemoryCoordination:
    return MemoryCoordination()


@pytest.fixture
async def side(serve: Serve, store: MemoryCoordination) -> Side:
    return await serve(Side(coordination=store))


async def claim(side: Side, token: str, **form: Any) -> tuple[int, Any]:
    return await side.ask("POST", CLAIMS, json=form, headers=bearer(token))


async def test_a_second_taker_is_told_who_holds_it_until_it_is_given_back(side: Side) -> None:
    status, told = await claim(side, "ada", files=["src/"], goal="Fix the parser")
    assert status == 200
    assert told["claim"]["agent"] == "ada"
    again, second = await claim(side, "all", agent="bob", files=["src/parser.py"])
    assert again == 409
    assert second["error"] == "held"
    assert second["message"].startswith("ada holds it until ")
    assert [held["files"] for held in second["held"]] == [["src/"]]
    path = f"{CLAIMS}/{told['claim']['id']}"
    assert (await side.ask("DELETE", f"{path}?agent=bob", headers=bearer("all")))[0] == 404
    assert (await side.ask("DELETE", path, headers=bearer("ada")))[0] == 200
    assert (await claim(side, "all", agent="bob", files=["src/parser.py"]))[0] == 200


@pytest.mark.parametrize(
    ("token", "form", "status"),
    [
        ("ada", {"files": ["a.py"]}, 200),
        ("ada", {"agent": "bob", "files": ["a.py"]}, 403),
        ("all", {"files": ["a.py"]}, 403),
        ("ops", {"agent": "ada", "files": ["a.py"]}, 401),
        ("reader", {"agent": "ada", "files": ["a.py"]}, 403),
        ("ada", {}, 400),
        ("ada", {"files": [""]}, 400),
        ("ada", {"files": ["a.py"], "ttl_s": 0}, 400),
        ("ada", {"files": ["a.py"], "ttl_s": 1e9}, 400),
        ("ada", {"file": ["a.py"]}, 400),
        ("ada", {"files": ["../a.py"]}, 400),
        ("ada", {"files": ["a/" * 100]}, 400),
        ("ada", {"files": ["x"] * 10 + [f"{n}" for n in range(300)]}, 400),
    ],
)
async def test_who_may_claim_what(
    side: Side, token: str, form: Mapping[str, Any], status: int
) -> None:
    assert (await claim(side, token, **form))[0] == status


async def test_nobody_is_told_anything_without_a_token(side: Side) -> None:
    for method, path in (("POST", CLAIMS), ("GET", CLAIMS), ("GET", "/api/v1/fleet")):
        assert (await side.ask(method, path, json={"files": ["a"]}))[0] == 401
    assert (await side.ask("DELETE", f"{CLAIMS}/x"))[0] == 401
    assert (await side.ask("GET", "/api/v1/fleet", headers=bearer("ada")))[0] == 401


async def test_claims_that_last_are_told_to_agents_and_readers(side: Side) -> None:
    await claim(side, "ada", files=["a.py"])
    for token in ("ada", "reader"):
        status, told = await side.ask("GET", CLAIMS, headers=bearer(token))
        assert status == 200
        assert [each["files"] for each in told["claims"]] == [["a.py"]]


async def test_a_list_is_cut_at_its_limit_and_says_so(side: Side) -> None:
    for number in range(3):
        await claim(side, "all", agent="bob" if number else "ada", files=[f"{number}.py"])
    for query, numbers, more in (
        ("", "012", False),
        ("?limit=2", "01", True),
        ("?limit=3", "012", False),
        ("?agent=bob", "12", False),
        ("?agent=bob&limit=1", "1", True),
        ("?agent=cyd", "", False),
    ):
        status, told = await side.ask("GET", CLAIMS + query, headers=bearer("reader"))
        assert status == 200
        assert [each["files"][0] for each in told["claims"]] == [f"{n}.py" for n in numbers]
        assert told["more"] is more
    for limit in ("0", "201", "-1", "x", "\u0663", "", "9" * 50):
        path = f"{CLAIMS}?limit={limit}"
        assert (await side.ask("GET", path, headers=bearer("reader")))[0] == 400, limit


async def test_an_agent_has_so_many_claims_and_no_more(
    serve: Serve, store: MemoryCoordination
) -> None:
    side = await serve(Side(coordination=store, claims_per_agent=2))
    for path in ("a.py", "b.py", "a.py"):
        assert (await claim(side, "ada", files=[path]))[0] == 200
    status, told = await claim(side, "ada", files=["c.py"])
    assert (status, told["error"]) == (429, "too_many")
    assert told["message"].startswith("ada has 2 claims")
    assert (await claim(side, "all", agent="bob", files=["c.py"]))[0] == 200


async def test_the_fleet_is_told_with_its_findings(side: Side, store: MemoryCoordination) -> None:
    status, told = await side.ask("GET", "/api/v1/fleet", headers=bearer("reader"))
    assert (status, told) == (200, {"at_utc": None, "coherence": None, "findings": []})
    await store.save_sweep(NOON, reading(), [finding()])
    _, told = await side.ask("GET", "/api/v1/fleet", headers=bearer("reader"))
    assert told["coherence"]["status"] == "normal"
    assert told["coherence"]["coverage"] == 0.75
    assert [each["concern"] for each in told["findings"]] == ["finding:f1.2"]
    assert json.dumps(told)


async def test_a_database_that_is_away_is_said(side: Side, store: MemoryCoordination) -> None:
    store.fail_with(StoreUnavailable("gone"))
    assert (await claim(side, "ada", files=["a.py"]))[0] == 503
    assert (await side.ask("GET", "/api/v1/fleet", headers=bearer("reader")))[0] == 503
    assert (await side.ask("DELETE", f"{CLAIMS}/x", headers=bearer("ada")))[0] == 503


async def test_without_a_conductor_there_are_no_such_routes(serve: Serve) -> None:
    bare = await serve(Side())
    assert (await bare.ask("GET", CLAIMS, headers=bearer("ada")))[0] == 404
