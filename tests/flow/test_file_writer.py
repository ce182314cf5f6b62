import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.file_writer import EnqueuedWrite, FileNotWritten, FileWriter, write_whole


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }


class Chunks:
    """A stream that waits for `go` after its first chunk."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.first_given = trio.Event()
        self.go = trio.Event()
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self.chunks:
                yield chunk
                self.first_given.set()
                await self.go.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


async def test_a_file_is_there_whole_when_write_returns(tmp_path: Path):
    async with FileWriter() as writer:
        await writer.write(tmp_path / "a", b"one")
        assert files(tmp_path) == {"a": b"one"}
        await writer.write(str(tmp_path / "a"), b"")
        assert files(tmp_path) == {"a": b""}
        task = await writer.enqueue(tmp_path / "b", b"two")
        await task.wait()
        assert (tmp_path / "b").read_bytes() == b"two"
        assert (writer.written, writer.failed, writer.enqueued) == (3, 0, 0)


async def test_file_and_folder_are_synced_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = target.stat().st_size if target.is_file() else None
        steps.append(f"sync {'file of ' + str(size) if size is not None else target.name}")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        steps.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    async with FileWriter() as writer:
        await writer.write(tmp_path / "new" / "a", b"12345")
    made = f"sync {tmp_path.name}"
    assert steps == [made, "sync file of 5", "rename to a", "sync new"]


async def test_a_stream_is_written_in_gathered_chunks(tmp_path: Path):
    async def stream() -> AsyncGenerator[bytes, None]:
        for number in range(1000):
            yield b"%03d" % number

    async with FileWriter(chunk_bytes=100) as writer:
        await writer.write(tmp_path / "a", stream())
        assert (tmp_path / "a").read_bytes() == b"".join(b"%03d" % n for n in range(1000))

        async def nothing() -> AsyncGenerator[bytes, None]:
            return
            yield b""

        await writer.write(tmp_path / "empty", nothing())
    assert files(tmp_path)["empty"] == b""


async def test_a_stream_that_fails_leaves_the_old_content_and_no_litter(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    stream = Chunks(b"new" * 100, b"new", error=ValueError("stream"))
    stream.go.set()
    async with FileWriter(chunk_bytes=10) as writer:
        with pytest.raises(ValueError, match="stream"):
            await writer.write(tmp_path / "a", stream())
    assert files(tmp_path) == {"a": b"old"}
    assert stream.closed


async def test_a_write_that_fails_leaves_no_litter(tmp_path: Path):
    (tmp_path / "a").mkdir()
    async with FileWriter() as writer:
        with pytest.raises(IsADirectoryError):
            await writer.write(tmp_path / "a", b"data")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]  # noqa: ASYNC240 - a test may


async def test_folders_are_made_once_and_anew_if_somebody_took_them_away(tmp_path: Path):
    deep = tmp_path / "x" / "y"
    async with FileWriter() as writer:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(writer.write, deep / str(number), b"")
        assert writer.folders_made == 2
        shutil.rmtree(deep)
        await writer.write(deep / "again", b"data")
        assert writer.folders_made == 3
    assert files(tmp_path) == {"x/y/again": b"data"}


async def test_the_last_write_to_a_path_stays(tmp_path: Path):
    async with FileWriter(concurrency=10) as writer:
        for number in range(100):
            path = tmp_path / ("a" if number % 2 else "x/../a")
            await writer.enqueue(path, b"%d" % number)
    assert (tmp_path / "a").read_bytes() == b"99"
    assert writer.written == 100


async def test_one_that_gives_up_its_turn_lets_nobody_overtake(tmp_path: Path):
    first = Chunks(b"first")
    async with FileWriter() as writer:
        one = await writer.enqueue(tmp_path / "a", first())
        await first.first_given.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.write, tmp_path / "a", b"given up")
            await trio.testing.wait_all_tasks_blocked()
            last = await writer.enqueue(tmp_path / "a", b"last")
            nursery.cancel_scope.cancel()
        await writer.write(tmp_path / "b", b"other paths do not wait")
        assert not last.ended.is_set()
        first.go.set()
        await one.wait()
    assert files(tmp_path) == {"a": b"last", "b": b"other paths do not wait"}


async def test_no_more_threads_are_busy_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    busy, most = set[int](), 0
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        nonlocal most
        busy.add(descriptor)
        most = max(most, len(busy))
        fsync(descriptor)
        busy.discard(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    async with FileWriter(concurrency=3) as writer:
        for number in range(60):
            await writer.enqueue(tmp_path / str(number), b"data")
    assert 1 <= most <= 3


async def test_leaving_finishes_what_was_enqueued_also_when_cancelled(tmp_path: Path):
    stream = Chunks(b"one, ", b"two")
    with trio.CancelScope() as scope:
        async with FileWriter() as writer, trio.open_nursery() as nursery:
            for number in range(30):
                await writer.enqueue(tmp_path / str(number), b"data")
            await writer.enqueue(tmp_path / "stream", stream())
            await stream.first_given.wait()
            stream.go.set()
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught
    assert len(files(tmp_path)) == 31
    assert files(tmp_path)["stream"] == b"one, two"


async def test_what_failed_and_was_not_asked_for_is_raised_at_the_end(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.RaisesGroup(IsADirectoryError, match="2 files were not written"):
        async with FileWriter() as writer:
            await writer.enqueue(tmp_path / "a", b"")
            asked = await writer.enqueue(tmp_path / "b", b"")
            for _ in range(2):
                with pytest.raises(IsADirectoryError):
                    await asked.wait()
            await writer.enqueue(tmp_path / "good", b"")
    assert (writer.written, writer.failed) == (1, 2)
    with pytest.RaisesGroup(KeyError, IsADirectoryError):
        async with FileWriter() as writer:
            await writer.enqueue(tmp_path / "a", b"")
            raise KeyError


async def test_finishing_has_its_time(tmp_path: Path):
    never = Chunks(b"never")
    with pytest.RaisesGroup(pytest.RaisesExc(FileNotWritten, match=r"a was not written.*0\.05 s")):
        async with FileWriter(drain_timeout_s=0.05) as writer:
            await writer.enqueue(tmp_path / "a", never())
            await writer.enqueue(tmp_path / "b", b"in time")
    assert files(tmp_path) == {"b": b"in time"}
    assert never.closed
    with pytest.raises(FileNotWritten, match="not open"):
        await writer.write(tmp_path / "late", b"")


async def test_a_file_that_was_opened_too_late_is_thrown_away_by_who_opened_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stream is given up while its thread hangs in opening: nobody else can clean up."""
    go, removed = threading.Event(), threading.Event()
    opens, removes = Path.open, Path.unlink
    opened: list[Any] = []

    def opened_late(path: Path, *args: Any, **how: Any) -> Any:
        assert go.wait(10)
        opened.append(opens(path, *args, **how))
        return opened[-1]

    def removed_at_last(path: Path, **how: Any) -> None:
        removes(path, **how)
        removed.set()

    monkeypatch.setattr(Path, "open", opened_late)
    monkeypatch.setattr(Path, "unlink", removed_at_last)

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"data"

    with pytest.RaisesGroup(FileNotWritten):
        async with FileWriter(drain_timeout_s=0.05) as writer:
            await writer.enqueue(tmp_path / "a", chunks())
    go.set()
    assert await trio.to_thread.run_sync(removed.wait, 5)
    assert opened[0].closed
    assert files(tmp_path) == {}


async def test_a_folder_that_cannot_be_made_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    go, hangs = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    mkdir = os.mkdir

    def made(path: Path, *args: Any) -> None:
        if Path(path).name == "hung":
            token.run_sync_soon(hangs.set)
            assert go.wait(10)
        mkdir(path, *args)

    monkeypatch.setattr(os, "mkdir", made)
    async with FileWriter() as writer:
        hung = await writer.enqueue(tmp_path / "hung" / "a", b"one")
        await hangs.wait()
        try:
            with trio.fail_after(5):
                other = await writer.enqueue(tmp_path / "other" / "a", b"two")
                await other.wait()
        finally:
            go.set()
        await hung.wait()
    assert files(tmp_path) == {"hung/a": b"one", "other/a": b"two"}
    assert writer.folders_made == 2


async def test_who_finds_a_folder_that_is_still_being_made_makes_it_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    go, hangs = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    fsync, synced = os.fsync, list[str]()

    def synced_late(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        if target == tmp_path and not hangs.is_set():
            token.run_sync_soon(hangs.set)
            assert go.wait(10)
        fsync(descriptor)
        synced.append(target.name)

    monkeypatch.setattr(os, "fsync", synced_late)
    async with FileWriter() as writer:
        first = await writer.enqueue(tmp_path / "new" / "a", b"one")
        await hangs.wait()
        try:
            with trio.fail_after(5):
                second = await writer.enqueue(tmp_path / "new" / "b", b"two")
                await second.wait()
            assert tmp_path.name in synced
        finally:
            go.set()
        await first.wait()
    assert writer.folders_made == 1


async def test_what_there_was_no_time_for_is_told_also_when_cancelled(tmp_path: Path):
    async def block() -> None:
        with trio.CancelScope() as scope:
            async with FileWriter(drain_timeout_s=0.05) as writer:
                await writer.enqueue(tmp_path / "a", Chunks(b"never")())
                scope.cancel()
                await trio.sleep_forever()

    with pytest.RaisesGroup(FileNotWritten):
        await block()
    assert files(tmp_path) == {}


async def test_a_full_queue_holds_back_who_enqueues(tmp_path: Path):
    stream = Chunks(b"")
    async with FileWriter(room=1) as writer:
        await writer.enqueue(tmp_path / "a", stream())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.enqueue, tmp_path / "b", b"b")
            await trio.testing.wait_all_tasks_blocked()
            assert writer.enqueued == 1
            nursery.cancel_scope.cancel()
        stream.go.set()
    assert list(files(tmp_path)) == ["a"]


async def test_cancelled_at_any_checkpoint_what_was_enqueued_is_there_and_no_litter(
    tmp_path: Path,
):
    enqueued: list[EnqueuedWrite] = []
    round_number = 0

    async def scenario() -> None:
        nonlocal round_number
        enqueued.clear()
        round_number += 1

        async def stream() -> AsyncGenerator[bytes, None]:
            yield b"da"
            await trio.lowlevel.checkpoint()
            yield b"ta"

        async with FileWriter(concurrency=2, room=3, chunk_bytes=1) as writer:
            for number in range(4):
                path = tmp_path / str(round_number) / str(number)
                enqueued.append(await writer.enqueue(path, stream() if number == 1 else b"data"))
            await writer.write(tmp_path / str(round_number) / "own", b"data")
            await writer.write(tmp_path / str(round_number) / "own stream", stream())

    def check() -> None:
        assert set(files(tmp_path).values()) <= {b"data"}
        assert not list(tmp_path.rglob("*.tmp"))
        for each in enqueued:
            assert each.error is None
            assert each.path.read_bytes() == b"data"

    assert await cancel_at_every_checkpoint(scenario, check) > 10


CRASHES = """
import sys, trio
from custosd.flow.file_writer import FileWriter

async def main():
    async with FileWriter() as writer:
        for number in range(10 ** 6):
            await writer.write(sys.argv[1], bytes([number % 2]) * 300_000)
            print(number, flush=True)

trio.run(main)
"""


def test_killed_in_the_midst_a_process_leaves_a_whole_file(tmp_path: Path):
    for killed_after in (1, 2, 5, 9):
        path = tmp_path / "a"
        with subprocess.Popen(
            [sys.executable, "-c", CRASHES, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": "daemon"},
            cwd=Path(__file__).parents[2],
        ) as process:
            assert process.stdout is not None
            for _ in range(killed_after):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert content in (b"\0" * 300_000, b"\1" * 300_000)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.binary(max_size=5), st.booleans(), st.booleans()),
        max_size=12,
    ),
    st.integers(1, 3),
)
def test_each_path_ends_with_what_was_asked_for_last(
    plan: list[tuple[int, bytes, bool, bool]], concurrency: int
):
    async def main(folder: Path) -> None:
        async def stream(data: bytes) -> AsyncGenerator[bytes, None]:
            for byte in data:
                yield bytes([byte])

        async with FileWriter(concurrency=concurrency, chunk_bytes=2) as writer:
            for name, data, streamed, waits in plan:
                path = folder / str(name)
                what = stream(data) if streamed else data
                if waits:
                    await writer.write(path, what)
                else:
                    await writer.enqueue(path, what)
        assert files(folder) == {str(name): data for name, data, *_ in plan}
        assert writer.written == len(plan)

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder))


def test_a_file_for_a_known_folder_is_whole_durable_and_as_readable_as_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "new").mkdir()
    folder, beside = (os.open(tmp_path / name, os.O_RDONLY) for name in ("new", "tmp"))
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        mode = oct(target.stat().st_mode & 0o777)
        steps.append(f"sync {mode} in {target.parent.name}" if target.is_file() else target.name)
        fsync(descriptor)

    def renamed(source: str, target: str, **where: int) -> None:
        steps.append(f"rename to {target}")
        rename(source, target, **where)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    try:
        write_whole(b"data", "a", folder, mode=0o640, group=os.getegid(), beside=beside)
        assert steps == ["sync 0o640 in tmp", "rename to a", "new"]
        (tmp_path / "new" / "b").mkdir()
        with pytest.raises(OSError, match="directory"):
            write_whole(b"data", "b", folder, mode=0o600)
    finally:
        os.close(folder)
        os.close(beside)
    assert files(tmp_path) == {"new/a": b"data"}
