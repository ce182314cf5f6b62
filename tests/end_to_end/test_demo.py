"""`make run`: nine agents, and each is seen for what it is. Sped up, or it takes half a minute."""

import fcntl
import os
import re
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.end_to_end.daemons import Custosd, Stream, custosd, nobody_left

from custosd.cli.exit_codes import OK, UNAVAILABLE, USAGE
from custosd.demo.fleet import SHOWN

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = PROJECT / "config" / "demo.toml"
FAST = '[guardian]\ninterval = "1s"\n[detectors]\nidle = "7s"\n[transcripts]\nsettle = "50ms"\n'
PACE_S = "0.6"
ALL_SHOWN = "Each of them has shown by now how it is."
LOOK_AT_NEXT = "Look at next"
IN_TROUBLE = SHOWN.keys() - {"custosd:steady", "pi:waiting"}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def state(home: Path) -> Path:
    """The demonstration's folder, with a pipe in it where the log goes: a stream to wait on."""
    folder = home / ".local" / "state" / "custosd-demo"
    (folder / "fleet").mkdir(parents=True)
    os.mkfifo(folder / "custosd.log")
    return folder


@asynccontextmanager
async def demonstration(
    home: Path, *, extra: dict[str, str] | None = None, **how: Any
) -> AsyncIterator[tuple[Custosd, Stream]]:
    """The demonstration, and its log."""
    fast = home / "fast.toml"
    fast.write_text(FAST)
    log = Stream()
    # Open for writing too: without a writer a pipe is at its end before it has begun.
    pipe = os.open(home / ".local/state/custosd-demo/custosd.log", os.O_RDWR | os.O_NONBLOCK)
    extra = {"CUSTOSD_DEMO_PACE_S": PACE_S, **(extra or {})}
    words = ("--config", CONFIG, "--config", fast, "demo")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.read, trio.lowlevel.FdStream(pipe))
        async with custosd(*words, home=home, extra=extra, **how) as demo:
            yield demo, log
        nursery.cancel_scope.cancel()


def held_in_turn(log: Stream) -> dict[str, list[str]]:
    """What was held of each agent, from first to last."""
    held: dict[str, list[str]] = {}
    for line in log.found("standing.changed"):
        held.setdefault(line["agent"], []).append(line["after"])
    return held


def tables(text: str) -> list[list[str]]:
    """The lines of each table on the screen."""
    plain = COLOURS.sub("", text).replace("\r", "")
    return [
        part.splitlines()[1:]
        for part in re.split(
            r"^after \d+ seconds ", plain.split("Each of them")[0], flags=re.MULTILINE
        )[1:]
    ]


async def test_each_agent_is_seen_for_what_it_is_and_the_healthy_one_never_accused(
    home: Path, state: Path
) -> None:
    async with demonstration(home, extra={"COLUMNS": "200"}) as (demo, log):
        await demo.out.said(LOOK_AT_NEXT, limit_s=70)
        assert ALL_SHOWN in demo.out.plain
        assert await demo.end(signal.SIGINT) == OK
    held = held_in_turn(log)
    assert {agent: standings[-1] for agent, standings in held.items()} == SHOWN
    assert held["custosd:steady"] == ["progressing"]
    assert {line["standing"] for line in log.found("verdict.reached", agent="custosd:steady")} <= {
        "progressing",
        "unknown",
    }
    # Nothing goes wrong; a person is told of those that do not get on, and of nobody else.
    loud = [line for line in log.lines if line["level"] != "info"]
    assert {line["event"] for line in loud} <= {"concern.raised"}
    assert {line["agent"] for line in loud} <= IN_TROUBLE
    assert demo.err.plain == ""
    assert "have ended" in demo.out.plain
    for table in tables(demo.out.plain):
        assert all(len(line) <= 200 and str(home) not in line for line in table)
    last = tables(demo.out.plain)[-1]
    for agent, standing in SHOWN.items():
        said = standing.replace("_", " ")
        assert any(re.match(rf"{agent} +{said} +\d+ +\d+ s  +\w", line) for line in last), agent
    assert "0 min" not in demo.out.plain
    await nobody_left(home)


async def test_on_a_terminal_of_80_columns_it_is_readable_and_ctrl_c_ends_it(
    home: Path, state: Path
) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    terminal = Stream()
    on_it: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave}
    async with trio.open_nursery() as nursery:
        screen = trio.lowlevel.FdStream(master)
        nursery.start_soon(terminal.read, screen)
        extra = {"TERM": "xterm-256color"}
        async with demonstration(home, extra=extra, preexec_fn=take_the_terminal, **on_it) as (
            demo,
            log,
        ):
            os.close(slave)
            await terminal.said(LOOK_AT_NEXT, limit_s=70)
            await screen.send_all(b"\x03")
            assert await demo.end() == OK
        nursery.cancel_scope.cancel()
    assert ALL_SHOWN in terminal.plain
    assert {agent: standings[-1] for agent, standings in held_in_turn(log).items()} == SHOWN
    assert "\x1b[31mstuck" in terminal.plain
    found = tables(terminal.plain)
    assert found
    for table in found:
        assert all(len(line) <= 80 and str(home) not in line for line in table)
        assert len(table) <= 3 * len(SHOWN) + 2
    await nobody_left(home)


async def test_killed_it_leaves_no_process_and_can_be_started_again(
    home: Path, state: Path
) -> None:
    async with demonstration(home) as (demo, log):
        await log.event("verdict.reached", agent="codex:looping")
        assert await demo.end(signal.SIGKILL) == -signal.SIGKILL
    # Started at once, while the server of the killed one still ends.
    async with demonstration(home) as (demo, log):
        await log.event("daemon.ready")
        assert log.found("postgres.initialised"), "what the killed one remembered is still there"
        async with custosd("--config", CONFIG, "demo", home=home) as rival:
            assert await rival.end() == UNAVAILABLE
        assert f"is used by the daemon with pid {demo.pid}" in rival.err.plain
        await log.event("verdict.reached", agent="codex:looping")
        assert await demo.end(signal.SIGTERM) == OK
    await nobody_left(home)


async def test_it_keeps_away_from_the_state_of_a_real_daemon(home: Path) -> None:
    config = home / "custosd.toml"
    (home / "state" / "postgres").mkdir(parents=True)
    config.write_text(f'[daemon]\nstate_dir = "{home}/state"\n')
    async with custosd("--config", config, "demo", home=home) as demo:
        assert await demo.end() == USAGE
    assert demo.err.plain.startswith(f"custosd: {home}/state is the state of a real daemon")
    assert sorted(path.name for path in (home / "state").iterdir()) == ["postgres"]
