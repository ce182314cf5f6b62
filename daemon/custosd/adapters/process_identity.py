"""Which process an id means now, for good: read from /proc, by no clock that can be set."""

from functools import cache
from pathlib import Path

from custosd.core.evidence import ProcessIdentity

_START = 19
"""Field 22 of /proc/PID/stat, counted behind the name, which may hold anything."""

_STATE = 0


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this id now; None where there is none, or only its remains.

    psutil's `create_time` is a time of day and moves when the clock is set; what it has
    beside that is private. So the start is read here: ticks since the boot never change.
    """
    fields = _stat(pid)
    if fields is None or fields[_STATE] in {"Z", "X", "x"}:
        return None
    return ProcessIdentity(pid, int(fields[_START]), boot_id())


def is_gone(process: ProcessIdentity) -> bool | None:
    """Whether this very process is no more; None: that can not be seen from here."""
    if process.boot_id != boot_id():
        return True
    try:
        fields = _read(process.pid)
    except FileNotFoundError:
        return True
    except (ProcessLookupError, PermissionError, OSError, ValueError):
        return None
    return fields[_STATE] in {"Z", "X", "x"} or int(fields[_START]) != process.started_ticks


@cache
def boot_id() -> str:
    """This boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    try:
        return _read(pid)
    except (OSError, ValueError):
        return None


def _read(pid: int) -> list[str]:
    if pid <= 0:
        raise ValueError(f"{pid} is no process id")
    text = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace")
    return text[text.rindex(")") + 2 :].split()
