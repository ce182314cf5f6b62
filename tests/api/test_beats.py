"""Beats over HTTP: who is let in, and what the others are told."""

import json
from typing import Any

import pytest
from tests.api.conftest import Side, bearer

from custosd.core.tokens import presented

BEATS = "/api/v1/beats"


def beat(seq: int, agent: str = "ada", **more: Any) -> dict[str, Any]:
    return {"agent": agent, "epoch": 2, "seq": seq} | more


async def test_a_beat_with_its_token_is_let_in(side: Side) -> None:
    assert await side.ask("POST", BEATS, json=beat(1), headers=bearer("ada")) == (
        200,
        {"accepted": 1, "refused": []},
    )
    [received] = await side.register.next_batch()
    assert (received.beat.sequence, received.door) == (1, "http")


async def test_the_token_may_stand_in_the_beat(side: Side) -> None:
    token = presented("ada", "secret-ada")
    status, _ = await side.ask("POST", BEATS, json=beat(1, token=token))
    assert status == 200


async def test_an_array_is_taken_as_far_as_it_goes(side: Side) -> None:
    items = [beat(1), beat(1), beat(1, "bob"), {"agent": "ada"}]
    status, told = await side.ask("POST", BEATS, json=items, headers=bearer("ada"))
    assert (status, told["accepted"]) == (200, 1)
    assert [(one["index"], one["why"]) for one in told["refused"]] == [
        (1, "replayed"),
        (2, "forged"),
        (3, "malformed"),
    ]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "*"])
async def test_what_the_body_is_said_to_be_does_not_matter(side: Side, kind: str) -> None:
    headers = bearer("ada") | {"content-type": kind}
    status, _ = await side.ask("POST", BEATS, content=json.dumps(beat(1)), headers=headers)
    assert status == 200


@pytest.mark.parametrize(
    ("form", "token", "status", "why"),
    [
        (beat(9), "", 401, "forged"),
        (beat(9), "reader", 403, "forged"),
        (beat(9, "bob"), "ada", 403, "forged"),
        (beat(9, "eve"), "all", 403, "unknown_agent"),
        (beat(5), "ada", 409, "replayed"),
        (beat(4), "ada", 409, "replayed"),
        (beat(9, epoch=1), "ada", 409, "old_epoch"),
        (beat(9, epoch=3), "ada", 409, "future_epoch"),
        ({"agent": "ada", "epoch": 2, "seq": "9"}, "ada", 400, "malformed"),
        ([], "ada", 400, "malformed"),
        ([beat(9)] * 1_001, "ada", 413, "oversize"),
    ],
)
async def test_a_beat_that_is_not_let_in_is_told_why(
    side: Side, form: Any, token: str, status: int, why: str
) -> None:
    first = await side.ask("POST", BEATS, json=beat(5), headers=bearer("ada"))
    assert first[0] == 200
    headers = bearer(token) if token else {}
    got, told = await side.ask("POST", BEATS, json=form, headers=headers)
    assert (got, told["accepted"], told["refused"][0]["why"]) == (status, 0, why)
    assert told["refused"][0]["detail"]
    assert side.register.accepted == 1


async def test_a_full_register_asks_to_come_again(side: Side) -> None:
    for agent in ("a", "b", "c"):
        await side.ask("POST", BEATS, json=beat(1, agent), headers=bearer("all"))
    async with side.client() as client:
        answer = await client.post(BEATS, json=beat(1, "d"), headers=bearer("all"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["refused"][0]["why"] == "full"


@pytest.mark.parametrize(
    "header",
    [
        "Bearer cust_ada_wrong",
        "Bearer cust_nobody_secret-ada",
        "Bearer nonsense",
        "bearer cust_ada_secret-ada-and-more",
    ],
)
async def test_a_wrong_key_lets_nobody_in_and_is_counted(side: Side, header: str) -> None:
    async with side.client() as client:
        answer = await client.post(BEATS, json=beat(1), headers={"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert sum(side.register.take_counts().refused.values()) == 1


@pytest.mark.parametrize("header", ["Basic YWRhOnNlY3JldA==", "Bearer", "Bearer " + "x" * 9_000])
async def test_what_is_no_key_counts_as_none(side: Side, header: str) -> None:
    status, _ = await side.ask("POST", BEATS, json=beat(1), headers={"authorization": header})
    assert status == 401


async def test_a_revoked_token_is_worth_nothing_at_once(side: Side) -> None:
    del side.tokens["ada"]
    status, _ = await side.ask("POST", BEATS, json=beat(1), headers=bearer("ada"))
    assert status == 401
