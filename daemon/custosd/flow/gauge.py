"""A number that somebody keeps, and others may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number that stands somewhere now, or, with `counts`, one that only grows.

    `name` has its unit at the end; `help` is a sentence. All of one name have the same labels.
    """

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    counts: bool = False
