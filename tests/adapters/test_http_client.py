"""The HTTP client: what connections it opens, as its servers count them, and how it fails."""

import logging
import random
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpcore
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.adapters.http_place import (
    Answer,
    Asked,
    Gate,
    Names,
    Stream,
    dripping,
    listening,
    place,
    reset,
    said,
    saying,
    silent,
)

from custosd.adapters.http_client import (
    MOST_ORIGINS,
    HttpClient,
    HttpError,
    HttpLimits,
    HttpRequest,
    PooledTransport,
    open_http,
)
from custosd.flow.leaks import leaks_refused

YES = saying(said(200, b"yes"))


def get(url: str, path: str = "/a") -> HttpRequest:
    return HttpRequest("GET", url + path)


def post(url: str, body: bytes = b"{}") -> HttpRequest:
    return HttpRequest("POST", url + "/a", {"content-type": "application/json"}, {}, body)


async def fetched(http: HttpClient, request: HttpRequest) -> bytes:
    async with http.exchange(request) as answer:
        return await answer.body()


async def failure(http: HttpClient, request: HttpRequest) -> HttpError:
    with pytest.raises(HttpError) as caught, trio.fail_after(20):
        await fetched(http, request)
    assert http.connections.in_use == 0
    return caught.value


async def burst(http: HttpClient, url: str, number: int) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                nursery.start_soon(fetched, http, post(url))


# --- connections ----------------------------------------------------------------------


async def test_as_many_connections_are_opened_as_were_in_use_at_once() -> None:
    gate = Gate(10)
    async with place(gate) as server, open_http() as http:
        for _ in range(3):
            await burst(http, server.url, 10)
        assert server.opened == http.connections.opened == http.connections.most_in_use == 10
        gate.number = 1
        for _ in range(20):
            await fetched(http, post(server.url))
        gate.number = 15
        await burst(http, server.url, 15)
        assert (server.opened, len(server.asked)) == (15, 65)
        assert http.connections.in_use == 0


async def test_who_leaves_the_client_leaves_no_connection() -> None:
    async with place(Gate(5)) as server:
        with leaks_refused():
            async with open_http() as http:
                await burst(http, server.url, 5)
                assert server.open == 5
            await server.until_open(0)


async def test_those_that_ran_out_are_opened_again_and_no_others() -> None:
    gate = Gate(3)
    async with place(gate) as server, open_http(HttpLimits(idle_s=0.05)) as http:
        await burst(http, server.url, 3)
        await server.until_open(0)
        await burst(http, server.url, 3)
        assert (server.opened, server.most_open) == (6, 3)


@pytest.mark.parametrize("told", [True, False])
async def test_those_that_the_server_closed_are_opened_again_and_no_others(*, told: bool) -> None:
    """Whether it said so, or just did it between two requests: a POST notices neither."""
    closing = saying(said(200, b"", *["Connection: close"] * told), stays=False)
    async with place(closing) as server, open_http() as http:
        for number in (1, 2, 3):
            await fetched(http, post(server.url))
            # Until the end of the connection has come in here.
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert server.opened == number
        server.answer = YES
        for _ in range(3):
            await fetched(http, post(server.url))
        assert server.opened == 4
        assert http.connections.retried == 0


async def test_each_cancelled_use_costs_its_connection_and_nothing_else() -> None:
    gate = Gate(10)
    async with place(gate) as server, open_http() as http:
        await burst(http, server.url, 10)
        gate.number = 11  # nobody is answered
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(fetched, http, post(server.url))
            await server.until_asked(14)
            nursery.cancel_scope.cancel("the test says so")
        assert http.connections.in_use == 0
        server.answer = Gate(10)
        await burst(http, server.url, 10)
        assert server.opened == 10 + 4


async def test_no_more_connections_are_open_than_allowed() -> None:
    async with place() as server, open_http(HttpLimits(connections=3)) as http:
        await burst(http, server.url, 20)
        assert server.opened == server.most_open <= 3


async def test_a_body_that_is_not_read_costs_its_connection_and_nothing_else() -> None:
    async with place(saying(said(200, b"x", length=1 << 40))) as server, open_http() as http:
        async with http.exchange(post(server.url)) as answer:
            assert answer.status == 200
        assert http.connections.in_use == 0
        server.answer = YES
        assert await fetched(http, post(server.url)) == b"yes"
        assert server.opened == 2


async def test_an_error_of_the_block_goes_out_as_it_is() -> None:
    async with place() as server:
        with pytest.raises(KeyError, match="mine"):
            async with open_http() as http, http.exchange(get(server.url)):
                raise KeyError("mine")
        await server.until_open(0)


async def test_a_connection_that_cannot_be_closed_is_told_of_and_harms_nobody() -> None:
    class Unclosable(httpcore.AsyncHTTPConnection):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("cannot be closed")

    async with place() as server:
        with capture_logs() as logs:
            async with open_http() as http:
                await fetched(http, get(server.url))
                transport = http._client._transport
                assert isinstance(transport, PooledTransport)
                (origin,) = transport._origins.values()
                async with origin.pool.acquire() as kept:
                    kept.http.__class__ = Unclosable
        (line,) = logs
        assert (line["event"], line["during"]) == ("connection.abandoned", "close")
        await server.until_open(0)


async def test_origins_that_were_asked_long_ago_are_left() -> None:
    trio.socket.set_custom_hostname_resolver(Names(lambda _host: "127.0.0.1"))
    async with place() as server, open_http() as http:
        port = server.url.rpartition(":")[2]
        for number in range(MOST_ORIGINS + 20):
            await fetched(http, get(f"http://n{number}.test:{port}"))
        await server.until_open(MOST_ORIGINS)
        await fetched(http, get(f"http://n{MOST_ORIGINS + 19}.test:{port}"))
        assert server.opened == MOST_ORIGINS + 20


# --- stale connections ----------------------------------------------------------------


def closing_at_the(number: int, *, by_reset: bool = False, first_says: bytes = b"") -> Answer:
    """Well answered but for the so-many-th request of each connection: closed as it arrives."""

    async def answer(asked: Asked, stream: Stream) -> bool:
        if asked.number != number:
            return await YES(asked, stream)
        if first_says:
            await stream.send_all(first_says)
        if by_reset:
            await reset(stream)
        return False

    return answer


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_what_may_be_repeated_is_sent_again_when_its_connection_went_stale(
    method: str, *, by_reset: bool
) -> None:
    async with place(closing_at_the(2, by_reset=by_reset)) as server, open_http() as http:
        request = HttpRequest(method, server.url + "/a", body=b"b" * (method == "PUT"))
        for _ in range(2):
            assert await fetched(http, request) == b"yes"
        assert (http.connections.retried, server.opened, len(server.asked)) == (1, 2, 3)
        assert {one.body for one in server.asked} == {request.body}


@pytest.mark.parametrize("by_reset", [False, True])
async def test_a_post_is_never_sent_again(*, by_reset: bool) -> None:
    async with place(closing_at_the(2, by_reset=by_reset)) as server, open_http() as http:
        await fetched(http, post(server.url))
        assert (await failure(http, post(server.url))).kind == "broken"
        assert (http.connections.retried, server.opened, len(server.asked)) == (0, 1, 2)


async def test_it_is_sent_again_once_and_no_oftener() -> None:
    async with place(Gate(2)) as server, open_http() as http:
        await burst(http, server.url, 2)
        server.answer = closing_at_the(2)
        assert (await failure(http, get(server.url))).kind == "broken"
        assert (http.connections.retried, len(server.asked)) == (1, 4)


async def test_a_new_connection_that_is_closed_is_no_stale_one() -> None:
    async with place(closing_at_the(1)) as server, open_http() as http:
        assert (await failure(http, get(server.url))).kind == "broken"
        assert (server.opened, len(server.asked)) == (1, 1)


async def test_once_an_answer_has_begun_nothing_is_sent_again() -> None:
    answer = closing_at_the(2, first_says=b"HTTP/1.1 200")
    async with place(answer) as server, open_http() as http:
        await fetched(http, get(server.url))
        assert (await failure(http, get(server.url))).kind == "broken"
        assert len(server.asked) == 2


# --- times ----------------------------------------------------------------------------


@asynccontextmanager
async def blackhole() -> AsyncGenerator[str]:
    """A port that takes no connection and refuses none: the queue before it is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting: list[trio.socket.SocketType] = []
        try:
            while True:
                one = trio.socket.socket()
                waiting.append(one)
                with trio.move_on_after(0.2) as scope:
                    await one.connect(listener.getsockname())
                if scope.cancelled_caught:
                    break
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in waiting:
                one.close()


async def test_connecting_has_its_time() -> None:
    async with blackhole() as url, open_http(HttpLimits(connect_s=0.1)) as http:
        error = await failure(http, get(url))
        assert (error.kind, "ConnectTimeout" in str(error)) == ("timeout", True)


async def test_writing_has_its_time() -> None:
    async def never_reads(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with listening(never_reads) as port, open_http(HttpLimits(write_s=0.1)) as http:
        error = await failure(http, post(f"http://127.0.0.1:{port}", b"x" * 50_000_000))
        assert (error.kind, "WriteTimeout" in str(error)) == ("timeout", True)


async def test_reading_has_its_time() -> None:
    async with place(silent) as server, open_http(HttpLimits(read_s=0.1)) as http:
        error = await failure(http, get(server.url))
        assert (error.kind, "ReadTimeout" in str(error)) == ("timeout", True)
        assert len(server.asked) == 1


async def test_reading_has_its_time_in_the_body_too() -> None:
    async def stops(_asked: Asked, stream: Stream) -> bool:
        await stream.send_all(said(200, b"half", length=8))
        return await silent(_asked, stream)

    async with place(stops) as server, open_http(HttpLimits(read_s=0.1)) as http:
        assert (await failure(http, get(server.url))).kind == "timeout"


async def test_waiting_for_a_connection_has_its_time() -> None:
    limits = HttpLimits(connections=1, pool_s=0.05)
    async with place() as server, open_http(limits) as http:
        async with http.exchange(post(server.url)):
            with pytest.raises(HttpError) as caught:
                await fetched(http, post(server.url))
        assert (caught.value.kind, "PoolTimeout" in str(caught.value)) == ("timeout", True)
        assert await fetched(http, post(server.url)) == b"yes"


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 X\r\n", b"A: b\r\n"),
        (said(200, b"x", length=1 << 30), b"x"),
        (b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["interim answers", "headers", "body", "chunks"],
)
async def test_who_drips_is_bounded_by_the_callers_deadline(first: bytes, drop: bytes) -> None:
    async with place(dripping(first, drop)) as server, open_http() as http:
        with trio.fail_after(20), trio.move_on_after(0.2) as scope:
            await fetched(http, get(server.url))
        assert scope.cancelled_caught
        assert http.connections.in_use == 0
        server.answer = YES
        assert await fetched(http, get(server.url)) == b"yes"


# --- answers --------------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 X\r\n" + b"".join(b"H%d: %s\r\n" % (n, b"v" * 1_000) for n in range(1_000))


async def test_a_body_in_chunks_is_put_together() -> None:
    pieces = (CHUNKED, b"3\r\nab", b"c\r\n", b"4;x=y\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n")
    async with place(saying(*pieces)) as server, open_http() as http:
        for _ in range(2):
            assert await fetched(http, get(server.url)) == b"abcdefg"
        assert server.opened == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (saying(said(200, b"0123456789", length=20), stays=False), "broken"),
        (saying(CHUNKED + b"5\r\nab", stays=False), "broken"),
        (saying(CHUNKED + b"2\r\nab\r\n", stays=False), "broken"),
        (saying(b"HTTP/1.1 200 X\r\nContent-Le", stays=False), "broken"),
        (saying(stays=False), "broken"),
        (saying(b"\x00 this closed, disconnected thing is no HTTP\r\n\r\n"), "malformed"),
        (saying(CHUNKED + b"zz\r\nab\r\n"), "malformed"),
        (saying(said(200, b"xx", "Content-Length: 1")), "malformed"),
        (saying(LONG), "malformed"),
        (saying(b"HTTP/1.1 200 X\r\nA: " + b"v" * 1_000_000), "malformed"),
        (saying(said(200, b"\x1f\x8b", "Content-Encoding: gzip")), "malformed"),
        (saying(said(200, b"\x1f\x8b", "Content-Encoding: identity, br")), "malformed"),
        (saying(said(200, b"x" * 1_001)), "too_large"),
        (saying(said(200, b"x" * 900, length=1 << 40), b"x" * 900), "too_large"),
        (saying(CHUNKED, b"80\r\n" + b"x" * 128 + b"\r\n", *[b"80\r\n" + b"x" * 128 + b"\r\n"] * 9),
         "too_large"),
    ],
    ids=["short", "in a chunk", "no last chunk", "in the head", "nothing", "no HTTP", "bad chunk",
         "two lengths", "many headers", "long header", "packed", "packed twice", "large",
         "endless", "endless chunks"],
)  # fmt: skip
async def test_each_bad_answer_has_its_kind(answer: Answer, kind: str) -> None:
    limits = HttpLimits(read_s=5, largest_body_bytes=1_000)
    async with place(answer) as server, open_http(limits) as http:
        error = await failure(http, post(server.url))
        assert error.kind == kind
        server.answer = YES
        assert await fetched(http, post(server.url)) == b"yes"


async def test_a_body_may_be_as_large_as_the_limit() -> None:
    answer = saying(said(200, b"x" * 1_000, "Content-Encoding: identity"))
    async with place(answer) as server, open_http(HttpLimits(largest_body_bytes=1_000)) as http:
        assert len(await fetched(http, get(server.url))) == 1_000
        assert server.asked[0].headers["accept-encoding"] == "identity"


async def test_nobody_there_is_unreachable() -> None:
    async with place() as server:
        url = server.url
    async with open_http() as http:
        assert (await failure(http, get(url))).kind == "unreachable"


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("GET", "http://[::1"),
        HttpRequest("GET", "ftp://127.0.0.1/hush"),
        HttpRequest("GET", "/hush"),
        HttpRequest("GET", "http://"),
        HttpRequest("GET", f"http://{'a' * 300}/hush"),
        HttpRequest("GET", "http://127.0.0.1/hush", {"A": "b\r\nC: d"}),
        HttpRequest("GET", "http://127.0.0.1/hush", {"A": "\u20ac"}),
    ],
    ids=["broken", "ftp", "relative", "no host", "long", "two headers", "no ASCII"],
)
async def test_what_can_be_no_request_is_unreachable(request_: HttpRequest) -> None:
    async with open_http() as http:
        error = await failure(http, request_)
    assert (error.kind, "hush" in str(error), "hush" in repr(request_)) == (
        "unreachable", False, False,
    )  # fmt: skip


async def test_no_cookie_is_kept() -> None:
    answer = saying(said(200, b"", "Set-Cookie: s=1; Path=/"))
    async with place(answer) as server, open_http() as http:
        for _ in range(2):
            await fetched(http, get(server.url))
        assert "cookie" not in server.asked[1].headers


async def test_no_library_writes_addresses_and_headers_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with place(saying(said(200, b"", "Set-Cookie: hush"))) as server, open_http() as http:
        await fetched(http, get(server.url, "/?key=hush"))
    assert "hush" not in caplog.text
    assert server.asked[0].target == "/?key=hush"


# --- cancellation at random -----------------------------------------------------------


def moody(chance: random.Random) -> Answer:
    answers = [
        YES,
        YES,
        saying(said(200, b"yes"), stays=False),
        saying(CHUNKED, b"3\r\nyes\r\n", b"0\r\n\r\n"),
        saying(said(200, b"y", length=3), stays=False),
        dripping(said(200, b"y", length=100), b"e"),
        saying(stays=False),
        silent,
    ]

    async def answer(asked: Asked, stream: Stream) -> bool:
        await trio.sleep(chance.uniform(0, 0.003))
        return await chance.choice(answers)(asked, stream)

    return answer


async def rounds(http: HttpClient, url: str, chance: random.Random) -> None:
    for _ in range(12):
        request = get(url) if chance.random() < 0.5 else post(url)
        with trio.move_on_after(chance.uniform(0, 0.01)):
            try:
                async with http.exchange(request) as answer:
                    if chance.random() < 0.8:
                        await answer.body()
            except HttpError:
                pass


@pytest.mark.parametrize("seed", range(6))
async def test_twenty_clients_that_are_cancelled_at_random_leave_nothing_behind(seed: int) -> None:
    chance = random.Random(seed)
    async with place(moody(chance)) as server:
        with leaks_refused():
            async with open_http(HttpLimits(connections=15)) as http:
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(rounds, http, server.url, chance)
                assert http.connections.in_use == 0
                server.answer = YES
                assert await fetched(http, get(server.url)) == b"yes"
                transport = http._client._transport
                assert isinstance(transport, PooledTransport)
                (origin,) = transport._origins.values()
                assert (origin.pool.in_use, origin.pool.waiting) == (0, 0)
                assert origin.pool.live == origin.pool.idle <= 15
            await server.until_open(0)
