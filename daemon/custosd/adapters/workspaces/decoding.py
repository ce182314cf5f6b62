"""The end of a file as text, whatever it was written in; or that it is no text.

A mark at the beginning decides; without one it is UTF-8 if it can be, UTF-16 if every other
byte is nought, and Latin-1 as the last resort, which is said. What is cut off at either end
is left out: a file may begin before what was read, and may still be written to.
"""

import codecs

MARK_BYTES = 4
"""How much of a file's beginning decides."""

ALIGNMENT_BYTES = 4
"""Where what is read may begin: a whole number of these from the file's beginning."""

BINARY = "binary"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"
_MOST_CONTROLS = 0.05
_WIDE = 0.4
_REST_OF_ONE = 0b1000_0000
_LONGEST_REST = 3
"""Bytes of a character in UTF-8 behind its first one."""


def decoded(beginning: bytes, data: bytes, *, cut: bool) -> tuple[str | None, str]:
    """The text and its encoding; None and "binary" for what is no text.

    `beginning` are the file's first bytes; `cut`: something stands before `data`, which then
    begins at a multiple of `ALIGNMENT_BYTES`.
    """
    for mark, encoding in _MARKS:
        if beginning.startswith(mark):
            divided = cut and encoding == "utf-8"
            rest = data if cut else data[len(mark) :]
            return _leniently(_from_a_character(rest) if divided else rest, encoding)
    if (wide := _wide(data)) is not None:
        return _leniently(data, wide)
    # A hole: the file was cut to nothing while who writes it went on at the old place.
    data = data.lstrip(b"\0") or data
    if b"\0" in data or _controls(data) > _MOST_CONTROLS:
        return None, BINARY
    try:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        return decoder.decode(_from_a_character(data) if cut else data), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def _leniently(data: bytes, encoding: str) -> tuple[str, str]:
    return codecs.getincrementaldecoder(encoding)("replace").decode(data), encoding


def _from_a_character(data: bytes) -> bytes:
    rest = 0
    while rest < min(_LONGEST_REST, len(data)) and data[rest] & 0b1100_0000 == _REST_OF_ONE:
        rest += 1
    return data[rest:]


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark, of a text that is mostly in a Latin alphabet."""
    half = len(data) // 2
    if half < MARK_BYTES:
        return None
    even, odd = data[::2].count(0) / half, data[1::2].count(0) / half
    if odd > _WIDE and even < odd / 8:
        return "utf-16-le"
    return "utf-16-be" if even > _WIDE and odd < even / 8 else None


def _controls(data: bytes) -> float:
    if not data:
        return 0.0
    return (len(data) - len(data.translate(None, _CONTROLS))) / len(data)
