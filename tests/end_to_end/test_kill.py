"""kill -9 at any moment, again and again, while transcripts grow: nothing lost, nothing twice.

CUSTOSD_KILLS says how often (12); CUSTOSD_SEED which moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tests.end_to_end.daemons import Custosd, Line, custosd, nobody_left
from tests.end_to_end.stored import stored_in

from custosd.adapters.postgres.data_directory import only_user
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.tail import Formats, read_whole
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import Unread

KILLS = int(os.environ.get("CUSTOSD_KILLS", "12"))
SEED = int(os.environ.get("CUSTOSD_SEED", "") or random.SystemRandom().randrange(10**6))

MOMENTS = ("", "postgres.started", "daemon.ready", "daemon.ready", "verdict.reached")
"""A kill comes up to `LATEST_S` after one of these events of a life; "": after its start."""
LATEST_S = 0.7

WRITER = Path(__file__).with_name("writer.py")


@asynccontextmanager
async def writing(folder: Path, seed: int) -> AsyncIterator[trio.Process]:
    """The writer at work; ended with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(WRITER), str(folder), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def written(writer: trio.Process) -> dict[str, int]:
    """End the writer; how many steps each agent took."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    await writer.stdin.aclose()
    said = b"".join([data async for data in writer.stdout])
    assert await writer.wait() == 0
    counts: dict[str, int] = json.loads(said)
    return counts


async def killed_at_some_moment(config: Path, home: Path, chance: random.Random) -> list[Line]:
    """One life of the daemon; what it said."""
    async with custosd("--config", config, "run", home=home) as daemon:
        if event := chance.choice(MOMENTS):
            await daemon.out.event(event)
        # The one place where time passes: a moment between two events is what is tested.
        await trio.sleep(chance.uniform(0, LATEST_S))
        assert await daemon.end(signal.SIGKILL) == -signal.SIGKILL
        assert daemon.err.plain == ""
        return daemon.out.lines


async def caught_up(daemon: Custosd, steps: dict[str, int]) -> None:
    """Wait until there was a verdict on all the steps of each agent."""
    for agent, count in steps.items():
        await daemon.out.event("verdict.reached", agent=agent, steps=count)


def read_at_once(folder: Path) -> dict[str, TrajectoryDigest]:
    """What each agent's trajectory is when its file is read from its start to its end."""
    found = {}
    for path in sorted(folder.rglob("*.json*")):
        reading = read_whole(str(path), Formats(recognise, format_named), ReadLimits())
        assert reading.incidents == ()
        fold = Trajectory()
        for event in reading.events:
            assert not isinstance(event, Unread), event
            assert event.thread == ""
            fold.advance(event)
        cursor = reading.cursor
        found[f"{cursor.format}:{cursor.agent or cursor.session}"] = fold.digest()
    return found


@pytest.mark.timeout(120 + 6 * KILLS)
async def test_kill_9_at_random_moments_loses_no_step_and_counts_none_twice(
    config: Path, home: Path
) -> None:
    chance = random.Random(SEED)
    print(f"CUSTOSD_SEED={SEED} CUSTOSD_KILLS={KILLS}")
    said: list[Line] = []
    began_at = trio.current_time()
    async with writing(home / "transcripts", SEED) as writer:
        for _ in range(KILLS):
            said += await killed_at_some_moment(config, home, chance)
        print(f"{KILLS} lives in {trio.current_time() - began_at:.1f} s")
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            steps = await written(writer)
            await caught_up(daemon, steps)
            assert await daemon.end(signal.SIGTERM) == 0
            said += daemon.out.lines
    print(f"{sum(steps.values())} steps of {len(steps)} agents")

    assert [line for line in said if line["level"] in ("error", "critical")] == []
    assert [line for line in said if line["event"] == "transcript.troubled"] == []
    assert any(line["agents"] for line in said if line["event"] == "daemon.ready")
    store = await stored_in(home)
    assert {agent: view.digest.steps for agent, view in store.agents.items()} == steps
    # More than the numbers: each stored fold is the one of a reading without interruption.
    assert {agent: view.digest for agent, view in store.agents.items()} == read_at_once(
        home / "transcripts"
    )
    for agent, verdicts in store.verdicts.items():
        told = [verdict.steps for verdict in verdicts]
        assert told == sorted(told, reverse=True), f"{agent} took steps back"
        assert told[0] == steps[agent]
        for verdict in verdicts:
            assert all(0 <= step < verdict.steps for step in verdict.judgement.evidence)
    await nothing_left(home)


async def nothing_left(home: Path) -> None:
    await nobody_left(home)
    data_dir = home / "state" / "postgres"
    with only_user(data_dir):
        assert not (data_dir / "postmaster.pid").exists()
