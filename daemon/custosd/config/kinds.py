"""What a key may hold: how its value is read, ranged, written in TOML and told to people.

A kind stands in a field's annotation, `Annotated[float, Duration("1s", "1h")]`, and is the
only place that knows the field's form; pydantic asks it for the value and for the schema.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from custosd.config.quantities import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

# ruff: noqa: D102 - the methods of each kind mean what `Kind` says of them

Schema = dict[str, Any]

UNSHOWN = "(not shown)"
"""Stands where a value could hold a secret."""


class Refused(ValueError):
    """A value that a kind does not take; `hint` is the remedy, where there is a known one."""

    def __init__(self, hint: str = "") -> None:
        super().__init__(hint or "refused")
        self.hint = hint


class Kind(ABC):
    """One form of value."""

    @property
    @abstractmethod
    def form(self) -> str:
        """Form, unit and range in a few words: "duration, 1s to 1h"."""

    @property
    def expected(self) -> str:
        """The same within a sentence: "a duration from 1s to 1h"."""
        return f"the {self.form}"

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """The value's JSON Schema."""

    @abstractmethod
    def parse(self, value: object) -> Any:
        """The typed value of what TOML gave; raises `ValueError`, best a `Refused`."""

    def plain(self, value: Any) -> Any:
        """The typed value as TOML and JSON have it."""
        return value

    def shown(self, value: object) -> str:
        """A value that was refused, for a message; never more than is safe to print."""
        return written(value)

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> Schema:
        del core, handler
        return self.schema


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    """Seconds as a float, within bounds written as durations."""

    least: str
    most: str

    @property
    def form(self) -> str:
        return f"duration, {self.least} to {self.most}"

    @property
    def expected(self) -> str:
        return f'a duration from {self.least} to {self.most} ("90s", "1h30m", or seconds)'

    @property
    def schema(self) -> Schema:
        bounds = {"minimum": parse_duration(self.least), "maximum": parse_duration(self.most)}
        text = {"type": "string", "minLength": 2, "pattern": f"^{DURATION_PATTERN}$"}
        return {"anyOf": [{"type": "number", **bounds}, text]}

    def parse(self, value: object) -> float:
        seconds = parse_duration(value)
        if not parse_duration(self.least) <= seconds <= parse_duration(self.most):
            raise Refused
        return seconds

    def plain(self, value: float) -> str:
        return format_duration(value)


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """Bytes as an int, within bounds written as sizes."""

    least: str
    most: str

    @property
    def form(self) -> str:
        return f"size, {self.least} to {self.most}"

    @property
    def expected(self) -> str:
        return f'a size from {self.least} to {self.most} ("10MiB", "2GB", or bytes)'

    @property
    def schema(self) -> Schema:
        bounds = {"minimum": parse_size(self.least), "maximum": parse_size(self.most)}
        text = {"type": "string", "pattern": f"^{SIZE_PATTERN}$"}
        return {"anyOf": [{"type": "integer", **bounds}, text]}

    def parse(self, value: object) -> int:
        size = parse_size(value)
        if not parse_size(self.least) <= size <= parse_size(self.most):
            raise Refused
        return size

    def plain(self, value: int) -> str:
        return format_size(value)


@dataclass(frozen=True, slots=True)
class Count(Kind):
    """A whole number of `unit`; only multiples of `step`."""

    least: int
    most: int
    unit: str
    step: int = 1

    @property
    def form(self) -> str:
        step = "" if self.step == 1 else f", a multiple of {self.step}"
        return f"number of {self.unit}, {self.least} to {self.most}{step}"

    @property
    def expected(self) -> str:
        number = "a whole number" if self.step == 1 else f"a multiple of {self.step}"
        return f"{number} from {self.least} to {self.most} ({self.unit})"

    @property
    def schema(self) -> Schema:
        bounds = {"minimum": self.least, "maximum": self.most}
        return {"type": "integer", **bounds, **({"multipleOf": self.step} if self.step > 1 else {})}

    def parse(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused
        if not self.least <= value <= self.most or value % self.step:
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Amount(Kind):
    """A number of `unit`, whole or not."""

    least: float
    most: float
    unit: str

    @property
    def form(self) -> str:
        return f"{self.unit}, {self.least:.15g} to {self.most:.15g}"

    @property
    def expected(self) -> str:
        return f"a number from {self.least:.15g} to {self.most:.15g} ({self.unit})"

    @property
    def schema(self) -> Schema:
        return {"type": "number", "minimum": self.least, "maximum": self.most}

    def parse(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused
        # Compared before it is converted: a whole number may be too large for a float.
        if not self.least <= value <= self.most or not math.isfinite(value):
            raise Refused
        return float(value)


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """Yes or no."""

    @property
    def form(self) -> str:
        return "true or false"

    @property
    def expected(self) -> str:
        return self.form

    @property
    def schema(self) -> Schema:
        return {"type": "boolean"}

    def parse(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def form(self) -> str:
        *most, last = (f'"{word}"' for word in self.words)
        return f"{', '.join(most)} or {last}" if most else last

    @property
    def expected(self) -> str:
        return self.form

    @property
    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.words)}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """One printable line; empty only where `optional`."""

    optional: bool = False
    longest: int = 200

    @property
    def form(self) -> str:
        empty = ", or empty" if self.optional else ""
        return f"text of at most {self.longest} characters on one line{empty}"

    @property
    def expected(self) -> str:
        return f"a {self.form}"

    @property
    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1 - self.optional, "maxLength": self.longest}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > self.longest:
            raise Refused
        if not (value or self.optional):
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class CredentialName(Kind):
    """The name of a systemd credential: a file name without a folder; empty for none."""

    @property
    def form(self) -> str:
        return "name of a systemd credential (a file name, no folder), or empty"

    @property
    def schema(self) -> Schema:
        return {"type": "string", "maxLength": 255, "pattern": "^[^/]*$"}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > 255:  # noqa: PLR2004 - NAME_MAX
            raise Refused
        if "/" in value or value in {".", ".."}:
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class AbsolutePath(Kind):
    """A path, absolute once ~ is expanded; None for an empty text, where `optional`."""

    what: str
    optional: bool = False

    @property
    def form(self) -> str:
        empty = ", or empty" if self.optional else ""
        return f"absolute path of a {self.what} (~ is expanded){empty}"

    @property
    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^([/~].*)?$" if self.optional else "^[/~]"}

    def parse(self, value: object) -> Path | None:
        if isinstance(value, Path):
            value = str(value)
        if value is None and self.optional:
            return None
        if not isinstance(value, str) or not value.isprintable():
            raise Refused
        if not value and self.optional:
            return None
        try:
            path = Path(value).expanduser()
        except RuntimeError as error:
            raise Refused("there is no such user, or no home folder; write the path out") from error
        if not path.is_absolute():
            raise Refused("relative to which folder? write the path out from /, or from ~/")
        return path

    def plain(self, value: Path | None) -> str:
        return "" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Patterns(Kind):
    """File name patterns below a folder, at least one."""

    @property
    def form(self) -> str:
        return "list of patterns"

    @property
    def expected(self) -> str:
        return 'a list of patterns below the folder, such as ["**/*.jsonl"]'

    @property
    def schema(self) -> Schema:
        return {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}

    def parse(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise Refused
        for pattern in value:
            if not isinstance(pattern, str) or not pattern or not pattern.isprintable():
                raise Refused
            if pattern.startswith(("/", "~")) or ".." in pattern.split("/"):
                raise Refused(f"{written(pattern)} leads out of the folder")
        return tuple(value)

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)


@dataclass(frozen=True, slots=True)
class Dsn(Kind):
    """Where a PostgreSQL server is, without a password; empty for none."""

    @property
    def form(self) -> str:
        return "URL of a PostgreSQL database, or empty"

    @property
    def expected(self) -> str:
        return 'a URL such as "postgresql://user@host:5432/database", or empty'

    @property
    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^(postgres(ql)?://.*)?$"}

    def shown(self, value: object) -> str:
        del value  # whatever is wrong with it, a password may be in it
        return UNSHOWN

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise Refused
        if not value:
            return value
        if not value.startswith(("postgresql://", "postgres://")):
            raise Refused
        try:
            url = urlsplit(value)
            secret = url.password or any("password" in key for key, _ in parse_qsl(url.query))
        except ValueError as error:
            raise Refused from error
        if secret:
            raise Refused(
                "a password does not belong in the DSN: put it in a file of mode 0600 named by"
                " store.password_file, or in the systemd credential store.password_credential"
            )
        # An @ there means that a user or password held a bare /, ? or #.
        if "@" in url.path + url.query + url.fragment:
            raise Refused("write an @ outside of user@host as %40, and no password at all")
        return value


@dataclass(frozen=True, slots=True)
class Name(Kind):
    """A name that may stand in a path, a unit's name and a line of a log; empty if `optional`."""

    what: str
    optional: bool = False

    @property
    def form(self) -> str:
        empty = ", or empty" if self.optional else ""
        return f"{self.what}: letters, digits, and . _ - between them, at most 64{empty}"

    @property
    def expected(self) -> str:
        return f"the {self.form}"

    @property
    def schema(self) -> Schema:
        pattern = f"^({_NAME.pattern})?$" if self.optional else f"^{_NAME.pattern}$"
        return {"type": "string", "pattern": pattern}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not (
            _NAME.fullmatch(value) or (self.optional and not value)
        ):
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Shaped(Kind):
    """A text of one shape, given as a pattern; empty too. `example` shows people the shape."""

    what: str
    pattern: str
    example: str

    @property
    def form(self) -> str:
        return f"{self.what}, such as {self.example}; or empty"

    @property
    def expected(self) -> str:
        return f"the {self.form}"

    @property
    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^({self.pattern})?$"}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or (value and not re.fullmatch(self.pattern, value)):
            raise Refused
        return value


@dataclass(frozen=True, slots=True)
class Words(Kind):
    """A list of texts; what each is, `what` says."""

    what: str
    example: str

    @property
    def form(self) -> str:
        return f"list of {self.what}"

    @property
    def expected(self) -> str:
        return f"a list of {self.what}, such as {self.example}"

    @property
    def schema(self) -> Schema:
        return {"type": "array", "items": {"type": "string", "minLength": 1}}

    def parse(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise Refused
        for word in value:
            if not isinstance(word, str) or not word or "\0" in word:
                raise Refused
        return tuple(value)

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)


@dataclass(frozen=True, slots=True)
class Folders(Kind):
    """Absolute paths of folders, ~ expanded; none is a value too."""

    @property
    def form(self) -> str:
        return "list of absolute paths of folders (~ is expanded)"

    @property
    def expected(self) -> str:
        return 'a list of absolute paths, such as ["~/agents/builder"]'

    @property
    def schema(self) -> Schema:
        return {"type": "array", "items": AbsolutePath("folder").schema}

    def parse(self, value: object) -> tuple[Path, ...]:
        if not isinstance(value, list | tuple):
            raise Refused
        paths = tuple(AbsolutePath("folder").parse(part) for part in value)
        return tuple(path for path in paths if path is not None)

    def plain(self, value: tuple[Path, ...]) -> list[str]:
        return [str(path) for path in value]


@dataclass(frozen=True, slots=True)
class HttpUrl(Kind):
    """An http or https URL without a login; empty for none."""

    @property
    def form(self) -> str:
        return "http or https URL, or empty"

    @property
    def expected(self) -> str:
        return 'a URL such as "http://127.0.0.1:8080/agent", or empty'

    @property
    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^(https?://.*)?$"}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise Refused
        if not value:
            return value
        try:
            url = urlsplit(value)
            port_is_fine = url.port is None or url.port > 0
        except ValueError as error:
            raise Refused from error
        if url.scheme not in {"http", "https"} or not url.hostname or not port_is_fine:
            raise Refused
        if url.username is not None or url.password is not None:
            raise Refused("a login does not belong in a URL: name a file with a token instead")
        return value


@dataclass(frozen=True, slots=True)
class Address(Kind):
    """Where to listen: "host:port"; empty for nowhere."""

    @property
    def form(self) -> str:
        return "host:port to listen on, or empty"

    @property
    def expected(self) -> str:
        return 'an address such as "127.0.0.1:8430" or "[::1]:8430", or empty'

    @property
    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^(.+:[0-9]{1,5})?$"}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise Refused
        host, _, port = value.rpartition(":")
        if value and not (host and port.isascii() and port.isdigit() and int(port) <= 65_535):  # noqa: PLR2004 - the largest port
            raise Refused
        return value


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def as_toml(value: object) -> str:
    """A plain value (text, number, truth, list of these) as TOML, whole."""
    match value:
        case str():
            # JSON's escapes are TOML's too, but for DEL, which JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(as_toml, value))}]"
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def written(value: object) -> str:
    """A value for a message: as in TOML, at most 60 characters, nothing secret."""
    match value:
        case str() if _WITH_LOGIN.search(value):
            return UNSHOWN
        case dict():
            return f"a table of {len(value)}"
        # Not looked into further down, where a list may be deep and a table secret.
        case list() if len(value) > _SHOWN_ITEMS or not all(map(_is_plain, value)):
            return f"a list of {len(value)}"
        case list():
            text = f"[{', '.join(map(written, value))}]"
        # More digits than Python is willing to write.
        case int() if value.bit_length() > _SHOWN_BITS:
            return "a huge number"
        case _:
            text = as_toml(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


_WITH_LOGIN = re.compile(r"://[^/\s]*@|passw", re.IGNORECASE)
_SHOWN = 60
_SHOWN_ITEMS = 8
_SHOWN_BITS = 1_000


def _is_plain(value: object) -> bool:
    return not isinstance(value, list | dict)
