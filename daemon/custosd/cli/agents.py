"""The commands that read: is the daemon running, who is there, how does each one stand."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.store import PostgresStore
from custosd.api.agents import part_forms
from custosd.api.forms import agent_form, daemon_form
from custosd.cli.agent_data import gathered, with_lives
from custosd.cli.exit_codes import NOT_RUNNING, OK, STATUS_UNKNOWN
from custosd.cli.fleet import Reading, reading_line
from custosd.cli.settings import log_for_a_command, read_settings, run_to_the_end, settings
from custosd.cli.showing import (
    Look,
    age,
    agent_table,
    printable,
    shortened,
    signal_text,
    standing_text,
)
from custosd.config.settings import Config
from custosd.core.agent_data import AgentMetrics, AgentPart, Executions, Standing
from custosd.core.agents import AgentId
from custosd.core.errors import StoreError, StoreUnavailable
from custosd.core.explanations import Setting
from custosd.core.facts import Entry, kind_of
from custosd.core.findings import Finding
from custosd.core.lives import LifeRecord
from custosd.core.secrets import without_secrets
from custosd.core.tasks import Task
from custosd.core.verdicts import Verdict
from custosd.core.view import AgentView
from custosd.core.workspaces import Workspace
from custosd.ports import DaemonBeat
from custosd.services.vitals import STALE_S

RESTARTS_SHOWN = 5
CHANGES_SHOWN = 10


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("status")
@_as_json
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """Say whether the daemon runs, and how the fleet stands.

    Exits with 0 if it runs, 3 if it does not, 4 if that could not be found out.

    \b
    JSON:    running (true, false, or null: not known) daemons standings lives
             trouble fleet
    daemon:  name pid version started_utc beat_utc agents sweeps stopped
    `daemons` are those that live; where none does, the one that lived last. `standings`
    count how agents get on by their transcripts, `lives` the states of those that beat or
    have a table of their own. `fleet` is the conductor's last status, "" where it has none.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    beats, agents, lives, readings, trouble, known = run_to_the_end(_status, config)
    now = datetime.now(UTC)
    fresh = timedelta(seconds=STALE_S)
    alive = [beat for beat in beats if not beat.stopped and now - beat.beat_utc < fresh]
    if as_json:
        answer = {
            "running": bool(alive) if known else None,
            "daemons": [daemon_form(beat) for beat in alive or beats[:1]],
            "standings": dict(Counter(agent.standing.value for agent in agents)),
            "lives": dict(Counter(life.state.value for life in lives)),
            "trouble": trouble,
            "fleet": readings[0][1].status.value if readings else "",
        }
        click.echo(json.dumps(answer, indent=2))
    elif not known:
        click.echo(f"whether custosd runs is not known: {trouble}")
    elif not alive:
        last = f"; the last sign of life is {age(beats[0].beat_utc, now)} old" if beats else ""
        click.echo(f"custosd is not running{last}" + (f" ({trouble})" if trouble else ""))
    else:
        _say_status(alive, agents, lives, now)
        for at_utc, reading in readings:
            Look().line("  ", reading_line(at_utc, reading, now))
    sys.exit((OK if alive else NOT_RUNNING) if known else STATUS_UNKNOWN)


async def _status(
    config: Config,
) -> tuple[
    tuple[DaemonBeat, ...],
    tuple[AgentView, ...],
    tuple[LifeRecord, ...],
    tuple[Reading, ...],
    str,
    bool,
]:
    """Signs of life, agents, lives, the fleet, trouble; and if these tell that a daemon runs."""
    try:
        async with open_postgres(config, os.environ, serve=False) as database:
            store = PostgresStore(database)
            agents, lives = (await store.restore()).agents, await PostgresActions(database).lives()
            readings = await PostgresCoordination(database).readings(1)
            return await store.beats(), agents, lives, readings, "", True
    except StoreError as error:
        # Our own server runs whenever the daemon does, but it may be closed to this user;
        # another's may only be out of reach.
        known = isinstance(error, StoreUnavailable) and not config.store.dsn
        return (), (), (), (), str(error), known


def _say_status(
    alive: Sequence[DaemonBeat],
    agents: Sequence[AgentView],
    lives: Sequence[LifeRecord],
    now: datetime,
) -> None:
    look = Look()
    for beat in alive:
        look.line(
            printable(beat.name),
            f" {beat.version} runs as process {beat.pid} for {age(beat.started_utc, now)}:"
            f" {beat.agents} agents, {beat.sweeps} sweeps,"
            f" last sign of life {age(beat.beat_utc, now)} ago",
        )
    for standing, count in Counter(agent.standing for agent in agents).most_common():
        look.line(f"  {count:5} ", standing_text(standing))
    if lives:
        counted = Counter(life.state.value for life in lives).most_common()
        look.line("  lives: ", ", ".join(f"{count} {state}" for state, count in counted))


@click.group("agents")
def agents() -> None:
    """Who is watched, and how each one stands."""


@agents.command("list")
@_as_json
@click.pass_context
def list_agents(ctx: click.Context, *, as_json: bool) -> None:
    """List all agents with what is held of them.

    \b
    JSON, for each agent:  agent run format path parent state standing
                           seen_utc grown_utc trajectory verdict life
    life:        state epoch since_utc heard_utc
    trajectory:  goal focus phase activity waiting_on end steps errors edits
                 tests_run tests_passed_at last_edit_at last_step_utc
                 written usage
    verdict:     id run at_utc steps judge model prompt_version latency_s
                 absent standing phase alignment confidence needs_steering
                 steering_kind steering_reason message summary
                 unknown_reason evidence signals
    signal:      kind severity steps measure limit about peers
    Steps count from 0; what is not known is null or "".
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    found, lives = run_to_the_end(_agents, config)
    if as_json:
        forms = [agent_form(view, lives.get(view.ref.agent)) for view in found]
        click.echo(json.dumps(forms, indent=2))
    elif found:
        look = Look()
        look.console.print(agent_table(found, datetime.now(UTC), look.console.width, lives))
    else:
        click.echo(
            "no agents yet: nothing has grown below the roots of [transcripts], nobody has sent"
            " a beat, and there is no [[agent]]"
        )


async def _agents(config: Config) -> tuple[tuple[AgentView, ...], Mapping[AgentId, LifeRecord]]:
    """All agents, and the lives of those that have one that is watched."""
    async with open_postgres(config, os.environ, serve=False) as database:
        views = (await PostgresStore(database).restore()).agents
        return with_lives(views, await PostgresActions(database).lives())


@agents.command("show")
@click.argument("agent")
@_as_json
@click.pass_context
def show_agent(ctx: click.Context, agent: str, *, as_json: bool) -> None:
    """Show one agent: its goal, trajectory, verdicts, restarts, tasks, folder, configuration.

    AGENT is an id as `agents list` shows it, or any part that only one id has. All is asked
    for at once; a part that cannot be had within its time is said to be missing, and why.

    \b
    JSON:  agent (as in `agents list`) verdicts (the latest first) facts parts
    fact:  id at_utc kind fact
    parts: agent executions metrics configuration verdicts facts findings
           tasks workspace; each {"value": ...} or {"error": {reason message}}
    The first three are null where their part has an error.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    reading = read_settings(ctx)
    log_for_a_command(ctx)
    name, parts = run_to_the_end(gathered, reading, agent)
    if as_json:
        forms = part_forms(parts)
        old = {one: forms[one].get("value") for one in ("agent", "verdicts", "facts")}
        click.echo(json.dumps(msgspec.to_builtins(old | {"parts": forms}), indent=2))
    else:
        _show(name, parts)


def _show(name: AgentId, parts: Mapping[str, AgentPart]) -> None:
    look = Look()
    now = datetime.now(UTC)
    look.line(printable(name, 400), style="bold")
    for part in parts.values():
        if part.reason:
            look.row(part.name, f"not known: {part.reason}: {part.message}")
    for part_name, show in _SHOWN.items():
        if not parts[part_name].reason:
            show(look, parts[part_name].value, now)


def _show_standing(look: Look, standing: Standing, now: datetime) -> None:
    view, life = standing.view, standing.life
    if view is None:
        look.row("transcript", "none known")
        return
    look.line(f"    {'standing':<11}", standing_text(view.standing))
    look.row("state", view.state)
    if life is not None:
        heard = f"heard {age(life.heard_utc, now)} ago" if life.heard_utc else "never heard"
        since = age(life.since_utc, now)
        look.row("life", f"{life.state} for {since}, epoch {life.epoch}, {heard}; see custosd why")
    look.row("transcript", f"{view.path} ({view.format})" if view.path else "none known", 1_000)
    look.row("seen", f"{age(view.seen_utc, now)} ago, grown {age(view.grown_utc, now)} ago")
    if view.digest is not None:
        digest = view.digest
        look.row("goal", digest.goal or "(none found)")
        look.row("focus", shortened(digest.focus))
        look.row("phase", digest.phase)
        counts = f"{digest.steps}, {digest.errors} failed, {digest.edits} edits"
        look.row("steps", f"{counts}, {digest.tests_run} test runs")
        look.row("written", ", ".join(digest.written))


def _show_executions(look: Look, told: Executions, now: datetime) -> None:
    for one in told.restarts[:RESTARTS_SHOWN]:
        words = f"{one.state}, epoch {one.epoch}, {one.cause}, {age(one.intended_utc, now)} ago"
        look.row("restart", words)


def _show_metrics(look: Look, told: AgentMetrics, now: datetime) -> None:
    if told.beats is not None:
        look.row("beats", f"{told.beats}, the last one {age(told.heard_utc, now)} ago")
    look.row("judging", f"{told.judging_usd:.4f} USD since {age(told.judging_since_utc, now)} ago")


def _show_tasks(look: Look, told: Sequence[Task] | None, _now: datetime) -> None:
    for task in told or ():
        look.row("task", f"{task.id} {task.state}: {task.title}")


def _show_workspace(look: Look, told: Workspace | None, now: datetime) -> None:
    if told is None:
        return
    look.row("folder", told.folder, 1_000)
    if (repository := told.repository) is not None:
        where = repository.branch or f"detached at {repository.head[:12] or 'nothing'}"
        dirt = {True: "dirty", False: "clean", None: "dirty or not: not known"}[repository.dirty]
        ahead = f", {repository.ahead} ahead" if repository.ahead else ""
        behind = f", {repository.behind} behind" if repository.behind else ""
        look.row("repository", f"{where}, {dirt}{ahead}{behind}")
    if told.changes is not None:
        names = ", ".join(file.path for file in told.changes.files[:CHANGES_SHOWN])
        since = age(told.changes.since_utc, now)
        look.row("changed", f"{told.changes.count} files in {since}: {names}")
    for output in told.outputs:
        last = (output.text or output.note).rpartition("\n")[2]
        look.row("output", f"{output.path} ({output.size_bytes} bytes): {last}")
    for gap in told.gaps:
        look.row("not seen", f"{gap.part} {gap.path}: {gap.reason}")


def _show_configuration(look: Look, told: Sequence[Setting], _now: datetime) -> None:
    for setting in told:
        if setting.place:
            value = without_secrets(setting.value)
            look.row("configured", f"{setting.key} = {value} ({setting.place})", 1_000)


def _show_findings(look: Look, told: Sequence[Finding], now: datetime) -> None:
    for finding in told:
        one = finding.sighting
        words = (
            f"{one.kind} of {one.one} and {one.other}, seen {age(finding.last_seen_utc, now)} ago"
        )
        look.row("finding", words)


def _show_verdicts(look: Look, verdicts: Sequence[Verdict], now: datetime) -> None:
    look.line("verdicts", style="bold")
    for verdict in verdicts:
        judgement = verdict.judgement
        look.line(
            f"  {age(verdict.at_utc, now):>7} ago ",
            standing_text(judgement.standing),
            f" at step {verdict.steps} by {verdict.by.judge}: ",
            printable(judgement.summary or judgement.unknown_reason, 300),
        )
        for signal in verdict.signals:
            look.line(f"              {signal.severity} ", printable(signal_text(signal), 300))


def _show_facts(look: Look, entries: Sequence[Entry], now: datetime) -> None:
    look.line("facts", style="bold")
    for entry in entries:
        look.line(f"  {age(entry.at_utc, now):>7} ago  {kind_of(entry.fact)}")


_SHOWN: Mapping[str, Callable[[Look, Any, datetime], None]] = {
    "agent": _show_standing,
    "executions": _show_executions,
    "metrics": _show_metrics,
    "tasks": _show_tasks,
    "findings": _show_findings,
    "workspace": _show_workspace,
    "configuration": _show_configuration,
    "verdicts": _show_verdicts,
    "facts": _show_facts,
}
