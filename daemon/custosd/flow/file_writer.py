"""Files written whole or not at all, off the event loop, and durable when that is said.

Laws:

1. A file has its old content or its new one, never a part: a temporary file in the same folder
   is written and synced, renamed onto it, and the folder is synced then.
2. A write is one visit to a worker thread, from opening to syncing; one of a stream is one
   visit for each gathered chunk. At most `concurrency` are under way at once.
3. Writes to one path happen one after the other, in the order of asking: the last one stays.
4. Nothing that was enqueued is lost in silence: leaving the block finishes it, also when the
   block is cancelled, and what failed is told.
5. Folders are made when they are missing, once, and anew if somebody took them away.
"""

import os
import secrets
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import trio

from custosd.flow.background import block_nursery
from custosd.flow.single_flight import fresh
from custosd.flow.streams import iterated

Data = bytes | AsyncIterable[bytes]


class FileNotWritten(Exception):
    """The file at `path` was not written, or nobody can tell; its cause says why, if known."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} was not written: {why}")
        self.path = path


@dataclass(eq=False, slots=True)
class EnqueuedWrite:
    """A write in the background; made by `FileWriter.enqueue`."""

    path: Path
    error: Exception | None = None
    asked: bool = False
    ended: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=lambda: trio.CancelScope(shield=True))

    async def wait(self) -> None:
        """Return when the file is durable. Raises what the write raised, each time anew.

        Who waits takes the error over: it is not told again at the end of the block.
        """
        self.asked = True
        try:
            await self.ended.wait()
        except BaseException:
            self.asked = False
            raise
        if self.error is not None:
            raise fresh(self.error)


class FileWriter:
    """Writes files; `async with FileWriter() as writer` opens it.

    `room` writes at most are enqueued and not ended; who enqueues beyond that waits. Leaving
    the block, for whatever reason, waits for all of them, not to be cancelled, for at most
    `drain_timeout_s`; then it raises an `ExceptionGroup` of those errors that nobody asked for
    (at most `most_errors` are kept; `written`, `failed` and `folders_made` are counters).
    What is still under way by then is given up, as `FileNotWritten`.
    """

    def __init__(
        self,
        *,
        concurrency: int = 10,
        room: int = 1000,
        chunk_bytes: int = 1 << 20,
        drain_timeout_s: float = 30.0,
        most_errors: int = 100,
    ) -> None:
        self.written = self.failed = 0
        self._threads = trio.CapacityLimiter(concurrency)
        self._room = trio.CapacityLimiter(room)
        self._chunk_bytes = chunk_bytes
        self._drain_timeout_s = drain_timeout_s
        self._most_errors = most_errors
        self._folders = _Folders()
        self._turns = _Turns()
        self._enqueued: dict[EnqueuedWrite, None] = {}
        self._failed: list[EnqueuedWrite] = []
        self._open = False
        self._changed = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery
        self._block: AbstractAsyncContextManager[None]

    @property
    def folders_made(self) -> int:
        """How many folders did not exist, and were made."""
        return self._folders.made

    @property
    def enqueued(self) -> int:
        """How many enqueued writes have not ended."""
        return len(self._enqueued)

    async def __aenter__(self) -> Self:
        self._block = self._opened()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, trace)

    async def write(self, path: Path | str, data: Data) -> None:
        """Write the file in this task, and return when it is durable.

        Waits for earlier writes to the path, and for a place. Cancelled before its thread has
        begun, or between two chunks of a stream, nothing is written; a thread that has begun
        finishes first. Raises `OSError`, the stream's own errors, `FileNotWritten` outside
        the block.
        """
        path = self._admitted(path)
        await self._in_turn(path, data, self._turns.join(path), abandon=False)

    async def enqueue(self, path: Path | str, data: Data) -> EnqueuedWrite:
        """Have the file written in the background; return when there was room for it.

        Cancelled, it was not enqueued. A stream is iterated in the background and closed.
        """
        path = self._admitted(path)
        write = EnqueuedWrite(path)
        await self._room.acquire_on_behalf_of(write)
        if not self._open:
            self._room.release_on_behalf_of(write)
            raise FileNotWritten(path, "the writer's block was left before there was room")
        self._enqueued[write] = None
        self._nursery.start_soon(self._run, write, data, self._turns.join(path))
        return write

    def _admitted(self, path: Path | str) -> Path:
        if not self._open:
            raise FileNotWritten(Path(path), "the writer is not open; write inside its block")
        # Two spellings of one path are one path, as far as that can be told without looking.
        return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would look

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        async with block_nursery("the file writer's block was left") as nursery:
            self._nursery = nursery
            self._open = True
            try:
                yield
            except BaseException as error:
                if failures := await self._finish():
                    message = f"the block failed, and {self.failed} files were not written"
                    raise BaseExceptionGroup(message, [error, *failures]) from None
                raise
            else:
                if failures := await self._finish():
                    raise ExceptionGroup(f"{self.failed} files were not written", failures)

    async def _finish(self) -> list[Exception]:
        self._open = False
        with trio.move_on_after(self._drain_timeout_s, shield=True):
            await self._until_none_is_enqueued()
        for write in self._enqueued:
            write.scope.cancel("the file writer's time to finish is over")
        with trio.CancelScope(shield=True):
            await self._until_none_is_enqueued()
        return [each.error for each in self._failed if each.error is not None and not each.asked]

    async def _until_none_is_enqueued(self) -> None:
        while self._enqueued:
            await self._changed.park()

    async def _run(self, write: EnqueuedWrite, data: Data, turn: trio.Event) -> None:
        try:
            # Its scope is shielded: the block's cancellation does not reach it, `_finish` does.
            with write.scope:
                await self._in_turn(write.path, data, turn, abandon=True)
            if write.scope.cancelled_caught:
                raise FileNotWritten(  # noqa: TRY301 - one way out for all errors
                    write.path, f"it was under way {self._drain_timeout_s:g} s after the block"
                )
        except Exception as error:  # noqa: BLE001 - handed to who asks, or raised by the block
            write.error = error
            self._keep_failed(write)
        finally:
            self._room.release_on_behalf_of(write)
            del self._enqueued[write]
            write.ended.set()
            self._changed.unpark_all()

    def _keep_failed(self, write: EnqueuedWrite) -> None:
        self.failed += 1
        self._failed = [each for each in self._failed if not each.asked]
        if not write.asked and len(self._failed) < self._most_errors:
            self._failed.append(write)

    async def _in_turn(self, path: Path, data: Data, turn: trio.Event, *, abandon: bool) -> None:
        temporary = _Temporary(path, self._folders)
        in_thread = partial(
            trio.to_thread.run_sync, limiter=self._threads, abandon_on_cancel=abandon
        )
        try:
            await turn.wait()
            if isinstance(data, bytes):
                await in_thread(temporary.write_whole, data)
            else:
                await self._write_stream(temporary, data, in_thread)
            self.written += 1
        except BaseException:
            # A thread that was left behind sees it, and does not rename.
            temporary.abandoned = True
            raise
        finally:
            self._turns.leave(path, turn)

    async def _write_stream(
        self,
        temporary: "_Temporary",
        data: AsyncIterable[bytes],
        in_thread: Callable[..., Awaitable[None]],
    ) -> None:
        gathered = bytearray()
        try:
            async with iterated(data) as chunks:
                async for chunk in chunks:
                    gathered += chunk
                    if len(gathered) >= self._chunk_bytes:
                        await in_thread(temporary.write, bytes(gathered))
                        gathered.clear()
            await in_thread(temporary.commit, bytes(gathered))
        except BaseException:
            temporary.abandoned = True
            with trio.move_on_after(_DISCARD_S, shield=True):
                await trio.to_thread.run_sync(temporary.discard, abandon_on_cancel=True)
            raise


# Closing and unlinking a temporary file; a disk that takes longer does not answer at all.
_DISCARD_S = 5.0


class _Turns:
    # Who writes to a path next: in the order of asking, whenever each one's task begins.
    def __init__(self) -> None:
        self._rows: dict[Path, dict[trio.Event, None]] = {}

    def join(self, path: Path) -> trio.Event:
        row = self._rows.setdefault(path, {})
        turn = trio.Event()
        row[turn] = None
        if len(row) == 1:
            turn.set()
        return turn

    def leave(self, path: Path, turn: trio.Event) -> None:
        row = self._rows[path]
        del row[turn]
        if row:
            next(iter(row)).set()
        else:
            del self._rows[path]


def write_whole(
    data: bytes,
    name: str,
    folder: int,
    *,
    mode: int,
    group: int = -1,
    beside: int | None = None,
) -> None:
    """Put one file there whole and durably, for those who know its folder; blocks as disks do.

    `folder` is the descriptor of the open folder that it appears in as `name`; `beside` that of
    the one it is written in first, on the same disk: the same, where none is given. Nobody can
    read more of it than `mode` says, at any time; whatever the umask, that is its mode, and
    `group` (-1: as it comes) its group. No link is followed. Raises `OSError`, and the old file
    stands then, without litter, unless only the last step failed: the syncing of the folder.
    """
    beside = folder if beside is None else beside
    temporary = f".{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, _NEW_FILE, 0o600, dir_fd=beside)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            if group != -1:
                os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=beside, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=beside)
        raise
    os.fsync(folder)


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Temporary:
    # A file on its way to `path`. All but `abandoned` is touched in worker threads alone.
    def __init__(self, path: Path, folders: "_Folders") -> None:
        self.abandoned = False
        self._path = path
        self._folders = folders
        self._temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        self._file: BinaryIO | None = None

    def write_whole(self, data: bytes) -> None:
        try:
            self.commit(data)
        except BaseException:
            self.discard()
            raise

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._folders.create(self._temporary)
            if self.abandoned:
                # Given up before there was a file: nobody but this thread knows of it.
                self.discard()
                raise FileNotWritten(self._path, "it was given up")
        self._file.write(data)

    def commit(self, rest: bytes) -> None:
        self.write(rest)
        assert self._file is not None  # noqa: S101 - for the type checkers: `write` opened it
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self.abandoned:
            raise FileNotWritten(self._path, "it was given up")
        self._temporary.replace(self._path)
        _sync_folder(self._path.parent)

    def discard(self) -> None:
        if self._file is not None:
            # What cannot be flushed is thrown away all the same.
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)


class _Folders:
    # Makes folders, and knows those that are there for good. Used by worker threads, and no lock
    # is held while the disk is asked: a folder whose disk hangs holds up nobody else's. Who
    # finds a folder that another thread is still making makes it durable too.
    def __init__(self) -> None:
        self.made = 0
        self._known: set[Path] = set()
        self._making: dict[Path, int] = {}
        self._lock = threading.Lock()

    def create(self, path: Path) -> BinaryIO:
        if path.parent in self._known:
            try:
                return _create(path)
            except FileNotFoundError:
                self._known.discard(path.parent)
        self._make(path.parent)
        with self._lock:
            if len(self._known) >= _MOST_KNOWN_FOLDERS:
                self._known.clear()
            self._known.add(path.parent)
        return _create(path)

    def _make(self, folder: Path) -> None:
        # In this order: one that is durable by the second look may be in the making at the first.
        if folder.is_dir() and folder not in self._making:
            return
        self._make(folder.parent)
        self._count(folder, 1)
        try:
            with suppress(FileExistsError):
                folder.mkdir()
                with self._lock:
                    self.made += 1
            _sync_folder(folder.parent)
        finally:
            self._count(folder, -1)

    def _count(self, folder: Path, more: int) -> None:
        with self._lock:
            self._making[folder] = self._making.get(folder, 0) + more
            if not self._making[folder]:
                del self._making[folder]


_MOST_KNOWN_FOLDERS = 10_000


def _create(path: Path) -> BinaryIO:
    return path.open("xb")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
