"""A real daemon with a real model's protocol stops paying at its limit, and remembers."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.adapters.models.fault_server import FaultServer, Hang, fault_server
from tests.end_to_end.daemons import QUICK, Custosd, ask, custosd
from tests.end_to_end.stored import stored_in
from tests.end_to_end.test_troubles import Work

from custosd.cli.exit_codes import FAILURE, OK
from custosd.core.facts import AnalysisSkipped, BudgetReached, Escalated, Notified, VerdictReached
from custosd.core.money import Rung

MOST_USD = 0.05
CALL_USD = (1_200 * 3 + 100 * 15) / 1e6
"""What the server's answers come to."""

MONEY = """
judge = "sonnet"
[[model]]
name = "sonnet"
kind = "anthropic"
model = "m"
base_url = "{url}"
key_file = "{home}/key"
input_usd = 3
output_usd = 15
max_tokens = 256
attempts = 1
canaries = 0
[money]
fleet_day_usd = 0.05
agent_day_usd = 0
[doors]
listen = "127.0.0.1:0"
[alerts]
command = ["/bin/sh", "-c", "cat >> {home}/notices; echo >> {home}/notices"]
"""


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as server:
        yield server


@pytest.fixture
def paying(home: Path, server: FaultServer) -> Path:
    """The file of a daemon with five cents a day, a model and somebody to tell."""
    (home / "key").write_text("s3cr3t")
    (home / "key").chmod(0o600)
    path = home / "custosd.toml"
    path.write_text(QUICK.format(home=home) + MONEY.format(home=home, url=server.url))
    return path


async def spend_it_all(daemon: Custosd, works: list[Work]) -> None:
    """Let agents go on until a limit is reached, and every one is judged without the model."""
    with trio.fail_after(60):
        while not daemon.out.found("budget.reached"):
            await one_more_step(daemon, works)
    for work in works:
        work.act()
        await daemon.out.event("verdict.reached", agent=work.agent, steps=work.steps, judge="rules")


async def one_more_step(daemon: Custosd, works: list[Work]) -> None:
    for work in works:
        work.act()
    for work in works:
        await daemon.out.event("verdict.reached", agent=work.agent, steps=work.steps)


async def budget(config: Path, home: Path) -> dict[str, Any]:
    shown = await ask("--config", config, "budget", "show", "--json", home=home)
    assert shown.code == OK, shown.err
    detail: dict[str, Any] = shown.json["detail"]
    return detail


def fleet_day(told: dict[str, Any]) -> dict[str, Any]:
    (limit,) = [one for one in told["limits"] if one["id"] == "fleet/day"]
    return dict(limit)


@pytest.mark.timeout(150)
async def test_calls_stop_at_the_limit_rules_go_on_and_a_kill_does_not_reset_the_day(
    home: Path, paying: Path, server: FaultServer
) -> None:
    works = [Work(home / "transcripts", name) for name in ("one", "two")]
    for work in works:
        work.act()
    async with custosd("--config", paying, "run", home=home) as daemon:
        await daemon.ready()
        await spend_it_all(daemon, works)
        calls = len(server.requests)
        # Nor for an emergency is there more: what judges instead is named.
        urgent = await ask("--config", paying, "emergency", "one", "two", "--json", home=home)
        assert urgent.code == FAILURE
        missing = urgent.json["detail"]["missing"]
        assert [(one["agent"], one["why"]) for one in missing] == [
            (work.agent, "no_money") for work in works
        ]
        told = fleet_day(await budget(paying, home))
        text = (await ask("--config", paying, "budget", "show", home=home)).out
        why = (await ask("--config", paying, "why", works[0].agent, home=home)).out
        # Whoever is told of it has been: the notice is there before the kill.
        await daemon.out.event("concern.raised", concern="budget:fleet/day")
        await daemon.end(signal.SIGKILL)
    assert 1 <= calls <= MOST_USD / CALL_USD
    assert told["spent_usd"] == pytest.approx(calls * CALL_USD)
    assert told["spent_usd"] + told["reserved_usd"] <= MOST_USD
    assert (told["rung"], told["reserved_usd"]) == ("rules", 0)
    assert told["resets_at_utc"].endswith("T00:00:00Z")
    assert "the fleet a day" in text
    assert "judged by rules alone" in text
    assert "rules instead of sonnet: no money, fleet/day" in why

    async with custosd("--config", paying, "run", home=home) as daemon:
        await daemon.ready()
        for work in works:
            work.act()
            await daemon.out.event(
                "verdict.reached", agent=work.agent, steps=work.steps, judge="rules"
            )
        assert fleet_day(await budget(paying, home))["spent_usd"] == pytest.approx(
            told["spent_usd"]
        )
        assert len(server.requests) == calls, "not one more, after the kill either"
        # More money lets the model judge again, and the concern is over.
        raised = MONEY.format(home=home, url=server.url).replace("= 0.05", "= 9")
        await trio.Path(paying).write_text(QUICK.format(home=home) + raised)
        assert (await ask("--config", paying, "reload", home=home)).code == OK
        await daemon.out.event("budget.renewed")
        works[0].act()
        await daemon.out.event(
            "verdict.reached", agent=works[0].agent, steps=works[0].steps, judge="sonnet"
        )
        await daemon.out.event("concern.resolved", concern="budget:fleet/day")
        told = fleet_day(await budget(paying, home))
        assert told["spent_usd"] == pytest.approx((calls + 1) * CALL_USD)
        assert await daemon.end(signal.SIGTERM) == OK

    # Nobody runs: what was left is read from the database.
    left = await budget(paying, home)
    assert left["source"].startswith("the database")
    assert fleet_day(left)["spent_usd"] == pytest.approx(told["spent_usd"])

    stored = await stored_in(home)
    facts = [entry.fact for entry in stored.entries]
    paid = [f for f in facts if isinstance(f, VerdictReached) and f.verdict.by.judge == "sonnet"]
    assert sum(fact.verdict.by.usage.cost_usd for fact in paid) == pytest.approx(told["spent_usd"])
    reached = [fact for fact in facts if isinstance(fact, BudgetReached)]
    assert {(fact.limit, fact.rung) for fact in reached} >= {("fleet/day", Rung.RULES)}
    assert {fact.agent for fact in facts if isinstance(fact, AnalysisSkipped)} == {
        work.agent for work in works
    }
    assert "budget:fleet/day" in {fact.concern for fact in facts if isinstance(fact, Escalated)}
    told_by = [f for f in facts if isinstance(f, Notified) and f.concern == "budget:fleet/day"]
    assert told_by
    assert {fact.failure for fact in told_by} == {""}
    notices = [json.loads(line) for line in (home / "notices").read_text().splitlines() if line]
    assert [(notice["concern"], notice["resolved"]) for notice in notices] == [
        ("budget:fleet/day", False),
        ("budget:fleet/day", True),
    ], "told once, over the kill, and its end"


@pytest.mark.timeout(120)
async def test_a_call_under_way_at_a_kill_counts_as_it_was_reserved(
    home: Path, paying: Path, server: FaultServer
) -> None:
    arrived = trio.Event()

    def taken(_asked: dict[str, Any]) -> Hang:
        arrived.set()
        return Hang()

    server.always = taken
    async with custosd("--config", paying, "run", home=home) as daemon:
        await daemon.ready()
        # Not before: a daemon is ready when its first sweep has its answers.
        Work(home / "transcripts", "one").act()
        with trio.fail_after(30):
            await arrived.wait()
        under_way = fleet_day(await budget(paying, home))
        await daemon.end(signal.SIGKILL)
    assert under_way["spent_usd"] == 0
    assert under_way["reserved_usd"] > CALL_USD
    left = fleet_day(await budget(paying, home))
    assert left["spent_usd"] == pytest.approx(under_way["reserved_usd"])
    assert left["reserved_usd"] == 0
