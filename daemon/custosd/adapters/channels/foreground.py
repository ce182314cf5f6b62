"""Proves by /proc which program a terminal's keys reach; blocking, for a thread.

Laws:

1. The answer is about the leader of the terminal's foreground process group. Where that
   cannot be told, there is no answer, and nobody types.
2. A shell is a shell by any of its names: of its file, of its process, of its first
   argument. A shell that hides all three (a copy under another name) is not found out.
"""

from dataclasses import dataclass
from pathlib import Path

from custosd.core.errors import ChannelError

SHELLS = frozenset(
    {
        "ash",
        "bash",
        "busybox",
        "csh",
        "dash",
        "elvish",
        "fish",
        "ksh",
        "ksh93",
        "ksh2020",
        "mksh",
        "nu",
        "osh",
        "pdksh",
        "pwsh",
        "rbash",
        "rc",
        "sash",
        "sh",
        "tcsh",
        "toybox",
        "xonsh",
        "yash",
        "zsh",
        "zsh5",
    }
)

_INTERPRETERS = ("python", "pypy", "node", "bun", "deno", "ruby", "perl")
_PROC = Path("/proc")
_LARGEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Foreground:
    """The program that the keys reach: which process for good, and all its names.

    `agent`: CUSTOSD_AGENT of its environment; empty where there is none or it may not be read.
    """

    pid: int
    started_ticks: int
    names: frozenset[str]
    agent: str = ""

    @property
    def identity(self) -> str:
        """Which process, for good (in this boot), as text."""
        return f"{self.pid}-{self.started_ticks}"

    @property
    def is_shell(self) -> bool:
        """Whether any of its names is a shell's."""
        return bool(self.names & SHELLS)


@dataclass(frozen=True, slots=True)
class _Stat:
    """What is used of /proc/PID/stat."""

    name: str
    state: str
    group: int
    terminal: int
    foreground: int
    started_ticks: int


def foreground_of(pane_pid: int) -> Foreground:
    """The program in front on the terminal of this process.

    Raises `ChannelError` "target_unproved", to be tried again: who is in front may be just
    changing.
    """
    try:
        pane = _stat(pane_pid)
        if pane.foreground <= 0:
            raise _unproved("nothing is in front on its terminal")
        leader = _stat(pane.foreground)
        found = Foreground(
            pane.foreground,
            leader.started_ticks,
            _names(pane.foreground, leader.name),
            _environment(pane.foreground).get("CUSTOSD_AGENT", ""),
        )
        again = _stat(pane.foreground)
    except (OSError, ValueError, IndexError) as error:
        raise _unproved(f"/proc does not show it ({type(error).__name__})") from error
    if (leader.terminal, leader.group) != (pane.terminal, pane.foreground):
        raise _unproved("the process in front has no terminal there")
    if again.state in "ZX" or again.started_ticks != leader.started_ticks:
        raise _unproved("the process in front has ended")
    if again.state in "Tt":
        raise _unproved("the process in front is stopped, and reads nothing")
    return found


def _unproved(why: str) -> ChannelError:
    return ChannelError(
        "target_unproved", f"it cannot be proved which program the pane shows: {why}", retry=True
    )


def _stat(pid: int) -> _Stat:
    text = _read(pid, "stat").decode("utf-8", "replace")
    # The name may hold anything, brackets and spaces too: it ends with the last bracket.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return _Stat(
        name=name,
        state=fields[0],
        group=int(fields[2]),
        terminal=int(fields[4]),
        foreground=int(fields[5]),
        started_ticks=int(fields[19]),
    )


def _names(pid: int, process_name: str) -> frozenset[str]:
    arguments = _strings(pid, "cmdline")
    if not arguments:
        # It is ending: its memory is gone, and half of its names with it.
        raise _unproved("the process in front has no arguments any more")
    names = {process_name, _program(arguments[0])}
    try:
        names.add(_program(str((_PROC / str(pid) / "exe").readlink()).removesuffix(" (deleted)")))
    except OSError:
        # Another user's process: its other names have to do.
        names.add("")
    if any(name.startswith(_INTERPRETERS) for name in names):
        names |= _script(arguments[1:])
    return frozenset(names - {""})


def _program(path: str) -> str:
    # A login shell has a dash in front; a title that was set may go on after the name.
    return path.partition(" ")[0].rpartition("/")[2].lstrip("-")


def _script(arguments: list[str]) -> set[str]:
    script = next((part for part in arguments if part and not part.startswith("-")), "")
    name = script.rpartition("/")[2]
    return {name, name.partition(".")[0]}


def _environment(pid: int) -> dict[str, str]:
    try:
        pairs = (entry.partition("=") for entry in _strings(pid, "environ"))
        return {name: value for name, _, value in pairs}
    except OSError:
        return {}


def _strings(pid: int, file: str) -> list[str]:
    data = _read(pid, file).rstrip(b"\0")
    return data.decode("utf-8", "replace").split("\0") if data else []


def _read(pid: int, file: str) -> bytes:
    with (_PROC / str(pid) / file).open("rb", buffering=0) as opened:
        return opened.read(_LARGEST_BYTES) or b""
