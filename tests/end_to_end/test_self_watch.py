"""A real daemon lets itself be looked at: its numbers over HTTP, its tasks by a signal."""

import signal
from pathlib import Path

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families
from tests.end_to_end.daemons import QUICK, ask, custosd
from tests.end_to_end.test_kill import writing

from custosd.cli.exit_codes import OK

DOORS = """
[doors]
listen = "127.0.0.1:0"
"""


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_daemon_at_work_tells_its_numbers_and_its_tasks(home: Path) -> None:
    config = home / "custosd.toml"
    config.write_text(QUICK.format(home=home) + DOORS)
    async with (
        writing(home / "transcripts", 3),
        custosd("--config", config, "run", home=home) as daemon,
    ):
        await daemon.ready()
        await daemon.out.event("verdict.reached", agent="custosd:cu1")
        opened = daemon.out.found("http.opened")[0]
        url = opened["addresses"][0]
        issued = await ask(
            "--config", config, "token", "issue", "prometheus", "--scope", "read", home=home
        )
        since = len(daemon.out.lines)
        await daemon.out.event("sweep.finished", since=since)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            assert (await client.get("/metrics")).status_code == 401
            headers = {"authorization": f"Bearer {issued.out.strip()}"}
            answer = await client.get("/metrics", headers=headers)
            # A new token is known within some seconds.
            with trio.fail_after(20):
                while answer.status_code == 401:
                    since = len(daemon.out.lines)
                    await daemon.out.event("sweep.finished", since=since)
                    answer = await client.get("/metrics", headers=headers)
        assert answer.status_code == 200
        shown = await ask("--config", config, "tasks", home=home)
        daemon.send(signal.SIGUSR2)
        dumped = await daemon.out.event("tasks.dumped")
        tree = await trio.Path(dumped["place"]).read_text()
        assert await daemon.end(signal.SIGTERM) == OK
    read = samples(answer.text)
    assert sum(value for (name, *_), value in read.items() if name == "custosd_agents") >= 3
    assert read["custosd_operations_total", "batch", "sweep", "ok"] >= 1
    assert read["custosd_operations_total", "pipeline", "analysis", "ok"] >= 1
    assert read["custosd_operations_total", "network", "judge", "ok"] >= 1
    assert read["custosd_operations_total", "file", "transcripts.read", "ok"] >= 1
    assert any(key[:2] == ("custosd_operations_total", "database") for key in read)
    assert ("custosd_queue_items", "facts") in read
    assert read["custosd_dropped_total", "entries"] == 0
    assert read["custosd_budget_usd", "fleet/day"] == 10
    assert shown.code == OK
    assert "rounds of guardian  waits at" in shown.out
    assert dumped["tasks"] == len(tree.splitlines())
    assert "guardian" in tree
    assert "waits at" in tree
