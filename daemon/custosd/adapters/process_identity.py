"""Which process an id means now, for good: read from /proc, by no clock that can be set.

psutil's `create_time` is a time of day, the start since the boot plus the time of the boot,
and moves with every step of the clock; the start alone it has only in private. So field 22
of /proc/PID/stat is read here: clock ticks since the boot, which never change.

Law: a process is gone only where that was seen. A /proc that hides the processes of others
(hidepid) shows the living as absent: then the kernel is asked, and may say "unknown".
"""

import os
from functools import cache
from pathlib import Path

from custosd.core.evidence import ProcessIdentity

_STATE, _PARENT, _THREADS, _START = 0, 1, 17, 19
"""Fields 3, 4, 20 and 22 of /proc/PID/stat, counted behind the name, which may hold anything."""

_LONGEST_LINE = 4096

_REMAINS = frozenset("ZXx")
"""The states of what is left of a process, or of its main thread alone, after its end."""


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this id now; None where none can be seen, or only its remains."""
    try:
        remains, started_ticks = _read(pid)
    except (OSError, ValueError):
        return None
    return None if remains else ProcessIdentity(pid, started_ticks, boot_id())


def is_gone(process: ProcessIdentity) -> bool | None:
    """Whether this very process is no more; None: that can not be seen from here.

    What was started in an earlier boot is gone.
    """
    if process.boot_id != boot_id():
        return True
    try:
        remains, started_ticks = _read(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return True if _nobody_has(process.pid) else None
    except (OSError, ValueError):
        return None
    return remains or started_ticks != process.started_ticks


def own_name(program: str) -> str:
    """This very process, by a name that no other one has, on whatever machine; see `has_ended`."""
    own = identify(os.getpid())
    ticks = 0 if own is None else own.started_ticks
    return ":".join((program, os.uname().nodename, *_world(), str(os.getpid()), str(ticks)))


def has_ended(name: str) -> bool:
    """Whether the process that had this `own_name` is known to be no more.

    False for one of another machine, boot, or space of process ids: nothing is known of it.
    """
    try:
        *_, boot, space, pid, ticks = name.split(":")
        process = ProcessIdentity(int(pid), int(ticks), boot_id())
    except ValueError:
        return False
    return (boot, space) == _world() and process.started_ticks > 0 and is_gone(process) is True


def parent_of(pid: int) -> int | None:
    """The id of a process's parent; None where that can not be seen."""
    try:
        return int(_fields(pid)[_PARENT])
    except (OSError, ValueError):
        return None


@cache
def boot_id() -> str:
    """This boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def _world() -> tuple[str, str]:
    """In what a process id means the same: this boot, and this space of process ids."""
    try:
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        space = "?"
    return boot_id(), space


def _nobody_has(pid: int) -> bool:
    # The kernel answers for processes that /proc does not show, too; nothing is sent.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _read(pid: int) -> tuple[bool, int]:
    """Whether only remains of it are there, and its start.

    A process whose main thread has ended looks like them, and goes on in its other threads.
    """
    fields = _fields(pid)
    return fields[_STATE] in _REMAINS and int(fields[_THREADS]) <= 1, int(fields[_START])


def _fields(pid: int) -> list[str]:
    if pid <= 0:
        raise ValueError(f"{pid} is no process id")
    descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(descriptor, _LONGEST_LINE)
    finally:
        os.close(descriptor)
    fields = line[line.rindex(b")") + 2 :].decode("ascii", "replace").split()
    if len(fields) <= _START:
        raise ValueError(f"/proc/{pid}/stat is not as it should be")
    return fields
