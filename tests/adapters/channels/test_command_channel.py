"""The command channel with real programs that end, fail, hang, flood and leave children behind."""

import json
import os
import sys
from pathlib import Path

import pytest
import trio
from tests.contracts.channel_contract import WORDS, ChannelContract, letter

from custosd.adapters.channels.command import CommandChannel, CommandChannelSettings
from custosd.core.errors import ChannelError


class Program:
    """A program that puts what it is told into a file, and then does as its script says."""

    def __init__(self, folder: Path, script: str = "", timeout_s: float = 20) -> None:
        self.told = folder / "told"
        # Written in one piece: letters may come at once.
        take = "import os, sys, json, signal\ndata = sys.stdin.read()\nopen(sys.argv[1], 'a')"
        code = f"{take}.write(data + '\\n')\n{script}"
        argv = (sys.executable, "-c", code, str(self.told))
        self.channel = CommandChannel(CommandChannelSettings(argv, timeout_s=timeout_s))

    def letters(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.told.read_text().splitlines()]

    async def arrived(self) -> list[str]:
        return [str(told["text"]) for told in self.letters()]


class TestCommandChannel(ChannelContract):
    @pytest.fixture
    def scene(self, tmp_path: Path) -> Program:
        return Program(tmp_path)


async def refusal(program: Program) -> ChannelError:
    with pytest.raises(ChannelError) as caught:
        await program.channel.deliver(letter())
    return caught.value


@pytest.mark.parametrize(
    ("script", "reason", "retry"),
    [
        ("sys.exit(75)", "command_deferred", True),
        ("sys.exit(1)", "command_failed", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", "command_failed", False),
    ],
)
async def test_the_exit_status_is_the_answer(
    tmp_path: Path, script: str, reason: str, *, retry: bool
) -> None:
    error = await refusal(Program(tmp_path, script))
    assert (error.reason, error.retry) == (reason, retry)


async def test_a_letter_that_failed_is_handed_over_again(tmp_path: Path) -> None:
    script = "lines = len(open(sys.argv[1]).readlines())\nsys.exit(75 if lines < 2 else 0)"
    program = Program(tmp_path, script)
    await refusal(program)
    await program.channel.deliver(letter())
    assert len(program.letters()) == 2


async def test_a_program_finds_the_letter_and_nothing_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY", "PGPASSWORD"):
        monkeypatch.setenv(name, "/run/secret")
    program = Program(tmp_path, "open(sys.argv[1], 'a').write(json.dumps(dict(os.environ)))")
    await program.channel.deliver(letter())
    sent, found = program.letters()
    assert sent["text"] == WORDS
    assert "/run/secret" not in found.values()
    assert {name: found[name] for name in found if name.startswith("CUSTOSD")} == {
        "CUSTOSD_LETTER_ID": "i-1",
        "CUSTOSD_LETTER_AGENT": "ada",
        "CUSTOSD_LETTER_EPOCH": "3",
        "CUSTOSD_LETTER_KIND": "guidance",
    }


async def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    """The pipe that they all hold ends when the last of them is gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    script = (
        f"fd = os.open({str(pipe)!r}, os.O_WRONLY)\n"
        "os.write(fd, b'x')\nos.fork()\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pause()"
    )
    try:
        error = await refusal(Program(tmp_path, script, timeout_s=1.5))
        await trio.lowlevel.wait_readable(reading)
        assert os.read(reading, 10) == b"x"
        await trio.lowlevel.wait_readable(reading)
        assert os.read(reading, 10) == b""
    finally:
        os.close(reading)
    assert (error.reason, error.retry) == ("command_timeout", True)


async def test_children_of_a_program_that_has_ended_hold_nobody_up(tmp_path: Path) -> None:
    await Program(tmp_path, "os.fork() or signal.pause()").channel.deliver(letter())


async def test_a_flood_of_output_is_let_pass(tmp_path: Path) -> None:
    program = Program(tmp_path, "for _ in range(300): os.write(1, b'x' * 65536)")
    await program.channel.deliver(letter())


async def test_a_program_that_does_not_read_is_no_trouble(tmp_path: Path) -> None:
    channel = CommandChannel(CommandChannelSettings(("/bin/true",)))
    receipt = await channel.deliver(letter(text=WORDS + " x" * 10_000))
    assert receipt.proof == "exit_0"


async def test_a_missing_program_is_said_with_the_remedy(tmp_path: Path) -> None:
    channel = CommandChannel(CommandChannelSettings(("/nowhere/tell",)))
    with pytest.raises(ChannelError, match="argv") as caught:
        await channel.deliver(letter())
    assert (caught.value.reason, caught.value.retry) == ("command_absent", False)


def test_a_channel_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="argv"):
        CommandChannel(CommandChannelSettings(()))
