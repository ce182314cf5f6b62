"""Starts the demonstration's agents, and ends them with itself."""

import os
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from custosd.core.agents import AgentId
from custosd.core.verdicts import Standing
from custosd.demo.agent import ROLES

SHOWN = {
    AgentId("custosd:steady"): Standing.PROGRESSING,
    AgentId("codex:looping"): Standing.STUCK,
    AgentId("claude-code:failing"): Standing.STUCK,
    AgentId("gemini-cli:drifting"): Standing.DRIFTING,
    AgentId("pi:waiting"): Standing.WAITING,
    AgentId("claude-code:claiming"): Standing.DONE_UNTESTED,
    AgentId("codex:dying"): Standing.SILENT,
    AgentId("custosd:twin-a"): Standing.DUPLICATING,
    AgentId("claude-code:twin-b"): Standing.DUPLICATING,
}
"""What is held of each agent once it has shown its trouble."""


@asynccontextmanager
async def demonstration_fleet(folder: Path) -> AsyncGenerator[None]:
    """Run one process a role in `folder` (its work and transcripts removed first).

    The processes are killed at the end of the block, and end by themselves when their
    parent is gone in any other way.
    """
    for part in ("work", "transcripts"):
        await trio.to_thread.run_sync(shutil.rmtree, folder / part, True)  # noqa: FBT003
    async with trio.open_nursery() as nursery:
        for role in ROLES:
            nursery.start_soon(_be, role, folder)
        yield
        nursery.cancel_scope.cancel("the demonstration is over")


async def _be(role: str, folder: Path) -> None:
    # Own process group: a Ctrl-C at the terminal is the daemon's to answer.
    await trio.run_process(
        [sys.executable, "-m", "custosd.demo.agent", role, str(folder), str(os.getpid())],
        check=False,
        stdin=b"",
        process_group=0,
    )
