"""The door for beats on this machine: a unix datagram socket, one beat or an array a datagram.

    printf '{"agent":"builder-1","epoch":0,"seq":%s}' "$(date +%s%6N)" | socat - UNIX-SENDTO:PATH

Laws:

1. Who sends is what the kernel says (SCM_CREDENTIALS), never what the datagram says.
2. Nobody can hold the door: a datagram and a turn are bounded, and an answer that is not
   taken at once is not given.
3. An answer goes only where it can have been asked for: to the sender's own socket file, or to
   a name that the kernel gave the sender. So nobody can make the daemon write to others.
4. The queue is the kernel's, and short (net.unix.max_dgram_qlen). While it is full a sender
   that may wait is held up, one that may not is told EAGAIN; no beat is dropped in silence.
"""

import json
import os
import re
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from custosd.adapters.beats.admission import Admission, Admitted
from custosd.core.beats import Refusal
from custosd.core.errors import CustosdError
from custosd.flow.local_socket import bound_socket
from custosd.flow.pulse import Pulse

log = structlog.get_logger()

SOCKET_NAME = "beats.sock"
DOOR = "socket"

_CREDENTIALS = struct.Struct("iII")
# Room for the credentials and for nothing else: descriptors that a sender passes along
# have no place, and the kernel closes them.
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)
_MOST_TOLD = 10
_KERNEL_GIVEN = re.compile(rb"\0[0-9a-f]{5}")
"""A name as bind("") makes one (unix(7), autobind)."""


class BeatSocketError(CustosdError):
    """The socket for beats could not be made."""


@dataclass(frozen=True, slots=True)
class BeatSocketSettings:
    """Where the socket is and who may open it (0o666: everybody, judged beat by beat).

    A datagram has at most `datagram_bytes`; about `burst` beats are read at a turn, and then
    everybody else has one.
    """

    path: Path
    mode: int = 0o666
    datagram_bytes: int = 64 * 1024
    burst: int = 500


async def receive_beats(
    settings: BeatSocketSettings,
    admission: Admission,
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take beats at `settings.path` until cancelled; then take the socket away.

    Started: when it can be sent to. Back-pressure: the register never waits, so only more
    beats than this machine can read hold senders up. Raises `BeatSocketError` where the
    socket cannot be made.
    """
    try:
        async with bound_socket(socket.SOCK_DGRAM, settings.path, settings.mode) as sock:
            # Before this the kernel names nobody, and nobody is trusted.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            log.info("beats.opened", path=str(settings.path), mode=f"{settings.mode:04o}")
            task_status.started()
            door = _Door(sock, admission, settings)
            while True:
                with pulse.waiting():
                    await trio.lowlevel.wait_readable(sock)
                while door.read_burst():
                    pulse.beat()
                    await trio.lowlevel.checkpoint()
    except OSError as error:
        raise BeatSocketError(
            f"the socket for beats {settings.path} cannot be used: {error.strerror or error}"
        ) from error


class _Door:
    """The open socket, and one buffer for all that is read from it."""

    def __init__(
        self, sock: socket.socket, admission: Admission, settings: BeatSocketSettings
    ) -> None:
        self._socket = sock
        self._admission = admission
        self._settings = settings
        self._buffer = bytearray(settings.datagram_bytes)
        self._view = memoryview(self._buffer)

    def read_burst(self) -> bool:
        """Read what is there; whether there may be more."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        beats = 0
        while beats < self._settings.burst:
            try:
                size, ancillary, said, address = self._socket.recvmsg_into(
                    [self._buffer], _ANCILLARY_BYTES, flags
                )
            except (BlockingIOError, InterruptedError):
                return False
            uid = _uid(ancillary)
            if said & socket.MSG_TRUNC:
                words = f"a datagram has at most {self._settings.datagram_bytes} bytes"
                admitted = self._admission.turned_away(Refusal.OVERSIZE, words)
            else:
                admitted = self._admission.admit(self._view[:size], DOOR, uid=uid)
            beats += admitted.accepted + len(admitted.refused)
            if address:
                self._answer(address, uid, admitted)
        return True

    def _answer(self, address: str | bytes, uid: int | None, admitted: Admitted) -> None:
        """Say what became of it, if that can be said at once."""
        text = json.dumps(admitted.form(_MOST_TOLD)).encode()
        with suppress(OSError):
            if isinstance(address, bytes):
                if _KERNEL_GIVEN.fullmatch(address):
                    self._socket.sendto(text, socket.MSG_DONTWAIT, address)
            elif address.startswith("/"):
                self._answer_to_file(text, address, uid)

    def _answer_to_file(self, text: bytes, path: str, uid: int | None) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            if stat.S_ISSOCK(about.st_mode) and about.st_uid == uid:
                # Through the descriptor: what was looked at is what is written to.
                here = f"/proc/self/fd/{descriptor}"
                self._socket.sendto(text, socket.MSG_DONTWAIT, here)
        finally:
            os.close(descriptor)


def _uid(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            if len(data) < _CREDENTIALS.size:
                return None
            _pid, uid, _gid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
            return int(uid)
    return None
