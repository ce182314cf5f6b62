"""What is different between two configurations: the keys, and when each change holds."""

from collections.abc import Iterator

from custosd.config.section import Section, key
from custosd.config.settings import Config

AFTER_RESTART = (
    "daemon",
    "log",
    "store",
    "recorder",
    "board",
    "transcripts",
    "doors",
    "telemetry",
    "workspace",
    "guardian.hot_trajectories",
    "tasks.score",
    "tasks.retry",
)
"""Sections and keys that a running daemon can not take up: what they made is in use."""

_AGENT_AFTER_RESTART = ("id", "transcripts")


def changed_keys(before: Config, after: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys whose values differ: those that can be taken up at once, and the others.

    Tables are told apart by their ids or names: `agent[builder-1].unit`, `model[sonnet].kind`.
    """
    at_once: list[str] = []
    later: list[str] = []
    for found in _differences(before, after, ""):
        (later if _after_restart(found) else at_once).append(found)
    return tuple(at_once), tuple(later)


def _after_restart(found: str) -> bool:
    if found.startswith("agent["):
        return found.rsplit(".", 1)[-1] in _AGENT_AFTER_RESTART
    return any(
        found == name or found.startswith((f"{name}.", f"{name}[")) for name in AFTER_RESTART
    )


def _differences(before: Section, after: Section, above: str) -> Iterator[str]:
    for attribute, field in type(before).model_fields.items():
        name = f"{above}.{key(attribute, field)}".removeprefix(".")
        old, new = getattr(before, attribute), getattr(after, attribute)
        if old == new:
            continue
        if isinstance(old, Section) and isinstance(new, Section):
            yield from _differences(old, new, name)
        elif isinstance(old, tuple) and any(isinstance(part, Section) for part in (*old, *new)):
            yield from _tables(old, new, name)
        else:
            yield name


def _tables(old: tuple[Section, ...], new: tuple[Section, ...], name: str) -> Iterator[str]:
    olds = {_name_of(part, index): part for index, part in enumerate(old)}
    news = {_name_of(part, index): part for index, part in enumerate(new)}
    for known in olds | news:
        here = f"{name}[{known}]"
        if known in olds and known in news:
            yield from _differences(olds[known], news[known], here)
        else:
            # As a whole: whoever has transcripts is met, or left, with the next start.
            yield here
            if getattr(olds.get(known) or news[known], "transcripts", ()):
                yield f"{here}.transcripts"


def _name_of(part: Section, index: int) -> str:
    return str(getattr(part, "id", None) or getattr(part, "name", None) or index)
