"""Reading what a line format's file has grown by, one bounded piece at a time.

Laws:

1. One call reads at most a chunk, and the one line that ends in it; memory is bounded
   by chunk + max_line_bytes, whatever the file holds.
2. Each byte is searched for a line end once, also when a line grows by single bytes.
3. A record that cannot be read costs itself: the lines around it are read as if it were
   not there, and the state is what it was before it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from custosd.adapters.transcripts.cursor import Cursor, digest_bytes
from custosd.adapters.transcripts.format import GarbledRecord, LineFormat
from custosd.adapters.transcripts.incident import IncidentKind, Told
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.core.transcript import TranscriptEvent, Unread

BOM = b"\xef\xbb\xbf"


class StateOutdated(Exception):
    """A stored state that the format of today cannot take up."""


class _RecordFailed(Exception):
    """The format's reader raised what it must not: the block is read again with care."""


@dataclass(slots=True)
class _Block:
    """Whole lines, and what came of reading them."""

    data: bytes
    offset: int
    line: int
    max_line_bytes: int
    told: Told
    events: list[TranscriptEvent] = field(default_factory=list)

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Offset, number (-1: unknown) and bytes of each line."""
        offset, number = self.offset, self.line
        for raw in self.data.split(b"\n")[:-1]:
            number += number >= 0
            yield offset, number, raw
            offset += len(raw) + 1

    def lose(self, kind: IncidentKind, number: int, **detail: int | str) -> None:
        """A record that nobody will read: told, and an event, so that it is counted."""
        self.told.tell(kind, number, **detail)
        self.events.append(Unread(kind.value))


def read_lines(
    fd: int, cursor: Cursor, size: int, fmt: LineFormat[Any], limits: ReadLimits, told: Told
) -> tuple[Cursor, list[TranscriptEvent]]:
    """Read on from the cursor; `size` is the file's, no byte after it is looked at.

    Raises `StateOutdated`, and before anything was told.
    """
    room = limits.read_chunk_bytes
    if cursor.jump_to:
        room = min(room, limits.head_bytes - cursor.offset - cursor.scanned)
        if room <= 0:
            return _jump(cursor, told), []
    begin = cursor.offset + cursor.scanned
    data = os.pread(fd, max(0, min(room, size - begin)), begin)
    if cursor.skipping:
        return _skip(cursor, data), []
    last = data.rfind(b"\n") + 1
    if not last:
        return _wait_for_end(cursor, len(data), limits, told), []
    block = os.pread(fd, cursor.scanned, cursor.offset) + data[:last]
    state, events = _read_block(block, cursor, fmt, limits, told)
    grown = msgspec.structs.replace(
        cursor,
        offset=cursor.offset + len(block),
        scanned=len(data) - last,
        line=cursor.line + block.count(b"\n") if cursor.line >= 0 else -1,
        state=state,
    )
    return grown, events


def read_last_line(
    fd: int, cursor: Cursor, fmt: LineFormat[Any], limits: ReadLimits, told: Told
) -> list[TranscriptEvent]:
    """The line without an end, of a file that will not grow, and what was held back."""
    rest = b"" if cursor.skipping else os.pread(fd, cursor.scanned, cursor.offset)
    state, events = _read_block(rest + b"\n", cursor, fmt, limits, told)
    return [*events, *fmt.settle(_state_of(fmt, state))]


def _jump(cursor: Cursor, told: Told) -> Cursor:
    told.tell(IncidentKind.SKIPPED, bytes=cursor.jump_to - cursor.offset)
    # One byte back: where that is a line end, the line after it is whole.
    return msgspec.structs.replace(
        cursor, offset=cursor.jump_to - 1, scanned=0, skipping=True, jump_to=0, line=-1
    )


def _skip(cursor: Cursor, data: bytes) -> Cursor:
    end = data.find(b"\n") + 1
    return msgspec.structs.replace(
        cursor,
        offset=cursor.offset + (end or len(data)),
        skipping=not end,
        line=cursor.line + bool(end) if cursor.line >= 0 else -1,
    )


def _wait_for_end(cursor: Cursor, more: int, limits: ReadLimits, told: Told) -> Cursor:
    scanned = cursor.scanned + more
    if scanned <= limits.max_line_bytes:
        return msgspec.structs.replace(cursor, scanned=scanned)
    told.tell(IncidentKind.LINE_TOO_LONG, cursor.line + 1, offset=cursor.offset)
    return msgspec.structs.replace(cursor, offset=cursor.offset + scanned, scanned=0, skipping=True)


def _read_block(
    data: bytes, cursor: Cursor, fmt: LineFormat[Any], limits: ReadLimits, told: Told
) -> tuple[bytes, list[TranscriptEvent]]:
    for careful in (False, True):
        trial = told.again()
        block = _Block(data, cursor.offset, cursor.line, limits.max_line_bytes, trial)
        try:
            state = _feed(block, cursor.state, fmt, careful=careful)
        except _RecordFailed:
            continue
        told.counts, told.fresh = trial.counts, trial.fresh
        return state, block.events
    raise AssertionError("careful reading keeps every failure to its record")


def _feed(block: _Block, stored: bytes, fmt: LineFormat[Any], *, careful: bool) -> bytes:
    """Give each line to the format; returns the encoded state after the last.

    `careful`: the state is saved after each line, so that a line at which the format
    fails can be left out. That costs an encoding a line, hence only when one failed.
    """
    state = _state_of(fmt, stored)
    for offset, number, raw in block.lines():
        text = _text_of(raw, offset, number, block)
        if not text:
            continue
        try:
            events = fmt.read(text, state)
            if careful:
                stored = msgspec.msgpack.encode(state)
        except GarbledRecord:
            digest = digest_bytes(raw).hex()
            block.lose(
                IncidentKind.RECORD_GARBLED, number, offset=offset, length=len(raw), digest=digest
            )
        except Exception as error:
            if not careful:
                raise _RecordFailed from error
            name = type(error).__name__
            block.lose(IncidentKind.RECORD_FAILED, number, offset=offset, error=name)
            state = _state_of(fmt, stored)
        else:
            block.events.extend(events)
    if careful:
        return stored
    try:
        return msgspec.msgpack.encode(state)
    except (TypeError, ValueError, OverflowError) as error:
        raise _RecordFailed from error


def _text_of(raw: bytes, offset: int, number: int, block: _Block) -> str:
    if len(raw) > block.max_line_bytes:
        block.lose(IncidentKind.LINE_TOO_LONG, number, offset=offset)
        return ""
    if offset == 0:
        raw = raw.removeprefix(BOM)
    if b"\0" in raw:
        block.told.tell(IncidentKind.NUL_BYTES, number, offset=offset)
        raw = raw.replace(b"\0", b"")
    raw = raw.strip(b" \t\r\n")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        block.told.tell(IncidentKind.INVALID_UTF8, number, offset=offset)
        return raw.decode(errors="replace")


def _state_of(fmt: LineFormat[Any], stored: bytes) -> Any:
    if not stored:
        return fmt.state()
    try:
        return fmt.stored.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateOutdated(fmt.name) from error
