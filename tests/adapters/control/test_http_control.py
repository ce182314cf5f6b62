"""The HTTP control against a real server that misbehaves on command."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from tests.adapters.http_place import place
from tests.contracts.control_contract import TOLD, ControlContract, Found

from custosd.adapters.control.http import LARGEST_ANSWER_BYTES, HttpControl
from custosd.adapters.control.recorded import Body, RecordedControl
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Value


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def answer(status: int, body: bytes = b"", *extra: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *extra, "", ""]).encode() + body


@dataclass
class Hook:
    """A hook over a recorded process, until `answer` says otherwise.

    Bytes are sent as they are, one by one while `drips`; None is never answered.
    """

    address: str = ""
    token_file: Path | None = None
    timeout_s: float = 10
    requests: list[Request] = field(default_factory=list)
    answer: Callable[[Request], bytes | None] | None = None
    drips: bool = False
    process: RecordedControl = field(default_factory=lambda: RecordedControl(Body.GONE))

    @property
    def control(self) -> HttpControl:
        url = f"http://{self.address}/agents/ada?key=hush"
        return HttpControl(url, token_file=self.token_file, timeout_s=self.timeout_s)

    @property
    def starts(self) -> int:
        return len(self.process.hand_overs)

    def deafen(self) -> None:
        self.process.obeys = False

    async def began(self) -> Found:
        body = json.loads(self.requests[-1].body)
        assert body.pop("key") == self.requests[-1].headers["idempotency-key"]
        return Found(body["agent"], str(body["epoch"]), body)

    async def ended(self) -> None:
        assert self.process.body is Body.GONE

    async def _as_a_hook(self, request: Request) -> bytes:
        verb = request.path.rpartition("/")[2].partition("?")[0]
        if request.method == "GET":
            sight = await self.process.sight()
            state = {Value.OK: "running", Value.BAD: "gone"}.get(sight.value, "unknown")
            exit_ = {"signal": sight.exit.signal} if sight.exit else None
            return answer(200, json.dumps({"state": state, "exit": exit_}).encode())
        try:
            if verb == "spawn":
                await self.process.spawn(request.headers["idempotency-key"], TOLD)
            else:
                await getattr(self.process, verb)()
        except ControlError:
            return answer(409)
        return answer(204)

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                data += chunk
            head, _, body = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            method, path, _ = first.split(" ")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            while len(body) < int(headers.get("content-length", 0)):
                body += await stream.receive_some()
            request = Request(method, path, headers, body)
            self.requests.append(request)
            said = self.answer(request) if self.answer else await self._as_a_hook(request)
            try:
                if said is None:
                    await trio.sleep_forever()
                elif self.drips:
                    for byte in said:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.05)
                else:
                    await stream.send_all(said)
            except trio.BrokenResourceError:
                pass  # the other side has read enough


@pytest.fixture
async def hook(nursery: trio.Nursery) -> Hook:
    hook = Hook()
    listeners = await nursery.start(partial(trio.serve_tcp, hook.serve, 0, host="127.0.0.1"))
    host, port = listeners[0].socket.getsockname()[:2]
    hook.address = f"{host}:{port}"
    return hook


class TestHttpControl(ControlContract):
    @pytest.fixture
    def scene(self, hook: Hook) -> Hook:
        return hook


async def refusal(hook: Hook) -> ControlError:
    with pytest.raises(ControlError) as caught:
        await hook.control.stop()
    assert "hush" not in str(caught.value)
    sight = await hook.control.sight()
    assert (sight.value, sight.detail) == (Value.UNKNOWN, caught.value.reason)
    return caught.value


async def test_each_act_has_its_address_and_the_token(hook: Hook, tmp_path: Path) -> None:
    hook.token_file = tmp_path / "token"
    hook.token_file.write_text("s3cret\n")
    hook.token_file.chmod(0o600)
    control = hook.control
    await control.spawn("r-1", TOLD)
    for act in (control.sight, control.interrupt, control.stop, control.kill):
        await act()
    assert [(one.method, one.path) for one in hook.requests] == [
        ("POST", "/agents/ada/spawn?key=hush"),
        ("GET", "/agents/ada/status?key=hush"),
        ("POST", "/agents/ada/interrupt?key=hush"),
        ("POST", "/agents/ada/stop?key=hush"),
        ("POST", "/agents/ada/kill?key=hush"),
    ]
    assert {one.headers["authorization"] for one in hook.requests} == {"Bearer s3cret"}
    assert hook.requests[0].headers["content-type"] == "application/json"


async def test_a_token_that_others_can_read_is_not_sent(hook: Hook, tmp_path: Path) -> None:
    hook.token_file = tmp_path / "token"
    hook.token_file.write_text("s3cret")
    hook.token_file.chmod(0o644)
    assert (await refusal(hook)).reason == "no_token"
    hook.token_file.chmod(0o600)
    hook.token_file.write_text("two\nlines")
    assert (await refusal(hook)).reason == "no_token"
    assert hook.requests == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (302, "status_302"),
        (400, "status_400"),
        (401, "not_allowed"),
        (403, "not_allowed"),
        (404, "status_404"),
        (429, "status_429"),
        (500, "status_500"),
        (503, "status_503"),
    ],
)
async def test_only_yes_is_yes(hook: Hook, status: int, reason: str) -> None:
    hook.answer = lambda _: answer(status, b'{"state": "gone"}', "Location: http://evil.test/")
    assert (await refusal(hook)).reason == reason
    assert len(hook.requests) == 2


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_where_there_is_no_way_to_interrupt_nothing_is_done(hook: Hook, status: int) -> None:
    hook.answer = lambda _: answer(status)
    await hook.control.interrupt()
    hook.answer = lambda _: answer(500)
    with pytest.raises(ControlError):
        await hook.control.interrupt()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"gone",
        b'{"state": "dead"}',
        b'{"state": ["gone"]}',
        b'{"exit": {"code": 1}}',
        b'{"state": "gone", "exit": {"code": "one"}}',
        b"[" * 60_000,
        b'{"state": "g\xff\xfe"}',
        gzip.compress(b'{"state": "gone"}', mtime=0),
    ],
)
async def test_a_garbled_status_is_unknown(hook: Hook, body: bytes) -> None:
    hook.answer = lambda _: answer(200, body)
    sight = await hook.control.sight()
    assert (sight.value, sight.detail) == (Value.UNKNOWN, "garbled_status")


async def test_a_status_may_tell_of_the_end_and_of_progress(hook: Hook) -> None:
    hook.answer = lambda _: answer(200, b'{"state": "gone", "exit": {"signal": 9, "oom": true}}')
    sight = await hook.control.sight()
    assert (sight.value, sight.exit) == (Value.BAD, Exit(signal=9, out_of_memory=True))
    hook.answer = lambda _: answer(200, b'{"state": "running", "progress": 12.5, "more": 1}')
    sight = await hook.control.sight()
    assert (sight.value, sight.progress) == (Value.OK, 12.5)
    hook.answer = lambda _: answer(200, b'{"state": "unknown"}')
    assert (await hook.control.sight()).value is Value.UNKNOWN


async def test_what_was_packed_says_nothing(hook: Hook) -> None:
    body = gzip.compress(b'{"state": "gone"}')
    hook.answer = lambda _: answer(200, body, "Content-Encoding: gzip")
    sight = await hook.control.sight()
    assert (sight.value, sight.detail) == (Value.UNKNOWN, "unreachable")


async def test_an_endless_answer_is_cut(hook: Hook) -> None:
    body = b'{"state": "gone"}' + b" " * (4 * LARGEST_ANSWER_BYTES)
    hook.answer = lambda _: answer(200, body, length=10**12)
    assert (await hook.control.sight()).detail == "answer_too_long"
    await hook.control.stop()  # the status has said all


async def test_a_hook_that_does_not_answer_is_left(hook: Hook) -> None:
    hook.timeout_s = 0.3
    hook.answer = lambda _: None
    assert (await refusal(hook)).reason == "took_too_long"


async def test_a_hook_that_drips_is_left(hook: Hook) -> None:
    hook.timeout_s = 0.3
    hook.drips = True
    hook.answer = lambda _: answer(200, b'{"state": "gone"}')
    assert (await refusal(hook)).reason == "took_too_long"


async def test_each_act_has_a_connection_of_its_own() -> None:
    """An act is a POST, which could not be sent again if a kept connection went stale."""
    async with place() as server:
        control = HttpControl(server.url)
        for number, act in enumerate((control.stop, control.kill, control.sight), 1):
            await act()
            await server.until_open(0)
            assert server.opened == number


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_what_is_no_http_is_no_answer(hook: Hook, said: bytes) -> None:
    hook.answer = lambda _: said
    assert (await refusal(hook)).reason == "unreachable"


async def test_nobody_there_is_no_answer(hook: Hook) -> None:
    hook.address = "127.0.0.1:1"
    assert (await refusal(hook)).reason == "unreachable"


@pytest.mark.parametrize("url", ["", "ftp://a/b", "/agents/ada", "http://", "http://a:port", "a b"])
def test_a_url_that_leads_nowhere_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="http control needs a URL"):
        HttpControl(url)
