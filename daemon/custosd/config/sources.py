"""Where the configuration comes from: which files, and what is written in them.

A file is read whole, once. What can be said of it without knowing any key is said here:
it cannot be read, it is not text, it is not TOML.
"""

import errno
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custosd.config.lines import lines_of
from custosd.config.problems import InvalidConfig, Problem, ProblemKind
from custosd.config.section import KeyPath

LARGEST_BYTES = 256 * 1024
"""No configuration is larger; an endless file must not fill the memory."""

SYSTEM_FOLDER = Path("/etc/custosd")

STDIN = "-"

_POSITION = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read, `-` for standard input; `content` stands for it where it is given."""

    name: str
    content: bytes | None = None

    @property
    def shown(self) -> str:
        """What it is called in messages."""
        return "<stdin>" if self.name == STDIN else self.name

    def read(self) -> bytes:
        """At most one byte more than the largest configuration; raises `OSError`."""
        if self.content is not None:
            return self.content
        if self.name == STDIN:
            return sys.stdin.buffer.read(LARGEST_BYTES + 1)
        with Path(self.name).open("rb") as file:
            return file.read(LARGEST_BYTES + 1)


@dataclass(frozen=True, slots=True)
class Document:
    """What one file says: the tables of its TOML, and the line of each key."""

    file: str
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def line_of(self, path: KeyPath) -> int | None:
        """The line of a key, or of the nearest table around it."""
        while path:
            if line := self.lines.get(path):
                return line
            path = path[:-1]
        return None


def locate_config(
    given: Sequence[str], env: Mapping[str, str], system: Path = SYSTEM_FOLDER
) -> list[Source]:
    """The files to read, in this order; a later one wins.

    Those that were `given`, else those of $CUSTOSD_CONFIG (separated by colons), else
    custosd.toml and conf.d/*.toml (by name) of the system folder, as far as they exist;
    none at all means that the defaults hold. A file that may not be looked at is listed,
    so that reading tells of it.
    """
    if given:
        return [Source(name) for name in given]
    if named := [name for name in env.get("CUSTOSD_CONFIG", "").split(":") if name]:
        return [Source(name) for name in named]
    main, folder = system / "custosd.toml", system / "conf.d"
    found = [main] if _may_exist(main) else []
    try:
        found += sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        found.append(folder)
    return [Source(str(path)) for path in found]


def read_source(source: Source) -> Document:
    """Read and parse one file; raises `InvalidConfig` with one problem."""
    try:
        content = source.read()
    except (OSError, ValueError) as error:
        raise _unusable(source, ProblemKind.UNREADABLE, "a readable file", _words(error)) from error
    if len(content) > LARGEST_BYTES:
        expected = f"at most {LARGEST_BYTES // 1024} KiB"
        raise _unusable(source, ProblemKind.SYNTAX, expected, "is this the right file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = f"byte 0x{content[error.start]:02x} is none; save the file as UTF-8"
        raise _unusable(source, ProblemKind.SYNTAX, "text in UTF-8", hint, line) from error
    return parse_toml(source, text)


def parse_toml(source: Source, text: str) -> Document:
    """A text as a document; raises `InvalidConfig` with one problem."""
    try:
        data = tomllib.loads(text)
        return Document(source.shown, data, lines_of(text))
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        match = _POSITION.search(message)
        line = text.rstrip().count("\n") + 1
        if match and match[1]:
            line, message = int(match[1]), f"{message[: match.start()]} (column {match[2]})"
        raise _unusable(source, ProblemKind.SYNTAX, "valid TOML", _lower(message), line) from error
    except RecursionError:
        hint = "lists or tables lie in each other too deep"
        raise _unusable(source, ProblemKind.SYNTAX, "valid TOML", hint) from None
    except ValueError as error:
        # Numbers of thousands of digits: Python refuses to read them.
        hint = "a number is too long"
        raise _unusable(source, ProblemKind.SYNTAX, "valid TOML", hint) from error


def _may_exist(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno not in {errno.ENOENT, errno.ENOTDIR}
    return True


def _unusable(
    source: Source, kind: ProblemKind, expected: str, hint: str, line: int | None = None
) -> InvalidConfig:
    return InvalidConfig([Problem(source.shown, line, "", "", expected, hint, kind)])


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno:
        return _lower(os.strerror(error.errno))
    return str(error)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
