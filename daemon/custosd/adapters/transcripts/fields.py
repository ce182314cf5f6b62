"""Fields of decoded JSON, read without trust: a wrong type reads as an absent value.

Total functions over whatever a decoder returns; nothing here raises but `decoded`.
"""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from custosd.adapters.transcripts.format import GarbledRecord
from custosd.adapters.transcripts.lenient import decoded_leniently

MAX_COUNT = 2**53
"""No count in a transcript is larger; what claims to be is read as this."""

NAME_CHARS = 400

_DECODER = msgspec.json.Decoder()
_YEAR_3000_S = 32_503_680_000.0

Record = dict[str, Any]


def decoded(data: bytes | str, what: str) -> Any:
    """The JSON value in `data`; `GarbledRecord` names `what` when it is none."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError):
        pass
    except RecursionError as error:
        raise GarbledRecord(f"{what}: nested too deep") from error
    try:
        return decoded_leniently(data)
    except (RecursionError, ValueError) as error:
        raise GarbledRecord(f"{what}: not JSON: {error}") from error


def record(value: Any) -> Record:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Any]:
    """The value if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """The value if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def name(value: Any) -> str:
    """Text that names a thing (a session, a thread): it ends in keys, so it has an end."""
    return value[:NAME_CHARS] if isinstance(value, str) else ""


def prose(value: Any) -> str:
    """A message's content: a string, or the text parts of an array of blocks."""
    if isinstance(value, str):
        return value
    parts = (
        part if isinstance(part, str) else text(record(part).get("text")) for part in rows(value)
    )
    return "\n".join(part for part in parts if part)


def count(value: Any) -> int:
    """A number of things, 0..MAX_COUNT; 0 for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return max(0, min(int(value), MAX_COUNT))


def amount(value: Any) -> float:
    """A finite number that is not negative, else 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    if isinstance(value, int):
        return float(max(0, min(value, MAX_COUNT)))
    return value if math.isfinite(value) and value > 0 else 0.0


def exit_code_of(value: Any) -> int | None:
    """An exit code within 32 bits, else None."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -(2**31) <= value < 2**31 else None


def moment(value: Any) -> datetime | None:
    """Wall time from ISO 8601 text (UTC where it names no zone) or epoch seconds."""
    try:
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            if at.tzinfo is UTC:
                return at
            return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC) if 0 < value < _YEAR_3000_S else None
    except (ValueError, OverflowError):
        return None
    return None
