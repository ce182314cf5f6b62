"""Looking at a file's first records to recognise its format, and naming what is unknown."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from custosd.adapters.transcripts.format import Sample
from custosd.core.transcript import Unread

LOOKED_AT_RECORDS = 60

_decoder = msgspec.json.Decoder()
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,39}\Z")
_TOP_KEY = re.compile(rb'(?<!\\)"([A-Za-z_$]\w{0,39})"\s*:\s*(?:"((?:[^"\\]|\\.){0,200})")?')


def first_records(sample: Sample) -> Iterator[dict[str, Any]]:
    """The objects among a file's first lines; what is no object is left out.

    Of a first line longer than the sample, the keys and short strings in its beginning
    stand for the record (those of nested objects among them).
    """
    lines = sample.head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for line in islice(lines, LOOKED_AT_RECORDS):
        if not line.lstrip().startswith(b"{"):
            continue
        try:
            found = _decoder.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError):
            if line is lines[0] and len(lines) == 1:
                yield _guessed(line)
            continue
        yield found


def _guessed(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for match in islice(_TOP_KEY.finditer(line), 64):
        value = match[2].decode("utf-8", "replace") if match[2] is not None else {}
        found.setdefault(match[1].decode(), value)
    return found


def unread(name: str, what: Any, part: str = "") -> Unread:
    """An unknown record or part of one; names that are no plain word are not repeated."""
    word = what if isinstance(what, str) and _WORD.match(what) else "unnamed"
    return Unread(f"{name}:{part}-{word}" if part else f"{name}:{word}")
