"""The processes that belong to an incarnation, told by the environment that they inherited.

Laws: a signal goes through a descriptor whose process was looked at after it was opened, so
that no successor with the same id is hit. The environment of other users' processes can not
be read: those are neither found nor hit.
"""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import trio

from custosd.adapters.process_identity import identify
from custosd.core.errors import ControlError
from custosd.core.evidence import ProcessIdentity

_WHOLE_GROUP = 1 << 2
"""PIDFD_SIGNAL_PROCESS_GROUP, of Linux 6.9."""

_SWEEPS = 3


def processes_with(variable: str, value: str) -> Iterator[ProcessIdentity]:
    """All living processes that began with this in their environment; blocks as /proc does."""
    wanted = f"{variable}={value}".encode()
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            process = identify(int(place.name))
            with suppress(OSError):
                told = (place / "environ").read_bytes().split(b"\0")
                if process is not None and wanted in told:
                    yield process


def send(process: ProcessIdentity, number: signal.Signals, *, group: bool = False) -> bool:
    """Send a signal to this very process, or to its `group`; False: it is gone.

    Raises `ControlError` "not_allowed" and "signal_failed".
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise ControlError("signal_failed", f"process {process.pid}: {error.strerror}") from error
    try:
        if identify(process.pid) != process:
            return False
        if group and os.getpgid(process.pid) == process.pid:
            _send_to_group(descriptor, process.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise ControlError(
            "not_allowed", f"process {process.pid} is another user's: run it as the daemon's"
        ) from error
    except OSError as error:
        raise ControlError("signal_failed", f"process {process.pid}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return True


async def ended(process: ProcessIdentity) -> None:
    """Wait until this very process has ended; whoever calls limits the time."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise ControlError("not_seen", f"process {process.pid}: {error.strerror}") from error
    try:
        if identify(process.pid) == process:
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def sweep(variable: str, value: str) -> int:
    """Kill all processes with this in their environment, and what they start meanwhile.

    Returns how many signals were sent; blocks for as long as /proc does.
    """
    sent = 0
    for _ in range(_SWEEPS):
        hit = sum(send(process, signal.SIGKILL) for process in processes_with(variable, value))
        sent += hit
        if not hit:
            break
    return sent


def _send_to_group(descriptor: int, group: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number, None, _WHOLE_GROUP)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # An older kernel. The leader was there a moment ago, and its group has its number for
        # as long as there is one process in it.
        os.killpg(group, number)
