"""`custosd analyze`: what the agents of some transcript files did, without a daemon."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.progress import Progress

from custosd.adapters.context import transcript_tail
from custosd.adapters.judges.opening import open_judge
from custosd.adapters.judges.thrifty import NO_MONEY
from custosd.adapters.memory_spends import MemorySpends
from custosd.adapters.models.http import Wire
from custosd.adapters.models.recorded import (
    NotRecorded,
    Recording,
    Replayed,
    append,
    read_exchanges,
)
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.registry import format_named, recognise
from custosd.adapters.transcripts.tail import Formats, read_whole
from custosd.api.forms import Form, incident_form, judgement_form, step_form, trajectory_form
from custosd.cli.exit_codes import FAILURE
from custosd.cli.settings import log_for_a_command, run_to_the_end, settings
from custosd.cli.showing import Look, printable, signal_text, standing_text
from custosd.config.models import RULES
from custosd.config.problems import InvalidConfig
from custosd.config.settings import Config
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.detectors import DetectorLimits, question_hash, signals
from custosd.core.errors import JudgeError
from custosd.core.guardian import checked, unknown
from custosd.core.money import NO_LIMITS, Budgets
from custosd.core.money_words import usd_words
from custosd.core.rules import judge_by_rules
from custosd.core.signals import Signal
from custosd.core.trajectory import Trajectory, TrajectoryDigest
from custosd.core.transcript import Acted, Step, Unread
from custosd.core.verdicts import Judgement
from custosd.ports import Incident, Judge, Question
from custosd.services.purse import Purse

LONG_BYTES = 20 * 1024 * 1024
"""From this much on a progress bar is shown."""

MOST_USD = 1.00
"""What a run may spend on models, where nothing else is said."""

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
    """One agent of a file. `thread` is "" for the main one.

    `judge` says who judged: "" where a model was asked and did not answer.
    """

    thread: str
    digest: TrajectoryDigest
    signals: tuple[Signal, ...]
    judgement: Judgement
    steps: tuple[Step, ...] = ()
    judge: str = RULES


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


def _amount(_ctx: click.Context, _param: click.Parameter, usd: float) -> float:
    # 0 would be no limit at all to a budget.
    if not 0 < usd < inf:
        raise click.BadParameter(f"{usd:g} is no amount of dollars above 0")
    return usd


@click.command("analyze")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, an object a file.")
@click.option("--steps", "with_steps", is_flag=True, help="List every step too.")
@click.option(
    "--judge", "judge_name", default=RULES, metavar="NAME",
    help="Who judges: rules, or a model or ensemble of the configuration.",
)  # fmt: skip
@click.option(
    "--record", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Append the exchanges with models to FILE.",
)  # fmt: skip
@click.option(
    "--replay", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
    help="Take the models' answers from FILE, and ask nobody.",
)  # fmt: skip
@click.option(
    "--most-usd", type=float, callback=_amount, default=MOST_USD, metavar="USD", show_default=True,
    help="Spend no more on models, of those that have a price.",
)  # fmt: skip
@click.pass_context
def analyze(
    ctx: click.Context,
    files: tuple[Path, ...],
    *,
    as_json: bool,
    with_steps: bool,
    judge_name: str,
    record: Path | None,
    replay: Path | None,
    most_usd: float,
) -> None:
    """Say of each transcript FILE what the agent did, what shows, and the judge's verdict.

    A judge that is a model is sent the end of the transcript, without its secrets; where it
    cannot be had, the verdict is unknown, with the reason: "model_no_money", where a call
    could have cost more than was left of --most-usd. What the rules see for certain stands
    without it, too: such a verdict is signed "rules". What was spent is told at the end.

    Exits with 1 if a file could not be read or is no transcript, if --replay has no answer
    to a question, or if a model was asked and none of its answers counted; the others are
    analysed all the same.

    \b
    JSON, for each file:  path format session why agents incidents unread
           each agent:    thread trajectory verdict judge steps
           incident:      kind line detail
    `why` is "" where the file was read, `judge` where no answer came; the other forms are
    those of `agents show`.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    judging = _judging(config, judge_name, record, replay)
    purse = _purse(most_usd, played=judging.played is not None)
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
            if judge_name == RULES and not as_json:
                _show(result, look)
    if judge_name != RULES:
        results = run_to_the_end(_judged, results, judging, purse, None if as_json else look)
    if as_json:
        click.echo(json.dumps([_form(result) for result in results]))
    if judging.costs:
        _tell_spent(purse, most_usd, results)
    missed = judging.played.missed if judging.played else 0
    if missed:
        click.echo(
            f"custosd: {replay} has no answer to {missed} of the questions: the prompt, the"
            " model's settings or a transcript are not what they were when it was recorded;"
            " record it anew",
            err=True,
        )
    unheard = judge_name != RULES and not any(_is_answered(result) for result in results)
    if missed or unheard or any(result.why for result in results):
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


@dataclass(frozen=True, slots=True)
class _Judging:
    """Who judges, and what stands in place of, or before, the providers."""

    config: Config
    name: str
    record: Path | None = None
    hidden: tuple[str, ...] = field(default=(), repr=False)
    played: Replayed | None = None

    @property
    def costs(self) -> bool:
        """Whether any of the models that it asks has a price."""
        members = next((e.members for e in self.config.ensembles if e.name == self.name), ())
        asked = {self.name, *members}
        return self.played is None and any(m.costs and m.name in asked for m in self.config.models)

    def around(self, wire: Wire) -> Wire:
        return Recording(wire, self.record, self.hidden) if self.record else wire


def _judging(config: Config, name: str, record: Path | None, replay: Path | None) -> _Judging:
    """Ends with a usage error where that cannot be."""
    known = {RULES, *(m.name for m in config.models), *(e.name for e in config.ensembles)}
    if name not in known:
        raise click.BadParameter(f"there are: {', '.join(sorted(known))}", param_hint="--judge")
    if record and replay:
        raise click.UsageError("--record or --replay, not both")
    if replay:
        try:
            played = Replayed(read_exchanges(replay))
        except (OSError, ValueError) as error:
            raise click.BadParameter(str(error), param_hint="--replay") from error
        return _Judging(config, name, played=played)
    if record:
        try:
            append(record, b"")
        except NotRecorded as error:
            raise click.BadParameter(str(error), param_hint="--record") from error
        return _Judging(config, name, record, _keys(config))
    return _Judging(config, name)


def _purse(most_usd: float, *, played: bool) -> Purse:
    """For this one run; a replay costs nothing, and must not stop at what is not spent."""
    # Its clock stands: the run is one day's, also where midnight comes in between.
    now_utc = _now_utc()
    limits = NO_LIMITS if played else Budgets(fleet_day_usd=most_usd)
    return Purse(MemorySpends(), lambda: now_utc, limits)


def _tell_spent(purse: Purse, most_usd: float, results: list[FileAnalysis]) -> None:
    spent_usd = sum(purse.spent_usd.values())
    poor = any(a.judgement.unknown_reason == NO_MONEY for r in results for a in r.agents)
    click.echo(
        f"custosd: spent on models: {usd_words(spent_usd)} USD, of {usd_words(most_usd)} USD at"
        " most" + ("; another call did not fit: give more with --most-usd" if poor else ""),
        err=True,
    )


def _keys(config: Config) -> tuple[str, ...]:
    """Those of the models that can be read; who asks with another is told why it cannot be."""
    found = []
    for model in config.models:
        with suppress(InvalidConfig):
            if key := model.key(os.environ):
                found.append(key.read())
    return tuple(found)


def _is_answered(result: FileAnalysis) -> bool:
    """Whether a model's word counted; so it is, too, where there was nothing to ask."""
    return not result.agents or any(
        agent.judge not in (RULES, "")
        and agent.judgement.unknown_reason in ("", "model_unsure", "unsupported_standing")
        for agent in result.agents
    )


async def _judged(
    results: list[FileAnalysis], judging: _Judging, purse: Purse, look: Look | None
) -> list[FileAnalysis]:
    """The analyses with the judge's verdicts, each shown where there is a `look`."""
    judged = []
    # One judge for all: the account's limits are for all of the files.
    async with open_judge(
        judging.config, os.environ, _now_utc, judging.name,
        around=judging.around, purse=purse, replay=judging.played,
        circuits=not (judging.record or judging.played),
    ) as judge:  # fmt: skip
        for result in results:
            judged.append(await _one_judged(result, judge, judging.config))
            if look is not None:
                _show(judged[-1], look)
    return judged


async def _one_judged(result: FileAnalysis, judge: Judge, config: Config) -> FileAnalysis:
    """Agents one after another, so that a record has them in their order."""
    tail = await trio.to_thread.run_sync(transcript_tail, result.path)
    agents = []
    for agent in result.agents:
        # With the path: what is new is told by what this agent's file had before.
        run = RunId(f"{result.session} {result.path}")
        ref = AgentRef(AgentId(agent.thread or result.session or "main"), run)
        question = Question(
            ref,
            agent.digest,
            agent.signals,
            0.0,
            (tail,),
            question_hash(agent.digest, agent.signals),
        )
        judgement, judged_by = unknown("timeout"), ""
        try:
            with trio.move_on_after(config.guardian.judge_timeout_s):
                answer = await judge.judge(question)
                judgement, judged_by = answer.judgement, answer.judge
        except JudgeError as error:
            judgement = unknown(error.reason)
            click.echo(f"{result.path}: {error}", err=True)
        sound = checked(judgement, agent.digest.steps)
        agents.append(replace(agent, judgement=sound, judge=judged_by))
    return replace(result, agents=tuple(agents))


def _now_utc() -> datetime:
    return datetime.now(UTC)


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
                "judge": agent.judge,
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
    if agent.judge not in (RULES, ""):
        look.row("judge", agent.judge)
    for signal in agent.signals:
        look.row(signal.severity, signal_text(signal))
    for number, step in enumerate(agent.steps):
        said = f"{number:>5} {step.kind:<8} {step.result:<11} {step.verb} {' '.join(step.files)}"
        look.line("    ", printable(said, 160))
