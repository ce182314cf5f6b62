"""JSON as agents really write it: half surrogate pairs, NaN, numbers beyond all range.

A program that cuts a text at a fixed length cuts through surrogate pairs, and writes
what is left as an escape that no strict decoder takes. The record is worth more than
that character: it is read again, slowly, and the character becomes U+FFFD.
"""

import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def decoded_leniently(data: bytes | str) -> Any:
    """The value; raises ValueError or RecursionError where it is no JSON even so."""
    source = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return _cleaned(json.loads(source, parse_int=_int, strict=False))


def _int(digits: str) -> int | float:
    """Python refuses to convert more digits than 4,300; nothing counts that far."""
    return int(digits) if len(digits) <= 18 else float(digits[:400])  # noqa: PLR2004 - 64 bits


def _cleaned(value: Any) -> Any:
    """The same value without a lone surrogate in any of its strings."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return value
