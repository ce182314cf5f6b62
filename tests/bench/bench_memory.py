"""Whether the toolkit's constructs keep anything, and what many parked operations cost.

    python tests/bench/bench_memory.py [--quick] [--only NAME]

1. Each construct is executed a million times (--quick: 100,000) in a process of its own, some
   with failures and cancellations. The slope of the resident memory after the first third is
   the median of all pairs' slopes (Theil and Sen), with its 95 % interval; `level` means that the
   interval includes 0. What there is of tasks, channels, streams, descriptors, threads, borrowed
   places is counted before and after: `left`. Then the same with a leak made on purpose, which
   has to be found, or the bench fails: a slope that finds nothing says nothing.
2. Parked operations: resident bytes each, time to start and to cancel all of them, how late a
   task of the loop wakes while they are parked. `growth` is the exponent of the whole time against
   their number from a quarter on: 1 is in proportion, 2 is its square. The floor is a bare task.
"""

import asyncio
import gc
import json
import math
import random
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import outcome  # noqa: E402 - after the path
import trio  # noqa: E402
import trio.testing  # noqa: E402
from measures import KIB, Lateness, child, load, quantile, rss_bytes, theil_sen  # noqa: E402

from custosd.flow.batcher import Batcher  # noqa: E402
from custosd.flow.bounded import as_completed  # noqa: E402
from custosd.flow.breaker import CircuitBreaker, CircuitOpen  # noqa: E402
from custosd.flow.cache import Cache  # noqa: E402
from custosd.flow.hedge import hedged  # noqa: E402
from custosd.flow.leaks import balance  # noqa: E402
from custosd.flow.monitor import Kind, Monitor, in_force, traced  # noqa: E402
from custosd.flow.parallel import run_parallel  # noqa: E402
from custosd.flow.pool import Pool  # noqa: E402
from custosd.flow.rate_limit import Rate, RateLimiter  # noqa: E402
from custosd.flow.retry import RetryBudget, RetryPolicy, retry  # noqa: E402
from custosd.flow.single_flight import SingleFlight  # noqa: E402
from custosd.flow.work_queue import WorkQueue  # noqa: E402

EXECUTIONS = 1_000_000
QUICK_EXECUTIONS = 100_000
LOOKS = 100
SLICE = 1_000
USERS = 20
PARKED = (5_000, 20_000)
WATCH_S = 1.0
LEAKED_BYTES = 100


# --- executions ------------------------------------------------------------------------------


class Meter:
    """Counts executions, and looks at the memory so often."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.done = 0
        # All of it now: what it writes down is not to grow either.
        self.rss = array("q", [0] * (LOOKS + 1))
        self.further: dict[str, float] = {}
        self._every = most // LOOKS

    def one(self) -> None:
        self.done += 1
        if self.done % self._every == 0:
            gc.collect()
            self.rss[self.done // self._every] = rss_bytes()

    def slope(self) -> tuple[float, float, float]:
        """Bytes an execution after the first third, and the interval."""
        looks = range(LOOKS // 3, LOOKS + 1)
        return theil_sen([n * self._every for n in looks], [self.rss[n] for n in looks])


async def step() -> None:
    await trio.lowlevel.checkpoint()


async def by_users(meter: Meter, use: Callable[[int], Awaitable[object]]) -> None:
    """So many tasks that execute it again and again."""

    async def user() -> None:
        for n in range(meter.most // USERS):
            await use(n)
            meter.one()

    async with trio.open_nursery() as nursery:
        for _ in range(USERS):
            nursery.start_soon(user)


async def parallel(meter: Meter) -> None:
    async def task(n: int) -> int:
        await step()
        meter.one()
        if n % 10 == 0:
            raise OSError("one in ten fails")
        return n

    for _ in range(meter.most // SLICE):
        await run_parallel([partial(task, n) for n in range(SLICE)], max_concurrent=10)


async def completed(meter: Meter) -> None:
    async def task(n: int) -> int:
        await step()
        return n

    async with as_completed(range(meter.most), task, limit=10) as ended:
        async for _ in ended:
            meter.one()


async def retried(meter: Meter) -> None:
    policy = RetryPolicy(attempts=3, first_delay_s=0, longest_delay_s=0, budget=RetryBudget(1, 100))
    failing = random.Random(1)

    async def task() -> None:
        await step()
        if failing.random() < 0.3:
            raise OSError("a third fails")

    async def use(_n: int) -> None:
        with suppress(OSError):
            await retry(task, policy)

    await by_users(meter, use)


async def pooled(meter: Meter) -> None:
    async def make() -> object:
        await step()
        return object()

    async def close(_resource: object) -> None:
        await step()

    async def use(n: int) -> None:
        with trio.CancelScope() as scope:
            async with pool.acquire():
                if n % 50 == 0:
                    scope.cancel("one in fifty is cancelled")
                await step()

    async with Pool(make, close) as pool:
        await by_users(meter, use)
        await trio.testing.wait_all_tasks_blocked()
        meter.further["beyond max"] = max(0, pool.live - 10)
    meter.further["live"] = pool.live


async def limited(meter: Meter) -> None:
    limiter = RateLimiter({"requests": Rate(1e6, 10), "tokens": Rate(1e9, 1e4)})

    async def use(n: int) -> None:
        with trio.move_on_after(0 if n % 50 == 0 else math.inf):
            await limiter.take({"requests": 1, "tokens": 300}, priority=n % 3)

    await by_users(meter, use)
    meter.further["waiting"] = limiter.waiting


async def broken(meter: Meter) -> None:
    breaker = CircuitBreaker(failures=5, open_s=0.001)

    async def call(n: int) -> None:
        await step()
        if n % 7 == 0:
            raise OSError("one in seven fails")

    async def use(n: int) -> None:
        with suppress(OSError, CircuitOpen):
            await breaker.run(partial(call, n))

    await by_users(meter, use)


async def flown(meter: Meter) -> None:
    async with trio.open_nursery() as nursery:
        flights = SingleFlight[int, None](nursery)
        await by_users(meter, lambda n: flights.run(n % 5, step))
        meter.further["flights"] = len(flights)


async def cached(meter: Meter) -> None:
    async def load_one(_key: int) -> bytes:
        await step()
        return bytes(10)

    drawn = random.Random(1)
    async with trio.open_nursery() as nursery:
        cache = Cache(nursery, load_one, ttl_s=0.01, most=100)
        await by_users(meter, lambda _n: cache.get(drawn.randrange(1_000)))


async def hedged_calls(meter: Meter) -> None:
    budget = RetryBudget(1, 100)

    async def call() -> None:
        await step()

    await by_users(meter, lambda _n: hedged(call, 0.0, budget))


async def batched(meter: Meter) -> None:
    async def handle(items: Any) -> list[outcome.Outcome[int]]:
        await step()
        return [outcome.Value(item) for item in items]

    batcher = Batcher(handle, size=5, delay_s=0.001)
    async with trio.open_nursery() as nursery:
        await nursery.start(batcher.run)
        await by_users(meter, batcher.submit)
        batcher.stop()
    meter.further["waiting"] = batcher.waiting


async def queued(meter: Meter) -> None:
    async def work(_item: int) -> None:
        await step()

    async with WorkQueue(work, lambda _item, _error: None) as queue:
        await by_users(meter, lambda n: queue.submit(n, priority=n % 3))
    meter.further["waiting"] = queue.waiting + queue.in_work


async def monitored(meter: Meter) -> None:
    @traced(Kind.COMPUTATION, "step", timeout_s=10)
    async def use(n: int) -> None:
        await step()
        if n % 10 == 0:
            raise OSError("one in ten fails")

    async def quiet(n: int) -> None:
        with suppress(OSError):
            await use(n)

    with in_force(Monitor()) as monitor:
        await by_users(meter, quiet)
    meter.further["running"] = monitor.running


async def leaking(meter: Meter) -> None:
    kept: list[bytearray] = []

    async def use(_n: int) -> None:
        await step()
        kept.append(bytearray(LEAKED_BYTES))

    await by_users(meter, use)


CONSTRUCTS: dict[str, Callable[[Meter], Awaitable[None]]] = {
    "parallel": parallel,
    "as_completed": completed,
    "retry": retried,
    "pool": pooled,
    "rate_limit": limited,
    "breaker": broken,
    "single_flight": flown,
    "cache": cached,
    "hedge": hedged_calls,
    "batcher": batched,
    "work_queue": queued,
    "traced": monitored,
    f"(leak of {LEAKED_BYTES} B)": leaking,
}


async def execute(name: str, most: int) -> dict[str, Any]:
    meter = Meter(most)
    before = balance()
    began = time.perf_counter()
    await CONSTRUCTS[name](meter)
    took_s = time.perf_counter() - began
    left = balance().grown(before) | {k: v for k, v in meter.further.items() if v}
    slope, low, high = meter.slope()
    return {
        "done": meter.done, "us": took_s / meter.done * 1e6, "left": left,
        "slope": slope, "low": low, "high": high, "rss": meter.rss[LOOKS],
    }  # fmt: skip


def execution_table(most: int, only: str) -> None:
    print(
        f"{'construct':<16} {'executions':>11} {'us each':>8} {'B each':>9}   {'95 % interval':<19}"
        f" {'RSS MiB':>8}  verdict, left"
    )
    for name, construct in CONSTRUCTS.items():
        if only and only not in name:
            continue
        got = child(__file__, "execute", name, most)
        level = got["low"] <= 0 <= got["high"]
        left = ", ".join(f"{number:+g} {what}" for what, number in got["left"].items())
        interval = f"[{got['low']:.4f}, {got['high']:.4f}]"
        print(
            f"{name:<16} {got['done']:>11,} {got['us']:>8.1f} {got['slope']:>9.4f}   {interval:<19}"
            f" {got['rss'] / KIB / KIB:>8.1f}  {'level' if level else 'GROWS'},"
            f" {left or 'nothing'}",
            flush=True,
        )
        if construct is leaking and (level or got["low"] < LEAKED_BYTES):
            sys.exit("a leak that was made on purpose was not found")


# --- leaks of what is counted ----------------------------------------------------------------


async def counted_leaks() -> dict[str, list[str]]:
    """For each kind of thing left behind on purpose, what the balance says."""
    told: dict[str, list[str]] = {}
    limiter = trio.CapacityLimiter(10)
    borrowed = {"borrowed places": lambda: limiter.borrowed_tokens}

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        before = balance(borrowed)
        yield
        told[name] = list(balance(borrowed).grown(before))

    with noted("nothing"):
        await run_parallel([step] * 100)
    async with trio.open_nursery() as nursery:
        with noted("a task"):
            nursery.start_soon(trio.sleep_forever)
        with noted("a channel"):
            ends = trio.open_memory_channel[int](0)
        with noted("a borrowed place"):
            limiter.acquire_on_behalf_of_nowait(ends)
        with noted("a file"):
            file = Path("/dev/null").open("rb")  # noqa: ASYNC230, SIM115 - left open on purpose
        with noted("a socket"):
            sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        for end in (*ends, *sockets):
            await end.aclose()
        file.close()
        nursery.cancel_scope.cancel()
    return told


# --- parked ----------------------------------------------------------------------------------


async def start_bare(nursery: trio.Nursery, count: int) -> None:
    for _ in range(count):
        nursery.start_soon(trio.sleep_forever)


async def start_parallel(nursery: trio.Nursery, count: int) -> None:
    nursery.start_soon(partial(run_parallel, [trio.sleep_forever] * count, max_concurrent=count))


async def start_timed(nursery: trio.Nursery, count: int) -> None:
    tasks = [trio.sleep_forever] * count
    nursery.start_soon(partial(run_parallel, tasks, max_concurrent=count, item_timeout_s=1e6))


async def start_queued(nursery: trio.Nursery, count: int) -> None:
    nursery.start_soon(partial(run_parallel, [trio.sleep_forever] * count, max_concurrent=10))


async def start_traced(nursery: trio.Nursery, count: int) -> None:
    @traced(Kind.NETWORK, "parked")
    async def parked() -> None:
        await trio.sleep_forever()

    for _ in range(count):
        nursery.start_soon(parked)


async def start_pool(nursery: trio.Nursery, count: int) -> None:
    async def make() -> object:
        return object()

    async def close(_resource: object) -> None:
        pass

    async def keep(task_status: trio.TaskStatus[Pool[object]]) -> None:
        async with Pool(make, close, acquire_timeout_s=1e6) as pool:
            task_status.started(pool)
            await trio.sleep_forever()

    pool = await nursery.start(keep)

    async def use() -> None:
        async with pool.acquire():
            await trio.sleep_forever()

    for _ in range(count):
        nursery.start_soon(use)


async def start_limited(nursery: trio.Nursery, count: int) -> None:
    limiter = RateLimiter(Rate(1e-6, 1))
    for _ in range(count):
        nursery.start_soon(limiter.take)


async def start_flights(nursery: trio.Nursery, count: int) -> None:
    flights = SingleFlight[int, None](nursery)
    for _ in range(count):
        nursery.start_soon(flights.run, 1, trio.sleep_forever)


async def start_submits(nursery: trio.Nursery, count: int) -> None:
    async def work(_item: int) -> None:
        await trio.sleep_forever()

    async def keep(task_status: trio.TaskStatus[WorkQueue[int, None]]) -> None:
        async with WorkQueue(work, lambda _item, _error: None, room=count) as queue:
            task_status.started(queue)
            await trio.sleep_forever()

    queue = await nursery.start(keep)
    for n in range(count):
        nursery.start_soon(queue.submit, n)


PARKINGS: dict[str, Callable[[trio.Nursery, int], Awaitable[None]]] = {
    "floor: bare tasks": start_bare,
    "run_parallel, all at once": start_parallel,
    "... each with a timeout": start_timed,
    "... 10 at once": start_queued,
    "traced operations": start_traced,
    "waiting for a pool": start_pool,
    "waiting for a rate": start_limited,
    "joined to one flight": start_flights,
    "submitted to a queue": start_submits,
}
GATHER = "asyncio: gather, Semaphore"


async def park(name: str, count: int) -> dict[str, float]:
    late = Lateness()
    gc.collect()
    empty = rss_bytes()
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        await PARKINGS[name](nursery, count)
        await trio.testing.wait_all_tasks_blocked()
        start_s = time.perf_counter() - began
        each = (rss_bytes() - empty) / count
        with trio.move_on_after(WATCH_S):
            await late.watch()
        began = time.perf_counter()
        nursery.cancel_scope.cancel()
    cancel_s = time.perf_counter() - began
    return {"bytes": each, "start_s": start_s, "cancel_s": cancel_s, "lag_ms": late.taken_ms()}


async def park_on_asyncio(count: int) -> dict[str, float]:
    turn, parked, all_parked = asyncio.Semaphore(count), 0, asyncio.Event()
    never = asyncio.Event()

    async def one() -> None:
        nonlocal parked
        async with turn:
            parked += 1
            if parked == count:
                all_parked.set()
            await never.wait()

    gc.collect()
    empty = rss_bytes()
    began = time.perf_counter()
    gathered = asyncio.gather(*(one() for _ in range(count)))
    await all_parked.wait()
    start_s = time.perf_counter() - began
    each = (rss_bytes() - empty) / count
    late_s: list[float] = []
    until = time.perf_counter() + WATCH_S
    while (now := time.perf_counter()) < until:
        await asyncio.sleep(0.005)
        late_s.append(time.perf_counter() - now - 0.005)
    began = time.perf_counter()
    gathered.cancel()
    with suppress(asyncio.CancelledError):
        await gathered
    cancel_s = time.perf_counter() - began
    return {
        "bytes": each, "start_s": start_s, "cancel_s": cancel_s,
        "lag_ms": quantile(late_s, 0.99) * 1e3,
    }  # fmt: skip


def parked_table(sizes: tuple[int, ...], only: str) -> None:
    small, large = sizes
    print(
        f"\n{f'{large:,} parked':<28} {'KiB each':>9} {'÷ floor':>8} {'start us':>9} {'growth':>7}"
        f" {'cancel us':>10} {'growth':>7} {'lag p99 ms':>11} {'of 5 ms':>8}"
    )
    floor = 0.0
    for name in (*PARKINGS, GATHER):
        if only and only not in name:
            continue
        before, got = (child(__file__, "park", name, count) for count in (small, large))
        floor = floor or got["bytes"]
        grows = [
            math.log(got[what] / before[what]) / math.log(large / small)
            for what in ("start_s", "cancel_s")
        ]
        print(
            f"{name:<28} {got['bytes'] / KIB:>9.2f} {got['bytes'] / floor:>8.2f}"
            f" {got['start_s'] / large * 1e6:>9.1f} {grows[0]:>7.2f}"
            f" {got['cancel_s'] / large * 1e6:>10.1f} {grows[1]:>7.2f} {got['lag_ms']:>11.2f}"
            f" {got['lag_ms'] / 5:>8.2f}",
            flush=True,
        )


def main() -> None:
    match sys.argv[1:]:
        case ["execute", name, most]:
            print(json.dumps(trio.run(execute, name, int(most))))
            return
        case ["park", name, count] if name == GATHER:
            print(json.dumps(asyncio.run(park_on_asyncio(int(count)))))
            return
        case ["park", name, count]:
            print(json.dumps(trio.run(park, name, int(count))))
            return
    quick = "--quick" in sys.argv
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    print(load())
    execution_table(QUICK_EXECUTIONS if quick else EXECUTIONS, only)
    if not only:
        print("\nleft behind on purpose, and what the balance says")
        for name, told in trio.run(counted_leaks).items():
            print(f"  {name:<18} {', '.join(told) or 'nothing'}")
            if bool(told) == (name == "nothing"):
                sys.exit("the balance is wrong")
    parked_table(PARKED, only)
    print(load())


if __name__ == "__main__":
    main()
