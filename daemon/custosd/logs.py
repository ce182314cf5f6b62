"""How log events become lines: JSON for journald, colours for a person, never a surprise.

Laws:

1. One event is one line of less than 48 KiB (journald splits longer ones, which would
   break the JSON). What is too long is cut, and the cut is marked in its place.
2. A log call never raises and never waits. A reader that is gone or does not read costs
   lines; they are counted, and `lines.dropped` says how many once it reads again.
3. No secret reaches a line, as far as `core.secrets` knows one: an error may quote an address
   with its login, whoever raised it.
4. No control character reaches a line, so a field can neither forge a line nor steer a
   terminal. Text of agents does not reach one at all: use `text_fields`. An exception's
   own words count as such, for they quote what was read, unless it is one of ours.

A JSON line has `ts` (RFC 3339, UTC, microseconds), `level` and `event` first, then the
event's own fields, then `version`, `pid` and `host` of the daemon. An own field by one of
these names is written with `field_` before it.

When stdout is the journal itself, each line begins with systemd's `<N>` priority. journald
takes it off and files the line under that priority (`journalctl -p warning`), and the
message stays one JSON text. It is the journal only if JOURNAL_STREAM names the very
file that we write to, so a pipe or a file gets pure JSON.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import select
import socket
import stat
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any, Literal, TextIO

import structlog

from custosd.core.errors import CustosdError
from custosd.core.secrets import without_secrets

log = structlog.get_logger()

Format = Literal["auto", "json", "console"]

LONGEST_LINE = 48 * 1024 - 256
"""Bytes of one line, without what journald itself counts (a prefix, the line's end)."""

BUDGETS = (8192, 1024, 128)
"""Characters a string may have in a line: the first budget that makes it short enough."""

MOST_ITEMS = 100
DEEPEST = 4
LONGEST_CHAIN = 10
"""How many exceptions that led to one another, or that hold one another, are told."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's, as journald files them."""

RESERVED = ("ts", "level", "event", "version", "pid", "host")

# C0 without tab and line feed, DEL, C1, line separators, what turns the direction of
# writing, and halves of surrogate pairs, which have no UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

Fields = MutableMapping[str, Any]


def configure_logging(format: Format, level: str, *, stream: TextIO | None = None) -> "Lines":  # noqa: A002 - the key's name in the configuration
    """Send every event of at least `level` to `stream` (stdout), from now on.

    "auto" is "console" on a terminal and "json" elsewhere; colours are used on a terminal
    unless NO_COLOR is set. Records of `logging` come through as `library.logged`: warnings
    and worse, the same place once in `QUIET_S`, or everything when `level` is "debug". May
    be called again. Returns the lines' writer, for its counts. Raises: `ValueError` for a level
    or format that does not exist.
    """
    if level not in LEVELS or format not in ("auto", "json", "console"):
        raise ValueError(f"no such log level or format: {level!r}, {format!r}")
    stream = sys.stdout if stream is None else stream
    lines = Lines(stream)
    on_terminal = lines.is_terminal()
    render: _Json | _Console
    if format == "console" or (format == "auto" and on_terminal):
        render = _Console(colors=on_terminal and not os.environ.get("NO_COLOR"))
    else:
        render = _Json(prefixed=lines.is_journal())
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _LineLogger(lines),
        # The level may change while we run; a cached logger would keep the old one.
        cache_logger_on_first_use=False,
    )
    _route_libraries(level)
    return lines


def text_fields(text: str, name: str = "text") -> dict[str, object]:
    """What may be logged of an agent's text: `NAME_sha256` (16 hex digits), `NAME_length`."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {f"{name}_sha256": digest[:16], f"{name}_length": len(text)}


# --- from an event to a line ----------------------------------------------------------


class _Json:
    # The renderer for machines: one JSON object a line.
    def __init__(self, *, prefixed: bool) -> None:
        self._prefixed = prefixed
        self._tail = {"version": _version(), "pid": os.getpid(), "host": socket.gethostname()}

    def __call__(self, _logger: object, method: str, event: Fields) -> str:
        prefix = f"<{PRIORITIES.get(method, 5)}>" if self._prefixed else ""
        head = {"ts": _now(), "level": method, "event": _plain(event.pop("event", ""), 200)}
        try:
            return prefix + self._line(head, event)
        except Exception as error:  # noqa: BLE001 - law 2: a log call never raises
            return prefix + json.dumps(head | {"unloggable": type(error).__name__} | self._tail)

    def _line(self, head: dict[str, Any], event: Fields) -> str:
        fields = {_name(key): value for key, value in _with_traceback(event).items()}
        for budget in BUDGETS:
            plain = {key: _plain(value, budget) for key, value in fields.items()}
            line = json.dumps(head | plain | self._tail, ensure_ascii=False)
            if len(line.encode()) <= LONGEST_LINE:
                return line
        names = [name[:64] for name in fields][:MOST_ITEMS]
        return json.dumps(head | {"cut_fields": names} | self._tail, ensure_ascii=False)


class _Console:
    # The renderer for a person at a terminal.
    def __init__(self, *, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors,
            sort_keys=False,
            timestamp_key="ts",
            pad_event_to=28,
            exception_formatter=structlog.dev.plain_traceback,
        )

    def __call__(self, logger: object, method: str, event: Fields) -> str:
        head = {
            "ts": datetime.now(UTC).astimezone().strftime("%H:%M:%S"),
            "level": method,
            "event": _one_line(event.pop("event", "")),
        }
        try:
            fields = _with_traceback(event)
            trace = _plain(fields.pop("exception", ""), BUDGETS[0])
            plain = {_name(key): _one_line(value) for key, value in fields.items()}
            line = self._render(logger, method, head | plain)
        except Exception as error:  # noqa: BLE001 - law 2: a log call never raises
            return f"{head['ts']} {method} {head['event']} unloggable={type(error).__name__}"
        else:
            return f"{line}\n{trace}" if trace else str(line)


def _one_line(value: object) -> object:
    plain = _plain(value, 512)
    if isinstance(plain, str):
        return plain.replace("\n", "\\n").replace("\t", " ")
    # 12.300000000000001 helps nobody.
    return round(plain, 3) if isinstance(plain, float) else plain


def _name(key: object) -> str:
    name = _cleaned(str(key), 64)
    return f"field_{name}" if name in RESERVED else name


def _with_traceback(event: Fields) -> dict[str, Any]:
    fields = dict(event)
    error = fields.pop("exc_info", None)
    if error is True or isinstance(error, tuple):
        error = sys.exc_info()[1] if error is True else error[1]
    if isinstance(error, BaseException):
        text = _traceback_of(error)
        # What went wrong stands at the end of a traceback, who asked for it at the start.
        middle = "\n  [...]\n"
        long = len(text) > BUDGETS[0]
        fields["error_type"] = type(error).__qualname__
        fields["exception"] = text[:2000] + middle + text[-6000:] if long else text
    return fields


def _traceback_of(error: BaseException, depth: int = 0) -> str:
    """Frames, types and what led to them; neither source lines nor foreign messages."""
    before, link = error.__cause__, "which was the cause of"
    if before is None and not error.__suppress_context__:
        before, link = error.__context__, "while this was handled"
    earlier = ""
    if before is not None and depth < LONGEST_CHAIN:
        earlier = f"{_traceback_of(before, depth + 1)}{link}:\n"
    frames = traceback.StackSummary.extract(
        traceback.walk_tb(error.__traceback__), lookup_lines=False
    )
    lines = ["Traceback (most recent call last):"]
    lines += [f'  File "{at.filename}", line {at.lineno}, in {at.name}' for at in frames]
    text = "\n".join([*lines, _said_by(error)]) + "\n"
    if isinstance(error, BaseExceptionGroup) and depth < LONGEST_CHAIN:
        parts = (_traceback_of(part, depth + 1) for part in error.exceptions[:MOST_ITEMS])
        text += "".join(textwrap.indent(part, "  | ") for part in parts)
    return earlier + text


def _said_by(error: BaseException) -> str:
    """The type, and what is known to quote nobody: our own message, a system error's name."""
    name = type(error).__qualname__
    if isinstance(error, CustosdError):
        return f"{name}: {error}"
    if isinstance(error, OSError) and (code := errno.errorcode.get(error.errno or 0)):
        return f"{name}: {code}"
    return name


def _plain(value: object, budget: int, depth: int = 0) -> Any:
    """The value as JSON can hold it: cleaned, cut to the budget, and never an error."""
    try:
        if depth < DEEPEST and isinstance(value, Mapping):
            pairs = [(_cleaned(str(key), 64), item) for key, item in _first(value.items())]
            cut = {"...": f"+{len(value) - len(pairs)}"} if len(value) > len(pairs) else {}
            return {key: _plain(item, budget, depth + 1) for key, item in pairs} | cut
        if depth < DEEPEST and isinstance(value, list | tuple | set | frozenset):
            items = [_plain(item, budget, depth + 1) for item in _first(value)]
            return items + ([f"...+{len(value) - len(items)}"] if len(value) > len(items) else [])
        plain = _scalar(value.value if isinstance(value, Enum) else value)
        return _cleaned(plain, budget) if isinstance(plain, str) else plain
    except Exception as error:  # noqa: BLE001 - law 2: whatever a value's own methods do
        return f"<unloggable: {type(error).__name__}>"


def _scalar(value: object) -> str | int | float | None:
    text: str | int | float | None
    match value:
        case None | bool() | str():
            text = value
        case int():
            # Longer numbers are read wrongly by most readers of JSON, and are slow to print.
            bits = value.bit_length()
            text = int(value) if bits < 64 else f"<int of {bits} bits>"  # noqa: PLR2004 - as said
        case float():
            text = float(value) if math.isfinite(value) else str(value)
        case date():  # a datetime is one, too
            text = value.isoformat()
        case bytes() | bytearray():
            text = f"<{len(value)} bytes>"
        case BaseException():
            text = _said_by(value)
        case PurePath():
            text = str(value)
        case _:
            text = repr(value)
    return text


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for item, _ in zip(items, range(MOST_ITEMS), strict=False)]


def _cleaned(text: str, budget: int) -> str:
    # Cut twice: half a secret is none to a detector, and all of a long text takes too long.
    cut = f"...+{len(text) - budget}" if len(text) > budget else ""
    return without_secrets(_UNPRINTABLE.sub("", text[: 2 * budget]))[:budget] + cut


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _version() -> str:
    try:
        return version("custosd")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed


# --- from a line to the reader --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineStatistics:
    """Lines that went out, and lines that nobody could take."""

    written: int
    dropped: int


class Lines:
    """Writes whole lines to a stream that may be slow, full or gone. Usable from any thread.

    A line that is begun is ended before the next one begins. While a reader does not read,
    lines are dropped rather than kept: a daemon that waits for its log does not watch.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        try:
            self._fd = None if stream is None else stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._fd = None  # a stream in memory
        self._rest = b""
        self._written = 0
        self._dropped = 0
        self._told = 0
        # Reentrant, as a finalizer that logs may run while this very thread writes.
        self._lock = threading.RLock()
        self._writing = False

    def write(self, line: str) -> int:
        """Write one line, or drop it; returns how many dropped ones have not been told of."""
        with self._lock:
            if self._writing:
                self._dropped += 1
                return 0
            self._writing = True
            try:
                done = self._put(line.encode("utf-8", "replace") + b"\n")
            finally:
                self._writing = False
            if not done:
                self._dropped += 1
                return 0
            self._written += 1
            untold, self._told = self._dropped - self._told, self._dropped
            return untold

    def statistics(self) -> LineStatistics:
        """What became of the lines so far."""
        return LineStatistics(self._written, self._dropped)

    def is_terminal(self) -> bool:
        """Whether a person reads along."""
        return self._fd is not None and os.isatty(self._fd)

    def is_journal(self) -> bool:
        """Whether the stream is the connection to journald that systemd made for us."""
        named = os.environ.get("JOURNAL_STREAM", "")
        if self._fd is None or not named:
            return False
        found = os.fstat(self._fd)
        return stat.S_ISSOCK(found.st_mode) and named == f"{found.st_dev}:{found.st_ino}"

    def _put(self, data: bytes) -> bool:
        """Whether the line was taken; a part of it may still be on its way."""
        try:
            if self._stream is None:
                return False  # started with its stdout closed
            if self._fd is None:
                self._stream.write(data.decode())
                return True
            self._rest = self._push(self._fd, self._rest)
            if self._rest:
                return False
            rest = self._push(self._fd, data)
        except (OSError, ValueError):
            return False  # the reader is gone, or the stream was closed
        if rest == data:
            return False
        self._rest = rest
        return True

    @staticmethod
    def _push(fd: int, data: bytes) -> bytes:
        """Write as much as is taken without waiting; return what is left."""
        # The file's flags stay as they are: they may be shared with the terminal's shell
        # and with our children. A poll before pieces of this size says as much.
        piece = select.PIPE_BUF
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        while data:
            ready = poll.poll(0)
            if not ready:
                break
            try:
                data = data[os.write(fd, data[:piece]) :]
            except BlockingIOError:
                break
        return data


class _LineLogger:
    # What structlog hands its rendered lines to, by the name of the level's method.
    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def msg(self, line: str) -> None:
        untold = self._lines.write(line)
        if untold:
            log.warning("lines.dropped", count=untold)

    debug = info = warning = error = critical = msg


# --- from other people's logging ------------------------------------------------------

QUIET_S = 60.0
"""How long the same place of a library's code is not heard again."""

MOST_PLACES = 1_000


@dataclass(slots=True)
class _Heard:
    at: float
    unsaid: int = 0


class _LibraryHandler(logging.Handler):
    # Records of the standard library's logging, as events of ours. One place of a library's
    # code is heard once in `quiet_s`: an exporter whose server is away speaks at each try.
    def __init__(self, quiet_s: float) -> None:
        super().__init__()
        self._quiet_s = quiet_s
        self._heard: dict[tuple[str, str, int, str], _Heard] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a library's wrong format string is its own
            message = f"{record.msg!r} cannot be formatted: {error}"
        # All warnings come from one place.
        what = message if record.name == "py.warnings" else ""
        place = (record.name, record.pathname, record.lineno, what)
        heard = self._heard.get(place)
        if heard and 0 <= record.created - heard.at < self._quiet_s:
            heard.unsaid += 1
            return
        if len(self._heard) >= MOST_PLACES:
            self._heard.clear()
        self._heard[place] = _Heard(record.created)
        log.log(
            min(max(record.levelno // 10 * 10, 10), 50),
            "library.logged",
            logger=record.name,
            message=message,
            unsaid=heard.unsaid if heard else 0,
            exc_info=record.exc_info,
        )


def _route_libraries(level: str) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(_LibraryHandler(0.0 if level == "debug" else QUIET_S))
    # A library's notes on each of its steps are for whoever debugs that library.
    quietest = logging.DEBUG if level == "debug" else logging.WARNING
    root.setLevel(max(quietest, LEVELS[level]))
    logging.captureWarnings(capture=True)
