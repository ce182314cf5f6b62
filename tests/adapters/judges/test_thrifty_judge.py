"""The ladder: the judge, a smaller one, the rules; and a fleet that costs nothing at rest."""

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.adapters.models.fault_server import VERDICT, Status, fault_server
from tests.contracts.judge_contract import JudgeContract, question
from tests.services.conftest import opened, step
from tests.services.test_guardian import Fleet

from custosd.adapters.judges.budgets import budgets_of
from custosd.adapters.judges.ensemble import EnsembleJudge
from custosd.adapters.judges.llm import LlmSettings, open_llm_judge
from custosd.adapters.judges.opening import open_judge
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.judges.scripted import ScriptedJudge
from custosd.adapters.judges.thrifty import Priced, ThriftyJudge
from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.models.guarded import GuardedModel
from custosd.adapters.models.model import Prices
from custosd.adapters.models.scripted import ScriptedModel
from custosd.adapters.models.till import Till
from custosd.config.problems import InvalidConfig
from custosd.config.reading import read_config
from custosd.config.settings import Config
from custosd.config.sources import Source
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.errors import JudgeError
from custosd.core.money import Budgets, Limit, NoMoney, Reservation, Rung, Scope, Span
from custosd.core.transcript import Usage
from custosd.core.verdicts import Judgement, Standing
from custosd.flow.clock import wall_clock
from custosd.ports import Judge
from custosd.services.purse import Purse

GOOD = json.dumps(VERDICT)
LIMIT = Limit(Scope.FLEET, Span.DAY, 1.0)
RULES = Priced("rules", RulesJudge())
GUARDIAN = Judgement(Standing.PROGRESSING, confidence=0.8)


class Told:
    """A purse whose rungs are given, by model; keeps what it is told."""

    def __init__(self, rungs: dict[str, Rung], *, refused: bool = False) -> None:
        self.rungs, self.was_refused = rungs, refused
        self.told: list[tuple[str, str]] = []

    async def reserve(self, agent: AgentId, model: str, estimate_usd: float) -> NoMoney:
        raise NotImplementedError

    def settle(self, reservation: Reservation, actual_usd: float) -> None:
        raise NotImplementedError

    def release(self, reservation: Reservation) -> None:
        raise NotImplementedError

    def rung(self, agent: AgentId, model: str) -> tuple[Rung, Limit | None]:
        rung = self.rungs.get(model, Rung.AS_ASKED)
        return rung, None if rung is Rung.AS_ASKED else LIMIT

    def refused(self, agent: AgentId) -> Limit | None:
        return LIMIT if self.was_refused else None

    def skipped(self, agent: AgentId, judge: str, by: str, limit: Limit) -> None:
        self.told.append((judge, by))


def judge_called(name: str, *script: Judgement | JudgeError) -> Priced:
    return Priced(name, ScriptedJudge(script or [GUARDIAN]), frozenset({name}))


async def asked_of(thrifty: Judge, *judges: Priced) -> list[str]:
    """Which of these judges one question comes to."""
    before = {judge.name: len(judge.judge.asked) for judge in judges}  # type: ignore[attr-defined]
    await thrifty.judge(question())
    return [j.name for j in judges if len(j.judge.asked) > before[j.name]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rungs", "came_to", "told"),
    [
        ({}, ["big"], []),
        ({"big": Rung.SMALLER}, ["small"], [("big", "small")]),
        ({"big": Rung.RULES}, ["small"], [("big", "small")]),
        ({"big": Rung.SMALLER, "small": Rung.SMALLER}, ["small"], [("big", "small")]),
        ({"big": Rung.SMALLER, "small": Rung.RULES}, ["big"], []),
        ({"big": Rung.RULES, "small": Rung.RULES}, ["other"], [("big", "other")]),
        ({"big": Rung.RULES, "small": Rung.RULES, "other": Rung.RULES}, [], [("big", "rules")]),
    ],
)
async def test_as_the_money_runs_out_cheaper_judges_are_asked(
    rungs: dict[str, Rung], came_to: list[str], told: list[tuple[str, str]]
) -> None:
    big, small, other = (judge_called(name) for name in ("big", "small", "other"))
    purse = Told(rungs)
    thrifty = ThriftyJudge(big, small, [other, RULES], purse)
    assert await asked_of(thrifty, big, small, other) == came_to
    assert purse.told == told


async def test_without_a_smaller_judge_the_judge_goes_on_until_there_is_no_money() -> None:
    big = judge_called("big")
    assert await asked_of(ThriftyJudge(big, None, [RULES], Told({"big": Rung.SMALLER})), big)
    purse = Told({"big": Rung.RULES})
    assert not await asked_of(ThriftyJudge(big, None, [RULES], purse), big)
    assert purse.told == [("big", "rules")]


async def test_a_judge_that_finds_no_money_when_it_asks_gives_way_too() -> None:
    big, purse = judge_called("big", JudgeError("model_no_money")), Told({}, refused=True)
    answer = await ThriftyJudge(big, None, [RULES], purse).judge(question())
    assert answer.judge == "rules"
    assert purse.told == [("big", "rules")]


async def test_a_judge_that_cannot_be_had_is_not_replaced_for_money() -> None:
    big, purse = judge_called("big", JudgeError("model_timeout")), Told({})
    with pytest.raises(JudgeError, match="model_timeout"):
        await ThriftyJudge(big, None, [RULES], purse).judge(question())
    assert purse.told == []


async def test_a_refusal_of_before_makes_no_outage_a_want_of_money() -> None:
    """The purse remembers what it refused last; what counts is the error of this question."""
    big, purse = judge_called("big", JudgeError("model_rate_limited")), Told({}, refused=True)
    with pytest.raises(JudgeError, match="model_rate_limited"):
        await ThriftyJudge(big, None, [RULES], purse).judge(question())
    assert purse.told == []


async def test_an_ensemble_without_any_money_gives_way_and_one_with_an_outage_does_not() -> None:
    poor, down = JudgeError("model_no_money"), JudgeError("model_timeout")
    for second, told in ((poor, [("both", "rules")]), (down, [])):
        members = [ScriptedJudge([poor]), ScriptedJudge([second])]
        both = Priced("both", EnsembleJudge(members, "both"), frozenset({"m"}))
        purse = Told({}, refused=True)
        with suppress(JudgeError):
            await ThriftyJudge(both, None, [RULES], purse).judge(question())
        assert purse.told == told


async def test_want_of_money_and_an_outage_together_come_to_the_rules() -> None:
    small, purse = judge_called("small", JudgeError("model_timeout")), Told({"big": Rung.RULES})
    thrifty = ThriftyJudge(judge_called("big"), small, [RULES], purse)
    assert (await thrifty.judge(question())).judge == "rules"


# --- with the real ones ----------------------------------------------------------------------


def now_utc() -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


@asynccontextmanager
async def llm(
    purse: Purse, name: str = "big", replies: Iterable[str] = (GOOD,), cost_usd: float = 0.25
) -> AsyncGenerator[tuple[Priced, ScriptedModel]]:
    """A judge over a scripted model, each of whose calls may cost 1 dollar and costs less."""
    model = ScriptedModel(replies, name, usage=Usage(1_000, 100, 0, cost_usd))
    till = Till(name, Prices(0.0, 1_000.0), 1_000, purse)
    async with open_llm_judge(
        GuardedModel(model, 1_000, till=till), LlmSettings(canary_share=0.0)
    ) as judge:
        yield Priced(name, judge, frozenset({name})), model


class TestThriftyJudge(JudgeContract):
    @pytest.fixture
    async def judge(self) -> AsyncGenerator[ThriftyJudge]:
        purse = Purse(MemorySpends(), now_utc, Budgets(fleet_day_usd=2.0), wait_s=0.1)
        async with llm(purse) as (asked, _):
            yield ThriftyJudge(asked, None, [RULES], purse)


async def test_calls_stop_at_the_limit_and_judging_goes_on_by_rules() -> None:
    purse = Purse(MemorySpends(), now_utc, Budgets(fleet_day_usd=2.0))
    async with llm(purse) as (asked, model):
        thrifty = ThriftyJudge(asked, None, [RULES], purse)
        answers = [(await thrifty.judge(question(f"Goal {n}"))).judge for n in range(20)]
    # After five calls there are 75 cents left, and a call may cost a dollar.
    assert answers == ["big"] * 5 + ["rules"] * 15
    assert len(model.asked) == 5
    assert purse.shown().own_usd == 1.25
    assert purse.skips == 15


async def test_an_agent_that_has_spent_its_share_leaves_the_others_theirs() -> None:
    purse = Purse(MemorySpends(), now_utc, Budgets(agent_day_usd=1.5))
    bob = AgentRef(AgentId("bob"), RunId("1"))
    async with llm(purse) as (asked, _):
        thrifty = ThriftyJudge(asked, None, [RULES], purse)
        answers = [(await thrifty.judge(question(f"Goal {n}"))).judge for n in range(5)]
        others = replace(question("Goal of another"), ref=bob)
        assert (await thrifty.judge(others)).judge == "big"
    assert answers == ["big"] * 3 + ["rules"] * 2


async def test_the_smaller_model_is_asked_from_the_warning_on() -> None:
    purse = Purse(MemorySpends(), now_utc, Budgets(fleet_day_usd=4.0, warn_share=0.5))
    async with llm(purse) as (big, _), llm(purse, "small", cost_usd=0.125) as (small, _):
        thrifty = ThriftyJudge(big, small, [RULES], purse)
        answers = [(await thrifty.judge(question(f"Goal {n}"))).judge for n in range(25)]
    assert answers == ["big"] * 8 + ["small"] * 9 + ["rules"] * 8


async def test_an_equal_question_costs_nothing_again_and_a_repair_costs_twice() -> None:
    purse = Purse(MemorySpends(), now_utc)
    async with llm(purse, replies=["no JSON", GOOD]) as (asked, model):
        for _ in range(3):
            await asked.judge.judge(question())
        assert len(model.asked) == 2
    assert purse.shown().own_usd == 0.5


async def test_each_member_of_an_ensemble_is_paid_for() -> None:
    purse = Purse(MemorySpends(), now_utc)
    async with llm(purse) as (one, _), llm(purse, "two", cost_usd=0.5) as (two, _):
        await EnsembleJudge([one.judge, two.judge]).judge(question())
    assert purse.spent_usd == {"big": 0.25, "two": 0.5}


class Watched(Purse):
    """Counts what is asked of it."""

    asked = 0

    async def reserve(
        self, agent: AgentId, model: str, estimate_usd: float
    ) -> Reservation | NoMoney:
        self.asked += 1
        return await super().reserve(agent, model, estimate_usd)


async def test_an_idle_fleet_makes_no_call_and_no_reservation_over_a_virtual_day(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Fifty agents that stand still: asked about once, and as their silence is news; then never."""
    virtual_utc = wall_clock()
    purse = Watched(MemorySpends(), virtual_utc, Budgets(fleet_day_usd=1_000.0))
    async with llm(purse) as (asked, model):
        fleet = Fleet(virtual_utc, ThriftyJudge(asked, None, [RULES], purse))
        for n in range(50):
            fleet.grow(f"a{n}", *opened(f"a{n}", f"Goal number {n}"), step(1))
        await fleet.sweep()
        assert len(model.asked) == purse.asked == 50
        for _ in range(120):
            await trio.sleep(60)
            await fleet.sweep()
        before = (len(model.asked), purse.asked, purse.spent_usd["big"])
        for _ in range(24 * 60):
            await trio.sleep(60)
            assert (await fleet.sweep()).asked == 0
        assert (len(model.asked), purse.asked, purse.spent_usd["big"]) == before
        assert before[1] <= 100
        assert all(line.reserved_usd == 0 for line in purse.lines())


# --- as the configuration says -----------------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("s3cr3t")
    file.chmod(0o600)
    return file


def config_of(url: str, key: Path, more: str = "", guardian: str = "") -> Config:
    text = f"""
[guardian]
judge = "big"
{guardian}
[[model]]
name = "big"
kind = "anthropic"
model = "m1"
base_url = "{url}"
key_file = "{key}"
attempts = 1
input_usd = 3
output_usd = 15
canaries = 0
{more}
[[model]]
name = "small"
kind = "anthropic"
model = "m2"
base_url = "{url}"
key_file = "{key}"
attempts = 1
input_usd = 0.3
output_usd = 1.5
canaries = 0
[[model]]
name = "free"
kind = "openai"
model = "m3"
base_url = "{url}/v1"
attempts = 1
canaries = 0
"""
    return read_config([Source("a.toml", text.encode())])


async def judged(config: Config, times: int) -> tuple[list[str], Purse]:
    purse = Purse(MemorySpends(), now_utc, budgets_of(config), wait_s=0.1)
    async with open_judge(config, {}, now_utc, purse=purse) as judge:
        found = [(await judge.judge(question(f"Goal {n}"))).judge for n in range(times)]
    return found, purse


async def test_a_models_window_sends_the_question_to_the_smaller_one(key: Path) -> None:
    async with fault_server() as server:
        config = config_of(
            server.url, key, "window_5h_usd = 0.04", 'smaller_judge = "small"\nfallback = ["rules"]'
        )
        found, purse = await judged(config, 6)
        models = [request["model"] for request in server.requests]
    assert found[0] == "big"
    assert found[-1] == "small"
    assert set(found) == {"big", "small"}
    assert models == ["m1" if name == "big" else "m2" for name in found]
    spent = {line.limit.id: line.spent_usd for line in purse.lines()}
    assert 0 < spent["model/5h/big"] <= 0.04


async def test_a_free_judge_is_asked_whatever_the_money_does(key: Path) -> None:
    async with fault_server() as server:
        config = config_of(
            server.url, key, guardian='fallback = ["free"]', more="window_week_usd = 0.000001"
        )
        found, purse = await judged(config, 3)
        assert [request["model"] for request in server.requests] == ["m3"] * 3
    assert found == ["free"] * 3
    assert purse.shown().own_usd == 0


async def test_where_the_provider_is_down_the_chain_is_as_ever(key: Path) -> None:
    async with fault_server() as server:
        server.always = Status(401, "authentication_error")
        with capture_logs() as logs:
            found, purse = await judged(
                config_of(server.url, key, guardian='fallback = ["rules"]'), 2
            )
    assert found == ["rules"] * 2
    assert "judge.passed_over" in [log["event"] for log in logs]
    assert (purse.skips, purse.shown().own_usd) == (0, 0)


@pytest.mark.parametrize(
    ("more", "guardian", "wrong"),
    [
        ("", 'smaller_judge = "nobody"', ["guardian.smaller_judge"]),
        ("", 'smaller_judge = "big"', ["guardian.smaller_judge"]),
        ("", 'fallback = ["big"]', ["guardian.fallback"]),
        ("", 'fallback = ["rules", "rules"]', ["guardian.fallback"]),
    ],
)
def test_who_else_is_asked_is_another_one_that_is_known(
    key: Path, more: str, guardian: str, wrong: list[str]
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config_of("http://127.0.0.1:1", key, more, guardian)
    assert [problem.key for problem in caught.value.problems] == wrong


def test_dollars_bound_no_model_without_a_price() -> None:
    text = '[[model]]\nname = "m"\nkind = "openai"\nmodel = "m"\nwindow_5h_usd = 1'
    with pytest.raises(InvalidConfig) as caught:
        read_config([Source("a.toml", text.encode())])
    (problem,) = caught.value.problems
    assert problem.key == "model[0].window_5h_usd"
    assert "give its input_usd and output_usd" in str(problem)
