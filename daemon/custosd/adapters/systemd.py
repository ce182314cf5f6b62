"""Tells systemd how the daemon is doing, over the socket that it gave.

Laws:

1. Sending never waits and never raises: a service manager that does not read must not
   stop a daemon that works. What could not be sent is counted.
2. Where nobody asked to be told (no NOTIFY_SOCKET) everything is done as before, to no one.
3. The variables of the protocol are taken out of the environment, so that a child process
   cannot speak for the daemon.
"""

import os
import socket
import time
from collections.abc import MutableMapping

import sdnotify

LONGEST_STATUS = 500
"""Characters of a status; `systemctl status` shows it on one line."""


class ServiceManager:
    """The service manager that started this process, if one did.

    `watchdog_s` is the time without a sign of life after which it kills the daemon; None
    when it does not watch this process. `unsent` counts the messages that were lost.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(
            environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        )
        self.unsent = 0
        # Other addresses (vsock) are of virtual machines, not of a service in one.
        self._notifier = _Notifier(address) if address[:1] in ("/", "@") else None
        self._owed: dict[str, str] = {}

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is done. Sent again with a later message if it is lost."""
        return self._send({"READY": "1"} | _status(status), owe=True)

    def alive(self) -> bool:
        """Still making progress: puts the watchdog off by `watchdog_s`."""
        return self._send({"WATCHDOG": "1"})

    def status(self, text: str) -> bool:
        """One line for `systemctl status`, in words; cut at 500 characters."""
        return self._send(_status(text))

    def reloading(self, status: str = "") -> bool:
        """A reload has begun; `ready` ends it."""
        self._owed.pop("READY", None)
        since_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send({"RELOADING": "1", "MONOTONIC_USEC": str(since_us)} | _status(status))

    def stopping(self, status: str = "") -> bool:
        """The daemon has begun to stop. Sent again with a later message if it is lost.

        Ends the watchdog, too: whoever drains makes no progress any more, and the time for a
        stop has a limit of its own (TimeoutStopSec). systemd 252 leaves off watching whoever
        says that it stops (and kills whoever does not say so), but promises neither.
        """
        unwatched = {} if self.watchdog_s is None else {"WATCHDOG_USEC": "0"}
        return self._send({"STOPPING": "1"} | unwatched | _status(status), owe=True)

    def extend_timeout(self, seconds: float) -> bool:
        """Start or stop will take up to so many seconds from now; do not give up."""
        return self._send({"EXTEND_TIMEOUT_USEC": str(int(seconds * 1e6))})

    def close(self) -> None:
        """Close the socket; what is sent afterwards goes to no one."""
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _send(self, assignments: dict[str, str], *, owe: bool = False) -> bool:
        if self._notifier is None:
            return False
        message = self._owed | assignments
        try:
            self._notifier.deliver("\n".join(f"{key}={value}" for key, value in message.items()))
        except OSError:
            self.unsent += 1
            if owe:
                self._owed |= assignments
            return False
        self._owed = {}
        return True


class _Notifier(sdnotify.SystemdNotifier):  # type: ignore[misc]  # sdnotify is untyped
    """sdnotify's protocol on a socket of ours.

    Its own constructor makes a socket that blocks (a reader that does not read stops the
    daemon at the 12th message), that stays open when connecting fails, and that is never
    connected again.
    """

    def __init__(self, address: str) -> None:
        self.debug = True  # errors of `notify` come out
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )

    def deliver(self, message: str) -> None:
        """Send one message; connect first where there is no connection, or one to the dead."""
        # sdnotify encodes in Latin-1, which keeps one byte a character: so it is given one
        # character for each byte of the UTF-8 that systemd reads.
        bytewise = message.encode("utf-8", "replace").decode("latin-1")
        try:
            self.notify(bytewise)
        except BlockingIOError:
            raise  # it is there and does not read: a new connection would not help
        except OSError:
            self.socket.connect(self._address)
            self.notify(bytewise)


def _status(text: str) -> dict[str, str]:
    # An assignment ends with its line; the rest would be read as assignments of its own.
    return {"STATUS": " ".join(text.split())[:LONGEST_STATUS]} if text else {}


def _watchdog_s(usec: str, pid: str) -> float | None:
    # systemd.exec(5): the variables are meant for the process whose id they name, if they do.
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
