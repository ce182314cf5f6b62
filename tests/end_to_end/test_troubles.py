"""What else lies among transcripts: each trouble is told, and the agents beside it are judged."""

import os
import signal
import sys
from pathlib import Path

import pytest
from tests.end_to_end.daemons import Custosd, custosd
from tests.end_to_end.stored import stored_in

from custosd.cli.exit_codes import OK
from custosd.demo.writers import Action, CustosdWriter

MIB = 1024 * 1024

# Root reads what it may not: without these two rights it is as anybody is.
_PR_CAPBSET_DROP, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2
DROP_RIGHTS = f"""
import ctypes, os, sys
for right in ({_DAC_OVERRIDE}, {_DAC_READ_SEARCH}):
    ctypes.CDLL(None).prctl({_PR_CAPBSET_DROP}, right)
os.execv(sys.argv[1], sys.argv[1:])
"""
AS_ANYBODY = (sys.executable, "-c", DROP_RIGHTS)


class Work:
    """One agent that takes steps when it is told to."""

    def __init__(self, folder: Path, name: str) -> None:
        self.agent, self.steps = f"custosd:{name}", 0
        self.writer = CustosdWriter(folder, name, Path("/srv/app"))
        self.path = self.writer.file.path
        self.writer.asked(f"Do the work of {name}.")

    def act(self, count: int = 1) -> None:
        for _ in range(count):
            self.steps += 1
            action = Action(f"c{self.steps}", "shell", command=f"cat part_{self.steps}.py")
            self.writer.began(action)
            self.writer.answered(action, f"part {self.steps}", 0)

    def put(self, data: bytes) -> None:
        """Write bytes that no agent should."""
        with self.path.open("ab") as file:
            file.write(data)


async def judged(daemon: Custosd, *agents: Work) -> None:
    for agent in agents:
        await daemon.out.event("verdict.reached", agent=agent.agent, steps=agent.steps)


async def troubled(daemon: Custosd, kind: str, path: Path) -> None:
    await daemon.out.event("transcript.troubled", kind=kind, path=str(path))


@pytest.mark.timeout(90)
async def test_each_trouble_is_told_and_the_healthy_agents_beside_it_are_judged(
    config: Path, home: Path
) -> None:
    folder = home / "transcripts"
    healthy = Work(folder, "healthy")
    healthy.act(3)
    (folder / "unreadable.jsonl").touch(mode=0)
    (folder / "folder.jsonl").mkdir()
    outside = Work(home / "outside", "outside")
    outside.act()
    (folder / "link.jsonl").symlink_to(outside.path)
    (folder / "binary.jsonl").write_bytes(os.urandom(3 * MIB))
    long = Work(folder, "long")
    long.put(b'{"type":"step","action":"' + b"x" * (100 * MIB) + b'"}\n')
    long.act(2)
    hollow = Work(folder, "hollow")
    hollow.put(bytes(5000))
    hollow.act(2)
    strange = Work(folder, "strange")
    strange.put(b'{"type":"step","action":"cat \xff\xfe","observation":"\xc3("}\n')
    strange.steps += 1
    strange.act(2)

    async with custosd("--config", config, "run", home=home, prefix=AS_ANYBODY) as daemon:
        await daemon.ready()
        await judged(daemon, healthy, long, hollow, strange)
        await troubled(daemon, "unreadable", folder / "unreadable.jsonl")
        await troubled(daemon, "not_a_file", folder / "folder.jsonl")
        await troubled(daemon, "link_refused", folder / "link.jsonl")
        await troubled(daemon, "format_unknown", folder / "binary.jsonl")
        await troubled(daemon, "line_too_long", long.path)
        await troubled(daemon, "nul_bytes", hollow.path)
        await troubled(daemon, "invalid_utf8", strange.path)
        # And while it goes on.
        healthy.act()
        (folder / "unreadable.jsonl").unlink()
        healthy.path.rename(folder / "renamed.jsonl")
        await judged(daemon, healthy)
        assert await daemon.end(signal.SIGTERM) == OK
    assert daemon.err.plain == ""
    assert [line for line in daemon.out.lines if line["level"] == "error"] == []
    store = await stored_in(home)
    agents = (healthy, long, hollow, strange)
    assert {agent: view.digest.steps for agent, view in store.agents.items()} == {
        agent.agent: agent.steps for agent in agents
    }


async def test_two_hundred_files_at_once_are_all_read_and_each_once(
    config: Path, home: Path
) -> None:
    works = [Work(home / "prepared", f"agent-{n}") for n in range(200)]
    for n, work in enumerate(works):
        work.act(1 + n % 5)
    async with custosd("--config", config, "run", home=home) as daemon:
        await daemon.ready()
        (home / "prepared").rename(home / "transcripts" / "arrived")
        await judged(daemon, *works)
        assert await daemon.end(signal.SIGTERM) == OK
    assert daemon.err.plain == ""
    store = await stored_in(home)
    assert {agent: view.digest.steps for agent, view in store.agents.items()} == {
        work.agent: work.steps for work in works
    }
    assert all(len(verdicts) == 1 for verdicts in store.verdicts.values())
