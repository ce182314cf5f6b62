"""`custosd analyze`: what the agents of some transcript files did, without a daemon."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.tail import Formats, read_whole
from custosd.cli.exit_codes import FAILURE
from custosd.cli.settings import log_for_a_command, settings
from custosd.cli.showing import printable, standing_text
from custosd.core.detectors import DetectorLimits, signals
from custosd.core.rules import judge_by_rules
from custosd.core.signals import Signal
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import Acted, Step, Unread
from custosd.core.verdicts import Judgement
from custosd.ports import Incident

LONG_BYTES = 20 * 1024 * 1024
"""From this much on a progress bar is shown."""


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
    """One file. `unread` counts records that its format does not know."""

    path: str
    format: str
    session: str
    agents: tuple[AgentAnalysis, ...]
    incidents: tuple[Incident, ...]
    unread: dict[str, int] = field(default_factory=dict[str, int])


@click.command("analyze")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--steps", "with_steps", is_flag=True, help="List every step too.")
@click.pass_context
def analyze(
    ctx: click.Context, files: tuple[Path, ...], *, as_json: bool, with_steps: bool
) -> None:
    """Say of each transcript FILE what the agent did, what shows, and the rules' verdict.

    Exits with 1 if a file could not be read or is no transcript.
    """
    config = settings(ctx)
    log_for_a_command(ctx)
    limits = config.detectors.limits()
    console = Console(highlight=False)
    results: list[FileAnalysis] = []
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in files}
    long = sum(sizes.values()) >= LONG_BYTES
    with Progress(console=Console(stderr=True), disable=not long, transient=True) as progress:
        task = progress.add_task("analysing", total=sum(sizes.values()))
        for path in files:
            result = analysis_of(path, limits, with_steps=with_steps)
            results.append(result)
            progress.advance(task, sizes[path])
            if not as_json:
                _show(result, console)
    if as_json:
        click.echo(json.dumps([_plain(result) for result in results], ensure_ascii=True))
    if any(not result.format for result in results):
        sys.exit(FAILURE)


def analysis_of(path: Path, limits: DetectorLimits, *, with_steps: bool = False) -> FileAnalysis:
    """Read a whole file and judge each of its agents by the rules, as if it ended just now."""
    reading = read_whole(str(path), Formats(recognise, format_named), ReadLimits())
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
    return FileAnalysis(
        str(path), cursor.format, cursor.session, tuple(agents), reading.incidents, unread
    )


def _plain(result: FileAnalysis) -> Any:
    return msgspec.to_builtins(result)


def _show(result: FileAnalysis, console: Console) -> None:
    console.print(printable(result.path, 400), style="bold")
    if not result.format:
        why = result.incidents[-1].kind if result.incidents else "format_unknown"
        console.print(f"  not read: {why}", style="red")
        return
    console.print(f"  {result.format}, session ", printable(result.session), end="\n")
    for agent in result.agents:
        _show_agent(agent, console)
    if result.unread:
        listed = ", ".join(f"{what} ({n})" for what, n in sorted(result.unread.items()))
        console.print("  records not known: ", printable(listed, 400))
    for incident in result.incidents:
        console.print(f"  trouble: {incident.kind} at line {incident.line}")


def _show_agent(agent: AgentAnalysis, console: Console) -> None:
    digest, judgement = agent.digest, agent.judgement
    who = f"sub-agent {agent.thread}" if agent.thread else "agent"
    console.print("  ", printable(who), ": ", standing_text(judgement.standing), sep="")
    console.print("    goal     ", printable(digest.goal or "(none found)", 300), sep="")
    console.print(
        f"    did      {digest.steps} steps, {digest.errors} failed, {digest.edits} edits,"
        f" {digest.tests_run} test runs; {digest.phase.value}, {digest.activity.value}"
        + (f", {digest.end.value}" if digest.end else "")
    )
    if digest.written:
        console.print("    wrote    ", printable(", ".join(digest.written), 300), sep="")
    usage = digest.usage
    if usage.input_tokens or usage.output_tokens:
        console.print(
            f"    spent    {usage.input_tokens} tokens in, {usage.output_tokens} out,"
            f" ${usage.cost_usd:.4f}"
        )
    console.print(
        "    verdict  ", printable(judgement.summary or judgement.unknown_reason, 300), sep=""
    )
    for signal in agent.signals:
        at = ", ".join(map(str, signal.steps)) or "-"
        console.print(
            f"    {signal.severity.value:<9}{signal.kind.value} at steps {at}: ",
            printable(signal.about),
            sep="",
        )
    for number, step in enumerate(agent.steps):
        console.print(
            f"    {number:>5} {step.kind.value:<8} {step.result.value:<11} ",
            printable(f"{step.verb} {' '.join(step.files)}", 120),
            sep="",
        )
