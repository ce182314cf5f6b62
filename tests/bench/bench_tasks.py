"""What tasks cost against their number: the ready set, a claim, an ending, and their bounds.

Run as `python tests/bench/bench_tasks.py [n ...]` (`make bench-tasks`). A random fleet: n tasks,
three edges each to earlier ones, half of them done, so that a good part is ready; priorities,
deadlines, needs and ages as they come. Beside ours: the bound (k rows by their keys, the
least that any statement which brings k tasks can do), a plain scan that scores all that is ready,
and what a program would do that had the graph in memory (graphlib, networkx): build it, and ask
it for what is ready. Times are wall times over the bridge, medians; client and server share the
machine.
"""

import argparse
import functools
import graphlib
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import networkx as nx
import trio

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

from custosd.adapters.postgres import task_queries  # noqa: E402 - after the path
from custosd.adapters.postgres.bridge import Connection, Database, open_database  # noqa: E402
from custosd.adapters.postgres.embedded import embedded_postgres  # noqa: E402
from custosd.adapters.postgres.migrations import migrate  # noqa: E402
from custosd.adapters.postgres.tasks import PostgresTasks  # noqa: E402
from custosd.core.agents import AgentId  # noqa: E402
from custosd.core.tasks import (  # noqa: E402
    ClaimRequest,
    Holder,
    NewTask,
    ScoreRules,
    TaskId,
    TaskPriority,
)

EDGES_EACH = 3
NEEDS = ((), ("python",), ("docker", "python"), ("gpu",))
ABLE = ("docker", "python")
ROUNDS = 30
BATCH = 100
ADDED_AT_A_TIME = 5_000

_numbers = itertools.count()


async def median_ms(call: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        await call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def timed_ms(call: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def fleet_of(n: int, drawn: random.Random) -> list[NewTask]:
    now = datetime.now(UTC)
    tasks = []
    for k in range(n):
        # To near ones: a fleet's work comes in chains, not as one layer over one root.
        near = range(max(0, k - 400), k)
        waits = drawn.sample(near, min(EDGES_EACH, len(near)))
        deadline = now + timedelta(seconds=drawn.uniform(600, 86_400))
        tasks.append(
            NewTask(
                TaskId(f"t{k:06}"),
                "a task",
                priority=drawn.choice(list(TaskPriority)),
                depends_on=tuple(TaskId(f"t{w:06}") for w in waits),
                capabilities=drawn.choice(NEEDS),
                deadline_utc=deadline if drawn.random() < 0.2 else None,
            )
        )
    return tasks


# As if the first half had been done in their order, over the last three hours.
_HALF_DONE = """
update custosd.tasks set state = 'succeeded', ended_utc = now(), ready_utc = null, unmet = 0,
    blocking = 0, overdue = false
where id < $1 or (random() < 0.3 and id < $2)
"""
_RECOUNT = """
with counts as (
    select e.task_id, e.depends_on, d.state <> 'succeeded' as unmet, w.ended_utc is null as waits
    from custosd.task_edges as e
    join custosd.tasks as d on d.id = e.depends_on join custosd.tasks as w on w.id = e.task_id
), summed as (
    select id, sum(unmet) as unmet, sum(blocking) as blocking from (
        select task_id as id, count(*) filter (where unmet) as unmet, 0 as blocking
        from counts group by task_id
        union all
        select depends_on, 0, count(*) filter (where waits) from counts group by depends_on
    ) as both_ways group by id
)
update custosd.tasks as t set unmet = summed.unmet, blocking = summed.blocking
from summed where summed.id = t.id and t.ended_utc is null
"""
_RELEASE = """
update custosd.tasks set state = 'ready', ready_utc = now() - random() * interval '3 hours'
where unmet = 0 and state = 'blocked'
"""
_ONE_LAYER = """
update custosd.tasks set state = 'ready', unmet = 0, ended_utc = null,
    ready_utc = now() - random() * interval '3 hours'
"""

_GIVE_BACK = """
update custosd.tasks set state = 'ready', lease_until_utc = null, attempts = 0
where state = 'claimed'
"""

_BOUND_READ = f"select {task_queries._TASK} from custosd.tasks as t where t.id = any($1)"
_BOUND_CLAIM = """
update custosd.tasks set not_before_utc = not_before_utc where id = any($1) returning id
"""


def scan_query(limit: int) -> str:
    scored = task_queries._score(ScoreRules())
    return f"""
    with {task_queries._CLOCK}
    select t.id, s.score from clock cross join custosd.tasks as t {scored}
    where t.state = 'ready' and t.ready_utc <= clock.now_utc and t.capabilities <@ $2::text[]
    order by s.score desc, t.ready_utc, t.id limit {limit}
    """


async def _execute(conn: Connection, sql: str, *args: Any) -> Any:
    return await conn.execute(sql, *args)


async def _fetch(conn: Connection, sql: str, *args: Any) -> Any:
    return await conn.fetch(sql, *args)


async def fill(database: Database, tasks: list[NewTask]) -> float:
    await database.unit(_execute, "truncate custosd.tasks cascade")
    store = PostgresTasks(database)
    start = time.perf_counter()
    for first in range(0, len(tasks), ADDED_AT_A_TIME):
        await store.add(tasks[first : first + ADDED_AT_A_TIME], "bench")
    return time.perf_counter() - start


async def settle_in(database: Database, n: int) -> int:
    await database.unit(_execute, _HALF_DONE, f"t{n // 2:06}", f"t{n:06}")
    await database.unit(_execute, "analyze custosd.tasks, custosd.task_edges", tx=False)
    await database.unit(_execute, _RECOUNT)
    await database.unit(_execute, _RELEASE)
    await database.unit(_execute, "vacuum analyze custosd.tasks", tx=False)
    await database.unit(_execute, "vacuum analyze custosd.task_edges", tx=False)
    found = await database.unit(_fetch, "select count(*) from custosd.tasks where state = 'ready'")
    return int(found[0][0])


async def claim_and_complete(
    store: PostgresTasks, limit: int, told: dict[str, list[float]]
) -> None:
    agent = AgentId("bench")
    start = time.perf_counter()
    claimed = await store.claim(ClaimRequest(agent, 60.0, limit, capabilities=ABLE))
    told["claim"].append(time.perf_counter() - start)
    assert claimed.tasks
    for task in claimed.tasks[:1]:
        start = time.perf_counter()
        await store.complete(task.id, Holder(agent, task.fence))
        told["complete"].append(time.perf_counter() - start)


async def ours_ms(database: Database, rounds: int = ROUNDS) -> dict[str, float]:
    store = PostgresTasks(database)
    partial = functools.partial
    rows: dict[str, float] = {}
    for limit in (1, 10, BATCH):
        rows[f"next {limit}, scored"] = await median_ms(partial(store.next_tasks, limit, ABLE))
        ids = [one.task.id for one in await store.next_tasks(limit, ABLE)]
        read = partial(database.unit, _fetch, _BOUND_READ, ids, tx=False)
        rows[f"bound: {limit} rows by key"] = await median_ms(read)
        scan = partial(database.unit, _fetch, scan_query(limit), None, list(ABLE), tx=False)
        rows[f"plain scan, scored, {limit}"] = await median_ms(scan, 5)
    for limit in (1, 10):
        told: dict[str, list[float]] = {"claim": [], "complete": []}
        for _ in range(rounds):
            await claim_and_complete(store, limit, told)
            await database.unit(_execute, _GIVE_BACK)
        rows[f"claim {limit}"] = statistics.median(told["claim"]) * 1e3
        ids = [one.task.id for one in await store.next_tasks(limit, ABLE)]
        touch = partial(database.unit, _fetch, _BOUND_CLAIM, ids, tx=False)
        rows[f"bound: update {limit} rows"] = await median_ms(touch)
        rows[f"complete (of {limit})"] = statistics.median(told["complete"]) * 1e3
    rows["expire, nothing due"] = await median_ms(store.expire)
    agents = [AgentId(f"agent-{n}") for n in range(1_000)]
    rows["assigned, 1000 agents"] = await median_ms(partial(store.assigned, agents), 10)
    return rows


async def graph_ms(database: Database) -> dict[str, float]:
    """What is ready, by the graph in memory: reading it, building it, asking it."""
    start = time.perf_counter()
    tasks = await database.unit(_fetch, "select id, state from custosd.tasks", tx=False)
    edges = await database.unit(_fetch, "select task_id, depends_on from custosd.task_edges")
    read_ms = (time.perf_counter() - start) * 1e3
    open_ids = {row["id"] for row in tasks if row["state"] != "succeeded"}
    pairs = [(row["task_id"], row["depends_on"]) for row in edges]

    def by_graphlib() -> int:
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for id_ in open_ids:
            sorter.add(id_)
        for waiter, other in pairs:
            if waiter in open_ids and other in open_ids:
                sorter.add(waiter, other)
        sorter.prepare()
        return len(sorter.get_ready())

    def by_networkx() -> int:
        graph = nx.DiGraph()
        graph.add_nodes_from(open_ids)
        graph.add_edges_from(
            (other, waiter) for waiter, other in pairs if waiter in open_ids and other in open_ids
        )
        return len(next(nx.topological_generations(graph), []))

    return {
        "read the graph": read_ms,
        "graphlib: build, ready": timed_ms(by_graphlib),
        "networkx: build, ready": timed_ms(by_networkx),
    }


async def explain(database: Database) -> None:
    now = datetime.now(UTC)
    query = task_queries.claim(ScoreRules(), 4)
    args = (now, list(ABLE), 1, 7, "bench", 0, timedelta(seconds=60), "")

    async def plan(conn: Connection) -> list[Any]:
        await conn.execute("begin")
        try:
            await conn.execute("set local plan_cache_mode = force_generic_plan")
            return await conn.fetch(f"explain (analyze, costs off, timing off) {query}", *args)
        finally:
            await conn.execute("rollback")

    for row in await database.unit(plan, tx=False):
        line = row[0]
        if any(word in line for word in ("Scan", "Time", "Update", "LockRows", "Limit")):
            print(line)


async def main(folder: Path, sizes: list[int]) -> None:
    columns: dict[str, dict[str, float]] = {}
    async with (
        embedded_postgres(folder / "postgres") as server,
        open_database(server.dsn, statement_timeout_s=120.0) as database,
    ):
        await migrate(database)
        for n in sizes:
            tasks = fleet_of(n, random.Random(n))
            added_s = await fill(database, tasks)
            ready = await settle_in(database, n)
            column = {"ready": float(ready), "add, us a task": added_s / n * 1e6}
            column |= await ours_ms(database)
            column |= await graph_ms(database)
            columns[f"n = {n}"] = column
        print("## the claim's plan at the largest n\n")
        await explain(database)
        n = sizes[-1]
        await database.unit(_execute, _ONE_LAYER)
        await database.unit(_execute, "vacuum analyze custosd.tasks", tx=False)
        print("\n## with all of them ready\n")
        await explain(database)
        columns[f"n = {n}, all ready"] = {"ready": float(n)} | await ours_ms(database, 10)
    print("\n| ms | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    for name in names:
        cells = (f"{column[name]:.2f}" if name in column else "" for column in columns.values())
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="*", type=int, default=[1_000, 10_000, 100_000])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="custosd-bench-") as folder:
        # The server may run as another user, who has to get in.
        Path(folder).chmod(0o755)
        trio.run(main, Path(folder), asked.n)
