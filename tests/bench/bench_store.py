"""What the store costs: each method against the number of agents, on an embedded server.

Run as `python tests/bench/bench_store.py`. Times are wall time; client and server share
the machine. A method's cost a row should not grow with the number of rows.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import trio

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

from tests.contracts import store_values as some  # noqa: E402

from custosd.adapters.postgres.bridge import open_database  # noqa: E402 - after the path
from custosd.adapters.postgres.embedded import embedded_postgres  # noqa: E402
from custosd.adapters.postgres.migrations import migrate  # noqa: E402
from custosd.adapters.postgres.store import PostgresStore  # noqa: E402

FOLD_BYTES = 8_000
ROUNDS = 3


async def fastest_s(call: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await call()
        times.append(time.perf_counter() - start)
    return min(times)


async def measure(store: PostgresStore, n: int) -> dict[str, float]:
    refs = [some.ref(k) for k in range(n)]
    ids = [ref.agent for ref in refs]
    fold = bytes(range(256)) * (FOLD_BYTES // 256)
    batch = [
        some.progress(replace(some.run(ref), trajectory=fold), key=f"t{ref.run}") for ref in refs
    ]
    verdicts = [some.verdict(f"v{n}-{ref.run}", ref) for ref in refs]
    partial = functools.partial
    first_s = await fastest_s(partial(store.save_progress, batch))
    return {
        "save_progress": first_s,
        "record (verdicts)": await fastest_s(partial(store.record, some.verdict_entries(verdicts))),
        "recent_verdicts": await fastest_s(partial(store.recent_verdicts, ids, 10)),
        "trajectories": await fastest_s(partial(store.trajectories, refs)),
        "restore": await fastest_s(store.restore),
    }


async def main(folder: Path) -> None:
    print("| agents | method | ms | us an agent |\n|---|---|---|---|")
    async with (
        embedded_postgres(folder / "postgres") as server,
        open_database(server.dsn) as database,
    ):
        await migrate(database)
        store = PostgresStore(database)
        await store.prepare_days(some.NOON)
        for n in (10, 100, 1_000, 10_000):
            for method, took_s in (await measure(store, n)).items():
                print(f"| {n} | {method} | {took_s * 1e3:.1f} | {took_s / n * 1e6:.0f} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="custosd-bench-") as folder:
        # The server may run as another user, who has to get in.
        Path(folder).chmod(0o755)
        trio.run(main, Path(folder))
