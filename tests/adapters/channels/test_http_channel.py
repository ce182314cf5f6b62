"""The HTTP channel against a real server that misbehaves on command."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from tests.adapters.http_place import dripping, place, saying
from tests.contracts.channel_contract import WORDS, ChannelContract, letter

from custosd.adapters.channels.http import HttpChannel, HttpChannelSettings
from custosd.config.secret import Secret
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Hook:
    """A server that keeps letters, and answers with the bytes that `answer` makes.

    An answer of None is never finished; the connection stays open.
    """

    address: str = ""
    token: Secret | None = None
    requests: list[Request] = field(default_factory=list)
    answer: Callable[[Request], bytes | None] = lambda _: answer(200)
    timeout_s: float = 10

    @property
    def url(self) -> str:
        return f"http://{self.address}/steer?key=hush"

    @property
    def channel(self) -> HttpChannel:
        if not hasattr(self, "_channel"):
            self._channel = HttpChannel(HttpChannelSettings(self.url, self.token, self.timeout_s))
        return self._channel

    async def arrived(self) -> list[str]:
        """As the agent reads them: of one key, one."""
        letters = [json.loads(request.body) for request in self.requests if request.body]
        return list({told["id"]: told["text"] for told in letters}.values())

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some()
            head, _, body = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            method, path, _ = first.split(" ")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            while len(body) < int(headers.get("content-length", 0)):
                body += await stream.receive_some()
            request = Request(method, path, headers, body)
            self.requests.append(request)
            said = self.answer(request)
            try:
                await stream.send_all(said or b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n")
                if said is None:
                    await trio.sleep_forever()
            except trio.BrokenResourceError:
                pass  # the other side has read enough


def answer(status: int, body: bytes = b"", *extra: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *extra, "", ""]).encode() + body


@pytest.fixture
async def hook(nursery: trio.Nursery) -> Hook:
    hook = Hook()
    listeners = await nursery.start(partial(trio.serve_tcp, hook.serve, 0, host="127.0.0.1"))
    host, port = listeners[0].socket.getsockname()[:2]
    hook.address = f"{host}:{port}"
    return hook


class TestHttpChannel(ChannelContract):
    @pytest.fixture
    def scene(self, hook: Hook) -> Hook:
        return hook


async def refusal(hook: Hook) -> ChannelError:
    with pytest.raises(ChannelError) as caught:
        await hook.channel.deliver(letter())
    assert "hush" not in str(caught.value)
    return caught.value


async def test_a_letter_is_posted_with_its_key_and_token(hook: Hook, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    hook.token = Secret("agent.channel.token", file)
    receipt = await hook.channel.deliver(letter())
    assert (receipt.delivery, receipt.proof) == (Delivery.DELIVERED, "http_200")
    (request,) = hook.requests
    assert (request.method, request.path) == ("POST", "/steer?key=hush")
    assert request.headers["authorization"] == "Bearer s3cret"
    assert request.headers["idempotency-key"] == "i-1"
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body)["text"] == WORDS
    file.write_text("changed")
    await hook.channel.deliver(letter("i-2"))
    assert hook.requests[-1].headers["authorization"] == "Bearer changed"


async def test_a_token_that_cannot_be_read_sends_nothing(hook: Hook, tmp_path: Path) -> None:
    hook.token = Secret("agent.channel.token", tmp_path / "none")
    error = await refusal(hook)
    assert (error.reason, error.retry, hook.requests) == ("token_unreadable", False, [])


async def test_an_answer_may_acknowledge(hook: Hook) -> None:
    hook.answer = lambda _: answer(202, b'{"acknowledged": true}')
    receipt = await hook.channel.deliver(letter())
    assert (receipt.delivery, receipt.proof) == (Delivery.ACKNOWLEDGED, "answer_acknowledged")


async def test_a_hook_that_has_it_already_is_no_failure(hook: Hook) -> None:
    hook.answer = lambda _: answer(409, b"conflict")
    receipt = await hook.channel.deliver(letter())
    assert (receipt.delivery, receipt.proof) == (Delivery.DELIVERED, "has_it_already")


@pytest.mark.parametrize(
    ("status", "retry"),
    [(400, False), (401, False), (404, False), (408, True), (429, True), (500, True), (503, True)],
)
async def test_a_refusal_says_whether_later_may_help(
    hook: Hook, status: int, *, retry: bool
) -> None:
    hook.answer = lambda _: answer(status)
    error = await refusal(hook)
    assert (error.reason, error.retry) == (f"http_{status}", retry)


async def test_a_redirect_is_not_followed(hook: Hook) -> None:
    hook.answer = lambda _: answer(307, b"", f"Location: http://{hook.address}/elsewhere")
    error = await refusal(hook)
    assert (error.reason, error.retry, len(hook.requests)) == ("http_redirected", False, 1)


@pytest.mark.parametrize(
    "said",
    [
        answer(200, b'{"acknowledged": tr', length=23),
        answer(200, b"\xff\xfe<html>"),
        answer(200, b"[" * 60_000),
        answer(200, b'["acknowledged"]'),
        answer(200, b'{"acknowledged": "true"}'),
        answer(200, b'{"acknowledged": true}' + b" " * 70_000),
        answer(200, gzip.compress(b'{"acknowledged": true}', mtime=0), "Content-Encoding: gzip"),
    ],
    ids=["truncated", "garbage", "deep", "list", "not true", "huge", "packed"],
)
async def test_a_body_that_says_nothing_takes_nothing_back(hook: Hook, said: bytes) -> None:
    """2xx was the answer; that it was read, is not said."""
    hook.answer = lambda _: said
    receipt = await hook.channel.deliver(letter())
    assert (receipt.delivery, receipt.proof) == (Delivery.DELIVERED, "http_200")


async def test_a_slow_answer_is_given_up_and_may_be_tried_again(hook: Hook) -> None:
    hook.answer = lambda _: None
    hook.timeout_s = 0.3
    error = await refusal(hook)
    assert (error.reason, error.retry) == ("http_timeout", True)


@pytest.mark.parametrize("begun", [False, True])
async def test_who_drips_is_given_up(*, begun: bool) -> None:
    """With its status the other side has taken the letter, whatever comes of the body."""
    first = answer(200, b"{", length=1 << 30) if begun else b"HTTP/1.1 200 X\r\n"
    async with place(dripping(first, b"A: b\r\n")) as server:
        channel = HttpChannel(HttpChannelSettings(server.url, timeout_s=0.2))
        with trio.fail_after(20):
            if begun:
                assert (await channel.deliver(letter())).proof == "http_200"
            else:
                with pytest.raises(ChannelError) as caught:
                    await channel.deliver(letter())
                assert (caught.value.reason, caught.value.retry) == ("http_timeout", True)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 two hundred\r\n\r\n"])
async def test_what_is_no_answer_may_be_tried_again(hook: Hook, said: bytes) -> None:
    hook.answer = lambda _: said or b"\r\n"
    error = await refusal(hook)
    assert (error.reason, error.retry) == ("http_unreachable", True)


async def test_nobody_there_may_be_tried_again(nursery: trio.Nursery) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    channel = HttpChannel(HttpChannelSettings(f"http://127.0.0.1:{port}/"))
    with pytest.raises(ChannelError) as caught:
        await channel.deliver(letter())
    assert (caught.value.reason, caught.value.retry) == ("http_unreachable", True)


async def test_receipts_are_asked_for_where_they_were_offered(hook: Hook) -> None:
    read = False

    def respond(request: Request) -> bytes:
        if request.method == "POST":
            return answer(202, b'{"receipts": true}' if b"i-1" in request.body else b"")
        return answer(200, json.dumps({"acknowledged": read}).encode())

    hook.answer = respond
    for name in ("i-1", "i-2"):
        await hook.channel.deliver(letter(name))
    assert await hook.channel.receipts(["i-1", "i-2"]) == []
    assert [request.path for request in hook.requests[2:]] == ["/steer/i-1?key=hush"]
    read = True
    (receipt,) = await hook.channel.receipts(["i-1", "i-2"])
    assert (receipt.id, receipt.delivery) == ("i-1", Delivery.ACKNOWLEDGED)


async def test_all_letters_are_asked_for_over_one_connection_which_is_not_kept() -> None:
    async with place(saying(answer(200, b'{"acknowledged": true}'))) as server:
        channel = HttpChannel(HttpChannelSettings(server.url))
        assert len(await channel.receipts(["i-1", "i-2", "i-3"])) == 3
        assert server.opened == 1
        await server.until_open(0)
        for _ in range(2):
            await channel.deliver(letter())
            await server.until_open(0)
        assert (server.opened, len(server.asked)) == (3, 5)


async def test_without_a_letter_to_ask_for_nobody_is_asked(hook: Hook) -> None:
    assert await hook.channel.receipts([]) == []
    assert hook.requests == []


async def test_after_a_restart_an_unknown_letter_is_asked_for_once(hook: Hook) -> None:
    hook.answer = lambda _: answer(404)
    for _ in range(3):
        assert await hook.channel.receipts(["i-1"]) == []
    assert len(hook.requests) == 1


async def test_an_id_that_would_be_a_header_is_refused(hook: Hook) -> None:
    with pytest.raises(ChannelError) as caught:
        await hook.channel.deliver(letter("i-1\r\nX: y"))
    assert (caught.value.reason, hook.requests) == ("bad_id", [])


@pytest.mark.parametrize("url", ["ftp://x/", "/steer", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        HttpChannel(HttpChannelSettings(url))
