"""What `bench_operations` works on: servers at a distance, a fleet, tasks, files."""

import json
import random
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from bench_cycle import edit, test_run
from operations_ours import OVERLAPPING, Ours
from operations_seed import Ready, SeedAgent, SeedSide

from custosd.adapters.postgres.bridge import Connection, Database, open_database
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.postgres.migrations import migrate
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.core.agents import AgentId, shard_of
from custosd.core.tasks import AUTHORITY, ClaimRequest, NewTask, TaskId, TaskPriority

HELD = 3
STEPS = 15
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
            "cwd": f"/srv/{place}",
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
