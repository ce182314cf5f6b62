"""Tasks through a real daemon: ordered by the command, worked on by the client, kept over kills."""

import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from tests.end_to_end.daemons import QUICK, Answer, Custosd, ask, custosd
from tests.end_to_end.test_hands import hands, present, supervised  # noqa: F401 - a fixture

from custosd.cli.exit_codes import FAILURE, OK
from custosd.client import Client, TaskClaim

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def config(home: Path) -> Path:
    path = home / "custosd.toml"
    path.write_text(QUICK.format(home=home) + '[doors]\nlisten = "127.0.0.1:0"\n')
    return path


async def task(config: Path, home: Path, *words: str, code: int = OK) -> Answer:
    answer = await ask("--config", config, "task", *words, home=home)
    assert answer.code == code, answer.out + answer.err
    return answer


async def url_of(daemon: Custosd) -> str:
    opened = await daemon.out.event("http.opened")
    address: str = opened["addresses"][0]
    return address


async def token_of(config: Path, home: Path, agent: str) -> str:
    answer = await ask(
        "--config", config, "token", "issue", f"for-{agent}", "--agent", agent, "--json", home=home
    )
    token: str = answer.json["token"]
    return token


async def claimed(client: Client) -> list[TaskClaim]:
    """The daemon knows a new token within some seconds; the client asks until it does."""
    while not (found := await trio.to_thread.run_sync(client.claim_tasks)):
        assert "token" in client.trouble or not client.trouble, client.trouble
        await trio.lowlevel.checkpoint()
    return found


async def test_tasks_are_ordered_by_the_command_and_done_by_the_client(
    config: Path, home: Path
) -> None:
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.ready()
        await task(config, home, "add", "a", "the first")
        await task(config, home, "add", "b", "the second", "--after", "a", "--priority", "high")
        refused = await task(config, home, "link", "a", "b", code=FAILURE)
        assert "a -> b -> a" in refused.err
        await task(config, home, "link", "a", "nothing", code=FAILURE)
        token = await token_of(config, home, "builder")
        client = Client("builder", 0, url=await url_of(daemon), token=token, environ={})
        [work] = await claimed(client)
        assert (work.task, work.title) == ("a", "the first")
        listed = (await task(config, home, "list", "--state", "claimed", "--json")).json
        assert [one["agent"] for one in listed] == ["builder"]
        assert await trio.to_thread.run_sync(client.complete_task, work, "it works")
        [urgent] = (await task(config, home, "next", "--json")).json
        assert (urgent["id"], urgent["score"] > 0.38) == ("b", True)
        shown = await task(config, home, "show", "a")
        assert "it works" in shown.out
        await task(config, home, "show", "zed", code=FAILURE)
        claimed_b = await task(config, home, "claim", "builder", "--lease", "1m", "--json")
        [b] = json.loads(claimed_b.out)["detail"]["tasks"]
        fence = str(b["claim"]["fence"])
        word = ("b", "--agent", "builder", "--fence", fence)
        await task(config, home, "extend", *word)
        await task(config, home, "fail", *word, "--kind", "usage_limit", "--after", "1h")
        lost = await task(config, home, "complete", *word[:-1], "9", code=FAILURE)
        assert "not yours any more" in lost.err
        await task(config, home, "cancel", "b", "--reason", "not wanted")
        states = {
            one["id"]: one["state"] for one in (await task(config, home, "list", "--json")).json
        }
        assert states == {"a": "succeeded", "b": "cancelled"}
        assert "succeeded" in (await task(config, home, "list")).out
        await daemon.end(signal.SIGTERM)


async def test_a_claim_survives_kill_nine_between_the_claim_and_its_answer(
    config: Path, home: Path
) -> None:
    """Asked again by its key it is the same claim; not asked again, it ends with its lease."""
    form = {"agent": "builder", "key": "k1", "lease_s": 3600}
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.ready()
        for name in ("a", "b"):
            await task(config, home, "add", name, name)
        token = await token_of(config, home, "builder")
        url = await url_of(daemon)
        client = Client("builder", 0, url=url, token=token, environ={})
        [first] = await claimed(client)  # the token is known now
        body = json.dumps(form).encode()
        head = (
            f"POST /api/v1/tasks/claim HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        since = len(daemon.out.lines)
        where = urlsplit(url)
        async with await trio.open_tcp_stream(where.hostname or "", where.port or 0) as stream:
            await stream.send_all(head.encode() + body)
            await daemon.out.event("tasks.changed", since=since)
            await daemon.end(signal.SIGKILL)
    async with custosd("--config", config, "run", home=home) as again:
        await again.ready()
        client = Client("builder", 0, url=await url_of(again), token=token, environ={})
        await again.out.event("http.opened")
        answer = await trio.to_thread.run_sync(client._ask_tasks, "claim", form)
        assert answer["repeated"]
        [work] = answer["tasks"]
        assert {work["id"], first.task} == {"a", "b"}
        assert (work["claim"]["fence"], work["attempts"]) == (1, 1)
        for one in (first.task, work["id"]):
            word = {"task": one, "agent": "builder", "fence": 1}
            done = await trio.to_thread.run_sync(client._ask_tasks, "complete", word)
            assert done["task"]["state"] == "succeeded"
        await again.end(signal.SIGTERM)


async def test_the_tasks_of_an_agent_that_is_killed_are_free_at_once(
    hands: Path,  # noqa: F811 - the fixture
    home: Path,
) -> None:
    async with supervised(hands, home) as daemon:
        await task(hands, home, "add", "t", "a task")
        told = (await task(hands, home, "claim", "a", "--lease", "1h", "--json")).json
        [claim] = [one["claim"] for one in told["detail"]["tasks"]]
        since = len(daemon.out.lines)
        os.kill(present(home), signal.SIGKILL)
        await daemon.out.event("tasks.changed", since=since, author="custosd", limit_s=60)
        [free] = (await task(hands, home, "list", "--json")).json
        assert (free["state"], free["failure_kind"]) == ("ready", "agent_dead")
        await daemon.out.event("restart.changed", since=since, state="succeeded", limit_s=60)
        word = ("t", "--agent", "a", "--fence", str(claim["fence"]))
        late = await task(hands, home, "complete", *word, code=FAILURE)
        assert "not yours any more (agent dead)" in late.err
        old = ("claim", "a", "--json")
        told = (await task(hands, home, *old)).json
        assert told["detail"]["tasks"][0]["claim"]["epoch"] > claim["epoch"]
