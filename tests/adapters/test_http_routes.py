"""Where the HTTP client's requests go: redirects, public addresses, proxies, and trust."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import trio
from tests.adapters.http_place import (
    Answer,
    Asked,
    Detours,
    Gate,
    Names,
    Place,
    Stream,
    listening,
    place,
    proxy,
    said,
)

from custosd.adapters.http_client import (
    HttpClient,
    HttpError,
    HttpLimits,
    HttpRequest,
    RefusedAddress,
    open_http,
    public_addresses,
)
from custosd.flow.leaks import leaks_refused

PUBLIC = "93.184.216.34"
SECRETS = {"x-api-key": "k", "Authorization": "Bearer t"}


def get(url: str) -> HttpRequest:
    return HttpRequest("GET", url, {"Cookie": "c=1", "X-Plain": "p"}, SECRETS)


async def fetched(http: HttpClient, request: HttpRequest) -> bytes:
    async with http.exchange(request) as answer:
        assert answer.status == 200
        return await answer.body()


async def failure(http: HttpClient, request: HttpRequest) -> HttpError:
    with pytest.raises(HttpError) as caught, trio.fail_after(20):
        await fetched(http, request)
    assert http.connections.in_use == 0
    return caught.value


def leading(ways: dict[str, str], status: int = 302) -> Answer:
    """Redirects these targets, and answers "yes" to any other."""

    async def answer(asked: Asked, stream: Stream) -> bool:
        where = ways.get(asked.target)
        redirect = said(status, b"moved", f"Location: {where}") if where is not None else b""
        await stream.send_all(redirect or said(200, b"yes"))
        return True

    return answer


def port_of(server: Place) -> int:
    return int(server.url.rpartition(":")[2])


# --- redirects ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_unless_it_may_be_followed(status: int) -> None:
    async with place(leading({"/a": "/b"}, status)) as server:
        async with open_http() as http, http.exchange(get(server.url + "/a")) as answer:
            assert (answer.status, await answer.body()) == (status, b"moved")
        assert [one.target for one in server.asked] == ["/a"]


async def test_a_redirect_within_the_origin_is_followed_with_its_secrets() -> None:
    async with (
        place(leading({"/a": "/b?c"})) as server,
        open_http(HttpLimits(redirects=1)) as http,
    ):
        assert await fetched(http, get(server.url + "/a")) == b"yes"
        assert [one.target for one in server.asked] == ["/a", "/b?c"]
        assert [one.headers.get("x-api-key") for one in server.asked] == ["k", "k"]
        assert server.opened == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_what_does_something_is_not_led_elsewhere(method: str) -> None:
    async with (
        place(leading({"/a": "/b"}, 307)) as server,
        open_http(HttpLimits(redirects=3)) as http,
        http.exchange(HttpRequest(method, server.url + "/a")) as answer,
    ):
        assert answer.status == 307
    assert len(server.asked) == 1


async def test_an_endless_redirect_ends() -> None:
    async with place(leading({"/a": "/a"})) as server, open_http(HttpLimits(redirects=3)) as http:
        assert (await failure(http, get(server.url + "/a"))).kind == "malformed"
        assert len(server.asked) == 4


async def test_to_another_origin_a_redirect_goes_without_credentials() -> None:
    async with place() as far, place(leading({"/a": "http://far.test/b"})) as near:
        trio.socket.set_custom_hostname_resolver(Names(lambda _: PUBLIC))
        async with open_http(HttpLimits(redirects=1)) as http:
            async with http.exchange(HttpRequest("GET", near.url + "/b")) as answer:
                await answer.body()  # so that the connection that is kept is no detour
            detours = Detours(port_of(far))
            trio.socket.set_custom_socket_factory(detours)
            assert await fetched(http, get(near.url + "/a")) == b"yes"
        assert detours.connected == [PUBLIC]
        assert set(near.asked[-1].headers) >= {"x-api-key", "authorization", "cookie", "x-plain"}
        (asked,) = far.asked
        assert (asked.target, asked.headers["host"]) == ("/b", "far.test")
        assert asked.headers["x-plain"] == "p"
        assert not {"x-api-key", "authorization", "cookie"} & set(asked.headers)


async def test_once_led_away_no_redirect_leads_back_to_a_private_address() -> None:
    """Neither to where it came from, nor to another name of it."""
    async with place() as near, place() as far:
        far.answer = leading({"/b": f"{near.url}/c", "/d": "http://near.test/c"})
        near.answer = leading({"/a": "http://far.test/b", "/e": "http://far.test/d"})
        names = Names(lambda name: PUBLIC if name == "far.test" else "127.0.0.1")
        trio.socket.set_custom_hostname_resolver(names)
        async with open_http(HttpLimits(redirects=5)) as http:
            await fetched(http, get(near.url + "/warm"))
            trio.socket.set_custom_socket_factory(Detours(port_of(far)))
            for path in ("/a", "/e"):
                assert (await failure(http, get(near.url + path))).kind == "refused_address"
        assert [one.target for one in near.asked] == ["/warm", "/a", "/e"]


async def test_once_led_away_each_further_connection_is_to_a_public_address() -> None:
    """Also within that origin, when its name stands for something else by then."""

    async def closes(asked: Asked, stream: Stream) -> bool:
        await stream.send_all(said(302, b"", "Location: /c", "Connection: close"))
        return False

    async with place() as near, place(closes) as far:
        near.answer = leading({"/a": "http://far.test/b"})
        answers = iter([PUBLIC])
        trio.socket.set_custom_hostname_resolver(Names(lambda _: next(answers, "127.0.0.1")))
        async with open_http(HttpLimits(redirects=5)) as http:
            await fetched(http, get(near.url + "/warm"))
            trio.socket.set_custom_socket_factory(Detours(port_of(far)))
            assert (await failure(http, get(near.url + "/a"))).kind == "refused_address"
        assert [one.target for one in far.asked] == ["/b"]


@pytest.mark.parametrize("name", ["{url}/b", "http://near.test:{port}/b", "http://[::1]:{port}/b",
                                  "http://2130706433:{port}/b", "http://0:{port}/b"])  # fmt: skip
async def test_a_redirect_never_leads_to_a_private_address(name: str) -> None:
    async with place() as server, place() as other, open_http(HttpLimits(redirects=3)) as http:
        if "near" in name:
            trio.socket.set_custom_hostname_resolver(Names(lambda _: "127.0.0.1"))
        server.answer = leading({"/a": name.format(url=other.url, port=port_of(other))})
        assert (await failure(http, get(server.url + "/a"))).kind == "refused_address"
        assert other.opened == 0


@pytest.mark.parametrize(
    "where", ["ftp://far.test/", "file:///etc/passwd", "//u:p@far.test/", "http://[::1"]
)
async def test_a_redirect_to_where_nothing_is_sent_is_an_error(where: str) -> None:
    async with place(leading({"/a": where})) as server, open_http(HttpLimits(redirects=3)) as http:
        assert (await failure(http, get(server.url + "/a"))).kind in {
            "refused_address",
            "malformed",
        }
        assert len(server.asked) == 1


# --- addresses that come from data ----------------------------------------------------


async def test_where_addresses_come_from_data_only_public_ones_are_connected_to() -> None:
    limits = HttpLimits(private_addresses=False)
    async with place() as server, open_http(limits) as http:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            assert (await failure(http, get(url))).kind == "refused_address"
        assert server.opened == 0


@pytest.mark.parametrize("redirected", [False, True])
async def test_what_was_resolved_is_what_is_connected_to(*, redirected: bool) -> None:
    """A name that is public when it is looked at, and private when it is asked again."""
    async with place() as near, place() as far:
        near.answer = leading({"/a": "http://far.test/b"})
        answers = iter([PUBLIC])
        names = Names(lambda _: next(answers, "127.0.0.1"))
        trio.socket.set_custom_hostname_resolver(names)
        limits = HttpLimits(private_addresses=redirected, redirects=int(redirected))
        async with open_http(limits) as http:
            if redirected:
                await fetched(http, get(near.url + "/warm"))
            detours = Detours(port_of(far))
            trio.socket.set_custom_socket_factory(detours)
            url = near.url + "/a" if redirected else "http://far.test/b"
            assert await fetched(http, get(url)) == b"yes"
        assert (detours.connected, names.asked) == ([PUBLIC], ["far.test"])


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "172.31.0.1", "0.0.0.0", "::1",
     "fd00::1", "::ffff:127.0.0.1", "fe80::1", "100.64.0.1", "224.0.0.1", "255.255.255.255",
     "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "::7f00:1", "ff02::1", "2001::1",
     "fec0::1", "240.0.0.1", "198.18.0.1", "192.0.2.1", "0x7f.1", "127.1"],
)  # fmt: skip
async def test_a_private_address_is_refused(address: str) -> None:
    with pytest.raises(RefusedAddress):
        await public_addresses(address, 80)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1", "64:ff9b::101:101"])
async def test_a_public_address_is_not_refused(address: str) -> None:
    assert await public_addresses(address, 80) == [address]


# --- proxies --------------------------------------------------------------------------


async def test_a_configured_proxy_is_asked_over_kept_connections() -> None:
    async with place() as server, proxy() as middle:
        async with open_http(HttpLimits(proxy=middle.url)) as http:
            for _ in range(3):
                assert await fetched(http, get(server.url + "/a")) == b"yes"
            assert middle.opened == 1
        assert [one.target for one in middle.asked] == [server.url + "/a"] * 3
        assert len(server.asked) == 3


async def test_connections_to_a_proxy_are_as_many_as_were_in_use_at_once() -> None:
    async with (
        place(Gate(5)) as server,
        proxy() as middle,
        open_http(HttpLimits(proxy=middle.url)) as http,
    ):
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(fetched, http, get(server.url))
        assert middle.opened == 5


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with place() as server, proxy() as middle:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, middle.url)
        async with open_http() as http:
            assert await fetched(http, get(server.url)) == b"yes"
        assert middle.opened == 0


async def test_behind_a_proxy_no_redirect_leads_elsewhere() -> None:
    """Nobody knows what the name of that place would stand for there."""
    async with place() as other, proxy() as middle:
        async with place(leading({"/a": f"{other.url}/b", "/c": "/d"})) as server:
            limits = HttpLimits(proxy=middle.url, redirects=2)
            async with open_http(limits) as http:
                error = await failure(http, get(server.url + "/a"))
                assert (error.kind, "proxy" in str(error)) == ("refused_address", True)
                assert await fetched(http, get(server.url + "/c")) == b"yes"
        assert other.opened == 0


@pytest.mark.parametrize("url", ["proxy.test:80", "socks5://proxy.test", "http://", "http://[::1"])
def test_a_proxy_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        HttpLimits(proxy=url)


def test_a_proxy_is_no_way_where_addresses_come_from_data() -> None:
    with pytest.raises(ValueError, match="proxy"):
        HttpLimits(proxy="http://proxy.test", private_addresses=False)


# --- trust ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority of our own, and what it vouches for: 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("authority")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for name, more in (
        ("ca", ["-addext", "basicConstraints=critical,CA:TRUE"]),
        ("server", ["-CA", "ca.pem", "-CAkey", "ca.key",
                    "-addext", "subjectAltName=IP:127.0.0.1",
                    "-addext", "basicConstraints=critical,CA:FALSE"]),
    ):  # fmt: skip
        subprocess.run(
            [openssl, "req", "-x509", *new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
             "-out", f"{name}.pem", *more],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return folder


@pytest.fixture
def theirs(authority: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    return context


@pytest.fixture
def ours(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority / "ca.pem")


async def test_over_tls_connections_are_kept_as_well(
    ours: ssl.SSLContext, theirs: ssl.SSLContext
) -> None:
    async with place(Gate(5), theirs) as server:
        with leaks_refused():
            async with open_http(tls=ours) as http:
                for _ in range(2):
                    async with trio.open_nursery() as nursery:
                        for _ in range(5):
                            nursery.start_soon(fetched, http, get(server.url))
                assert server.opened == 5
            await server.until_open(0)


async def test_who_is_not_trusted_is_sent_nothing(theirs: ssl.SSLContext) -> None:
    async with place(tls=theirs) as server, open_http() as http:
        error = await failure(http, get(server.url))
        assert (error.kind, "certificate" in str(error)) == ("unreachable", True)
        assert server.asked == []


async def test_a_certificate_is_trusted_for_its_own_name_only(
    ours: ssl.SSLContext, theirs: ssl.SSLContext
) -> None:
    async with place(tls=theirs) as server, open_http(tls=ours) as http:
        error = await failure(http, get(server.url.replace("127.0.0.1", "localhost")))
        assert (error.kind, "certificate" in str(error)) == ("unreachable", True)
        assert server.asked == []


async def test_a_redirect_never_leaves_tls(ours: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
    async with (
        place(leading({"/a": "http://far.test/b"}), theirs) as server,
        open_http(HttpLimits(redirects=2), tls=ours) as http,
    ):
        assert (await failure(http, get(server.url + "/a"))).kind == "refused_address"


async def test_who_speaks_no_tls_is_unreachable() -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said(400))

    async with listening(plain) as port, open_http() as http:
        assert (await failure(http, get(f"https://127.0.0.1:{port}"))).kind == "unreachable"


async def test_a_handshake_has_its_time_and_leaves_nothing_when_it_is_cancelled() -> None:
    async def mute(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with listening(mute) as port:
        url = f"https://127.0.0.1:{port}"
        with leaks_refused():
            async with open_http(HttpLimits(connect_s=0.05)) as http:
                assert (await failure(http, get(url))).kind == "timeout"
            async with open_http() as http:
                with trio.fail_after(20), trio.move_on_after(0.05) as scope:
                    await fetched(http, get(url))
                assert scope.cancelled_caught
                assert http.connections.in_use == 0
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_through_a_proxy_tls_is_with_the_far_side(
    ours: ssl.SSLContext, theirs: ssl.SSLContext
) -> None:
    async with place(tls=theirs) as server, proxy() as middle:
        with leaks_refused():
            async with open_http(HttpLimits(proxy=middle.url), tls=ours) as http:
                for _ in range(3):
                    assert await fetched(http, get(server.url)) == b"yes"
                assert (middle.opened, server.opened) == (1, 1)
            await server.until_open(0)
        (asked,) = middle.asked
        assert (asked.method, asked.target) == ("CONNECT", server.url.removeprefix("https://"))
        assert not {"x-api-key", "authorization", "cookie"} & set(asked.headers)


async def test_a_proxy_that_does_not_lead_there_is_told_of(
    ours: ssl.SSLContext, theirs: ssl.SSLContext
) -> None:
    async with place(tls=theirs) as server, proxy() as middle:
        middle.refuses = 407
        async with open_http(HttpLimits(proxy=middle.url), tls=ours) as http:
            error = await failure(http, get(server.url))
        assert (error.kind, "407" in str(error), server.opened) == ("unreachable", True, 0)
