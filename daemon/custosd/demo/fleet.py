"""Starts the demonstration's agents, and ends them with itself."""

import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from custosd.demo.agent import ROLES


@asynccontextmanager
async def demonstration_fleet(folder: Path) -> AsyncGenerator[tuple[str, ...]]:
    """Run one process a role in `folder` (emptied first) for the block; yields the roles.

    The processes are killed at the end of the block, and end by themselves when their
    parent is gone in any other way.
    """
    for part in ("work", "transcripts"):
        await trio.to_thread.run_sync(shutil.rmtree, folder / part, True)  # noqa: FBT003
    async with trio.open_nursery() as nursery:
        for role in ROLES:
            nursery.start_soon(_be, role, folder)
        yield tuple(ROLES)
        nursery.cancel_scope.cancel("the demonstration is over")


async def _be(role: str, folder: Path) -> None:
    # Own process group: a Ctrl-C at the terminal is the daemon's to answer.
    await trio.run_process(
        [sys.executable, "-m", "custosd.demo.agent", role, str(folder)],
        check=False,
        stdin=b"",
        process_group=0,
    )
