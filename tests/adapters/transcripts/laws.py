"""The laws that every transcript format keeps, as checks that its tests call."""

import copy
import json
import random
from collections.abc import Sequence
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
from custosd.core.transcript import EXCERPT_CHARS, Acted, Step, TranscriptEvent

SAMPLES = Path(__file__).resolve().parent.parent / "samples"

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["user", "assistant", "run", "edit", "2025-01-01T00:00:00Z", "error"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=15,
)
"""Any JSON value."""

SAMPLE_HEAD_BYTES = 65_536


def sample_of(path: Path) -> Sample:
    return Sample(str(path), path.read_bytes()[:SAMPLE_HEAD_BYTES])


def read_whole(fmt: Format, data: bytes) -> list[TranscriptEvent]:
    """All events of a file that is read at once."""
    if isinstance(fmt, DocumentFormat):
        return list(fmt.read(data))
    state = fmt.state()
    events: list[TranscriptEvent] = []
    for line in data.decode().split("\n"):
        events.extend(fmt.read(line, state))
    return [*events, *fmt.settle(state)]


def read_with_crashes(fmt: LineFormat[Any], data: bytes, seed: int) -> list[TranscriptEvent]:
    """The same, with the state stored and loaded again at random lines."""
    chance = random.Random(seed)
    state = fmt.state()
    events: list[TranscriptEvent] = []
    for line in data.decode().split("\n"):
        events.extend(fmt.read(line, state))
        if chance.random() < 0.3:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=fmt.state_type)
    return [*events, *fmt.settle(state)]


def steps_of(events: Sequence[TranscriptEvent]) -> list[Step]:
    return [event.step for event in events if isinstance(event, Acted)]


def hold_text_bounds(events: Sequence[TranscriptEvent]) -> None:
    for step in steps_of(events):
        for text in (step.action, step.observation, step.thought):
            assert text is None or len(text.excerpt) <= EXCERPT_CHARS + 1
    msgspec.msgpack.encode(list(events))  # what is stored must be storable


def read_or_refuse_document(fmt: DocumentFormat, value: Any) -> list[TranscriptEvent]:
    """Reading a document of any shape: events, or `GarbledRecord`, and nothing else."""
    data = json.dumps(value).encode()
    try:
        events = list(fmt.read(data))
    except GarbledRecord:
        return []
    hold_text_bounds(events)
    return events


def read_or_refuse_lines(fmt: LineFormat[Any], lines: Sequence[str]) -> list[TranscriptEvent]:
    """Reading lines of any shape; a line that is refused leaves the state as it was."""
    state = fmt.state()
    events: list[TranscriptEvent] = []
    for line in lines:
        before = copy.deepcopy(state)
        try:
            events.extend(fmt.read(line, state))
        except GarbledRecord:
            assert state == before
    events.extend(fmt.settle(state))
    hold_text_bounds(events)
    return events


def mutated(value: Any, replacement: Any, chance: random.Random) -> Any:
    """The value with one of its parts, wherever it is, put in the place of another."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        items = part.items() if isinstance(part, dict) else enumerate(part)
        for key, inner in items:
            places.append((part, key))
            if isinstance(inner, dict | list):
                walk(inner)

    changed = copy.deepcopy(value)
    if isinstance(changed, dict | list):
        walk(changed)
    if not places:
        return replacement
    holder, key = chance.choice(places)
    holder[key] = replacement
    return changed
