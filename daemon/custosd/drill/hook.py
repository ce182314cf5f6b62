"""The hook by which the daemon sees, stops and starts canaries, and sends them letters.

It serves what `control = "http"` and `channel = "http"` ask for, on a free port of
127.0.0.1, below a path that nobody else knows.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from custosd.drill.canaries import OUT_OF_MEMORY_CODE, Canary

LARGEST_BODY_BYTES = 64 * 1024
MOST_KEYS = 100


class Cage:
    """One enrolled canary: its process, and what the daemon did to it.

    `harmed_utc` is when it said that it does its harm; `letters` are the texts it was sent.
    """

    def __init__(
        self,
        canary: Canary,
        agent: str,
        socket: Path,
        folder: Path,
        nursery: trio.Nursery,
        now_utc: Callable[[], datetime],
    ) -> None:
        self.canary = canary
        self.agent = agent
        self.epoch = 0
        self.harmed_utc: datetime | None = None
        self.harmed = trio.Event()
        self.ended = trio.Event()
        self.letters: list[str] = []
        self._socket = socket
        self._folder = folder
        self._nursery = nursery
        self._now_utc = now_utc
        self._process: subprocess.Popen[bytes] | None = None
        self._keys: set[str] = set()

    @property
    def pid(self) -> int:
        """The process that is there, or was last; 0 before the first."""
        return self._process.pid if self._process else 0

    def start(self, epoch: int) -> None:
        """Start an incarnation."""
        self.epoch = epoch
        words = (self.canary.name, self.agent, str(epoch), str(self._socket), str(self._folder))
        # Not by trio, which starts it from another thread: it ends when that thread does.
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and words of our own
            [sys.executable, "-m", "custosd.drill.canary", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
            env=_environment(),
        )
        self._process = process
        self.ended = trio.Event()
        self._nursery.start_soon(self._listen, process, self.ended)

    async def _listen(self, process: subprocess.Popen[bytes], ended: trio.Event) -> None:
        """Hear of its harm, then of its end."""
        assert process.stdout is not None  # noqa: S101 - it was asked for
        async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as stream:
            process.stdout.close()
            said = b""
            async for data in stream:
                said += data
                if said.startswith(b"harm\n") and self.harmed_utc is None:
                    self.harmed_utc = self._now_utc()
                    self.harmed.set()
        # Its output is at its end, so it is, or is about to be.
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        process.poll()
        ended.set()

    def status(self) -> dict[str, Any]:
        """What the hook tells of the process."""
        if self._process is None:
            return {"state": "unknown"}
        code = self._process.poll()
        if code is None:
            return {"state": "running"}
        if code == OUT_OF_MEMORY_CODE:
            return {"state": "gone", "exit": {"code": code, "oom": True}}
        return {"state": "gone", "exit": {"signal": -code} if code < 0 else {"code": code}}

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it is there."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def spawn(self, key: str, epoch: int) -> bool:
        """Start the next incarnation; of one key one. False where it cannot be."""
        if key in self._keys:
            return True
        if self.status()["state"] == "running" or len(self._keys) >= MOST_KEYS:
            return False
        self._keys.add(key)
        self.start(epoch)
        return True

    def kill(self) -> None:
        """End it, and wait for that; it takes the kernel no time that matters."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """Ours, without what belongs to this process alone; what is imported is what runs here."""
    left_out = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    checkout = str(Path(__file__).parents[2])
    paths = [checkout, *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


_SIGNALS = {"stop": signal.SIGTERM, "kill": signal.SIGKILL, "interrupt": signal.SIGINT}


def application(cages: Mapping[str, Cage], secret: str) -> Starlette:
    """The hook for all cages, below /SECRET/AGENT."""

    async def status(_request: Request, cage: Cage) -> Response:
        return JSONResponse(cage.status())

    async def signalled(request: Request, cage: Cage) -> Response:
        cage.send(_SIGNALS[request.path_params["verb"]])
        return JSONResponse({})

    async def spawn(request: Request, cage: Cage) -> Response:
        form = await _form(request)
        epoch = form.get("epoch")
        key = request.headers.get("Idempotency-Key", "")
        if not key or not isinstance(epoch, int):
            return JSONResponse({}, HTTPStatus.BAD_REQUEST)
        started = cage.spawn(key, epoch)
        return JSONResponse({}, HTTPStatus.OK if started else HTTPStatus.CONFLICT)

    async def letter(request: Request, cage: Cage) -> Response:
        cage.letters.append(str((await _form(request)).get("text", "")))
        return JSONResponse({"acknowledged": True})

    def caged(
        answer: Callable[[Request, Cage], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def found(request: Request) -> Response:
            cage = cages.get(request.path_params["agent"])
            told = request.path_params["secret"]
            if cage is None or not secrets.compare_digest(told.encode(), secret.encode()):
                return JSONResponse({}, HTTPStatus.NOT_FOUND)
            return await answer(request, cage)

        return found

    place = "/{secret}/{agent}"
    return Starlette(
        routes=[
            Route(f"{place}/status", caged(status)),
            Route(f"{place}/spawn", caged(spawn), methods=["POST"]),
            Route(f"{place}/letters", caged(letter), methods=["POST"]),
            Route(f"{place}/{{verb:path}}", _verbs(caged(signalled)), methods=["POST"]),
        ]
    )


def _verbs(
    answer: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def found(request: Request) -> Response:
        if request.path_params["verb"] not in _SIGNALS:
            return JSONResponse({}, HTTPStatus.NOT_FOUND)
        return await answer(request)

    return found


async def _form(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY_BYTES:
            return {}
    try:
        form = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return form if isinstance(form, dict) else {}


async def serve_hook(cages: Mapping[str, Cage], *, task_status: trio.TaskStatus[str]) -> None:
    """Serve until cancelled. Started: when it listens, with the URL that cages lie below."""
    secret = secrets.token_urlsafe(16)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.5
    async with trio.open_nursery() as nursery:
        app = cast("ASGIFramework", application(cages, secret))
        serving = partial(serve, app, config, mode="asgi", shutdown_trigger=trio.sleep_forever)
        binds: list[str] = await nursery.start(serving)
        task_status.started(f"{binds[0]}/{secret}")
