"""Folders as agents have them, and a look at one."""

import subprocess
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custosd.adapters.programs import plain_environment
from custosd.adapters.workspaces.local import LocalWorkspaces, WorkspaceLimits, open_workspaces
from custosd.adapters.workspaces.outputs import TailLimits

PATTERNS = ("output.log", "logs/*.log")


def now_utc() -> datetime:
    return datetime.now(UTC)


def git(folder: Path, *words: str) -> str:
    environment = plain_environment(
        {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
        }
    )
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A working copy on main, with one commit of one file."""
    folder = tmp_path / "copy"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "a.py").write_text("1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-q", "-m", "one")
    return folder


Limits = Callable[..., WorkspaceLimits]


def limits(**more: Any) -> WorkspaceLimits:
    tails = TailLimits(
        more.pop("patterns", PATTERNS), more.pop("lines", 20), more.pop("most_bytes", 16_384)
    )
    return WorkspaceLimits(tails, **{"timeout_s": 20.0} | more)


@pytest.fixture
async def workspaces() -> AsyncGenerator[LocalWorkspaces]:
    async with open_workspaces(limits(), now_utc) as opened:
        yield opened
