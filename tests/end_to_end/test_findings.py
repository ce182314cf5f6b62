"""What was found, what a person said of it, and what agents claim: through kill -9."""

import json
import signal
from pathlib import Path

import pytest
import trio
from tests.adapters.models.fault_server import Well, fault_server
from tests.end_to_end.daemons import QUICK, Custosd, ask, custosd

from custosd.cli.exit_codes import OK
from custosd.client import Client, WorkClaim
from custosd.demo.writers import Action, CustosdWriter

MORE = """
[conductor]
interval = "1s"
[doors]
listen = "127.0.0.1:0"
"""
GOAL = "Rewrite the zebra importer so that broken rows are skipped and counted"


MODEL = """
judge = "sonnet"
[[model]]
name = "sonnet"
kind = "anthropic"
model = "m"
base_url = "{url}"
input_usd = 3
output_usd = 15
canaries = 0
"""


def begin_twice(home: Path) -> None:
    """Two agents that were asked for the same."""
    for name in ("ada", "bob"):
        writer = CustosdWriter(home / "transcripts", name, Path("/srv") / name)
        writer.asked(GOAL)
        action = Action("c1", "shell", command="ls")
        writer.began(action)
        writer.answered(action, "zebra.py", 0)


async def claimed(daemon: Custosd, token: str, agent: str) -> WorkClaim:
    """The claim of an agent, whose token is known within some seconds of its issue."""
    url = daemon.out.found("http.opened")[0]["addresses"][0]
    client = Client(agent, url=url, token=token, environ={}, timeout_s=20.0)
    with trio.fail_after(30):
        while True:
            since = len(daemon.out.lines)
            found = await trio.to_thread.run_sync(client.claim_work, ["src/zebra.py"], GOAL)
            if found is not None:
                return found
            await daemon.out.event("sweep.finished", since=since)


@pytest.mark.timeout(120)
async def test_a_finding_its_acknowledgement_and_a_claim_outlive_a_kill(home: Path) -> None:
    config = home / "custosd.toml"
    config.write_text(QUICK.format(home=home) + MORE)
    begin_twice(home)
    custosd_of = ("--config", config)
    async with custosd(*custosd_of, "run", home=home) as daemon:
        await daemon.ready()
        opened = await daemon.out.event("finding.opened", kind="duplicate")
        assert opened["agents"] == ["custosd:ada", "custosd:bob"]
        known = await ask(
            *custosd_of, "findings", "ack", opened["finding"][:6], "--note", "on purpose", home=home
        )
        assert known.code == OK, known.err
        tokens = [
            (await ask(*custosd_of, "token", "issue", n, "--agent", n, home=home)).out.strip()
            for n in ("ada", "bob")
        ]
        first = await claimed(daemon, tokens[0], "ada")
        assert first.id
        await daemon.end(signal.SIGKILL)

    async with custosd(*custosd_of, "run", home=home) as daemon:
        await daemon.ready()
        await daemon.out.event("fleet.swept", duplicates=1)
        second = await claimed(daemon, tokens[1], "bob")
        assert (second.id, second.held_by) == ("", ("ada",))
        [found] = (await ask(*custosd_of, "findings", "--json", home=home)).json
        assert daemon.out.found("finding.opened") == []
        [shown] = (await ask(*custosd_of, "claims", "--json", home=home)).json
        assert await daemon.end(signal.SIGTERM) == OK
    assert found["id"] == opened["finding"]
    assert found["acked_by"]
    assert found["acked_utc"]
    assert found["acked_note"] == "on purpose"
    assert (shown["id"], shown["agent"]) == (first.id, "ada")


@pytest.mark.timeout(90)
async def test_the_model_that_is_configured_is_asked_once_and_the_fleet_pays(home: Path) -> None:
    begin_twice(home)
    said = {"answer": "yes", "confidence": 0.9, "summary": "One importer is enough for them."}
    async with fault_server() as server:
        server.always = Well(json.dumps(said))
        config = home / "custosd.toml"
        times = 'interval = "5s"\njudge_timeout = "5s"'
        conductor = f"[conductor]\n{times}{MODEL.format(url=server.url)}"
        config.write_text(QUICK.format(home=home) + conductor)
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            await daemon.out.event("finding.opened", kind="duplicate")
            since = len(daemon.out.lines)
            await daemon.out.event("fleet.swept", since=since, duplicates=1, asked=0)
            shown = await ask("--config", config, "findings", home=home)
            money = await ask("--config", config, "budget", "show", "--json", home=home)
            assert await daemon.end(signal.SIGTERM) == OK
    assert len(server.requests) == 1
    assert "goals alike by 1.00" in shown.out
    assert 'sonnet: "One importer is enough for them."' in shown.out
    detail = money.json["detail"]
    assert detail["conductor_usd"] == detail["own_usd"] == pytest.approx(0.0051)
    assert [one["id"] for one in detail["limits"] if one["scope"] == "agent"] == []
