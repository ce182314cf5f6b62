"""Ten operations in four forms: one after the other, by gather, by the daemon, and their bound.

    python tests/bench/bench_operations.py [--scale 0.1] [--tiny]        (`make bench-operations`)

A real PostgreSQL, and a server of models, pairs and repositories, each at a distance: what takes
2 s at a provider and 0.1 s at a database takes `scale` of that here. The first two forms are
`operations_seed`, on asyncio with asyncpg and aiohttp; ours is the daemon's own code. Each
operation is done with n agents, tasks or repositories, and but for the first form with 2n and 4n;
all forms of one are to come to the same result, or the bench fails.

The bound is what physics leaves: the fewest waits that depend on each other, at so many at once
as the operation allows, each as long as it was seen to be right before. `own` is what ours takes
where server and database are near: it does not shrink with `scale`, as waits do. `faster` is by
how much it is faster than the sequential form, efficiency is the bound by the time measured,
trips are round trips to the database and calls of the server. Times depend on the machine;
compare ratios.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import trio

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

from measures import load  # noqa: E402
from operations_ours import Call  # noqa: E402
from operations_seed import (  # noqa: E402
    Analyses,
    Assigned,
    Batch,
    Claims,
    Cycle,
    Emergency,
    Files,
    Fleet,
    Ready,
    Repositories,
    Restarts,
)
from operations_world import (  # noqa: E402
    NAMES,
    Bench,
    folders_of,
    forget_works,
    give_back,
    load_agents,
    load_assigned,
    load_batch,
    load_folders,
    names_of,
    open_bench,
    repositories,
    try_as_written,
)
from tests.simulation.run import quiet_logs  # noqa: E402

ROUNDS = 3
MOST = 9
ENOUGH_S = 1.0
WARM_UPS = 2
GROWTH = (1, 2, 4)
SHOWN = 400
Build = Callable[[Bench, int], Any]


async def _nothing(_bench: Bench, _n: int = 0) -> None:
    await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; times in seconds before they are scaled, by the names of the server's.

    `bound_s` is given n and the times as they were seen. `load` makes n things to work on, and
    `settle` undoes what a form has done.
    """

    name: str
    n: int
    far_s: Mapping[str, float]
    seed: Build
    ours: Callable[[Bench, int], AbstractAsyncContextManager[Call]]
    bound_s: Callable[[int, Mapping[str, float]], float]
    load: Callable[[Bench, int], Awaitable[None]] = _nothing
    settle: Callable[[Bench], Awaitable[None]] = _nothing
    told: Callable[[Any], Any] = lambda result: result


@dataclass(slots=True)
class Measured:
    """One form at one size: seconds, and round trips to the database and to the server.

    `own_s` is what it takes where nothing is far away.
    """

    times_s: list[float] = field(default_factory=list[float])
    own_s: float = 0.0
    database: int = 0
    server: int = 0

    @property
    def s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def trips(self) -> str:
        return f"{self.database}+{self.server}"


Sized = dict[str, Measured]
FORMS = ("sequential", "gather", "ours")
GROWN = FORMS[1:]
"""What grows with n in one line needs no measuring."""


# --- the operations -----------------------------------------------------------------------------


def rounds(n: int, most: int) -> int:
    return ceil(n / most)


def operations(scale: float) -> list[Operation]:
    """As they are told of: how many, how long each wait is, how many at once."""
    near, spawn_s, file_s = 0.1, 0.5 * scale, 0.1 * scale

    def analyses(b: Bench, n: int, most: int = 0, *, queries: bool = True) -> Analyses:
        return Analyses(b.seed, b.agents[:n], most, queries)

    def fleet(b: Bench, n: int) -> Fleet:
        return Fleet(b.seed, b.agents[:n])

    def files(name: str, folders: int, pause_s: float) -> Operation:
        return Operation(
            name, folders, {},
            lambda b, n: Files(folders_of(b, n), NAMES, 20, pause_s),
            lambda b, n: b.ours.files(folders_of(b, n), NAMES, pause_s),
            # All files at once, and no less than one thread needs for the ends of all of them.
            lambda n, far: max(pause_s, far["ends_s"] * n * len(NAMES)),
            load_folders,
            told=lambda texts: {path: text.rstrip("\n") for path, text in texts.items()},
        )  # fmt: skip

    def restarts(name: str, far_s: Mapping[str, float]) -> Operation:
        return Operation(
            name, 20, far_s,
            lambda b, n: Restarts(b.seed, names_of(n), spawn_s, 5),
            lambda b, n: b.ours.restarts(names_of(n), spawn_s, 5),
            lambda n, far: far.get("database_s", 0.0) + rounds(n, 5) * spawn_s,
            load_agents,
        )  # fmt: skip

    def followed(name: str, far_s: Mapping[str, float]) -> Operation:
        return Operation(
            name, 10, far_s,
            lambda b, n: Repositories(b.seed, repositories(n), 3),
            lambda b, n: b.ours.sync(repositories(n), 3),
            lambda n, far: far.get("database_s", 0.0) + rounds(n * 4, 3) * far["forge_s"],
            settle=forget_works,
        )  # fmt: skip

    return [
        Operation(
            "Trajectory analysis, 5 at once", 10, {"database_s": near, "model_s": 2.0},
            lambda b, n: analyses(b, n, 5), lambda b, n: b.ours.sweep(n, 5),
            lambda n, far: far["database_s"] + rounds(n, 5) * far["model_s"],
        ),
        Operation(
            "Emergency, all at once, and the fleet", 5,
            {"database_s": near, "model_s": 2.0, "pair_s": 3.0},
            lambda b, n: Emergency(analyses(b, n), fleet(b, n)),
            lambda b, n: b.ours.emergency(n),
            lambda _n, far: far["database_s"] + max(far["model_s"], far["pair_s"]),
        ),
        Operation(
            "Cycle: guardian (5 s) and conductor (3 s)", 5,
            {"database_s": near, "model_s": 5.0, "pair_s": 3.0},
            lambda b, n: Cycle(analyses(b, n, 5), fleet(b, n)),
            lambda b, n: b.ours.cycle(n, 5),
            lambda n, far: far["database_s"] + max(rounds(n, 5) * far["model_s"], far["pair_s"]),
        ),
        Operation(
            "Model calls, 3 at once", 5, {"model_s": 2.0},
            lambda b, n: analyses(b, n, 3, queries=False), lambda b, n: b.ours.calls(n, 3),
            lambda n, far: rounds(n, 3) * far["model_s"],
        ),
        restarts("Restarts, 5 at once", {"database_s": near}),
        restarts("Restarts, 5 at once, database near", {}),
        Operation(
            "Assigned tasks of many agents", 10, {"database_s": near},
            lambda b, n: Assigned(b.seed, names_of(n)),
            lambda b, n: b.ours.assigned(names_of(n)),
            lambda _n, far: far["database_s"], load_assigned,
        ),
        files("Output files, 5 each: page cache", 10, 0.0),
        files("Output files, 5 each: slow disk", 10, file_s),
        followed("Repositories, 3 at once", {"database_s": near, "forge_s": 1.0}),
        followed("Repositories, 3 at once, database near", {"forge_s": 1.0}),
        Operation(
            "Ready set of tasks", 100, {"database_s": near / 2},
            lambda b, _n: Ready(b.seed), lambda b, n: b.ours.next_tasks(n),
            lambda _n, far: far["database_s"], try_as_written,
        ),
        Operation(
            "Next tasks, scored", 10, {"database_s": near},
            lambda b, n: Batch(b.seed, n, b.scores), lambda b, n: b.ours.next_tasks(n),
            lambda _n, far: far["database_s"], load_batch,
        ),
        Operation(
            "Next tasks, claimed", 10, {"database_s": near},
            lambda b, n: Claims(b.seed, n, "agent-0"), lambda b, n: b.ours.claim("agent-0", n),
            lambda _n, far: far["database_s"], load_batch, give_back,
        ),
    ]  # fmt: skip


# --- measuring ----------------------------------------------------------------------------------


class Unequal(Exception):
    """Two forms of an operation came to different results."""


async def seen_s(bench: Bench, delays_s: Mapping[str, float]) -> dict[str, float]:
    """How long each wait is, as it is seen from here: medians."""
    side = bench.seed
    asks: dict[str, Callable[[], Awaitable[Any]]] = {
        "database_s": lambda: side.pool.fetchval("select 1"),
        "model_s": lambda: side.post("/v1/chat/completions", {}),
        "pair_s": lambda: side.post("/pair", {}),
        "forge_s": lambda: side.get("/repos/ada/engine"),
    }
    found = dict(delays_s)
    await bench.control(delays_s)
    for name in delays_s:
        times = [(await side.timed(asks[name]))[0] for _ in range(5)]
        found[name] = statistics.median(times)
    await bench.control({})
    return found


def ends_s(bench: Bench) -> float:
    """What the end of one output file costs a thread that does nothing else."""
    path = folders_of(bench, 1)[0] / NAMES[0]
    if not path.exists():
        return 0.0
    began = time.perf_counter()
    for _ in range(100):
        with path.open("rb") as file:
            file.seek(-16_384, 2)
            file.read()
    return (time.perf_counter() - began) / 100


async def one_form(
    bench: Bench, operation: Operation, form: str, n: int, delays_s: Mapping[str, float]
) -> tuple[float, Any, dict[str, int]]:
    """Do it once: seconds, result, and what was asked."""
    await operation.settle(bench)
    if form != "ours":
        made = operation.seed(bench, n)
        await bench.control(delays_s)
        took_s, result = await bench.seed.timed(getattr(made, form))
    else:
        async with operation.ours(bench, n) as call:
            await bench.control(delays_s)
            began = time.perf_counter()
            result = await call()
            took_s = time.perf_counter() - began
            asked = await bench.control({})
            return took_s, operation.told(result), asked
    return took_s, operation.told(result), await bench.control({})


async def at_size(
    bench: Bench, operation: Operation, n: int, least: int, forms: Sequence[str]
) -> tuple[Sized, float]:
    """The forms in turn, `least` times, or more where they are short; and the bound, in seconds."""
    delays_s = {name: delay * bench.scale for name, delay in operation.far_s.items()}
    await operation.load(bench, n)
    far_s = {**await seen_s(bench, delays_s), "ends_s": ends_s(bench)}
    measured = {form: Measured() for form in forms}
    expected: Any = None
    spent_s, number = 0.0, -WARM_UPS
    while number < least or (spent_s < ENOUGH_S and number < MOST):
        for form, told in measured.items():
            # First without a distance: connections are opened, and statements prepared.
            delays = delays_s if number >= 0 else {}
            took_s, result, asked = await one_form(bench, operation, form, n, delays)
            expected = result if expected is None else expected
            if result != expected or not result:
                words = f"{form} says {str(result)[:SHOWN]} and not {str(expected)[:SHOWN]}"
                raise Unequal(f"{operation.name}, n = {n}: {words}")
            if number < 0:
                told.own_s = took_s
                continue
            spent_s += took_s
            told.times_s.append(took_s)
            told.database = asked.pop("database", 0)
            told.server = sum(asked.values())
        number += 1
    return measured, operation.bound_s(n, far_s)


HEAD = (
    f"{'operation':42} {'n':>4} {'sequential':>10} {'gather':>8} {'ours':>8} {'bound':>8}"
    f" {'own':>7} | {'faster':>7} {'/gather':>7} | {'eff. gather':>11} {'ours':>6}"
    f" | {'trips: seq.':>11} {'gather':>8} {'ours':>8}"
    f" | x2, x4: {'bound':>9} {'gather':>9} {'ours':>9} {'trips of ours':>20}"
)


def row(operation: Operation, sizes: Sequence[tuple[int, Sized, float]]) -> str:
    n, forms, bound_s = sizes[0]
    sequential, gather, ours = (forms[form] for form in FORMS)

    def grown(values: Sequence[float]) -> str:
        return " ".join(f"{value / values[0]:.1f}" for value in values[1:])

    times = {form: [sized[form].s for _, sized, _ in sizes] for form in GROWN}
    trips = " ".join(sized["ours"].trips for _, sized, _ in sizes)
    return (
        f"{operation.name:42} {n:>4} {sequential.s * 1e3:>10.1f} {gather.s * 1e3:>8.1f}"
        f" {ours.s * 1e3:>8.1f} {bound_s * 1e3:>8.1f} {ours.own_s * 1e3:>7.1f}"
        f" | {sequential.s / ours.s:>6.1f}x {gather.s / ours.s:>6.2f}x"
        f" | {bound_s / gather.s:>11.2f} {bound_s / ours.s:>6.2f}"
        f" | {sequential.trips:>11} {gather.trips:>8} {ours.trips:>8}"
        f" |         {grown([bound for _, _, bound in sizes]):>9} {grown(times['gather']):>9}"
        f" {grown(times['ours']):>9} {trips:>20}"
    )


async def main(folder: Path, scale: float, *, tiny: bool, only: str) -> None:
    growth, times = ((1,), 1) if tiny else (GROWTH, ROUNDS)
    began = time.perf_counter()
    chosen = [one for one in operations(scale) if only in one.name.lower()]
    async with open_bench(folder, scale, agents=10 * growth[-1]) as bench:
        print(f"Waits are {scale:g} of what the operations tell of; times in ms; {load()}\n{HEAD}")
        for operation in chosen:
            sizes: list[tuple[int, Sized, float]] = []
            for factor in growth:
                n = operation.n * factor
                first = (times, FORMS) if factor == 1 else (1, GROWN)
                measured, bound_s = await at_size(bench, operation, n, *first)
                sizes.append((n, measured, bound_s))
            print(row(operation, sizes), flush=True)
        print("\n".join(bench.remarks))
    print(f"All forms came to equal results. {time.perf_counter() - began:.0f} s; {load()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ten operations in four forms, in one run.")
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--tiny", action="store_true", help="once, and no growth")
    parser.add_argument("--only", default="", help="a part of an operation's name")
    given = parser.parse_args()
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="cb") as name:
        # The server may run as another user, who has to get in.
        Path(name).chmod(0o755)
        trio.run(partial(main, Path(name), given.scale, tiny=given.tiny, only=given.only.lower()))
