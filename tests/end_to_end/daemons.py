"""`custosd` as a real process: started, listened to, killed by its pid, waited for.

What it logs is a stream that tests wait on. Nothing here sleeps or polls.
"""

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import trio

import custosd as package
from custosd.adapters.postgres.processes import wait_pid

Line = dict[str, Any]

LIMIT_S = 40.0
"""How long a test waits for anything, where it does not say otherwise."""

QUICK = """
[daemon]
state_dir = "{home}/state"
[store.embedded]
shared_buffers = "8MiB"
[transcripts]
discover = false
rescan = "2s"
settle = "20ms"
[[transcripts.root]]
path = "{home}/transcripts"
[guardian]
interval = "1s"
cadence = "0s"
grace = "0s"
"""
"""A daemon that looks each second, at everything that changed."""


class Stream:
    """Lines of JSON as they come from a descriptor; whoever waits is woken by the next."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.plain = ""
        self.ended = False
        self.beside: Stream | None = None
        """Whose words are shown too when these disappoint."""
        self._more = trio.Event()

    async def read(self, source: trio.abc.ReceiveStream) -> None:
        """Take in everything until the end of `source`; text that is no JSON goes to `plain`."""
        rest = b""
        # A terminal ends with an error, when its last process has.
        with suppress(trio.BrokenResourceError):
            async for data in source:
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    self._take(line.decode())
                self._wake()
        self._take(rest.decode())
        self.ended = True
        self._wake()

    def _take(self, line: str) -> None:
        if line.startswith("{"):
            self.lines.append(json.loads(line))
        elif line:
            self.plain += line + "\n"

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def until(self, ready: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
        """Wait for the line with which `ready()` becomes true; its value."""
        with trio.move_on_after(limit_s) as scope:
            while not (found := ready()) and not self.ended:
                await self._more.wait()
        if found:
            return found
        why = f"not within {limit_s} s" if scope.cancelled_caught else "the stream ended first"
        troubles = [line for line in self.lines[:-12] if line["level"] != "info"][:20]
        tail = [
            {k: v for k, v in line.items() if k not in _DULL}
            for line in troubles + self.lines[-12:]
        ]
        listed = "\n".join(map(str, tail))
        plain = self.plain + (self.beside.plain if self.beside else "")
        raise AssertionError(f"{what}: {why}; troubles and last lines:\n{listed}\n{plain[-2000:]}")

    def found(self, event: str, since: int = 0, **fields: object) -> list[Line]:
        """All lines of an event, with these fields, from line `since` on."""
        return [
            line
            for line in self.lines[since:]
            if line["event"] == event
            and all(line.get(name) == value for name, value in fields.items())
        ]

    async def event(
        self, event: str, *, since: int = 0, limit_s: float = LIMIT_S, **fields: object
    ) -> Line:
        """Wait for an event with these fields, from line `since` on; the first such line."""
        lines: list[Line] = await self.until(
            lambda: self.found(event, since, **fields), f"{event} {fields or ''}", limit_s
        )
        return lines[0]

    async def said(self, text: str, limit_s: float = LIMIT_S) -> str:
        """Wait until `text` is in what is no JSON; all of that."""
        await self.until(lambda: text in self.plain, repr(text), limit_s)
        return self.plain


_DULL = ("ts", "version", "host", "pid")


class Custosd:
    """One process of custosd, and what it says."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.out = Stream()
        self.err = Stream()
        self.out.beside = self.err

    async def ready(self) -> Line:
        return await self.out.event("daemon.ready")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self, number: signal.Signals | None = None, limit_s: float = LIMIT_S) -> int:
        """Send the signal, if any, and wait for the end of the process and of its words."""
        if number is not None:
            self.send(number)
        with trio.fail_after(limit_s):
            code = await self.process.wait()
        await self.err.until(lambda: self.err.ended, "end of stderr")
        await self.out.until(lambda: self.out.ended, "end of stdout")
        return code


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean one: the user's own configuration and agents are not this test's."""
    path = os.environ.get("PATH", os.defpath)
    checkout = str(Path(package.__file__).parents[1])
    return {"PATH": path, "HOME": str(home), "PYTHONPATH": checkout, **(extra or {})}


def command(*words: object) -> list[str]:
    # A warning of Python's is a defect, here as in all tests.
    return [sys.executable, "-X", "faulthandler", "-W", "error", "-m", "custosd", *map(str, words)]


@asynccontextmanager
async def custosd(
    *words: object,
    home: Path,
    prefix: tuple[str, ...] = (),
    extra: Mapping[str, str] | None = None,
    **how: Any,
) -> AsyncGenerator[Custosd]:
    """Run `custosd WORDS...` for the block; if it still runs at its end, it is killed.

    Its server is left to end by itself, as after any kill.
    """
    pipes: dict[str, Any] = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, **how}
    process = await trio.lowlevel.open_process(
        [*prefix, *command(*words)], env=environment(home, extra), cwd=home, **pipes
    )
    running = Custosd(process)
    async with trio.open_nursery() as nursery:
        for stream, source in ((running.out, process.stdout), (running.err, process.stderr)):
            if source is not None:
                nursery.start_soon(stream.read, source)
            else:
                stream.ended = True
        try:
            yield running
        except BaseException as error:
            error.add_note(f"custosd {words} ended with {process.poll()} (None: it had not)")
            raise
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.kill()
                await process.wait()
            nursery.cancel_scope.cancel()


async def ask(*words: object, home: Path, extra: Mapping[str, str] | None = None) -> "Answer":
    """Run a command to its end."""
    with trio.fail_after(LIMIT_S):
        done = await trio.run_process(
            command(*words),
            env=environment(home, extra),
            cwd=home,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


class Answer:
    """What a command said, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def working_below(folder: Path) -> Iterator[int]:
    """The pids of all processes whose working directory or command line lies below a folder."""
    inside = os.fsencode(folder) + b"/"
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            where = os.fsencode((entry / "cwd").readlink()) + b"/"
        except OSError:
            continue
        if (words and inside in words) or (where.startswith(inside) and where != inside):
            yield int(entry.name)


async def nobody_left(folder: Path, limit_s: float = 30.0) -> None:
    """Wait until every process that works below a folder has ended; fails if one does not."""
    with trio.move_on_after(limit_s):
        for pid in working_below(folder):
            await wait_pid(pid)
    assert list(working_below(folder)) == []
