"""What steering is good for: those who were told against those whom the draw kept back.

Law: only what the policy approved is compared, for only that was drawn; what could not be
measured is in neither arm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from custosd.core.steering import POLICY, Intervention, was_kept_back
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason

RECOVERED = frozenset({Standing.PROGRESSING, Standing.DONE})
"""Standings that count as an improvement on one that needed steering."""

ONE_SIDED_95 = 1.6449
"""The standard normal's quantile: each end of the interval is a bound of 95 %."""


def improved(intervention: Intervention) -> bool | None:
    """Whether its agent came out of what it was told about; None: not known, or not needed."""
    before, after = intervention.standing_before, intervention.standing_after
    if before is None or before in RECOVERED or after is None or after is Standing.UNKNOWN:
        return None
    return after in RECOVERED


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of the comparison: how many were measured, how many of them improved."""

    measured: int = 0
    improved: int = 0

    @property
    def share(self) -> float | None:
        """The share that improved; None of none."""
        return self.improved / self.measured if self.measured else None


@dataclass(frozen=True, slots=True)
class Uplift:
    """What one kind of message for one reason is good for.

    `difference` is the delivered arm's share less the hold-out's, between `lower` and `upper`
    (each a one-sided bound of 95 %); all None while an arm is empty.
    """

    kind: SteeringKind
    reason: SteeringReason
    delivered: Arm
    held_out: Arm
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None

    def is_vain(self, least_arm: int, least_uplift: float) -> bool:
        """Whether either arm is large enough to rule out that it helps by so much."""
        enough = min(self.delivered.measured, self.held_out.measured) >= least_arm
        return enough and self.upper is not None and self.upper < least_uplift


def uplifts(
    interventions: Iterable[Intervention],
) -> dict[tuple[SteeringKind, SteeringReason], Uplift]:
    """The comparison for each kind and reason. Only what the policy approved was drawn."""
    counts: dict[tuple[SteeringKind, SteeringReason], list[int]] = {}
    for item in interventions:
        better = improved(item)
        if better is None or item.approved_by != POLICY or item.reason is None:
            continue
        if item.hold_out and not was_kept_back(item):
            continue
        tally = counts.setdefault((item.kind, item.reason), [0, 0, 0, 0])
        arm = 2 if item.hold_out else 0
        tally[arm] += 1
        tally[arm + 1] += better
    return {named: _uplift(named, tally) for named, tally in counts.items()}


def _uplift(named: tuple[SteeringKind, SteeringReason], tally: Sequence[int]) -> Uplift:
    delivered, kept = Arm(tally[0], tally[1]), Arm(tally[2], tally[3])
    if not (delivered.measured and kept.measured):
        return Uplift(*named, delivered, kept)
    return Uplift(*named, delivered, kept, *difference_of_shares(delivered, kept))


def wilson(arm: Arm, z: float = ONE_SIDED_95) -> tuple[float, float]:
    """The score interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927); n >= 1."""
    n, p = arm.measured, arm.improved / arm.measured
    middle = p + z * z / (2 * n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def difference_of_shares(
    first: Arm, second: Arm, z: float = ONE_SIDED_95
) -> tuple[float, float, float]:
    """The first share less the second, with its lower and upper bound.

    The hybrid score interval: method 10 of R. G. Newcombe, Statistics in Medicine 17 (1998),
    p. 873-890. It holds for small numbers and for shares of 0 and 1.
    """
    p1, p2 = first.improved / first.measured, second.improved / second.measured
    (low1, high1), (low2, high2) = wilson(first, z), wilson(second, z)
    difference = p1 - p2
    lower = difference - sqrt((p1 - low1) ** 2 + (high2 - p2) ** 2)
    upper = difference + sqrt((high1 - p1) ** 2 + (p2 - low2) ** 2)
    return difference, lower, upper
