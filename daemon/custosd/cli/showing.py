"""How agents are shown to people: tables, and the demonstration's screen."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from custosd.core.facts import SweepFinished
from custosd.core.verdicts import Standing
from custosd.core.view import AgentView, FleetView

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


def printable(text: str, limit: int = 200) -> Text:
    """Agent text made fit for a terminal: no control characters, no markup, bounded."""
    clean = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return Text(clean if len(clean) <= limit else clean[:limit] + "…")


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


def agent_table(agents: Iterable[AgentView], now: datetime) -> Table:
    """One row an agent: who, how far, how it stands and why."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("agent", "standing", "steps", "grown", "why"):
        table.add_column(
            title,
            no_wrap=title != "why",
            overflow="fold" if title == "why" else "ellipsis",
            justify="right" if title in {"steps", "grown"} else "left",
        )
    for agent in sorted(agents, key=lambda a: a.ref.agent):
        judgement = agent.verdict.judgement if agent.verdict else None
        table.add_row(
            printable(agent.ref.agent, 60),
            standing_text(agent.standing),
            str(agent.digest.steps if agent.digest else 0),
            age(agent.grown_utc, now),
            printable(judgement.summary if judgement else ""),
        )
    return table


class DemonstrationScreen:
    """What a newcomer sees: who is there, each change of standing, and where to look next."""

    def __init__(self, log_file: Path, config_files: list[str]) -> None:
        self._console = Console(highlight=False)
        self._log_file = log_file
        self._command = " ".join(["custosd", *(f"--config {file}" for file in config_files)])
        self._shown: dict[str, Standing] = {}
        self._started_at = trio.current_time()
        self._hinted = False

    def greet(self) -> None:
        """Before anything runs."""
        self._console.print(
            "custosd starts its private PostgreSQL and nine small agents, each with its own"
            " trouble.\nThey really work, and write transcripts; custosd reads those, and"
            " judges. Ctrl-C ends it all.\n",
            style="bold",
        )

    def swept(self, _sweep: SweepFinished, view: FleetView) -> None:
        """After each sweep: the table, if anybody stands differently now."""
        held = {agent.ref.agent: agent.standing for agent in view.agents.values()}
        if held and held != self._shown:
            self._shown = dict(held)
            seconds = trio.current_time() - self._started_at
            self._console.rule(f"after {seconds:.0f} s", align="left", style="dim")
            self._console.print(agent_table(view.agents.values(), datetime.now(UTC)))
        settled = held and Standing.UNKNOWN not in held.values()
        if settled and not self._hinted and trio.current_time() - self._started_at > HINT_AFTER_S:
            self._hinted = True
            self._hint(view)

    def _hint(self, view: FleetView) -> None:
        troubled = next(
            (a for a in view.agents.values() if a.standing is Standing.STUCK),
            next(iter(view.agents.values())),
        )
        self._console.print("\nLook at next, in another terminal:", style="bold")
        for command, meaning in (
            (f"{self._command} status", "is it running, and how does the fleet stand"),
            (f"{self._command} agents show {troubled.ref.agent}", "one agent, and the evidence"),
            (
                f"custosd analyze {troubled.path}",
                "the same of any transcript file, without a daemon",
            ),
            (f"tail -f {self._log_file}", "the structured log, one line an outcome"),
        ):
            self._console.print(f"  {command}", soft_wrap=True, markup=False)
            self._console.print(f"      {meaning}", style="dim")

    def part(self) -> None:
        """After everything has ended."""
        self._console.print("\nThe agents and the daemon have ended.", style="bold")


HINT_AFTER_S = 30.0
"""By now the slowest of the demonstration's agents has shown what it is."""
