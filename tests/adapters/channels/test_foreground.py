"""Which program a terminal's keys reach, on terminals of the tests' own."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from custosd.adapters.channels.foreground import SHELLS, Foreground, foreground_of
from custosd.core.errors import ChannelError

Start = Callable[..., int]
READY = "import os, sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program on a terminal of its own; returns its process when it has said a line."""
    begun: list[tuple[subprocess.Popen[bytes], int]] = []

    def run(*argv: str, executable: str | None = None, **environment: str) -> int:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            argv,
            executable=executable,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | environment,
            start_new_session=True,
            # No thread of ours runs beside it here.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - see above
        )
        os.close(theirs)
        begun.append((process, ours))
        os.read(ours, 100)
        return process.pid

    yield run
    for process, ours in begun:
        process.kill()
        process.wait()
        os.close(ours)


def reason(pid: int) -> str:
    with pytest.raises(ChannelError) as caught:
        foreground_of(pid)
    assert caught.value.retry
    return caught.value.reason


def test_a_script_has_the_names_of_its_interpreter_and_its_own(start: Start) -> None:
    found = foreground_of(start("claude", "-u", "-c", READY, executable=sys.executable))
    assert {"claude"} < found.names
    assert not found.is_shell


def test_the_agent_that_it_says_it_is_is_told(start: Start) -> None:
    found = foreground_of(start(sys.executable, "-c", READY, CUSTOSD_AGENT="bob"))
    assert found.agent == "bob"


@pytest.mark.parametrize("name", ["sh", "-bash", "claude"])
def test_a_shell_is_known_by_its_file_whatever_it_is_called(start: Start, name: str) -> None:
    assert foreground_of(start(name, "-c", "echo; read x", executable="/bin/bash")).is_shell


def test_a_stopped_process_is_no_target(start: Start) -> None:
    pid = start(sys.executable, "-c", READY)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert reason(pid) == "target_unproved"


def test_a_process_that_has_ended_is_no_target(start: Start) -> None:
    pid = start(sys.executable, "-c", "print('ready', flush=True)")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert reason(pid) == "target_unproved"


def test_without_a_terminal_nothing_is_in_front() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, start_new_session=True) as process:
        assert reason(process.pid) == "target_unproved"
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    "shell", ["bash", "sh", "zsh", "fish", "dash", "ksh", "tcsh", "nu", "pwsh"]
)
def test_shells_are_known_by_name(shell: str) -> None:
    assert shell in SHELLS
    assert Foreground(1, 1, frozenset({"claude", shell})).is_shell
