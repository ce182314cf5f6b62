"""One canary: a small process that works, beats, and after a while does its harm.

`python -m custosd.drill.canary NAME AGENT EPOCH SOCKET FOLDER`. Before its harm it says "harm"
on standard output. Only the first incarnation does harm; those after it are healthy. It
ends with the process that started it, also where that is killed.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from custosd.client import Client
from custosd.drill.canaries import BEAT_S, FLOOD_S, HARM_AFTER_S, OUT_OF_MEMORY_CODE

ROOM_BYTES = 128 * 1024 * 1024
"""How much more memory the canary gets that runs out of it."""

_CHUNK_BYTES = 8 * 1024 * 1024
_OVERSIZE_BYTES = 100_000
_MOST_FLOOD = 30_000
_PR_SET_PDEATHSIG = 1


class Body:
    """What a canary works and beats with."""

    def __init__(self, name: str, agent: str, epoch: int, path: str, folder: Path) -> None:
        self.name = name
        self.agent = agent
        self.epoch = epoch
        self.path = path
        self.folder = folder
        self.steps = 0
        self._client = Client(agent, epoch, socket=path)

    def work(self) -> None:
        """Write a little, so that the workspace changes."""
        self.steps += 1
        (self.folder / "work.txt").write_text(f"{self.steps}\n", encoding="utf-8")

    def beat(self) -> None:
        """Say that it works."""
        if self.name == "memory":
            # As if it ran elsewhere: only its hook can tell how its process ended.
            self.send(self.datagram())
        else:
            self._client.beat("running", progress=str(self.steps))

    def datagram(self, **fields: object) -> bytes:
        """A beat that names no process."""
        seq = int(time.time() * 1_000_000)
        form = {"agent": self.agent, "epoch": self.epoch, "seq": seq, "status": "running"}
        return json.dumps({**form, "progress": str(self.steps), **fields}).encode()

    def send(self, data: bytes) -> bool:
        """Send a datagram without waiting; whether it was taken."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.setblocking(False)  # noqa: FBT003 - the standard library's
            try:
                door.sendto(data, self.path)
            except OSError:
                return False
        return True


def crash(_body: Body) -> None:
    """End with an error."""
    os._exit(1)


def killed(_body: Body) -> None:
    """End as the kernel ends it."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_body: Body) -> None:
    """Stand still, as a whole."""
    os.kill(os.getpid(), signal.SIGSTOP)


def lie(body: Body) -> None:
    """Say for ever that it works on the same step."""
    while True:
        body.beat()
        time.sleep(BEAT_S)


def memory(_body: Body) -> None:
    """Take memory until there is none."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = used * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    kept: list[bytearray] = []
    try:
        while True:
            kept.append(bytearray(_CHUNK_BYTES))
    except MemoryError:
        os._exit(OUT_OF_MEMORY_CODE)


def flood(body: Body) -> None:
    """Send thousands of beats a second, and some that are far too large."""
    ends_at = time.monotonic() + FLOOD_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.settimeout(0.1)
        for number in range(_MOST_FLOOD):
            if time.monotonic() > ends_at:
                break
            task = "x" * _OVERSIZE_BYTES if number % 100 == 0 else ""
            with contextlib.suppress(OSError):
                door.sendto(body.datagram(pid=os.getpid(), task=task), body.path)
    time.sleep(max(0.0, ends_at - time.monotonic()))


HARMS: dict[str, Callable[[Body], None]] = {
    "healthy": lambda _body: None,
    "crash": crash,
    "killed": killed,
    "hang": hang,
    "lie": lie,
    "memory": memory,
    "flood": flood,
}


def main(name: str, agent: str, epoch: str, path: str, folder: str) -> None:
    """Live."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Asked to leave off, a canary that misbehaves goes on with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    body = Body(name, agent, int(epoch), path, Path(folder))
    first, harm_at = int(epoch) == 0, time.monotonic() + HARM_AFTER_S
    while True:
        body.work()
        body.beat()
        time.sleep(BEAT_S)
        if first and time.monotonic() >= harm_at:
            first = False
            sys.stdout.write("harm\n")
            sys.stdout.flush()
            HARMS[name](body)


if __name__ == "__main__":
    main(*sys.argv[1:])
