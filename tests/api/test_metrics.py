"""`GET /metrics`: the numbers for whoever may read them, or for everybody where that is said."""

import pytest
from tests.api.conftest import Serve, Side, bearer


async def test_a_token_that_may_read_gets_the_numbers(side: Side) -> None:
    async with side.client() as client:
        answer = await client.get("/metrics", headers=bearer("reader"))
    assert answer.status_code == 200
    assert answer.text == "custosd_agents 3.0\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(("name", "status"), [("ops", 403), ("nobody", 401)])
async def test_no_other_token_gets_them(side: Side, name: str, status: int) -> None:
    assert (await side.ask("GET", "/metrics", headers=bearer(name)))[0] == status


async def test_without_a_token_nobody_gets_them(side: Side) -> None:
    status, form = await side.ask("GET", "/metrics")
    assert (status, form["error"]) == (401, "unauthorised")


async def test_opened_to_everybody_they_need_no_token(serve: Serve) -> None:
    side = await serve(Side(metrics_open=True))
    async with side.client() as client:
        assert (await client.get("/metrics")).text == "custosd_agents 3.0\n"


async def test_where_there_are_none_there_is_no_such_path(serve: Serve) -> None:
    side = await serve(Side(metrics=None))
    assert (await side.ask("GET", "/metrics", headers=bearer("reader")))[0] == 404


async def test_they_are_only_read(side: Side) -> None:
    assert (await side.ask("POST", "/metrics", headers=bearer("root")))[0] == 405


async def test_a_fault_in_them_is_one_answer(serve: Serve) -> None:
    async def broken() -> bytes:
        raise ZeroDivisionError

    side = await serve(Side(metrics=broken))
    status, form = await side.ask("GET", "/metrics", headers=bearer("root"))
    assert (status, form["error"]) == (500, "internal")
