"""A service manager that only remembers what it was told: for tests and for dry runs."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class RecordingServiceManager:
    """Keeps every message as its assignments, in order; `deaf` ones are lost, and counted."""

    watchdog_s: float | None = None
    deaf: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)
    unsent: int = 0
    _owed: dict[str, str] = field(default_factory=dict)

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is done."""
        return self._keep({"READY": "1"} | _status(status), owe=True)

    def alive(self) -> bool:
        """Still making progress."""
        return self._keep({"WATCHDOG": "1"})

    def status(self, text: str) -> bool:
        """One line of words."""
        return self._keep(_status(text))

    def reloading(self, status: str = "") -> bool:
        """A reload has begun."""
        self._owed.pop("READY", None)
        return self._keep({"RELOADING": "1", "MONOTONIC_USEC": "0"} | _status(status))

    def stopping(self, status: str = "") -> bool:
        """The daemon has begun to stop; ends the watchdog."""
        unwatched = {} if self.watchdog_s is None else {"WATCHDOG_USEC": "0"}
        return self._keep({"STOPPING": "1"} | unwatched | _status(status), owe=True)

    def extend_timeout(self, seconds: float) -> bool:
        """Start or stop will take up to so many seconds from now."""
        return self._keep({"EXTEND_TIMEOUT_USEC": str(int(seconds * 1e6))})

    def close(self) -> None:
        """Nothing is held open."""

    def _keep(self, assignments: dict[str, str], *, owe: bool = False) -> bool:
        if self.deaf:
            self.unsent += 1
            if owe:
                self._owed |= assignments
            return False
        self.messages.append(self._owed | assignments)
        self._owed = {}
        return True


def _status(text: str) -> dict[str, str]:
    return {"STATUS": " ".join(text.split())} if text else {}
