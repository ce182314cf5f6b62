"""The bridge against asyncpg at home: `python tests/bench/bench_bridge.py`.

Ratios of one run, rounds interleaved, uvloop on both sides, the same pool size: above 1 the
bridge is the faster one. `native` is asyncpg's own pool as it comes (it resets a connection
at each release); `native, no reset` spares that as ours does.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import asyncpg
import trio

from custosd.adapters.postgres.bridge import Connection, Database, open_bridge, open_database
from custosd.adapters.postgres.embedded import embedded_postgres

ROUNDS = 7
TASKS = 50
QUERIES = 200
TRANSACTIONS = 40
POOL = 10


async def one(connection: Connection) -> object:
    return await connection.fetchval("select 1")


async def five(connection: Connection) -> object:
    for number in range(4):
        await connection.fetchval("select $1::int", number)
    return await connection.fetchval("select 1")


async def no_reset(_connection: object) -> None:
    return


async def native_pool(dsn: str, *, reset: bool) -> asyncpg.Pool:
    spared = {} if reset else {"reset": no_reset}
    return await asyncpg.create_pool(dsn, min_size=POOL, max_size=POOL, **spared)


async def native_round(pool: asyncpg.Pool, fn: Callable, count: int, *, tx: bool) -> float:
    async def worker() -> None:
        for _ in range(count):
            async with pool.acquire(timeout=5) as connection:
                if tx:
                    async with connection.transaction():
                        await fn(connection)
                else:
                    await fn(connection)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(TASKS)))
    return TASKS * count / (time.perf_counter() - began)


async def bridge_round(db: Database, fn: Callable, count: int, *, tx: bool) -> float:
    async def worker() -> None:
        for _ in range(count):
            await db.unit(fn, tx=tx)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(worker)
    return TASKS * count / (time.perf_counter() - began)


Round = Callable[..., Awaitable[float]]


async def measure(dsn: str) -> None:
    # The native rounds run on an asyncio loop that has the main thread to itself meanwhile:
    # trio waits in `run` of a second bridge, whose thread does nothing else.
    async with open_database(dsn, pool_size=POOL) as db, open_bridge() as native:
        pools = {
            "native": await native.run(partial(native_pool, dsn, reset=True)),
            "native, no reset": await native.run(partial(native_pool, dsn, reset=False)),
        }
        works = {
            f"select 1, {TASKS} x {QUERIES}": (one, QUERIES, False),
            f"transaction of 5, {TASKS} x {TRANSACTIONS}": (five, TRANSACTIONS, True),
        }
        print(f"{'work':34} {'side':18} {'units/s':>9} {'bridge ÷ it':>12}   lowest-highest")
        for name, (fn, count, tx) in works.items():
            await bridge_round(db, fn, 20, tx=tx)
            ours: list[float] = []
            theirs: dict[str, list[float]] = {side: [] for side in pools}
            for _ in range(ROUNDS):
                ours.append(await bridge_round(db, fn, count, tx=tx))
                for side, pool in pools.items():
                    theirs[side].append(
                        await native.run(partial(native_round, pool, fn, count, tx=tx))
                    )
            print(f"{name:34} {'bridge':18} {statistics.median(ours):9.0f}")
            for side, rates in theirs.items():
                ratios = [mine / rate for mine, rate in zip(ours, rates, strict=True)]
                print(
                    f"{'':34} {side:18} {statistics.median(rates):9.0f}"
                    f" {statistics.median(ratios):12.2f}   {min(ratios):.2f}-{max(ratios):.2f}"
                )
        for pool in pools.values():
            await native.run(pool.close)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder) / "postgres") as server:
            print(f"PostgreSQL {server.version}, asyncpg {asyncpg.__version__}, pool of {POOL}")
            await measure(server.dsn)


if __name__ == "__main__":
    trio.run(main)
