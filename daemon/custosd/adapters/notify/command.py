"""Tells of concerns by running a program for each notice.

Laws: the notice is the program's input and nothing else of it (no argument, no shell), so no
text can become a command. What the program writes is read up to a bound and thrown away
behind it; what it leaves running is killed with its whole process group.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import trio

from custosd.adapters.notify.notices import notice_json
from custosd.core.errors import NotifyError
from custosd.ports import Notice, Notifier

SAID_BYTES = 2_048
"""How much of what the program complains about goes into the error."""

_CHUNK_BYTES = 16_384
_REAP_S = 5.0
_LINGER_S = 0.2


class CommandNotifier(Notifier):
    """Runs `argv` with the notice as JSON on its standard input; exit code 0 means told."""

    def __init__(
        self,
        argv: Sequence[str],
        timeout_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._argv = list(argv)
        self._timeout_s = timeout_s
        given = os.environ if environment is None else environment
        # The service manager's socket is the daemon's own: a child must not speak for it.
        self._environment = {k: v for k, v in given.items() if k != "NOTIFY_SOCKET"}

    @property
    def name(self) -> str:
        """The way, as it is called in facts."""
        return "command"

    async def notify(self, notice: Notice) -> None:
        """Run the program; raises `NotifyError` "timeout", "exit_N", "signal_N", "not_started"."""
        try:
            process = await trio.lowlevel.open_process(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            message = f"{self._argv[0]} could not be started: {error.strerror}; see [alerts]"
            raise NotifyError("not_started", message) from error
        said = bytearray()
        try:
            with trio.move_on_after(self._timeout_s) as scope:
                await _converse(process, notice_json(notice) + b"\n", said)
        finally:
            await _end(process)
        if scope.cancelled_caught:
            raise NotifyError("timeout", f"{self._argv[0]} took more than {self._timeout_s:g} s")
        _check(self._argv[0], process.returncode, bytes(said))


async def _converse(process: trio.Process, said_to_it: bytes, said: bytearray) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, process, said_to_it)
        nursery.start_soon(_listen, process, said)
        await process.wait()
        # What it started may hold its output open for ever: its own end is what counts.
        nursery.cancel_scope.deadline = trio.current_time() + _LINGER_S


async def _tell(process: trio.Process, data: bytes) -> None:
    stdin = process.stdin
    assert stdin is not None  # noqa: S101 - it was opened as a pipe
    # A program that does not read its input may still have done what it should.
    with suppress(trio.BrokenResourceError):
        async with stdin:
            await stdin.send_all(data)


async def _listen(process: trio.Process, said: bytearray) -> None:
    stdout = process.stdout
    assert stdout is not None  # noqa: S101 - it was opened as a pipe
    async with stdout:
        while chunk := await stdout.receive_some(_CHUNK_BYTES):
            said += chunk[: SAID_BYTES - len(said)]


async def _end(process: trio.Process) -> None:
    """Kill what is left of the process and of all that it started; bounded."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with trio.CancelScope(deadline=trio.current_time() + _REAP_S, shield=True):
        await process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            await trio.aclose_forcefully(pipe)


def _check(program: str, code: int | None, said: bytes) -> None:
    if code == 0:
        return
    if code is None:
        raise NotifyError("not_ended", f"{program} could not be killed")
    reason = f"exit_{code}" if code > 0 else f"signal_{-code}"
    text = said.decode("utf-8", "replace").strip()
    raise NotifyError(reason, f"{program} ended with {reason}: {text}" if text else reason)
