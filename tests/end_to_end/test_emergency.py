"""Emergencies and cycles of a real daemon with a real model's protocol, over every door."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from tests.adapters.models.fault_server import (
    VERDICT,
    Fault,
    FaultServer,
    Hang,
    Together,
    Well,
    fault_server,
)
from tests.end_to_end.daemons import QUICK, ask, custosd
from tests.end_to_end.stored import stored_in
from tests.end_to_end.test_troubles import Work, judged

from custosd.cli.exit_codes import FAILURE, NOT_RUNNING, OK
from custosd.core.acts import Act, ActOutcome
from custosd.core.facts import ActPerformed

MODEL = """
judge = "sonnet"
judge_timeout = "60s"
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
timeout = "50s"
[doors]
listen = "127.0.0.1:0"
"""
CALL_USD = (1_200 * 3 + 100 * 15) / 1e6
"""What the server's answers come to."""

NAMES = ("ada", "bob", "cyd", "dan", "eve")
DRIFTING = Well(
    json.dumps(
        VERDICT
        | {
            "standing": "drifting",
            "alignment": 0.1,
            "needs_steering": True,
            "steering_kind": "emergency",
            "steering_reason": "drifting",
            "message": "Go back to the parser.",
        }
    )
)


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as server:
        yield server


@pytest.fixture
def asking(home: Path, server: FaultServer) -> Path:
    (home / "key").write_text("s3cr3t")
    (home / "key").chmod(0o600)
    path = home / "custosd.toml"
    path.write_text(QUICK.format(home=home) + MODEL.format(home=home, url=server.url))
    return path


@pytest.mark.timeout(150)
async def test_five_agents_are_asked_about_at_once_and_the_one_without_an_answer_is_named(
    home: Path, asking: Path, server: FaultServer
) -> None:
    works = [Work(home / "transcripts", name) for name in NAMES]
    for work in works:
        work.act(3)

    def slow(asked: dict[str, Any]) -> Fault:
        # The others are answered only once all four of them have been asked about.
        return Hang() if "the work of eve" in json.dumps(asked) else Together(4)

    async with custosd("--config", asking, "run", home=home) as daemon:
        await daemon.ready()
        tokens = {}
        for name, scope in (("ops", "emergency"), ("other", "steer")):
            words = ("token", "issue", name, "--scope", scope)
            tokens[name] = (await ask("--config", asking, *words, home=home)).out.strip()
        await judged(daemon, *works)
        calls = len(server.requests)
        server.always = slow
        named = (*NAMES, "nobody", "--deadline", "5s", "--json")
        told = await ask("--config", asking, "emergency", *named, home=home)
        assert told.code == FAILURE, told.err
        form = told.json
        assert form["outcome"] == "partly_done"
        detail = form["detail"]
        assert {one["agent"] for one in detail["analyses"]} == {
            f"custosd:{name}" for name in NAMES[:4]
        }
        assert all(one["judge"] == "sonnet" for one in detail["analyses"])
        assert [(one["agent"], one["why"]) for one in detail["missing"]] == [
            ("nobody", "unknown_agent"),
            ("custosd:eve", "deadline"),
        ]
        assert detail["cost_usd"] == pytest.approx(4 * CALL_USD)
        assert detail["fleet"]["agents"] == 5
        assert len(server.requests) == calls + 5, "each once, though nothing was new"
        (line,) = daemon.out.found("emergency.ended")
        assert (line["agents"], line["analysed"], line["missing"]) == (5, 4, 2)

        # One opinion of a model that nothing else bears out is not enough to steer by.
        server.always = DRIFTING
        told = await ask("--config", asking, "emergency", "ada", "--deadline", "20s", home=home)
        assert told.code == OK, told.err
        assert "correction, drifting: awaits agreement" in told.out
        assert "coherence" in told.out

        # Over HTTP: with a token that has the scope, and with no other.
        server.always = Well()
        opened = await daemon.out.event("http.opened")
        url = f"{opened['addresses'][0]}/api/v1/emergency"
        form = {"agents": ["bob", "cyd"], "deadline_s": 20}
        async with httpx.AsyncClient(trust_env=False, timeout=40) as client:
            for name, status in (("other", 403), ("ops", 200)):
                headers = {"authorization": f"Bearer {tokens[name]}"}
                answer = await client.post(url, json=form, headers=headers)
                # A new token is known within some seconds.
                with trio.fail_after(20):
                    while answer.status_code == 401:
                        await daemon.out.event("sweep.finished", since=len(daemon.out.lines))
                        answer = await client.post(url, json=form, headers=headers)
                assert answer.status_code == status, answer.text
        assert len(answer.json()["detail"]["analyses"]) == 2
        assert await daemon.end(signal.SIGTERM) == OK

    performed = [
        entry.fact
        for entry in (await stored_in(home)).entries
        if isinstance(entry.fact, ActPerformed) and entry.fact.act is Act.EMERGENCY
    ]
    assert {fact.author.partition(":")[0] for fact in performed} == {"uid", "token"}
    first = next(fact for fact in performed if fact.outcome is ActOutcome.PARTLY_DONE)
    assert "4 of 5 agents analysed" in first.reason
    assert "custosd:eve (deadline)" in first.reason


@pytest.mark.timeout(120)
async def test_a_script_has_a_cycle_done_and_learns_what_came_of_it(
    home: Path, asking: Path, server: FaultServer
) -> None:
    text = await trio.Path(asking).read_text()
    await trio.Path(asking).write_text(text.replace('interval = "1s"', 'interval = "1h"'))
    gone = await ask("--config", asking, "cycle", "--once", home=home)
    assert gone.code == NOT_RUNNING
    assert "custosd is not running" in gone.err
    works = [Work(home / "transcripts", name) for name in NAMES[:2]]
    async with custosd("--config", asking, "run", home=home) as daemon:
        await daemon.ready()
        for work in works:
            work.act(2)
        done: set[str] = set()
        with trio.fail_after(40):
            # Until both have been read: a sweep judges what is there.
            while len(done) < len(works):
                told = await ask("--config", asking, "cycle", "--once", "--json", home=home)
                assert told.code == OK, told.err
                done |= {line["agent"] for line in daemon.out.found("verdict.reached")}
        detail = told.json["detail"]
        assert detail["guardian"]["agents"] == 2
        assert detail["conductor"]["status"]
        assert detail["missing"] == []
        assert sum(one["cost_usd"] for one in daemon.out.found("sweep.finished")) == pytest.approx(
            len(server.requests) * CALL_USD
        )

        server.always = Hang()
        works[0].act()
        await daemon.out.until(lambda: daemon.out.found("sweep.finished"), "a sweep")
        late = await ask(
            "--config", asking, "cycle", "--once", "--timeout", "3s", "--json", home=home
        )
        if late.code == OK:
            # What was written last had not been read yet when that one began.
            late = await ask(
                "--config", asking, "cycle", "--once", "--timeout", "3s", "--json", home=home
            )
        assert late.code == FAILURE
        assert late.json["detail"]["missing"] == [{"part": "guardian", "why": "deadline"}]
        assert await daemon.end(signal.SIGTERM) == OK
