"""Reading whole transcripts in tests: in one go, in pieces, and with their records damaged."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from custosd.adapters.transcripts.format import (
    DocumentFormat,
    Format,
    GarbledRecord,
    LineFormat,
    Sample,
)
from custosd.core.transcript import Acted, Asked, Said, Spent, Step, TranscriptEvent, Usage

SAMPLES = Path(__file__).resolve().parent.parent / "samples"

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["user", "assistant", "message", "tool_use", "tool_result", "type", "x/y"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def lines_of(data: bytes) -> list[str]:
    return [line for line in data.decode("utf-8", "replace").split("\n") if line.strip()]


def events_of(fmt: Format, data: bytes, *, settled: bool = True) -> list[TranscriptEvent]:
    """All events of a transcript; garbled lines are passed over."""
    if isinstance(fmt, DocumentFormat):
        return list(fmt.read(data))
    state = fmt.state()
    events = fed(fmt, lines_of(data), state)
    return [*events, *fmt.settle(state)] if settled else events


def fed(fmt: LineFormat[Any], lines: Sequence[str], state: Any) -> list[TranscriptEvent]:
    events: list[TranscriptEvent] = []
    for line in lines:
        try:
            events.extend(fmt.read(line, state))
        except GarbledRecord:
            continue
    return events


def events_in_pieces(
    fmt: LineFormat[Any], lines: Sequence[str], cuts: Sequence[int]
) -> list[TranscriptEvent]:
    """As `events_of`, with the state stored and loaded again at each cut."""
    events: list[TranscriptEvent] = []
    stored = msgspec.msgpack.encode(fmt.state())
    bounds = [0, *sorted(cut % (len(lines) + 1) for cut in cuts), len(lines)]
    for begin, end in pairwise(bounds):
        state = msgspec.msgpack.decode(stored, type=fmt.state_type)
        events.extend(fed(fmt, lines[begin:end], state))
        stored = msgspec.msgpack.encode(state)
    state = msgspec.msgpack.decode(stored, type=fmt.state_type)
    return [*events, *fmt.settle(state)]


def recognised_as(fmt: Format, path: Path) -> bool:
    return fmt.matches(Sample(str(path), path.read_bytes()[:65_536]))


def steps(events: Sequence[TranscriptEvent], thread: str | None = None) -> list[Step]:
    return [e.step for e in events if isinstance(e, Acted) and thread in (None, e.thread)]


def asked(events: Sequence[TranscriptEvent], thread: str = "") -> list[str]:
    return [e.text for e in events if isinstance(e, Asked) and e.thread == thread]


def said_finally(events: Sequence[TranscriptEvent]) -> list[str]:
    return [e.text for e in events if isinstance(e, Said) and e.final]


def spent(events: Sequence[TranscriptEvent], thread: str | None = None) -> Usage:
    return sum(
        (e.usage for e in events if isinstance(e, Spent) and thread in (None, e.thread)), Usage()
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a decoded JSON value, itself first."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        found.extend(places(item, (*path, key)))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same value with another one at a place within it."""
    if not path:
        return new
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return changed


@st.composite
def damaged(draw: st.DrawFn, records: Sequence[Any]) -> list[str]:
    """The records as lines, some with anything in place of one of their values."""
    lines: list[str] = []
    for record in records:
        value = record
        if draw(st.integers(0, 2)) == 0:
            path = draw(st.sampled_from(places(record)))
            value = replaced(record, path, draw(anything))
        lines.append(msgspec.json.encode(value).decode())
    return lines
