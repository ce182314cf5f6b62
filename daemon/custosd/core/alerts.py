"""What a person is told of concerns, when, and in how many words.

Laws:

1. A storm is told as one: where more is new than may be told one by one, a single notice
   says how many there are and of which kinds. Nothing is dropped for it.
2. A notice holds names of concerns and agents, and codes; never text of agents.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from custosd.core.agents import AgentId

LONGEST_TEXT = 400
_NAMED = 3


@dataclass(frozen=True, slots=True)
class AlertLimits:
    """More than `storm` notices within `storm_s` become one; the others are seconds.

    `timeout_s`: how long one notice may take. A way that failed is tried again after
    `first_retry_s`, doubled up to `longest_retry_s`. `settle_s`: how long after a start a
    concern of before is waited for until it counts as over.
    """

    storm: int = 5
    storm_s: float = 60.0
    timeout_s: float = 60.0
    first_retry_s: float = 5.0
    longest_retry_s: float = 300.0
    settle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Matter:
    """A concern as a notice speaks of it; `at_utc` when it came up, or was over."""

    concern: str
    kind: str
    agent: AgentId | None
    reason: str
    at_utc: datetime


def text_of(matters: Sequence[Matter], *, resolved: bool) -> str:
    """The one line that a person reads; `matters` are one or more."""
    if len(matters) == 1:
        (matter,) = matters
        about = matter.agent or "fleet"
        said = "is over" if resolved else matter.reason.replace("_", " ")
        line = f"{about}: {matter.kind.replace('_', ' ')}" + (f", {said}" if said else "")
    else:
        kinds = Counter(matter.kind for matter in matters).most_common()
        counted = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in kinds)
        named = [matter.agent for matter in matters if matter.agent][:_NAMED]
        among = f"; among them {', '.join(named)}" if named else ""
        line = f"{len(matters)} concerns {'are over' if resolved else 'came up'}: {counted}{among}"
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"


@dataclass(slots=True)
class Pace:
    """How much one way of telling has said lately; times are seconds on one clock."""

    limits: AlertLimits
    _singles: deque[float] = field(default_factory=deque[float])
    _grouped_at: dict[bool, float] = field(default_factory=dict[bool, float])

    def next(
        self, waiting: Sequence[Matter], now: float, *, resolved: bool
    ) -> tuple[Sequence[Matter], float | None]:
        """What to tell now, as one notice; else the time from which something may be told."""
        if not waiting:
            return (), None
        while self._singles and self._singles[0] <= now - self.limits.storm_s:
            self._singles.popleft()
        if len(self._singles) + len(waiting) <= self.limits.storm:
            return waiting[:1], None
        free_at = self._grouped_at.get(resolved, float("-inf")) + self.limits.storm_s
        if now >= free_at:
            return waiting, None
        return (), free_at

    def told(self, count: int, now: float, *, resolved: bool) -> None:
        """A notice on so many concerns has been told."""
        room = len(self._singles) < self.limits.storm
        if count == 1 and room:
            self._singles.append(now)
        else:
            self._grouped_at[resolved] = now


def pause_s(failures: int, limits: AlertLimits) -> float:
    """The pause after so many failures (>= 1) of one way in a row."""
    return min(limits.first_retry_s * 2.0 ** min(failures - 1, 30), limits.longest_retry_s)
