"""What each construct adds to a call that does nothing: nanoseconds, and against its peers.

    python tests/bench/bench_overhead.py [--quick]

The call is `await` of a function that returns at once, in the first table, and of one that is
scheduled once (a checkpoint), in the second. The rounds of all are interleaved, and the median
of their differences to the bare call is told. Nothing here waits, so all of it is CPU time.
`÷ span` is against a span of OpenTelemetry around the same call, recorded and handed to an
exporter in memory; `÷ gather` against asyncio's gather behind a semaphore.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import trio  # noqa: E402 - after the path
from measures import load  # noqa: E402
from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import (  # noqa: E402
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from custosd.adapters.telemetry.opentelemetry import SpanObserver  # noqa: E402
from custosd.flow.bounded import each  # noqa: E402
from custosd.flow.breaker import CircuitBreaker  # noqa: E402
from custosd.flow.monitor import Kind, Monitor, Operation, in_force, traced  # noqa: E402
from custosd.flow.parallel import run_parallel  # noqa: E402
from custosd.flow.pool import Pool  # noqa: E402
from custosd.flow.rate_limit import Rate, RateLimiter  # noqa: E402
from custosd.flow.retry import RetryPolicy, retry  # noqa: E402
from custosd.flow.single_flight import SingleFlight  # noqa: E402

QUICK = "--quick" in sys.argv
CALLS = 500 if QUICK else 2_000
ROUNDS = 5 if QUICK else 25
AT_ONCE = 10

Call = Callable[[], Awaitable[object]]


class Dropping(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Observing:
    """An observer that does nothing."""

    def began(self, operation: Operation) -> None:
        pass

    def ended(self, operation: Operation) -> None:
        pass


async def nothing() -> None:
    return


async def step() -> None:
    await trio.lowlevel.checkpoint()


async def timed_ns(call: Call) -> float:
    began = time.process_time_ns()
    for _ in range(CALLS):
        await call()
    return (time.process_time_ns() - began) / CALLS


async def medians(calls: dict[str, Call]) -> dict[str, float]:
    """What each adds to the first of them; the rounds interleaved."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rounds[name].append(await timed_ns(call))
    bare, *_ = rounds.values()
    return {
        name: statistics.median(one - other for one, other in zip(took, bare, strict=True))
        for name, took in rounds.items()
    } | {"bare": statistics.median(bare)}


# --- monitoring ------------------------------------------------------------------------------


async def monitoring() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Dropping()))
    tracer, unheard = provider.get_tracer("bench"), trace.NoOpTracer()
    monitors = {
        "no observer": Monitor(),
        "an observer that does nothing": Monitor(observer=Observing()),
        "spans of OpenTelemetry": Monitor(observer=SpanObserver(tracer)),
    }
    with_traced = traced(Kind.COMPUTATION, "nothing")(nothing)
    with_limit = traced(Kind.COMPUTATION, "nothing", timeout_s=10)(nothing)
    retried = traced(Kind.COMPUTATION, "nothing", retry=RetryPolicy())(nothing)

    async def with_operation(monitor: Monitor) -> None:
        async with monitor.operation(Kind.COMPUTATION, "nothing"):
            await nothing()

    async def with_span() -> None:
        with tracer.start_as_current_span("nothing"):
            await nothing()

    async def with_no_span() -> None:
        with unheard.start_as_current_span("nothing"):
            await nothing()

    async def with_time_limit() -> None:
        with trio.fail_after(10):
            await nothing()

    def calls_to(monitor: Monitor) -> dict[str, Call]:
        return {
            "bare await": nothing,
            "OpenTelemetry: a span": with_span,
            "monitor.operation": partial(with_operation, monitor),
            "@traced": with_traced,
            "@traced(retry)": retried,
            "@traced(timeout_s)": with_limit,
        }

    print(f"  {'added to a bare await':<52} {'ns':>8} {'÷ span':>8}")
    found = await medians(
        {
            "bare await": nothing,
            "OpenTelemetry: a span": with_span,
            "OpenTelemetry: switched off": with_no_span,
            "trio.fail_after": with_time_limit,
        }
    )
    _print_monitoring(found, "")
    for observed, monitor in monitors.items():
        with in_force(monitor):
            _print_monitoring(await medians(calls_to(monitor)), f", {observed}")


def _print_monitoring(found: dict[str, float], observed: str) -> None:
    span = found["OpenTelemetry: a span"]
    for name, added in found.items():
        known = observed and name.startswith("OpenTelemetry")
        if not (known or name.startswith("bare")):
            print(f"  {name + observed:<52} {added:>8,.0f} {added / span:>8.3f}", flush=True)


# --- constructs ------------------------------------------------------------------------------


async def constructs() -> None:
    limiter, breaker = RateLimiter(Rate(1e9, 1e9)), CircuitBreaker()
    places = trio.CapacityLimiter(10)

    async def make() -> object:
        return object()

    async def close(_resource: object) -> None:
        pass

    async def yes(_resource: object) -> bool:
        return True

    async def with_pool(pool: Pool[object]) -> None:
        async with pool.acquire():
            await step()

    async def with_breaker() -> None:
        async with breaker.call():
            await step()

    async def with_rate() -> None:
        await limiter.take()
        await step()

    async def with_place() -> None:
        async with places:
            await step()

    async def with_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(step)

    policy = RetryPolicy()
    async with (
        trio.open_nursery() as nursery,
        Pool(make, close, min=1, max=1) as pool,
        Pool(make, close, min=1, max=1, check=yes) as checked,
    ):
        flights = SingleFlight[int, None](nursery)
        found = await medians(
            {
                "bare": step,
                "trio: a CapacityLimiter": with_place,
                "trio: a nursery with one task": with_nursery,
                "retry, first attempt good": partial(retry, step, policy),
                "breaker, closed": with_breaker,
                "rate_limit, nobody waits": with_rate,
                "pool": partial(with_pool, pool),
                "pool with a check": partial(with_pool, checked),
                "single_flight, alone": partial(flights.run, 1, step),
            }
        )
    bare = found.pop("bare")
    print(f"\n  {'added to a call that is scheduled once':<52} {'ns':>8} {'÷ call':>8}")
    for name, added in found.items():
        print(f"  {name:<52} {added:>8,.0f} {added / bare:>8.2f}")
    print(f"  {'(the call itself)':<52} {bare:>8,.0f}")


# --- items -----------------------------------------------------------------------------------


async def bare_items() -> None:
    """The floor: a limiter and a nursery, nothing kept."""
    places = trio.CapacityLimiter(AT_ONCE)

    async def one(place: object) -> None:
        await step()
        places.release_on_behalf_of(place)

    async with trio.open_nursery() as nursery:
        for _ in range(CALLS):
            place = object()
            await places.acquire_on_behalf_of(place)
            nursery.start_soon(one, place)


async def worker_items() -> None:
    """So many workers that take the next item: no task an item, so no bound of ours."""
    items = iter(range(CALLS))

    async def worker() -> None:
        for _ in items:
            await step()

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(worker)


async def gathered_items() -> None:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with turn:
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(CALLS)))


async def each_item() -> None:
    await each(range(CALLS), lambda _: step(), limit=AT_ONCE)


async def parallel_items(item_timeout_s: float | None = None) -> None:
    await run_parallel([step] * CALLS, max_concurrent=AT_ONCE, item_timeout_s=item_timeout_s)


def items() -> None:
    sides: dict[str, Callable[[], object]] = {
        "asyncio: gather behind a semaphore": lambda: asyncio.run(gathered_items()),
        "trio: workers, no task an item": lambda: trio.run(worker_items),
        "trio: a nursery and a limiter": lambda: trio.run(bare_items),
        "bounded.each": lambda: trio.run(each_item),
        "run_parallel": lambda: trio.run(parallel_items),
        "run_parallel, each with a timeout": lambda: trio.run(parallel_items, 10.0),
    }
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            began = time.process_time_ns()
            side()
            rounds[name].append((time.process_time_ns() - began) / CALLS)
    found = {name: statistics.median(took) for name, took in rounds.items()}
    gather, floor = (
        found["asyncio: gather behind a semaphore"],
        found["trio: a nursery and a limiter"],
    )
    print(f"\n  {f'an item, {AT_ONCE} at once':<52} {'ns':>8} {'÷ gather':>9} {'÷ floor':>8}")
    for name, took in found.items():
        print(f"  {name:<52} {took:>8,.0f} {took / gather:>9.2f} {took / floor:>8.2f}")


def main() -> None:
    print(load())
    trio.run(monitoring)
    trio.run(constructs)
    items()


if __name__ == "__main__":
    main()
