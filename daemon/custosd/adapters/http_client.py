"""Every HTTP request of the daemon: connections kept in our own pool, everything bounded.

    exchange ─► httpx client ─► PooledTransport ─► Pool of each origin ─► httpcore connection

Laws:

1. Connections opened = the most that were in use at once + those that ran out or were closed
   by the other side. httpx's own pool costs the square of the calls in flight, and at its
   defaults keeps hardly any connection; so only its interface is used, not its pool.
2. A use that was cancelled, or whose answer was not read to the end, costs its connection.
3. A kept connection may be closed by the other side just as it is used again. What may be done
   twice is then sent once more; a POST never, for nobody knows whether it was taken.
4. Each phase has its time (connect, write, read, waiting for a connection), and the body its
   size. What is packed is refused, not unpacked: a small body may unpack to a huge one.
5. No redirect is followed and no proxy is used unless it was configured, whatever the
   environment says. A redirect is data: to another origin it goes without credentials, and
   never to a private address.
6. Where the address comes from data, only public addresses are connected to: what was
   resolved is what is connected to, so a name cannot change in between.
7. Nothing is remembered from one request to the next but connections: cookies are refused.
   What an address or a header may hold of secrets is in no message, and in no log line.
8. HTTP/1.1 only: HTTP/2 is slower here, and its graceful end fails calls in flight.
"""

import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast

import httpcore
import httpx
import structlog
import trio

from custosd.core.errors import CustosdError
from custosd.flow.background import block_nursery
from custosd.flow.pool import AcquireTimedOut, Pool

log = structlog.get_logger()

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""What may be sent twice without being done twice (RFC 9110, 9.2.2)."""

FOLLOWING_METHODS = frozenset({"GET", "HEAD"})
"""What asks for nothing but an answer: a redirect to elsewhere changes nothing there."""

PARTS = "custosd.parts"
"""Extension of an answer: its body, past what httpx wraps around it."""

PUBLIC_ONLY = "custosd.public_only"
"""Extension of a request: whether it goes to public addresses only, whatever the limits say."""

CLOSE_S = 1.0
"""How long the end of a connection may take, cancelled or not."""

MOST_ORIGINS = 100
"""So many origins are remembered; beyond, the one that was asked longest ago is left."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})

_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})

_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


class HttpError(CustosdError):
    """No answer, or none that may be read; `kind` says why. The message holds no secret.

    Kinds: timeout, unreachable (nothing was sent), broken (cut off in the middle), malformed
    (no HTTP, or packed), too_large, refused_address.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a client; seconds, bytes and counts. `connections` are those of one origin.

    `redirects` is how many are followed, of a GET or HEAD. `private_addresses` is whether a
    request may go to an address that is not of the public internet; to be False where
    addresses come from data. `proxy` is a URL, "" for none; it resolves names itself, so it
    goes with neither of the two. Raises `ValueError` where it is to,
    or is no URL.
    """

    connections: int = 100
    connect_s: float = 10.0
    write_s: float = 30.0
    read_s: float = 60.0
    pool_s: float = 30.0
    idle_s: float = 30.0
    largest_body_bytes: int = 8 * 1024 * 1024
    redirects: int = 0
    private_addresses: bool = True
    proxy: str = ""

    def __post_init__(self) -> None:
        if self.proxy and not _is_http(self.proxy):
            raise ValueError("a proxy needs a URL with http or https and a host")
        if self.proxy and not self.private_addresses:
            raise ValueError(
                "behind a proxy nobody knows what a name stands for: allow private addresses, "
                "or take the proxy away"
            )


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is asked. `secret_headers` go to the origin of `url`, and nowhere else."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    secret_headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes = field(default=b"", repr=False)
    read_s: float | None = None


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The head of an answer; names of `headers` are in small letters."""

    status: int
    headers: Mapping[str, str]
    _chunks: AsyncIterator[bytes] = field(repr=False)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, once; raises `HttpError`."""
        return self._chunks

    async def body(self) -> bytes:
        """The whole body; raises `HttpError`, "too_large" beyond the client's limit."""
        return b"".join([chunk async for chunk in self._chunks])


@dataclass(slots=True)
class Connections:
    """What became of connections, over all origins, since the client was opened."""

    opened: int = 0
    in_use: int = 0
    most_in_use: int = 0
    retried: int = 0


class HttpClient:
    """Makes requests; from `open_http`. `connections` counts."""

    def __init__(self, client: httpx.AsyncClient, limits: HttpLimits, counts: Connections) -> None:
        self.connections = counts
        self.limits = limits
        self._client = client

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncGenerator[HttpAnswer]:
        """The answer, for the block; a body that is not read to the end is not waited for.

        Raises `HttpError`, also while the body is read. Whatever the block raises goes out
        as it is. How long all of it may take is the caller's to say.
        """
        url = _parsed(request.url)
        first = place_of(url)
        secret = _CREDENTIALS | {name.lower() for name in request.secret_headers}
        headers = {"Accept-Encoding": "identity", **request.headers, **request.secret_headers}
        public_only = not self.limits.private_addresses
        for _ in range(self.limits.redirects + 1):
            async with self._sent(request, url, headers, public_only=public_only) as response:
                target = _redirected(response, url) if self._may_follow(request) else None
                if target is None:
                    yield HttpAnswer(
                        response.status_code,
                        {name.lower(): value for name, value in response.headers.items()},
                        _Chunks(response, place_of(url), self.limits.largest_body_bytes),
                    )
                    return
            if _origin(target) != _origin(url):
                self._check_elsewhere(target)
                headers = {k: v for k, v in headers.items() if k.lower() not in secret}
                public_only = True
            url = target
        raise HttpError("malformed", f"{first} redirects more than {self.limits.redirects} times")

    def _may_follow(self, request: HttpRequest) -> bool:
        return bool(self.limits.redirects) and request.method in FOLLOWING_METHODS

    def _check_elsewhere(self, target: httpx.URL) -> None:
        if self.limits.proxy:
            raise HttpError(
                "refused_address",
                f"a redirect leads to {place_of(target)}, and behind a proxy nobody knows where"
                " that is: configure the address itself",
            )

    @asynccontextmanager
    async def _sent(
        self,
        request: HttpRequest,
        url: httpx.URL,
        headers: Mapping[str, str],
        *,
        public_only: bool,
    ) -> AsyncGenerator[httpx.Response]:
        limits = self.limits
        read_s = limits.read_s if request.read_s is None else request.read_s
        timeout = httpx.Timeout(
            connect=limits.connect_s, write=limits.write_s, read=read_s, pool=limits.pool_s
        )
        try:
            made = self._client.build_request(
                request.method,
                url,
                headers=dict(headers),
                content=request.body or None,
                timeout=timeout,
                extensions={PUBLIC_ONLY: public_only},
            )
            response = await self._client.send(made, stream=True)
        except (httpx.HTTPError, RefusedAddress, UnicodeError) as error:
            raise _translated(error, place_of(url)) from error
        try:
            yield response
        finally:
            await response.aclose()


class _Chunks(AsyncIterator[bytes]):
    """A body, bounded; no generator, so that it may be left in the middle."""

    def __init__(self, response: httpx.Response, place: str, most: int) -> None:
        packed = response.headers.get("content-encoding", "identity")
        self._packed = packed.strip().lower() not in {"", "identity"}
        # Past httpx's own generators: who leaves those in the middle leaves them open.
        self._parts: AsyncIterator[bytes] = response.extensions[PARTS]
        self._place = place
        self._most = most
        self._read = 0

    async def __anext__(self) -> bytes:
        if self._packed:
            raise HttpError("malformed", f"{self._place} packed its answer, which nobody asked for")
        try:
            chunk = await anext(self._parts)
        except httpx.HTTPError as error:
            raise _translated(error, self._place) from error
        self._read += len(chunk)
        if self._read > self._most:
            raise HttpError("too_large", f"the answer of {self._place} is above {self._most} bytes")
        return chunk


class RefusedAddress(Exception):
    """A name stands for an address that is not of the public internet."""


class _WentStale(httpx.ReadError):
    """A kept connection that the other side closed before it said a word."""


@asynccontextmanager
async def open_http(
    limits: HttpLimits = HttpLimits(),
    *,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[HttpClient]:
    """A client for the block; its connections are closed when the block is left.

    Whatever the block raises goes out as it is. Opening costs well below a millisecond, so
    who calls once a day may open a client for the call; who calls often keeps one.
    """
    counts = Connections()
    for library in ("httpx", "httpcore"):
        # At their lower levels they write down whole addresses and headers.
        logging.getLogger(library).setLevel(logging.WARNING)
    async with (
        block_nursery("the HTTP client was closed") as nursery,
        httpx.AsyncClient(
            transport=PooledTransport(nursery, limits, counts, tls),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        ) as client,
    ):
        yield HttpClient(client, limits, counts)


@dataclass(eq=False, slots=True)
class _Kept:
    """A connection, what it goes over, and how often it was used."""

    http: httpcore.AsyncConnectionInterface
    line: "_Line"
    uses: int = 0


@dataclass(eq=False, slots=True)
class _Destination:
    """One origin, and what is kept of it."""

    pool: Pool[_Kept]
    scope: trio.CancelScope


class PooledTransport(httpx.AsyncBaseTransport):
    """httpx's transport over one `flow.Pool` of connections for each origin."""

    def __init__(
        self,
        nursery: trio.Nursery,
        limits: HttpLimits,
        counts: Connections,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._nursery = nursery
        self._limits = limits
        self._counts = counts
        self._tls = tls
        self._origins: dict[tuple[bytes, bytes, int, bool], _Destination] = {}
        self._opening = trio.Lock()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it over a kept connection, or a new one; raises what httpx raises."""
        try:
            return await self._send(request)
        except _WentStale:
            if request.method not in IDEMPOTENT_METHODS:
                raise
        self._counts.retried += 1
        return await self._send(request)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        core, counts = _as_httpcore(request), self._counts
        public_only = bool(request.extensions.get(PUBLIC_ONLY))
        pool = await self._pool(core.url.origin, public_only=public_only)
        async with AsyncExitStack() as stack:
            try:
                kept = await stack.enter_async_context(pool.acquire())
            except AcquireTimedOut as error:
                raise httpx.PoolTimeout(str(error)) from error
            counts.in_use += 1
            counts.most_in_use = max(counts.most_in_use, counts.in_use)
            stack.callback(_one_less, counts)
            kept.uses += 1
            kept.line.heard_bytes = 0
            try:
                answer = await kept.http.handle_async_request(core)
            except _FAILURES as error:
                raise _failed(error, kept) from error
            body = _Body(answer, kept, stack.pop_all())
            return httpx.Response(
                status_code=answer.status,
                headers=answer.headers,
                stream=body,
                extensions={**answer.extensions, PARTS: body.parts},
            )

    async def _pool(self, origin: httpcore.Origin, *, public_only: bool) -> Pool[_Kept]:
        key = (origin.scheme, origin.host, origin.port, public_only)
        async with self._opening:
            kept = self._origins.pop(key, None)
            if kept is None:
                self._leave_idle()
                keep = partial(self._keep, origin, public_only=public_only)
                kept = await self._nursery.start(keep)
            self._origins[key] = kept
        # Until whoever asked stands in its queue nothing else runs, so it is not left.
        return kept.pool

    def _leave_idle(self) -> None:
        """Make room for one more origin; only those that nobody uses are left."""
        for key, kept in list(self._origins.items()):
            if len(self._origins) < MOST_ORIGINS:
                break
            if not (kept.pool.in_use or kept.pool.waiting):
                kept.scope.cancel("an origin that was asked longest ago")
                del self._origins[key]

    async def _keep(
        self,
        origin: httpcore.Origin,
        *,
        public_only: bool,
        task_status: trio.TaskStatus[_Destination],
    ) -> None:
        limits = self._limits

        async def make() -> _Kept:
            # It connects at its first request, within that request's time.
            line = _Line(self._counts, public_only=public_only)
            return _Kept(self._connection(origin, line), line)

        def told(doing: str, error: Exception) -> None:
            place = f"{origin.scheme.decode()}://{origin.host.decode()}:{origin.port}"
            log.warning(
                "connection.abandoned", during=doing, error=type(error).__name__, place=place
            )

        with trio.CancelScope() as scope:
            async with Pool(
                make,
                _close,
                min=0,
                max=limits.connections,
                acquire_timeout_s=limits.pool_s,
                idle_timeout_s=limits.idle_s,
                check=_is_usable,
                close_timeout_s=2 * CLOSE_S,
                drain_timeout_s=0.0,
                on_unheard=told,
            ) as pool:
                task_status.started(_Destination(pool, scope))
                await trio.sleep_forever()

    def _connection(
        self, origin: httpcore.Origin, line: "_Line"
    ) -> httpcore.AsyncConnectionInterface:
        # How long an idle one lives is the pool's to say.
        tls = (self._tls or default_tls()) if origin.scheme == b"https" else None
        proxy = self._limits.proxy
        if not proxy:
            return httpcore.AsyncHTTPConnection(
                origin, ssl_context=tls, http2=False, network_backend=line
            )
        return httpcore.AsyncHTTPProxy(
            proxy,
            ssl_context=tls,
            proxy_ssl_context=default_tls() if proxy.startswith("https:") else None,
            http2=False,
            network_backend=line,
        ).create_connection(origin)


class _Content(AsyncIterable[bytes]):
    """The body of a request, in one piece."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once(AsyncIterator[bytes]):
    # No generator: a request that cannot be written to its end leaves this in the middle.

    def __init__(self, body: bytes) -> None:
        self._left = [body] if body else []

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _Parts(AsyncIterator[bytes]):
    """The parts of an answer's body as they come; raises what httpx raises."""

    def __init__(self, answer: httpcore.Response, kept: _Kept) -> None:
        assert isinstance(answer.stream, AsyncIterable)  # noqa: S101 - of an async connection
        self._parts = aiter(answer.stream)
        self._kept = kept
        self.ended = False

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            self.ended = True
            raise
        except _FAILURES as error:
            self.ended = True
            raise _failed(error, self._kept) from error

    async def give_up(self) -> None:
        """End in the middle, by a cancellation: it reaches generators that nobody can close."""
        with trio.CancelScope(shield=True) as scope:
            scope.cancel()
            try:
                while not self.ended:
                    await anext(self)
            except (StopAsyncIteration, httpx.HTTPError):
                pass


class _Body(httpx.AsyncByteStream):
    """An answer's body; its connection goes back to the pool when it is closed."""

    def __init__(self, answer: httpcore.Response, kept: _Kept, stack: AsyncExitStack) -> None:
        self.parts = _Parts(answer, kept)
        self._answer = answer
        self._kept = kept
        self._stack = stack

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.parts

    async def aclose(self) -> None:
        """Give the connection back, if the body was read to its end; else close it."""
        await self.parts.give_up()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            await self._answer.aclose()
        if self._kept.http.is_idle():
            await self._stack.aclose()
        else:
            await self._stack.__aexit__(_Unread, _Unread(), None)


class _Unread(Exception):
    """Tells the pool that a connection is not to be used again; never leaves this module."""


class _Line(httpcore.AsyncNetworkBackend):
    """What one connection goes over: where it may lead, and what was heard of it."""

    def __init__(self, counts: Connections, *, public_only: bool) -> None:
        self.heard_bytes = 0
        self.ended = False
        self._counts = counts
        self._public_only = public_only
        # Not by a checker's eye: its stub is for where trio is not installed.
        self._backend: httpcore.AsyncNetworkBackend = cast(
            "httpcore.AsyncNetworkBackend", httpcore.TrioBackend()
        )

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to what the name stands for now; raises `RefusedAddress`."""
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            error: Exception = httpcore.ConnectError("the name stands for no address")
            for address in await public_addresses(host, port) if self._public_only else [host]:
                try:
                    stream = await self._backend.connect_tcp(
                        address, port, None, local_address, socket_options
                    )
                except httpcore.ConnectError as failed:
                    error = failed
                else:
                    self._counts.opened += 1
                    return _Stream(stream, self)
            raise httpcore.ConnectError(str(error)) from error
        raise httpcore.ConnectTimeout

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109, ARG002 - the interface of httpcore
        socket_options: Any = None,  # noqa: ARG002 - the same
    ) -> httpcore.AsyncNetworkStream:
        """Never: nothing here asks for one."""
        raise RefusedAddress(f"a socket of this machine ({len(path)} characters of path)")

    async def sleep(self, seconds: float) -> None:
        """As the interface says."""
        await trio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """A stream that tells its line what it hears, and is closed when its start is cut off."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, line: _Line) -> None:
        self._stream = stream
        self._line = line

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
    ) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self._line.heard_bytes += len(data)
        self._line.ended = not data
        return data

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
    ) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
    ) -> httpcore.AsyncNetworkStream:
        try:
            inner = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            # httpcore closes it after an error, but leaves it open after a cancellation.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await self._stream.aclose()
            raise
        return _Stream(inner, self._line)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


async def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name; raises `RefusedAddress` if any of them is not public."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not _is_public(address):
            raise RefusedAddress(f"{host[:100]!r} stands for {address}, which is not public")
    return addresses


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _TRANSLATED:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or ip
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast


async def _is_usable(kept: _Kept) -> bool:
    return not kept.http.is_closed() and not kept.http.has_expired()


async def _close(kept: _Kept) -> None:
    await kept.http.aclose()


def _one_less(counts: Connections) -> None:
    counts.in_use -= 1


@cache
def default_tls() -> ssl.SSLContext:
    """The trust of this machine, read once."""
    # One for all: reading the certificates takes tens of milliseconds.
    return ssl.create_default_context()


def place_of(url: httpx.URL | str) -> str:
    """A URL as far as a message may name it: scheme, host and port."""
    url = httpx.URL(url)
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def _is_http(text: str) -> bool:
    try:
        return bool(_parsed(text))
    except HttpError:
        return False


def _parsed(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise HttpError("unreachable", "the address is no URL") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise HttpError("unreachable", "the address needs http or https, and a host")
    return url


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _redirected(response: httpx.Response, url: httpx.URL) -> httpx.URL | None:
    where = response.headers.get("location")
    if response.status_code not in REDIRECTS or not where:
        return None
    try:
        target = url.join(where)
    except httpx.InvalidURL as error:
        raise HttpError("malformed", f"{place_of(url)} redirects to no URL") from error
    downgraded = (url.scheme, target.scheme) == ("https", "http")
    # A login in it would be sent.
    if target.scheme not in {"http", "https"} or not target.host or target.userinfo or downgraded:
        raise HttpError(
            "refused_address",
            f"{place_of(url)} redirects to where nothing is sent ({target.scheme[:10]!r})",
        )
    return target


def _as_httpcore(request: httpx.Request) -> httpcore.Request:
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=_Content(request.content),
        extensions=request.extensions,
    )


def _failed(error: Exception, kept: _Kept) -> httpx.HTTPError:
    """The error of httpx for what happened to a connection."""
    line = kept.line
    if isinstance(error, httpcore.RemoteProtocolError | httpcore.NetworkError):
        if kept.uses > 1 and not line.heard_bytes:
            return _WentStale(str(error))
        if line.ended:
            return httpx.ReadError(str(error))
    # The error of the same name, or of the nearest name above it.
    for kind in type(error).__mro__:
        same = getattr(httpx, kind.__name__, None)
        if isinstance(same, type) and issubclass(same, httpx.TransportError):
            return same(str(error))
    return httpx.TransportError(str(error))


def _translated(error: Exception, place: str) -> HttpError:
    kind, words = "unreachable", f"{place} cannot be reached ({type(error).__name__})"
    match error:
        case RefusedAddress():
            kind, words = "refused_address", str(error)
        case httpx.TimeoutException():
            kind, words = "timeout", f"{place} took too long ({type(error).__name__})"
        case httpx.ConnectError() if _is_distrust(error):
            words = f"the certificate of {place} is not one that this machine trusts"
        case httpx.ConnectError() | httpx.UnsupportedProtocol():
            pass
        case httpx.ProxyError():
            status = str(error)[:3]
            answered = f" (it answered {status})" if status.isdecimal() else ""
            words = f"the proxy does not lead to {place}{answered}"
        case httpx.LocalProtocolError() | UnicodeError():
            words = f"the request to {place} cannot be put into HTTP"
        case httpx.RemoteProtocolError():
            kind, words = "malformed", f"{place} does not speak HTTP as it should"
        case _:
            kind, words = "broken", f"the connection to {place} broke"
    return HttpError(kind, words)


def _is_distrust(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
