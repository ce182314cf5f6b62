"""Reads the configuration: files in, one frozen `Config` out, or all that is wrong with them.

Laws: every problem is told at once, with its place. Each file is judged by itself, then all
together, a later file over an earlier one, table by table; a list is replaced as a whole.
What a bad value contradicts is not told: it would be a guess.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from custosd.config.kinds import UNSHOWN, Refused, written
from custosd.config.problems import InvalidConfig, Problem, ProblemKind
from custosd.config.section import LATER, Conflict, KeyPath, dotted
from custosd.config.settings import Config
from custosd.config.sources import Document, Source, read_source
from custosd.config.tree import Entry, entries, entry_at, siblings

_SECRET = re.compile(
    r"pass|pwd|secret|token(?!s)|credential|(api|private|access)[_-]?key", re.IGNORECASE
)
_CLOSE = 0.6
_NEARLY_EQUAL = 0.85
"""How alike a key that looks like a secret must be to one that names where a secret is."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written."""

    file: str
    line: int | None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Reading:
    """The configuration in force, and where each value that is no default comes from.

    Keys of `origins` are those of values, and of the elements of lists of tables.
    """

    config: Config
    origins: Mapping[KeyPath, Origin]


def read_config(sources: Sequence[Source]) -> Config:
    """The configuration that these files make together; of none, the defaults.

    Raises `InvalidConfig` with every problem found.
    """
    return read(sources).config


def read(sources: Sequence[Source]) -> Reading:
    """As `read_config`, with the origin of each value."""
    reading, problems = read_valid_part(sources)
    if problems:
        raise InvalidConfig(problems)
    return reading


def read_valid_part(sources: Sequence[Source]) -> tuple[Reading, Sequence[Problem]]:
    """As `read`, without what is wrong, which is told beside it.

    For whoever has to reach a running daemon although somebody has just made a mistake.
    """
    problems: list[Problem] = []
    documents: list[Document] = []
    complete = True
    for source in sources:
        try:
            document = read_source(source)
        except InvalidConfig as error:
            problems += error.problems
            complete = False
            continue
        bad = list(_bad_values(document))
        problems += [problem for _, problem in bad]
        without = _without(document.data, [path for path, _ in bad])
        documents.append(Document(document.file, without, document.lines))
    data, origins = _merged(documents)
    config = Config.model_validate(data, context=LATER, by_alias=True, by_name=False)
    if complete:
        problems += _contradictions(config, origins, problems)
    return Reading(config, origins), problems


def _bad_values(document: Document) -> Iterator[tuple[KeyPath, Problem]]:
    """What is wrong with one file's keys, each by itself, in the order of its lines."""
    try:
        Config.model_validate(document.data, context=LATER, by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_url=False)
        found = [pair for detail in details for pair in _problems(document, detail)]
        yield from sorted(found, key=lambda pair: pair[1].line or 0)


def _problems(document: Document, detail: ErrorDetails) -> Iterator[tuple[KeyPath, Problem]]:
    path: KeyPath = detail["loc"]
    match detail["type"]:
        case "extra_forbidden":
            yield from _unknown(document, path, detail["input"])
        case "missing":
            yield path, _problem(document, path, "", _expected(path), "the key is missing")
        case _:
            entry = entry_at(path)
            error = detail.get("ctx", {}).get("error")
            hint = error.hint if isinstance(error, Refused) else ""
            # Where a secret's place is asked for, the secret itself may have been written.
            hidden = entry is not None and _names_a_secret(entry)
            show = entry.kind.shown if entry and entry.kind else written
            shown = UNSHOWN if hidden else show(detail["input"])
            yield path, _problem(document, path, shown, _expected(path), hint)


def _unknown(document: Document, path: KeyPath, value: object) -> Iterator[tuple[KeyPath, Problem]]:
    *above, name = path
    table = f"a key of [{_printable(tuple(above))}]" if above else "the name of a section"
    meant = _meant(tuple(above), str(name))
    if _SECRET.search(str(name)):
        shown = UNSHOWN
        if not _is_nearly(str(name), tuple(above)):
            yield path, _secret(document, path)
            return
    else:
        shown = written(value)
    hint = f"did you mean {meant}?" if meant else "all keys: custosd config default"
    yield path, _problem(document, path, shown, table, hint, ProblemKind.UNKNOWN_KEY)
    yield from _secrets_below(document, path, value)


def _secrets_below(
    document: Document, path: KeyPath, value: object
) -> Iterator[tuple[KeyPath, Problem]]:
    """Secrets in a table that is unknown itself; looked for without recursion."""
    waiting: list[tuple[KeyPath, object]] = [(path, value)]
    while waiting:
        here, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [((*here, name), part) for name, part in inner.items()]
        elif isinstance(inner, list):
            waiting += [((*here, index), part) for index, part in enumerate(inner)]
        elif here != path and _SECRET.search(str(here[-1])):
            yield here, _secret(document, here)


def _secret(document: Document, path: KeyPath) -> Problem:
    takers = [dotted(entry.path) for entry in siblings(path[:-1]) if _names_a_secret(entry)]
    hint = "everybody reads configuration files; "
    if takers:
        hint += f"keep it in a file of mode 0600 or a systemd credential: {' or '.join(takers)}"
    else:
        hint += "no key of this section takes one"
    return _problem(document, path, UNSHOWN, "no secret in this file", hint, ProblemKind.SECRET)


def _names_a_secret(entry: Entry) -> bool:
    return bool(_SECRET.search(entry.name)) and entry.name.endswith(("_file", "_credential"))


def _is_nearly(name: str, above: KeyPath) -> bool:
    names = [entry.name for entry in siblings(above) if _names_a_secret(entry)]
    return bool(difflib.get_close_matches(name, names, 1, _NEARLY_EQUAL))


def _meant(above: KeyPath, name: str) -> str:
    """The key that was probably meant: one of this table, else the same word elsewhere."""
    here = {entry.name: dotted(entry.path) for entry in siblings(above)}
    if close := difflib.get_close_matches(name, here, 1, _CLOSE):
        return here[close[0]]
    return next((dotted(entry.path) for entry in entries() if entry.name == name), "")


def _expected(path: KeyPath) -> str:
    entry = entry_at(path)
    if entry is None:
        return f"a table [[{dotted(tuple(p for p in path if isinstance(p, str)))}]]"
    if entry.kind is not None:
        return entry.kind.expected
    name = dotted(entry.path)
    return f"tables [[{name}]]" if entry.repeated else f"a table [{name}]"


def _problem(
    document: Document,
    path: KeyPath,
    value: str,
    expected: str,
    hint: str = "",
    kind: ProblemKind = ProblemKind.VALUE,
) -> Problem:
    line = document.line_of(path)
    return Problem(document.file, line, _printable(path), value, expected, hint, kind)


def _printable(path: KeyPath) -> str:
    bare = [
        part
        if isinstance(part, int) or re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part)
        else written(part)
        for part in path
    ]
    return dotted(tuple(bare))


def _without(data: dict[str, Any], bad: Sequence[KeyPath]) -> dict[str, Any]:
    """The tables without what is bad; a list with anything bad in it goes as a whole."""
    cuts = {
        path[: next((i for i, p in enumerate(path) if isinstance(p, int)), None)] for path in bad
    }

    def kept(table: Mapping[str, Any], above: KeyPath) -> dict[str, Any]:
        return {
            name: kept(value, (*above, name)) if isinstance(value, dict) else value
            for name, value in table.items()
            if (*above, name) not in cuts
        }

    return kept(data, ())


def _merged(documents: Sequence[Document]) -> tuple[dict[str, Any], dict[KeyPath, Origin]]:
    """All files as one; every value is of its type here, so tables meet tables only."""
    merged: dict[str, Any] = {}
    origins: dict[KeyPath, Origin] = {}

    def lay_over(
        below: dict[str, Any], table: Mapping[str, Any], above: KeyPath, document: Document
    ) -> None:
        for name, value in table.items():
            path = (*above, name)
            if isinstance(value, dict):
                lay_over(below.setdefault(name, {}), value, path, document)
                continue
            below[name] = value
            for old in [key for key in origins if key[: len(path)] == path]:
                del origins[old]
            origins[path] = Origin(document.file, document.line_of(path))
            for inner, line in document.lines.items():
                if inner[: len(path)] == path and isinstance(value, list):
                    origins[inner] = Origin(document.file, line)

    for document in documents:
        lay_over(merged, document.data, (), document)
    return merged, origins


def _contradictions(
    config: Config, origins: Mapping[KeyPath, Origin], told: Sequence[Problem]
) -> Iterator[Problem]:
    """What can not be true together, each at the last written of its keys."""
    bad = {problem.key for problem in told}
    for conflict in config.conflicts():
        if not any(_lies_in(dotted(side.path), bad) for side in conflict.sides):
            yield _contradiction(config, origins, conflict)


def _lies_in(name: str, bad: set[str]) -> bool:
    return any(name == key or name.startswith((f"{key}.", f"{key}[")) for key in bad)


def _contradiction(
    config: Config, origins: Mapping[KeyPath, Origin], conflict: Conflict
) -> Problem:
    written_keys = list(origins)
    side = max(
        conflict.sides,
        key=lambda side: written_keys.index(side.path) if side.path in origins else -1,
    )
    origin = origins.get(side.path, Origin("the defaults", None))
    entry = entry_at(side.path)
    value = written(entry.plain(config, side.path)) if entry else ""
    return Problem(
        origin.file,
        origin.line,
        dotted(side.path),
        value,
        str(side),
        conflict.hint,
        ProblemKind.CONFLICT,
    )
