"""Takes secrets out of what a model answered, before it is written down.

Laws: a body without a secret stays as it is, to the bit; one with a secret stays JSON, or a
stream of it, so that whoever reads it reads the same; a secret that a stream has in pieces is
found in them all.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from custosd.adapters.scrubbing import scrubbed

_IN_PIECES = frozenset({"text", "partial_json", "content", "refusal", "thinking", "arguments"})
"""The fields of events whose texts belong together."""

Clean = Callable[[str], str]
Path = tuple[str | int, ...]


def cleaner(hidden: Iterable[str]) -> Clean:
    """What takes out every secret that can be told by its looks, and the words `hidden`."""
    words = tuple(word for word in hidden if word)

    def clean(text: str) -> str:
        for word in words:
            text = text.replace(word, "[redacted key]")
        return scrubbed(text).text

    return clean


def cleaned(pieces: list[bytes], clean: Clean) -> list[bytes]:
    """The pieces of a body as they came; where a secret is in them, one piece without it."""
    whole = b"".join(pieces)
    text = whole.decode("utf-8", "backslashreplace")
    value = _decoded(text)
    if value is None:
        found = _clean_stream(text, clean)
    else:
        found = text if (new := _clean_leaves(value, clean)) == value else _encoded(new)
    # Once more over all: names of fields, and what looks like a secret only beside its name.
    found = clean(found)
    return pieces if found == text else [found.encode()]


def _clean_leaves(value: Any, clean: Clean) -> Any:
    match value:
        case dict():
            return {name: _clean_leaves(each, clean) for name, each in value.items()}
        case list():
            return [_clean_leaves(each, clean) for each in value]
        case str():
            return _clean_text(value, clean)
        case _:
            return value


def _clean_text(text: str, clean: Clean) -> str:
    # A text that is JSON: its escapes would hide where a word begins.
    inner = _decoded(text) if text.lstrip()[:1] in {"{", "["} else None
    if inner is None:
        return clean(text)
    new = _clean_leaves(inner, clean)
    return text if new == inner else _encoded(new)


def _clean_stream(text: str, clean: Clean) -> str:
    """Lines of server-sent events; texts that came in pieces are cleaned as one."""
    lines = text.split("\n")
    events: dict[int, Any] = {}
    for number, line in enumerate(lines):
        if line.startswith("data:") and (value := _decoded(line[5:])) is not None:
            events[number] = value
    runs: dict[Path, list[tuple[int, str]]] = {}
    for number, event in events.items():
        for path, leaf in _leaves(event):
            runs.setdefault(path, []).append((number, leaf))
    changed: set[int] = set()
    for path, run in runs.items():
        joined = "".join(leaf for _, leaf in run)
        if (clear := _clean_text(joined, clean)) == joined:
            continue
        for at, (number, _) in enumerate(run):
            _put(events[number], path, "" if at else clear)
            changed.add(number)
    for number in changed:
        lines[number] = f"data: {_encoded(events[number])}"
    return "\n".join(lines)


def _leaves(value: Any, path: Path = ()) -> Iterable[tuple[Path, str]]:
    """The texts in an event that may be a part of a longer one."""
    match value:
        case dict():
            for name, each in value.items():
                yield from _leaves(each, (*path, name))
        case list():
            for index, each in enumerate(value):
                yield from _leaves(each, (*path, index))
        case str() if path and path[-1] in _IN_PIECES:
            yield path, value


def _put(value: Any, path: Path, text: str) -> None:
    *way, last = path
    for step in way:
        value = value[step]
    value[last] = text


def _decoded(text: str) -> Any:
    """A JSON object or array; None for anything else."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()
