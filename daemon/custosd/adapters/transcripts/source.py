"""The fleet's transcripts as one stream of growth: found, watched, read, never twice.

Laws:

1. The consumer pulls. Nothing is read ahead; what changed meanwhile is a set of paths,
   bounded by `max_files`. A slow consumer finds later, larger growth.
2. The source's own positions advance as growth is handed out; the consumer stores
   `growth.position` in one transaction with what it folded. A source opened from stored
   positions goes on behind them with exactly the same events.
3. While nothing changes nothing is read: a rescan asks for names and sizes only.
4. One session is counted once: see `custosd.adapters.transcripts.copies`.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from custosd.adapters.transcripts.copies import Copies, Relation, relation
from custosd.adapters.transcripts.cursor import Cursor, decode_cursor, encode_cursor
from custosd.adapters.transcripts.discovery import Folder, Root
from custosd.adapters.transcripts.format import DocumentFormat
from custosd.adapters.transcripts.incident import IncidentKind, quoted
from custosd.adapters.transcripts.inotify import Changes, Inotify
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.opening import error_name
from custosd.adapters.transcripts.survey import Followed, Survey, Surveyor
from custosd.adapters.transcripts.tail import Formats, Reading, read_growth
from custosd.flow.bounded import for_each
from custosd.flow.monitor import Kind, operation
from custosd.flow.threads import Threads
from custosd.ports import Growth, Incident, TranscriptPosition

SLICE_FILES = 8
"""How many files one thread reads before it comes back: bounds a cancelled caller's wait."""

REST_FACTOR = 10
"""Between two rescans lies at least this many times what the last one took."""

MOST_TOLD = 4_096
"""How many troubles outside of followed transcripts are remembered as told; then no more."""

CLOCK_GRAIN_S = 1.0
"""Two writings this close may leave the same time and size behind."""

_EPOCH_UTC = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How transcripts are followed; times in seconds.

    All folders are looked through each `rescan_s`, or each `blind_rescan_s` while the
    kernel does not tell of changes. A change is read `settle_s` after it is seen, with
    all that changed by then. A file that was last written more than `max_age_s` before
    it is first met is left alone until it changes. `concurrency` counts reading threads.
    """

    rescan_s: float = 60.0
    blind_rescan_s: float = 5.0
    settle_s: float = 0.1
    concurrency: int = 4
    max_files: int = 20_000
    max_age_s: float = 14 * 86_400.0
    limits: ReadLimits = field(default_factory=ReadLimits)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One file, the cursor that it was read from, and what came of it (None: `error`)."""

    entry: Followed
    base: bytes
    reading: Reading | None
    encoded: bytes = b""
    error: str = ""


@dataclass(frozen=True, slots=True)
class SourceStatistics:
    """Files that are followed and that wait to be read; `blind`: found by rescans only."""

    followed: int
    pending: int
    watched_folders: int
    blind: bool


@asynccontextmanager
async def open_source(
    roots: Sequence[Root],
    positions: Iterable[TranscriptPosition],
    formats: Formats,
    settings: SourceSettings | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> "AsyncIterator[TranscriptSource]":
    """Follow all transcripts under these roots, from the stored positions on.

    A root that does not exist yet is found by a rescan. The kernel's watches are given
    back at the end; nothing runs between two calls of `next_batch`.
    """
    source = TranscriptSource(roots, formats, settings or SourceSettings(), wall_clock)
    await trio.to_thread.run_sync(source.restore, tuple(positions))
    try:
        yield source
    finally:
        source.close()


class TranscriptSource:
    """See `open_source`. One consumer at a time."""

    def __init__(
        self,
        roots: Sequence[Root],
        formats: Formats,
        settings: SourceSettings,
        wall_clock: Callable[[], float],
    ) -> None:
        self._folders = [Folder(root) for root in roots]
        self._formats = formats
        self._settings = settings
        self._wall_clock = wall_clock
        self._threads = Threads(settings.concurrency, abandon=False)
        self._followed: dict[str, Followed] = {}
        self._copies = Copies()
        self._moved_keys: set[str] = set()
        self._pending: dict[str, None] = {}
        self._ready: list[Growth] = []
        self._incidents: list[Incident] = []
        self._told: set[tuple[str, str]] = set()
        self._watch = self._open_watch()
        self._blind = self._watch is None
        self._next_rescan_at = -1.0
        self._earliest_rescan_at = -1.0

    async def next_batch(self) -> Sequence[Growth]:
        """Wait until something grew, and return it; each growth once, in order.

        A growth whose `position.key` is empty is of no transcript: it only carries
        incidents, and has nothing to store. Cancelled, nothing is lost: what was read
        already comes with the next call.
        """
        await trio.lowlevel.checkpoint()
        while True:
            await self._take_changes()
            if trio.current_time() >= self._next_rescan_at:
                await self._rescan()
            if self._pending:
                await self._read_pending()
            if batch := self._take_ready():
                return batch
            if not self._pending:
                await self._wait()

    def statistics(self) -> SourceStatistics:
        """What the source is busy with now."""
        return SourceStatistics(
            len(self._followed),
            len(self._pending),
            len(self._watch) if self._watch else 0,
            self._blind,
        )

    def restore(self, positions: Iterable[TranscriptPosition]) -> None:
        """Take up stored positions, however many; those outside of the roots are left."""
        for position in positions:
            cursor = decode_cursor(position.cursor) or _outdated(position)
            path = _path_of(cursor)
            folder = next((f for f in self._folders if f.wants(path)), None)
            if folder is None:
                continue
            self._followed[path] = Followed(
                path,
                folder.real,
                position.cursor if cursor.format != _OUTDATED else encode_cursor(cursor),
                cursor.size,
                cursor.mtime_ns,
                cursor.inode,
                introduced=True,
            )
            self._copies.follow(cursor, path)
            if cursor.key != quoted(path):
                self._moved_keys.add(cursor.key)

    def close(self) -> None:
        """Give the watches back; a task that waits in `next_batch` fails."""
        if self._watch is not None:
            trio.lowlevel.notify_closing(self._watch.fd)
            self._watch.close()
            self._watch = None

    # Finding what changed.

    def _open_watch(self) -> Inotify | None:
        try:
            return Inotify()
        except OSError as error:
            detail = {"error": error_name(error)}
            self._tell(Incident(IncidentKind.WATCH_UNAVAILABLE, "", detail=detail))
            return None

    async def _wait(self) -> None:
        """Until the kernel tells of a change and it has settled, or a rescan is due."""
        with trio.move_on_at(self._next_rescan_at):
            if self._watch is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(self._watch.fd)
            await trio.sleep(self._settings.settle_s)

    async def _take_changes(self) -> None:
        if self._watch is None:
            return
        changes = self._watch.changes(self._settings.max_files)
        if changes.lost:
            self._next_rescan_at = min(self._next_rescan_at, self._earliest_rescan_at)
        unknown = Changes(folders=changes.folders)
        for path in changes.files:
            if path in self._followed:
                self._pending[path] = None
            elif any(folder.wants(path) for folder in self._folders):
                unknown.files.add(path)
        if unknown.files or unknown.folders:
            self._admit(await trio.to_thread.run_sync(self._surveyor().these, unknown))

    async def _rescan(self) -> None:
        if self._watch is None:
            self._watch = self._open_watch()
        began_at = trio.current_time()
        async with operation(Kind.FILE, "transcripts.rescan"):
            survey = await trio.to_thread.run_sync(self._surveyor().everything)
        self._blind = self._watch is None or any(
            incident.kind == IncidentKind.WATCH_UNAVAILABLE for incident in survey.incidents
        )
        self._admit(survey)
        now = trio.current_time()
        pause_s = self._settings.blind_rescan_s if self._blind else self._settings.rescan_s
        self._earliest_rescan_at = now + max(1.0, REST_FACTOR * (now - began_at))
        self._next_rescan_at = max(now + pause_s, self._earliest_rescan_at)

    def _surveyor(self) -> Surveyor:
        gone = sum(entry.size < 0 for entry in self._followed.values())
        return Surveyor(
            self._folders,
            self._followed,
            self._watch,
            oldest_ns=int((self._wall_clock() - self._settings.max_age_s) * 1e9),
            room=max(0, self._settings.max_files - len(self._followed) + gone),
        )

    def _admit(self, survey: Survey) -> None:
        for incident in survey.incidents:
            self._tell(incident)
        excess = len(self._followed) + len(survey.fresh) - self._settings.max_files
        if excess > 0:
            self._forget_gone(excess)
        for found in survey.fresh:
            self._followed[found.path] = Followed(found.path, found.root)
            self._pending[found.path] = None
        self._pending.update(dict.fromkeys(p for p in survey.changed if p in self._followed))

    def _forget_gone(self, count: int) -> None:
        """Make room: the positions of files that are no more, the longest known first."""
        gone = [entry for entry in self._followed.values() if entry.size < 0]
        for entry in gone[:count]:
            del self._followed[entry.path]
            self._pending.pop(entry.path, None)
            if cursor := decode_cursor(entry.cursor):
                self._copies.leave(cursor, entry.path)

    def _tell(self, incident: Incident) -> None:
        """Keep a trouble that belongs to no followed transcript, unless it was told."""
        told = (incident.kind, incident.path)
        if told not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(told)
            self._incidents.append(incident)

    # Reading what changed.

    async def _read_pending(self) -> None:
        """Read some of the files that changed, side by side, and make their growths ready."""
        paths = list(self._pending)[: SLICE_FILES * self._settings.concurrency]
        outcomes: list[_Outcome] = []

        async def read(part: list[str]) -> None:
            entries = [self._followed[path] for path in part]
            async with operation(Kind.FILE, "transcripts.read") as reading:
                outcomes.extend(await self._threads.run(partial(self._read_slice, entries)))
                reading.used("files", len(entries))

        await for_each(
            (paths[at : at + SLICE_FILES] for at in range(0, len(paths), SLICE_FILES)), read
        )
        for outcome in outcomes:
            # Where a copy took over meanwhile, the file is read again from what it is now.
            if outcome.entry.cursor == outcome.base:
                await self._take(outcome)

    def _read_slice(self, entries: list[Followed]) -> list[_Outcome]:
        """In a thread: read each file; one that fails in an unforeseen way costs itself."""
        outcomes = []
        for entry in entries:
            base = entry.cursor
            try:
                cursor = decode_cursor(base) if base else self._new_cursor(entry)
                limits = self._settings.limits
                reading = read_growth(cursor, entry.path, self._formats, limits, entry.root)
                encoded = encode_cursor(reading.cursor)
                outcomes.append(_Outcome(entry, base, reading, encoded))
            except Exception as error:  # noqa: BLE001 the other files must go on
                outcomes.append(_Outcome(entry, base, None, error=type(error).__name__))
        return outcomes

    def _new_cursor(self, entry: Followed) -> Cursor:
        key = quoted(entry.path)
        if key in self._moved_keys:  # that transcript went on elsewhere, under this key
            key = f"{key}#{int(self._wall_clock() * 1e9):x}"
        return Cursor(path=entry.path.encode("utf-8", "surrogateescape"), key=key)

    async def _take(self, outcome: _Outcome) -> None:
        """Take in what came of one file; first of all whether it is a copy of another."""
        entry, reading = outcome.entry, outcome.reading
        if reading is None:
            self._pending.pop(entry.path, None)
            detail = {"error": outcome.error}
            self._tell(Incident(IncidentKind.READ_FAILED, quoted(entry.path), detail=detail))
            return
        if not entry.introduced and reading.cursor.session:
            match await self._namesake(entry, reading):
                case Relation.COPY, other, _:
                    self._take_copy(entry, reading, other)
                    return
                case Relation.LONGER, other, cursor:
                    self._take_over(entry, other, cursor)
                    return
        self._advance(entry, reading, outcome.encoded)

    async def _namesake(
        self, entry: Followed, reading: Reading
    ) -> tuple[Relation, Followed, Cursor]:
        """The followed transcript that this file is a copy of, or the file itself."""
        for path in self._copies.namesakes(reading.cursor):
            other = self._followed[path]
            cursor = decode_cursor(other.cursor)
            if other is entry or cursor is None:
                continue
            found = await trio.to_thread.run_sync(
                relation,
                cursor,
                path,
                reading.cursor,
                entry.path,
                self._formats,
                self._settings.limits,
            )
            if found is not Relation.SEPARATE:
                return found, other, cursor
        return Relation.SEPARATE, entry, reading.cursor

    def _take_copy(self, entry: Followed, reading: Reading, other: Followed) -> None:
        self._pending.pop(entry.path, None)
        _note(entry, reading)
        self._copies.mark(entry.path, other.path)
        detail = {"of": quoted(other.path)}
        self._tell(Incident(IncidentKind.DUPLICATE, quoted(entry.path), detail=detail))

    def _take_over(self, entry: Followed, other: Followed, cursor: Cursor) -> None:
        """`entry` goes on where `other` ends; it is read at once, under the other's key."""
        path = entry.path.encode("utf-8", "surrogateescape")
        entry.cursor = encode_cursor(msgspec.structs.replace(cursor, path=path))
        entry.introduced = True
        other.cursor = b""
        other.introduced = False
        self._moved_keys.add(cursor.key)
        self._copies.leave(cursor, other.path)
        self._copies.follow(cursor, entry.path)
        for copy in self._copies.unmark(other.path):
            self._copies.mark(copy, entry.path)
        self._copies.mark(other.path, entry.path)
        detail = {"to": quoted(entry.path)}
        self._tell(Incident(IncidentKind.MOVED, quoted(other.path), detail=detail))

    def _advance(self, entry: Followed, reading: Reading, encoded: bytes) -> None:
        """Advance a file's position and make its growth ready, in one step."""
        before = decode_cursor(entry.cursor) if entry.cursor else None
        after = reading.cursor
        self._pending.pop(entry.path, None)
        _note(entry, reading)
        self._doubt_document(entry, reading)
        entry.cursor = encoded
        if reading.more:
            self._pending[entry.path] = None
        if not reading.present:
            self._pending.update(dict.fromkeys(self._copies.unmark(entry.path)))
        if not after.format:
            for incident in reading.incidents:
                self._tell(incident)
            return
        if before is not None and before.session != after.session:
            self._copies.leave(before, entry.path)
        self._copies.follow(after, entry.path)
        entry.introduced = entry.introduced or bool(reading.events)
        if reading.events or reading.rewound or before is None or _says_more(before, after):
            self._ready.append(self._growth(entry, reading, encoded))

    def _doubt_document(self, entry: Followed, reading: Reading) -> None:
        """A document written within the clock's grain may change again without showing it."""
        age_s = self._wall_clock() - reading.cursor.mtime_ns / 1e9
        if age_s < CLOCK_GRAIN_S and isinstance(
            self._formats.named(reading.cursor.format), DocumentFormat
        ):
            entry.mtime_ns = 0

    def _growth(self, entry: Followed, reading: Reading, encoded: bytes) -> Growth:
        cursor = reading.cursor
        position = TranscriptPosition(
            cursor.key,
            quoted(entry.path),
            cursor.format,
            cursor.session,
            cursor.offset,
            encoded,
            cursor.agent,
        )
        incidents = tuple(i for i in reading.incidents if self._is_news(i, cursor.format))
        grown_utc = _wall_time(cursor.mtime_ns, self._wall_clock())
        return Growth(position, reading.events, reading.rewound, grown_utc, incidents)

    def _is_news(self, incident: Incident, format_name: str) -> bool:
        """A record that a new version of an agent writes is told once, not for each file."""
        if incident.kind != IncidentKind.RECORD_UNKNOWN:
            return True
        told = (f"{format_name} {incident.detail.get('what')}", "")
        if told in self._told or len(self._told) >= MOST_TOLD:
            return False
        self._told.add(told)
        return True

    def _take_ready(self) -> Sequence[Growth]:
        batch, self._ready = self._ready, []
        if self._incidents:
            nowhere = TranscriptPosition("", "", "", "", 0, b"")
            grown_utc = _wall_time(0, self._wall_clock())
            told = tuple(self._incidents)
            batch.append(Growth(nowhere, (), rewound=False, grown_utc=grown_utc, incidents=told))
            self._incidents = []
        return batch


_OUTDATED = "outdated"
"""A format that never is: the file is read anew from its start, and rewound."""


def _outdated(position: TranscriptPosition) -> Cursor:
    return Cursor(path=position.path.encode(), key=position.key, format=_OUTDATED)


def _path_of(cursor: Cursor) -> str:
    return cursor.path.decode("utf-8", "surrogateescape")


def _note(entry: Followed, reading: Reading) -> None:
    cursor = reading.cursor
    entry.size = cursor.size if reading.present else -1
    entry.mtime_ns = cursor.mtime_ns
    entry.inode = cursor.inode


def _says_more(before: Cursor, after: Cursor) -> bool:
    """Whether a position says more than the one before: else the store is left in peace."""
    return (before.offset, before.state, before.told, before.path) != (
        after.offset,
        after.state,
        after.told,
        after.path,
    )


def _wall_time(mtime_ns: int, now_s: float) -> datetime:
    """A file's time as a date; one that cannot be, or lies in the future, is now."""
    try:
        claimed = datetime.fromtimestamp(mtime_ns / 1e9, UTC)
    except (OverflowError, ValueError, OSError):
        claimed = _EPOCH_UTC
    return min(claimed, datetime.fromtimestamp(now_s, UTC))
