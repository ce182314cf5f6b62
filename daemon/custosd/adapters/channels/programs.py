"""Runs one program to its end: bounded in time and in what is kept of its output.

Laws:

1. It gets a process group of its own, and nothing of that group outlives the call: not on
   its end, nor on a timeout, nor when the caller is cancelled.
2. It sees of the daemon's environment only what every program needs: no notify socket, no
   credentials, no tokens.
3. Output beyond the bound is read and thrown away, so that a talkative program still ends.
"""

import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import trio

_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "LD_LIBRARY_PATH")
_REST_S = 0.5
"""How long what a program has written may take to be read after its end."""
_KILL_S = 2.0
_CHUNK_BYTES = 65_536
_STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


class ProgramAbsent(Exception):
    """There is no such program, or it may not be run; the message says which of them."""


class ProgramStarved(Exception):
    """The machine has no descriptors, memory or processes left to run it with."""


class ProgramLate(Exception):
    """The program did not end in time, and was killed with its whole group."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended. `status` is negative for a signal; output is cut at the bound."""

    status: int
    stdout: bytes
    stderr: bytes


def plain_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program of ours finds in its environment, with `extra` over it."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | kept | dict(extra or {})


async def run_program(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str],
    timeout_s: float,
    most_bytes: int = _CHUNK_BYTES,
    folder: str = "/",
) -> Finished:
    """Run it and wait for its end; `most_bytes` are kept of each of its two outputs.

    A program that does not read its standard input loses nothing but that. Raises
    `ProgramAbsent`, `ProgramStarved` and `ProgramLate`.
    """
    process = _started(argv, environment, folder)
    try:
        with trio.move_on_after(timeout_s):
            return await _to_its_end(process, stdin, most_bytes)
        raise ProgramLate(f"{argv[0]} did not end within {timeout_s:g} s")
    finally:
        await _end(process)


def _started(
    argv: Sequence[str], environment: Mapping[str, str], folder: str
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - a program that the configuration names
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=folder,
            process_group=0,
            bufsize=0,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _STARVED:
            raise ProgramStarved(f"{argv[0]}: {error.strerror}") from error
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise ProgramAbsent(f"{argv[0]}: {words}") from error


async def _to_its_end(process: subprocess.Popen[bytes], stdin: bytes, most_bytes: int) -> Finished:
    out, err = bytearray(), bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write, _stream(process.stdin), stdin)
        nursery.start_soon(_read, _stream(process.stdout), out, most_bytes)
        nursery.start_soon(_read, _stream(process.stderr), err, most_bytes)
        await _ended(process)
        # A grandchild may hold the pipes open; what the program itself wrote is there by now.
        nursery.cancel_scope.deadline = trio.current_time() + _REST_S
    _kill_group(process)
    return Finished(process.wait(), bytes(out), bytes(err))


def _stream(pipe: IO[bytes] | None) -> trio.lowlevel.FdStream:
    # trio's stream owns its descriptor, as the file object of Popen does: each gets its own.
    assert pipe is not None  # noqa: S101 - all three are pipes
    with pipe:
        return trio.lowlevel.FdStream(os.dup(pipe.fileno()))


async def _write(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)


async def _read(stream: trio.lowlevel.FdStream, kept: bytearray, most_bytes: int) -> None:
    async with stream:
        while chunk := await stream.receive_some(_CHUNK_BYTES):
            kept += chunk[: max(0, most_bytes - len(kept))]


async def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError as error:
        raise ProgramStarved(f"a program cannot be waited for: {error.strerror}") from error
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Only while it is not reaped: until then the group's number is its own.
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


async def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    _kill_group(process)
    # A process that the kernel does not let go of must not hold the caller, too.
    with trio.CancelScope(shield=True), trio.move_on_after(_KILL_S), suppress(ProgramStarved):
        await _ended(process)
    process.poll()
