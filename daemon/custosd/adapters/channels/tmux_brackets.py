"""Asks a tmux that does not tell (before 3.7) whether a pane's program takes bracketed paste.

tmux passes the mode on to the terminals that show the pane. So the pane is shown, for a
moment, on a terminal of our own: in a session beside the user's, of the same size, which is
gone with its client, also when the daemon is killed.

Law: only a mode that was seen switched on counts. Whatever goes wrong is "not known".
"""

import fcntl
import os
import pty
import secrets
import struct
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress

import trio

from custosd.adapters.channels.tmux_server import Pane
from custosd.adapters.programs import plain_environment

_ON = b"\x1b[?2004h"
_OFF = b"\x1b[?2004l"
_LAST_BYTES = 1 << 20
_KILL_S = 2.0


async def takes_brackets(argv: Sequence[str], pane: Pane, wait_s: float) -> bool:
    """Whether bracketed paste is on in this pane; False, too, where it cannot be seen.

    `argv` is tmux with the server's socket. Takes a few milliseconds where it is on, and
    `wait_s` where it is not. A pane behind a zoomed one is not looked at: showing it would
    change what people see.
    """
    if pane.zoomed and not pane.active:
        return False
    try:
        ours, theirs = pty.openpty()
    except OSError:
        return False
    try:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", pane.height, pane.width, 0, 0))
        os.set_blocking(ours, False)
        client = _shown_on(theirs, argv, pane)
    except OSError:
        os.close(ours)
        return False
    finally:
        os.close(theirs)
    try:
        with trio.move_on_after(wait_s):
            return await _switched_on(ours)
        return False
    finally:
        # The terminal's end is the client's, and the client's end is the session's.
        os.close(ours)
        await _end(client)


def _shown_on(terminal: int, argv: Sequence[str], pane: Pane) -> subprocess.Popen[bytes]:
    name = f"custosd-{secrets.token_hex(8)}"
    show = ["new-session", "-t", f"={pane.session}", "-s", name]
    show += ["-f", "read-only,ignore-size,active-pane", ";"]
    show += ["set-option", "-t", f"={name}:", "destroy-unattached", "on", ";"]
    show += ["set-option", "-t", f"={name}:", "status", "off", ";"]
    show += ["select-window", "-t", f"={name}:{pane.window_id}"]
    if not pane.active:
        show += [";", "select-pane", "-t", pane.id]
    return subprocess.Popen(  # noqa: S603 - tmux, as configured
        [*argv, "-T", "bpaste", *show],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=plain_environment({"TERM": "xterm"}),
        cwd="/",
        start_new_session=True,
    )


async def _switched_on(terminal: int) -> bool:
    told = b""
    while True:
        await trio.lowlevel.wait_readable(terminal)
        try:
            chunk = os.read(terminal, 65_536)
        except BlockingIOError:
            continue
        except OSError:
            return False
        if not chunk:
            return False
        told = (told + chunk)[-_LAST_BYTES:]
        if told.rfind(_ON) > told.rfind(_OFF):
            return True


async def _end(client: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        client.kill()
    with trio.CancelScope(shield=True), trio.move_on_after(_KILL_S), suppress(OSError):
        descriptor = os.pidfd_open(client.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    client.poll()
