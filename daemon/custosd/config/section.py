"""What every section of the configuration is: frozen, complete, and possible in itself.

A key is one line in `custosd.config.settings`; its name in TOML is the attribute's without
the unit (`interval_s` is `interval`). The reference file, the explanations, the schema and
every message are made from that line.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from custosd.config.kinds import Kind

KeyPath = tuple[str | int, ...]
"""Where a value stands, in TOML's names: `("transcripts", "root", 0, "path")`."""

LATER = object()
"""Validation context of a reader that asks for `conflicts` itself, once it knows them all."""


def key_of(attribute: str) -> str:
    """The TOML key of an attribute: its name without the unit."""
    return attribute.removesuffix("_s").removesuffix("_bytes")


def default(value: object, description: str) -> Any:
    """A key that has a default, given as it would be written in TOML."""
    return Field(default=value, description=description)


def required(description: str, *, example: object) -> Any:
    """A key that must be given; `example` stands for it in the reference file."""
    return Field(description=description, examples=[example])


def section(kind: Callable[[], object]) -> Any:
    """A part of its own, with its own defaults."""
    return Field(default_factory=kind)


def tables(key: str, description: str) -> Any:
    """A list of tables, empty by default: `[[section.key]]`."""
    return Field(default=(), alias=key, description=description)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the keys that contradict each other, and what it would have to be.

    `{beside}` in `expected` stands for the other key's full name.
    """

    path: KeyPath
    expected: str
    beside: KeyPath = ()

    def __str__(self) -> str:
        return self.expected.replace("{beside}", dotted(self.beside))

    def below(self, path: KeyPath) -> "Side":
        """The same side, seen from further up."""
        return Side((*path, *self.path), self.expected, (*path, *self.beside))


@dataclass(frozen=True, slots=True)
class Conflict:
    """Values that are possible alone but not together; `hint` says why, or what to do."""

    sides: tuple[Side, ...]
    hint: str = ""

    def below(self, *path: str | int) -> "Conflict":
        """The same conflict, seen from further up."""
        return Conflict(tuple(side.below(path) for side in self.sides), self.hint)


class Section(BaseModel):
    """Frozen settings. Made from Python by attribute names, from TOML by keys.

    Raises `pydantic.ValidationError` where a value is none of its kind or the values
    contradict each other (`conflicts`).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=key_of,
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Every contradiction in this section and below; paths start at this section."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            parts = enumerate(value) if isinstance(value, tuple) else [(None, value)]
            for index, part in parts:
                if isinstance(part, Section):
                    path = (key(name, field),) if index is None else (key(name, field), index)
                    yield from (found.below(*path) for found in part.conflicts())

    @model_validator(mode="after")
    def _is_possible(self, info: ValidationInfo) -> "Section":
        if info.context is not LATER and (found := list(self.conflicts())):
            sides = [conflict.sides[0] for conflict in found]
            raise ValueError("; ".join(f"{dotted(side.path)}: expected {side}" for side in sides))
        return self


def key(name: str, field: FieldInfo) -> str:
    """A field's name in TOML."""
    return field.alias or key_of(name)


def kind_of(field: FieldInfo) -> Kind | None:
    """What a field holds; None for a section or a list of sections."""
    return next((kind for kind in field.metadata if isinstance(kind, Kind)), None)


def in_order(
    top: Section, low: str, high: str, *, strictly: bool = False, why: str = ""
) -> Iterator[Conflict]:
    """A conflict if `low` is above `high` (or equal, where `strictly`).

    Both are dotted attribute names seen from `top`: `"guardian.judge_timeout_s"`.
    """
    (low_path, low_value, low_text), (high_path, high_value, high_text) = (
        _look_up(top, low),
        _look_up(top, high),
    )
    if low_value < high_value or (low_value == high_value and not strictly):
        return
    below, above = ("less than", "more than") if strictly else ("at most", "at least")
    yield Conflict(
        (
            Side(low_path, f"{below} {{beside}} ({high_text})", high_path),
            Side(high_path, f"{above} {{beside}} ({low_text})", low_path),
        ),
        why,
    )


def dotted(path: KeyPath) -> str:
    """A path as people write it: `transcripts.root[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _look_up(top: Section, attributes: str) -> tuple[KeyPath, float, str]:
    *sections, name = attributes.split(".")
    here = top
    for part in sections:
        here = cast("Section", getattr(here, part))
    field = type(here).model_fields[name]
    value, kind = getattr(here, name), kind_of(field)
    return (*sections, key(name, field)), value, str(kind.plain(value) if kind else value)
