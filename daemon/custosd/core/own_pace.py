"""How well we ourselves keep time and hear: what excuses the silence of others.

Laws:

1. A stand-still is seen by its lateness: a turn that should have come within `turn_s` and did
   not. A sleep of the machine is seen by the clock that goes on meanwhile.
2. What made us late is found in the same turn, before any deadline is kept.
"""

from dataclasses import dataclass, field

from custosd.core.ladder import slowness_of

HEARD_S = 15.0
"""How often the number of all beats so far is to be told."""

_WINDOWS = 4
_FEW_BEATS = 20
"""A best window with fewer beats says nothing about the next one."""

_FADES = 0.9
"""What is left of a lateness after a turn on time: half of it after seven."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which we could not have heard; `reason` "stall" or "suspend"."""

    reason: str
    length_s: float


@dataclass(slots=True)
class OwnPace:
    """Our own lateness and hearing. `turn_s`: how soon the next turn is to come, at the latest."""

    turn_s: float
    stall_s: float
    now: float
    boottime: float
    _lag_s: float = 0.0
    _heard: list[int] = field(default_factory=list)

    def turn(self, now: float, boottime: float) -> Gap | None:
        """A turn begins; returns the gap before it, if it was longer than `stall_s`.

        `boottime` is seconds by a clock that goes on while the machine sleeps.
        """
        passed_s = now - self.now
        slept_s = boottime - self.boottime - passed_s
        lag_s = max(0.0, passed_s - self.turn_s)
        self.now, self.boottime = now, boottime
        self._lag_s = max(lag_s, self._lag_s * _FADES)
        if slept_s > self.stall_s:
            return Gap("suspend", slept_s)
        return Gap("stall", lag_s) if lag_s > self.stall_s else None

    def heard(self, beats: int) -> None:
        """So many beats were let in since the start; to be told each `HEARD_S`."""
        self._heard = [*self._heard[-_WINDOWS - 1 :], beats]

    def heard_share(self) -> float:
        """How many beats come, of what came at best lately; 1 where there are too few to say."""
        if len(self._heard) < _WINDOWS + 2:
            return 1.0
        counts = [
            after - before for before, after in zip(self._heard, self._heard[1:], strict=False)
        ]
        best = max(counts[:-1])
        return 1.0 if best < _FEW_BEATS else min(1.0, counts[-1] / best)

    def slowness(self, *, store_away: bool) -> float:
        """By how much deadlines are to be multiplied: see `slowness_of`."""
        return slowness_of(self._lag_s, store_away, self.heard_share())
