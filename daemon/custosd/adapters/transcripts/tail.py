"""What a transcript file has grown by since a cursor: one bounded, synchronous reading.

Laws:

1. `read_growth` keeps nothing: the same cursor and the same file give the same growth.
   What is not committed with its cursor is simply read again.
2. No file crashes it: what is wrong with one is an incident, and the cursor goes on, or
   stays where it was.
3. What is kept of it holds no secret: see `clearing`.
4. It costs what is new, plus six system calls: never the size of the file.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from custosd.adapters.transcripts.clearing import cleared, cleared_state
from custosd.adapters.transcripts.cursor import (
    HEAD_BYTES,
    Cursor,
    anchor_at,
    head_and_digest,
)
from custosd.adapters.transcripts.document_reading import (
    read_all,
    read_document,
    read_settled,
    same_document,
)
from custosd.adapters.transcripts.format import DocumentFormat, Format, GarbledRecord, News, Sample
from custosd.adapters.transcripts.incident import IncidentKind, Told, plain_name, quoted
from custosd.adapters.transcripts.limits import KIB, ReadLimits
from custosd.adapters.transcripts.line_reading import StateOutdated, read_last_line, read_lines
from custosd.adapters.transcripts.opening import FileGone, FileRefused, opened
from custosd.core.transcript import Opened, TranscriptEvent, Unread, digest_of
from custosd.ports import Incident

SAMPLE_BYTES = 64 * KIB
UNREAD_KINDS = 32

_PASSING = (
    IncidentKind.VANISHED,
    IncidentKind.NOT_A_FILE,
    IncidentKind.LINK_REFUSED,
    IncidentKind.UNREADABLE,
    IncidentKind.READ_FAILED,
)


_TOLD_ALREADY = frozenset(IncidentKind)


@dataclass(frozen=True, slots=True)
class Formats:
    """The formats that can be read: how one is told from a sample, and found by its name."""

    recognise: Callable[[Sample], Format | None]
    named: Callable[[str], Format | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reading brought. `more`: the file holds more, read on from `cursor`.

    `rewound`: `events` replace all that was told of this transcript before. `present` is
    False where there is no file, or none that may be read.
    """

    cursor: Cursor
    events: tuple[TranscriptEvent, ...] = ()
    rewound: bool = False
    incidents: tuple[Incident, ...] = field(default=())
    more: bool = False
    present: bool = True


def read_growth(
    cursor: Cursor | None,
    path: str,
    formats: Formats,
    limits: ReadLimits,
    root: str | None = None,
) -> Reading:
    """Read what is new in the file at `path`, at most a chunk of it.

    `cursor` is None for a file never seen. `root` is the real path of the folder that
    the file must not lead out of. Blocks for as long as the disk does: call it in a
    thread. Raises nothing but what is a defect of ours.
    """
    if cursor is None:
        cursor = Cursor(path=os.fsencode(path), key=quoted(path))
    told = Told(quoted(path), dict(cursor.told))
    try:
        with opened(path, root) as (fd, status):
            told.forget(*_PASSING)
            return _read(fd, status, cursor, formats, limits, told)
    except FileGone:
        if cursor.size >= 0:
            told.tell(IncidentKind.VANISHED)
        return _refusal(cursor, told)
    except FileRefused as refused:
        detail = {"error": refused.error} if refused.error else {}
        told.tell(refused.kind, 0, **detail)
        return _refusal(cursor, told)


def read_whole(
    path: str,
    formats: Formats,
    limits: ReadLimits,
    advance: Callable[[int], None] = lambda _: None,
) -> Reading:
    """Read a file that will not grow: all of it, its last line, and what is held back.

    A person named it, so it may be a link; its format may still go by the name given.
    `advance` is told after each chunk how many bytes have been read so far.
    """
    real = os.path.realpath(path)
    cursor = Cursor(path=os.fsencode(path), key=quoted(path))
    events: list[TranscriptEvent] = []
    incidents: list[Incident] = []
    while True:
        reading = read_growth(cursor, real, formats, limits)
        if reading.rewound:
            events.clear()
        events += reading.events
        incidents += reading.incidents
        cursor = reading.cursor
        advance(_end_of(cursor))
        if not reading.more:
            break
    fmt = formats.named(cursor.format) if cursor.format else None
    if fmt is not None and reading.present:
        told = Told(quoted(path), dict(cursor.told))
        with opened(real, None) as (fd, status):
            if not isinstance(fmt, DocumentFormat):
                events += cleared(read_last_line(fd, cursor, fmt, limits, told))
            elif status.st_size <= limits.backfill_bytes:
                events = list(cleared(read_settled(fd, status.st_size, fmt, told)))
        incidents += told.fresh
    return Reading(cursor, tuple(events), incidents=tuple(incidents), present=reading.present)


def continues(cursor: Cursor, path: str, formats: Formats, limits: ReadLimits) -> bool:
    """Whether the file at `path` begins with all that was read up to `cursor`.

    False also where the file is gone or may not be read.
    """
    try:
        with opened(path, None) as (fd, status):
            fmt = formats.named(cursor.format)
            if not isinstance(fmt, DocumentFormat):
                return status.st_size >= cursor.offset and _same_bytes(fd, cursor)
            if status.st_size > limits.backfill_bytes:
                return False
            return same_document(cursor, fmt.read(read_all(fd, status.st_size)))
    except (FileGone, FileRefused, GarbledRecord):
        return False


def _refusal(cursor: Cursor, told: Told) -> Reading:
    kept = msgspec.structs.replace(cursor, told=told.counts)
    return Reading(kept, incidents=tuple(told.fresh), present=False)


def _read(
    fd: int,
    status: os.stat_result,
    cursor: Cursor,
    formats: Formats,
    limits: ReadLimits,
    told: Told,
    *,
    rewound: bool = False,
) -> Reading:
    fmt = formats.named(cursor.format) if cursor.format else None
    cursor, changed = _checked(fd, status.st_size, cursor, fmt, told)
    rewound = rewound or changed or cursor.rewinding
    if not cursor.format:
        fmt, cursor = _recognised(fd, status, cursor, formats, limits, told)
    # A file cut to nothing has no format: what it then becomes replaces what it was.
    cursor = msgspec.structs.replace(cursor, rewinding=rewound and fmt is None)
    news = News(rewound=rewound)
    if isinstance(fmt, DocumentFormat):
        cursor, read = read_document(fd, cursor, status.st_size, fmt, limits, told)
        news = News(read.events, rewound or read.rewound)
    elif fmt is not None and _end_of(cursor) < status.st_size:
        try:
            cursor, events = read_lines(fd, cursor, status.st_size, fmt, limits, told)
            news = News(tuple(events), rewound)
        except StateOutdated:
            told.tell(IncidentKind.STATE_OUTDATED)
            return _read(fd, status, _anew(cursor), formats, limits, told, rewound=True)
    return _reading(fd, status, cursor, fmt, news, told)


def _reading(
    fd: int, status: os.stat_result, cursor: Cursor, fmt: Format | None, news: News, told: Told
) -> Reading:
    """The cursor after a reading, with what the file is known by and what it told."""
    unread = _counted(cursor.unread, news.events, told)
    session, thread, agent = _named(cursor, news.events)
    events, state = cleared(news.events), cleared_state(cursor.state)
    line_wise = fmt is not None and not isinstance(fmt, DocumentFormat)
    head_length, head, anchor = (
        _marks(fd, cursor) if line_wise else (cursor.head_length, cursor.head, cursor.anchor)
    )
    cursor = msgspec.structs.replace(
        cursor,
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        head_length=head_length,
        head=head,
        anchor=anchor,
        session=session,
        thread=thread,
        agent=agent,
        state=state,
        told=told.counts,
        unread=unread,
    )
    more = line_wise and _end_of(cursor) < status.st_size
    return Reading(cursor, events, news.rewound, tuple(told.fresh), more)


def _checked(
    fd: int, size: int, cursor: Cursor, fmt: Format | None, told: Told
) -> tuple[Cursor, bool]:
    """The cursor if the file is still the one that it is of, else a new one, rewound."""
    if not cursor.format or isinstance(fmt, DocumentFormat):
        return cursor, False
    if fmt is None:
        told.tell(IncidentKind.STATE_OUTDATED)
    elif size < cursor.offset:
        told.tell(IncidentKind.TRUNCATED, lost=cursor.offset - size)
    elif not _same_bytes(fd, cursor):
        told.tell(IncidentKind.REPLACED)
    elif size < _end_of(cursor):  # only the unfinished line was taken back
        return msgspec.structs.replace(cursor, scanned=0), False
    else:
        return cursor, False
    return _anew(cursor), True


def _anew(cursor: Cursor) -> Cursor:
    return Cursor(path=cursor.path, key=cursor.key)


def _same_bytes(fd: int, cursor: Cursor) -> bool:
    if not cursor.offset:
        return True
    length, head = head_and_digest(fd, cursor.head_length)
    if (length, head) != (cursor.head_length, cursor.head):
        return False
    return anchor_at(fd, cursor.offset) == cursor.anchor


def _marks(fd: int, cursor: Cursor) -> tuple[int, bytes, bytes]:
    if not cursor.offset:
        return 0, b"", b""
    head_length, head = cursor.head_length, cursor.head
    if head_length < HEAD_BYTES:
        head_length, head = head_and_digest(fd, min(HEAD_BYTES, cursor.offset))
    return head_length, head, anchor_at(fd, cursor.offset)


def _end_of(cursor: Cursor) -> int:
    return cursor.offset + cursor.scanned


def _recognised(
    fd: int,
    status: os.stat_result,
    cursor: Cursor,
    formats: Formats,
    limits: ReadLimits,
    told: Told,
) -> tuple[Format | None, Cursor]:
    size = status.st_size
    if cursor.size >= SAMPLE_BYTES and cursor.inode == status.st_ino:
        return None, cursor  # the whole sample was looked at before, and will not change
    head = os.pread(fd, min(SAMPLE_BYTES, size), 0)
    if not head:
        return None, cursor
    fmt = formats.recognise(Sample(os.fsdecode(cursor.path), head))
    if fmt is None:
        # A first line that is still being written may yet become something.
        if b"\n" in head or len(head) == SAMPLE_BYTES:
            told.tell(IncidentKind.FORMAT_UNKNOWN)
        return None, cursor
    told.forget(IncidentKind.FORMAT_UNKNOWN)
    whole = isinstance(fmt, DocumentFormat) or size <= limits.backfill_bytes + limits.head_bytes
    jump_to = 0 if whole else size - limits.backfill_bytes
    return fmt, msgspec.structs.replace(cursor, format=fmt.name, jump_to=jump_to)


def _named(cursor: Cursor, events: Sequence[TranscriptEvent]) -> tuple[str, str, str]:
    if not cursor.session:
        for event in events:
            if isinstance(event, Opened) and event.session:
                return event.session, event.thread, event.agent
    return cursor.session, cursor.thread, cursor.agent


def _counted(
    before: dict[str, int], events: Sequence[TranscriptEvent], told: Told
) -> dict[str, int]:
    counts = before
    for event in events:
        if not isinstance(event, Unread):
            continue
        if counts is before:
            counts = dict(before)
        what = plain_name(event.what, digest_of(event.what))
        if what not in counts and len(counts) >= UNREAD_KINDS:
            what = "other"
        if what not in counts and what not in _TOLD_ALREADY:
            told.tell(IncidentKind.RECORD_UNKNOWN, what=what)
        counts[what] = counts.get(what, 0) + 1
    return counts
