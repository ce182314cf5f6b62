"""`custosd drill` beside a real daemon: every link holds, and a cut wire is named."""

import signal
from pathlib import Path

import pytest
import trio
from tests.end_to_end.daemons import QUICK, Answer, ask, command, custosd, environment

from custosd.cli.exit_codes import FAILURE, NOT_RUNNING, OK
from custosd.drill.canaries import CANARIES

QUICK_HANDS = """
[liveness]
shortest_deadline = "5s"
margin = "500ms"
[restarts]
mode = "{mode}"
interrupt = "1s"
graceful = "2s"
"""


def drilled(home: Path, mode: str) -> Path:
    """The file of a daemon that looks each second and acts soon."""
    path = home / "custosd.toml"
    path.write_text(QUICK.format(home=home) + QUICK_HANDS.format(mode=mode))
    return path


async def held(*words: object, home: Path) -> Answer:
    """Run a drill to its end: it takes longer than any other command."""
    done = await trio.run_process(
        command(*words),
        env=environment(home),
        cwd=home,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.timeout(400)
async def test_every_link_of_the_chain_holds_on_a_daemon_as_it_should_be(home: Path) -> None:
    config = drilled(home, "act")
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.ready()
        words = ("drill", "--json", "--keep-going", "--timeout", "200s")
        answer = await held("--config", config, *words, home=home)
        told = answer.json
        shown = [(result["canary"], result["links"]) for result in told["results"]]
        assert (answer.code, told["held"]) == (OK, True), shown
        assert {result["canary"] for result in told["results"]} == CANARIES.keys()
        assert not (home / "state" / "drill").exists()
        # Nobody is asked about a canary any more: whoever was, was told that it is over.
        raised = {line["concern"] for line in daemon.out.found("concern.raised")}
        resolved = {line["concern"] for line in daemon.out.found("concern.resolved")}
        assert raised == resolved
        assert await daemon.end(signal.SIGTERM) == OK


@pytest.mark.timeout(120)
async def test_a_daemon_that_only_observes_fails_the_drill_by_the_link_that_acts(
    home: Path,
) -> None:
    config = drilled(home, "observe")
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.ready()
        words = ("drill", "--canary", "crash", "--timeout", "40s")
        answer = await held("--config", config, *words, home=home)
        assert answer.code == FAILURE
        assert "crash: acted: no restart: observing" in answer.out
        assert await daemon.end(signal.SIGTERM) == OK


@pytest.mark.timeout(180)
async def test_a_way_to_people_that_is_broken_fails_the_drill(home: Path) -> None:
    config = drilled(home, "act")
    with config.open("a") as file:
        file.write('[alerts]\ncommand = ["/bin/false"]\n')
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.ready()
        words = ("drill", "--canary", "loop", "--timeout", "30s")
        answer = await held("--config", config, *words, home=home)
        assert answer.code == FAILURE
        assert "loop: notified: no notice of it arrived by command: " in answer.out
        assert await daemon.end(signal.SIGTERM) == OK


async def test_without_a_daemon_there_is_no_drill(home: Path) -> None:
    answer = await ask("--config", drilled(home, "act"), "drill", home=home)
    assert (answer.code, answer.out) == (NOT_RUNNING, "")
    assert "not running" in answer.err
