"""When silence becomes a miss, a miss a suspicion: intervals, deadlines, and what bends them.

    0 ── interval + margin ── 2 intervals + margin ── suspect deadline ──► silence
            1 warn                 2 degraded              3 suspect

Laws:

1. No deadline is an exact multiple of an interval: each has the margin on top.
2. Whatever makes us hear less (our own slowness) makes deadlines longer, never shorter.
"""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from custosd.core.beats import LONGEST_INTERVAL_S, BeatStatus

WARN, DEGRADE, SUSPECT = 1, 2, 3
"""The rungs of the ladder."""

SLOWEST = 4.0
"""Our own slowness multiplies deadlines by this at most."""

HEARD_LITTLE = 0.5
"""The share of the usual beats below which the fault is held to be ours."""

_TENTHS = 10.0
_LONGEST_TENTHS = 65_535
_SORT_EACH = 8
_FEW = 16

_MONITORS = frozenset({BeatStatus.MONITORING})
_RUNS = frozenset({BeatStatus.RUNNING, BeatStatus.STARTING, BeatStatus.STOPPING})


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """Seconds, counts and shares; see the section `liveness` of the configuration.

    `hang_after_s`: for how long work may not be seen before that is a stand-still. Work that
    was seen of a silent agent speaks for it for `longest_deadline_s`. `busy_limit_s`: how long
    a busy processor alone counts as work. `breaker_*`: see `breaker_open`.
    """

    idle_interval_s: float = 30.0
    running_interval_s: float = 15.0
    monitor_interval_s: float = 5.0
    margin_s: float = 5.0
    gaps: int = 200
    quantile: float = 0.985
    shortest_deadline_s: float = 50.0
    longest_deadline_s: float = 300.0
    startup_grace_s: float = 60.0
    recover_beats: int = 2
    hang_after_s: float = 900.0
    busy_limit_s: float = 3600.0
    breaker_agents: int = 5
    breaker_share: float = 0.05
    breaker_period_s: float = 60.0


def interval_of(
    status: BeatStatus, declared_s: float | None, own_s: float | None, limits: LivenessLimits
) -> tuple[float, str]:
    """When the next beat is expected, and the configuration key that says so ("" the agent).

    What the agent declares goes before what is configured for it, that before its status.
    """
    if declared_s is not None:
        return min(max(declared_s, 1.0), LONGEST_INTERVAL_S), ""
    if own_s is not None:
        return own_s, "agent.beat_interval"
    if status in _MONITORS:
        return limits.monitor_interval_s, "liveness.monitor_interval"
    if status in _RUNS:
        return limits.running_interval_s, "liveness.running_interval"
    return limits.idle_interval_s, "liveness.idle_interval"


@dataclass(frozen=True, slots=True)
class Deadline:
    """After how much silence an agent is a suspect, and the key of what decided that.

    `usual_gap_s` is what its own gaps contribute: the quantile of the last ones.
    """

    silent_s: float
    key: str
    usual_gap_s: float


def suspect_s(interval_s: float, usual_gap_s: float, limits: LivenessLimits) -> float:
    """After how much silence an agent is a suspect: see `deadline`."""
    own_s = usual_gap_s + interval_s + limits.margin_s
    clamped_s = min(max(own_s, limits.shortest_deadline_s), limits.longest_deadline_s)
    return max(SUSPECT * interval_s + limits.margin_s, clamped_s)


def deadline(interval_s: float, usual_gap_s: float, limits: LivenessLimits) -> Deadline:
    """The suspect deadline: three intervals and a margin, or its own usual gap if that is more.

    The second is clamp(quantile + interval + margin, shortest, longest).
    """
    silent_s = suspect_s(interval_s, usual_gap_s, limits)
    own_s = usual_gap_s + interval_s + limits.margin_s
    if silent_s == SUSPECT * interval_s + limits.margin_s:
        key = "liveness.margin"
    elif own_s < limits.shortest_deadline_s:
        key = "liveness.shortest_deadline"
    elif own_s > limits.longest_deadline_s:
        key = "liveness.longest_deadline"
    else:
        key = "liveness.gaps"
    return Deadline(silent_s, key, usual_gap_s)


def rung_s(rung: int, interval_s: float, usual_gap_s: float, limits: LivenessLimits) -> float:
    """After how much silence a rung is reached (without our own slowness)."""
    if rung >= SUSPECT:
        return suspect_s(interval_s, usual_gap_s, limits)
    return rung * interval_s + limits.margin_s


class Gaps:
    """The last gaps between an agent's beats, to a tenth of a second, and how long they are.

    200 of them take 400 bytes. `usual_s` is their quantile; it grows at once and falls with
    a delay of some beats, so that most beats sort nothing.
    """

    __slots__ = ("_tenths", "_unsorted", "usual_s")

    def __init__(self, gaps_s: Iterable[float] = ()) -> None:
        self._tenths = array("H")
        self._unsorted = 0
        self.usual_s = 0.0
        self._tenths.extend(_in_tenths(gap_s) for gap_s in gaps_s)

    def add(self, gap_s: float, limits: LivenessLimits) -> None:
        """Learn a gap; the oldest one is forgotten when there are more than `limits.gaps`.

        One that is longer than the longest deadline counts as that long.
        """
        tenths = self._tenths
        tenths.append(_in_tenths(min(gap_s, limits.longest_deadline_s)))
        if len(tenths) > limits.gaps:
            del tenths[: len(tenths) - limits.gaps]
        self._unsorted += 1
        if gap_s > self.usual_s or self._unsorted >= _SORT_EACH or len(tenths) < _FEW:
            self.reckon(limits)

    def reckon(self, limits: LivenessLimits) -> None:
        """Bring `usual_s` up to date."""
        self._unsorted = 0
        count = len(self._tenths)
        if count:
            place = min(count, math.ceil(limits.quantile * count)) - 1
            self.usual_s = sorted(self._tenths)[max(place, 0)] / _TENTHS

    def last(self, count: int) -> tuple[float, ...]:
        """The last so many gaps, seconds, oldest first."""
        return tuple(tenths / _TENTHS for tenths in self._tenths[-count:])


def _in_tenths(gap_s: float) -> int:
    return min(_LONGEST_TENTHS, max(0, math.ceil(gap_s * _TENTHS)))


def slowness_of(lag_s: float, away: bool, heard_share: float) -> float:  # noqa: FBT001 - one of three facts about ourselves
    """How much slower than usual we are: 1 to `SLOWEST`, after Lifeguard's local health.

    `lag_s` is how late we wake, `away` whether the store is, and `heard_share` how many
    beats come of those that should (0..1): a drop of all at once is our ear, not their voice.
    """
    score = min(1.0, max(0.0, lag_s)) + (1.0 if away else 0.0)
    score += 1.0 if heard_share < HEARD_LITTLE else 0.0
    return min(SLOWEST, 1.0 + score)


def breaker_open(suspects: int, agents: int, least: int, share: float) -> bool:
    """Whether so many suspects at once are a cause of their own, and no reason to restart."""
    return suspects > max(least, share * agents)
