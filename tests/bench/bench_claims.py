"""What concurrency can be worth, and ours is: schedules, time limits, batches, hedges, files.

    python tests/bench/bench_claims.py [--quick]

1. Schedules, in virtual time: what is often said of going from one at a time to many at once,
   each with its bound max(sum / c, longest) and what `flow.parallel` makes of it; then the mean
   over many draws of lognormal latencies, beside the batches that wait for their slowest.
2. Time limits, in real time: of calls that would never end all end, and how late, beside how
   late the loop is in the same second; for trio's own, ours, and asyncio's. Calls in threads
   cannot be ended: how many are left behind is counted.
3. The batcher: items in a batch, and what waiting for others adds, against its bound.
4. Hedging, in virtual time: a few stragglers, what the second attempts cut off and what they cost.
5. Files of 2 kB, durable: against the same system calls by so many plain threads.
"""

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import outcome  # noqa: E402 - after the path
import trio  # noqa: E402
import trio.testing  # noqa: E402
from callers import bound_s, lognormal_s  # noqa: E402
from measures import Lateness, load, quantile  # noqa: E402

from custosd.flow.batcher import Batcher  # noqa: E402
from custosd.flow.file_writer import FileWriter  # noqa: E402
from custosd.flow.hedge import hedged  # noqa: E402
from custosd.flow.parallel import TooSlow, run_parallel  # noqa: E402
from custosd.flow.retry import RetryBudget  # noqa: E402
from custosd.flow.threads import Threads  # noqa: E402

QUICK = "--quick" in sys.argv
DRAWS = 20 if QUICK else 200
TIMEOUTS = 1_000
ITEMS = 200 if QUICK else 1_000
HEDGED = 2_000 if QUICK else 20_000
FILES = 100 if QUICK else 500
WRITERS = 10

CLAIMS = (
    ("100 calls of 2.5 s, 10 at once", [2.5] * 100, 10, 10.0),
    ("a batch of 120 s, 6 at once", [5.0] * 24, 6, 6.0),
    ("10 workflows of 30 s, 7 at once", [30.0] * 10, 7, 300 / 45),
    ("5 analyses of 4 s, all at once", [4.0] * 5, 5, 5.0),
    ("5 calls of 2 s, 3 at once", [2.0] * 5, 3, 2.5),
    ("100 tasks of 3 s, 10 at once", [3.0] * 100, 10, 10.0),
)
"""What is said of how many times faster it gets."""


def virtual(fn: Callable[..., Awaitable[Any]], *args: object) -> Any:
    return trio.run(fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))


# --- 1: schedules ----------------------------------------------------------------------------


async def ours_s(delays_s: Sequence[float], concurrency: int) -> float:
    began = trio.current_time()
    await run_parallel([partial(trio.sleep, each) for each in delays_s], max_concurrent=concurrency)
    return trio.current_time() - began


async def batches_s(delays_s: Sequence[float], concurrency: int) -> float:
    began = trio.current_time()
    for start in range(0, len(delays_s), concurrency):
        async with trio.open_nursery() as nursery:
            for each in delays_s[start : start + concurrency]:
                nursery.start_soon(trio.sleep, each)
    return trio.current_time() - began


def schedules() -> None:
    print("schedules, virtual time")
    print(
        f"  {'':<34} {'one by one':>11} {'bound s':>8} {'ours s':>8} {'bound ÷ it':>11}"
        f" {'faster':>7} {'said':>6}"
    )
    for name, delays_s, concurrency, said in CLAIMS:
        bound, ours = bound_s(delays_s, concurrency), virtual(ours_s, delays_s, concurrency)
        print(
            f"  {name:<34} {sum(delays_s):>11.1f} {bound:>8.2f} {ours:>8.2f}"
            f" {bound / ours:>11.3f} {sum(delays_s) / ours:>7.2f} {said:>6.2f}"
        )
    print(
        f"  100 calls of a mean of 2.5 s, lognormal, {DRAWS} draws: means of bound ÷ measured"
        "\n"
        f"  {'':<34} {'ours':>8} {'lowest':>8} {'batches':>8} {'ours faster':>12}"
        f" {'batches faster':>15}"
    )
    for concurrency in (10, 100):
        for sigma in (0.5, 0.8, 1.0):
            ours, lots, fast, slow = [], [], [], []
            for seed in range(DRAWS):
                delays_s = lognormal_s(100, 2.5, sigma, seed)
                bound = bound_s(delays_s, concurrency)
                took, batched = (
                    virtual(side, delays_s, concurrency) for side in (ours_s, batches_s)
                )
                ours.append(bound / took)
                lots.append(bound / batched)
                fast.append(sum(delays_s) / took)
                slow.append(sum(delays_s) / batched)
            print(
                f"  {f'c={concurrency} sigma={sigma}':<34} {statistics.fmean(ours):>8.3f}"
                f" {min(ours):>8.3f} {statistics.fmean(lots):>8.3f} {statistics.fmean(fast):>12.2f}"
                f" {statistics.fmean(slow):>15.2f}",
                flush=True,
            )


# --- 2: time limits --------------------------------------------------------------------------


def limits_s() -> list[float]:
    drawn = random.Random(1)
    return [drawn.uniform(0.5, 1.5) for _ in range(TIMEOUTS)]


Late = tuple[int, list[float], list[float]]


async def fail_after() -> Late:
    over_s: list[float] = []

    async def one(limit_s: float) -> None:
        began = time.perf_counter()
        try:
            with trio.fail_after(limit_s):
                await trio.sleep_forever()
        except trio.TooSlowError:
            over_s.append(time.perf_counter() - began - limit_s)

    return await watched(one, over_s)


async def watched(one: Callable[[float], Awaitable[None]], over_s: list[float]) -> Late:
    """Call it with each limit; `over_s` is what it wrote down."""
    late = Lateness()
    async with trio.open_nursery() as watching:
        await watching.start(late.watch)
        async with trio.open_nursery() as nursery:
            for limit_s in limits_s():
                nursery.start_soon(one, limit_s)
        watching.cancel_scope.cancel()
    return len(over_s), over_s, late.late_s


async def by_parallel() -> Late:
    over_s: list[float] = []

    async def one(limit_s: float) -> None:
        async def never() -> None:
            began = time.perf_counter()
            try:
                await trio.sleep_forever()
            finally:
                over_s.append(time.perf_counter() - began - limit_s)

        [ended] = await run_parallel([never], item_timeout_s=limit_s)
        if not (isinstance(ended, outcome.Error) and isinstance(ended.error, TooSlow)):
            over_s.pop()

    return await watched(one, over_s)


async def asyncio_timeouts() -> Late:
    over_s: list[float] = []
    late_s: list[float] = []

    async def one(limit_s: float) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.Event().wait()
        except TimeoutError:
            over_s.append(time.perf_counter() - began - limit_s)

    async def watch() -> None:
        while True:
            due_at = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            late_s.append(time.perf_counter() - due_at)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*map(one, limits_s()))
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return len(over_s), over_s, late_s


async def in_threads() -> tuple[int, int]:
    """Callers of calls that hang: how many were let go in time, how many threads hang still."""
    threads, let_go = Threads(20), 0

    async def one() -> None:
        nonlocal let_go
        with trio.move_on_after(0.05) as scope:
            await threads.run(partial(time.sleep, 0.5))
        let_go += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    return let_go, threads.busy


def time_limits() -> None:
    print(f"\n{TIMEOUTS} calls that never end, each with a time limit, real time")
    print(
        f"  {'':<34} {'ended':>7} {'late p50 ms':>12} {'p99 ms':>8} {'loop p99 ms':>12}"
        f" {'p99 ÷ (loop + 1 ms)':>20}"
    )
    for name, run in (
        ("trio.fail_after", partial(trio.run, fail_after)),
        ("run_parallel(item_timeout_s)", partial(trio.run, by_parallel)),
        ("asyncio.timeout", lambda: asyncio.run(asyncio_timeouts())),
    ):
        ended, over_s, late_s = run()
        p50, p99, loop = (
            quantile(values, share) * 1e3
            for values, share in ((over_s, 0.5), (over_s, 0.99), (late_s, 0.99))
        )
        print(
            f"  {name:<34} {ended / TIMEOUTS:>7.1%} {p50:>12.2f} {p99:>8.2f} {loop:>12.2f}"
            f" {p99 / (loop + 1):>20.2f}"
        )
    let_go, busy = trio.run(in_threads)
    print(
        f"  in threads that hang: {let_go} of 20 callers let go in time, {busy} threads left behind"
    )


# --- 3: batches ------------------------------------------------------------------------------


async def batching(rate_per_s: float) -> tuple[int, float, list[float]]:
    """Batches made, and for each item how long it took beyond the handling."""
    drawn, added_s = random.Random(1), list[float]()

    async def handle(items: Sequence[int]) -> list[outcome.Outcome[int]]:
        await trio.sleep(0.002)
        return [outcome.Value(item) for item in items]

    batcher = Batcher(handle, size=5, delay_s=0.1, concurrency=10)

    async def submit(item: int) -> None:
        began = time.perf_counter()
        await batcher.submit(item)
        added_s.append(time.perf_counter() - began - 0.002)

    async with trio.open_nursery() as service:
        await service.start(batcher.run)
        async with trio.open_nursery() as nursery:
            for item in range(ITEMS):
                nursery.start_soon(submit, item)
                await trio.sleep(drawn.expovariate(rate_per_s))
        batcher.stop()
    return batcher.batches, batcher.handled / batcher.batches, added_s


def batches() -> None:
    print(f"\nthe batcher, 5 items or 100 ms, {ITEMS} items, real time")
    print(
        f"  {'items a second':<34} {'batches':>8} {'mean':>6} {'added p50 ms':>13} {'most ms':>8}"
        f" {'÷ 100 ms':>9}"
    )
    for rate_per_s in (20, 200, 1_000):
        made, mean, added_s = trio.run(batching, rate_per_s)
        print(
            f"  {rate_per_s:<34} {made:>8} {mean:>6.2f} {quantile(added_s, 0.5) * 1e3:>13.1f}"
            f" {max(added_s) * 1e3:>8.1f} {max(added_s) / 0.1:>9.2f}"
        )


# --- 4: hedges -------------------------------------------------------------------------------


async def hedging(after_s: float, ratio: float) -> tuple[list[float], int]:
    """How long calls took, one after the other, 3 % stragglers; and second attempts."""
    drawn, took_s = random.Random(1), list[float]()
    budget = RetryBudget(ratio, 10)

    async def call() -> None:
        slow = drawn.random() < 0.03
        await trio.sleep(drawn.lognormvariate(0, 0.3) + (drawn.uniform(8, 20) if slow else 0))

    for _ in range(HEDGED):
        began = trio.current_time()
        await hedged(call, after_s, budget)
        took_s.append(trio.current_time() - began)
    return took_s, budget.granted


def hedges() -> None:
    print(f"\nhedging, {HEDGED} calls of about 1 s, 3 % of them 8 to 20 s longer, virtual time")
    print(f"  {'second attempt':<34} {'p50 s':>7} {'p99 s':>7} {'p99.9 s':>8} {'more calls':>11}")
    for name, after_s, ratio in (
        ("never", 1e9, 0.0),
        ("after 1.9 s, 5 % at most", 1.9, 0.05),
        ("after 1.9 s", 1.9, 1.0),
        ("after 1.2 s", 1.2, 1.0),
    ):
        took_s, more = virtual(hedging, after_s, ratio)
        print(
            f"  {name:<34} {quantile(took_s, 0.5):>7.2f} {quantile(took_s, 0.99):>7.2f}"
            f" {quantile(took_s, 0.999):>8.2f} {more / HEDGED:>11.1%}"
        )


# --- 5: files --------------------------------------------------------------------------------

CONTENT = b"x" * 2_000


def durable(path: Path) -> None:
    """The system calls that it takes, in a row."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("xb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def by_writer(folder: Path) -> None:
    async with FileWriter(concurrency=WRITERS) as writer:
        for n in range(FILES):
            await writer.enqueue(folder / f"{n}.json", CONTENT)


def by_threads(folder: Path) -> None:
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(durable, (folder / f"{n}.json" for n in range(FILES))))


def one_by_one(folder: Path) -> None:
    for n in range(FILES):
        durable(folder / f"{n}.json")


def not_durable(folder: Path) -> None:
    for n in range(FILES):
        (folder / f"{n}.json").write_bytes(CONTENT)


def files() -> None:
    print(f"\n{FILES} files of 2 kB, real time")
    print(f"  {'':<34} {'us each':>9} {'÷ threads':>10}")
    found: dict[str, list[float]] = {}
    sides: dict[str, Callable[[Path], object]] = {
        f"{WRITERS} threads, the same calls": by_threads,
        f"FileWriter of {WRITERS}": lambda folder: trio.run(by_writer, folder),
        "one by one, the same calls": one_by_one,
        "one by one, not durable": not_durable,
    }
    for _ in range(3):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory(prefix="custosd-bench-") as folder:
                began = time.perf_counter()
                side(Path(folder))
                found.setdefault(name, []).append((time.perf_counter() - began) / FILES * 1e6)
    threads, *_ = (statistics.median(took) for took in found.values())
    for name, took in found.items():
        us = statistics.median(took)
        print(f"  {name:<34} {us:>9.0f} {us / threads:>10.2f}")


def main() -> None:
    print(load())
    schedules()
    time_limits()
    batches()
    hedges()
    files()


if __name__ == "__main__":
    main()
