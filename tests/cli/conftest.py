"""Commands in this process, on a terminal, and beside a daemon that has judged some agents."""

import json
import os
import pty
import select
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from tests.end_to_end.daemons import QUICK, command, environment, working_below

from custosd.cli.main import main
from custosd.demo.writers import Action, ClaudeCodeWriter, CustosdWriter

EVIL = "ev[/bold][red]\x1b]0;owned\x07il\u202e"
"""Steers a terminal, is markup to the tables' library, and turns the direction of writing."""

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command in this process sets up the log of the whole process."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def run() -> Run:
    """`run("status", "--json", config=PATH)`: a command in this process."""

    def invoke(
        *words: object, config: object = os.devnull, home: object = "/nonexistent"
    ) -> Result:
        options = ["--config", str(config), *map(str, words)]
        env = {"HOME": str(home), "COLUMNS": "200", "CUSTOSD_CONFIG": None, "STATE_DIRECTORY": None}
        result = CliRunner().invoke(main, options, env=env)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@dataclass(frozen=True)
class Watched:
    """A daemon that has judged its agents: three of custosd's own, one of Claude Code's."""

    home: Path
    config: Path
    pid: int


@pytest.fixture(scope="session")
def watched() -> Iterator[Watched]:
    home = Path(tempfile.mkdtemp(prefix="custosd-cli-"))
    _write_transcripts(home / "transcripts")
    config = home / "custosd.toml"
    config.write_text(QUICK.format(home=home))
    try:
        # What the first one has judged is stored when it has ended; the second one knows it.
        with _daemon(home, config) as first:
            _wait_for_verdicts(first, 4)
            first.terminate()
        with _daemon(home, config) as second:
            assert _wait_for_line(second, "daemon.ready")["agents"] == 4
            yield Watched(home, config, second.pid)
            second.kill()
    finally:
        for pid in working_below(home):
            _wait_for_end(pid)
        shutil.rmtree(home)


@contextmanager
def _daemon(home: Path, config: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Ended by the block's own signal, or killed if it fails."""
    with subprocess.Popen(
        command("--config", config, "run"),
        env=environment(home),
        cwd=home,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _write_transcripts(folder: Path) -> None:
    for name in ("anna", "annabel", EVIL):
        writer = CustosdWriter(folder / "custosd", f"file-{len(name)}", Path("/srv/app"))
        writer._name = name
        _work(writer, goal=f"Paint {name} \x1b[2J[bold]")
    _work(ClaudeCodeWriter(folder / "claude-code", "c1", Path("/srv/app")), goal="Fix the parser.")


def _work(writer: CustosdWriter | ClaudeCodeWriter, goal: str) -> None:
    writer.asked(goal)
    for n in range(4):
        action = Action(f"c{n}", "shell", command=f"cat src/\x1b[31mpart{n}.py")
        writer.began(action)
        writer.answered(action, f"part {n} \x1b[5m", 0)


def _wait_for_verdicts(daemon: "subprocess.Popen[bytes]", count: int) -> None:
    told: set[str] = set()
    while len(told) < count:
        told.add(_wait_for_line(daemon, "verdict.reached")["agent"])


def _wait_for_line(daemon: "subprocess.Popen[bytes]", event: str) -> dict[str, Any]:
    assert daemon.stdout is not None
    for line in daemon.stdout:
        said: dict[str, Any] = json.loads(line)
        if said["event"] == event:
            return said
    raise AssertionError(f"the daemon ended without {event}")


def _wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 20)[0], f"process {pid} does not end"
    finally:
        os.close(descriptor)


def on_terminal(*words: object, home: Path, columns: int = 80) -> tuple[int, str]:
    """A command as a process on a terminal: its exit code, and all that it wrote."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        command(*words),
        env=environment(home, {"COLUMNS": str(columns), "TERM": "xterm-256color"}),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        said = b""
        while True:
            try:
                piece = os.read(master, 65_536)
            except OSError:  # the last process on it has ended
                break
            if not piece:
                break
            said += piece
    os.close(master)
    return process.returncode, said.decode()
