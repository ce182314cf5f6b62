"""Following 10,000 files, against bare system calls: `python tests/bench/bench_tailing.py`.

All are ratios within one run: the work of the source over the least that any follower
must ask of the kernel for the same (`lstat` of each file; open, read, close of each file
that changed; one read of a large file's tail). The formats' own parsing is kept near
nothing by a tiny format. Bytes a file are traced allocations, everything included.
"""

import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.adapters.transcripts.tiny_formats import TINY_FORMATS

from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.source import SourceSettings, TranscriptSource, open_source
from custosd.adapters.transcripts.tail import read_growth
from custosd.ports import Growth

ROUNDS = 5
FOLDERS = 100
LINE = b"{say some words of an agent, about as long as a short message is, and no longer}\n"
LIMITS = ReadLimits()
SETTINGS = SourceSettings(settle_s=0.0, rescan_s=1e9)


def best(work: Callable[[], object]) -> float:
    """The shortest of some rounds, in seconds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def make_files(root: Path, count: int) -> list[Path]:
    paths = []
    for i in range(count):
        folder = root / f"-home-someone-a-project-{i % FOLDERS:03}"
        folder.mkdir(exist_ok=True)
        path = folder / f"0198c1f2-5a3e-7b3c-9d4e-{i:012}.jsonl"
        path.write_bytes(b"{open session-%d}\n" % i + LINE * 3)
        paths.append(path)
    return paths


def append(paths: Sequence[Path]) -> None:
    for path in paths:
        with path.open("ab") as file:
            file.write(LINE)


async def grow(source: TranscriptSource, count: int) -> list[Growth]:
    growths: list[Growth] = []
    while len(growths) < count:
        growths += await source.next_batch()
    return growths


def bare_stat(paths: Sequence[Path]) -> float:
    names = [str(path) for path in paths]

    def work() -> None:
        for name in names:
            os.lstat(name)

    return best(work)


def bare_read(paths: Sequence[Path]) -> float:
    names = [str(path) for path in paths]

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            os.pread(fd, len(LINE), os.fstat(fd).st_size - len(LINE))
            os.close(fd)

    return best(work)


async def bench_fleet(root: Path, count: int) -> None:
    paths = make_files(root, count)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    async with open_source([Root(root)], (), TINY_FORMATS, SETTINGS) as source:
        growths = await grow(source, count)
        positions = [growth.position for growth in growths]
        del growths
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        held -= before + sum(map(sys.getsizeof, positions)) + sys.getsizeof(positions)
        print(f"{count:>6} files: {held / count:6.0f} bytes held an idle file (aim: <= 1024)")
    async with open_source([Root(root)], positions, TINY_FORMATS, SETTINGS) as source:
        await bench_idle(source, paths)
        await bench_changes(source, paths)


async def bench_idle(source: TranscriptSource, paths: Sequence[Path]) -> None:
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        await source._rescan()
        times.append(time.process_time() - began)
    stat_s = bare_stat(paths)
    print(
        f"        rescan, nothing changed: {min(times) * 1e3:7.1f} ms of CPU"
        f" = {min(times) / stat_s:5.1f} x lstat of each"
        f" = {min(times) / 60 * 100:.2f} % of a core at one a minute"
    )
    began = time.process_time()
    with trio.move_on_after(1.0):
        await source.next_batch()
    spent = time.process_time() - began
    print(f"        between rescans: {spent * 100:.3f} % of a core")


async def bench_changes(source: TranscriptSource, paths: Sequence[Path]) -> None:
    for changed in (10, 100, 1_000):
        times = []
        some = paths[:: max(1, len(paths) // changed)][:changed]
        for _ in range(ROUNDS):
            append(some)
            began = time.perf_counter()
            await grow(source, len(some))
            times.append(time.perf_counter() - began)
        read_s = bare_read(some)
        print(
            f"        {len(some):>5} changed: {min(times) / len(some) * 1e6:6.0f} us each"
            f" = {min(times) / read_s:5.1f} x open, fstat, pread, close of each"
        )


def bench_large(root: Path) -> None:
    path = root / "large.jsonl"
    for size in (1 << 20, 1 << 26, 2 << 30):
        path.write_bytes(b"{open s}\n")
        os.truncate(path, size)
        with path.open("ab") as file:
            file.write(b"\n" + LINE)
        reading = read_growth(None, str(path), TINY_FORMATS, LIMITS)
        while reading.more:
            reading = read_growth(reading.cursor, str(path), TINY_FORMATS, LIMITS)
        cursor = reading.cursor
        append([path])
        tail_s = best(lambda at=cursor: read_growth(at, str(path), TINY_FORMATS, LIMITS))
        bare_s = bare_read([path])
        print(
            f"{size >> 20:>6} MiB file: its tail in {tail_s * 1e6:5.0f} us"
            f" = {tail_s / bare_s:5.1f} x open, fstat, pread, close"
        )
        path.unlink()


async def main() -> None:
    for count in (1_000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            await bench_fleet(Path(folder), count)
    with tempfile.TemporaryDirectory() as folder:
        bench_large(Path(folder))


if __name__ == "__main__":
    trio.run(main)
