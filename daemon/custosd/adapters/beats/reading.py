"""Reads beats as they come in: one JSON object, or an array of them, into frozen values.

    {"agent": "builder-1", "epoch": 3, "seq": 1764000000000000, "status": "running"}

Laws:

1. Whatever comes in, what goes out is beats and refusals with a reason: nothing is raised.
2. Of an array each item is judged alone; one bad item does not cost the others.
3. A value that is there has its type and its bounds. Keys that are not known are passed over,
   for a newer client may send more; one of ours that comes twice is refused, for nobody can
   say which of the two its sender meant.
4. What a refusal says is short and names the key; it quotes the sender's text at most in
   part, and belongs in no log.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from custosd.core.agents import AgentId
from custosd.core.beats import (
    LARGEST_SEQUENCE,
    LONGEST_INTERVAL_S,
    LONGEST_WAIT_S,
    MOST_METRICS,
    Beat,
    BeatStatus,
    DeclaredWait,
    Refusal,
    WaitKind,
)
from custosd.core.secrets import without_secrets

MOST_BEATS = 1_000
"""Beats in one array."""

LONGEST_TEXT = 200
"""Characters of an id, a task, a progress mark, a metric's name, a token."""

LARGEST_PID = 2**31 - 1

MOST_VALUES = 64 * MOST_BEATS
"""Values in one array, all its beats taken together: more than all our keys."""

_LONGEST_DETAIL = 160
_DEEPEST_WORDS = "it is nested too deeply"
_TOO_MANY = f"an array has at most {MOST_BEATS} beats; send the others by themselves"
_NO_METRICS: MappingProxyType[str, float] = MappingProxyType({})

_Id = Annotated[str, Meta(min_length=1, max_length=LONGEST_TEXT)]
_Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
_Count = Annotated[int, Meta(ge=0, le=LARGEST_SEQUENCE)]


class _Wait(msgspec.Struct, frozen=True):
    kind: WaitKind
    expected_s: Annotated[float, Meta(ge=0, le=LONGEST_WAIT_S)]


class _Beat(msgspec.Struct, frozen=True):
    agent: _Id
    epoch: _Count
    seq: _Count
    status: BeatStatus = BeatStatus.RUNNING
    interval_s: Annotated[float, Meta(gt=0, le=LONGEST_INTERVAL_S)] | None = None
    wait: _Wait | None = None
    pid: Annotated[int, Meta(ge=0, le=LARGEST_PID)] = 0
    progress: _Text = ""
    task: _Text = ""
    metrics: Annotated[dict[_Id, float], Meta(max_length=MOST_METRICS)] = {}
    token: _Text = ""


class _Named(msgspec.Struct, frozen=True):
    agent: _Id = ""


_items = msgspec.json.Decoder(list[msgspec.Raw])
_beat = msgspec.json.Decoder(_Beat)
_named = msgspec.json.Decoder(_Named)

_KEYS = re.compile(f'"({"|".join((*_Beat.__struct_fields__, *_Wait.__struct_fields__))})"'.encode())


@dataclass(frozen=True, slots=True)
class PresentedBeat:
    """A beat as it was read, with the token that came with it ("": none).

    `index` is its place in the array, 0 for a beat alone.
    """

    index: int
    beat: Beat
    token: str = ""


@dataclass(frozen=True, slots=True)
class RefusedBeat:
    """What was not let in, and why. `agent` is "" where that could not be read.

    `index` is its place in the array, None where the whole was refused. `detail` is for
    people: one line.
    """

    index: int | None
    agent: str
    refusal: Refusal
    detail: str


def read_beats(data: bytes | bytearray | memoryview) -> Sequence[PresentedBeat | RefusedBeat]:
    """One entry for each beat, in order; or one refusal of the whole, with no index."""
    try:
        # Once for all: msgspec does not look into the text that it passes over.
        text = str(data, "utf-8").lstrip(" \t\r\n")
        if not text.startswith("["):
            return [_read(0, bytes(data))]
        items = _items.decode(data) if text.count(",") <= MOST_VALUES else None
    except UnicodeDecodeError:
        return [_whole("it is not UTF-8")]
    except RecursionError:
        return [_whole(_DEEPEST_WORDS)]
    except msgspec.DecodeError as error:
        return [_whole(_words(error))]
    if items is None or len(items) > MOST_BEATS:
        return [RefusedBeat(None, "", Refusal.OVERSIZE, _TOO_MANY)]
    read = [_read(index, bytes(item)) for index, item in enumerate(items)]
    return read or [_whole("the array is empty")]


def _read(index: int, data: bytes) -> PresentedBeat | RefusedBeat:
    try:
        read = _beat.decode(data)
        if _may_repeat_a_key(read, data):
            # Slow, and exact: it raises for any key, however it is spelt, at any depth.
            json.loads(data, object_pairs_hook=_without_repetition, parse_int=str, parse_float=str)
    except RecursionError:
        return RefusedBeat(index, "", Refusal.MALFORMED, _DEEPEST_WORDS)
    except (msgspec.DecodeError, ValueError) as error:
        return RefusedBeat(index, _name_in(data), Refusal.MALFORMED, _words(error))
    if flaw := _unprintable(read):
        name = read.agent if read.agent.isprintable() else ""
        words = f"{flaw} has characters that cannot be printed"
        return RefusedBeat(index, name, Refusal.MALFORMED, words)
    return PresentedBeat(index, _beat_of(read), read.token)


def _beat_of(read: _Beat) -> Beat:
    return Beat(
        AgentId(read.agent),
        read.epoch,
        read.seq,
        read.status,
        read.interval_s,
        None if read.wait is None else DeclaredWait(read.wait.kind, read.wait.expected_s),
        read.pid,
        read.progress,
        without_secrets(read.task),
        MappingProxyType(read.metrics) if read.metrics else _NO_METRICS,
    )


def _may_repeat_a_key(read: _Beat, data: bytes) -> bool:
    if b"\\" in data:
        return True
    keys = _KEYS.findall(data)
    if len(keys) != len(set(keys)):
        return True
    return any(data.count(b'"%s"' % name.encode()) > 1 for name in read.metrics)


def _without_repetition(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!a} comes twice")


def _unprintable(read: _Beat) -> str:
    texts = (
        ("agent", read.agent),
        ("progress", read.progress),
        ("task", read.task),
        ("token", read.token),
    )
    for key, text in texts:
        if not text.isprintable():
            return f"`{key}`"
    return "" if all(map(str.isprintable, read.metrics)) else "a name in `metrics`"


def _name_in(data: bytes) -> str:
    """The agent's name, where a beat that is wrong elsewhere has one."""
    try:
        name = _named.decode(data).agent
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    return name if name.isprintable() else ""


def _whole(words: str) -> RefusedBeat:
    return RefusedBeat(None, "", Refusal.MALFORMED, words)


def _words(error: Exception) -> str:
    words = str(error).replace("`$.", "`")
    clean = "".join(c if c.isprintable() else "?" for c in words)
    return clean if len(clean) <= _LONGEST_DETAIL else clean[: _LONGEST_DETAIL - 1] + "…"
