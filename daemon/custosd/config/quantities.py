"""Durations and sizes as people write them ("1h30m", "10MiB"), and back.

Laws: what was written is read back as the very same number. A number of TOML counts in
seconds or bytes; a text without a unit is refused, since nobody knows what it means.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"

SECONDS: dict[str, Fraction] = {
    "d": Fraction(86_400),
    "h": Fraction(3_600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1_000),
}
"""Length of each unit of time, the longest first: the order in which they are written."""

BYTES: dict[str, int] = {
    "TiB": 1 << 40,
    "TB": 10**12,
    "GiB": 1 << 30,
    "GB": 10**9,
    "MiB": 1 << 20,
    "MB": 10**6,
    "KiB": 1 << 10,
    "kB": 10**3,
    "KB": 10**3,
    "B": 1,
}
"""Bytes in each unit of size, the largest first."""

DURATION_PATTERN = r"\s*" + "".join(rf"(?:({_NUMBER})\s*{unit}\s*)?" for unit in SECONDS)
SIZE_PATTERN = rf"\s*({_NUMBER})\s*({'|'.join(BYTES)})\s*"

_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(SIZE_PATTERN)
_LONGEST_TEXT = 400
_LARGEST = 1 << 62


def parse_duration(value: object) -> float:
    """Seconds, from a number of seconds or a text such as "250ms", "1.5h" or "1h30m".

    Raises `ValueError` for anything else, and for what is negative or not finite.
    """
    if isinstance(value, str):
        return _as_seconds(_duration_of(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a duration")  # noqa: TRY004 - callers catch one error
    # Only floats are asked: a whole number may be too large for the question.
    if value < 0 or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a duration is finite and not negative")
    return _as_seconds(Fraction(value))


def format_duration(seconds: float) -> str:
    """The shortest text in one unit that `parse_duration` reads as exactly this number."""
    exact = Fraction(repr(float(seconds)))
    for unit, length in SECONDS.items():
        count = exact / length
        if exact and count.denominator == 1:
            return f"{count.numerator}{unit}"
    return f"{Decimal(repr(float(seconds))):f}".removesuffix(".0") + "s"


def parse_size(value: object) -> int:
    """Bytes, from a whole number of bytes or a text such as "64 KiB", "1.5GiB" or "2GB".

    Raises `ValueError` for anything else, and where the bytes are not whole.
    """
    if isinstance(value, str):
        exact = _size_of(value)
        if exact.denominator != 1:
            raise ValueError("not a whole number of bytes")
        value = exact.numerator
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("not a size")  # noqa: TRY004 - callers catch one error
    if not 0 <= value <= _LARGEST:
        raise ValueError("not a possible number of bytes")
    return value


def format_size(size_bytes: int) -> str:
    """The text in the largest unit that divides this number of bytes."""
    for unit, length in BYTES.items():
        if size_bytes and size_bytes % length == 0:
            return f"{size_bytes // length}{unit}"
    return f"{size_bytes}B"


def _duration_of(text: str) -> Fraction:
    match = _DURATION.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None or not any(match.groups()):
        raise ValueError("not a duration")
    parts = zip(match.groups(), SECONDS.values(), strict=True)
    return sum((Fraction(number) * length for number, length in parts if number), Fraction(0))


def _as_seconds(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError as error:
        raise ValueError("too long a duration") from error


def _size_of(text: str) -> Fraction:
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError("not a size")
    number, unit = match.groups()
    return Fraction(number) * BYTES[unit]
