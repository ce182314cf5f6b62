"""What is planted in a fleet, drawn from a seed: who does what, and what is to be found.

Law: what is not planted must not be found. So each plant has its own module, words and folder.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.fleet.topics import (
    CHORES,
    DOCUMENTS,
    DRIFTS,
    FAILURES,
    LOOPS,
    POLLS,
    QUESTIONS,
    TOPICS,
    WANTS,
    Topic,
)

REPOSITORIES = ("shop", "atlas", "relay")
PLACED = ("custosd", "claude-code")
"""Formats that tell at which lines was written."""
WRITERS = ("custosd", "claude-code", "codex", "gemini-cli", "pi")
TURNS = ("custosd", "claude-code", "codex", "pi")
"""Formats that mark the end of a turn: of the others it is told after half a minute of silence,
and until then who gave something up seems to be at it."""

PAIRS = frozenset(
    {
        *("twin-beside", "twin-branches", "twin-twice"),
        *("clash-mingled", "clash-branches", "clash-blind"),
        *("apart-functions", "apart-branches", "apart-turns", "apart-finished"),
        "apart-repositories",
    }
)
ORDER = (
    *("twin-beside", "clash-mingled", "apart-functions", "drift", "loop", "dies"),
    *("twin-branches", "clash-branches", "apart-turns", "fail", "lapses", "wait", "docs", "poll"),
    *("twin-twice", "clash-blind", "apart-finished", "apart-branches", "apart-repositories"),
    *("twin-beside", "clash-mingled", "loop", "drift", "dies", "twin-branches", "clash-branches"),
)
"""Which groups there are in a fleet of which size; the rest work through tasks."""

FUNCTIONS = ("load", "check", "merge", "split", "render", "store", "prune", "report")
"""What each module of a project consists of, in this order, some twenty lines each."""

TEMPLATE = (1, 2, 3)
"""Tasks that are one sentence about different things."""
EACH = 5
"""Tasks for each agent that works through them."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Member:
    """One agent: its process gets all of this as JSON."""

    name: str
    role: str
    writer: str
    folder: str
    goal: str
    repository: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chore:
    """One task, and what must become of it: "succeeded" or "failed"."""

    id: str
    title: str
    goal: str
    depends_on: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    ends: str = "succeeded"
    falls: bool = False
    """It must never be begun: what it waits for fails."""

    @property
    def form(self) -> dict[str, Any]:
        lists = {"depends_on": list(self.depends_on), "capabilities": list(self.capabilities)}
        return {"id": self.id, "title": self.title, "goal": self.goal, **lists}


@dataclass(slots=True)
class Plan:
    """A fleet, and the truth about it."""

    members: list[Member] = field(default_factory=list)
    trees: dict[str, str] = field(default_factory=dict)
    """Worktrees by folder, with the repository of each."""
    modules: dict[str, list[str]] = field(default_factory=dict)
    findings: dict[tuple[str, Pair], str] = field(default_factory=dict)
    """Kind and pair, with what planted it."""
    standings: dict[str, frozenset[str]] = field(default_factory=dict)
    """What must be held of an agent at some time; of all others nothing bad may be."""
    dead: list[str] = field(default_factory=list)
    lapsed: list[str] = field(default_factory=list)
    leased: list[Pair] = field(default_factory=list)
    """Who leases an intent, and who is told of it."""
    chores: list[Chore] = field(default_factory=list)
    circles: list[list[str]] = field(default_factory=list)
    """Tasks in a chain: to let the first wait for the last would be a circle."""


class _Draw:
    def __init__(self, seed: int, agents: int) -> None:
        self.chance = random.Random(seed)
        self.plan = Plan(modules={name: [] for name in REPOSITORIES})
        self.topics = self._shuffled(TOPICS)
        self.words = {
            role: self._shuffled(pool)
            for role, pool in {
                "loop": LOOPS,
                "fail": FAILURES,
                "drift": DRIFTS,
                "wait": QUESTIONS,
                "docs": DOCUMENTS,
                "poll": POLLS,
            }.items()
        }
        self.parts = [self.chance.sample(WANTS, len(WANTS)) for _ in range(3)]
        self._people(agents)
        workers = sum(member.role == "worker" for member in self.plan.members)
        self._chores(workers * EACH)
        self.chance.shuffle(self.plan.members)
        # Who loses a task must have had one.
        self.plan.members.sort(key=lambda member: member.role not in {"dies", "lapses"})

    def _shuffled(self, pool: Any) -> Iterator[Any]:
        return iter(self.chance.sample(pool, len(pool)))

    def _people(self, agents: int) -> None:
        workers = max(3, round(agents * 0.18))
        left = agents - workers
        for role in ORDER:
            size = 2 if role in PAIRS else 1
            if size <= left:
                left -= size
                self._pair(role) if role in PAIRS else self._single(role)
        self._workers(workers + left)

    def _name(self) -> str:
        return f"a{len(self.plan.members) + 1:02}"

    def _tree(self, name: str, repository: str) -> str:
        folder = f"trees/{name}"
        self.plan.trees[folder] = repository
        return folder

    def _wanted(self, number: int, word: str) -> str:
        """What to do with it: two goals have one part in common at most, or all but the word."""
        if number in TEMPLATE:
            number = TEMPLATE[0]
        size = len(WANTS)
        row, column = number % size, number // size
        begin, middle, end = (
            self.parts[place][(row + place * column) % size][place] for place in range(3)
        )
        return f"{begin} {word} {middle}, {end}."

    def _pair(self, role: str) -> None:
        topic: Topic = next(self.topics)
        repositories = self.chance.sample(REPOSITORIES, 2)
        if role != "apart-repositories":
            repositories = [repositories[0]] * 2
        for name in set(repositories):
            self.plan.modules[name].append(topic.slug)
        same = role.startswith("twin") or role == "apart-repositories"
        goals = [topic.goal, topic.again if same else topic.other]
        self.chance.shuffle(goals)
        functions = self._functions(role)
        names = (self._name(), f"a{len(self.plan.members) + 2:02}")
        for place, name in enumerate(names):
            beside = "branches" in role or role == "apart-repositories"
            folder = (
                self._tree(name, repositories[place]) if beside else f"work/{repositories[place]}"
            )
            more = {
                "module": topic.module,
                "slug": topic.slug,
                "function": functions[place],
                "first": place == 0,
                "peers": list(names),
                "plant": f"{role}-{topic.slug}",
            }
            writer = self.chance.choice(PLACED)
            self.plan.members.append(
                Member(name, role, writer, folder, goals[place], repositories[place], more)
            )
        if role.startswith("twin"):
            self.plan.findings["duplicate", names] = role
        if role.startswith("clash") or role == "twin-branches":
            self.plan.findings["conflict", names] = role

    def _functions(self, role: str) -> list[str]:
        if role in {"apart-functions", "apart-branches", "twin-beside"}:
            far = [self.chance.choice(FUNCTIONS[:2]), self.chance.choice(FUNCTIONS[-2:])]
            self.chance.shuffle(far)
            return far
        return [self.chance.choice(FUNCTIONS)] * 2

    def _single(self, role: str) -> None:
        name = self._name()
        more: dict[str, Any] = {}
        goal = ""
        if role in self.words:
            drawn = next(self.words[role])
            *given, goal = [drawn] if isinstance(drawn, str) else drawn
            more = dict(zip(("file", "missing"), given, strict=False))
        writer = self.chance.choice(WRITERS if role != "wait" else WRITERS[:3])
        self.plan.members.append(Member(name, role, writer, f"scratch/{name}", goal, more=more))
        match role:
            case "drift":
                self.plan.standings[name] = frozenset({"drifting"})
            case "loop" | "fail":
                self.plan.standings[name] = frozenset({"stuck"})
            case "wait":
                self.plan.standings[name] = frozenset({"waiting"})
            case "dies":
                self.plan.dead.append(name)
            case "lapses":
                self.plan.lapsed.append(name)
            case _:
                pass

    def _workers(self, count: int) -> None:
        names = []
        for number in range(count):
            name = self._name()
            names.append(name)
            repository = self.chance.choice(REPOSITORIES)
            capabilities = ["python", "gpu"] if number % 3 == 0 else ["python"]
            member = Member(
                name,
                "worker",
                self.chance.choice(TURNS),
                self._tree(name, repository),
                "",
                repository,
                {"capabilities": capabilities},
            )
            self.plan.members.append(member)
        for first, second in list(zip(names[::2], names[1::2], strict=False))[: 1 + count // 5]:
            self.plan.leased.append((first, second))
            for member in self.plan.members:
                if member.name in {first, second}:
                    member.more["intent"] = {
                        "first": member.name == first,
                        "rival": first,
                        "area": f"src/{first}/",
                    }

    def _chores(self, count: int) -> None:
        """Tasks that wait for some before them; one fails for good, some at first."""
        words = self.chance.sample(CHORES, min(count, len(CHORES)))
        chores: list[Chore] = []
        fails = count // 4
        for number, word in enumerate(words):
            before = [chore.id for chore in chores[-8:]] if number >= count // 6 else []
            waits = self.chance.sample(before, min(len(before), self.chance.randrange(3)))
            if number == fails + 2:
                waits = [chores[fails].id]
            gpu = self.chance.random() < 0.15
            falls = any(c.id in waits and c.ends == "failed" for c in chores)
            kind = "fails" if number == fails and not falls else ""
            if not kind and not falls and self.chance.random() < 0.1:
                kind = "flaky"
            chores.append(
                Chore(
                    f"t-{word}",
                    f"[{kind}] {word}" if kind else word,
                    self._wanted(number, word),
                    tuple(waits),
                    ("gpu",) if gpu else ("python",),
                    "failed" if falls or kind == "fails" else "succeeded",
                    falls,
                )
            )
        self.plan.chores = chores
        self.plan.circles = _chains(chores)[:3]


def _chains(chores: list[Chore]) -> list[list[str]]:
    """Chains of tasks of which each waits for the next, the longest first."""
    longest: dict[str, list[str]] = {}
    for chore in chores:
        tails = [longest[other] for other in chore.depends_on]
        longest[chore.id] = [chore.id, *max(tails, key=len, default=[])]
    found = sorted(longest.values(), key=len, reverse=True)
    return [chain for chain in found if len(chain) > 1]


def draw(seed: int, agents: int) -> Plan:
    """The fleet of a seed; `agents` from 12 to some fifty."""
    return _Draw(seed, agents).plan
