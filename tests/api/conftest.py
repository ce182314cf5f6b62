"""The HTTP side on a real port, before a real register and a door for acts that remembers."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog
import trio

from custosd.adapters.beats.admission import Admission
from custosd.api.agents import AgentParts
from custosd.api.application import ApiPorts
from custosd.api.listening import ApiAddress
from custosd.api.metrics import Metrics
from custosd.api.serving import ApiLimits, serve_api
from custosd.core.acts import ActAnswer, ActOutcome, ActRequest
from custosd.core.tokens import Token, hash_of, presented
from custosd.ports import CoordinationStore, SyncDoor
from custosd.services.beats import BeatRegister


def _token(name: str, agent: str = "", *scopes: str) -> Token:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Token(name, hash_of(f"secret-{name}"), when, "test", agent, frozenset(scopes))


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {presented(name, f'secret-{name}')}"}


async def _three_agents() -> bytes:
    return b"custosd_agents 3.0\n"


DONE = ActAnswer(ActOutcome.DONE, "paused", {"until": None})


@dataclass
class Acts:
    """Remembers what it was asked; answers at once, or when it is let go."""

    answer: ActAnswer = DONE
    asked: list[ActRequest] = field(default_factory=list)
    hold: trio.Event | None = None
    begun: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)

    async def perform(self, request: ActRequest) -> ActAnswer:
        self.asked.append(request)
        self.begun.set()
        if self.hold is not None:
            await self.hold.wait()
        self.ended.set()
        return self.answer


@dataclass
class Side:
    """The HTTP side as it runs; `url` is where."""

    acts: Acts = field(default_factory=Acts)
    register: BeatRegister = field(
        default_factory=lambda: BeatRegister(lambda agent: agent != "eve", 3)
    )
    tokens: dict[str, Token] = field(
        default_factory=lambda: {
            one.id: one
            for one in (
                _token("ada", "ada"),
                _token("all", "*"),
                _token("ops", "", "pause", "estop"),
                _token("reader", "", "read"),
                _token("root", "*", "*"),
            )
        }
    )
    ready: tuple[bool, tuple[str, ...]] = (True, ())
    metrics: Metrics | None = _three_agents
    metrics_open: bool = False
    coordination: CoordinationStore | None = None
    agents: AgentParts | None = None
    sync: SyncDoor | None = None
    claims_per_agent: int = 20
    stop: trio.Event = field(default_factory=trio.Event)
    url: str = ""

    def ports(self) -> ApiPorts:
        admission = Admission(self.register, lambda: self.tokens)
        return ApiPorts(
            admission,
            self.acts,
            lambda: self.tokens,
            lambda: self.ready,
            self.metrics,
            self.metrics_open,
            self.coordination,
            agents=self.agents,
            sync=self.sync,
            claims_per_agent=self.claims_per_agent,
        )

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20) as client:
            yield client

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """The status and the JSON of one answer."""
        async with self.client() as client:
            answer = await client.request(method, path, **more)
            return answer.status_code, answer.json()

    async def raw(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes, until the other side hangs up."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await everything(stream)


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    got = b""
    with suppress(trio.BrokenResourceError):
        async for piece in stream:
            got += piece
    return got


def body_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


Serve = Callable[..., Awaitable[Side]]


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    """`await serve(connections=3)`: the HTTP side in the test's nursery."""

    async def start(side: Side | None = None, path: Path | None = None, **limits: Any) -> Side:
        side = side or Side()
        address = ApiAddress("127.0.0.1:0", path)
        [side.url, *_] = await nursery.start(
            serve_api, address, side.ports(), ApiLimits(**limits), side.stop
        )
        return side

    return start


@pytest.fixture
async def side(serve: Serve) -> Side:
    return await serve()


@pytest.fixture
def logged() -> Any:
    with structlog.testing.capture_logs() as lines:
        yield lines


def troubles(logged: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    """What was logged as more than a note."""
    return [line for line in logged if line["log_level"] in {"warning", "error", "critical"}]
