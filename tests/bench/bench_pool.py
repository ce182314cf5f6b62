"""The pool's invariants under bursts and cancellation, and its waits against queueing theory.

    python tests/bench/bench_pool.py [--quick]

Virtual time, so that no noise of the machine is in it: what is told is what the pool decides.
After each step of each task the invariants are looked at: `min <= live` once it is warm,
`live <= max`, and never more resources in existence than `live` says; `broken` counts the steps
at which one did not hold. At the end every resource that was made has been closed: `leaked`.

Waits: Poisson arrivals at the full pool. `exact` is what first come, first served by so many
servers gives for the very same arrivals and uses (the recursion of J. Kiefer and J. Wolfowitz,
1955). `theory` is the mean in the long run: of M/M/c by Erlang's C formula; for another
distribution of the uses M/M/c times half of one plus its squared coefficient of variation
(A. O. Allen, 1990), an approximation. So many arrivals are still far from the long run at a
high load, which `exact ÷ theory` shows. Last, in real time, what making them at once is worth, and
the pool that is best known on Node.
"""

import heapq
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import trio  # noqa: E402 - after the path
import trio.testing  # noqa: E402
from callers import NotHere, node_build  # noqa: E402
from measures import load, quantile  # noqa: E402

from custosd.flow.pool import Pool  # noqa: E402

QUICK = "--quick" in sys.argv
USES = 1_000
QUEUED = 2_000 if QUICK else 20_000
MAKE_S = 0.1
MIN, MAX = 2, 10
SIGMA = 0.8


@dataclass(eq=False)
class Looked(trio.abc.Instrument):
    """What there is, and what a look after each step found."""

    warm: bool = False
    existing: int = 0
    made: int = 0
    steps: int = 0
    broken: int = 0
    largest: int = 0
    pool: "Pool[object] | None" = None
    sizes: list[int] = field(default_factory=list)

    async def make(self) -> object:
        self.existing += 1
        self.made += 1
        try:
            await trio.sleep(MAKE_S)
        except BaseException:
            self.existing -= 1
            raise
        return object()

    async def close(self, _resource: object) -> None:
        await trio.sleep(0.01)
        self.existing -= 1

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        pool = self.pool
        if pool is None:
            return
        self.steps += 1
        live = pool.live
        self.largest = max(self.largest, live)
        if live > MAX or self.existing > live or (self.warm and live < MIN):
            self.broken += 1


Scenario = Callable[[Pool[object], Looked, random.Random], Awaitable[None]]


async def one_after_the_other(pool: Pool[object], looked: Looked, _drawn: random.Random) -> None:
    for _ in range(USES):
        async with pool.acquire():
            looked.sizes.append(pool.live)
            await trio.sleep(0.05)


async def burst(pool: Pool[object], looked: Looked, _drawn: random.Random) -> None:
    async def use() -> None:
        async with pool.acquire():
            looked.sizes.append(pool.live)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(USES):
            nursery.start_soon(use)
    await trio.sleep(60)


async def bursts_with_cancellation(
    pool: Pool[object], looked: Looked, drawn: random.Random
) -> None:
    """Now and then fifty at once, a tenth of which is cancelled, waiting or in use."""

    async def use(patience_s: float) -> None:
        with trio.move_on_after(patience_s):
            async with pool.acquire():
                looked.sizes.append(pool.live)
                await trio.sleep(drawn.expovariate(1 / 0.05))

    async with trio.open_nursery() as nursery:
        for _ in range(USES // 50):
            for _ in range(50):
                patience_s = drawn.uniform(0.0, 0.3) if drawn.random() < 0.1 else math.inf
                nursery.start_soon(use, patience_s)
            await trio.sleep(drawn.expovariate(1 / 5.0))
    await trio.sleep(60)


SCENARIOS: dict[str, Scenario] = {
    "one after the other": one_after_the_other,
    "a burst of all": burst,
    "bursts, a tenth cancelled": bursts_with_cancellation,
}


async def invariants(scenario: Scenario) -> tuple[Looked, Pool[object]]:
    looked = Looked()
    async with Pool(looked.make, looked.close, min=MIN, max=MAX, acquire_timeout_s=1e6) as pool:
        looked.pool = pool
        trio.lowlevel.add_instrument(looked)
        await trio.sleep(1)
        looked.warm = True
        await scenario(pool, looked, random.Random(1))
        looked.warm = False
    trio.lowlevel.remove_instrument(looked)
    return looked, pool


# --- waits -----------------------------------------------------------------------------------


def erlang_c_wait_s(rate_per_s: float, use_s: float, servers: int) -> float:
    """The mean wait of M/M/c (A. K. Erlang, 1917)."""
    offered = rate_per_s * use_s
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last) / (servers / use_s - rate_per_s)


def exact_waits_s(gaps_s: Sequence[float], uses_s: Sequence[float]) -> list[float]:
    free_at, now, waited_s = [0.0] * MAX, 0.0, []
    for gap_s, use_s in zip(gaps_s, uses_s, strict=True):
        begins_at = max(now, free_at[0])
        waited_s.append(begins_at - now)
        heapq.heapreplace(free_at, begins_at + use_s)
        now += gap_s
    return waited_s


async def waits(gaps_s: Sequence[float], uses_s: Sequence[float]) -> list[float]:
    waited_s = [0.0] * len(uses_s)

    async def make() -> object:
        return object()

    async def close(_resource: object) -> None:
        pass

    async def use(n: int) -> None:
        began = trio.current_time()
        async with pool.acquire():
            waited_s[n] = trio.current_time() - began
            await trio.sleep(uses_s[n])

    async with (
        Pool(make, close, min=MAX, max=MAX, acquire_timeout_s=1e9) as pool,
        trio.open_nursery() as nursery,
    ):
        await trio.testing.wait_all_tasks_blocked()
        for n, gap_s in enumerate(gaps_s):
            nursery.start_soon(use, n)
            await trio.sleep(gap_s)
    return waited_s


# --- in real time ----------------------------------------------------------------------------


class LockedPool:
    """The pool that one finds: it makes a resource while it holds its lock."""

    def __init__(self, make: Callable[[], Awaitable[object]]) -> None:
        self._make = make
        self._lock = trio.Lock()
        self._idle: list[object] = []
        self._places = trio.Semaphore(MAX)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[object]:
        async with self._places:
            async with self._lock:
                resource = self._idle.pop() if self._idle else await self._make()
            yield resource
            self._idle.append(resource)


async def rush() -> tuple[float, float]:
    """Ten need a resource at once and there is none: when all have one, of ours and of that."""

    async def make() -> object:
        await trio.sleep(MAKE_S)
        return object()

    async def close(_resource: object) -> None:
        pass

    async def until_all_have_one(pool: "Pool[object] | LockedPool") -> float:
        began, have, all_have = time.perf_counter(), 0, trio.Event()

        async def use() -> None:
            nonlocal have
            async with pool.acquire():
                have += 1
                if have == MAX:
                    all_have.set()
                await all_have.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(MAX):
                nursery.start_soon(use)
        return time.perf_counter() - began

    async with Pool(make, close, min=0, max=MAX) as pool:
        ours_s = await until_all_have_one(pool)
    return ours_s, await until_all_have_one(LockedPool(make))


def on_node(uses: int, concurrency: int) -> str:
    given = {"uses": uses, "concurrency": concurrency, "use_ms": 5, "make_ms": 20}
    done = subprocess.run(
        ["node", str(node_build() / "pool.mjs")],
        input=json.dumps(given), capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    return (
        f"{uses:>7} {told['made']:>6} {told['mean']:>7.2f} {told['largest']:>8}"
        f" {1 - told['made'] / uses:>8.1%}"
    )


def virtual(fn: Callable[..., Awaitable[object]], *args: object) -> Any:
    return trio.run(fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def wait_table() -> None:
    print(f"\nwaits for one of {MAX}, {QUEUED} uses of a mean of 1 s, virtual time")
    print(
        f"  {'uses':<14} {'load':>6} {'exact s':>9} {'ours s':>9} {'÷ exact':>9} {'p99 ÷ it':>9}"
        f" {'theory s':>9} {'exact ÷ it':>11}"
    )
    for name, squared_variation in (
        ("exponential", 1.0), ("constant", 0.0), (f"lognormal {SIGMA}", math.exp(SIGMA**2) - 1)
    ):  # fmt: skip
        for share in (0.5, 0.8, 0.9):
            drawn = random.Random(int(share * 100))
            gaps_s = [drawn.expovariate(share * MAX) for _ in range(QUEUED)]
            uses_s = [
                1.0 if name == "constant"
                else drawn.expovariate(1.0) if name == "exponential"
                else drawn.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
                for _ in range(QUEUED)
            ]  # fmt: skip
            exact, ours = exact_waits_s(gaps_s, uses_s), virtual(waits, gaps_s, uses_s)
            exact_s, ours_s = statistics.fmean(exact), statistics.fmean(ours)
            theory_s = erlang_c_wait_s(share * MAX, 1.0, MAX) * (1 + squared_variation) / 2
            print(
                f"  {name:<14} {share:>6.0%} {exact_s:>9.4f} {ours_s:>9.4f}"
                f" {ours_s / exact_s:>9.4f} {quantile(ours, 0.99) / quantile(exact, 0.99):>9.4f}"
                f" {theory_s:>9.4f} {exact_s / theory_s:>11.3f}",
                flush=True,
            )


def main() -> None:
    print(f"{load()}\na pool of {MIN} to {MAX}, {USES} uses, virtual time")
    print(
        f"  {'':<36} {'uses':>7} {'made':>6} {'mean':>7} {'largest':>8} {'reused':>8}"
        f" {'discarded':>10} {'steps':>8} {'broken':>7} {'leaked':>7}"
    )
    for name, scenario in SCENARIOS.items():
        looked, pool = virtual(invariants, scenario)
        uses = len(looked.sizes)
        print(
            f"  {name:<36} {uses:>7} {pool.made:>6} {statistics.fmean(looked.sizes):>7.2f}"
            f" {looked.largest:>8} {pool.reused / uses:>8.1%} {pool.discarded:>10}"
            f" {looked.steps:>8} {looked.broken:>7} {looked.existing:>7}"
        )
    for name, concurrency in (("one after the other", 1), ("a burst of all", USES)):
        try:
            print(f"  {f'generic-pool: {name}':<36} {on_node(USES, concurrency)}")
        except NotHere as why:
            print(f"  generic-pool not here: {why}")
    wait_table()
    ours_s, locked_s = trio.run(rush)
    print(
        f"\n{MAX} at once, each new one takes {MAKE_S} s, real time: bound ÷ ours"
        f" {MAKE_S / ours_s:.3f}, bound ÷ a pool that makes under its lock {MAKE_S / locked_s:.3f}"
    )


if __name__ == "__main__":
    main()
