"""Reading a document that its agent rewrites at each change, and telling what is new.

Laws:

1. A document is read as a whole or not at all; one above the limit is told, once.
2. A half-written document is no trouble: the next change brings the rest. Only one that
   stays garbled over `PATIENCE` changes is told.
"""

import os
from collections.abc import Sequence

import msgspec

from custosd.adapters.transcripts.cursor import Cursor, digest_bytes
from custosd.adapters.transcripts.format import DocumentFormat, GarbledRecord, News, Rereading
from custosd.adapters.transcripts.incident import IncidentKind, Told
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.core.transcript import TranscriptEvent

PATIENCE = 3
"""How many changes in a row may leave a document garbled before it is told."""

# Made once, not by the first thread that needs it: see `LineFormat.stored`.
_rereadings = msgspec.msgpack.Decoder(Rereading)


def read_document(
    fd: int, cursor: Cursor, size: int, fmt: DocumentFormat, limits: ReadLimits, told: Told
) -> tuple[Cursor, News]:
    """Read all of it; `offset` becomes its size, `state` what has been told."""
    if size > limits.backfill_bytes:
        told.tell(IncidentKind.DOCUMENT_TOO_LARGE, bytes=size, limit=limits.backfill_bytes)
        return cursor, News()
    data = read_all(fd, size)
    try:
        events = _parsed(data, fmt, told)
    except GarbledRecord:
        return _wait_for_rest(cursor, data, told), News()
    if events is None:
        return cursor, News()
    rereading = rereading_of(cursor)
    news = rereading.news(events)
    return msgspec.structs.replace(
        cursor, offset=len(data), state=msgspec.msgpack.encode(rereading), tries=0
    ), news


def read_settled(fd: int, size: int, fmt: DocumentFormat, told: Told) -> list[TranscriptEvent]:
    """All events of a document that will not be written again; none where it is garbled."""
    data = read_all(fd, size)
    try:
        return list(_parsed(data, fmt, told) or ())
    except GarbledRecord:
        told.tell(IncidentKind.RECORD_GARBLED, length=len(data), digest=digest_bytes(data).hex())
        return []


def rereading_of(cursor: Cursor) -> Rereading:
    """What has been told of the document; a state that cannot be read tells all anew."""
    if not cursor.state:
        return Rereading()
    try:
        return _rereadings.decode(cursor.state)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Rereading(told=0, chain="outdated")  # no chain is this: it rewinds


def read_all(fd: int, size: int) -> bytes:
    """The file's first `size` bytes, or what there is of them."""
    parts: list[bytes] = []
    offset = 0
    while offset < size and (part := os.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def same_document(cursor: Cursor, events: Sequence[TranscriptEvent]) -> bool:
    """Whether a document's events begin with all that was told up to the cursor."""
    return not rereading_of(cursor).news(events).rewound


def _parsed(data: bytes, fmt: DocumentFormat, told: Told) -> Sequence[TranscriptEvent] | None:
    try:
        return fmt.read(data)
    except GarbledRecord:
        raise
    except Exception as error:  # noqa: BLE001 a defect of a format costs this file alone
        name = type(error).__name__
        told.tell(IncidentKind.RECORD_FAILED, length=len(data), error=name)
        return None


def _wait_for_rest(cursor: Cursor, data: bytes, told: Told) -> Cursor:
    tries = min(cursor.tries + 1, PATIENCE)
    if tries == PATIENCE and cursor.tries < PATIENCE:
        kind = IncidentKind.RECORD_GARBLED
        told.tell(kind, length=len(data), digest=digest_bytes(data).hex())
    return msgspec.structs.replace(cursor, tries=tries)
