"""One tmux server and the few things that are asked of it, each in one call of its client.

Laws:

1. What must not go to the wrong program is sent by tmux itself under a condition
   (`if-shell -F`): it compares the pane's state with the one that was proved, and sends, in
   one step of its own loop. Nothing is sent by a call that came too late.
2. No server is ever started, and none of the daemon's environment reaches one.
3. A pane is found by its exact name: tmux would take "build" for "builder" otherwise.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from custosd.adapters.channels.screen import Screen, parse_screen
from custosd.adapters.programs import (
    ProgramAbsent,
    ProgramLate,
    ProgramStarved,
    plain_environment,
    run_program,
)
from custosd.core.errors import ChannelError

KEY = re.compile(r"[A-Za-z0-9-]{1,20}")
"""What a key may be called: Enter, C-m, M-Enter."""

_TARGET = re.compile(r"(?P<session>[^:.=%@$]+):(?P<window>[^:.]+)\.(?P<pane>\d+)|(?P<id>%\d+)")
_PROGRAM = re.compile(r"[A-Za-z0-9_.+-]+")
_MOST_BYTES = 4 * 1024 * 1024
_SEEN = (
    "#{pane_id} #{pane_pid} #{pane_dead} #{pane_in_mode} #{pane_input_off} #{pane_synchronized} "
    "#{pane_current_command}"
)
_PLACE = (
    "#{window_id} #{window_index} #{pane_index} #{pane_active} #{window_zoomed_flag} "
    "#{window_width} #{window_height} #{cursor_flag} #{cursor_y} x#{bracket_paste_flag}"
)
_DONE = "sent"


@dataclass(frozen=True, slots=True)
class Pane:
    """A pane as it was seen. `seen` is its state in tmux's own words, to be compared again.

    `brackets`: whether the program asked for bracketed paste; None where tmux does not tell
    (before 3.7).
    """

    seen: str
    id: str
    pid: int
    program: str
    dead: bool
    in_mode: bool
    input_off: bool
    synchronized: bool
    session: str
    window_id: str
    active: bool
    zoomed: bool
    width: int
    height: int
    brackets: bool | None
    mark: str
    screen: Screen


class TmuxServer:
    """The client program, the server's socket (None: the user's own), and a time limit."""

    def __init__(self, program: str, socket: Path | None, timeout_s: float) -> None:
        place = () if socket is None else ("-S", str(socket))
        self.argv = (program, "-u", *place)
        self._timeout_s = timeout_s

    async def look(self, target: str, mark: str) -> Pane:
        """The pane with its screen, at one moment; `mark` is an option of it that is read too.

        Raises `ChannelError` "target_absent", to be tried again.
        """
        place = _exact(target)
        asked: list[str] = []
        for form in (_SEEN, _PLACE, "#{session_name}", "#{window_name}", f"#{{{mark}}}"):
            asked += ["display-message", "-p", "-t", place, form, ";"]
        said = await self._ask(*asked, "capture-pane", "-p", "-e", "-t", place)
        seen, where, session, window, marked, *lines = said.split("\n")
        pane = _parsed(seen, where, session, marked, "\n".join(lines[:-1]))
        if not _is_asked_for(target, pane.id, session, where, window):
            raise _absent(target)
        return pane

    async def paste(self, pane: Pane, text: str, mark: str, value: str) -> bool:
        """Paste as one piece and set the mark, if the pane is as it was seen; else nothing.

        The text goes by a buffer with a name that cannot be guessed, and is gone from it after.
        """
        buffer = f"custosd-{secrets.token_hex(16)}"
        return await self._if_as_seen(
            pane,
            f"set-option -p -t {pane.id} {mark} {value} ; "
            f"paste-buffer -d -p -r -b {buffer} -t {pane.id}",
            f"delete-buffer -b {buffer}",
            first=("load-buffer", "-b", buffer, "-", ";"),
            stdin=text.encode(),
        )

    async def press(
        self, pane: Pane, key: str, mark: str = "", value: str = "", *, times: int = 1
    ) -> bool:
        """Press a key and set the mark, if the pane is as it was seen; else nothing."""
        marked = f"set-option -p -t {pane.id} {mark} {value} ; " if mark else ""
        return await self._if_as_seen(pane, f"{marked}send-keys -t {pane.id} -N {times} {key}")

    async def mark(self, pane: Pane, mark: str, value: str) -> None:
        """Set a mark."""
        await self._ask("set-option", "-p", "-t", pane.id, mark, value)

    async def unmark(self, pane_id: str, mark: str) -> None:
        """Take a mark away."""
        await self._ask("set-option", "-p", "-u", "-q", "-t", pane_id, mark)

    async def _if_as_seen(
        self,
        pane: Pane,
        then: str,
        otherwise: str = "",
        *,
        first: Sequence[str] = (),
        stdin: bytes = b"",
    ) -> bool:
        condition = f"#{{==:{_SEEN},{pane.seen}}}"
        said = await self._ask(
            *first,
            "if-shell",
            "-F",
            "-t",
            pane.id,
            condition,
            f"{then} ; display-message -p {_DONE}",
            otherwise or "display-message -p refused",
            stdin=stdin,
        )
        return said.strip() == _DONE

    async def _ask(self, *arguments: str, stdin: bytes = b"") -> str:
        try:
            finished = await run_program(
                (*self.argv, *arguments),
                stdin=stdin,
                environment=plain_environment({"TERM": "dumb"}),
                timeout_s=self._timeout_s,
                most_bytes=_MOST_BYTES,
            )
        except ProgramAbsent as error:
            raise ChannelError(
                "tmux_absent", f"{error}: install tmux, or name its path in the agent's channel"
            ) from error
        except ProgramStarved as error:
            raise ChannelError("tmux_starved", str(error), retry=True) from error
        except ProgramLate as error:
            raise ChannelError("tmux_stuck", str(error), retry=True) from error
        if finished.status != 0:
            raise _refused(finished.stderr.decode("utf-8", "replace").strip()[:200])
        return finished.stdout.decode("utf-8", "replace")


def checked_target(target: str) -> str:
    """The target, if it names exactly one pane; raises ValueError."""
    if _TARGET.fullmatch(target):
        return target
    raise ValueError(f'"{target}" is no pane: expected SESSION:WINDOW.PANE, or %NUMBER')


def _exact(target: str) -> str:
    found = _TARGET.fullmatch(target)
    if found is None or found["id"]:
        return target
    return f"={found['session']}:={found['window']}.{found['pane']}"


def _is_asked_for(target: str, pane_id: str, session: str, where: str, window: str) -> bool:
    # tmux falls back to some other pane where it finds none: trust only what it says it found.
    found = _TARGET.fullmatch(target)
    if found is None or found["id"]:
        return target == pane_id
    _, window_index, pane_index, *_ = where.split(" ")
    return (
        session == found["session"]
        and found["window"] in (window_index, window)
        and pane_index == found["pane"]
    )


def _parsed(seen: str, where: str, session: str, mark: str, screen: str) -> Pane:
    try:
        pane_id, pid, dead, in_mode, input_off, synchronized, program = seen.split(" ", 6)
        window_id, _, _, active, zoomed, width, height, cursor, cursor_row, brackets = where.split(
            " "
        )
        if not _PROGRAM.fullmatch(program):
            raise ChannelError(
                "target_unproved", "the pane's program has a name that tmux cannot compare"
            )
        return Pane(
            seen=seen,
            id=pane_id,
            pid=int(pid),
            program=program,
            dead=_on(dead),
            in_mode=_on(in_mode),
            input_off=_on(input_off),
            synchronized=_on(synchronized),
            session=session,
            window_id=window_id,
            active=_on(active),
            zoomed=_on(zoomed),
            width=int(width),
            height=int(height),
            brackets=None if brackets == "x" else _on(brackets[1:]),
            mark=mark,
            screen=parse_screen(screen, int(cursor_row) if _on(cursor) else None),
        )
    except ValueError as error:
        raise _absent("the target") from error


def _on(flag: str) -> bool:
    return flag not in ("", "0")


def _absent(target: str) -> ChannelError:
    return ChannelError(
        "target_absent", f"tmux has no pane {target}: is the agent started there?", retry=True
    )


def _refused(words: str) -> ChannelError:
    if "no server" in words or "can't find" in words or "No such file" in words:
        return _absent(f"as configured ({words})")
    if "error connecting" in words:
        return ChannelError(
            "tmux_refused", f"tmux: {words}: may the daemon's user use this socket?", retry=True
        )
    return ChannelError("tmux_failed", f"tmux: {words}", retry=True)
