"""The far side of the bridge: connections to PostgreSQL and the units that run on them.

Laws. Everything here runs on the loop's thread. Every wait has a limit: a frozen server
costs a connection, never a caller. A unit leaves nothing behind in a session: settings and
locks are those of its transaction, so that a clean connection goes back without a question
to the server; after an error or a cancellation the session is reset, or dropped.
Errors leave translated (`custosd.core.errors`), and without the data that caused them.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from custosd.core.errors import StoreConflict, StoreError, StoreRefused, StoreUnavailable

Connection = asyncpg.Connection
Record = asyncpg.Record

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many connections, and how long each wait may last.

    `statement_timeout_s` is the server's limit for one statement; the client gives up
    `release_timeout_s` later, so a frozen server is noticed too.
    """

    size: int
    acquire_timeout_s: float
    connect_timeout_s: float
    statement_timeout_s: float
    release_timeout_s: float


@dataclass(frozen=True, slots=True)
class PoolUse:
    """How many connections are lent, lie idle, and may be open at most."""

    lent: int
    idle: int
    size: int


class Pool:
    """Connections, the last used first; opened when needed, dropped when in doubt."""

    def __init__(self, dsn: str, password: str | None, limits: PoolLimits) -> None:
        self._limits = limits
        self._password = password
        self._targets = one_dsn_each(dsn)
        several = len(self._targets) > 1 and "target_session_attrs=" not in urlsplit(dsn).query
        self._wanted = SessionAttribute.primary if several else None
        self._idle: list[Connection] = []
        self._lent = 0
        self._slots = asyncio.Semaphore(limits.size)

    def usage(self) -> PoolUse:
        """A glance from any thread."""
        return PoolUse(self._lent, len(self._idle), self._limits.size)

    async def use(
        self, fn: Callable[[Connection, *Ts], Awaitable[T]], args: tuple[*Ts], *, tx: bool
    ) -> T:
        """Run `fn(connection, *args)`, in a transaction if `tx`; raises the store's errors."""
        connection = await self._acquire()
        try:
            if tx:
                result = await _in_transaction(connection, fn, args)
            else:
                result = await fn(connection, *args)
        except BaseException as error:
            known = translated(error, closed=connection.is_closed())
            await self._take_back(connection)
            if known is None:
                raise
            # `from None`: the server's own words may quote the data.
            raise known.with_traceback(error.__traceback__) from None
        if connection.is_closed() or connection.is_in_transaction():
            await self._take_back(connection)
        else:
            self._put(connection)
        return result

    async def close(self) -> None:
        """Say goodbye to the server, for a second at most; lent connections are cut."""
        idle, self._idle = self._idle, []
        closing = (connection.close(timeout=_CLOSE_S) for connection in idle)
        await asyncio.gather(*closing, return_exceptions=True)

    async def _acquire(self) -> Connection:
        if self._slots.locked():
            try:
                async with asyncio.timeout(self._limits.acquire_timeout_s):
                    await self._slots.acquire()
            except TimeoutError:
                raise StoreUnavailable(
                    f"no connection became free within {self._limits.acquire_timeout_s:g} s:"
                    f" all {self._limits.size} are in use; raise the pool's size or find what"
                    " holds them"
                ) from None
        else:
            await self._slots.acquire()
        try:
            connection = self._newest_idle() or await self._dial()
        except BaseException:
            self._slots.release()
            raise
        self._lent += 1
        return connection

    def _newest_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
        return None

    def _put(self, connection: Connection) -> None:
        self._idle.append(connection)
        self._lent -= 1
        self._slots.release()

    async def _take_back(self, connection: Connection) -> None:
        """Make a doubtful connection clean within the limit, or drop it; raises nothing."""
        clean = not connection.is_closed() and await self._cleaned(connection)
        if clean:
            self._put(connection)
            return
        connection.terminate()
        # What broke this connection has probably broken the others.
        while self._idle:
            self._idle.pop().terminate()
        self._lent -= 1
        self._slots.release()

    async def _cleaned(self, connection: Connection) -> bool:
        try:
            async with asyncio.timeout(self._limits.release_timeout_s):
                # This waits until a cancellation under way has been answered (or takes the
                # blow itself): only then is it known whether a transaction is open.
                with suppress(asyncpg.PostgresError):
                    await connection.execute("select 1")
                if connection.is_in_transaction():
                    await connection.execute("rollback")
                await connection.reset()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - the unit's own error is told
            return False
        return True

    async def _dial(self) -> Connection:
        """Dial all hosts at once: a frozen first one must not hide the primary behind it."""
        dialling = {asyncio.ensure_future(self._connect(t)): t for t in self._targets}
        waiting = set(dialling)
        chosen: Connection | None = None
        failures: list[str] = []
        try:
            while waiting and chosen is None:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        chosen = chosen or task.result()
                    else:
                        failures.append(f"{_place(dialling[task])}: {_reason(error)}")
        finally:
            for task in dialling:
                task.cancel()
            for result in await asyncio.gather(*dialling, return_exceptions=True):
                if isinstance(result, asyncpg.Connection) and result is not chosen:
                    result.terminate()
        if chosen is None:
            raise StoreUnavailable(
                f"no database answers ({'; '.join(failures)}); is it running, and is the dsn right?"
            )
        return chosen

    async def _connect(self, dsn: str) -> Connection:
        limits = self._limits
        statement_ms = str(round(limits.statement_timeout_s * 1000))
        return await asyncpg.connect(
            dsn,
            password=self._password,
            timeout=limits.connect_timeout_s,
            command_timeout=limits.statement_timeout_s + limits.release_timeout_s,
            max_cached_statement_lifetime=0,
            server_settings={
                "application_name": "custosd",
                "jit": "off",
                "timezone": "UTC",
                "statement_timeout": statement_ms,
                "idle_in_transaction_session_timeout": statement_ms,
            },
            target_session_attrs=self._wanted,
        )


async def _in_transaction(
    connection: Connection, fn: Callable[[Connection, *Ts], Awaitable[T]], args: tuple[*Ts]
) -> T:
    await connection.execute("begin")
    result = await fn(connection, *args)
    # A unit that swallowed an error has an aborted transaction: its commit is a rollback.
    if await connection.execute("commit") != "COMMIT":
        raise StoreRefused("a unit of work went on after a failed statement; nothing was kept")
    return result


def one_dsn_each(dsn: str) -> tuple[str, ...]:
    """One DSN for each host of `dsn`, in order; hosts in the address or in `?host=a,b`."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        return tuple(
            urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",")
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    names = query.get("host", "").split(",")
    ports = query.get("port", "").split(",")
    if len(names) == 1:
        return (dsn,)
    if len(ports) == 1:
        ports *= len(names)
    return tuple(
        urlunsplit(parts._replace(query=urlencode(query | {"host": name} | _port(port))))
        for name, port in zip(names, ports, strict=False)
    )


def _port(port: str) -> dict[str, str]:
    return {"port": port} if port else {}


def _place(dsn: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return host or dict(parse_qsl(parts.query)).get("host", "") or "the default host"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, asyncpg.PostgresError):
        return f"{error.args[0]} ({error.sqlstate})"
    return str(error) or type(error).__name__


# Classes and codes of PostgreSQL's error codes, appendix A of its manual.
_CONFLICTS = {
    "40001": "the transaction met a concurrent one (serialization failure)",
    "40P01": "the transaction met a concurrent one (deadlock)",
    "55P03": "a lock was not granted in time",
}
_AWAY_CLASSES = {
    "08": "the connection broke",
    "53": "the server is out of resources (disk, memory or connections)",
    "57": "the server stopped the statement or is shutting down",
    "58": "the server met a system error",
}
_READ_ONLY = "25006"
_ARGUMENT = re.compile(r"query argument \$\d+")


def translated(error: BaseException, *, closed: bool) -> StoreError | None:
    """The store's own error for one of the driver's; None for what is not the driver's.

    `closed`: whether the connection is. The server's detail and the client's quotation of
    an argument stay out, as they show data; code, table, column and constraint are named.
    """
    known: StoreError | None = None
    match error:
        case asyncpg.InvalidCachedStatementError() | asyncpg.OutdatedSchemaCacheError():
            known = StoreConflict("the schema has changed under a prepared statement")
        case asyncpg.PostgresError():
            known = _from_server(error)
        case TimeoutError():
            known = StoreUnavailable("the server gave no answer in time: frozen or overloaded")
        case OSError():
            known = StoreUnavailable(f"the connection to the server broke: {error}")
        case asyncpg.InternalClientError():
            known = StoreUnavailable(f"the driver lost its place: {error}")
        case asyncpg.InterfaceError() if closed:
            known = StoreUnavailable("the connection to the server was lost")
        case asyncpg.InterfaceError():
            found = _ARGUMENT.search(str(error))
            what = f"{found.group()} does not fit its type" if found else str(error)
            known = StoreRefused(f"a statement was refused before it was sent: {what}")
    return known


def _from_server(error: asyncpg.PostgresError) -> StoreError:
    state = error.sqlstate or ""
    if state in _CONFLICTS:
        return StoreConflict(_CONFLICTS[state], sqlstate=state)
    if state == _READ_ONLY:
        return StoreUnavailable("the server takes no writes: it is no primary", sqlstate=state)
    if state[:2] in _AWAY_CLASSES:
        return StoreUnavailable(f"{_AWAY_CLASSES[state[:2]]} ({state})", sqlstate=state)
    names = {
        "table": error.table_name,
        "column": error.column_name,
        "constraint": error.constraint_name,
    }
    place = ", ".join(f"{word} {name}" for word, name in names.items() if name)
    # Class 22 (data exception) quotes the value; every other class speaks of names only.
    words = type(error).__name__ if state[:2] == "22" else str(error.args[0])
    return StoreRefused(
        f"the server refused a statement: {words} ({state}{': ' + place if place else ''})",
        sqlstate=state,
        constraint=error.constraint_name or "",
    )
