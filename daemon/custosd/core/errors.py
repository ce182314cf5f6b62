"""The family of custosd's own errors. Each port adds one branch; see `custosd.ports`."""


class CustosdError(Exception):
    """Anything that custosd itself raises; the message names the place and a remedy."""


class ConfigError(CustosdError):
    """The configuration cannot be used; carries every problem found, not the first."""


class JudgeError(CustosdError):
    """No answer could be had from a judge; `reason` is a short snake-case code."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class StoreError(CustosdError):
    """The store could not do a unit of work; nothing of it was kept, unless the message says so.

    `sqlstate` is the server's five-character code, empty where the server said nothing.
    """

    def __init__(self, message: str, *, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class StoreUnavailable(StoreError):
    """The store cannot be reached, is frozen, full or shutting down: retry later.

    A unit that was about to commit may have been kept: repeat only what may be repeated.
    """


class StoreConflict(StoreError):
    """Another transaction was in the way, or the plan was out of date: retry at once."""


class StoreRefused(StoreError):
    """The store refused a statement or its data: a bug or bad data, so do not repeat it.

    `constraint` names the violated constraint, empty where it was something else.
    """

    def __init__(self, message: str, *, sqlstate: str = "", constraint: str = "") -> None:
        super().__init__(message, sqlstate=sqlstate)
        self.constraint = constraint


class ControlError(CustosdError):
    """An agent could not be stopped or started, or it is not known whether it was.

    `reason` is a short snake-case code.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class ChannelError(CustosdError):
    """A letter did not arrive. `retry`: it may later; `reason` is a short snake-case code."""

    def __init__(self, reason: str, message: str = "", *, retry: bool = False) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.retry = retry


class NotifyError(CustosdError):
    """A person could not be told. `reason` is a short snake-case code."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class WorkspaceError(CustosdError):
    """An agent's folder could not be looked at; `reason` is a short snake-case code."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason
