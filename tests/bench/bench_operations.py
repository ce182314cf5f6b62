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
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import trio

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

from bench_cycle import edit, test_run  # noqa: E402 - after the path
from measures import load  # noqa: E402
from operations_ours import OVERLAPPING, Call, Ours  # noqa: E402
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
    SeedAgent,
    SeedSide,
)
from tests.simulation.run import quiet_logs  # noqa: E402

from custosd.adapters.postgres.bridge import Connection, Database, open_database  # noqa: E402
from custosd.adapters.postgres.embedded import embedded_postgres  # noqa: E402
from custosd.adapters.postgres.migrations import migrate  # noqa: E402
from custosd.adapters.postgres.tasks import PostgresTasks  # noqa: E402
from custosd.core.agents import AgentId, shard_of  # noqa: E402
from custosd.core.tasks import (  # noqa: E402
    AUTHORITY,
    ClaimRequest,
    NewTask,
    TaskId,
    TaskPriority,
)

ROUNDS = 3
MOST = 9
ENOUGH_S = 1.0
WARM_UPS = 2
GROWTH = (1, 2, 4)
HELD = 3
STEPS = 15
SHOWN = 400
LINES = 2_000
NAMES = ("agent.log", "conversation.log", "output.log", "stderr.log", "stdout.log")

_SCHEMA = """
create schema seed;
create table seed.tasks (id text primary key, status text not null, depends_on text[] not null,
    assigned_agent_id text, score double precision not null, ready boolean not null);
create index on seed.tasks (assigned_agent_id);
create index on seed.tasks (score) where status = 'pending';
create table seed.agents (id text primary key, missed int not null, state text not null);
create table seed.works (repository text, kind text, key text, body jsonb not null,
    primary key (repository, kind, key));
"""
_COPY_TASKS = """
insert into seed.tasks
select t.id, case when t.state = 'succeeded' then 'completed'
                  when t.state = 'claimed' then 'assigned' else 'pending' end,
       coalesce((select array_agg(e.depends_on::text) from custosd.task_edges as e
                 where e.task_id = t.id), '{}'),
       t.agent_id, 0.0, t.state = 'ready'
from custosd.tasks as t
"""
_GIVE_BACK = """
update custosd.tasks set state = 'ready', lease_until_utc = null, attempts = 0
where state = 'claimed';
update seed.tasks set status = 'pending', assigned_agent_id = null where status = 'assigned';
"""
_FORGET_WORKS = """
truncate seed.works; truncate custosd.sync_repositories, custosd.sync_cursors, custosd.works cascade
"""


async def _execute(conn: Connection, sql: str, *args: object) -> None:
    await conn.execute(sql, *args)


async def _execute_all(conn: Connection, sql: str, rows: Sequence[Sequence[object]]) -> None:
    await conn.executemany(sql, rows)


@dataclass(slots=True)
class Bench:
    """Everything that an operation may need."""

    scale: float
    folder: Path
    database: Database
    seed: SeedSide
    ours: Ours
    agents: list[SeedAgent] = field(default_factory=list[SeedAgent])
    scores: dict[str, float] = field(default_factory=dict[str, float])
    remarks: list[str] = field(default_factory=list[str])

    async def sql(self, sql: str, *args: object) -> None:
        await self.database.unit(_execute, sql, *args)

    async def control(self, delays_s: Mapping[str, float]) -> dict[str, int]:
        """Set how far everything is; what was asked since the last time."""
        return await self.seed.run(partial(self.seed.post, "/control", dict(delays_s)))


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


# --- what there is to work on -------------------------------------------------------------------


def goal(agent: int) -> str:
    """In words that no other agent's goal has, but for the first two: about these one may ask."""
    drawn = random.Random(max(agent, OVERLAPPING - 1))
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(60)]
    return f"Make feature {agent} work. {' '.join(words)}"


def write_transcripts(folder: Path, agents: int) -> None:
    """So many agents at work, and first two at the same."""
    for agent in range(agents + OVERLAPPING):
        place = 0 if agent < OVERLAPPING else agent
        header = {
            "custosd": 1,
            "session": f"s{agent}",
            "cwd": f"/work/{place}",
            "goal": goal(agent),
        }
        # An edit before each test: nobody is stuck, and nothing is said but by the model.
        steps = [made(place, n) for n in range(STEPS) for made in (edit, test_run)]
        lines = [json.dumps(header).encode() + b"\n", *steps]
        (folder / f"{agent}.jsonl").write_bytes(b"".join(lines))


async def load_tasks(bench: Bench, pending: int) -> None:
    """So many tasks that wait, half as many that are done, and what waits for what."""
    tasks, drawn = PostgresTasks(bench.database), random.Random(pending)
    await bench.sql("truncate custosd.tasks, custosd.task_edges, seed.tasks cascade")
    done = [TaskId(f"d{n:05}") for n in range(max(pending // 2, 1))]
    await tasks.add([NewTask(name, "done") for name in done], "bench")
    for name in done:
        await tasks.complete(name, AUTHORITY)
    waiting = [TaskId(f"p{n:05}") for n in range(pending)]
    made = []
    for number, name in enumerate(waiting):
        needs = drawn.sample(done, min(2, len(done)))
        if number and drawn.random() < 0.4:
            needs.append(drawn.choice(waiting[:number]))
        priority = drawn.choice(list(TaskPriority))
        made.append(NewTask(name, "waits", priority=priority, depends_on=tuple(needs)))
    await tasks.add(made, "bench")
    await bench.sql(_COPY_TASKS)
    ranked = await tasks.next_tasks(pending, ())
    # Among equals the order is ours to keep: as many forms as there are take the same ones.
    bench.scores = {
        str(scored.task.id): scored.score - rank * 1e-9 for rank, scored in enumerate(ranked)
    }
    rows = [(score, task) for task, score in bench.scores.items()]
    await bench.database.unit(_execute_all, "update seed.tasks set score = $1 where id = $2", rows)
    await bench.sql("analyze custosd.tasks; analyze custosd.task_edges; analyze seed.tasks")


async def load_batch(bench: Bench, count: int) -> None:
    await load_tasks(bench, count * 10)


async def load_assigned(bench: Bench, agents: int) -> None:
    """So many agents, each with some tasks that it has claimed."""
    tasks = PostgresTasks(bench.database)
    await bench.sql("truncate custosd.tasks, custosd.task_edges, seed.tasks cascade")
    made = [NewTask(TaskId(f"t{n:05}"), "held") for n in range(agents * HELD)]
    await tasks.add(made, "bench")
    for name in names_of(agents):
        await tasks.claim(ClaimRequest(AgentId(name), 3_600.0, HELD))
    await bench.sql(_COPY_TASKS)


async def load_agents(bench: Bench, agents: int) -> None:
    await bench.sql("truncate seed.agents")
    rows = [(name, 3, "running") for name in names_of(agents)]
    await bench.database.unit(_execute_all, "insert into seed.agents values ($1, $2, $3)", rows)


async def load_folders(bench: Bench, agents: int) -> None:
    line = "2026-01-01 12:00:00 INFO handled request {} path=/api/v1/items status=200\n"
    text = "".join(line.format(n) for n in range(LINES))
    for folder in folders_of(bench, agents):
        folder.mkdir(exist_ok=True)
        for name in NAMES:
            (folder / name).write_text(text)


async def try_as_written(bench: Bench, tasks: int) -> None:
    """What comes of checks that are all to be made at once on one session."""
    await load_tasks(bench, tasks)
    error = await bench.seed.run(Ready(bench.seed).as_written)
    remark = f"Ready set, gather on one session, as it is often written: {error};"
    if not any(known.startswith(remark) for known in bench.remarks):
        bench.remarks.append(f"{remark} measured with a connection for each query.")


async def give_back(bench: Bench) -> None:
    await bench.sql(_GIVE_BACK)


async def forget_works(bench: Bench) -> None:
    await bench.sql(_FORGET_WORKS)


def names_of(agents: int) -> list[str]:
    return [f"agent-{n}" for n in range(agents)]


def folders_of(bench: Bench, agents: int) -> list[Path]:
    return [bench.folder / f"w{n}" for n in range(agents)]


def repositories(count: int) -> list[str]:
    return [f"ada/engine-{n}" for n in range(count)]


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


@contextmanager
def started(command: Sequence[str]) -> Generator[str]:
    """A server, by the address that it prints, for the block."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@asynccontextmanager
async def open_bench(folder: Path, scale: float, agents: int) -> AsyncGenerator[Bench]:
    """Servers, connections and a fleet whose transcripts have been read."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(embedded_postgres(folder / "pg"))
        near = await stack.enter_async_context(open_database(server.dsn))
        await migrate(near)
        await near.unit(_execute, _SCHEMA)
        query = parse_qs(urlsplit(server.dsn).query)
        socket = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        away = folder / "far"
        away.mkdir()
        program = str(Path(__file__).with_name("operations_server.py"))
        command = [sys.executable, program, str(away), socket]
        url = stack.enter_context(started(command))
        dsn = server.dsn.replace(quote(query["host"][0], safe=""), quote(str(away), safe=""))
        dsn = dsn.replace(query["host"][0], str(away))
        far = await stack.enter_async_context(open_database(dsn))
        seed = SeedSide(dsn, url)
        await seed.open()
        stack.push_async_callback(seed.aclose)
        bench = Bench(scale, folder, near, seed, Ours(far, url, folder))
        transcripts = folder / "transcripts"
        transcripts.mkdir()
        write_transcripts(transcripts, agents)
        await bench.ours.take_in(transcripts, agents + OVERLAPPING, near)
        bench.agents = [
            SeedAgent(agent.ref.agent, shard_of(agent.ref.agent), agent.digest.goal)
            for agent in bench.ours.fleet(agents).agents.values()
            if agent.digest is not None
        ]
        yield bench


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
