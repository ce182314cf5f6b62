"""How well duplicates and conflicts between agents are found, and what finding them costs.

    python tests/bench/bench_overlap.py [--data DIR] [--sizes N,N,...]

Conflicts: pairs of real patches from one starting point, labelled by whether they merge.
Twins: named duplicates in the work log of a real fleet. Alarms: real sessions that went on
at the same time. All thresholds were set on one half of the tasks; the other is reported
beside it. The pairs are read as the daemon reads them: patches by the transcript adapters,
footprints by the fold's own functions.
"""

import argparse
import hashlib
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from scores import wilson
from sessions import events_of
from specstory import read_page

from custosd.adapters.transcripts.patches import diff_edits
from custosd.core.agents import AgentId
from custosd.core.footprints import NO_TRACK, Footprint, Span, Track, clash, wrote
from custosd.core.goals import GoalIndex
from custosd.core.pairs import PairIndex, Place, Work, judge_by_rules
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import Acted, Asked, TranscriptEvent

DATA = Path(__file__).resolve().parents[3] / "shared" / "transcripts"
FLOOR_F1, GOAL_F1 = 0.97, 0.98
FLOOR_TWIN, GOAL_TWIN = 0.69, 0.9


def half_of(name: str) -> str:
    return "tune" if hashlib.sha256(name.encode()).digest()[3] % 2 == 0 else "report"


# Conflicts: real patches that merge, or do not


@dataclass(frozen=True, slots=True)
class PatchPair:
    """Two patches of one task and whether they conflict when merged."""

    task: str
    one: dict[str, Footprint]
    other: dict[str, Footprint]
    conflict: bool


def read_pairs(folder: Path) -> list[PatchPair]:
    known: dict[Path, dict[str, Footprint]] = {}

    def patch(row: dict[str, Any], name: str) -> dict[str, Footprint]:
        path = folder / "cooperbench" / row["repo"] / row["task"] / f"{row[name]}.patch"
        if path not in known:
            known[path] = footprints(path.read_text())
        return known[path]

    rows = map(json.loads, (folder / "cooperbench_conflict_pairs.jsonl").read_text().splitlines())
    return [
        PatchPair(f"{r['repo']}/{r['task']}", patch(r, "f1"), patch(r, "f2"), r["conflict"])
        for r in rows
    ]


def footprints(diff: str) -> dict[str, Footprint]:
    """Where a patch changes something, by file; a series of patches goes on where it was."""
    tracks: dict[str, Track] = {}
    made: set[str] = set()
    for part in re.split(r"^diff --git .*$\n", diff, flags=re.MULTILINE)[1:]:
        old = re.search(r"^--- (?:a/)?(\S+)", part, re.MULTILINE)
        new = re.search(r"^\+\+\+ (?:b/)?(\S+)", part, re.MULTILINE)
        if not (old and new):
            continue
        path = old[1] if new[1] == "/dev/null" else new[1]
        if old[1] == "/dev/null":
            made.add(path)
        for edit in diff_edits(path, part):
            tracks[path] = wrote(tracks.get(path, NO_TRACK), edit, 0)
    return {
        path: Footprint(path, track.spans, track.whole, path in made, 0, 0, 0)
        for path, track in tracks.items()
    }


def by_ranges(pair: PatchPair) -> bool:
    shared = pair.one.keys() & pair.other.keys()
    return any(clash(pair.one[p], pair.other[p], same_copy=False) is not None for p in shared)


def by_files(pair: PatchPair) -> bool:
    return not pair.one.keys().isdisjoint(pair.other.keys())


def balanced_halves(pairs: Sequence[PatchPair]) -> dict[str, str]:
    """Tasks in two halves, each with about as many pairs of either label."""
    sizes = Counter((pair.task, pair.conflict) for pair in pairs)
    load: Counter[tuple[str, bool]] = Counter()
    halves: dict[str, str] = {}
    order = sorted(
        {pair.task for pair in pairs},
        key=lambda task: (-sizes[task, False], -sizes[task, True], task),
    )
    for task in order:
        weigh = bool(sizes[task, False])
        half = min(("tune", "report"), key=lambda h: load[h, not weigh])
        halves[task] = half
        for label in (False, True):
            load[half, label] += sizes[task, label]
    return halves


def conflict_row(name: str, pairs: Sequence[PatchPair], rule: Callable[[PatchPair], bool]) -> float:
    hit = sum(rule(p) and p.conflict for p in pairs)
    false = sum(rule(p) and not p.conflict for p in pairs)
    missed = sum(p.conflict and not rule(p) for p in pairs)
    clean = sum(not p.conflict for p in pairs)
    f1 = 2 * hit / (2 * hit + false + missed) if hit else 0.0
    low, high = wilson(false, clean)
    print(
        f"{name:28} {len(pairs):5} {hit / max(1, hit + false):9.3f} {hit / (hit + missed):7.3f} "
        f"{f1:6.3f}   {false:3}/{clean:<3} = {false / max(1, clean):.2f} ({low:.2f}..{high:.2f})"
    )
    return f1


def conflicts(folder: Path) -> None:
    pairs = read_pairs(folder)
    halves = balanced_halves(pairs)
    print("\nConflicts: will two patches merge?")
    print(
        f"{'rule':28} {'pairs':>5} {'precision':>9} {'recall':>7} {'F1':>6}   alarms of clean pairs"
    )
    conflict_row("a common file", pairs, by_files)
    for half in ("tune", "report"):
        chosen = [p for p in pairs if halves[p.task] == half]
        conflict_row(f"spans that touch, {half}", chosen, by_ranges)
    f1 = conflict_row("spans that touch, all", pairs, by_ranges)
    print(f"floor {FLOOR_F1}, goal {GOAL_F1}: {'reached' if f1 >= GOAL_F1 else 'MISSED'}")


# Twins: work that somebody called a duplicate


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work of a fleet, and when it was open."""

    id: str
    goal: str
    begun: datetime
    ended: datetime


@dataclass(frozen=True, slots=True)
class Twin:
    """A piece of work and those that its closing note names as what it duplicates."""

    item: str
    first_named: str
    named: frozenset[str]


_FAR = datetime(2100, 1, 1, tzinfo=UTC)


def read_items(folder: Path) -> dict[str, Item]:
    rows = (folder / "fleet-worklogs" / "overstory-seeds-issues.jsonl").read_text().splitlines()
    items: dict[str, Item] = {}
    for row in map(json.loads, rows):
        ended = datetime.fromisoformat(row["closedAt"]) if row.get("closedAt") else _FAR
        goal = f"{row['title']}\n{row.get('description') or ''}"
        begun = datetime.fromisoformat(row["createdAt"])
        items[row["id"]] = Item(row["id"], goal, begun, ended)
    return items


def read_twins(folder: Path, items: dict[str, Item]) -> list[Twin]:
    rows = map(json.loads, (folder / "fleet_dup_pairs.jsonl").read_text().splitlines())
    twins: list[Twin] = []
    for row in rows:
        # "duplicate of overstory-n4r8/gz4u/72ak" names three.
        several = re.search(rf"{re.escape(row['b'])}((?:/\w{{3,4}})+)", row["reason"])
        others = several[1].split("/")[1:] if several else []
        prefix = row["b"].rpartition("-")[0]
        named = {row["b"], *(f"{prefix}-{other}" for other in others)} & items.keys()
        twins.append(Twin(row["a"], row["b"], frozenset(named)))
    return twins


def ranks_under_way(items: dict[str, Item], twin: Twin) -> dict[str, tuple[int, int]]:
    """Each named twin's rank among the works open when the later one began, and of how many."""
    found: dict[str, tuple[int, int]] = {}
    for name in twin.named:
        late, early = sorted((items[twin.item], items[name]), key=lambda i: i.begun)[::-1]
        index = GoalIndex()
        for item in items.values():
            if item.begun <= late.begun <= item.ended:
                index.note(AgentId(item.id), item.goal)
        index.note(AgentId(late.id), late.goal)
        order = [peer for peer, _ in index.nearest(AgentId(late.id), len(items))]
        rank = order.index(AgentId(early.id)) + 1 if early.id in order else len(items)
        found[name] = (rank, len(index) - 1)
    return found


def _rank_in(index: GoalIndex, twin: Twin) -> int:
    order = [peer for peer, _ in index.nearest(AgentId(twin.item), 10)]
    return order.index(AgentId(twin.first_named)) + 1 if twin.first_named in order else 10**6


def twins(folder: Path) -> None:
    items = read_items(folder)
    labelled = read_twins(folder, items)
    print("\nTwins: is the work that it duplicates among the nearest goals?")
    print(
        f"{'candidates, label':54} {'n':>3} {'top 1':>6} {'top 5':>6} {'top 10':>6}"
        f" {'5 by chance':>11}"
    )

    def row(name: str, ranks: Sequence[int], sizes: Sequence[int] = ()) -> float:
        shares = [sum(r <= k for r in ranks) / max(1, len(ranks)) for k in (1, 5, 10)]
        chance = sum(min(1.0, 5 / max(1, n)) for n in sizes) / len(sizes) if sizes else math.nan
        print(
            f"{name:54} {len(ranks):3} {shares[0]:6.2f} {shares[1]:6.2f} {shares[2]:6.2f}"
            f" {chance:11.2f}"
        )
        return shares[1]

    ever = GoalIndex()
    for item in items.values():
        ever.note(AgentId(item.id), item.goal)
    among_all = [_rank_in(ever, twin) for twin in labelled]
    row(f"all {len(items)} ever, the first that is named", among_all, [len(items)])
    under_way = {twin: ranks_under_way(items, twin) for twin in labelled}
    firsts = [under_way[t][t.first_named] for t in labelled]
    row("under way then, the first that is named", [r for r, _ in firsts], [n for _, n in firsts])
    top = 0.0
    for half in ("tune", "report", "all"):
        chosen = [t for t in labelled if half in ("all", half_of(t.item))]
        best = [min(under_way[t].values()) for t in chosen]
        top = row(
            f"under way then, one of those named, {half}",
            [r for r, _ in best],
            [n for _, n in best],
        )
    print(f"floor {FLOOR_TWIN}, goal {GOAL_TWIN}: {'reached' if top >= GOAL_TWIN else 'MISSED'}")


# Alarms: real sessions that went on at the same time


@dataclass(frozen=True, slots=True)
class Session:
    """One session, folded, with the periods of ten minutes in which it was at work."""

    name: str
    digest: TrajectoryDigest
    parent: str
    periods: frozenset[int]
    wrote: Mapping[str, frozenset[int]]


def fold_session(name: str, events: Iterable[TranscriptEvent], parent: str = "") -> Session:
    fold = Trajectory()
    periods: set[int] = set()
    files: dict[str, set[int]] = {}
    for event in events:
        fold.advance(event)
        at = getattr(event, "at_utc", None)
        if isinstance(event, Acted):
            at = event.step.ended_utc or event.step.started_utc
            for edit in event.step.edits if at else ():
                files.setdefault(edit.path, set()).add(int(at.timestamp()) // PERIOD_S)
        if at:
            periods.add(int(at.timestamp()) // PERIOD_S)
    wrote_in = {path: frozenset(when) for path, when in files.items()}
    return Session(name, fold.digest(), parent, frozenset(periods), wrote_in)


PERIOD_S = 600


def work_of(session: Session) -> Work:
    """Without asking a file system: the working copy is the folder that was told."""
    name, seen, parent = AgentId(session.name), session.digest, session.parent
    place = Place("", seen.cwd)
    return Work(name, seen.fingerprint, seen.goal, parent, place, seen.footprints, seen.focus)


def judged(works: Iterable[Work]) -> dict[tuple[str, str], set[str]]:
    """What the rules say of every pair of these works: kinds, by pair."""
    index = PairIndex()
    for work in works:
        index.note(work)
    while index.settle():
        pass
    found: dict[tuple[str, str], set[str]] = {}
    for suspicion in index.suspicions():
        if judge_by_rules(suspicion).holds:
            found.setdefault((suspicion.one, suspicion.other), set()).add(suspicion.kind.value)
    return found


def alarms(folder: Path) -> None:
    print("\nAlarms: pairs of real sessions at work in the same ten minutes")
    print(
        f"{'sessions':28} {'pairs':>5} {'common file':>11} {'common file then':>16} {'alarms':>7}"
    )
    pages = [
        fold_session(path.stem, read_page(path))
        for path in sorted((folder / "specstory").glob("*.md"))
    ]
    for name, sessions in (
        ("one team (SpecStory)", pages),
        ("one session's sub-agents", todo_threads(folder)),
    ):
        for pair, kinds in sorted(alarm_row(name, sessions).items()):
            print(f"    {' + '.join(sorted(kinds)):20} {' | '.join(pair)}")


def alarm_row(name: str, sessions: Sequence[Session]) -> dict[tuple[str, str], set[str]]:
    found = judged(work_of(session) for session in sessions)
    together = [(a, b) for a, b in combinations(sessions, 2) if a.periods & b.periods]
    common = sum(not a.wrote.keys().isdisjoint(b.wrote) for a, b in together)
    then = sum(
        any(a.wrote[path] & b.wrote[path] for path in a.wrote.keys() & b.wrote.keys())
        for a, b in together
    )
    raised = sum((min(a.name, b.name), max(a.name, b.name)) in found for a, b in together)
    print(f"{name:28} {len(together):5} {common:11} {then:16} {raised:7}")
    return found


def todo_threads(folder: Path) -> list[Session]:
    """The sub-agents of one real session that were given parts of one application."""
    threads: dict[str, list[TranscriptEvent]] = {}
    for event in events_of(next((folder / "claude-code").glob("viewer-fe5e1c67*.jsonl"))):
        if thread := getattr(event, "thread", ""):
            threads.setdefault(thread, []).append(event)
    sessions: list[Session] = []
    for events in threads.values():
        goal = next((e.text for e in events if isinstance(e, Asked)), "")
        sessions.append(fold_session(f"{len(sessions)} {goal[:34]!r}", events, "orchestrator"))
    return sessions


# What a sweep costs


def cost(sizes: Sequence[int]) -> None:
    print("\nOne sweep over n agents: CPU ms for 1,000 agents (target: below 1,000)")
    print(f"{'n':>7} {'all are new':>12} {'1 % changed':>12} {'suspicions':>11}")
    for size in sizes:
        works = made_up(size)
        index = PairIndex()
        began = time.process_time()
        for work in works:
            index.note(work)
        while index.settle():
            pass
        suspicions = len(index.suspicions())
        cold = time.process_time() - began
        began = time.process_time()
        for work in works[::100]:
            index.note(replace(work, version="2", goal=work.goal + " and document it"))
        while index.settle():
            pass
        index.suspicions()
        warm = time.process_time() - began
        print(f"{size:7} {cold / size * 1e6:12.0f} {warm / size * 1e6:12.1f} {suspicions:11}")


VOCABULARY = 20_000


def made_up(size: int) -> list[Work]:
    """Agents of many repositories with twins and common files among them, the same each time.

    Words come as often as in speech (Zipf's law), so that rare ones grow with the fleet.
    """
    draw = random.Random(3)
    ranks = range(1, VOCABULARY)
    often = list(accumulate(1 / rank for rank in ranks))
    works: list[Work] = []
    for number in range(size):
        repository = f"/repos/r{draw.randrange(max(1, size // 20))}"
        ranked = draw.choices(ranks, cum_weights=often, k=draw.randrange(12, 60))
        words = [f"word{rank}" for rank in ranked]
        goal = f"{' '.join(words[:6])}\n{' '.join(words)}"
        if number % 50 == 1:
            goal = works[-1].goal + " again"
        marks = tuple(
            Footprint(f"src/m{draw.randrange(300)}.py", spans_at(draw), False, False, 1, 2, 0)  # noqa: FBT003 - as in the fold
            for _ in range(draw.randrange(1, 20))
        )
        place = Place(repository, f"{repository}/w{number}")
        works.append(Work(AgentId(f"a{number}"), "1", goal, "", place, marks))
    return works


def spans_at(draw: random.Random) -> tuple[Span, ...]:
    starts = sorted(draw.sample(range(1, 2_000), k=draw.randrange(1, 6)))
    return tuple(Span(start, 3, 4) for start in starts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sizes", default="1000,3000,10000")
    given = parser.parse_args()
    if given.data.is_dir():
        conflicts(given.data)
        twins(given.data)
        alarms(given.data)
    else:
        print(f"no transcripts in {given.data}: only the cost is shown")
    cost([int(size) for size in given.sizes.split(",")])


if __name__ == "__main__":
    main()
