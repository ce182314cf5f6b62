"""One guardian sweep over n agents, of which none, 1 % or 10 % changed; and an idle agent's cost.

Real files, the real source, the real store on its embedded PostgreSQL, the rules judge.
Each size runs in processes of its own: one takes all transcripts in, a second one starts
on what the first has stored, as the daemon does after a restart, and is measured.

    python tests/bench/bench_cycle.py [n ...]
"""

import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.context import LocalContext
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.postgres.bridge import open_database
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.postgres.migrations import migrate
from custosd.adapters.postgres.store import PostgresStore
from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.source import SourceSettings, open_source
from custosd.adapters.transcripts.tail import Formats
from custosd.core.detectors import DetectorLimits
from custosd.core.facts import Entry, Fact
from custosd.core.folds import Folds
from custosd.core.guardian import GuardianLimits
from custosd.core.view import FleetView
from custosd.flow.pulse import Pulse
from custosd.ports import Answer, Growth, Question
from custosd.services.guardian import Guardian, GuardianPorts, GuardianSetup
from custosd.services.ingest import store_rest
from custosd.services.intake import Intake

SIZES = (10, 100, 1_000, 10_000)
STEPS = 30


def now_utc() -> datetime:
    return datetime.now(UTC)


class CountingStore:
    """Passes everything on, and counts the crossings."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.round_trips = 0

    def __getattr__(self, name: str) -> Any:
        self.round_trips += 1
        return getattr(self._store, name)


class CountingJudge(RulesJudge):
    def __init__(self) -> None:
        self.calls = 0

    async def judge(self, question: Question) -> Answer:
        self.calls += 1
        return await super().judge(question)


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "sk", "lo")]


def goal(agent: int) -> str:
    """Sixty to a hundred and fifty words, begun as all are, and unlike any other agent's."""
    chosen = random.Random(agent)
    told = " ".join(chosen.choices(WORDS, k=chosen.randint(50, 140)))
    return f"Make feature {agent} work and keep the tests green. {told}"


def step(agent: int, n: int) -> bytes:
    return edit(agent, n) if n % 5 == 4 else test_run(agent, n)


def edit(agent: int, n: int) -> bytes:
    path = f"/work/{agent}/src/module_{n % 3}.py"
    record = {
        "type": "step",
        "id": f"s{n}",
        "tool": "edit",
        "kind": "edit",
        "action": f"write {path}",
        "files": [path],
        "edits": [{"path": path, "first_line": n, "last_line": n + 4, "content": f"x = {n}"}],
        "observation": "written",
        "exit_code": 0,
    }
    return json.dumps(record).encode() + b"\n"


def test_run(agent: int, n: int) -> bytes:
    record = {
        "type": "step",
        "id": f"s{n}",
        "tool": "shell",
        "action": f"python -m pytest tests/test_{n % 7}.py -k case_{agent}_{n}",
        "observation": f"{n} passed in 0.{n}s\n" * 3,
        "exit_code": 0,
    }
    return json.dumps(record).encode() + b"\n"


def write_transcripts(folder: Path, agents: int) -> None:
    for agent in range(agents):
        header = {
            "custosd": 1,
            "session": f"s{agent}",
            "cwd": f"/work/{agent}",
            "goal": goal(agent),
        }
        lines = [json.dumps(header).encode() + b"\n", *(step(agent, n) for n in range(STEPS))]
        place = folder / f"{agent % 100:02}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{agent}.jsonl").write_bytes(b"".join(lines))


class World:
    """Everything between the files and the verdicts, opened on what is stored."""

    async def open(self, stack: AsyncExitStack, folder: Path) -> None:
        server = await stack.enter_async_context(embedded_postgres(folder / "pg"))
        database = await stack.enter_async_context(open_database(server.dsn, pool_size=4))
        await migrate(database)
        self.store = CountingStore(PostgresStore(database))
        self.judge = CountingJudge()

    async def restore(self, stack: AsyncExitStack, folder: Path) -> None:
        restored = await self.store.restore()
        self.view = FleetView({a.ref.agent: a for a in restored.agents})
        self.folds = Folds(hot=512)
        self.codec = MsgpackCodec()
        self.intake = Intake(self.folds, restored, self.codec, now_utc)
        formats = Formats(recognise, format_named)
        self.source = await stack.enter_async_context(
            open_source(
                [Root(folder / "transcripts")],
                restored.positions,
                formats,
                SourceSettings(rescan_s=3600.0, settle_s=0.2),
            )
        )
        self._made = 0
        facts_in, self._facts = trio.open_memory_channel[Fact](1_000_000)
        ports = GuardianPorts(self.store, self.judge, LocalContext(), self.codec, now_utc)
        setup = GuardianSetup(GuardianLimits(cadence_s=0.0, grace_s=0.0), DetectorLimits())
        self.guardian = Guardian(ports, setup, self.folds, facts_in, Pulse("guardian", 0.0))
        self.guardian.remember(self.view)

    def tell(self, facts: list[Fact]) -> list[Entry]:
        entries = []
        for fact in facts:
            self._made += 1
            entries.append(Entry(f"{os.getpid()}-{self._made:010}", now_utc(), fact))
        self.view = self.view.after(entries)
        return entries

    async def take_in(self, agents: int) -> int:
        """Read until so many transcripts have grown; returns the number of bytes."""
        seen: set[str] = set()
        size = 0
        while len(seen) < agents:
            growths: list[Growth] = list(await self.source.next_batch())
            admitted = [(growth, self.intake.admit(growth)) for growth in growths]
            missing = self.intake.missing([plan for _, plan in admitted if plan])
            stored = await self.store.trajectories(missing) if missing else {}
            fetched = {ref: self.codec.decode(data) for ref, data in stored.items()}
            for growth, plan in admitted:
                if plan:
                    self.tell(self.intake.take(plan, fetched))
                if growth.events:
                    seen.add(growth.position.key)
                    size += growth.position.offset
            if self.intake.backlog:
                await store_rest(self.intake, self.store)  # type: ignore[arg-type]
        return size

    async def sweep(self) -> Any:
        finished = await self.guardian.sweep(self.view)
        facts: list[Fact] = []
        while self._facts.statistics().current_buffer_used:
            facts.append(self._facts.receive_nowait())
        entries = self.tell(facts)
        if entries:
            await self.store._store.record(entries)
        return finished


def rss_kib() -> int:
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * resource.getpagesize() // 1024


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def prepare(folder: Path, agents: int) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        world = World()
        await world.open(stack, folder)
        await world.restore(stack, folder)
        started, cpu = time.perf_counter(), cpu_s()
        await world.take_in(agents)
        wall, cpu = time.perf_counter() - started, cpu_s() - cpu
        await _folded(world, agents)
        for _ in range(3):
            await world.sweep()
        return {"steps_s": agents * STEPS / wall, "cpu_us_step": cpu / agents / STEPS * 1e6}


async def measure(folder: Path, agents: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        world = World()
        await world.open(stack, folder)
        await world.store.beats()
        gc.collect()
        before = rss_kib()
        await world.restore(stack, folder)
        await world.sweep()
        gc.collect()
        after = rss_kib()
        rows = [await _case(world, folder, agents, share) for share in (0.0, 0.01, 0.1)]
        return {
            "kib_per_agent": (after - before) / agents,
            "mib": after / 1024,
            "mib_end": rss_kib() / 1024,
            "rows": rows,
        }


async def _folded(world: World, agents: int) -> None:
    steps = sum(a.digest.steps for a in world.view.agents.values() if a.digest)
    assert len(world.view.agents) == agents, f"{len(world.view.agents)} agents of {agents}"
    assert steps >= agents * STEPS, f"{steps} steps"
    assert all(a.digest and a.digest.written for a in world.view.agents.values())


async def _case(world: World, folder: Path, agents: int, share: float) -> dict[str, Any]:
    changed = max(1, round(agents * share)) if share else 0
    for agent in range(changed):
        with (folder / "transcripts" / f"{agent % 100:02}" / f"{agent}.jsonl").open("ab") as file:
            file.write(step(agent, 1000 + round(share * 100)))
    if changed:
        await world.take_in(changed)
    world.store.round_trips = world.judge.calls = 0
    gc.collect()
    started, cpu = time.perf_counter(), cpu_s()
    finished = await world.guardian.sweep(world.view)
    wall, cpu = time.perf_counter() - started, cpu_s() - cpu
    trips, calls = world.store.round_trips, world.judge.calls
    world.tell(
        [
            world._facts.receive_nowait()
            for _ in range(world._facts.statistics().current_buffer_used)
        ]
    )
    return {
        "changed": changed,
        "due": finished.due,
        "wall_ms": wall * 1e3,
        "cpu_us_agent": cpu / agents * 1e6,
        "round_trips": trips,
        "judge_calls": calls,
    }


def child(stage: str, folder: Path, agents: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, stage, str(folder), str(agents)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(sizes: Iterator[int]) -> None:
    print(
        f"{'agents':>7} {'changed':>8} {'due':>6} {'wall ms':>9} {'CPU us/agent':>13}"
        f" {'round trips':>12} {'judge calls':>12}"
    )
    memory = []
    for agents in sizes:
        with tempfile.TemporaryDirectory(prefix="cb") as name:
            folder = Path(name)
            write_transcripts(folder / "transcripts", agents)
            taken = child("prepare", folder, agents)
            got = child("measure", folder, agents)
        for row in got["rows"]:
            print(
                f"{agents:>7} {row['changed']:>8} {row['due']:>6} {row['wall_ms']:>9.1f}"
                f" {row['cpu_us_agent']:>13.1f} {row['round_trips']:>12} {row['judge_calls']:>12}"
            )
        memory.append((agents, got, taken))
    print(
        f"\n{'agents':>7} {'idle KiB/agent':>15} {'RSS MiB idle':>13} {'RSS MiB after':>14}"
        f" {'ingested steps/s':>17} {'CPU us/step':>12}"
    )
    for agents, got, taken in memory:
        print(
            f"{agents:>7} {got['kib_per_agent']:>15.1f} {got['mib']:>13.0f} {got['mib_end']:>14.0f}"
            f" {taken['steps_s']:>17.0f} {taken['cpu_us_step']:>12.0f}"
        )


STAGES: dict[str, Callable[[Path, int], Any]] = {"prepare": prepare, "measure": measure}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in STAGES:
        print(json.dumps(trio.run(STAGES[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        table(map(int, sys.argv[1:] or SIZES))
