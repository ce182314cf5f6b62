"""The reference manual of the configuration, made from the settings themselves.

The commented file, the explanation of one key, the schema for editors, and the values in
force: none of them can say anything else than what the daemon does.
"""

import difflib
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from custosd.config.kinds import as_toml
from custosd.config.reading import Origin, Reading
from custosd.config.section import KeyPath, Section, dotted
from custosd.config.settings import Config
from custosd.config.tree import Entry, entries, entry_at, siblings

_WIDTH = 98

_HEAD = """\
# The configuration of custosd: every key, with its default.
#
# A key that is commented out has the value shown; above it stand its meaning, then what it may
# hold. `custosd config explain KEY` tells of one key, `custosd check-config` finds mistakes, and
# `custosd config show` prints what is in force.
#
# Durations: "250ms", "30s", "1h30m", "2d", or a number of seconds. Sizes: "64KiB", "10MiB", "2GB",
# or a number of bytes.
#
# Of several files the later one wins, key by key; a list is replaced as a whole. Secrets
# never stand here, only the names of the files or credentials that hold them.
#
# `custosd config default` prints this page.
"""


@dataclass(frozen=True, slots=True)
class Value:
    """One value in force: `plain` is as TOML has it; without an origin it is the default."""

    path: KeyPath
    plain: Any
    origin: Origin | None


def default_text() -> str:
    """The commented file: all sections and keys, the keys commented out, with defaults."""
    parts = [_HEAD]
    for entry in entries():
        if entry.section is not None:
            name = ".".join(entry.path)
            header = f"#[[{name}]]" if entry.repeated else f"[{name}]"
            parts.append(f"\n{_comment(entry.meaning)}{header}\n")
        else:
            assignment = f"#{entry.name} = {as_toml(entry.example)}\n"
            form = f"{entry.form}; must be given" if entry.required else entry.form
            parts.append(f"\n{_comment(entry.meaning)}{_comment(form)}{assignment}")
    return "".join(parts)


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file."""
    found = Config.model_json_schema(by_alias=True)
    found.pop("title", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "custosd.toml",
        **found,
    }


def values(reading: Reading) -> Iterator[Value]:
    """Every value in force, in the order of the settings, roots one after another."""
    yield from _values(reading, reading.config, (), ())


def shown_text(reading: Reading) -> str:
    """The values in force as TOML that reads back the same, each with its origin."""
    parts: list[str] = []
    table: KeyPath | None = None
    for value in values(reading):
        if table != value.path[:-1]:
            table = value.path[:-1]
            name = ".".join(part for part in table if isinstance(part, str))
            header = f"[[{name}]]" if isinstance(table[-1], int) else f"[{name}]"
            parts.append(f"{header}\n" if not parts else f"\n{header}\n")
        assignment = f"{value.path[-1]} = {as_toml(value.plain)}"
        parts.append(f"{assignment:<40}  # {value.origin or 'default'}\n")
    return "".join(parts)


def look_up(name: str) -> Entry | None:
    """The key or section of a dotted name; list indexes may be written or left out."""
    return entry_at(tuple(re.sub(r"\[[0-9]*\]", "", name).strip().split(".")))


def nearest(name: str) -> list[str]:
    """Names that were probably meant, the nearest first; at most three."""
    known = [dotted(entry.path) for entry in entries()]
    same_last = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
    close = difflib.get_close_matches(name, known, 3)
    return list(dict.fromkeys([*close, *same_last]))[:3]


def explained(entry: Entry, reading: Reading | None) -> dict[str, Any]:
    """What there is to say of a key, by name; `reading` is None where none could be had.

    For a section: its meaning and the names of its keys.
    """
    told: dict[str, Any] = {"key": dotted(entry.path), "meaning": entry.meaning}
    if entry.kind is None:
        told["keys"] = [dotted(part.path) for part in siblings(entry.path)]
        return told
    told["expected"] = entry.kind.expected
    told["attribute"] = entry.attribute
    if entry.required:
        told["required"] = True
    else:
        told["default"] = entry.default
    if reading is not None:
        told["present"] = [
            {
                "key": dotted(value.path),
                "value": value.plain,
                "origin": str(value.origin or "default"),
            }
            for value in values(reading)
            if tuple(part for part in value.path if isinstance(part, str)) == entry.path
        ]
    return told


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _values(
    reading: Reading, here: Section, at: KeyPath, table: tuple[str, ...]
) -> Iterator[Value]:
    # Keys first: in TOML what follows a table's header belongs to that table.
    parts = siblings(table)
    for entry in parts:
        if entry.kind is not None:
            plain = entry.kind.plain(getattr(here, entry.attribute))
            path = (*at, entry.name)
            yield Value(path, plain, reading.origins.get(path))
    for entry in parts:
        if entry.repeated:
            for index, one in enumerate(getattr(here, entry.attribute)):
                yield from _values(reading, one, (*at, entry.name, index), entry.path)
        elif entry.section is not None:
            inner = getattr(here, entry.attribute)
            yield from _values(reading, inner, (*at, entry.name), entry.path)
