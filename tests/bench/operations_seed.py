"""Ten operations as a program on asyncio does them: one after the other, and by gather.

Each operation has a class with two methods, `sequential` and `gather`, in the forms that one
finds: a loop of awaits; `asyncio.gather` over all, with a semaphore where there is a limit. At
their cheapest: bare asyncpg on open connections, no session's BEGIN and ROLLBACK around a query,
which an ORM adds, and no reset when a connection goes back.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import asyncpg
import trio

T = TypeVar("T")

CONNECTIONS = 10

_FOLD = "select fold from custosd.trajectories where shard = $1 and agent_id = $2"
_VERDICTS = """
select * from custosd.verdicts where shard = $1 and agent_id = $2 order by at_utc desc limit 10
"""
_DIGESTS = "select agent_id, digest::text from custosd.trajectories where agent_id = any($1)"
_ASSIGNED = """
select id from seed.tasks where assigned_agent_id = $1 and status in ('assigned', 'running')
"""
_PENDING = "select id, depends_on from seed.tasks where status = 'pending'"
_UNMET = "select count(*) from seed.tasks where id = any($1) and status <> 'completed'"
_NEXT = """
select id from seed.tasks where status = 'pending' and ready order by score desc, id limit $1
"""
_SCORE = "update seed.tasks set score = $2 where id = $1"
_REFRESH = "select * from seed.tasks where id = $1"
_CLAIM = """
update seed.tasks set status = 'assigned', assigned_agent_id = $2
where id = $1 and status = 'pending' returning id
"""
_MISSED = "select id from seed.agents where missed >= 3 and id = any($1)"
_STATE = "update seed.agents set state = $2 where id = $1"
_WORK = """
insert into seed.works (repository, kind, key, body) values ($1, $2, $3, $4)
on conflict (repository, kind, key) do update set body = excluded.body
"""


async def _keep(_: Any) -> None:
    """What asyncpg would do when a connection goes back: a round trip of its own."""


class SeedSide:
    """An asyncio loop on a thread of its own, with connections to the database and a client."""

    pool: "asyncpg.Pool[Any]"
    session: aiohttp.ClientSession

    def __init__(self, dsn: str, url: str) -> None:
        self.url = url
        self._dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    async def open(self) -> None:
        self._thread.start()
        await self.run(self._open)

    async def _open(self) -> None:
        self.pool = await asyncpg.create_pool(
            self._dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=_keep
        )
        self.session = aiohttp.ClientSession()

    async def aclose(self) -> None:
        async def close() -> None:
            await self.session.close()
            await self.pool.close()

        await self.run(close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await trio.to_thread.run_sync(self._thread.join)
        self._loop.close()

    async def run(self, afn: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `afn()` over there; from trio."""
        future = asyncio.run_coroutine_threadsafe(afn(), self._loop)
        return await trio.to_thread.run_sync(future.result)

    async def timed(self, afn: Callable[[], Awaitable[T]]) -> tuple[float, T]:
        """The same, and how long it took over there, in seconds."""

        async def clocked() -> tuple[float, T]:
            began = time.perf_counter()
            result = await afn()
            return time.perf_counter() - began, result

        return await self.run(clocked)

    async def post(self, path: str, body: object) -> Any:
        async with self.session.post(self.url + path, json=body) as answer:
            return await answer.json()

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as answer:
            return await answer.json()


@dataclass(frozen=True, slots=True)
class SeedAgent:
    """An agent, as far as its analysis goes."""

    id: str
    shard: int
    goal: str


@dataclass(frozen=True, slots=True)
class Analyses:
    """One agent: what is known of it, then a model's word; at most so many at once (0: all)."""

    side: SeedSide
    agents: Sequence[SeedAgent]
    most: int = 0
    queries: bool = True

    async def one(self, agent: SeedAgent) -> tuple[str, str]:
        if self.queries:
            await self.side.pool.fetch(_VERDICTS, agent.shard, agent.id)
            await self.side.pool.fetch(_FOLD, agent.shard, agent.id)
        asked = {"model": "m", "messages": [{"role": "user", "content": agent.goal}]}
        said = await self.side.post("/v1/chat/completions", asked)
        verdict = json.loads(said["choices"][0]["message"]["content"])
        return agent.id, verdict["summary"]

    async def sequential(self) -> dict[str, str]:
        return dict([await self.one(agent) for agent in self.agents])

    async def gather(self) -> dict[str, str]:
        semaphore = asyncio.Semaphore(self.most or len(self.agents))

        async def limited(agent: SeedAgent) -> tuple[str, str]:
            async with semaphore:
                return await self.one(agent)

        return dict(await asyncio.gather(*[limited(agent) for agent in self.agents]))


@dataclass(frozen=True, slots=True)
class Fleet:
    """The conductor: all agents in one query, and one pair compared."""

    side: SeedSide
    agents: Sequence[SeedAgent]

    async def sweep(self) -> int:
        names = [agent.id for agent in self.agents]
        await self.side.pool.fetch(_DIGESTS, names)
        said = await self.side.post("/pair", {"agents": names[:2]})
        return int("same" in said)


@dataclass(frozen=True, slots=True)
class Emergency:
    """Named agents, then the fleet."""

    analyses: Analyses
    fleet: Fleet

    async def sequential(self) -> tuple[dict[str, str], int]:
        return await self.analyses.sequential(), await self.fleet.sweep()

    async def gather(self) -> tuple[dict[str, str], int]:
        return await self.analyses.gather(), await self.fleet.sweep()


@dataclass(frozen=True, slots=True)
class Cycle:
    """Guardian and conductor, one after the other or at once; the guardian by gather."""

    analyses: Analyses
    fleet: Fleet

    async def sequential(self) -> tuple[dict[str, str], int]:
        return await self.analyses.gather(), await self.fleet.sweep()

    async def gather(self) -> tuple[dict[str, str], int]:
        analysed, compared = await asyncio.gather(self.analyses.gather(), self.fleet.sweep())
        return analysed, compared


@dataclass(frozen=True, slots=True)
class Restarts:
    """Agents that missed heartbeats; each is started, and its state stored before and after."""

    side: SeedSide
    agents: Sequence[str]
    spawn_s: float
    most: int

    async def one(self, agent: str) -> str:
        await self.side.pool.execute(_STATE, agent, "restarting")
        await asyncio.sleep(self.spawn_s)
        await self.side.pool.execute(_STATE, agent, "running")
        return agent

    async def missed(self) -> list[str]:
        return [row["id"] for row in await self.side.pool.fetch(_MISSED, list(self.agents))]

    async def sequential(self) -> set[str]:
        return {await self.one(agent) for agent in await self.missed()}

    async def gather(self) -> set[str]:
        semaphore = asyncio.Semaphore(self.most)

        async def limited(agent: str) -> str:
            async with semaphore:
                return await self.one(agent)

        return set(await asyncio.gather(*[limited(agent) for agent in await self.missed()]))


@dataclass(frozen=True, slots=True)
class Assigned:
    """The tasks that each of these agents has, a query for each."""

    side: SeedSide
    agents: Sequence[str]

    async def one(self, agent: str) -> frozenset[str]:
        return frozenset(row["id"] for row in await self.side.pool.fetch(_ASSIGNED, agent))

    async def sequential(self) -> dict[str, frozenset[str]]:
        return {agent: await self.one(agent) for agent in self.agents}

    async def gather(self) -> dict[str, frozenset[str]]:
        found = await asyncio.gather(*[self.one(agent) for agent in self.agents])
        return dict(zip(self.agents, found, strict=True))


@dataclass(frozen=True, slots=True)
class Ready:
    """Tasks all of whose dependencies are done, a query for each."""

    side: SeedSide

    async def one(self, pool: Any, row: Mapping[str, Any]) -> str:
        unmet = await pool.fetchval(_UNMET, row["depends_on"])
        return "" if unmet else row["id"]

    async def sequential(self) -> set[str]:
        rows = await self.side.pool.fetch(_PENDING)
        return {await self.one(self.side.pool, row) for row in rows} - {""}

    async def gather(self) -> set[str]:
        """Each query on a connection of its own: on one session they cannot be at once."""
        rows = await self.side.pool.fetch(_PENDING)
        return set(await asyncio.gather(*[self.one(self.side.pool, row) for row in rows])) - {""}

    async def as_written(self) -> str:
        """All checks at once on the session that read the tasks; returns the error's name."""
        async with self.side.pool.acquire() as one:
            rows = await one.fetch(_PENDING)
            ended = await asyncio.gather(
                *[self.one(one, row) for row in rows], return_exceptions=True
            )
        return next((type(each).__name__ for each in ended if isinstance(each, Exception)), "none")


@dataclass(frozen=True, slots=True)
class Batch:
    """The next tasks, each scored, stored and read again."""

    side: SeedSide
    count: int
    scores: Mapping[str, float]

    async def sequential(self) -> set[str]:
        async with self.side.pool.acquire() as conn, conn.transaction():
            chosen = [row["id"] for row in await conn.fetch(_NEXT, self.count)]
            for task in chosen:
                await conn.execute(_SCORE, task, self.scores[task])
            for task in chosen:
                await conn.fetchrow(_REFRESH, task)
        return set(chosen)

    async def gather(self) -> set[str]:
        async def score(task: str) -> float:
            return self.scores[task]

        async with self.side.pool.acquire() as conn, conn.transaction():
            chosen = [row["id"] for row in await conn.fetch(_NEXT, self.count)]
            scored = await asyncio.gather(*[score(task) for task in chosen])
            await conn.executemany(_SCORE, list(zip(chosen, scored, strict=True)))
            for task in chosen:
                await conn.fetchrow(_REFRESH, task)
        return set(chosen)


@dataclass(frozen=True, slots=True)
class Claims:
    """The next tasks, each given to an agent."""

    side: SeedSide
    count: int
    agent: str

    async def one(self, task: str) -> str:
        return str(await self.side.pool.fetchval(_CLAIM, task, self.agent))

    async def chosen(self) -> list[str]:
        return [row["id"] for row in await self.side.pool.fetch(_NEXT, self.count)]

    async def sequential(self) -> set[str]:
        return {await self.one(task) for task in await self.chosen()}

    async def gather(self) -> set[str]:
        return set(await asyncio.gather(*[self.one(task) for task in await self.chosen()]))


@dataclass(frozen=True, slots=True)
class Files:
    """The last lines of each file in each folder; each file answers after `pause_s`."""

    folders: Sequence[Path]
    names: Sequence[str]
    lines: int
    pause_s: float

    @property
    def paths(self) -> list[Path]:
        return [folder / name for folder in self.folders for name in self.names]

    def read(self, path: Path) -> str:
        time.sleep(self.pause_s)
        with path.open() as file:
            return "".join(file.readlines()[-self.lines :])

    async def sequential(self) -> dict[str, str]:
        return {str(path): self.read(path) for path in self.paths}

    async def gather(self) -> dict[str, str]:
        """Each file's opening and reading in a thread, as libraries for asyncio do it."""

        async def one(path: Path) -> str:
            return await asyncio.to_thread(self.read, path)

        texts = await asyncio.gather(*[one(path) for path in self.paths])
        return dict(zip(map(str, self.paths), texts, strict=True))


@dataclass(frozen=True, slots=True)
class Repositories:
    """Repositories on a forge: each part of each is asked for, and what came is stored."""

    side: SeedSide
    names: Sequence[str]
    most: int

    async def one(self, name: str) -> int:
        await self.side.get(f"/repos/{name}")
        count = 0
        for kind, key in (("pulls", "number"), ("issues", "number"), ("commits", "sha")):
            works = await self.side.get(f"/repos/{name}/{kind}")
            rows = [(name, kind, str(work[key]), json.dumps(work)) for work in works]
            await self.side.pool.executemany(_WORK, rows)
            count += len(rows)
        return count

    async def sequential(self) -> int:
        return sum([await self.one(name) for name in self.names])

    async def gather(self) -> int:
        semaphore = asyncio.Semaphore(self.most)

        async def limited(name: str) -> int:
            async with semaphore:
                return await self.one(name)

        return sum(await asyncio.gather(*[limited(name) for name in self.names]))
