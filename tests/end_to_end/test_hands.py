"""A real daemon keeps a real agent alive, whatever happens to its database meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import trio
from tests.end_to_end.daemons import QUICK, Answer, Custosd, Line, ask, custosd

import custosd as package
from custosd.cli.exit_codes import OK

AGENT = Path(__file__).with_name("living_agent.py")

HANDS = """
[store]
statement_timeout = "2s"
acquire_timeout = "1s"
[liveness]
running_interval = "1s"
shortest_deadline = "5s"
margin = "500ms"
startup_grace = "5s"
[restarts]
backoff = "1s"
interrupt = "500ms"
graceful = "1s"
[[agent]]
id = "a"
control = "command"
start = ["{python}", "{agent}", "{home}", "{checkout}"]
workspace = "{home}/work"
channel = "inbox"
inbox = "{home}/inbox"
"""


@pytest.fixture
def hands(home: Path) -> Path:
    """The file of a daemon with one agent that it may start, stop and speak to."""
    path = home / "custosd.toml"
    (home / "work").mkdir()
    checkout = Path(package.__file__).parents[1]
    text = HANDS.format(python=sys.executable, agent=AGENT, home=home, checkout=checkout)
    path.write_text(QUICK.replace('cadence = "0s"', 'cadence = "1h"').format(home=home) + text)
    return path


def lives(home: Path) -> list[tuple[int, int]]:
    """Pid and epoch of each life that there was."""
    with suppress(FileNotFoundError):
        lines = (home / "lives").read_text().split("\n")[:-1]
        return [(int(pid), int(epoch)) for pid, epoch in map(str.split, lines)]
    return []


def present(home: Path) -> int:
    """The pid of the life that is."""
    return lives(home)[-1][0]


@asynccontextmanager
async def supervised(hands: Path, home: Path) -> AsyncIterator[Custosd]:
    """A daemon whose agent lives, started by it; the agent is ended with the block."""
    try:
        async with custosd("--config", hands, "run", home=home) as daemon:
            await daemon.ready()
            answer = await act(hands, home, "restart", "a")
            assert answer.code == OK, answer.out + answer.err
            await succeeded(daemon)
            yield daemon
    finally:
        for pid, _ in lives(home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def act(hands: Path, home: Path, *words: str) -> Answer:
    return await ask("--config", hands, *words, home=home)


async def succeeded(daemon: Custosd, since: int = 0) -> Line:
    return await daemon.out.event("restart.changed", since=since, state="succeeded", limit_s=60)


@pytest.mark.timeout(120)
async def test_an_agent_that_is_killed_or_frozen_lives_again_as_a_new_incarnation_each_time(
    hands: Path, home: Path
) -> None:
    async with supervised(hands, home) as daemon:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            since = len(daemon.out.lines)
            os.kill(present(home), number)
            await succeeded(daemon, since)
        assert len(lives(home)) == 3
        epochs = [epoch for _, epoch in lives(home)]
        assert epochs == sorted(set(epochs))
        last = present(home)
        assert await daemon.end(signal.SIGTERM) == OK
        os.kill(last, 0)  # it outlives the daemon
        async with custosd("--config", hands, "run", home=home) as again:
            await again.ready()
            why = await act(hands, home, "why", "a", "--json")
            assert why.code == OK
            await again.end(signal.SIGTERM)
        assert present(home) == last


@pytest.mark.timeout(120)
async def test_a_message_arrives_once_and_is_acknowledged(hands: Path, home: Path) -> None:
    async with supervised(hands, home) as daemon:
        answer = await act(hands, home, "steer", "a", "Run the tests.", "--json")
        assert answer.code == OK, answer.out
        told = await daemon.out.event("intervention.changed", after="acknowledged", limit_s=60)
        assert (home / "letters").read_text() == f"{told['intervention']}\n"


@pytest.mark.timeout(120)
async def test_a_new_configuration_is_taken_up_and_a_wrong_one_is_not(
    hands: Path, home: Path
) -> None:
    """By the command and by SIGHUP; `why` names the value in force and its line."""
    file = trio.Path(hands)
    text = await file.read_text()
    line = text.split("\n").index('running_interval = "1s"') + 1
    async with supervised(hands, home) as daemon:
        await file.write_text(text.replace('running_interval = "1s"', 'running_interval = "2s"'))
        answer = await act(hands, home, "reload")
        assert answer.code == OK, answer.err
        why = await act(hands, home, "why", "a")
        assert f'liveness.running_interval = "2s", {hands}:{line}' in why.out

        await file.write_text(text.replace('running_interval = "1s"', 'running_interval = "soon"'))
        answer = await act(hands, home, "reload")
        assert answer.code != OK
        assert f"{hands}:{line}: liveness.running_interval" in answer.out + answer.err
        since = len(daemon.out.lines)
        os.kill(daemon.pid, signal.SIGHUP)
        await daemon.out.event("config.refused", since=since)
        why = await act(hands, home, "why", "a")
        assert f'liveness.running_interval = "2s", {hands}:{line}' in why.out

        await file.write_text(text)
        os.kill(daemon.pid, signal.SIGHUP)
        told = await daemon.out.event("config.reloaded", since=since)
        assert told["changed"] == ["liveness.running_interval"]
        assert len(lives(home)) == 1


@pytest.mark.timeout(60)
async def test_a_door_that_can_not_be_opened_closes_no_other(hands: Path, home: Path) -> None:
    (home / "state/run").mkdir(parents=True)
    (home / "state/run/beats.sock").write_text("no socket")
    async with custosd("--config", hands, "run", home=home) as daemon:
        await daemon.ready()
        (told,) = daemon.out.found("door.failed")
        assert (told["door"], "no socket is there" in told["error"]) == ("beats", True)
        answer = await act(hands, home, "estop")
        assert answer.code == OK, answer.err
        assert await daemon.end(signal.SIGTERM) == OK


@pytest.mark.timeout(180)
async def test_nothing_is_done_before_it_is_written_and_all_is_done_once_the_database_is_back(
    hands: Path, home: Path
) -> None:
    """Frozen, then killed, while an agent dies: beats go on, one restart follows, never two."""
    async with supervised(hands, home) as daemon:
        for fault, mend in ((signal.SIGSTOP, signal.SIGCONT), (signal.SIGKILL, None)):
            server = daemon.out.found("postgres.started")[-1]["server_pid"]
            since, before = len(daemon.out.lines), len(lives(home))
            # A frozen postmaster alone would not be noticed: its children serve.
            servers = [server, *(child.pid for child in psutil.Process(server).children())]
            for pid in servers if mend is not None else [server]:
                os.kill(pid, fault)
            os.kill(present(home), signal.SIGKILL)
            if mend is not None:
                try:
                    await daemon.out.event("store.lost", since=since, during="restart")
                    assert len(lives(home)) == before
                finally:
                    for pid in servers:
                        os.kill(pid, mend)
            await succeeded(daemon, since)
            assert len(lives(home)) == before + 1
        assert daemon.out.found("service.failed") == []
        answer = await act(hands, home, "steer", "a", "Go on.")
        assert answer.code == OK
        await daemon.out.event("intervention.changed", after="acknowledged", limit_s=60)
        assert len((home / "letters").read_text().split()) == 1


@pytest.mark.timeout(180)
async def test_a_message_that_the_database_did_not_take_arrives_once_when_it_is_sent_again(
    hands: Path, home: Path
) -> None:
    """Frozen, then restarted by its operator: who asks with the same key is not heard twice."""
    words = ("steer", "a", "Run the tests.", "--key", "k1")
    async with supervised(hands, home) as daemon:
        server = daemon.out.found("postgres.started")[-1]["server_pid"]
        servers = [server, *(child.pid for child in psutil.Process(server).children())]
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        try:
            answer = await act(hands, home, *words)
            assert answer.code != OK
            assert not (home / "letters").exists()
        finally:
            for pid in servers:
                os.kill(pid, signal.SIGCONT)
        since = len(daemon.out.lines)
        os.kill(server, signal.SIGINT)  # a fast restart
        await daemon.out.event("postgres.started", since=since, limit_s=60)
        await daemon.out.event("store.returned", since=since, limit_s=60)
        answer = await act(hands, home, *words, "--wait", "20s")
        assert answer.code == OK, answer.out + answer.err
        await daemon.out.event("intervention.changed", after="acknowledged", limit_s=60)
        assert (await act(hands, home, *words, "--wait", "5s")).code == OK
        assert len((home / "letters").read_text().split()) == 1
        assert len(lives(home)) == 1


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of so many bytes at a folder; skips where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.timeout(180)
async def test_a_full_disk_delays_a_restart_and_loses_nothing(hands: Path, home: Path) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    with small_disk(home / "state", "160m") as disk:
        async with supervised(hands, home) as daemon:
            stuffing = disk / "stuffing"
            since, before = len(daemon.out.lines), len(lives(home))
            with suppress(OSError), stuffing.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
            os.kill(present(home), signal.SIGKILL)
            await daemon.out.event("store.lost", since=since, limit_s=60)
            stuffing.unlink()
            await succeeded(daemon, since)
            assert len(lives(home)) == before + 1
            assert daemon.process.poll() is None
            await daemon.end(signal.SIGTERM)
