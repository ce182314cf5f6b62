"""One agent of the fleet: a small process that works, beats, and writes a maker's transcript.

    python -m tests.fleet.agent MEMBER.json HOME PARENT

It knows its own part only. Meeting others goes by files in HOME/flags; what it did, and when, it
writes to HOME/records/NAME.jsonl: the truth that the daemon's findings are held against.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.fleet.topics import CHORES

from custosd.client import Client, ClientError, TaskClaim
from custosd.demo.agent import PACE_S, WRITERS, Hand
from custosd.demo.writers import Action

LEASE_PACES = 40
AFTER_S = 2.5
"""Times in transcripts are whole seconds: what is to come after is that much later."""
TEST = f"{sys.executable} -m unittest -q"


class Agent(Hand):
    """A hand with a heart: it beats, and can put lines in the middle of a file."""

    def __init__(self, member: dict[str, Any], home: Path, parent: int) -> None:
        self.member, self.home = member, home
        self.name, self.more = member["name"], member["more"]
        self.chance = random.Random(self.name)
        self.client = Client(timeout_s=5.0)
        self.sessions = 0
        super().__init__(self._session(), home / member["folder"], parent)
        self.steps = 0

    def _session(self) -> Any:
        self.sessions += 1
        folder = self.home / "transcripts" / self.name
        kind, workspace = self.member["writer"], self.home / self.member["folder"]
        return WRITERS[kind](folder, f"{self.name}-{self.sessions}", workspace)

    def begin_anew(self) -> None:
        """The next task is another session."""
        if self.steps:
            self.writer = self._session()

    def rest(self) -> None:
        self.pause(PACE_S * self.chance.uniform(0.6, 1.4))
        self.steps += 1
        if self.steps % 3 == 0:
            self.client.beat(status="running", progress=str(self.steps))

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)
        if os.getppid() != self._parent:
            sys.exit()

    def record(self, what: str, **more: Any) -> None:
        line = json.dumps({"what": what, "agent": self.name, "at": time.time(), **more})
        with (self.home / "records" / f"{self.name}.jsonl").open("a") as file:
            file.write(line + "\n")

    def raise_flag(self, flag: str, name: str | None = None) -> None:
        (self.home / "flags" / f"{flag}.{name or self.name}").touch()

    def finish(self) -> None:
        """Say that the work is over, until the daemon has said that it heard it."""
        self.client.finished()
        last = Client(timeout_s=5.0, strict=True)
        while True:
            with suppress(ClientError):
                last.finished()
                return
            self.pause(1.0)

    def await_flag(self, flag: str, name: str) -> None:
        while not (self.home / "flags" / f"{flag}.{name}").exists():
            self.pause(0.2)

    def meet(self) -> None:
        """Go on only when the other one of the pair is here too."""
        self.raise_flag(f"{self.more['plant']}-here")
        for peer in self.more["peers"]:
            self.await_flag(f"{self.more['plant']}-here", peer)

    def insert(self, name: str, function: str, text: str) -> None:
        """Put lines into a function of a file, behind its first line of words."""
        path = self.workspace / name

        def place() -> tuple[list[str], int]:
            lines = path.read_text(encoding="utf-8").splitlines()
            return lines, lines.index(f"def {function}(rows):") + 2

        lines, at = place()
        key = next(self._keys)
        action = Action(key, "extend", path=name, text=text, lines=at, last=lines[at - 1])
        self._begin(action)
        lines, at = place()
        lines[at:at] = text.splitlines()
        # In one go: the other one may be reading it.
        part = path.with_name(f".{self.name}.part")
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(path)
        self.writer.answered(action, f"Wrote {len(action.added)} lines to {name}", None)

    def change(self, times: int) -> None:
        """Change the function that is this agent's part."""
        for _ in range(times):
            text = f"    rows = [row for row in rows if row != {self.chance.randrange(10**6)}]\n"
            self.insert(self.more["module"], self.more["function"], text)

    def work_on(self) -> None:
        """The healthy rest of its life: new functions in a file of its own, tests that pass."""
        own, test = f"own_{self.name}.py", f"test_own_{self.name}.py"
        self.write(own, f'"""What {self.name} needs."""\n')
        head = (
            f"import unittest\n\nimport own_{self.name} as own\n\n\nclass Own(unittest.TestCase):\n"
        )
        self.write(test, head + '    """Each of them."""\n')
        for n in itertools.count(1):
            self.extend(own, f"\n\ndef plus_{n}(x):\n    return x + {n}\n")
            self.extend(
                test, f"\n    def test_{n}(self):\n        assert own.plus_{n}(1) == {n + 1}\n"
            )
            if n % 2 == 0:
                self.run(f"{TEST} test_own_{self.name}")


# --- pairs ----------------------------------------------------------------------------------


def twin_beside(agent: Agent) -> None:
    """The same work in one folder, each in its own part of the file."""
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["module"])
    agent.change(2)
    agent.record("ripe")
    agent.work_on()


def twin_branches(agent: Agent) -> None:
    """The same work on two branches: in the end both are merged, at the same lines."""
    twin_beside(agent)


def twin_twice(agent: Agent) -> None:
    """The same new files, in two packages of one repository."""
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["module"])
    package = f"packages/{agent.name}/{agent.more['slug']}"
    agent.write(f"{package}/policy.py", f"LIMIT = {agent.chance.randrange(99)}\n")
    agent.write(f"{package}/worker.py", f"def work(rows):\n    return rows[:{agent.steps}]\n")
    agent.record("ripe")
    agent.work_on()


def clash_mingled(agent: Agent) -> None:
    """Two works, at the same lines of one folder, at the same time."""
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["module"])
    agent.meet()
    agent.change(2)
    agent.record("ripe")
    agent.change(1)
    agent.work_on()


def clash_branches(agent: Agent) -> None:
    """Two works, at the same lines, on two branches."""
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["module"])
    agent.change(2)
    agent.record("ripe")
    agent.work_on()


def clash_blind(agent: Agent) -> None:
    """The second writes a file anew that the first just wrote, without having looked."""
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["module"])
    table, flag = f"src/{agent.more['slug']}_table.py", f"{agent.more['plant']}-wrote"
    if not agent.more["first"]:
        agent.await_flag(flag, agent.more["peers"][0])
        agent.pause(AFTER_S)
    agent.write(table, f"TABLE = [{agent.chance.randrange(999)}]\nOWNER = {agent.name!r}\n")
    agent.record("ripe")
    agent.raise_flag(flag)
    agent.work_on()


def apart_functions(agent: Agent) -> None:
    """One file at the same time, far apart in it."""
    clash_mingled(agent)


def apart_branches(agent: Agent) -> None:
    """One file on two branches, far apart in it."""
    clash_branches(agent)


def apart_turns(agent: Agent) -> None:
    """The same lines, one after the other, the second having looked."""
    agent.writer.asked(agent.member["goal"])
    flag = f"{agent.more['plant']}-wrote"
    if not agent.more["first"]:
        agent.await_flag(flag, agent.more["peers"][0])
        agent.pause(AFTER_S)
    agent.read(agent.more["module"])
    agent.change(2)
    agent.raise_flag(flag)
    agent.work_on()


def apart_finished(agent: Agent) -> None:
    """The same lines, after the other one has finished and gone."""
    agent.writer.asked(agent.member["goal"])
    flag = f"{agent.more['plant']}-gone"
    if not agent.more["first"]:
        agent.await_flag(flag, agent.more["peers"][0])
        agent.pause(AFTER_S)
    agent.read(agent.more["module"])
    agent.change(2)
    if agent.more["first"]:
        agent.write(f"test_{agent.name}.py", "import unittest\n\n\nclass T(unittest.TestCase):\n"
                    "    def test(self):\n        pass\n")  # fmt: skip
        agent.run(f"{TEST} test_{agent.name}")
        agent.writer.said("It is done, and the tests pass.", final=True)
        agent.finish()
        agent.raise_flag(flag)
        sys.exit()
    agent.work_on()


def apart_repositories(agent: Agent) -> None:
    """The same work in two repositories that have nothing to do with each other."""
    twin_beside(agent)


# --- alone ----------------------------------------------------------------------------------


def drift(agent: Agent) -> None:
    """Asked about code, busy with paint."""
    agent.given(agent.more["file"], "def parse(text):\n    return text.split()[0]\n")
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["file"])
    pages = ["README.md", "docs/guide.md", "style.css", "docs/colours.md", "logo.svg"]
    for n, page in enumerate(itertools.cycle(pages)):
        if n == 8:
            agent.record("ripe")
        agent.write(page, f"Draft {n} of {page}\n" + "\n".join(f"line {k * n}" for k in range(n)))


def docs(agent: Agent) -> None:
    """Busy with prose because it was asked for prose."""
    agent.writer.asked(agent.member["goal"])
    for n in itertools.count():
        name = "README.md" if not n else f"docs/chapter_{n}.md"
        agent.write(name, f"# Chapter {n}\n\nOf command {n * 7919 % 1009}.\n")


def loop(agent: Agent) -> None:
    """Asks the same two questions for ever."""
    agent.given(agent.more["file"], "rows = [3, 4, 5]\nprint('total', sum(rows) - 1)\n")
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["file"])
    for n in itertools.count():
        if n == 3:
            agent.record("ripe")
        agent.run(f"grep -n sum {agent.more['file']}")
        agent.run(f"{sys.executable} {agent.more['file']}")


def fail(agent: Agent) -> None:
    """A module is missing, and every way round fails."""
    file, missing = agent.more["file"], agent.more["missing"]
    agent.given(file, f"import {missing}\n\nprint({missing}.make([1, 2, 3]))\n")
    agent.writer.asked(agent.member["goal"])
    agent.read(file)
    ways = (file, f"-c 'import {missing}'", f"-m {missing} --version", f"-W ignore {file}",
            f"-c 'import {missing}.make'", f"-X dev {file}")  # fmt: skip
    for n, way in enumerate(itertools.cycle(ways)):
        if n == 9:
            agent.record("ripe")
        agent.run(f"{sys.executable} {way}")


def wait(agent: Agent) -> None:
    """Needs a decision, and says so."""
    agent.given(agent.more["file"], "[main]\nurl =\n")
    agent.writer.asked(agent.member["goal"])
    agent.read(agent.more["file"])
    agent.run("ls -l")
    agent.writer.said(f"{agent.more['file']} names no address. Which one should I use?", final=True)
    agent.record("ripe")
    with agent.client.waiting("human", 3600):
        while True:
            agent.pause(PACE_S)


def poll(agent: Agent) -> None:
    """Asks the same for ever, and the answer is another one each time."""
    agent.given("progress.log", "begun\n")
    agent.writer.asked(agent.member["goal"])
    for n in itertools.count(1):
        with (agent.workspace / "progress.log").open("a") as file:
            file.write(f"{n * 137} records, the last is of {CHORES[n % len(CHORES)]}\n")
        agent.run("sleep 0.2; tail -n 1 progress.log")


# --- at tasks -------------------------------------------------------------------------------


def claimed(agent: Agent, lease_s: float) -> TaskClaim:
    """A task, when there is one."""
    while True:
        capabilities = agent.more.get("capabilities", ["python"])
        for claim in agent.client.claim_tasks(1, capabilities, lease_s):
            agent.record("claimed", task=claim.task, fence=claim.fence, attempt=claim.attempt)
            return claim
        agent.pause(PACE_S)


def attempt(agent: Agent, claim: TaskClaim) -> None:
    """Do what a task asks for."""
    agent.begin_anew()
    agent.writer.asked(claim.goal)
    word = claim.title.split()[-1]
    # A name of its own: a file that a first attempt left on another branch would be in its way.
    file = f"{word}_{agent.name}"
    agent.write(f"chores/{file}.py", f"def {word}(x):\n    return x * {len(word)}\n")
    head = f"import unittest\n\nfrom chores import {file}\n\n\nclass T(unittest.TestCase):\n"
    body = f"    def test(self):\n        assert {file}.{word}(1) == {len(word)}\n"
    agent.write(f"test_{file}.py", head + body)
    while agent.run(f"{TEST} test_{file}"):
        agent.read(f"test_{file}.py")


def settled(agent: Agent, claim: TaskClaim, say: Callable[[], bool], how: str) -> None:
    """Say how it went, until the daemon has heard it or says that it is not ours."""
    agent.record("settling", task=claim.task, fence=claim.fence, how=how)
    while not say():
        if "not yours" in agent.client.trouble or "already" in agent.client.trouble:
            agent.record("refused", task=claim.task, fence=claim.fence, why=agent.client.trouble)
            return
        agent.pause(1.0)
    agent.record("settled", task=claim.task, fence=claim.fence, how=how)


def worker(agent: Agent) -> None:
    """Takes tasks, one after the other."""
    if "intent" in agent.more:
        lease_intent(agent)
    while True:
        claim = claimed(agent, PACE_S * LEASE_PACES)
        attempt(agent, claim)
        if claim.title.startswith("[fails]"):
            agent.writer.said("I could not do this: it is not done.", final=True)
            say = partial(agent.client.fail_task, claim, "it cannot be done", "permanent")
            settled(agent, claim, say, "fails")
        elif claim.title.startswith("[flaky]") and claim.attempt == 1:
            agent.writer.said("The test passes, but it is not complete yet.", final=True)
            settled(agent, claim, partial(agent.client.fail_task, claim, "not yet"), "flaky")
        else:
            agent.writer.said(f"{claim.title} is done, its test passes.", final=True)
            settled(agent, claim, partial(agent.client.complete_task, claim, "done"), "done")


def lease_intent(agent: Agent) -> None:
    """Of two who are going to do the same, the second is told; of what is free, nobody is."""
    intent = agent.more["intent"]
    area, flag = intent["area"], f"intent-{intent['rival']}"
    if not intent["first"]:
        agent.await_flag(flag, intent["rival"])
    wanted = area if intent["first"] else f"{area}part.py"
    # What nobody has, and the same path of another project, are free.
    free = ((f"src/{agent.name}/free.py", "common"), (area, agent.name))
    for path, repository in ((wanted, "common"), *free):
        while (told := agent.client.claim_work([path], repository=repository)) is None:
            agent.pause(1.0)
        by = list(told.held_by)
        agent.record("leased", path=path, repository=repository, id=told.id, held_by=by)
    if intent["first"]:
        agent.raise_flag(flag)


def dies(agent: Agent) -> None:
    """Takes a task, begins, and is killed."""
    claim = claimed(agent, 1800.0)
    agent.writer.asked(claim.goal)
    agent.write(f"{claim.title.split()[-1]}_draft.py", "x = 1\n")
    agent.begin_and_never_end(f"{sys.executable} -m compileall .")
    agent.client.beat()
    agent.record("dying", task=claim.task, fence=claim.fence)
    os.kill(os.getpid(), signal.SIGKILL)


def lapses(agent: Agent) -> None:
    """Takes a task, and neither does it nor says so; much later it says that it is done."""
    claim = claimed(agent, PACE_S * 6)
    agent.writer.asked("Tidy the shelves of the reading room, and label the boxes.")
    agent.record("lapsing", task=claim.task, fence=claim.fence)
    agent.pause(PACE_S * 10)
    settled(agent, claim, partial(agent.client.complete_task, claim, "late"), "late")
    agent.work_on()


ROLES: dict[str, Callable[[Agent], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        *(twin_beside, twin_branches, twin_twice, clash_mingled, clash_branches, clash_blind),
        *(apart_functions, apart_branches, apart_turns, apart_finished, apart_repositories),
        *(drift, docs, loop, fail, wait, poll, worker, dies, lapses),
    )
}


def main(member: dict[str, Any], home: Path, parent: int) -> None:
    """Be one agent, until killed."""
    (home / member["folder"]).mkdir(parents=True, exist_ok=True)
    agent = Agent(member, home, parent)
    agent.record("begun")
    with agent.client.beating(5.0):
        ROLES[member["role"]](agent)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3]))
