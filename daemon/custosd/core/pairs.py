"""Which pairs of agents may do the same work, or be in each other's way: kept up to date.

Laws:

1. Only what changed costs: an agent is compared when it is noted, with those that share a
   file with it and with the few whose goals are nearest; never with all.
2. A file in which very many write leads to the latest of them only (`LATEST_IN_FILE`).
3. A parent and its child are no pair.
4. The same work in two projects is two works: what is asked of many projects is asked of each.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from custosd.core.agents import AgentId
from custosd.core.findings import FindingKind, Key, key_of
from custosd.core.footprints import Clash, Footprint, clash
from custosd.core.goals import GoalIndex, another_thing
from custosd.core.transcript import digest_of

NEAREST = 5
SUSPECT = 0.3
SUSPECT_WITH_FILE = 0.15
SAME_WORK = 0.8
SAME_WORK_WITH_FILE = 0.45
MADE_TWICE = 2
FEWEST_WORDS = 4
LATEST_IN_FILE = 32
_PATHS_SHOWN = 8
_SURE = 0.9
LIKELY = 0.6


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent works: a working copy of a repository, by their paths; "" unknown.

    `folder` is where in the copy the agent's relative paths begin ("" at its root). `project`
    is the same for all clones of one repository.
    """

    repository: str = ""
    copy: str = ""
    folder: str = ""
    branch: str = ""
    project: str = ""

    @property
    def path(self) -> str:
        """The folder itself, whose place this is."""
        return f"{self.copy.rstrip('/')}/{self.folder}" if self.folder else self.copy


@dataclass(frozen=True, slots=True)
class Work:
    """What one agent is at. `version` is another one whenever anything of it is."""

    agent: AgentId
    version: str
    goal: str
    parent: str = ""
    place: Place = Place()
    footprints: tuple[Footprint, ...] = ()
    focus: str = ""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A pair that may be a finding; `one` < `other`. The weightiest are looked at first.

    `made_twice` counts the new files of one name that both wrote, at different places.
    """

    kind: FindingKind
    one: AgentId
    other: AgentId
    likeness: float
    paths: tuple[str, ...] = ()
    clash: Clash | None = None
    made_twice: int = 0

    @property
    def roughly_alike(self) -> float:
        """The likeness to one digit: with every agent that comes all change a little."""
        return round(self.likeness, 1)

    @property
    def key(self) -> Key:
        """The finding that it would be."""
        return self.kind, self.one, self.other

    @property
    def weight(self) -> float:
        """How much there is to it, 0..2: what is sure first, then the likest."""
        if self.clash is not None:
            return (1.0 + self.clash.sure) / 2 + len(self.paths) / (1 + len(self.paths)) / 2
        return min(2.0, self.likeness + 0.2 * bool(self.paths) + 0.2 * self.made_twice)


@dataclass(frozen=True, slots=True)
class PairJudgement:
    """Whether a suspicion is true: `holds` None where that cannot be said.

    `summary` is in words of ours, of what was measured; `said` are a model's own, for people.
    """

    holds: bool | None
    confidence: float = 0.0
    summary: str = ""
    said: str = ""


File = tuple[str, str]
"""A repository and a path in it; or "" and a whole path."""


class PairIndex:
    """The works under way, and every pair of them that is suspect."""

    def __init__(self) -> None:
        self.goals = GoalIndex()
        self._works: dict[AgentId, Work] = {}
        self._files: dict[AgentId, dict[File, Footprint]] = {}
        self._writers: dict[File, dict[AgentId, None]] = {}
        self._makers: dict[str, dict[AgentId, None]] = {}
        self._suspicions: dict[AgentId, dict[Key, Suspicion]] = {}
        self._unsettled: dict[AgentId, None] = {}

    def __iter__(self) -> Iterator[AgentId]:
        return iter(self._works)

    def work(self, agent: AgentId) -> Work | None:
        """What an agent is at, as noted last."""
        return self._works.get(agent)

    def version(self, agent: AgentId) -> str | None:
        """Which version of an agent's work was noted last; None where none is."""
        work = self._works.get(agent)
        return work.version if work else None

    def note(self, work: Work) -> None:
        """Take in an agent's work as it is now; it is compared by `settle`."""
        files: dict[File, Footprint] = {}
        for mark in work.footprints:
            if file := file_of(mark.path, work.place):
                files.setdefault(file, mark)
        old = self._works.get(work.agent)
        self._works[work.agent] = work
        moved = self._files.get(work.agent) != files or (
            old is not None and old.place != work.place
        )
        if moved:
            self._leave_files(work.agent)
            self._files[work.agent] = files
            for file, mark in files.items():
                self._writers.setdefault(file, {})[work.agent] = None
                if mark.replaced:
                    self._makers.setdefault(_tail(file[1]), {})[work.agent] = None
        if len(work.goal.split()) < FEWEST_WORDS:
            said = work.agent in self.goals
            self.goals.forget(work.agent)
        else:
            said = self.goals.note(work.agent, work.goal)
        if old is None or moved or said or old.parent != work.parent:
            self._unsettled[work.agent] = None

    def forget(self, agent: AgentId) -> None:
        """Leave an agent out from now on; harmless where it is not known."""
        if self._works.pop(agent, None) is None:
            return
        self._leave_files(agent)
        self._files.pop(agent, None)
        self.goals.forget(agent)
        self._part(agent)
        self._unsettled.pop(agent, None)

    def settle(self, at_most: int = 64) -> bool:
        """Compare so many of those that were noted; True if there are more."""
        for _ in range(min(at_most, len(self._unsettled))):
            agent = next(iter(self._unsettled))
            del self._unsettled[agent]
            self._compare(self._works[agent])
        return bool(self._unsettled)

    def suspicions(self) -> list[Suspicion]:
        """Every suspect pair, once, the weightiest first."""
        found = {key: s for each in self._suspicions.values() for key, s in each.items()}
        return sorted(found.values(), key=lambda s: (-s.weight, s.key))

    def _compare(self, work: Work) -> None:
        self._part(work.agent)
        clashes = self._clashes(work)
        for peer, found in clashes.items():
            if found:
                self._suspect(_conflict(work, self._works[peer], found, self.goals))
        made = self._made_too(work)
        near = dict(self.goals.nearest(work.agent, NEAREST))
        for peer in {**near, **made}:
            beside = self._works[peer]
            if _related(work, beside) or _elsewhere(work, beside):
                continue
            alike = near.get(peer, 0.0) or self.goals.likeness(work.agent, peer)
            twice = made.get(peer, ())
            if not twice and alike < SUSPECT_WITH_FILE:
                continue
            shared = twice or self._shared(work, peer)
            # Below that likeness nobody holds it for the same work by its words alone.
            if not shared and alike >= SAME_WORK and another_thing(work.goal, beside.goal):
                continue
            if shared or alike >= SUSPECT:
                kind, one, other = key_of(FindingKind.DUPLICATE, work.agent, peer)
                paths = shared[:_PATHS_SHOWN]
                self._suspect(Suspicion(kind, one, other, alike, paths, made_twice=len(twice)))

    def _made_too(self, work: Work) -> dict[AgentId, tuple[str, ...]]:
        """Who near by wrote new files of the same names, at least `MADE_TWICE`, elsewhere."""
        named: dict[AgentId, list[str]] = {}
        for file, mark in self._files[work.agent].items():
            makers = self._makers.get(_tail(file[1]), {}) if mark.replaced else {}
            for peer in list(makers)[-LATEST_IN_FILE:]:
                if peer != work.agent and file not in self._files[peer]:
                    named.setdefault(peer, []).append(file[1])
        return {
            peer: tuple(sorted(paths))
            for peer, paths in named.items()
            if len(paths) >= MADE_TWICE and _near(work, self._works[peer])
        }

    def _clashes(self, work: Work) -> dict[AgentId, list[tuple[str, Clash]]]:
        found: dict[AgentId, list[tuple[str, Clash]]] = {}
        for file, mark in self._files[work.agent].items():
            for peer in self._beside(file, work.agent):
                beside = self._works[peer]
                if _related(work, beside):
                    continue
                same = not file[0] or work.place.copy == beside.place.copy
                met = clash(mark, self._files[peer][file], same_copy=same)
                if met is not None:
                    found.setdefault(peer, []).append((file[1], met))
        return found

    def _beside(self, file: File, agent: AgentId) -> Iterable[AgentId]:
        writers = self._writers[file]
        if len(writers) <= LATEST_IN_FILE:
            return [peer for peer in writers if peer != agent]
        # Who was noted last stands last.
        latest = list(writers)[-LATEST_IN_FILE - 1 :]
        return [peer for peer in latest if peer != agent][-LATEST_IN_FILE:]

    def _shared(self, work: Work, peer: AgentId) -> tuple[str, ...]:
        """Files of one repository that both wrote; without one, those of one name and folder."""
        common = self._files[work.agent].keys() & self._files[peer].keys()
        if common:
            return tuple(sorted(path for _, path in common))
        tails = {_tail(path) for _, path in self._files[work.agent]}
        return tuple(sorted(tails & {_tail(path) for _, path in self._files[peer]}))

    def _suspect(self, suspicion: Suspicion) -> None:
        for agent in (suspicion.one, suspicion.other):
            self._suspicions.setdefault(agent, {})[suspicion.key] = suspicion

    def _part(self, agent: AgentId) -> None:
        for key in self._suspicions.pop(agent, ()):
            other = key[2] if key[1] == agent else key[1]
            beside = self._suspicions.get(other)
            if beside is not None:
                beside.pop(key, None)
                if not beside:
                    del self._suspicions[other]

    def _leave_files(self, agent: AgentId) -> None:
        for file, mark in self._files.get(agent, {}).items():
            _leave(self._writers, file, agent)
            if mark.replaced:
                _leave(self._makers, _tail(file[1]), agent)


Bucket = TypeVar("Bucket", str, File)


def _leave(buckets: dict[Bucket, dict[AgentId, None]], name: Bucket, agent: AgentId) -> None:
    members = buckets.get(name)
    if members is not None:
        members.pop(agent, None)
        if not members:
            del buckets[name]


def file_of(path: str, place: Place) -> File | None:
    """The file that a footprint's path means from its place; None where that is not known."""
    absolute = path.startswith("/")
    if place.repository:
        root = place.copy.rstrip("/") + "/"
        if not absolute:
            inside = f"{place.folder}/{path}" if place.folder else path
            return place.repository, inside
        if path.startswith(root):
            return place.repository, path[len(root) :]
        return "", path
    if absolute:
        return "", path
    return ("", f"{place.copy.rstrip('/')}/{path}") if place.copy else None


def judge_by_rules(suspicion: Suspicion) -> PairJudgement:
    """What can be said of a pair without reading: sure of places, careful about goals."""
    met, words = suspicion.clash, in_words(suspicion)
    if met is not None:
        return PairJudgement(True, _SURE if met.sure else LIKELY, words)  # noqa: FBT003 - the answer
    if suspicion.made_twice:
        return PairJudgement(True, LIKELY, words)  # noqa: FBT003 - the answer
    shared = bool(suspicion.paths)
    enough = SAME_WORK_WITH_FILE if shared else SAME_WORK
    if suspicion.likeness >= enough:
        return PairJudgement(True, _SURE if shared else LIKELY, words)  # noqa: FBT003 - the answer
    return PairJudgement(None)


def in_words(suspicion: Suspicion) -> str:
    """What there is to a suspicion, as it was measured; no word of an agent's is in it."""
    met = suspicion.clash
    if met is not None:
        how = "at the same time" if met.mingled else "without having looked" if met.blind else ""
        return " ".join(filter(None, ("both write to the same place", how)))
    if suspicion.made_twice:
        return f"both wrote {suspicion.made_twice} new files of the same names"
    return f"goals alike by {suspicion.likeness:.2f}" + ", in common files" * bool(suspicion.paths)


def content_of(suspicion: Suspicion, works: Mapping[AgentId, Work]) -> str:
    """A digest of all that a judge is shown of a pair: equal for equal questions.

    Not of the lines, nor of what each is busy with just now: these change with every step. Of
    the likeness what a prompt tells, and what the rules make of all of it.
    """
    one, other = works[suspicion.one], works[suspicion.other]
    met = suspicion.clash
    parts = (
        *(suspicion.kind.value, one.goal, other.goal),
        *(one.place.branch, other.place.branch, *suspicion.paths),
        repr(met and (met.sure, met.mingled, met.blind)),
        f"{suspicion.roughly_alike} {suspicion.made_twice} {judge_by_rules(suspicion).holds}",
    )
    return digest_of("\x1f".join(parts))


def _conflict(
    work: Work, beside: Work, found: list[tuple[str, Clash]], goals: GoalIndex
) -> Suspicion:
    kind, one, other = key_of(FindingKind.CONFLICT, work.agent, beside.agent)
    found = sorted(found, key=lambda pair: (not pair[1].sure, pair[0]))
    paths = tuple(path for path, _ in found[:_PATHS_SHOWN])
    return Suspicion(kind, one, other, goals.likeness(one, other), paths, found[0][1])


def _related(work: Work, beside: Work) -> bool:
    return work.parent == beside.agent or beside.parent == work.agent


def _elsewhere(work: Work, beside: Work) -> bool:
    """Whether they are known to work on two projects."""
    one, other = work.place.project, beside.place.project
    return bool(one and other) and one != other


def _near(work: Work, beside: Work) -> bool:
    """Whether both work on one thing: one repository, one parent, or one folder in another."""
    if work.place.repository and work.place.repository == beside.place.repository:
        return True
    if work.parent and work.parent == beside.parent:
        return True
    one, other = sorted((f"{work.place.copy}/", f"{beside.place.copy}/"), key=len)
    return len(one) > 1 and other.startswith(one)


def _tail(path: str) -> str:
    return "/".join(path.rsplit("/", 2)[-2:])
