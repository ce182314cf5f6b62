"""Calls to a slow service: ours, asyncio's, the guides' and Node's, against the physical bound.

    python tests/bench/bench_calls.py [--quick]

Every client is a process of its own and makes the same calls, of the same lognormal latencies, to
one server in a process of its own, which sleeps what a call asks for. Tables:

1. 100 calls of a mean of 0.25 s, 10 and 100 at a time. No schedule is shorter than
   max(sum / c, longest); `efficiency` is that bound ÷ measured, connecting included. `greedy` is
   what starting the next call when one ends gives on paper, in the order given.
2. What a call costs beyond the server's own time, 200 in flight, connections warm.
3. Connections that the server counted, and the share of calls that found one open; the ceiling is
   1 - concurrency / calls. With calls that take no time, also how many a second.

All share this machine in one run: the ratios mean something, the times little. A peer that cannot
be had here has a row that says so.
"""

import heapq
import statistics
import sys
import tempfile
from collections.abc import Sequence

from callers import Caller, NotHere, Server, Told, bound_s, latency_server, lognormal_s
from measures import load, quantile

QUICK = "--quick" in sys.argv

OURS = Caller("ours: parallel + http_client", "peers/ours.py")
FLOOR = Caller("floor: bare trio streams", "peers/raw_streams.py")
GATHER = Caller("gather + Semaphore + aiohttp", "peers/aiohttp_gather.py", "semaphore")
BATCHES = Caller("gather in batches, aiohttp", "peers/aiohttp_gather.py", "batches")
OWN_CLIENTS = Caller("aiohttp, a client a call", "peers/aiohttp_gather.py", "client a call")
UNDICI = Caller("p-map + undici", "node/calls.mjs")
EXECUTOR = Caller("p-map, generic-pool of 10", "node/executor.mjs")

CALLS = 100
MEAN_S = 0.025 if QUICK else 0.25
SIGMAS = (0.8,) if QUICK else (0.5, 0.8, 1.0)
SEED = 20_260
IN_FLIGHT = 200
BUSY_CALLS = 600 if QUICK else 2_000
BUSY_MEAN_S = 1.0
BUSY_SIGMA = 0.5
ROUNDS = 1 if QUICK else 3


def microseconds(delays_s: Sequence[float]) -> list[int]:
    return [int(each * 1e6) for each in delays_s]


def greedy_s(delays_s: Sequence[float], concurrency: int) -> float:
    """How long they take if each begins as soon as one before it ends, at no cost."""
    ends = [0.0] * concurrency
    for delay_s in delays_s:
        heapq.heapreplace(ends, ends[0] + delay_s)
    return max(ends)


def batched_s(delays_s: Sequence[float], concurrency: int) -> float:
    """How long they take in batches, each waited for to its end, at no cost."""
    return sum(max(delays_s[n : n + concurrency]) for n in range(0, len(delays_s), concurrency))


def told_by(
    caller: Caller, server: Server, delays_us: Sequence[int], concurrency: int, folder: str = ""
) -> Told | None:
    try:
        return caller.run(server.url, delays_us, concurrency, folder)
    except NotHere as why:
        print(f"  {caller.name:<30} not here: {why}")
        return None


# --- 1: throughput ---------------------------------------------------------------------------


def throughput(server: Server) -> None:
    print(f"{CALLS} calls of a mean of {MEAN_S} s")
    print(f"  {'':<30} {'wall s':>8} {'efficiency':>11} {'greedy ÷ it':>12} {'CPU ms/call':>12}")
    for concurrency in (10, 100):
        for sigma in SIGMAS:
            delays_s = lognormal_s(CALLS, MEAN_S, sigma, SEED)
            bound, greedy = bound_s(delays_s, concurrency), greedy_s(delays_s, concurrency)
            on_paper = batched_s(delays_s, concurrency)
            print(
                f" c={concurrency} sigma={sigma}: bound {bound:.3f} s, greedy {greedy:.3f} s"
                f" ({bound / greedy:.3f}), batches {on_paper:.3f} s ({bound / on_paper:.3f})"
            )
            callers = [OURS, FLOOR, GATHER, BATCHES, UNDICI]
            if concurrency == 10:
                callers.append(EXECUTOR)
            for caller in callers:
                _timed(server, caller, delays_s, concurrency, bound, greedy)
    delays_s = lognormal_s(CALLS, MEAN_S, SIGMAS[0], SEED)
    bound, greedy = bound_s(delays_s, 10), greedy_s(delays_s, 10)
    print(" the same, c=10, each answer kept in a file (ours: synced and renamed; p-map: written)")
    for caller in (OURS, EXECUTOR):
        with tempfile.TemporaryDirectory() as folder:
            _timed(server, caller, delays_s, 10, bound, greedy, folder)


def _timed(
    server: Server,
    caller: Caller,
    delays_s: Sequence[float],
    concurrency: int,
    bound: float,
    greedy: float,
    folder: str = "",
) -> None:
    told = told_by(caller, server, microseconds(delays_s), concurrency, folder)
    if told is not None:
        print(
            f"  {caller.name:<30} {told.wall_s:>8.3f} {bound / told.wall_s:>11.3f}"
            f" {greedy / told.wall_s:>12.3f} {told.cpu_s / len(delays_s) * 1e3:>12.2f}",
            flush=True,
        )


# --- 2: overhead -----------------------------------------------------------------------------


def overhead(server: Server) -> None:
    print(
        f"\nbeyond the server's time, {IN_FLIGHT} in flight: {BUSY_CALLS} calls of a mean of"
        f" {BUSY_MEAN_S} s, those begun first, {IN_FLIGHT}, not counted; median of {ROUNDS} rounds"
    )
    print(
        f"  {'':<30} {'p50 ms':>8} {'p99 ms':>8} {'of 5 ms':>8} {'p50 ÷ floor':>12}"
        f" {'p99 ÷ floor':>12} {'CPU ms/call':>12} {'÷ floor':>8}"
    )
    delays_us = microseconds(lognormal_s(BUSY_CALLS, BUSY_MEAN_S, BUSY_SIGMA, SEED))
    found: dict[Caller, list[tuple[float, float, float]]] = {}
    callers = [FLOOR, OURS, GATHER, UNDICI]
    for _ in range(ROUNDS):
        for caller in list(callers):
            told = told_by(caller, server, delays_us, IN_FLIGHT)
            if told is None:
                callers.remove(caller)
                continue
            over_ms = told.over_server_ms(skip=IN_FLIGHT)
            found.setdefault(caller, []).append(
                (quantile(over_ms, 0.5), quantile(over_ms, 0.99), told.cpu_s / BUSY_CALLS * 1e3)
            )
    floor = [statistics.median(each) for each in zip(*found[FLOOR], strict=True)]
    for caller, rounds in found.items():
        p50_ms, p99_ms, cpu_ms = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(
            f"  {caller.name:<30} {p50_ms:>8.2f} {p99_ms:>8.2f} {p99_ms / 5.0:>8.2f}"
            f" {p50_ms / floor[0]:>12.2f} {p99_ms / floor[1]:>12.2f} {cpu_ms:>12.2f}"
            f" {cpu_ms / floor[2]:>8.2f}"
        )


# --- 3: reuse --------------------------------------------------------------------------------


def reuse(server: Server) -> None:
    print("\nconnections counted at the server")
    print(
        f"  {'':<30} {'calls/c':>9} {'opened':>7} {'reused':>8} {'ceiling':>8} {'calls/s':>9}"
        f" {'÷ floor':>8}"
    )
    for calls, concurrency, delay_us in (
        (20, 1, 1_000),
        (100, 10, 10_000),
        (100, 100, 1_000_000),
        (2_000, 10, 0),
    ):
        floor = 0.0
        for caller in (FLOOR, OURS, GATHER, OWN_CLIENTS, UNDICI):
            server.connections()
            told = told_by(caller, server, [delay_us] * calls, concurrency)
            if told is None:
                continue
            opened, rate = server.connections(), calls / told.wall_s
            floor = floor or rate
            rates = f" {rate:>9,.0f} {rate / floor:>8.2f}" if delay_us == 0 else ""
            print(
                f"  {caller.name:<30} {f'{calls}/{concurrency}':>9} {opened:>7}"
                f" {1 - opened / calls:>8.1%} {1 - concurrency / calls:>8.1%}{rates}",
                flush=True,
            )


def main() -> None:
    print(load())
    with latency_server() as server:
        throughput(server)
        overhead(server)
        reuse(server)
    print(load())


if __name__ == "__main__":
    main()
