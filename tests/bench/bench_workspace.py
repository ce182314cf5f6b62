"""What it costs to read the output of many agents: one after the other, file by file, in units.

    python tests/bench/bench_workspace.py [AGENTS]

Five files an agent, each of 2,000 lines, from the page cache, the last 20 lines of each wanted.
All ways in one run, in turns, so that what else the machine does touches all of them:

    seed      one file after the other, all its lines read and the last 20 kept
    files     the same reading by trio.open_file, a task for each file
    units     the same reading, one call in a thread for each agent
    ours      `custosd.adapters.workspaces`: a call for each agent, ends only, without secrets
    secrets   of that, what taking the secrets out costs
    bound     the bytes of all ends, read one after the other on one thread

Then `seed`, `files`, `units` and `ours` with files that answer after 5 ms, as a network does.
"""

import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio

from custosd.adapters.workspaces.local import (
    LocalWorkspaces,
    Seen,
    Wanted,
    WorkspaceLimits,
    look_into,
)
from custosd.adapters.workspaces.outputs import LEAD_CHARS, TailLimits
from custosd.core.agents import AgentId
from custosd.core.errors import WorkspaceError
from custosd.core.secrets import without_secrets
from custosd.core.workspaces import WorkPlace, WorkspacePart
from custosd.flow.bounded import each
from custosd.flow.threads import Threads

NAMES = ("output.log", "agent.log", "conversation.log", "stderr.log", "stdout.log")
LINES = 2_000
ROUNDS = 5
AT_ONCE = 8
SLOW_S = 0.005
LIMITS = WorkspaceLimits(TailLimits(NAMES), concurrency=AT_ONCE, timeout_s=60.0)
PARTS = frozenset({WorkspacePart.OUTPUTS})
Way = Callable[[], Awaitable[int]]


def made(folder: Path, agents: int) -> list[Path]:
    folders = [folder / f"a{n}" for n in range(agents)]
    line = "2026-01-01 12:00:00 INFO handled request {} path=/api/v1/items status=200\n"
    text = "".join(line.format(n) for n in range(LINES))
    for one in folders:
        one.mkdir()
        for name in NAMES:
            (one / name).write_text(text)
    return folders


def now_utc() -> datetime:
    return datetime.now(UTC)


def last_lines(path: Path, pause_s: float) -> str:
    time.sleep(pause_s)
    with path.open() as file:
        return "".join(file.readlines()[-20:])


async def seed(folders: list[Path], pause_s: float) -> int:
    await trio.lowlevel.checkpoint()
    return sum(bool(last_lines(one / name, pause_s)) for one in folders for name in NAMES)


async def files(folders: list[Path], pause_s: float) -> int:
    async def one(path: Path) -> str:
        await trio.sleep(pause_s)
        async with await trio.open_file(path) as file:
            return "".join((await file.readlines())[-20:])

    paths = [one / name for one in folders for name in NAMES]
    return sum(bool(got.unwrap()) for got in await each(paths, one, limit=AT_ONCE * len(NAMES)))


def seen(pause_s: float, wanted: Wanted) -> Seen:
    time.sleep(pause_s * len(NAMES))
    return look_into(wanted)


async def units(folders: list[Path], pause_s: float) -> int:
    async def one(folder: Path) -> int:
        def whole() -> int:
            return sum(bool(last_lines(folder / name, pause_s)) for name in NAMES)

        return await threads.run(whole)

    threads = Threads(AT_ONCE)
    return sum(got.unwrap() for got in await each(folders, one, limit=AT_ONCE))


async def ours(folders: list[Path], pause_s: float) -> int:
    workspaces = LocalWorkspaces(Path("/nowhere"), LIMITS, now_utc, partial(seen, pause_s))
    places = [WorkPlace(AgentId(one.name), str(one)) for one in folders]
    found = await workspaces.look(places, PARTS)
    return sum(0 if isinstance(one, WorkspaceError) else len(one.outputs) for one in found)


async def secrets(folders: list[Path], pause_s: float) -> int:
    del pause_s
    await trio.lowlevel.checkpoint()
    text = last_lines(folders[0] / NAMES[0], 0.0)
    text = text[-LEAD_CHARS:] + text
    return sum(bool(without_secrets(text)) for _ in range(len(folders) * len(NAMES)))


async def bound(folders: list[Path], pause_s: float) -> int:
    del pause_s

    def all_of_them() -> int:
        return sum(bool(end(one / name)) for one in folders for name in NAMES)

    return await trio.to_thread.run_sync(all_of_them)


def end(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        most = LIMITS.tails.most_bytes
        return os.pread(fd, most, max(0, os.fstat(fd).st_size - most))
    finally:
        os.close(fd)


async def timed(way: Way, expected: int) -> float:
    began = time.perf_counter()
    count = await way()
    took = time.perf_counter() - began
    assert count == expected, (count, expected)
    return took


async def table(
    folders: list[Path], pause_s: float, rounds: int, chosen: tuple[Callable[..., Any], ...]
) -> None:
    ways = {way.__name__: partial(way, folders, pause_s) for way in chosen}
    expected = len(folders) * len(NAMES)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(await timed(way, expected))
    middle = {name: median(taken) for name, taken in times.items()}
    least = middle.get("bound", pause_s * expected / AT_ONCE)
    print(f"{'way':8} {'ms an agent':>12} {'to the seed':>12} {'bound / way':>12}")
    for name, took in middle.items():
        per, faster = took / len(folders) * 1e3, middle["seed"] / took
        print(f"{name:8} {per:12.2f} {faster:11.2f}x {least / took:12.2f}")


def main() -> None:
    agents = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as name:
        folders = made(Path(name), agents)
        print(f"{agents} agents, {len(NAMES)} files each, {os.cpu_count()} cores, page cache")
        trio.run(table, folders, 0.0, ROUNDS, (seed, files, units, ours, secrets, bound))
        print(f"\nthe same, each file after {SLOW_S * 1e3:g} ms; {AT_ONCE} agents at once")
        trio.run(table, folders, SLOW_S, 1, (seed, files, units, ours))


if __name__ == "__main__":
    main()
