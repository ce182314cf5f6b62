"""What is wrong with a configuration: every place, what stood there, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from custosd.core.errors import ConfigError


class ProblemKind(StrEnum):
    """Why a file, or one of its keys, is refused."""

    UNREADABLE = "unreadable"
    """Nothing can be said of this file: it could not be read."""
    SYNTAX = "syntax"
    """It is not TOML."""
    UNKNOWN_KEY = "unknown_key"
    SECRET = "secret"  # noqa: S105 - the word, not one
    """A secret was about to be written where everybody reads it."""
    VALUE = "value"
    """Wrong type, form or range; or missing."""
    CONFLICT = "conflict"
    """Possible alone, but not together with another key."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right.

    `line` is 1-based, None where the whole file is meant or it is not known; `key` is empty
    for the whole file; `value` is a text that is safe to print, empty where there is none.
    """

    file: str
    line: int | None
    key: str
    value: str
    expected: str
    hint: str = ""
    kind: ProblemKind = ProblemKind.VALUE

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        what = f"{self.key} = {self.value}" if self.value else self.key
        hint = f"; {self.hint}" if self.hint else ""
        return f"{': '.join(filter(None, (place, what)))}: expected {self.expected}{hint}"


class InvalidConfig(ConfigError):
    """The configuration can not be used; `problems` has all that was found, file by file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
