"""Two formats as small as can be, for what does not depend on any maker's."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from custosd.adapters.transcripts.format import (
    DocumentFormat,
    Format,
    GarbledRecord,
    LineFormat,
    Sample,
)
from custosd.adapters.transcripts.tail import Formats
from custosd.core.transcript import Asked, Ended, Opened, RunEnd, Said, TranscriptEvent, Unread


@dataclass
class TinyState:
    """Calls that were not answered, and how many words there were."""

    calls: list[str] = field(default_factory=list)
    words: int = 0


def read_line(line: str, state: TinyState) -> Sequence[TranscriptEvent]:
    """`open S` · `say W` · `call C` · `answer` (of all calls) · `boom` fails · else unknown."""
    if not line.startswith("{") or not line.endswith("}"):
        raise GarbledRecord("not in braces")
    verb, _, word = line[1:-1].partition(" ")
    match verb:
        case "open":
            return [Opened("", word)]
        case "say":
            state.words += 1
            return [Said("", f"{state.words} {word}")]
        case "call":
            state.calls.append(word)
            return []
        case "answer":
            told = [Asked("", call) for call in state.calls]
            state.calls.clear()
            return told
        case "boom":
            state.words += 1_000_000  # half-done work that must be undone
            raise KeyError(word)
        case "surrogate":
            state.calls.append("\ud800")  # cannot be encoded
            return []
    return [Unread(verb)]


def settle(state: TinyState) -> Sequence[TranscriptEvent]:
    return [Ended("", RunEnd.ABORTED, call) for call in state.calls]


def read_document(data: bytes) -> Sequence[TranscriptEvent]:
    """A JSON list of words; the first one is the session."""
    try:
        words = msgspec.json.decode(data, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GarbledRecord("not a list") from error
    opened: list[TranscriptEvent] = [Opened("", word) for word in words[:1]]
    return [*opened, *(Said("", word) for word in words[1:])]


TINY_LINES: LineFormat[TinyState] = LineFormat(
    "tiny",
    lambda sample: sample.head.lstrip(b"\xef\xbb\xbf\0\r\n ").startswith(b"{"),
    TinyState,
    TinyState,
    read_line,
    settle,
)
TINY_DOCUMENT = DocumentFormat(
    "tiny-document", lambda sample: sample.head.startswith(b"["), read_document
)
_ALL: dict[str, Format] = {f.name: f for f in (TINY_LINES, TINY_DOCUMENT)}


def recognise(sample: Sample) -> Format | None:
    return next((f for f in _ALL.values() if f.matches(sample)), None)


TINY_FORMATS = Formats(recognise, _ALL.get)
