"""How agents are shown to people: words, tables, and text of agents made harmless."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from custosd.core.agents import AgentId
from custosd.core.lives import LifeRecord
from custosd.core.signals import Signal
from custosd.core.verdicts import Standing
from custosd.core.view import AgentView

COLOURS = {
    Standing.PROGRESSING: "green",
    Standing.DONE: "green",
    Standing.STUCK: "red",
    Standing.STOPPED: "red",
    Standing.SILENT: "red",
    Standing.DRIFTING: "yellow",
    Standing.DUPLICATING: "yellow",
    Standing.DONE_UNTESTED: "yellow",
    Standing.WAITING: "cyan",
    Standing.IDLE: "blue",
    Standing.UNKNOWN: "dim",
}

PIPE_WIDTH = 200
"""Columns where there is no terminal: what reads a pipe does not fold lines."""

NARROW = 120
"""Below this width a reason may take three lines of a table, from it on two."""

ROW_CHARS = 300
_FOLDERS = re.compile(r"(?<![\w:/])(?:~|\.{1,2})?/(?:[^\s/,;:()'\"]+/)+(?=[^\s/,;:()'\"])")


class Look:
    """Where lines for people go: standard output, as wide as it is."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
            self.console.width = PIPE_WIDTH

    def line(self, *parts: str | Text, style: str = "") -> None:
        """One line; plain strings are ours, text of agents comes as `printable` makes it."""
        self.console.print(Text.assemble(*parts, style=style), soft_wrap=True)

    def row(self, name: str, text: str, limit: int = ROW_CHARS) -> None:
        """A line of an agent's own: a name and a text that may be anything."""
        self.line(f"    {name:<11}", printable(text, limit))


def printable(text: str, limit: int = 200) -> Text:
    """Agent text made fit for a terminal: no control characters, no markup, bounded."""
    clean = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return Text(clean if len(clean) <= limit else clean[: limit - 1] + "…")


def shortened(text: str) -> str:
    """The text with paths cut down to the names of their files."""
    return _FOLDERS.sub("", text)


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that is not nought: "12 s", "3 min", "2 h", "5 d"."""
    if since is None:
        return "never"
    seconds = max(0, int((now - since) / timedelta(seconds=1)))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def standing_text(standing: Standing) -> Text:
    """A standing in its colour."""
    return Text(standing.value.replace("_", " "), style=COLOURS[standing])


def signal_text(signal: Signal) -> str:
    """A signal in a line: its kind, the steps that show it, what it is about."""
    steps = ", ".join(map(str, signal.steps))
    at = f" at steps {steps}" if steps else ""
    about = f": {shortened(signal.about)}" if signal.about else ""
    return f"{signal.kind.replace('_', ' ')}{at}{about}"


def agent_table(
    agents: Iterable[AgentView],
    now: datetime,
    width: int,
    lives: Mapping[AgentId, LifeRecord] | None = None,
) -> Table:
    """One row an agent: who, how far, how it stands and why, within `width` columns.

    With a column for `lives` where anybody has one.
    """
    rows = sorted(agents, key=lambda view: view.ref.agent)
    longest = max((len(view.ref.agent) for view in rows), default=0)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("agent", no_wrap=True, overflow="ellipsis", max_width=max(24, width // 3))
    table.add_column("standing", no_wrap=True)
    if lives:
        table.add_column("life", no_wrap=True)
    table.add_column("steps", no_wrap=True, justify="right")
    table.add_column("grown", no_wrap=True, justify="right")
    table.add_column("why", overflow="fold")
    others = min(longest, max(24, width // 3)) + len("done untested") + 5 + 6 + 4 * 2
    if lives:
        others += max(len(life.state) for life in lives.values()) + 2
    lines = 3 if width < NARROW else 2
    limit = max(60, lines * (width - others) - 12)
    for view in rows:
        judgement = view.verdict.judgement if view.verdict else None
        why = (judgement.summary or judgement.unknown_reason) if judgement else "not judged yet"
        if not view.path and not judgement:
            why = "no transcript of it is known"
        life = (lives or {}).get(view.ref.agent)
        table.add_row(
            printable(view.ref.agent),
            standing_text(view.standing),
            *([life.state.value if life else ""] if lives else []),
            str(view.digest.steps if view.digest else 0),
            age(view.grown_utc, now),
            printable(shortened(why), limit),
        )
    return table
