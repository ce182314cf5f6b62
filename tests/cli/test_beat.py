"""`custosd beat`: one beat from a shell, with an answer in its exit code."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from tests.adapters.beats.conftest import OpenDoor

from custosd.adapters.beats.socket import receive_beats
from custosd.cli.beat import beat
from custosd.core.beats import BeatStatus, DeclaredWait, WaitKind
from custosd.flow.pulse import Pulse

NOTHING = {
    f"CUSTOSD_{name}": None
    for name in ("AGENT", "EPOCH", "SOCKET", "URL", "TOKEN", "TOKEN_FILE", "CONFIG")
}


def ask(*words: object, env: Mapping[str, str | None] | None = None) -> Result:
    given = {"config": [os.devnull], "log_format": None, "log_level": None}
    return CliRunner().invoke(
        beat, list(map(str, words)), obj=given, env={**NOTHING, **(env or {})}
    )


async def run(*words: object, env: Mapping[str, str | None] | None = None) -> Result:
    return await trio.to_thread.run_sync(lambda: ask(*words, env=env))


@pytest.fixture
async def door(nursery: trio.Nursery, tmp_path: Path) -> OpenDoor:
    opened = OpenDoor(tmp_path / "run" / "beats.sock")
    await nursery.start(receive_beats, opened.settings(), opened.admission, Pulse("beats", 0))
    return opened


async def test_a_beat_arrives_with_everything_that_was_said(door: OpenDoor) -> None:
    words = (
        "ada --epoch 4 --status waiting --progress abc --task T-1 --metric passed=31"
        " --metric failed=0 --wait command --expected 10m --interval 30s --timeout 20s"
    )
    done = await run(*words.split(), "--socket", door.path)
    assert (done.exit_code, done.output) == (0, "")
    [received] = await door.register.next_batch()
    read = received.beat
    assert (read.agent, read.epoch, read.status) == ("ada", 4, BeatStatus.WAITING)
    assert (read.progress, read.task, read.interval_s) == ("abc", "T-1", 30.0)
    assert read.wait == DeclaredWait(WaitKind.COMMAND, 600.0)
    assert read.metrics == {"passed": 31.0, "failed": 0.0}


async def test_one_beat_after_another_is_let_in(door: OpenDoor) -> None:
    env = {"CUSTOSD_AGENT": "ada", "CUSTOSD_SOCKET": str(door.path)}
    for _ in range(3):
        assert (await run(env=env)).exit_code == 0


async def test_the_socket_is_found_by_the_configuration(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    door = OpenDoor(tmp_path / "beats.sock")
    await nursery.start(receive_beats, door.settings(), door.admission, Pulse("beats", 0))
    done = await run("ada", env={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert done.exit_code == 0, done.output


async def test_a_refused_beat_says_why(door: OpenDoor) -> None:
    await run("ada", "--epoch", 2, "--socket", door.path)
    done = await run("ada", "--epoch", 1, "--socket", door.path)
    assert done.exit_code == 1
    assert "old_epoch" in done.output


def test_without_a_daemon_it_says_so_at_once(tmp_path: Path) -> None:
    done = ask("ada", "--socket", tmp_path / "none")
    assert done.exit_code == 75
    assert "No such file" in done.output
    assert ask("ada", "--url", "http://127.0.0.1:9").exit_code == 75


@pytest.mark.parametrize(
    "words",
    [
        ["--wait", "human"],
        ["--expected", "5m"],
        ["--status", "asleep"],
        ["--metric", "x"],
        ["--metric", "x=y"],
        ["--interval", "soon"],
        ["--epoch", "-1"],
    ],
)
def test_words_that_make_no_sense_send_nothing(words: list[str]) -> None:
    assert ask("ada", "--socket", "/nonexistent", *words).exit_code == 2


def test_an_agent_without_a_name_is_told_so() -> None:
    done = ask("--socket", "/nonexistent")
    assert done.exit_code == 2
    assert "CUSTOSD_AGENT" in done.output


def test_help_names_what_comes_from_the_environment() -> None:
    assert "CUSTOSD_SOCKET" in ask("--help").output
