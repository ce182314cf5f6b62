"""Runs a fleet of real processes under a real daemon, and holds what it finds against the truth.

    python -m tests.fleet.run --agents 50 --minutes 4 --seed 1 [--kill]

Agents are given their parts by the seed: some do the same work, some get into each other's way,
some stray, loop or die, and some only look as if they did. At the end the daemon is asked through
its doors. Exit code 0: everything that was planted was found, and nothing else.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import trio
from tests.end_to_end.daemons import Custosd, Line, ask, custosd, environment
from tests.fleet.ground import Ground, prepare
from tests.fleet.plan import Member, Plan, draw
from tests.fleet.score import Row, Told, rows, table

PROJECT = Path(__file__).resolve().parents[2]
STEPS = 60
"""How many steps an agent takes in its life."""
LATE = 0.15
"""In which part of the time the agents begin."""
KILLED = (0.2, 0.4)
"""When the daemon is killed, if it is: while troubles begin, and while they last."""


@dataclass(slots=True)
class Fleet:
    """One run."""

    plan: Plan
    ground: Ground
    seconds: float
    lines: list[Line] = field(default_factory=list)
    processes: list[trio.Process] = field(default_factory=list)
    token: str = ""

    async def command(self, *words: str) -> Any:
        """What a command prints as JSON."""
        answer = await ask("--config", self.ground.config, *words, "--json", home=self.ground.home)
        return json.loads(answer.out) if answer.out else {"message": answer.err}

    async def http(self, method: str, path: str, form: object = None) -> tuple[int, Any]:
        """Status and answer of the HTTP side."""

        def call() -> tuple[int, Any]:
            request = urllib.request.Request(
                self.ground.url + path,
                None if form is None else json.dumps(form).encode(),
                {"authorization": f"Bearer {self.token}"},
                method=method,
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        return await trio.to_thread.run_sync(call)

    async def let_in(self) -> None:
        """A token for the agents and for this script, once the daemon knows it."""
        words = ("--agent", "*", "--scope", "task", "--scope", "read")
        self.token = (await self.command("token", "issue", "fleet", *words))["token"]
        for _ in range(60):
            if (await self.http("GET", "/api/v1/fleet"))[0] == HTTPStatus.OK:
                return
            await trio.sleep(0.5)
        raise AssertionError("the daemon does not know its token")

    async def order(self) -> list[dict[str, Any]]:
        """Add the tasks, and try to close circles of them: by HTTP and by the command."""
        forms = [chore.form for chore in self.plan.chores]
        status, answer = await self.http("POST", "/api/v1/tasks/add", {"tasks": forms})
        assert status == HTTPStatus.OK, answer
        refusals = []
        for chain in self.plan.circles:
            edge = [chain[-1], chain[0]]
            status, answer = await self.http("POST", "/api/v1/tasks/link", {"edges": [edge]})
            path = answer.get("path", []) if status == HTTPStatus.CONFLICT else []
            refusals.append({"chain": chain, "path": path})
        answer = await self.command("task", "link", *edge)
        refusals.append({"chain": chain, "path": answer.get("detail", {}).get("path", [])})
        return refusals

    async def be(self, member: Member, at: float) -> None:
        """One agent, from its time on."""
        home = self.ground.home
        part = home / "members" / f"{member.name}.json"
        part.write_text(json.dumps(asdict(member)))
        await trio.sleep_until(at)
        paths = os.pathsep.join((str(PROJECT), str(PROJECT / "daemon")))
        extra = {
            "PYTHONPATH": paths,
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUSTOSD_AGENT": member.name,
            "CUSTOSD_EPOCH": "0",
            "CUSTOSD_SOCKET": str(home / "state" / "run" / "beats.sock"),
            "CUSTOSD_URL": self.ground.url,
            "CUSTOSD_TOKEN": self.token,
            "CUSTOSD_DEMO_PACE_S": str(self.seconds / STEPS),
        }
        with (home / "members" / f"{member.name}.out").open("wb") as out:
            self.processes.append(
                await trio.lowlevel.open_process(
                    [
                        sys.executable,
                        "-m",
                        "tests.fleet.agent",
                        str(part),
                        str(home),
                        f"{os.getpid()}",
                    ],
                    env=environment(home, extra),
                    cwd=home,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    process_group=0,
                )
            )

    async def asked(self, refusals: Sequence[dict[str, Any]], lines: Sequence[Line]) -> Told:
        """Everything that the daemon tells; commands and HTTP must tell the same."""
        agents = await self.command("agents", "list")
        findings = await self.command("findings", "--past", "1")
        _, fleet = await self.http("GET", "/api/v1/fleet")
        assert {one["id"] for one in fleet["findings"]} <= {one["id"] for one in findings}
        tasks = await self.command("task", "list", "--limit", "1000")
        _, listed = await self.http("GET", "/api/v1/tasks?limit=1000")
        assert {one["id"] for one in listed["tasks"]} == {one["id"] for one in tasks}
        _, held = await self.http("GET", "/api/v1/claims?limit=200")
        claims = held["claims"]
        return Told(agents, findings, tasks, claims, refusals, lines, self.records())

    def records(self) -> list[dict[str, Any]]:
        """What the agents wrote down, in the order of time."""
        files = (self.ground.home / "records").glob("*.jsonl")
        found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return sorted(found, key=lambda one: one["at"])

    @asynccontextmanager
    async def daemon(self) -> AsyncGenerator[Custosd]:
        """A life of the daemon; its log is kept."""
        async with custosd("--config", self.ground.config, "run", home=self.ground.home) as running:
            try:
                await running.ready()
                await running.out.event("http.opened")
                yield running
            finally:
                self.lines += running.out.lines

    async def live(self, *, kill: bool) -> Told:
        """The whole run: one life of the daemon, or one more after each kill -9."""
        lives = [*(KILLED if kill else ()), 1.0]
        refusals: list[dict[str, Any]] = []
        began = 0.0
        async with trio.open_nursery() as nursery:
            for number, part in enumerate(lives):
                async with self.daemon() as daemon:
                    if not number:
                        await self.let_in()
                        refusals = await self.order()
                        began = trio.current_time()
                        late = LATE * self.seconds / len(self.plan.members)
                        for place, member in enumerate(self.plan.members):
                            nursery.start_soon(self.be, member, began + place * late)
                    await trio.sleep_until(began + part * self.seconds)
                    if part == lives[-1]:
                        return await self.close(daemon, refusals)
                    await daemon.end(signal.SIGKILL)
        raise AssertionError

    async def close(self, daemon: Custosd, refusals: Sequence[dict[str, Any]]) -> Told:
        """Ask, then end everybody."""
        lines = [*self.lines, *daemon.out.lines]
        told = await self.asked(refusals, lines)
        await self.end_agents()
        code = await daemon.end(signal.SIGTERM)
        assert code == 0, f"the daemon ended with {code}: {daemon.err.plain}"
        assert not daemon.err.plain, daemon.err.plain
        for out in (self.ground.home / "members").glob("*.out"):
            assert not out.stat().st_size, f"{out.name}: a fault of the script's\n{out.read_text()}"
        return told

    async def end_agents(self) -> None:
        """Nobody outlives the run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            await process.wait()


async def fleet(
    home: Path, agents: int, seconds: float, seed: int, *, look: str, kill: bool
) -> tuple[list[Row], list[Line]]:
    """Run a fleet below `home`: the table, and the daemon's log."""
    plan = draw(seed, agents)
    ground = await trio.to_thread.run_sync(prepare, home, plan, look)
    one = Fleet(plan, ground, seconds)
    try:
        told = await one.live(kill=kill)
    finally:
        with trio.CancelScope(shield=True):
            await one.end_agents()
    return rows(plan, told), one.lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="kill -9 the daemon, twice")
    parser.add_argument("--keep", action="store_true", help="leave everything in its folder")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="custosd-fleet-"))
    seconds = given.minutes * 60
    look = "5s" if seconds > 60 else "1s"
    began = time.monotonic()
    found, lines = trio.run(
        lambda: fleet(home, given.agents, seconds, given.seed, look=look, kill=given.kill)
    )
    print(f"{given.agents} agents, {seconds:.0f} s, seed {given.seed}, kill -9: {given.kill}")
    print(table(found))
    troubles = [
        {k: v for k, v in line.items() if k not in {"host", "version", "pid"}}
        for line in lines
        if line["level"] in {"error", "critical"}
    ]
    print(*troubles[:20], sep="\n")
    print(f"took {time.monotonic() - began:.0f} s")
    if given.keep:
        (home / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        print(f"kept: {home}")
    else:
        shutil.rmtree(home)
    sys.exit(not all(row.good for row in found))


if __name__ == "__main__":
    main()
