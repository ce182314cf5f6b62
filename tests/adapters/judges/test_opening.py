"""The judge of a configuration, opened over a real server; and the guardian asks it."""

import json
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from tests.adapters.http_place import proxy
from tests.adapters.models.fault_server import (
    VERDICT,
    Disconnect,
    FaultServer,
    Hang,
    Status,
    Together,
    Well,
    fault_server,
)
from tests.contracts.judge_contract import question
from tests.services.conftest import opened, step
from tests.services.test_guardian import Fleet

from custosd.adapters.judges.opening import open_judge, protocol_of
from custosd.adapters.models.anthropic import COMMON_VERSION, VERSION
from custosd.adapters.models.model import Prompt, Turn
from custosd.config.problems import InvalidConfig
from custosd.config.reading import read_config
from custosd.config.settings import Config
from custosd.config.sources import Source
from custosd.core.verdicts import Standing
from custosd.ports import Answer, ContextPart, Judge, Question


def now_utc() -> datetime:
    return datetime.now(UTC)


def config_for(url: str, key: Path, judge: str, more: str = "") -> Config:
    text = f"""
[guardian]
judge = "{judge}"
fallback = ["rules"]
[[model]]
name = "one"
kind = "anthropic"
model = "m1"
base_url = "{url}"
key_file = "{key}"
attempts = 1
input_usd = 3
output_usd = 15
canaries = 0
[[model]]
name = "two"
kind = "openai"
model = "m2"
base_url = "{url}/v1"
stream = true
attempts = 1
canaries = 0
[[ensemble]]
name = "all"
members = ["one", "two", "rules"]
{more}
"""
    assert tomllib.loads(text)
    return read_config([Source("a.toml", text.encode())])


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("s3cr3t")
    file.chmod(0o600)
    return file


async def test_the_guardian_asks_the_model_that_the_configuration_names(key: Path) -> None:
    async with fault_server() as server:
        config = config_for(server.url, key, "one")
        async with open_judge(config, {}, now_utc) as judge:
            fleet = Fleet(now_utc, judge)
            fleet.grow("ada", *opened("s", "Fix the parser"), step(1), step(2, "cat b", "b"))
            with capture_logs() as logs:
                await fleet.sweep()
                again = await fleet.sweep()
    (verdict,) = fleet.verdicts()
    assert verdict.judgement.standing is Standing.PROGRESSING
    assert verdict.judgement.summary == VERDICT["summary"]
    assert (verdict.by.judge, verdict.by.model) == ("one", "m1-20260101")
    assert verdict.by.usage.cost_usd == pytest.approx((1_200 * 3 + 100 * 15) / 1e6)
    assert again.asked == 0
    assert server.headers[0]["x-api-key"] == "s3cr3t"
    (called,) = [entry for entry in logs if entry["event"] == "model.called"]
    assert called["cost_usd"] == pytest.approx(0.0051)
    assert "s3cr3t" not in str(logs)


async def asked(config: Config) -> tuple[str, str]:
    async with open_judge(config, {}, now_utc) as judge:
        answer = await judge.judge(question())
        return answer.judge, answer.judgement.unknown_reason


async def test_an_ensemble_asks_all_its_members(key: Path) -> None:
    async with fault_server() as server:
        assert await asked(config_for(server.url, key, "all")) == ("all", "")
        assert sorted(request["model"] for request in server.requests) == ["m1", "m2"]


@pytest.mark.parametrize("fault", [Disconnect(), Status(529), Status(401, "?")], ids=repr)
async def test_the_next_in_the_chain_answers_when_the_provider_cannot(
    key: Path, fault: Disconnect | Status
) -> None:
    async with fault_server() as server:
        server.always = fault
        with capture_logs() as logs:
            assert await asked(config_for(server.url, key, "one")) == ("rules", "no_steps")
    assert "judge.passed_over" in [entry["event"] for entry in logs]


async def test_a_model_is_asked_through_the_proxy_of_its_table(key: Path) -> None:
    async with fault_server() as server, proxy() as middle:
        config = config_for(server.url, key, "one")
        one = config.models[0].model_copy(update={"proxy": middle.url})
        config = config.model_copy(update={"models": (one, *config.models[1:])})
        assert (await asked(config))[0] == "one"
        assert [asked.target for asked in middle.asked] == [f"{server.url}/v1/messages"]


async def test_without_models_the_rules_judge() -> None:
    assert (await asked(Config()))[0] == "rules"


@pytest.mark.parametrize(
    ("more", "key_of_problem"),
    [
        ('[[model]]\nname = "one"\nkind = "openai"\nmodel = "m"', "model[2].name"),
        ('[[model]]\nname = "rules"\nkind = "openai"\nmodel = "m"', "model[2].name"),
        ('[[ensemble]]\nname = "x"\nmembers = ["nobody"]', "ensemble[1].members"),
        ('[[ensemble]]\nname = "x"\nmembers = ["one", "one"]', "ensemble[1].members"),
        ('[[ensemble]]\nname = "x"\nmembers = ["one"]\nenough = 2', "ensemble[1].members"),
    ],
)
def test_names_that_do_not_fit_are_refused(key: Path, more: str, key_of_problem: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config_for("http://127.0.0.1:1", key, "one", more)
    assert [problem.key for problem in caught.value.problems] == [key_of_problem]


def test_a_judge_that_is_nobody_is_refused(key: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config_for("http://127.0.0.1:1", key, "nobody")
    assert [problem.key for problem in caught.value.problems] == ["guardian.judge"]


# What the server sees of a judge that the configuration opens


COST_USD = pytest.approx((1_200 * 3 + 100 * 15) / 1e6)


async def test_equal_questions_at_once_are_one_request_and_paid_once(key: Path) -> None:
    answers: list[Answer] = []

    async def ask(judge: Judge) -> None:
        answers.append(await judge.judge(question()))

    async with fault_server() as server:
        config = config_for(server.url, key, "one")
        async with open_judge(config, {}, now_utc) as judge:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(ask, judge)
            await ask(judge)
            # How long the agent has been quiet is no other question.
            await judge.judge(replace(question(), quiet_s=99.0, context=()))
            assert len(server.requests) == 1
    assert [answer.judgement.summary for answer in answers] == [VERDICT["summary"]] * 11
    assert sum(answer.usage.cost_usd for answer in answers) == COST_USD
    assert sum(answer.usage.cost_usd > 0 for answer in answers) == 1


async def test_who_gives_up_leaves_the_cost_to_who_hears_the_answer(key: Path) -> None:
    async with fault_server() as server:
        server.always = Together(2)
        config = config_for(server.url, key, "one")
        async with open_judge(config, {}, now_utc) as judge, trio.open_nursery() as nursery:
            first = trio.CancelScope()
            found: list[Answer] = []

            async def leader() -> None:
                with first:
                    await judge.judge(question())

            async def follower() -> None:
                found.append(await judge.judge(question()))

            nursery.start_soon(leader)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(follower)
            await trio.testing.wait_all_tasks_blocked(0.05)
            first.cancel()
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(judge.judge, question("another"))
        assert len(server.requests) == 2
    assert found[0].usage.cost_usd == COST_USD


async def test_an_ensemble_asks_its_members_at_the_same_time(key: Path) -> None:
    async with fault_server() as server:
        # Nobody is answered before both have asked.
        server.always = Together(2)
        with trio.fail_after(10):
            assert await asked(config_for(server.url, key, "all")) == ("all", "")
        assert server.most_open == 2


@pytest.mark.parametrize(
    ("one", "two", "standing", "confidence"),
    [
        # Rules have no steps to go by, and no opinion: a third of the judges less.
        ("progressing", "progressing", Standing.PROGRESSING, 0.7 * 2 / 3),
        ("progressing", "stuck", Standing.UNKNOWN, None),
        (None, "progressing", Standing.PROGRESSING, 0.7 / 2),
        ("progressing", None, Standing.PROGRESSING, 0.7 / 2),
    ],
)
async def test_an_ensemble_of_real_exchanges_is_combined(
    key: Path, one: str | None, two: str | None, standing: Standing, confidence: float | None
) -> None:
    def fault(asked: dict[str, object]) -> Well | Disconnect:
        word = one if asked["model"] == "m1" else two
        if word is None:
            return Disconnect()
        return Well(json.dumps({**VERDICT, "standing": word}))

    async with fault_server() as server:
        server.always = fault
        async with open_judge(config_for(server.url, key, "all"), {}, now_utc) as judge:
            answer = await judge.judge(question())
        assert len(server.requests) == 2
    assert answer.judgement.standing is standing
    assert answer.judgement.confidence == (
        confidence if confidence is None else pytest.approx(confidence)
    )


async def test_the_next_in_the_chain_answers_before_the_one_who_asks_gives_up(key: Path) -> None:
    async with fault_server() as server:
        server.always = Hang()
        with trio.fail_after(0.6):
            assert (await asked(config_for(server.url, key, "one")))[0] == "rules"


def with_tail(lines: list[str], number: int) -> Question:
    part = ContextPart("transcript_tail", "\n".join(lines), "")
    return replace(question(), context=(part,), input_hash=f"h{number}")


def words_sent(server: FaultServer, number: int) -> str:
    """All that a request says to the model, of either protocol."""
    body = server.requests[number]
    turns = [turn["content"] for turn in body["messages"]]
    return "\n".join([body.get("system", ""), *turns])


@pytest.mark.parametrize("name", ["one", "two"])
async def test_only_what_is_new_and_the_last_summary_travel(key: Path, name: str) -> None:
    old = [f"step {n} of the old work" for n in range(400)]
    async with fault_server() as server:
        async with open_judge(config_for(server.url, key, name), {}, now_utc) as judge:
            await judge.judge(with_tail(old, 0))
            await judge.judge(with_tail([*old[100:], "step A of the new work"], 1))
            await judge.judge(with_tail([*old[200:], "step A of the new work", "step B"], 2))
        first, second, third = (len(body) for body in server.bodies)
        assert "step 399 of the old" in words_sent(server, 0)
        for number, new in ((1, "step A of the new work"), (2, "step B")):
            words = words_sent(server, number)
            assert new in words
            assert "of the old work" not in words
            assert "last_verdict" in words
            assert str(VERDICT["summary"]) in words
    assert "step A" not in words_sent(server, 2)
    sent_of_old = len("\n".join(old))
    assert first - second > 0.9 * sent_of_old
    assert abs(third - second) < 200


@pytest.mark.parametrize("name", ["one", "two"])
async def test_a_question_stays_within_the_tokens_of_its_model(key: Path, name: str) -> None:
    async with fault_server() as server:
        config = config_for(server.url, key, name)
        models = tuple(model.model_copy(update={"context": 4_000}) for model in config.models)
        async with open_judge(config.model_copy(update={"models": models}), {}, now_utc) as judge:
            await judge.judge(with_tail([f'"line" \\ é {n}' for n in range(100_000)], 0))
        words = words_sent(server, 0)
        empty = len(server.bodies[0]) - len(json.dumps(words).encode())
    assert 3_500 * 3 < len(words.encode()) <= 4_000 * 3, "used, and not overdrawn"
    assert "é 99999" in words
    assert empty < 3_000, "beside the words there is the schema"


async def test_a_broken_answer_is_mended_once_and_then_unknown_and_left(key: Path) -> None:
    async with fault_server() as server:
        config = config_for(server.url, key, "two")
        server.faults = [Well("It goes well!"), Well()]
        async with open_judge(config, {}, now_utc) as judge:
            answer = await judge.judge(question())
            assert answer.judgement.standing is Standing.PROGRESSING
            assert [turn["role"] for turn in server.requests[1]["messages"]] == [
                "system", "user", "assistant", "user",
            ]  # fmt: skip
            server.always = Well('{"standing": "excellent"}')
            answer = await judge.judge(question("another"))
            assert answer.judgement.unknown_reason == "malformed_answer"
            assert len(server.requests) == 4
            assert (await judge.judge(question("another"))).judgement == answer.judgement
            assert len(server.requests) == 4, "not asked for again before it changes"


@pytest.mark.parametrize(
    ("base_url", "header", "version"),
    [
        ("", "authorization", VERSION),
        ("https://api.anthropic.com/", "authorization", VERSION),
        ("https://gateway.example/anthropic", "x-api-key", COMMON_VERSION),
        ("http://api.anthropic.com.example", "x-api-key", COMMON_VERSION),
    ],
)
def test_only_anthropics_own_service_is_spoken_to_in_its_newest_way(
    key: Path, base_url: str, header: str, version: str
) -> None:
    config = config_for("http://127.0.0.1:1", key, "one")
    protocol = protocol_of(config.models[0].model_copy(update={"base_url": base_url}))
    prompt = Prompt("s", (Turn("user", "u"),), {}, "verdict")
    request = protocol.request(prompt, stream=False)
    assert list(protocol.secret_headers("k")) == [header]
    assert request.headers["anthropic-version"] == version
