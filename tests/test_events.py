"""Holds daemon/EVENTS.md to the code: every event, its levels, its fields."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
CATALOGUE = PROJECT / "daemon" / "EVENTS.md"

LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
    "log": "any",
}
RESERVED = {"ts", "level", "event", "version", "pid", "host"}
NAME = re.compile(r"[a-z_]+\.[a-z_]+")


@dataclass
class Event:
    """One event: as its row says, or as all the calls that log it say together."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    open: bool = False
    when: str = ""
    places: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        fields = [f"`{f}`" for f in sorted(self.fields)] + ["..."] * self.open
        when = self.when or "SAY WHEN"
        return f"| `{name}` | {', '.join(sorted(self.levels))} | {when} | {', '.join(fields)} |"


def events_in_code(source: str, place: str) -> tuple[dict[str, Event], list[str]]:
    """The events that a module logs, and what is wrong with how it does so."""
    events: dict[str, Event] = {}
    wrong: list[str] = []
    tree = ast.parse(source)
    for call in _log_calls(tree):
        where = f"{place}:{call.lineno}"
        assert isinstance(call.func, ast.Attribute)
        level = LEVELS.get(call.func.attr)
        if level is None:
            wrong.append(f"{where}: `log.{call.func.attr}` is no level; use {', '.join(LEVELS)}")
            continue
        args = call.args[1:] if level == "any" else call.args
        match args:
            case [ast.Constant(value=str(name))] if NAME.fullmatch(name):
                event = events.setdefault(name, Event())
            case [ast.Constant(value=str(name))]:
                wrong.append(f"{where}: {name!r} is not `noun.past_verb`")
                continue
            case _:
                wrong.append(f"{where}: the event must be one literal string, the rest fields")
                continue
        event.levels.add(level)
        event.places.append(where)
        for keyword in call.keywords:
            if keyword.arg is None:
                event.open = True
            elif keyword.arg in RESERVED:
                name = f"`{keyword.arg}`"
                wrong.append(f"{where}: the field name {name} is the daemon's own; say whose it is")
            elif keyword.arg != "exc_info":
                event.fields.add(keyword.arg)
    wrong += [
        f"{place}:{node.lineno}: name the logger `log`, so that its events are found"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.value).startswith("structlog.get_logger(")
        and [ast.unparse(target) for target in node.targets] != ["log"]
    ]
    return events, wrong


def _log_calls(tree: ast.Module) -> Iterator[ast.Call]:
    if "log = structlog.get_logger()" not in map(ast.unparse, tree.body):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"))):
                yield node


def events_in_catalogue(text: str) -> dict[str, Event]:
    """The rows of the table, by event."""
    events: dict[str, Event] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        name, levels, when, fields = cells
        assert name.strip("`") not in events, f"EVENTS.md: two rows for {name}"
        events[name.strip("`")] = Event(
            {level.strip() for level in levels.split(",")},
            set(re.findall(r"`(\w+)`", fields)),
            "..." in fields,
            when,
        )
    return events


def differences(code: dict[str, Event], rows: dict[str, Event]) -> list[str]:
    """What must be done to EVENTS.md so that it says what the code does."""
    found = []
    for name in sorted(code.keys() | rows.keys()):
        is_, said = code.get(name), rows.get(name)
        if said is None and is_ is not None:
            found.append(f"add (logged at {', '.join(is_.places)}):\n    {is_.row(name)}")
        elif is_ is None:
            found.append(f"delete the row of `{name}`: nothing logs it")
        elif said is not None and not _agree(is_, said):
            is_.when = said.when
            found.append(f"change (logged at {', '.join(is_.places)}):\n    {is_.row(name)}")
    return found


def _agree(is_: Event, said: Event) -> bool:
    if (is_.levels, is_.open) != (said.levels, said.open):
        return False
    # An open event's row may name fields that its `**fields` bring.
    return is_.fields <= said.fields if is_.open else is_.fields == said.fields


def everything_logged() -> tuple[dict[str, Event], list[str]]:
    events: dict[str, Event] = {}
    wrong: list[str] = []
    for path in sorted((PROJECT / "daemon" / "custosd").rglob("*.py")):
        found, faults = events_in_code(path.read_text(), str(path.relative_to(PROJECT)))
        wrong += faults
        for name, event in found.items():
            known = events.setdefault(name, Event())
            known.levels |= event.levels
            known.fields |= event.fields
            known.open |= event.open
            known.places += event.places
    return events, wrong


def test_every_event_is_logged_in_a_way_that_can_be_found():
    _, wrong = everything_logged()
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_catalogue_says_what_the_code_logs():
    events, _ = everything_logged()
    found = differences(events, events_in_catalogue(CATALOGUE.read_text()))
    assert not found, "\nin daemon/EVENTS.md:\n" + "\n".join(found)


def test_the_rows_are_in_the_order_of_their_names():
    names = list(events_in_catalogue(CATALOGUE.read_text()))
    assert names == sorted(names)


HEAD = "import structlog\nlog = structlog.get_logger()\n"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("log.info(name)", "literal"),
        ("log.info(f'a.{b}')", "literal"),
        ("log.info('agent.seen %s', x)", "literal"),
        ("log.info('Agent seen')", "noun.past_verb"),
        ("log.info('agent.seen', pid=3)", "`pid` is the daemon's own"),
        ("log.warn('agent.seen')", "no level"),
        ("logger = structlog.get_logger()", "name the logger `log`"),
    ],
)
def test_a_call_that_cannot_be_checked_is_a_fault(code, complaint):
    _, wrong = events_in_code(HEAD + code, "x.py")
    assert len(wrong) == 1
    assert complaint in wrong[0]


def test_calls_add_up_to_the_row_that_is_wanted():
    code = "log.info('a.done', n=1)\nlog.exception('a.done', why='', exc_info=e)\n"
    more = "log.log(level, 'b.done', **fields)\n"
    events, wrong = events_in_code(HEAD + code + more, "x.py")
    assert not wrong
    assert events["a.done"].row("a.done") == "| `a.done` | error, info | SAY WHEN | `n`, `why` |"
    assert events["b.done"].row("b.done") == "| `b.done` | any | SAY WHEN | ... |"
    rows = "\n".join(event.row(name) for name, event in events.items())
    assert differences(events, events_in_catalogue(rows)) == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("", "add (logged at x.py:3):\n    | `a.done` | info | SAY WHEN | `n` |"),
        (
            "| `a.done` | error | now | `n` |",
            "change (logged at x.py:3):\n    | `a.done` | info | now",
        ),
        ("| `a.done` | info | now | `n`, `m` |", "change (logged at x.py:3)"),
        ("| `a.done` | info | now | |", "change (logged at x.py:3)"),
        ("| `a.done` | info | now | `n`, ... |", "change (logged at x.py:3)"),
        (
            "| `a.done` | info | now | `n` |\n| `b.done` | info | now | |",
            "delete the row of `b.done`",
        ),
    ],
)
def test_each_way_to_differ_is_told_with_its_remedy(row, told):
    events, _ = events_in_code(HEAD + "log.info('a.done', n=1)", "x.py")
    (found,) = differences(events, events_in_catalogue(row))
    assert told in found
