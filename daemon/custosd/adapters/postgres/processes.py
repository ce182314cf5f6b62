"""PostgreSQL's programs as children that end with us, and their log.

Laws. A child is started from the trio thread itself: the signal that ends it follows the
thread that forked it. It has a session of its own, so that a Ctrl-C at the terminal reaches
the daemon alone, and sees none of the daemon's environment.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

from custosd.adapters.postgres.binaries import Binaries, EmbeddedError

NOBODY = 65534

_LAUNCHER = Path(__file__).with_name("launcher.py")
_NAMESPACE_REFUSED = 97
_LOG_BYTES = 1 << 20
_TAIL_BYTES = 4096
_TAIL_LINES = 6
_KILL_S = 5.0


class RootWay(StrEnum):
    """How root runs programs that refuse root."""

    NAMESPACE = "namespace"
    """In a user namespace where root is called nobody; the files stay root's."""
    NOBODY = "nobody"
    """As the user nobody, who owns the data; programs that he cannot reach are copied."""


class NamespaceRefused(EmbeddedError):
    """User namespaces are forbidden here."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Which programs run, as whom (in the launcher's words), and who owns the data."""

    binaries: Binaries
    identity: str
    uid: int
    gid: int


class Journal:
    """The server's log file: begun anew when it has grown past 1 MiB, the last one kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._from = 0

    def open(self) -> int:
        """A descriptor to append to; `tail` counts from here."""
        with suppress(FileNotFoundError):
            if self.path.stat().st_size > _LOG_BYTES:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._from = os.fstat(log).st_size
        return log

    def tail(self, only: re.Pattern[str] | None = None) -> str:
        """The last lines since `open`, on one line; empty where there are none.

        `only`: those alone that begin so.
        """
        with suppress(OSError), self.path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._from, end - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
            lines = [line for line in lines if only is None or only.match(line)]
            return " | ".join([line.strip() for line in lines if line.strip()][-_TAIL_LINES:])
        return ""


def spawn(
    runner: Runner, program: str, arguments: Sequence[str], journal: Journal, death: signal.Signals
) -> subprocess.Popen[bytes]:
    """Start a program that gets `death` when the calling thread ends."""
    log = journal.open()
    try:
        return subprocess.Popen(  # noqa: S603 - a program that the installation names
            [
                sys.executable,
                "-ISE",
                str(_LAUNCHER),
                str(os.getpid()),
                str(death.value),
                runner.identity,
                str(runner.binaries.folder / program),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    finally:
        os.close(log)


def _environment() -> dict[str, str]:
    # Neither PGOPTIONS and its like, nor our notify socket and credentials.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | kept


async def wait_pid(pid: int) -> None:
    """Wait until a process has ended; at once if there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child's end; its exit status."""
    if process.poll() is None:
        await wait_pid(process.pid)
    return process.wait()


async def run_to_end(
    runner: Runner, program: str, arguments: Sequence[str], journal: Journal
) -> None:
    """Run a program until it ends; killed when cancelled. Raises `EmbeddedError`."""
    process = spawn(runner, program, arguments, journal, signal.SIGKILL)
    try:
        await ended(process)
    finally:
        await stop(process, (signal.SIGKILL, _KILL_S))
    if process.returncode != 0:
        raise failure(process.returncode, f"{program} failed", journal)


async def stop(
    process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]
) -> signal.Signals | None:
    """Send each signal and wait for its seconds until the process has ended.

    Cannot be cancelled. Returns the signal that was enough; None if it had ended before,
    or did not end at all.
    """
    with trio.CancelScope(shield=True):
        for number, limit_s in steps:
            if process.poll() is not None:
                return None
            process.send_signal(number)
            with trio.move_on_after(limit_s):
                await ended(process)
                return number
    return None


def failure(status: int | None, what: str, journal: Journal) -> EmbeddedError:
    """The error for a program that ended with `status`."""
    said = journal.tail() or "nothing"
    if status == _NAMESPACE_REFUSED:
        return NamespaceRefused(said)
    if status is not None:
        what += f" (signal {-status})" if status < 0 else f" (status {status})"
    return EmbeddedError(f"{what}; it said: {said} (more in {journal.path})")
