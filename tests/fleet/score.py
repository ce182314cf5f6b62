"""What was planted against what the daemon says: found, missed, invented."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from tests.fleet.plan import Plan

Json = dict[str, Any]

ACCUSING = frozenset(
    {"stuck", "drifting", "duplicating", "done_untested", "silent", "stopped", "waiting"}
)
"""Standings that say that something is the matter."""


@dataclass(slots=True)
class Row:
    """One kind: what was planted, and in which time (seconds) it was found."""

    kind: str
    planted: int = 0
    found: int = 0
    times: list[float] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.missed and not self.invented and self.planted == self.found

    def see(self, what: str, *, is_there: bool, seconds: float | None = None) -> None:
        """Something that must be there, and whether it is."""
        self.planted += 1
        if not is_there:
            self.missed.append(what)
            return
        self.found += 1
        if seconds is not None:
            self.times.append(max(0.0, seconds))


@dataclass(frozen=True, slots=True)
class Told:
    """All that the daemon said, and what the agents wrote down themselves."""

    agents: Sequence[Json]
    findings: Sequence[Json]
    tasks: Sequence[Json]
    claims: Sequence[Json]
    refusals: Sequence[Json]
    """What was answered to who wanted to close a circle: the chain, and the path that was named."""
    lines: Sequence[Json]
    """The daemon's log, of all its lives."""
    records: Sequence[Json]

    def recorded(self, what: str, agent: str | None = None) -> list[Json]:
        found = [one for one in self.records if one["what"] == what]
        return [one for one in found if agent in {None, one["agent"]}]


def rows(plan: Plan, told: Told) -> list[Row]:
    """The whole table."""
    roles = {member.name: member.role for member in plan.members}
    return [
        *_findings(plan, told, roles),
        *_standings(plan, told, roles),
        _deaths(plan, told, roles),
        *_tasks(plan, told),
        _returned(plan, told),
        _circles(plan, told),
        _intents(plan, told),
        _heard(plan, told),
        _asked(plan, told, roles),
    ]


def _findings(plan: Plan, told: Told, roles: Mapping[str, str]) -> list[Row]:
    kinds = {kind: Row(kind) for kind in ("duplicate", "conflict")}
    seen: Counter[tuple[str, tuple[str, str]]] = Counter()
    at: dict[tuple[str, tuple[str, str]], float] = {}
    for finding in told.findings:
        one, other = sorted(finding["agents"])
        key = finding["kind"], (one, other)
        seen[key] += 1
        at.setdefault(key, datetime.fromisoformat(finding["first_seen_utc"]).timestamp())
        if key not in plan.findings:
            words = f"{one} ({roles[one]}) and {other} ({roles[other]}): {finding['summary']}"
            kinds[finding["kind"]].invented.append(words)
        elif seen[key] > 1:
            kinds[finding["kind"]].invented.append(f"{one} and {other} once more")
    for key, plant in plan.findings.items():
        kind, pair = key
        ripe = [one["at"] for name in pair for one in told.recorded("ripe", name)]
        words = f"{' and '.join(pair)} ({plant}, ripe {len(ripe)} of 2)"
        took = at[key] - max(ripe) if key in at and ripe else None
        kinds[kind].see(words, is_there=key in seen, seconds=took)
    return list(kinds.values())


def _standings(plan: Plan, told: Told, roles: Mapping[str, str]) -> list[Row]:
    held: dict[str, dict[str, float]] = defaultdict(dict)
    for line in told.lines:
        if line["event"] == "standing.changed":
            when = datetime.fromisoformat(line["ts"]).timestamp()
            held[line["agent"]].setdefault(line["after"], when)
    last = {one["agent"]: one["standing"] for one in told.agents}
    twins = {name for (kind, pair) in plan.findings if kind == "duplicate" for name in pair}
    kinds = {kind: Row(kind) for kind in ("drifting", "stuck", "waiting")}
    healthy = Row("healthy, not accused")
    for name, role in roles.items():
        due = plan.standings.get(name, frozenset())
        for standing in due:
            ripe = min((one["at"] for one in told.recorded("ripe", name)), default=None)
            took = held[name][standing] - ripe if ripe and standing in held[name] else None
            there = standing in held[name] and last.get(name) == standing
            words = f"{name} ({role}): {[*held[name]]}, at last {last.get(name)}"
            kinds[standing].see(words, is_there=there, seconds=took)
        allowed = due | ({"duplicating"} if name in twins else set())
        bad = {*held[name], last.get(name)} & ACCUSING - allowed
        if not due:
            healthy.see(f"{name} ({role}) is not known", is_there=name in last)
        for standing in sorted(map(str, bad)):
            row = kinds.get(standing, healthy)
            row.invented.append(f"{name} ({role}) held for {standing}")
    return [*kinds.values(), healthy]


def _deaths(plan: Plan, told: Told, roles: Mapping[str, str]) -> Row:
    row = Row("dead")
    first: dict[str, float] = {}
    for line in told.lines:
        if line["event"] == "life.changed" and line["condition"] == "dead":
            first.setdefault(line["agent"], datetime.fromisoformat(line["ts"]).timestamp())
    for name in plan.dead:
        died = [one["at"] for one in told.recorded("dying", name)]
        took = first[name] - died[0] if name in first and died else None
        row.see(f"{name} (died: {bool(died)})", is_there=name in first, seconds=took)
    for name in first.keys() - set(plan.dead):
        row.invented.append(f"{name} ({roles[name]}) held for dead")
    for line in told.lines:
        if line["event"] == "life.changed" and line["condition"] in {"hung", "unresponsive"}:
            row.invented.append(f"{line['agent']} held for {line['condition']}")
    return row


def _tasks(plan: Plan, told: Told) -> list[Row]:
    ended, order = Row("task ended as it must"), Row("task after what it waits for")
    once = Row("task held by one")
    state = {one["id"]: one for one in told.tasks}
    began = {(one["task"], one["fence"]): one["at"] for one in told.recorded("claimed")}
    done = {one["task"]: one["at"] for one in told.recorded("settling") if one["how"] == "done"}
    for chore in plan.chores:
        now = state.get(chore.id, {"state": "lost"})
        words = f"{chore.id} is {now['state']}, not {chore.ends}"
        ended.see(words, is_there=now["state"] == chore.ends)
        if chore.falls:
            if any(task == chore.id for task, _ in began):
                order.invented.append(f"{chore.id} was begun, but what it waits for failed")
            if now.get("failure_kind") != "dependency":
                ended.invented.append(f"{chore.id} failed for {now.get('failure_kind')}")
        for (task, _), at in began.items():
            if task != chore.id:
                continue
            early = [other for other in chore.depends_on if done.get(other, at + 1) > at]
            order.see(f"{task} was begun before {early}", is_there=not early)
    fences: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for one in told.recorded("claimed"):
        fences[one["task"]].append((one["fence"], one["agent"]))
    for task, holders in fences.items():
        alone = len({fence for fence, _ in holders}) == len(holders)
        once.see(f"{task} was held under one fence twice: {holders}", is_there=alone)
        again = [one for one in told.recorded("settled") if one["task"] == task]
        if sum(one["how"] == "done" for one in again) > 1:
            once.invented.append(f"{task} was done twice")
    return [ended, order, once]


def _returned(plan: Plan, told: Told) -> Row:
    """What the dead and the forgetful had comes to another one."""
    row = Row("task comes back")
    for what in ("dying", "lapsing"):
        for name in plan.dead if what == "dying" else plan.lapsed:
            losses = told.recorded(what, name)
            if not losses:
                row.see(f"{name} never took a task", is_there=False)
            for lost in losses:
                task, fence = lost["task"], lost["fence"]
                later = [
                    one
                    for one in told.recorded("claimed")
                    if one["task"] == task and one["fence"] > fence
                ]
                took = min(one["at"] for one in later) - lost["at"] if later else None
                row.see(f"{task} of {name} ({what})", is_there=bool(later), seconds=took)
    late = {one["agent"] for one in told.recorded("refused")}
    for name in plan.lapsed:
        if name not in late and told.recorded("settled", name):
            row.invented.append(f"the late word of {name} was believed")
    row.invented += [f"{name} was refused its own task" for name in late - set(plan.lapsed)]
    return row


def _circles(plan: Plan, told: Told) -> Row:
    """Who asked for a circle is told its names: each waits for the next, by a task's word."""
    row = Row("circle refused, named")
    waits = {(chore.id, other) for chore in plan.chores for other in chore.depends_on}
    for refusal in told.refusals:
        chain, path = refusal["chain"], refusal["path"]
        edges = waits | {(chain[-1], chain[0])}
        steps = [set(pairwise(path)), set(pairwise(path[::-1]))]
        closed = len(path) > 2 and path[0] == path[-1]
        row.see(f"{chain}: {path}", is_there=closed and any(each <= edges for each in steps))
    return row


def _intents(plan: Plan, told: Told) -> Row:
    row = Row("intent taken, told")
    leased = told.recorded("leased")
    kept = {one["id"] for one in told.claims}
    for first, second in plan.leased:
        told_of = [
            one
            for one in leased
            if one["agent"] == second and one["held_by"] == [first] and not one["id"]
        ]
        row.see(f"{second} was not told of {first}", is_there=len(told_of) == 1)
    pairs = {second: first for first, second in plan.leased}
    for one in leased:
        if one["held_by"] and [pairs.get(one["agent"])] != one["held_by"]:
            row.invented.append(f"{one['agent']} told of {one['held_by']}")
        elif not one["held_by"] and one["id"] not in kept:
            row.missed.append(f"{one['agent']} leased {one['path']}, and it is gone")
        elif one["held_by"] and not one["path"].endswith("part.py"):
            row.invented.append(f"{one['agent']} was refused {one['path']}")
    return row


def _heard(plan: Plan, told: Told) -> Row:
    """Every agent is known, beats, and was read."""
    row = Row("agent known")
    known = {one["agent"]: one for one in told.agents}
    for member in plan.members:
        one = known.get(member.name)
        there = one is not None and one["life"] is not None and bool(one["life"]["heard_utc"])
        row.see(f"{member.name} ({member.role})", is_there=there)
    row.invented += sorted(known.keys() - {member.name for member in plan.members})
    return row


def _asked(plan: Plan, told: Told, roles: Mapping[str, str]) -> Row:
    """A person is asked about those in trouble, and about nobody else."""
    row = Row("person asked")
    pairs = {name for _, pair in plan.findings for name in pair}
    troubled = {*pairs, *plan.standings, *plan.dead}
    raised = [line for line in told.lines if line["event"] == "concern.raised" and line["agent"]]
    fails = [f"task:{c.id}" for c in plan.chores if c.ends == "failed" and not c.falls]
    for line in raised:
        name = line["agent"]
        if name not in troubled and line["concern"] not in fails:
            row.invented.append(f"{name} ({roles.get(name)}): {line['text']}")
    about = {line["concern"] for line in told.lines if line["event"].startswith("concern.")}
    for name in plan.dead:
        row.see(f"the death of {name}", is_there=f"life:{name}" in about)
    for concern in fails:
        row.see(concern, is_there=concern in about)
    return row


def table(found: Sequence[Row]) -> str:
    """The table as text, with the names of what is wrong."""
    head = f"{'kind':30}{'planted':>8}{'found':>7}{'missed':>7}{'invented':>9}"
    head += "  found after (s): median, most"
    lines = [head]
    for row in found:
        times = f"{median(row.times):6.1f} {max(row.times):6.1f}" if row.times else ""
        counts = f"{row.planted:8}{row.found:7}{len(row.missed):7}{len(row.invented):9}"
        lines.append(f"{row.kind:30}{counts}  {times}")
    for row in found:
        lines += [f"  missed, {row.kind}: {one}" for one in row.missed]
        lines += [f"  invented, {row.kind}: {one}" for one in row.invented]
    return "\n".join(lines)
