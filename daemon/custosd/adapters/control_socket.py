"""The door for acts on this machine: a unix socket, one JSON request a line, one answer a line.

    {"act": "pause", "subject": "builder-1", "arguments": {"reason": "maintenance"}}
    {"outcome": "done", "message": "builder-1 is paused", "detail": {...}}

Laws:

1. Who asks is what the kernel says (SO_PEERCRED), never what the request says.
2. A request with a field that is not known is refused: whoever misspells `dry_run` must not
   have done what was only to be tried.
3. Nobody can hold the door: lines, waits and connections are bounded. An act that has begun
   goes on to its end, also when the one who asked has gone.
4. The socket is made and taken away by the laws of `flow.local_socket`.
"""

import errno
import os
import pwd
import socket
import stat
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from custosd.adapters.encoding import decode_json, encode_json, original
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.errors import CustosdError
from custosd.core.secrets import without_secrets
from custosd.flow.accepting import accepted
from custosd.flow.local_socket import bound_socket, short_address
from custosd.flow.monitor import Kind, operation
from custosd.flow.threads import Threads
from custosd.ports import ActDoor

log = structlog.get_logger()

SOCKET_NAME = "control.sock"

LONGEST_ANSWER_BYTES = 4 * 1024 * 1024
"""What a client takes in at most."""

_CHUNK_BYTES = 16 * 1024
_NAME_TIMEOUT_S = 2.0
_SO_PEERGROUPS = 59
"""asm-generic/socket.h; Python has no name for it."""

_REMEDIES = {
    errno.EADDRINUSE: "; stop that daemon, or give this one a state_dir of its own",
    errno.EEXIST: "; remove it, or choose another state_dir",
}


class ControlSocketError(CustosdError):
    """The daemon could not be asked, or its door could not be opened."""


class DaemonNotRunning(ControlSocketError):
    """Nobody listens on the socket."""


class ControlDenied(ControlSocketError):
    """The socket, or the daemon behind it, does not let this user ask."""


class ControlTimeout(ControlSocketError):
    """No answer in time. What was asked for may have been done, or may yet be."""


class ControlBroken(ControlSocketError):
    """What came back is no answer. `reason` is the daemon's code where it gave one."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What one client may cost. `request_s` counts from the first byte of a line to its end."""

    connections: int = 32
    request_bytes: int = 64 * 1024
    idle_s: float = 30.0
    request_s: float = 10.0
    answer_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ControlAccess:
    """Who may ask, beyond what the file's mode lets through.

    Both sets empty: whoever can open the socket. Else a user or a group of theirs must be
    named; root and the daemon's own user always may.
    """

    mode: int = 0o660
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def admits(self, peer: "Peer") -> bool:
        """Whether this peer may ask."""
        if not self.uids and not self.gids:
            return True
        return peer.uid in {0, os.geteuid(), *self.uids} or not self.gids.isdisjoint(peer.gids)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is on the other side, as it was when it connected."""

    pid: int
    uid: int
    gids: frozenset[int]


class _Asked(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    act: Act
    subject: str = ""
    text: str = ""
    arguments: dict[str, str | int | float | bool] = {}
    dry_run: bool = False


class _Refused(msgspec.Struct, frozen=True):
    error: str
    message: str


class _Answered(msgspec.Struct, frozen=True):
    outcome: ActOutcome
    message: str
    detail: dict[str, Any] = {}


def socket_path(state_folder: Path, environ: Mapping[str, str]) -> Path:
    """Where the daemon's control socket lies: in systemd's runtime folder, else in the state's."""
    # systemd separates several folders by colons; the first is the unit's own.
    if given := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return Path(given, SOCKET_NAME)
    return state_folder / "run" / SOCKET_NAME


NameOf = Callable[[int], Awaitable[str]]
"""The name of a user, by number; "" where there is none, or it cannot be had now."""


def user_names() -> NameOf:
    """Names from the system's table of users; asked once each, and never waited for long."""
    known: dict[int, str] = {}
    threads = Threads(2)

    def look_up(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return ""

    async def name_of(uid: int) -> str:
        if uid not in known:
            # The table may be a directory server that does not answer.
            with trio.move_on_after(_NAME_TIMEOUT_S):
                known[uid] = await threads.run(partial(look_up, uid))
        return known.get(uid, "")

    return name_of


async def serve_control(
    path: Path,
    door: ActDoor,
    access: ControlAccess,
    limits: ControlLimits,
    name_of: NameOf,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take requests on `path` and hand them to `door`, until cancelled; then take it away.

    Started: when it listens. Back-pressure: a client's next line is read when its last one
    is answered; beyond `limits.connections` a client is told so, and let go. Raises
    `ControlSocketError` where the socket cannot be made.
    """
    async with _listening(path, access.mode) as listener, trio.open_nursery() as nursery:
        log.info("control.opened", path=str(path), mode=f"{access.mode:04o}")
        task_status.started()
        serving = _Serving(door, access, limits, name_of)
        while True:
            client, _ = await accepted(listener.accept, _tell_starved)
            nursery.start_soon(serving.converse, trio.SocketStream(client))


def _tell_starved(words: str) -> None:
    log.warning("control.starved", error=words)


class _Serving:
    """One open door and the conversations that go on at it."""

    def __init__(
        self, door: ActDoor, access: ControlAccess, limits: ControlLimits, name_of: NameOf
    ) -> None:
        self._door = door
        self._access = access
        self._limits = limits
        self._name_of = name_of
        self._open = 0

    async def converse(self, stream: trio.SocketStream) -> None:
        """Answer one client's lines until it leaves, or is shown out."""
        self._open += 1
        peer = Peer(0, -1, frozenset())
        try:
            async with stream:
                peer = peer_of(stream.socket)
                if self._open > self._limits.connections:
                    await self._refuse(stream, peer, "busy", "too many connections; try again")
                elif not self._access.admits(peer):
                    words = f"user {peer.uid} may not ask this daemon for acts"
                    await self._refuse(stream, peer, "denied", words)
                else:
                    async with operation(Kind.STREAM, "control", slow_s=inf):
                        await self._answer_lines(stream, peer)
        except (trio.BrokenResourceError, trio.TooSlowError):
            log.debug("control.abandoned", uid=peer.uid, peer_pid=peer.pid)
        except Exception:
            # One conversation's fault: the others, and the door, go on.
            log.exception("control.failed", uid=peer.uid, peer_pid=peer.pid)
        finally:
            self._open -= 1

    async def _answer_lines(self, stream: trio.SocketStream, peer: Peer) -> None:
        name = await self._name_of(peer.uid)
        author = f"uid:{peer.uid} ({name})" if name else f"uid:{peer.uid}"
        lines = _Lines(stream, self._limits)
        while True:
            try:
                line = await lines.next()
            except _Overlong:
                words = f"a request has at most {self._limits.request_bytes} bytes"
                return await self._refuse(stream, peer, "oversize", words)
            except _Unfinished:
                words = f"a request is whole within {self._limits.request_s:g} s"
                return await self._refuse(stream, peer, "unfinished", words)
            if line is None:
                return None
            try:
                request = _request(line, author)
            except msgspec.DecodeError as error:
                await self._refuse(stream, peer, "malformed", f"no request: {error}")
                continue
            # Nothing reads from the client meanwhile: what has begun goes on when it leaves.
            await self._send(stream, _encoded_answer(await self._door.perform(request)))

    async def _refuse(
        self, stream: trio.SocketStream, peer: Peer, reason: str, message: str
    ) -> None:
        log.warning("control.refused", reason=reason, uid=peer.uid, peer_pid=peer.pid)
        await self._send(stream, encode_json(_Refused(reason, message)).encode())

    async def _send(self, stream: trio.SocketStream, line: bytes) -> None:
        with trio.fail_after(self._limits.answer_s):
            await stream.send_all(line + b"\n")


class _Overlong(Exception):
    """A line is longer than it may be."""


class _Unfinished(Exception):
    """A line was begun and not ended in time, or not at all."""


class _Lines:
    """Bounded lines of one client."""

    def __init__(self, stream: trio.abc.ReceiveStream, limits: ControlLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._rest = bytearray()

    async def next(self) -> bytes | None:
        """The next line that is not empty; None: the client is done, or idle for too long."""
        if not self._rest:
            with trio.move_on_after(self._limits.idle_s):
                self._rest += await self._stream.receive_some(_CHUNK_BYTES)
        if not self._rest:
            return None
        with trio.move_on_after(self._limits.request_s):
            return await self._whole_line()
        raise _Unfinished

    async def _whole_line(self) -> bytes | None:
        searched = 0
        while True:
            end = self._rest.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._rest[:end]).strip()
                del self._rest[: end + 1]
                searched = 0
                if len(line) > self._limits.request_bytes:
                    raise _Overlong
                if line:
                    return line
                continue
            searched = len(self._rest)
            if searched > self._limits.request_bytes:
                raise _Overlong
            more = await self._stream.receive_some(_CHUNK_BYTES)
            if not more:
                if self._rest.strip():
                    raise _Unfinished
                return None
            self._rest += more


def _request(line: bytes, author: str) -> ActRequest:
    """Raises `msgspec.DecodeError` for what is none."""
    try:
        asked = msgspec.json.decode(line, type=_Asked)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError("not UTF-8") from error
    arguments = {
        name: original(value) if isinstance(value, str) else value
        for name, value in asked.arguments.items()
    }
    return ActRequest(
        asked.act, author, original(asked.subject), original(asked.text), arguments, asked.dry_run
    )


def _encoded_answer(answer: ActAnswer) -> bytes:
    # An error's words may quote an address with its login.
    words = without_secrets(answer.message)
    told = _Answered(answer.outcome, words, dict(answer.detail))
    return encode_json(told).encode()


def peer_of(sock: trio.socket.SocketType) -> Peer:
    """Who connected, as the kernel noted it then."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    # The kernel's ids are unsigned; -1 is nobody we know.
    pid, uid, gid = struct.unpack("iII", credentials)
    return Peer(pid, uid, frozenset({gid, *_other_groups(sock)}))


def _other_groups(sock: trio.socket.SocketType) -> tuple[int, ...]:
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 4096)
    except OSError:
        return ()  # an old kernel: the first group has to do
    return struct.unpack(f"{len(found) // 4}I", found)


@asynccontextmanager
async def _listening(path: Path, mode: int) -> AsyncGenerator[trio.socket.SocketType]:
    """A listening socket at `path` with this mode; taken away at the end, if it is still ours."""
    async with AsyncExitStack() as stack:
        try:
            sock = await stack.enter_async_context(bound_socket(socket.SOCK_STREAM, path, mode))
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "")
            raise ControlSocketError(
                f"the control socket {path} cannot be used: {error.strerror or error}{remedy}"
            ) from error
        yield trio.socket.from_stdlib_socket(sock)


async def ask(path: Path, request: ActRequest, timeout_s: float) -> ActAnswer:
    """Ask the daemon behind `path`; `request.author` is not sent, the kernel tells who asks.

    Raises `DaemonNotRunning`, `ControlDenied`, `ControlTimeout`, `ControlBroken`.
    """
    with trio.move_on_after(timeout_s):
        async with await _connected(path) as stream:
            line = encode_json(
                _Asked(
                    request.act,
                    request.subject,
                    request.text,
                    dict(request.arguments),
                    request.dry_run,
                )
            )
            # Whoever is shown out may be told so before it has said anything.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(line.encode() + b"\n")
            return _answer(await _received(stream))
    raise ControlTimeout(
        f"the daemon did not answer within {timeout_s:g} s; what was asked for may have been done"
    )


async def _connected(path: Path) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_PATH)
        try:
            if not stat.S_ISSOCK(os.lstat(path.name, dir_fd=folder).st_mode):
                raise ControlBroken(f"{path} is no socket")
            await sock.connect(short_address(path, folder))
        finally:
            os.close(folder)
    except BaseException as error:
        sock.close()
        match error:
            case FileNotFoundError() | NotADirectoryError() | ConnectionRefusedError():
                words = f"custosd is not running: nobody listens on {path}"
                raise DaemonNotRunning(words) from None
            case PermissionError():
                raise ControlDenied(
                    f"this user may not open {path}; its group may, and the daemon's user"
                ) from None
            case OSError():
                raise ControlBroken(f"{path} cannot be used: {error.strerror or error}") from error
            case _:
                raise
    return trio.SocketStream(sock)


async def _received(stream: trio.SocketStream) -> bytes:
    """One line, or what there was of one."""
    parts = bytearray()
    with suppress(trio.BrokenResourceError):
        while b"\n" not in parts:
            more = await stream.receive_some(_CHUNK_BYTES)
            if not more:
                break
            parts += more
            if len(parts) > LONGEST_ANSWER_BYTES:
                raise ControlBroken(f"the answer has more than {LONGEST_ANSWER_BYTES} bytes")
    return bytes(parts.partition(b"\n")[0])


def _answer(line: bytes) -> ActAnswer:
    text = line.decode("utf-8", "replace")
    answered = decode_json(text, _Answered)
    if answered is not None:
        return ActAnswer(answered.outcome, answered.message, answered.detail)
    refused = decode_json(text, _Refused)
    if refused is None:
        raise ControlBroken(
            "the daemon hung up; it may be stopping" if not line else "the daemon's answer is none"
        )
    if refused.error == "denied":
        raise ControlDenied(refused.message)
    raise ControlBroken(refused.message, refused.error)
