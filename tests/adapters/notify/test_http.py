"""The notice is posted as JSON, with its token, to the one address; anything else is an error."""

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio
from tests.adapters.http_place import dripping, place

from custosd.adapters.notify.http import HttpNotifier
from custosd.core.errors import NotifyError
from custosd.ports import Notice

AT_UTC = datetime(2026, 3, 14, 12, tzinfo=UTC)
NOTICE = Notice("life:ada", "life", "ada", "ada: life, dead", resolved=False, at_utc=AT_UTC)


class Server:
    """A server that gives one answer to all, and keeps what it was sent."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(self, task_status: trio.TaskStatus[str]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        serve = partial(trio.serve_listeners, self._handle, listeners)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            task_status.started(f"http://127.0.0.1:{port}/notices")

    async def _handle(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some(65_536)
        head, _, body = data.partition(b"\r\n\r\n")
        line, *rest = head.decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (header.partition(": ") for header in rest)}
        while len(body) < int(headers["content-length"]):
            body += await stream.receive_some(65_536)
        self.requests.append((line, headers, body))
        if self.answer is None:
            await trio.sleep_forever()
        await stream.send_all(self.answer)
        await stream.aclose()


OK = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


async def test_the_notice_is_posted_with_its_token_and_key(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    server = Server(OK)
    url = await nursery.start(server.serve)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("first\n")
    notifier = HttpNotifier(url, token)
    await notifier.notify(NOTICE)
    token.write_text("second\n")
    await notifier.notify(NOTICE)
    nursery.cancel_scope.cancel()
    line, headers, body = server.requests[0]
    assert line == "POST /notices HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer first"
    assert server.requests[1][1]["authorization"] == "Bearer second"
    assert headers["idempotency-key"] == server.requests[1][1]["idempotency-key"]
    told = json.loads(body)
    assert (told["concern"], told["text"], told["resolved"]) == (
        "life:ada",
        "ada: life, dead",
        False,
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status_503"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "status_302"),
        (b"no http at all\r\n\r\n", "unreachable"),
        (b"", "unreachable"),
        (None, "timeout"),
    ],
)
async def test_any_other_answer_is_an_error_and_nothing_is_followed(
    nursery: trio.Nursery, answer: bytes | None, reason: str
) -> None:
    server = Server(answer)
    url = await nursery.start(server.serve)
    with pytest.raises(NotifyError) as raised:
        await HttpNotifier(url, timeout_s=1.0).notify(NOTICE)
    assert raised.value.reason == reason
    assert len(server.requests) == 1
    nursery.cancel_scope.cancel()


async def test_an_answer_without_an_end_is_not_read(nursery: trio.Nursery) -> None:
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 100_000
    url = await nursery.start(Server(endless).serve)
    with trio.fail_after(10):
        await HttpNotifier(url).notify(NOTICE)
    nursery.cancel_scope.cancel()


async def test_who_drips_an_answer_is_left() -> None:
    async with place(dripping(b"HTTP/1.1 200 X\r\n", b"A: b\r\n")) as server:
        with pytest.raises(NotifyError) as raised, trio.fail_after(20):
            await HttpNotifier(server.url, timeout_s=0.2).notify(NOTICE)
        assert raised.value.reason == "timeout"
        await server.until_open(0)


async def test_nobody_there_is_an_error() -> None:
    with pytest.raises(NotifyError) as raised:
        await HttpNotifier("http://127.0.0.1:1/x").notify(NOTICE)
    assert raised.value.reason == "unreachable"


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"one\ntwo"])
async def test_without_a_token_nothing_is_sent_and_the_token_is_in_no_message(
    tmp_path: Path, content: bytes | None
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.touch(0o600)
        token.write_bytes(content)
    with pytest.raises(NotifyError) as raised:
        await HttpNotifier("http://127.0.0.1:1/x", token).notify(NOTICE)
    assert raised.value.reason == "no_token"
    assert "two" not in str(raised.value)


async def test_a_token_that_others_can_read_is_not_sent(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("hush\n")
    token.chmod(0o644)
    with pytest.raises(NotifyError) as raised:
        await HttpNotifier("http://127.0.0.1:1/x", token).notify(NOTICE)
    assert raised.value.reason == "no_token"
    assert "chmod 600" in str(raised.value)
