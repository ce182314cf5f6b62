"""Who has made progress, and when: what a watchdog needs to know of the running services.

Laws:

1. A pulse is beaten by work done, not by being alive: a loop that turns without getting
   anywhere must not beat.
2. Waiting for something from outside is no lack of progress; waiting inside for one's own
   part is. So only the first is written as `with pulse.waiting()`.
3. A pulse belongs to one task. Two tasks on one pulse would hide each other's stand-still.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio


@dataclass(slots=True)
class Pulse:
    """One task's marks of progress; `beat_at` is trio's time of the last one."""

    name: str
    beat_at: float
    idle: bool = False

    def beat(self) -> None:
        """Mark progress, now."""
        self.beat_at = trio.current_time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for outside input in the block, for however long; both its ends are beats.

        What the block does with the input once it is there belongs after the block.
        """
        self.beat()
        self.idle = True
        try:
            yield
        finally:
            self.idle = False
            self.beat()

    async def sleep(self, seconds: float) -> None:
        """Wait for nothing but that time to pass."""
        with self.waiting():
            await trio.sleep(seconds)

    def age_s(self, now: float) -> float:
        """Seconds since the last beat; 0 while waiting for outside input."""
        return 0.0 if self.idle else max(now - self.beat_at, 0.0)


@dataclass(slots=True)
class Pulses:
    """The pulses of all tasks that are watched."""

    _watched: list[Pulse] = field(default_factory=list)

    @contextmanager
    def watched(self, name: str) -> Iterator[Pulse]:
        """A pulse, just beaten, that is watched until the block ends, however it ends."""
        pulse = Pulse(name, trio.current_time())
        self._watched.append(pulse)
        try:
            yield pulse
        finally:
            # By identity: two runs of one service may overlap, with equal marks.
            self._watched = [other for other in self._watched if other is not pulse]

    def stale(self, now: float, limit_s: float) -> dict[str, float]:
        """Seconds without progress, by name, of all that made none for more than `limit_s`."""
        stale: dict[str, float] = {}
        for pulse in self._watched:
            age_s = pulse.age_s(now)
            if age_s > limit_s:
                stale[pulse.name] = max(age_s, stale.get(pulse.name, 0.0))
        return stale
