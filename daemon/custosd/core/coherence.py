"""How well the fleet works together, in one number, of parts that each have a name.

    score = mean alignment - 0.2 x misaligned - 0.3 x in need of steering - duplicates

where the shares are of the agents that are known of, and duplicates those of all whose work
another one does too. Laws:

1. What is not known is no zero: below the coverage that is asked for the status is unknown,
   whatever the few that are known come to.
2. Worse is said at once; better only when it is better by a margin (`margin`), so that a
   score that lies on a threshold does not change the status to and fro.
3. Every recommendation names agents, and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median

from custosd.core.agents import AgentId
from custosd.core.verdicts import Standing

MISALIGNED = 0.5
"""Below this alignment an agent is misaligned."""

STAND_INS: Mapping[Standing, float] = {
    Standing.DONE: 0.9,
    Standing.PROGRESSING: 0.85,
    Standing.WAITING: 0.7,
    Standing.DONE_UNTESTED: 0.6,
    Standing.IDLE: 0.6,
    Standing.DUPLICATING: 0.4,
    Standing.STUCK: 0.3,
    Standing.STOPPED: 0.3,
    Standing.DRIFTING: 0.2,
}
"""What a standing counts as where the judge gave no alignment: the rules judge never does.

UNKNOWN has none, nor has SILENT: silence is only a suspicion. Of such an agent nothing is known.
"""

RECOMMENDED_AT_MOST = 20
_STEADY = 0.05
_LOOKED_BACK = 3


class FleetStatus(StrEnum):
    """How the fleet stands, from worst to best (the first two say that it is not known)."""

    NO_AGENTS = "no_agents"
    UNKNOWN = "unknown"
    CRITICAL = "critical"
    WARNING = "warning"
    INEFFICIENT = "inefficient"
    NORMAL = "normal"
    OPTIMAL = "optimal"


class Trend(StrEnum):
    """Where the score is going."""

    UNKNOWN = "unknown"
    FALLING = "falling"
    STEADY = "steady"
    RISING = "rising"


class Advice(StrEnum):
    """What a recommendation asks for."""

    STOP_DUPLICATE = "stop_duplicate"
    COORDINATE = "coordinate"
    STEER = "steer"
    LOOK_INTO = "look_into"


@dataclass(frozen=True, slots=True)
class CoherenceRules:
    """Weights and thresholds, all of them shares 0..1 (weights: of 1)."""

    misaligned_weight: float = 0.2
    steering_weight: float = 0.3
    duplicates_weight: float = 1.0
    coverage: float = 0.5
    critical: float = 0.3
    warning: float = 0.5
    optimal: float = 0.8
    inefficient: float = 0.3
    margin: float = 0.03


@dataclass(frozen=True, slots=True)
class Member:
    """One agent at work, as the conductor looks at it.

    `alignment` is None where nothing fresh is known of it; `judged` says that a judge gave it.
    `duplicates` is who does the same and is to go on instead of it.
    """

    agent: AgentId
    alignment: float | None = None
    judged: bool = False
    needs_steering: bool = False
    standing: Standing = Standing.UNKNOWN
    reason: str = ""
    duplicates: AgentId | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the score: `value` x `weight` is what it adds, a negative weight takes."""

    name: str
    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do about which agents, and why: codes, never agent text."""

    advice: Advice
    agents: tuple[AgentId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Coherence:
    """One reading. `score` is None where no agent is known of; all shares are 0..1."""

    status: FleetStatus
    score: float | None
    components: tuple[Component, ...]
    agents: int
    covered: int
    judged: int
    trend: Trend
    recommendations: tuple[Recommendation, ...] = ()

    @property
    def coverage(self) -> float:
        """The share of agents of which something fresh is known; 1 where there are none."""
        return self.covered / self.agents if self.agents else 1.0


def alignment_of(alignment: float | None, standing: Standing) -> float | None:
    """The judge's alignment, else what the standing counts as; None: nothing is known."""
    return alignment if alignment is not None else STAND_INS.get(standing)


def components_of(members: Sequence[Member], rules: CoherenceRules) -> tuple[Component, ...]:
    """The parts of the score; none where no agent is known of."""
    known = [member for member in members if member.alignment is not None]
    if not known:
        return ()
    alignments = [member.alignment or 0.0 for member in known]
    misaligned = sum(alignment < MISALIGNED for alignment in alignments) / len(known)
    steering = sum(member.needs_steering for member in known) / len(known)
    duplicates = sum(member.duplicates is not None for member in members) / len(members)
    return (
        Component("mean_alignment", fmean(alignments), 1.0),
        Component("misaligned_share", misaligned, -rules.misaligned_weight),
        Component("needs_steering_share", steering, -rules.steering_weight),
        Component("duplicate_share", duplicates, -rules.duplicates_weight),
    )


def score_of(components: Sequence[Component]) -> float | None:
    """Their weighed sum, clamped to 0..1; None of none."""
    if not components:
        return None
    return min(1.0, max(0.0, sum(part.value * part.weight for part in components)))


def status_of(
    score: float | None,
    coverage: float,
    duplicates: float,
    agents: int,
    rules: CoherenceRules,
    held: FleetStatus | None = None,
) -> FleetStatus:
    """The status, given the one that is held; `coverage` and `duplicates` are shares."""
    if not agents:
        return FleetStatus.NO_AGENTS
    if score is None or coverage < rules.coverage:
        return FleetStatus.UNKNOWN
    plain = _graded(score, duplicates, rules, 0.0)
    if held is None or held in {FleetStatus.NO_AGENTS, FleetStatus.UNKNOWN}:
        return plain
    if _RANK[plain] <= _RANK[held]:
        return plain
    # Better than held: as far as it is, with a margin on every threshold.
    better = _graded(score, duplicates, rules, rules.margin)
    return better if _RANK[better] > _RANK[held] else held


def _graded(score: float, duplicates: float, rules: CoherenceRules, margin: float) -> FleetStatus:
    if score < rules.critical + margin:
        return FleetStatus.CRITICAL
    if score < rules.warning + margin:
        return FleetStatus.WARNING
    if duplicates > max(0.0, rules.inefficient - margin):
        return FleetStatus.INEFFICIENT
    return FleetStatus.OPTIMAL if score > rules.optimal + margin else FleetStatus.NORMAL


_RANK = {status: rank for rank, status in enumerate(FleetStatus)}


def trend_of(scores: Sequence[float]) -> Trend:
    """Where scores are going, oldest first: the median of the last three against those before."""
    if len(scores) <= _LOOKED_BACK:
        return Trend.UNKNOWN
    now = median(scores[-_LOOKED_BACK:])
    before = median(scores[-2 * _LOOKED_BACK : -_LOOKED_BACK])
    if abs(now - before) < _STEADY:
        return Trend.STEADY
    return Trend.RISING if now > before else Trend.FALLING


def read_coherence(
    members: Sequence[Member],
    conflicts: Sequence[tuple[AgentId, AgentId]],
    rules: CoherenceRules,
    held: FleetStatus | None = None,
    earlier: Sequence[float] = (),
) -> Coherence:
    """The reading of a fleet: `conflicts` are open ones, `earlier` scores, oldest first."""
    components = components_of(members, rules)
    score = score_of(components)
    covered = sum(member.alignment is not None for member in members)
    duplicates = sum(member.duplicates is not None for member in members)
    size = len(members)
    status = status_of(
        score, covered / size if size else 1.0, duplicates / max(1, size), size, rules, held
    )
    scores = earlier if score is None else (*earlier, score)
    return Coherence(
        status,
        score,
        components,
        size,
        covered,
        sum(member.judged for member in members),
        trend_of(scores),
        recommendations_of(members, conflicts, status),
    )


def recommendations_of(
    members: Sequence[Member],
    conflicts: Sequence[tuple[AgentId, AgentId]],
    status: FleetStatus,
) -> tuple[Recommendation, ...]:
    """What to do, the gravest first, at most `RECOMMENDED_AT_MOST`."""
    found = [
        Recommendation(Advice.COORDINATE, (one, other), "writes_to_the_same_place")
        for one, other in conflicts
    ]
    found += [
        Recommendation(Advice.STOP_DUPLICATE, (member.agent, member.duplicates), "same_work")
        for member in members
        if member.duplicates is not None
    ]
    by_reason: dict[str, list[AgentId]] = {}
    for member in members:
        if member.needs_steering or (
            member.alignment is not None and member.alignment < MISALIGNED
        ):
            by_reason.setdefault(member.reason or member.standing.value, []).append(member.agent)
    found += [
        Recommendation(Advice.STEER, tuple(agents), reason)
        for reason, agents in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    if status is FleetStatus.UNKNOWN:
        unseen = tuple(member.agent for member in members if member.alignment is None)
        found.append(Recommendation(Advice.LOOK_INTO, unseen, "no_fresh_verdict"))
    return tuple(found[:RECOMMENDED_AT_MOST])
