"""What the providers' protocols have in common: headers, server-sent events, statuses.

Pure: bytes and headers in, values and errors out. What a provider says of itself is outside
data: a number that makes no sense counts as none.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

import msgspec

from custosd.adapters.models.model import Allowance, ModelError, ModelErrorKind

LONGEST_WAIT_S = 7 * 86_400.0
"""Who asks to wait for longer has made a mistake; a weekly window is the longest there is."""

LARGEST_EVENT_BYTES = 1024 * 1024

_DURATION = re.compile(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?(?:([0-9.]+)ms)?")


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One request to a provider, without its key. `path` is below the base URL.

    `nonce` is what stands in the body for this call only.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    nonce: str = ""


def status_error(
    status: int, headers: Mapping[str, str], kind: str, now_utc: datetime, place: str
) -> ModelError:
    """The error that an answer with this status is; `kind` is the provider's own word for it.

    Status 0 is an error in the middle of an answer.
    """
    after_s = retry_after_s(headers, now_utc)
    found = _BY_WORD.get(kind) or _BY_STATUS.get(status)
    if found is None:
        found = (
            ModelErrorKind.UNAVAILABLE
            if status == 0 or status >= 500  # noqa: PLR2004 - server errors
            else ModelErrorKind.BAD_REQUEST
        )
    word = f", {kind}" if re.fullmatch(r"[a-z_]{1,60}", kind) else ""
    remedy = _REMEDIES.get(found, "")
    said = f"answered with status {status}" if status else "broke its answer off"
    return ModelError(found, f"{place} {said}{word}{remedy}", after_s=after_s)


_BY_WORD = {
    "overloaded_error": ModelErrorKind.OVERLOADED,
    "rate_limit_error": ModelErrorKind.RATE_LIMITED,
    "rate_limit_exceeded": ModelErrorKind.RATE_LIMITED,
    "insufficient_quota": ModelErrorKind.UNAUTHORIZED,
    "billing_error": ModelErrorKind.UNAUTHORIZED,
    "authentication_error": ModelErrorKind.UNAUTHORIZED,
    "permission_error": ModelErrorKind.UNAUTHORIZED,
    "request_too_large": ModelErrorKind.TOO_LARGE,
    "context_length_exceeded": ModelErrorKind.TOO_LARGE,
    "timeout_error": ModelErrorKind.TIMEOUT,
    "api_error": ModelErrorKind.UNAVAILABLE,
    "server_error": ModelErrorKind.UNAVAILABLE,
}
_BY_STATUS = {
    401: ModelErrorKind.UNAUTHORIZED,
    402: ModelErrorKind.UNAUTHORIZED,
    403: ModelErrorKind.UNAUTHORIZED,
    408: ModelErrorKind.TIMEOUT,
    409: ModelErrorKind.UNAVAILABLE,
    413: ModelErrorKind.TOO_LARGE,
    429: ModelErrorKind.RATE_LIMITED,
    503: ModelErrorKind.OVERLOADED,
    504: ModelErrorKind.TIMEOUT,
    529: ModelErrorKind.OVERLOADED,
}
_REMEDIES = {
    ModelErrorKind.UNAUTHORIZED: "; look at the key, and at the account's credit",
    ModelErrorKind.BAD_REQUEST: "; look at the model's name, kind and base_url",
    ModelErrorKind.TOO_LARGE: "; lower the model's context",
}


def error_of(
    status: int, headers: Mapping[str, str], body: bytes, now_utc: datetime, place: str
) -> ModelError:
    """The error of an answer whose status is no success; both protocols nest it alike."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = None
    return status_error(status, headers, error_word(said), now_utc, place)


def told_error(said: object, now_utc: datetime, place: str) -> ModelError | None:
    """The error that is in a JSON value, under a good status or in a stream; None without one.

    Services that pass questions on tell of the status that they were given as its code.
    """
    error = said.get("error") if isinstance(said, dict) else None
    if not error:
        return None
    code = str(error.get("code")) if isinstance(error, dict) else ""
    status = int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 0
    return status_error(status, {}, error_word(said), now_utc, place)


def error_word(said: object) -> str:
    """The provider's word for an error: `error.type`, or `error.code` where that says more.

    Some say only in prose that the question is too long, or that the account is empty.
    """
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return ""
    words = [error.get(name) for name in ("code", "type")]
    known: list[str] = [word for word in words if isinstance(word, str) and word]
    ours = next((word for word in known if word in _BY_WORD), "")
    if ours:
        return ours
    prose = error.get("message")
    if isinstance(prose, str):
        for pattern, word in _BY_PROSE.items():
            if re.search(pattern, prose[:2_000], re.IGNORECASE):
                return word
    return known[-1] if known else ""


_BY_PROSE = {
    r"prompt is too long|maximum context length|context.?window": "context_length_exceeded",
    r"credit balance is too low": "billing_error",
}


def retry_after_s(headers: Mapping[str, str], now_utc: datetime) -> float | None:
    """How long the other side asks to wait: in milliseconds, seconds or until a date.

    A date is compared with the other side's own clock where it says it (RFC 9110, 10.2.3).
    """
    if (exact := _number(headers.get("retry-after-ms", ""))) is not None:
        return _sensible(exact / 1_000)
    text = headers.get("retry-after", "").strip()
    if (seconds := _number(text)) is not None:
        return _sensible(seconds)
    until_utc = _date(text)
    if until_utc is None:
        return None
    return _sensible((until_utc - _there_utc(headers, now_utc)).total_seconds())


def _there_utc(headers: Mapping[str, str], now_utc: datetime) -> datetime:
    """What time it is by the other side's clock, where it says so; else by ours."""
    return _date(headers.get("date", "")) or now_utc


def _sensible(seconds: float) -> float | None:
    return max(0.0, seconds) if isfinite(seconds) and seconds <= LONGEST_WAIT_S else None


def _number(text: str) -> float | None:
    # Stripped once, for both: they do not agree on what a space is.
    text = text.strip()
    return float(text) if re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,9})?", text) else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def allowances(
    headers: Mapping[str, str], prefix: str, suffix_of: str, now_utc: datetime
) -> tuple[Allowance, ...]:
    """What the headers say is left of requests and tokens.

    Names are `prefix` + dimension with "remaining" and "reset" before it ("x-ratelimit-") or
    behind it (`suffix_of` "after": "anthropic-ratelimit-"). A reset is a date (RFC 3339), or
    a duration such as 6m0s. A date is compared with the other side's own clock.
    """
    there_utc = _there_utc(headers, now_utc)
    found = []
    for dimension in ("requests", "tokens"):
        names = [
            f"{prefix}{dimension}-{word}" if suffix_of == "after" else f"{prefix}{word}-{dimension}"
            for word in ("remaining", "reset")
        ]
        remaining = _number(headers.get(names[0], ""))
        if remaining is not None and remaining >= 0:
            reset_s = _reset_s(headers.get(names[1], ""), there_utc)
            found.append(Allowance(dimension, remaining, reset_s))
    return tuple(found)


def _reset_s(text: str, there_utc: datetime) -> float | None:
    text = text.strip()
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        date = None
    if date is not None and date.tzinfo is not None:
        return _sensible((date - there_utc).total_seconds())
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        return None
    try:
        hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
    except ValueError:
        return None
    return _sensible(hours * 3_600 + minutes * 60 + seconds + millis / 1_000)


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: its name ("message" where it has none) and its data."""

    name: str
    data: str


@dataclass(slots=True)
class EventReader:
    """Cuts a stream of bytes into server-sent events, however the bytes are cut.

    After the standard (WHATWG HTML, 9.2.6); ids and reconnection times are left out. Raises
    `ModelError` "answer_too_large" for an event above `LARGEST_EVENT_BYTES`, "malformed" for
    what is no UTF-8.
    """

    _begun: bool = False
    _after_cr: bool = False
    _line_so_far: list[bytes] = field(default_factory=list[bytes])
    _line_size: int = 0
    _name: str = ""
    _data: list[str] = field(default_factory=list[str])
    _size: int = 0

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events that are complete with this chunk."""
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the other half of a CRLF, whose line has ended
        self._after_cr = chunk.endswith(b"\r")
        # Only what is new is searched: a line that comes byte by byte costs its length, and
        # not the square of it.
        *ends, rest = re.split(rb"\r\n|\n|\r", chunk)
        for end in ends:
            line = b"".join([*self._line_so_far, end])
            self._line_so_far, self._line_size = [], 0
            event = self._line(line)
            if event is not None:
                yield event
        self._line_so_far.append(rest)
        self._line_size += len(rest)
        if self._line_size + self._size > LARGEST_EVENT_BYTES:
            raise _event_too_large()

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            name, data = self._name or "message", "\n".join(self._data)
            had = bool(self._data)
            self._name, self._data, self._size = "", [], 0
            return ServerEvent(name, data) if had else None
        self._size += len(line)
        if self._size > LARGEST_EVENT_BYTES:
            raise _event_too_large()
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ModelError(ModelErrorKind.MALFORMED, "the stream is no UTF-8") from None
        if not self._begun:
            text, self._begun = text.removeprefix("\ufeff"), True
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        return None


def _event_too_large() -> ModelError:
    return ModelError(ModelErrorKind.ANSWER_TOO_LARGE, "an event of the stream is too large")


def decoded(data: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object; raises `ModelError` "malformed", which says `what` it should have been."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ModelError(ModelErrorKind.MALFORMED, f"{what} is no JSON") from None
    if not isinstance(value, dict):
        raise ModelError(ModelErrorKind.MALFORMED, f"{what} is no JSON object")
    return value


def count(value: object) -> int:
    """A number of tokens as a provider says it; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        return 0
    return value


def text_in(value: object, *path: str | int) -> str:
    """The text at a path through dicts and lists; "" where there is none."""
    for part in path:
        if isinstance(value, dict) and isinstance(part, str):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and len(value) > part:
            value = value[part]
        else:
            return ""
    return value if isinstance(value, str) else ""
