"""Evidence of liveness, three-valued, and the health that is read from it.

Laws:

1. Everything is ok, bad or unknown. Evidence that is older than it stays fresh is unknown.
2. Unknown never authorises a destructive act: `Health.authorises_restart` is true for `bad`
   alone, and only where the evidence that says so is named.
3. Times here (`at`) are trio's clock, seconds; they mean nothing in another process.
"""

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Where evidence comes from; no two of them can fail for the same small reason."""

    BEAT = "beat"
    TRANSCRIPT = "transcript"
    PROCESS = "process"
    UNIT = "unit"
    WORKSPACE = "workspace"


class Value(StrEnum):
    """What a piece of evidence, or all of it together, says."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence. `detail` is a short snake-case code, as "process_gone".

    `at` is when it was seen, `fresh_s` how long it counts from then on.
    """

    source: Source
    value: Value
    at: float
    fresh_s: float
    detail: str = ""

    def value_at(self, now: float) -> Value:
        """The value while it is fresh, unknown afterwards."""
        return self.value if now - self.at <= self.fresh_s else Value.UNKNOWN


class Condition(StrEnum):
    """What is held of an agent's life; beside ALIVE, three things that differ in their cure.

    DEAD: positive evidence that the process is gone. HUNG: it is there and makes no progress.
    LATE: nothing was heard, which is only a suspicion. UNKNOWN: nothing is known, of an
    agent that was never heard of, or whose every source fails.
    """

    ALIVE = "alive"
    LATE = "late"
    HUNG = "hung"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Health:
    """The liveness verdict over all evidence at one time. `reason` is a snake-case code."""

    condition: Condition
    value: Value
    reason: str
    evidence: tuple[Evidence, ...] = ()

    @property
    def authorises_restart(self) -> bool:
        """Whether this alone may end in a restart: only what is known to be bad."""
        return self.value is Value.BAD and self.condition in (Condition.DEAD, Condition.HUNG)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Which process, for good: ids come again, but not with this start in this boot.

    `started_ticks` is in clock ticks since the boot (field 22 of /proc/PID/stat).
    """

    pid: int
    started_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, as far as it was seen. One of `code` and `signal` at most."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """What a probe saw of one source.

    `progress` is a measure that changes when work is done (bytes written, CPU seconds, a
    time of change); None where the source has none. Whoever asked compares it with the
    last one. `process` and `exit` are told where they were seen. Of a process that is named
    it is processor seconds, and nothing else is: see `is_processor_time`.
    """

    source: Source
    value: Value
    detail: str = ""
    progress: float | None = None
    process: ProcessIdentity | None = None
    exit: Exit | None = None

    @property
    def is_processor_time(self) -> bool:
        """Whether `progress` is processor seconds: they grow a little though nothing is done.

        A hook names no process; its number is its own, and changes only when work is done.
        """
        return self.source is Source.PROCESS and self.process is not None
