"""Acts over HTTP: only with a token whose scopes name them."""

from dataclasses import replace
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from tests.api.conftest import Serve, Side, bearer

from custosd.api.serving import ApiLimits
from custosd.core.act_arguments import LONGEST_DEADLINE_S
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.services.acts import PAST_DEADLINE_S, TIMEOUT_S

ACTS = "/api/v1/acts"
PAUSE = {"act": "pause", "subject": "ada", "arguments": {"for_s": 60}, "dry_run": True}


async def test_an_act_arrives_whole_with_the_token_as_its_author(side: Side) -> None:
    status, told = await side.ask("POST", ACTS, json=PAUSE, headers=bearer("ops"))
    assert status == 200
    assert told == {"outcome": "done", "message": "paused", "detail": {"until": None}}
    [asked] = side.acts.asked
    assert asked == ActRequest(Act.PAUSE, "token:ops", "ada", "", {"for_s": 60}, dry_run=True)


@pytest.mark.parametrize(
    ("token", "act", "status"),
    [
        ("", "pause", 401),
        ("", "why", 401),
        ("ops", "estop", 200),
        ("ops", "thaw", 403),
        ("ops", "why", 403),
        ("reader", "why", 200),
        ("reader", "forecast", 200),
        ("reader", "pause", 403),
        ("ada", "pause", 403),
        ("ada", "why", 403),
        ("root", "restart", 200),
        ("root", "why", 200),
    ],
)
async def test_the_scope_decides(side: Side, token: str, act: str, status: int) -> None:
    headers = bearer(token) if token else {}
    got, _ = await side.ask("POST", ACTS, json={"act": act, "subject": "ada"}, headers=headers)
    assert got == status
    assert len(side.acts.asked) == (1 if status == 200 else 0)


async def test_a_token_that_asks_for_more_than_it_may_is_in_the_log(side: Side) -> None:
    with structlog.testing.capture_logs() as logged:
        await side.ask("POST", ACTS, json={"act": "thaw", "subject": "ada"}, headers=bearer("ops"))
    denied = [line for line in logged if line["event"] == "act.denied"]
    assert [(line["token"], line["act"]) for line in denied] == [("ops", "thaw")]


@pytest.mark.parametrize(
    "form",
    [
        [],
        {},
        {"act": "explode"},
        {"act": "pause", "dryrun": True},
        {"act": "pause", "author": "uid:0"},
        {"act": "pause", "dry_run": "yes"},
        {"act": "pause", "arguments": {"x": {}}},
        {"act": "pause", "subject": 7},
    ],
)
async def test_a_request_that_makes_no_sense_does_nothing(side: Side, form: Any) -> None:
    status, told = await side.ask("POST", ACTS, json=form, headers=bearer("root"))
    assert (status, told["error"]) == (400, "malformed")
    assert side.acts.asked == []


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b'{"act":"pause","subject":"\xff"}', b"[" * 90_000, b'{"act":NaN}']
)
async def test_bytes_that_are_no_request_do_nothing(side: Side, data: bytes) -> None:
    status, told = await side.ask("POST", ACTS, content=data, headers=bearer("root"))
    assert (status, told["error"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (ActOutcome.DONE, 200),
        (ActOutcome.WOULD_BE_DONE, 200),
        (ActOutcome.NOTHING_TO_DO, 200),
        (ActOutcome.PARTLY_DONE, 200),
        (ActOutcome.REFUSED, 409),
        (ActOutcome.UNKNOWN_SUBJECT, 404),
        (ActOutcome.FAILED, 502),
    ],
)
async def test_the_status_says_how_it_ended(side: Side, outcome: ActOutcome, status: int) -> None:
    side.acts.answer = ActAnswer(outcome, "words")
    got, told = await side.ask("POST", ACTS, json=PAUSE, headers=bearer("ops"))
    assert (got, told["outcome"]) == (status, outcome)


async def test_an_answer_is_json_whatever_is_in_it(side: Side) -> None:
    detail = {"half": "\ud800", "odd": {1, 2}, "none": float("nan"), "path": object}
    side.acts.answer = replace(side.acts.answer, detail=detail)
    status, told = await side.ask("POST", ACTS, json=PAUSE, headers=bearer("ops"))
    assert status == 200
    assert told["detail"]["half"] == "\ud800"


async def test_an_act_goes_on_when_the_one_who_asked_has_gone(serve: Serve) -> None:
    side = await serve()
    side.acts.hold = trio.Event()
    async with await side.connect() as stream:
        head = f"POST {ACTS} HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n"
        key = bearer("ops")["authorization"]
        await stream.send_all(f'{head}authorization: {key}\r\n\r\n{{"act":"pause"}}'.encode())
        await side.acts.begun.wait()
    side.acts.hold.set()
    await side.acts.ended.wait()


async def test_a_fault_of_the_doors_is_one_answer_without_its_words(
    serve: Serve, logged: Any
) -> None:
    class Broken:
        async def perform(self, request: ActRequest) -> ActAnswer:
            raise ZeroDivisionError("secret words")

    side = Side(acts=Broken())  # type: ignore[arg-type]
    await serve(side)
    status, told = await side.ask("POST", ACTS, json=PAUSE, headers=bearer("ops"))
    assert (status, told["error"]) == (500, "internal")
    assert "secret" not in str(told)
    await trio.testing.wait_all_tasks_blocked()  # it is answered first, and logged then
    [line] = [line for line in logged if line["event"] == "http.failed"]
    assert line["route"] == ACTS
    assert (await side.ask("GET", "/-/healthy"))[0] == 200


EMERGENCY = "/api/v1/emergency"
ASKED = {"agents": ["ada", "bob"], "deadline_s": 30, "reason": "odd", "dry_run": True}


async def test_an_emergency_is_an_act_for_several_agents(side: Side) -> None:
    status, told = await side.ask("POST", EMERGENCY, json=ASKED, headers=bearer("root"))
    assert (status, told["outcome"]) == (200, "done")
    arguments = {"deadline_s": 30.0, "reason": "odd"}
    assert side.acts.asked == [
        ActRequest(Act.EMERGENCY, "token:root", "ada\nbob", "", arguments, dry_run=True)
    ]


@pytest.mark.parametrize(
    ("token", "status"), [("", 401), ("ops", 403), ("reader", 403), ("ada", 403), ("root", 200)]
)
async def test_an_emergency_needs_its_own_scope(side: Side, token: str, status: int) -> None:
    headers = bearer(token) if token else {}
    got, _ = await side.ask("POST", EMERGENCY, json={"agents": ["ada"]}, headers=headers)
    assert got == status
    assert len(side.acts.asked) == (1 if status == 200 else 0)


@pytest.mark.parametrize(
    "form",
    [{}, {"agents": "ada"}, {"agents": ["a\nb"]}, {"agents": [], "deadline": 5}, {"agents": [7]}],
)
async def test_an_emergency_that_makes_no_sense_asks_nothing(side: Side, form: Any) -> None:
    status, told = await side.ask("POST", EMERGENCY, json=form, headers=bearer("root"))
    assert (status, told["error"]) == (400, "malformed")
    assert side.acts.asked == []


def test_a_request_may_take_longer_than_any_act() -> None:
    assert ApiLimits().request_s > LONGEST_DEADLINE_S + PAST_DEADLINE_S
    assert ApiLimits().request_s > TIMEOUT_S
