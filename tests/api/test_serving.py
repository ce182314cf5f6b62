"""The server: its life, its bounds, and clients that mean harm."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.conftest import Serve, Side, bearer, body_of, everything, troubles

from custosd.api.bodies import BodyLimits
from custosd.api.listening import ApiAddress, ApiError
from custosd.api.serving import ApiLimits, serve_api
from custosd.core.acts import ActAnswer, ActOutcome

BEATS = "/api/v1/beats"
BEAT = b'{"agent":"ada","epoch":0,"seq":1}'
HEALTHY = b"GET /-/healthy HTTP/1.1\r\nhost: x\r\n\r\n"
KEY = bearer("root")["authorization"].encode()


def post(body: bytes, *headers: bytes, path: bytes = BEATS.encode()) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"host: x", b"authorization: " + KEY, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def act() -> bytes:
    return post(b'{"act":"pause"}', b"content-length: 15", path=b"/api/v1/acts")


def upgrading(protocol: bytes, *headers: bytes) -> bytes:
    lines = [b"GET /-/healthy HTTP/1.1", b"host: x", b"connection: upgrade", *headers]
    return b"\r\n".join([*lines, b"upgrade: " + protocol]) + b"\r\n\r\n"


# --- its life -------------------------------------------------------------------------


async def test_it_is_alive_and_says_whether_the_daemon_is_at_work(side: Side) -> None:
    assert await side.ask("GET", "/-/healthy") == (200, {"status": "ok"})
    assert await side.ask("GET", "/-/ready") == (200, {"ready": True, "reasons": []})
    side.ready = (False, ("no first sweep yet",))
    ready = {"ready": False, "reasons": ["no first sweep yet"]}
    assert await side.ask("GET", "/-/ready") == (503, ready)


@pytest.mark.parametrize("path", ["/", "/api/v1/beats/", "/-/healthy/x", "/%00", "/%ff%fe", "/a//"])
async def test_an_unknown_path_is_told_in_json(side: Side, path: str) -> None:
    status, told = await side.ask("GET", path)
    assert (status, told["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", BEATS), ("PUT", "/api/v1/acts"), ("POST", "/-/ready")]
)
async def test_a_wrong_method_is_told_in_json(side: Side, method: str, path: str) -> None:
    status, told = await side.ask(method, path)
    assert (status, told["error"]) == (405, "method_not_allowed")


async def test_it_serves_a_socket_file_too_and_takes_it_away(tmp_path: Path) -> None:
    side, path = Side(), tmp_path / "run" / "http.sock"
    address = ApiAddress(path=path, mode=0o600)
    async with trio.open_nursery() as nursery:
        names = await nursery.start(serve_api, address, side.ports(), ApiLimits(), side.stop)
        assert names == [f"unix:{path}"]
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.get("http://custosd/-/healthy")
        assert answer.status_code == 200
        side.stop.set()
    assert not path.exists()


async def test_it_says_where_it_cannot_listen(side: Side, tmp_path: Path) -> None:
    busy = ApiAddress(f"127.0.0.1:{side.port}")
    with pytest.raises(ApiError, match=f"127.0.0.1:{side.port}: .*in use"):
        await serve_api(busy, side.ports(), ApiLimits(), side.stop)
    (tmp_path / "file").write_text("precious")
    taken = ApiAddress(path=tmp_path / "file")
    with pytest.raises(ApiError, match="no socket"):
        await serve_api(taken, side.ports(), ApiLimits(), side.stop)
    nowhere = ApiAddress("no.such.host.invalid:80")
    with pytest.raises(ApiError, match=r"no\.such\.host"):
        await serve_api(nowhere, side.ports(), ApiLimits(), side.stop)


async def test_at_a_stop_idle_clients_go_and_requests_end() -> None:
    side = Side()
    side.acts.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        address, limits = ApiAddress("127.0.0.1:0"), ApiLimits(drain_s=30)
        [side.url] = await nursery.start(serve_api, address, side.ports(), limits, side.stop)
        async with await side.connect() as idle, await side.connect() as busy:
            await busy.send_all(act())
            await side.acts.begun.wait()
            side.stop.set()
            assert await everything(idle) == b""
            side.acts.hold.set()
            assert (await everything(busy)).startswith(b"HTTP/1.1 200")


async def test_at_a_stop_what_does_not_end_is_cut() -> None:
    side = Side()
    side.acts.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        address, limits = ApiAddress("127.0.0.1:0"), ApiLimits(drain_s=0.01)
        [side.url] = await nursery.start(serve_api, address, side.ports(), limits, side.stop)
        async with await side.connect() as stream:
            await stream.send_all(act())
            await side.acts.begun.wait()
            side.stop.set()
            await everything(stream)
    assert not side.acts.ended.is_set()


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_a_client_that_does_not_read_does_not_hold_up_the_end(how: str) -> None:
    """An answer that nobody takes is given up after `send_s`, though its sending is shielded."""
    side = Side()
    side.acts.answer = ActAnswer(ActOutcome.DONE, "", {"long": "x" * 30_000_000})
    with socket.socket() as client:
        async with trio.open_nursery() as nursery:
            address, limits = ApiAddress("127.0.0.1:0"), ApiLimits(drain_s=0.01, send_s=0.05)
            [side.url] = await nursery.start(serve_api, address, side.ports(), limits, side.stop)
            client.connect(("127.0.0.1", side.port))
            client.sendall(act())
            await side.acts.ended.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            if how == "stopped":
                side.stop.set()
            else:
                nursery.cancel_scope.cancel()
    # Where this hangs, the test's own time limit says so.


# --- bounds ---------------------------------------------------------------------------


async def test_a_body_that_is_announced_too_large_is_not_waited_for(side: Side) -> None:
    answer = await side.raw(post(b"", b"content-length: 10000000"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert body_of(answer)["error"] == "oversize"


@pytest.mark.parametrize("path", [BEATS, "/api/v1/acts"])
async def test_a_body_that_turns_out_too_large_is_cut(side: Side, path: str) -> None:
    answers = b""
    async with await side.connect() as stream, trio.open_nursery() as nursery:

        async def pour() -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(post(b"", b"transfer-encoding: chunked", path=path.encode()))
                while True:
                    await stream.send_all(b"10000\r\n" + b" " * 65_536 + b"\r\n")

        nursery.start_soon(pour)
        answers = await everything(stream)
        nursery.cancel_scope.cancel()
    # A reset may overtake the answer; but hung up on it was.
    assert answers == b"" or answers.startswith(b"HTTP/1.1 413")
    assert (await side.ask("GET", "/-/healthy"))[0] == 200


async def test_an_answer_before_the_bodys_end_leaves_nothing_hanging(
    nursery: trio.Nursery, logged: Any
) -> None:
    """Many small pieces behind a refused head: the connection ends all the same."""
    side = Side()
    async with trio.open_nursery() as inner:
        address = ApiAddress("127.0.0.1:0")
        limits = ApiLimits(drain_s=30, body=BodyLimits(body_bytes=100))
        [side.url] = await inner.start(serve_api, address, side.ports(), limits, side.stop)
        for _ in range(3):
            pieces = b"1\r\nx\r\n" * 5_000
            answer = await side.raw(post(pieces, b"transfer-encoding: chunked"))
            assert answer.startswith(b"HTTP/1.1 413")
        side.stop.set()
    assert troubles(logged) == []


async def test_all_bodies_together_have_a_bound(serve: Serve) -> None:
    limits = BodyLimits(body_bytes=1_000, all_bytes=1_500, body_s=30)
    side = await serve(body=limits)
    async with await side.connect() as first:
        await first.send_all(post(b" " * 900, b"content-length: 1000"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        answer = await side.raw(post(b" " * 900, b"content-length: 900", b"connection: close"))
        assert answer.startswith(b"HTTP/1.1 503")
        assert body_of(answer)["error"] == "busy"
        await first.send_all(BEAT.rjust(100))
        assert (await first.receive_some()).startswith(b"HTTP/1.1 200")
    assert (await side.raw(post(BEAT, b"content-length: 33", b"connection: close")))[9:12] == b"409"


async def test_a_body_that_does_not_come_is_given_up(serve: Serve) -> None:
    side = await serve(body=BodyLimits(body_s=0.05))
    answer = await side.raw(post(b"{", b"content-length: 33"))
    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_request_that_does_not_end_is_cut(serve: Serve) -> None:
    side = await serve(request_s=0.05)
    side.acts.hold = trio.Event()
    assert await side.raw(act()) == b""


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
async def test_a_client_that_would_rather_speak_otherwise_is_answered_in_http(
    side: Side, protocol: bytes
) -> None:
    async with await side.connect() as stream:
        await stream.send_all(upgrading(protocol, b"http2-settings: AAMAAABk"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_a_head_that_does_not_come_is_given_up(serve: Serve) -> None:
    side = await serve(idle_s=0.05)
    assert await side.raw(b"GET /-/healthy HTTP/1.1\r\nhost") == b""


async def test_a_head_that_does_not_end_is_refused(serve: Serve) -> None:
    side = await serve()
    answer = await side.raw(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000)
    assert answer == b"" or body_of(answer)["error"] == "request_header_fields_too_large"


async def test_what_is_no_request_is_told_so_in_json(side: Side) -> None:
    answer = await side.raw(b"HELO custosd\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert body_of(answer)["error"] == "bad_request"


async def test_a_full_house_shows_out_who_is_idle_for_longest(serve: Serve) -> None:
    """Slow clients cannot keep others out: each newcomer takes the place of one of them."""
    side = await serve(connections=5)
    slow = [await side.connect() for _ in range(20)]
    for stream in slow:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"GET /-/healthy HTTP/1.1\r\nx: ")
    for _ in range(10):
        assert (await side.ask("GET", "/-/healthy"))[0] == 200
    for stream in slow:
        await stream.aclose()


async def test_a_house_full_of_work_asks_to_come_again(serve: Serve) -> None:
    side = await serve(connections=2)
    side.acts.hold = trio.Event()
    async with await side.connect() as one, await side.connect() as two:
        for stream in (one, two):
            await stream.send_all(act())
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with await side.connect() as late:
            answer = await everything(late)
        assert answer.startswith(b"HTTP/1.1 503")
        assert body_of(answer)["error"] == "busy"
        side.acts.hold.set()
        for stream in (one, two):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


# --- clients that mean harm ------------------------------------------------------------

ABUSE = [
    b"",
    b"\r\n\r\n",
    b"\0" * 1_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100,
    upgrading(b"h2c", b"http2-settings: AAMAAABk"),
    upgrading(b"websocket", b"sec-websocket-version: 13", b"sec-websocket-key: " + b"A" * 22),
    upgrading(b"websocket") + b"\xff" * 100,
    b"GET / HTTP/1.1\r\nhost: x\r\nx y: z\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: \xff\r\n\xff: \xff\r\n\r\n",
    b"GET \xff HTTP/1.1\r\nhost: x\r\n\r\n",
    b"G\xffT / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http://elsewhere/-/healthy HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /-/healthy HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\n\r\n",
    b"GET /?%ff=%00 HTTP/1.1\r\nhost: x\r\n\r\n",
    post(b"x" * 40, b"content-length: 33"),
    post(b"", b"content-length: -1"),
    post(b"", b"content-length: 1e3"),
    post(b"", b"content-length: " + b"9" * 30),
    post(b"", b"content-length: 1, 2"),
    post(BEAT, b"content-length: 33", b"content-length: 34"),
    post(BEAT, b"content-length: 33", b"transfer-encoding: chunked"),
    post(b"21\r\n" + BEAT + b"\r\n0\r\n\r\n", b"transfer-encoding: chunked"),
    post(b"zz\r\n", b"transfer-encoding: chunked"),
    post(b"ffffffffffffffff\r\n", b"transfer-encoding: chunked"),
    post(b"-1\r\n", b"transfer-encoding: chunked"),
    post(b"1;" + b"x" * 30_000 + b"\r\na\r\n0\r\n\r\n", b"transfer-encoding: chunked"),
    post(b"1\r\nab\r\n0\r\n\r\n", b"transfer-encoding: chunked"),
    post(b"0\r\nx: " + b"y" * 30_000 + b"\r\n\r\n", b"transfer-encoding: chunked"),
    post(b"", b"transfer-encoding: gzip, chunked"),
    post(b"\x1f\x8b\x08\0", b"content-length: 4", b"content-encoding: gzip"),
    post(BEAT, b"content-length: 33", b"expect: 100-continue"),
    post(BEAT, b"content-length: 33", b"expect: a miracle"),
    post(b"[" * 90_000, b"content-length: 90000"),
    post(b"\xff" * 9, b"content-length: 9"),
    post(BEAT, b"content-length: 33") * 50,
    HEALTHY * 200,
    HEALTHY + b"garbage\r\n\r\n",
]


@pytest.mark.parametrize("data", ABUSE, ids=range(len(ABUSE)))
@pytest.mark.parametrize("ends", ["waits", "half", "leaves"])
async def test_no_abuse_breaks_anything(serve: Serve, logged: Any, data: bytes, ends: str) -> None:
    """Whatever is sent, however it is ended: no 5xx, no trouble, and others are served."""
    side = await serve(idle_s=0.05, body=BodyLimits(body_s=0.05))
    async with await side.connect() as stream:
        try:
            await stream.send_all(data)
            if ends == "half":
                await stream.send_eof()
        except trio.BrokenResourceError:
            pass
        answers = b"" if ends == "leaves" else await everything(stream)
    assert b"HTTP/1.1 5" not in answers
    assert (await side.ask("GET", "/-/healthy"))[0] == 200
    assert troubles(logged) == []


_pieces = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        BEATS.encode(),
        b" HTTP/1.1",
        b"\r\n",
        b"host: x\r\n",
        b"content-length: 33\r\n",
        b"transfer-encoding: chunked\r\n",
        b"authorization: " + KEY + b"\r\n",
        BEAT,
        b"21\r\n",
        b"0\r\n\r\n",
        b"connection: upgrade\r\n",
        b"upgrade: websocket\r\n",
        b"expect: 100-continue\r\n",
        post(BEAT, b"content-length: 33"),
    ]
)


@settings(
    max_examples=int(os.environ.get("CUSTOSD_FUZZ", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(_pieces | st.binary(max_size=8), max_size=12).map(b"".join), max_size=8))
def test_requests_made_of_chance_break_nothing(requests: list[bytes]) -> None:
    """A server that was sent all of them still serves, and none of them was our fault."""

    async def story() -> None:
        side = Side()
        limits = ApiLimits(idle_s=0.02, drain_s=5, body=BodyLimits(body_s=0.02))
        async with trio.open_nursery() as nursery:
            address = ApiAddress("127.0.0.1:0")
            [side.url] = await nursery.start(serve_api, address, side.ports(), limits, side.stop)
            answers: list[bytes] = []

            async def send(data: bytes) -> None:
                with suppress(trio.BrokenResourceError):
                    answers.append(await side.raw(data))

            async with trio.open_nursery() as clients:
                for data in requests:
                    clients.start_soon(send, data)
            assert not any(b"HTTP/1.1 5" in answer for answer in answers)
            # On a busy machine a client may take longer than `idle_s` to say a word.
            told = [await side.raw(HEALTHY) for _ in range(5)]
            assert any(answer.startswith(b"HTTP/1.1 200") for answer in told)
            side.stop.set()

    with structlog.testing.capture_logs() as logged:
        trio.run(story)
    assert troubles(logged) == []


async def test_the_daemon_stays_small_while_thousands_hold_on(serve: Serve) -> None:
    """Slow heads, slow bodies and large ones: what is held does not grow with the clients."""
    side = await serve(connections=100, body=BodyLimits(all_bytes=4 * 1024 * 1024))
    held = []
    for _ in range(300):
        stream = await side.connect()
        held.append(stream)
        with trio.move_on_after(0.01):
            with suppress(trio.BrokenResourceError):
                await stream.send_all(post(b" " * 200_000, b"content-length: 1000000"))
    assert (await side.ask("GET", "/-/healthy"))[0] in {200, 503}
    for stream in held:
        await stream.aclose()
    status, _ = await side.ask("POST", BEATS, json=json.loads(BEAT), headers=bearer("all"))
    assert status == 200
