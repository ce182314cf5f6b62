"""`custosd analyze`: what the agents of some transcript files did, without a daemon."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.tail import Formats, read_whole
from custosd.cli.exit_codes import FAILURE
from custosd.cli.forms import Form, incident_form, judgement_form, step_form, trajectory_form
from custosd.cli.settings import log_for_a_command, settings
from custosd.cli.showing import Look, printable, signal_text, standing_text
from custosd.core.detectors import DetectorLimits, signals
from custosd.core.rules import judge_by_rules
from custosd.core.signals import Signal
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import Acted, Step, Unread
from custosd.core.verdicts import Judgement
from custosd.ports import Incident

LONG_BYTES = 20 * 1024 * 1024
"""From this much on a progress bar is shown."""

WHY_UNREAD = {
    "missing": "no such file",
    "directory": "a folder; name the files in it",
    "empty": "the file is empty",
    "not_a_file": "not a regular file",
    "unreadable": "the system refuses to read it",
    "document_too_large": "a document above the limit of what is read at once",
    "format_unknown": "no transcript in a format that is known",
}
"""The codes of `why`, in words."""


@dataclass(frozen=True, slots=True)
class AgentAnalysis:
    """One agent of a file. `thread` is "" for the main one."""

    thread: str
    digest: TrajectoryDigest
    signals: tuple[Signal, ...]
    judgement: Judgement
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class FileAnalysis:
    """One file. `why` (a key of `WHY_UNREAD`) says that, and why, it was not read.

    `unread` counts records that its format does not know.
    """

    path: str
    format: str
    session: str
    agents: tuple[AgentAnalysis, ...]
    incidents: tuple[Incident, ...]
    unread: dict[str, int] = field(default_factory=dict[str, int])
    why: str = ""


@click.command("analyze")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, an object a file.")
@click.option("--steps", "with_steps", is_flag=True, help="List every step too.")
@click.pass_context
def analyze(
    ctx: click.Context, files: tuple[Path, ...], *, as_json: bool, with_steps: bool
) -> None:
    """Say of each transcript FILE what the agent did, what shows, and the rules' verdict.

    Exits with 1 if a file could not be read or is no transcript; the others are analysed
    all the same.

    \b
    JSON, for each file:  path format session why agents incidents unread
           each agent:    thread trajectory verdict steps
           incident:      kind line detail
    `why` is "" where the file was read; the other forms are those of `agents show`.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    limits = config.detectors.limits()
    look = Look()
    results: list[FileAnalysis] = []
    sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
    long = sum(sizes) >= LONG_BYTES and sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=not long, transient=True) as progress:
        task = progress.add_task("analysing", total=sum(sizes))
        for at, path in enumerate(files):
            before = sum(sizes[:at])

            def advance(read_bytes: int, before: int = before) -> None:
                progress.update(task, completed=before + read_bytes)

            result = analysis_of(path, limits, with_steps=with_steps, advance=advance)
            results.append(result)
            if not as_json:
                _show(result, look)
    if as_json:
        click.echo(json.dumps([_form(result) for result in results]))
    if any(result.why for result in results):
        sys.exit(FAILURE)


def analysis_of(
    path: Path,
    limits: DetectorLimits,
    *,
    with_steps: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> FileAnalysis:
    """Read a whole file and judge each of its agents by the rules, as if it ended just now.

    `advance` is told how many bytes have been read, now and then.
    """
    reading = read_whole(str(path), Formats(recognise, format_named), ReadLimits(), advance)
    folds: dict[str, Trajectory] = {}
    steps: dict[str, list[Step]] = {}
    unread: dict[str, int] = {}
    for event in reading.events:
        if isinstance(event, Unread):
            unread[event.what] = unread.get(event.what, 0) + 1
            continue
        folds.setdefault(event.thread, Trajectory()).advance(event)
        if with_steps and isinstance(event, Acted):
            steps.setdefault(event.thread, []).append(event.step)
    agents = []
    for thread, fold in folds.items():
        fold.settle()
        digest = fold.digest()
        found = signals(fold, limits, 0.0)
        judgement = judge_by_rules(digest, found, 0.0)
        agents.append(AgentAnalysis(thread, digest, found, judgement, tuple(steps.get(thread, ()))))
    cursor = reading.cursor
    why = "" if cursor.format and reading.present else _why(path, reading.incidents)
    return FileAnalysis(
        str(path), cursor.format, cursor.session, tuple(agents), reading.incidents, unread, why
    )


def _why(path: Path, incidents: tuple[Incident, ...]) -> str:
    if path.is_dir():
        return "directory"
    if incidents and incidents[-1].kind in WHY_UNREAD:
        return str(incidents[-1].kind)
    try:
        return "format_unknown" if path.stat().st_size else "empty"
    except OSError:
        return "missing"


def _form(result: FileAnalysis) -> Form:
    return {
        "path": result.path,
        "format": result.format,
        "session": result.session,
        "why": result.why,
        "agents": [
            {
                "thread": agent.thread,
                "trajectory": trajectory_form(agent.digest),
                "verdict": judgement_form(agent.judgement, agent.signals),
                "steps": [step_form(step) for step in agent.steps],
            }
            for agent in result.agents
        ],
        "incidents": [incident_form(incident) for incident in result.incidents],
        "unread": result.unread,
    }


def _show(result: FileAnalysis, look: Look) -> None:
    look.line(printable(result.path, 400), style="bold")
    if result.why:
        look.line(f"  not read: {WHY_UNREAD[result.why]}", style="red")
        return
    look.line(f"  {result.format}, session ", printable(result.session or "not named"))
    for agent in result.agents:
        _show_agent(agent, look)
    if not result.agents:
        look.line("  no agent in it")
    if result.unread:
        listed = ", ".join(f"{what} ({n})" for what, n in sorted(result.unread.items()))
        look.line("  records not read: ", printable(listed, 400))
    for incident in result.incidents:
        where = f" at line {incident.line}" if incident.line else ""
        look.line(f"  trouble: {incident.kind.replace('_', ' ')}{where}")


def _show_agent(agent: AgentAnalysis, look: Look) -> None:
    digest, judgement = agent.digest, agent.judgement
    who = f"sub-agent {agent.thread}" if agent.thread else "agent"
    look.line("  ", printable(who), ": ", standing_text(judgement.standing))
    look.row("goal", digest.goal or "(none found)")
    did = (
        f"{digest.steps} steps, {digest.errors} failed, {digest.edits} edits,"
        f" {digest.tests_run} test runs; {digest.phase}, {digest.activity.replace('_', ' ')}"
    )
    look.row("did", did + (f", {digest.end.replace('_', ' ')}" if digest.end else ""))
    if digest.written:
        look.row("wrote", ", ".join(digest.written))
    usage = digest.usage
    if usage.input_tokens or usage.output_tokens:
        cost = f", ${usage.cost_usd:.4f}" if usage.cost_usd else ""
        look.row("spent", f"{usage.input_tokens} tokens in, {usage.output_tokens} out{cost}")
    look.row("verdict", judgement.summary or judgement.unknown_reason)
    for signal in agent.signals:
        look.row(signal.severity, signal_text(signal))
    for number, step in enumerate(agent.steps):
        said = f"{number:>5} {step.kind:<8} {step.result:<11} {step.verb} {' '.join(step.files)}"
        look.line("    ", printable(said, 160))
