"""What the daemon saw and did, beside what was true; and what must hold between the two."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import trio
from tests.simulation.world import Deed, World

from custosd.core.agents import AgentId
from custosd.core.evidence import Value
from custosd.core.holds import HoldKind
from custosd.core.restart_budget import RestartLimits
from custosd.core.view import FleetView
from custosd.flow.latest import Latest

SEEN_DEAD_S = 3.0
"""A death that is watched: told by the kernel, so at once (2 s), and a view that settles."""
SILENCE_S = 360.0
"""Silence: the longest deadline (300 s), a look of 10 s, and one more round."""
HOLLOW_S = 2 * 900.0 + 60.0
"""Twice the window in which there must be progress, and a round of looks."""
ANSWER_S = 900.0
"""From being seen to a restart or to a person: the longest back-off (600 s) and a margin."""

DECIDED_S = 150.0
"""From a start's being paid for to the decision about the next: what one restart may take (75 s),
and how long its first beat is waited for (60 s), with a margin."""
ROUNDING = 1e-3
"""Of a token; a budget's own is a millionth for each."""

CALLS = {"crashed": SILENCE_S, "froze": SILENCE_S, "hollowed": HOLLOW_S}


@dataclass(slots=True)
class Excuses:
    """Times in which the daemon could not see or act, and was not expected to."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    recounted: list[float] = field(default_factory=list)
    """When a daemon began whose wall clock had been set forward since the one before it: what
    is stored looks older to it than it is, and its budgets are whole again."""

    def away_since(self, at: float) -> float:
        """When the absence began that this time lies in; the time itself where it is in none."""
        since = at
        for start, end in sorted(self.spans, reverse=True, key=lambda span: span[1]):
            if start <= since <= end:
                since = start
        return since

    def counts(self, at: float) -> int:
        """How often the count of restarts had begun anew by then."""
        return sum(one <= at for one in self.recounted)

    def add(self, start: float, end: float) -> None:
        """Excuse everything between these times."""
        self.spans.append((start, end))

    def counted_s(self, start: float, end: float) -> float:
        """Seconds between these times that are not excused."""
        spans = sorted((max(a, start), min(b, end)) for a, b in self.spans if b > start and a < end)
        excused, reached = 0.0, start
        for a, b in spans:
            excused += max(0.0, b - max(a, reached))
            reached = max(reached, b)
        return end - start - excused


@dataclass(slots=True)
class Witness:
    """Watches the view, and remembers when each agent was first seen to be bad, or told of."""

    bad: dict[AgentId, list[float]] = field(default_factory=dict)
    told: dict[AgentId, list[float]] = field(default_factory=dict)

    async def watch(self, view: Latest[FleetView]) -> None:
        """Look at each new view; never returns."""
        lives: object = None
        known: set[str] = set()
        in_incidents: set[tuple[str, str]] = set()
        worst: set[AgentId] = set()
        async for fleet in view:
            hands, now = fleet.hands, trio.current_time()
            if hands.lives is not lives:
                lives = hands.lives
                bad = {a for a, life in hands.lives.items() if life.value is Value.BAD}
                for agent in bad - worst:
                    self.bad.setdefault(agent, []).append(now)
                worst = bad
            for concern in hands.concerns.values():
                if concern.agent is not None and concern.id not in known:
                    self.told.setdefault(concern.agent, []).append(now)
            known = set(hands.concerns)
            named = {
                (hold.subject, name)
                for hold in hands.holds.values()
                if hold.kind is HoldKind.INCIDENT
                for name in hold.agents
            }
            for _, name in named - in_incidents:
                self.told.setdefault(AgentId(name), []).append(now)
            in_incidents = named


@dataclass(frozen=True, slots=True)
class Illness:
    """Something that truly befell an agent, and how long it took to see and to answer it."""

    what: str
    agent: AgentId
    at: float
    seen_s: float | None
    answered_s: float | None


def illnesses(world: World, witness: Witness, excuses: Excuses) -> list[Illness]:
    """Each illness that was not of our own making, with its latencies (excused time left out).

    One that began during a declared wait counts from the end of that.
    """
    found: list[Illness] = []
    for deeds in _by_agent(world.deeds).values():
        ill: Deed | None = None
        for deed in deeds:
            if deed.what in CALLS and ill is None:
                ill = replace(deed, at=deed.at + float(deed.detail or 0))
            elif deed.what in {"spawn", "finished"} and ill is not None:
                found.append(_illness(ill, deed.at, witness, excuses))
                ill = None
        if ill is not None:
            found.append(_illness(ill, None, witness, excuses))
    return found


def _illness(ill: Deed, mended_at: float | None, witness: Witness, excuses: Excuses) -> Illness:
    end = mended_at if mended_at is not None else float("inf")
    since = ill.at - float(ill.detail or 0)
    seen = _first(witness.bad.get(ill.agent, ()), since, end)
    told = _first(witness.told.get(ill.agent, ()), since, end)
    answers = [at for at in (mended_at, told) if at is not None]
    return Illness(
        ill.what,
        ill.agent,
        ill.at,
        None if seen is None else max(0.0, excuses.counted_s(ill.at, seen)),
        max(0.0, excuses.counted_s(ill.at, min(answers))) if answers else None,
    )


def _first(times: Sequence[float], start: float, end: float) -> float | None:
    return next((at for at in times if start <= at <= end), None)


def _by_agent(deeds: Iterable[Deed]) -> dict[AgentId, list[Deed]]:
    found: dict[AgentId, list[Deed]] = {}
    for deed in deeds:
        found.setdefault(deed.agent, []).append(deed)
    return found


def broken(
    world: World, witness: Witness, excuses: Excuses, end: float, limits: RestartLimits
) -> list[str]:
    """Every invariant that does not hold, in words; none is what is wanted."""
    problems = [f"{d.at:.1f} s: {d.what} {d.detail} ({d.agent})" for d in world.broken]
    for ill in illnesses(world, witness, excuses):
        bound_s = CALLS[ill.what] + ANSWER_S
        open_s = excuses.counted_s(ill.at, end)
        if ill.answered_s is None and open_s > bound_s:
            problems.append(f"{ill.at:.1f} s: {ill.agent} {ill.what}, and nothing came of it")
        elif ill.answered_s is not None and ill.answered_s > bound_s:
            problems.append(
                f"{ill.at:.1f} s: {ill.agent} {ill.what}, answered after {ill.answered_s:.0f} s"
            )
    return [*problems, *over_budget(world, excuses, limits), *unending(world, excuses, limits)]


def over_budget(world: World, excuses: Excuses, limits: RestartLimits) -> list[str]:
    """Where more agents were started than the budget of the fleet, or of a host, allows.

    In any stretch of time: at most what may come at once, what is refilled meanwhile, and as
    many as there are hands. Those were begun, and paid for, before the stretch, and reached
    their start, or gave back what they had not used, within it. A stretch that begins while
    the daemon or its store is away, or has just come back, counts from when that began:
    whatever was paid for since may be done in one go. Nobody in the world orders a restart.
    """
    starts = [deed for deed in world.deeds if deed.what == "spawn"]
    groups = {"the fleet": starts}
    for deed in starts:
        groups.setdefault(world.agents[deed.agent].host, []).append(deed)
    on = Counter(agent.host for agent in world.agents.values())
    on["the fleet"] = len(world.agents)
    problems: list[str] = []
    for name, deeds in groups.items():
        size, per_s = limits.at_once(on[name]) + limits.concurrency, limits.per_s(on[name])
        # least: the number of the start that opens the worst stretch so far, less the refill.
        least, count = float("inf"), excuses.counts(0.0)
        for number, deed in enumerate(deeds):
            if excuses.counts(deed.at) != count:
                least, count = float("inf"), excuses.counts(deed.at)
            least = min(least, number - excuses.away_since(deed.at) * per_s)
            excess = number + 1 - deed.at * per_s - least - size
            if excess > ROUNDING:
                problems.append(f"{deed.at:.1f} s: {excess:.1f} starts too many on {name}")
    return problems


def unending(world: World, excuses: Excuses, limits: RestartLimits) -> list[str]:
    """Who was started again although its restarts had used up the burst within the window.

    Only deaths count that were told at once to a daemon that could act; those before which
    the burst had begun to run out of the window, while they were looked into, do not.
    """
    problems: list[str] = []
    told = _by_agent(world.reported)
    for agent, deeds in _by_agent(world.deeds).items():
        starts = [deed.at for deed in deeds if deed.what == "spawn"]
        for death in told.get(agent, ()):
            if excuses.counted_s(death.at, death.at + DECIDED_S) < DECIDED_S:
                continue
            oldest = death.at + DECIDED_S - limits.window_s
            row = [
                at
                for at in starts
                if oldest < at < death.at and excuses.counts(at) == excuses.counts(death.at)
            ]
            if len(row) >= limits.burst and (again := [at for at in starts if at > death.at]):
                problems.append(
                    f"{again[0]:.1f} s: {agent} was started again after {len(row)} starts"
                )
                break
    return problems
