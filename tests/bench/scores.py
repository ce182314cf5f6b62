"""Counts, rates and their intervals, for the tables of the detector bench."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Z = 1.959963984540054
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that was judged: was it positive, did the rule fire, how much was left."""

    group: str
    positive: bool
    fired: bool
    left: float = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """What a rule reached. Shares are 0..1; intervals are 95 %."""

    fires: int
    precision: float
    recall: float
    f1: float
    f1_low: float
    f1_high: float
    lift: float
    alarms: float
    alarms_low: float
    alarms_high: float
    left: float


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); 0..1 where nothing was counted."""
    if not n:
        return 0.0, 1.0
    share, zz = hits / n, Z * Z
    middle = (share + zz / (2 * n)) / (1 + zz / n)
    spread = Z / (1 + zz / n) * math.sqrt(share * (1 - share) / n + zz / (4 * n * n))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def f1_of(outcomes: Sequence[Outcome]) -> float:
    hit = sum(o.positive and o.fired for o in outcomes)
    wrong = sum(o.positive != o.fired for o in outcomes)
    return 2 * hit / (2 * hit + wrong) if hit else 0.0


def bootstrap(
    outcomes: Sequence[Outcome], measure: Callable[[Sequence[Outcome]], float]
) -> tuple[float, float]:
    """The 95 % interval of a measure, by drawing whole task groups with replacement."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group, []).append(outcome)
    names = sorted(groups)
    draw = random.Random(7)
    values = sorted(
        measure([o for name in draw.choices(names, k=len(names)) for o in groups[name]])
        for _ in range(RESAMPLES)
    )
    return values[int(0.025 * RESAMPLES)], values[int(0.975 * RESAMPLES) - 1]


def score(outcomes: Sequence[Outcome]) -> Score:
    positives = sum(o.positive for o in outcomes)
    negatives = len(outcomes) - positives
    fired = [o for o in outcomes if o.fired]
    hits = sum(o.positive for o in fired)
    alarms = len(fired) - hits
    precision = hits / len(fired) if fired else 0.0
    base = positives / len(outcomes) if outcomes else 0.0
    low, high = bootstrap(outcomes, f1_of) if fired else (0.0, 0.0)
    alarms_low, alarms_high = wilson(alarms, negatives)
    return Score(
        fires=len(fired),
        precision=precision,
        recall=hits / positives if positives else 0.0,
        f1=f1_of(outcomes),
        f1_low=low,
        f1_high=high,
        lift=precision / base if base else 0.0,
        alarms=alarms / negatives if negatives else 0.0,
        alarms_low=alarms_low,
        alarms_high=alarms_high,
        left=sum(o.left for o in fired) / len(fired) if fired else 0.0,
    )


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The chance that a positive scores above a negative, ties half; nan without both."""
    if not positives or not negatives:
        return math.nan
    ranked = sorted([(x, True) for x in positives] + [(x, False) for x in negatives])
    total, index = 0.0, 0
    while index < len(ranked):
        end = index
        while end < len(ranked) and ranked[end][0] == ranked[index][0]:
            end += 1
        mean_rank = (index + 1 + end) / 2
        total += mean_rank * sum(positive for _, positive in ranked[index:end])
        index = end
    n, m = len(positives), len(negatives)
    return (total - n * (n + 1) / 2) / (n * m)
