"""What a detector says: that something shows in a trajectory, and which steps show it."""

from dataclasses import dataclass
from enum import StrEnum


class SignalKind(StrEnum):
    """What was found. Each is said with the steps that show it; none says "will fail"."""

    REPEATING = "repeating"
    STALE = "stale"
    ERRORS = "errors"
    ALTERNATING = "alternating"
    CHURNING = "churning"
    NO_PROGRESS = "no_progress"
    SCOPE = "scope"
    DRIFTING = "drifting"
    WAITING = "waiting"
    SILENT = "silent"
    IDLE = "idle"
    UNTESTED_CLAIM = "untested_claim"
    OVERSPENDING = "overspending"
    DUPLICATING = "duplicating"


class Severity(StrEnum):
    """NOTE is told; SUSPICION asks the judge; ALARM the rules judge itself will defend."""

    NOTE = "note"
    SUSPICION = "suspicion"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Signal:
    """One finding of one detector.

    `steps` are the numbers (0-based, in the run) of the steps that show it, oldest
    first, at most 16. `measure` and `limit` are what was counted and the setting that
    it passed, in the detector's own unit. `about` names verb and target in words (it may
    hold names of files: agent text, so it is stored and shown, never logged). `peers`
    are other agents that the finding is about.
    """

    kind: SignalKind
    severity: Severity
    steps: tuple[int, ...]
    measure: float
    limit: float
    about: str = ""
    peers: tuple[str, ...] = ()
