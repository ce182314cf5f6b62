"""The keys as a tree: what there is, and what is known of each, read off the settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic.fields import FieldInfo

from custosd.config.kinds import Kind
from custosd.config.section import KeyPath, Section, key, kind_of
from custosd.config.settings import Config


@dataclass(frozen=True, slots=True)
class Entry:
    """A key or a section.

    `path` has no list indexes: `("transcripts", "root", "path")`. `section` is set for
    sections, and `kind` for keys; `repeated` for a list of sections. `default` and
    `example` are as TOML has them; a key without a default must be given.
    """

    path: tuple[str, ...]
    attribute: str
    meaning: str
    kind: Kind | None = None
    section: type[Section] | None = None
    repeated: bool = False
    required: bool = False
    default: Any = None
    example: Any = None

    @property
    def form(self) -> str:
        """What a key may hold, in a few words; empty for a section."""
        return self.kind.form if self.kind else ""

    @property
    def name(self) -> str:
        """The last part of the path: the key within its table."""
        return self.path[-1]

    def plain(self, config: Config, path: KeyPath) -> Any:
        """The value that this key has there, as TOML has it."""
        value = value_at(config, path)
        return self.kind.plain(value) if self.kind else value


@cache
def entries() -> tuple[Entry, ...]:
    """All sections and keys, each section before its keys, in the order of the settings."""
    return tuple(_below(Config, ()))


def entry_at(path: KeyPath) -> Entry | None:
    """What stands at a path, list indexes or not; None for an unknown key, and one root."""
    if path and isinstance(path[-1], int):
        return None
    plain = tuple(part for part in path if isinstance(part, str))
    return next((entry for entry in entries() if entry.path == plain), None)


def siblings(above: KeyPath) -> list[Entry]:
    """The keys and sections of a table."""
    plain = tuple(part for part in above if isinstance(part, str))
    return [entry for entry in entries() if entry.path[:-1] == plain]


def value_at(config: Config, path: KeyPath) -> Any:
    """The value at a path with its list indexes."""
    here: Any = config
    for part in path:
        if isinstance(part, int):
            here = here[part]
        else:
            fields = type(here).model_fields.items()
            here = getattr(here, next(name for name, field in fields if key(name, field) == part))
    return here


def _below(section: type[Section], above: tuple[str, ...]) -> Iterator[Entry]:
    for attribute, field in section.model_fields.items():
        path = (*above, key(attribute, field))
        inner, repeated = _section_of(field)
        if inner is not None:
            yield Entry(path, attribute, _sentence(inner), section=inner, repeated=repeated)
            yield from _below(inner, path)
        else:
            kind = kind_of(field)
            required = field.is_required()
            default = None
            if kind and not required:
                default = kind.plain(kind.parse(field.default))
            example = field.examples[0] if field.examples else default
            yield Entry(
                path,
                attribute,
                field.description or "",
                kind,
                required=required,
                default=default,
                example=example,
            )


def _section_of(field: FieldInfo) -> tuple[type[Section] | None, bool]:
    for candidate, repeated in [
        (field.annotation, False),
        *((a, True) for a in get_args(field.annotation)),
    ]:
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate, repeated
    return None, False


def _sentence(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().split("\n\n")[0]
