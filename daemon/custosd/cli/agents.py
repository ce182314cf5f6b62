"""The commands that read: is the daemon running, who is there, how does each one stand."""

import json
import os
import sys
from datetime import UTC, datetime, timedelta

import click
import msgspec
from rich.console import Console

from custosd.adapters.postgres.store import PostgresStore
from custosd.app import open_postgres
from custosd.cli.exit_codes import FAILURE, NOT_RUNNING, STATUS_UNKNOWN
from custosd.cli.settings import log_for_a_command, run_to_the_end, settings
from custosd.cli.showing import age, agent_table, printable, standing_text
from custosd.config.settings import Config
from custosd.core.errors import StoreError, StoreUnavailable
from custosd.core.facts import Entry, kind_of
from custosd.core.verdicts import Verdict
from custosd.core.view import AgentView
from custosd.ports import DaemonBeat
from custosd.services.vitals import STALE_S

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _print_json(value: object) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=True))


@click.command("status")
@_as_json
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """Say whether the daemon runs, and how the fleet stands.

    Exits with 0 if it runs, 3 if it does not, 4 if that could not be found out.
    """
    config = settings(ctx)
    log_for_a_command(ctx)
    beats, agents, trouble, known = run_to_the_end(_status, config)
    now = datetime.now(UTC)
    alive = [b for b in beats if not b.stopped and now - b.beat_utc < timedelta(seconds=STALE_S)]
    if as_json:
        standings = [a.standing for a in agents]
        _print_json(
            {
                "running": bool(alive) if known else None,
                "daemons": alive or beats[:1],
                "standings": {s: standings.count(s) for s in set(standings)},
                "trouble": trouble,
            }
        )
    else:
        _say_status(alive, beats, agents, trouble, now)
    if not known:
        sys.exit(STATUS_UNKNOWN)
    sys.exit(0 if alive else NOT_RUNNING)


async def _status(
    config: Config,
) -> tuple[tuple[DaemonBeat, ...], tuple[AgentView, ...], str, bool]:
    """Signs of life, agents, trouble; and whether this says if a daemon runs."""
    try:
        async with open_postgres(config, os.environ, serve=False) as database:
            store = PostgresStore(database)
            return await store.beats(), (await store.restore()).agents, "", True
    except StoreError as error:
        # A private server ends with its daemon; of any other nothing is known.
        gone = isinstance(error, StoreUnavailable) and not config.store.dsn
        return (), (), str(error), gone


def _say_status(
    alive: list[DaemonBeat],
    beats: tuple[DaemonBeat, ...],
    agents: tuple[AgentView, ...],
    trouble: str,
    now: datetime,
) -> None:
    if trouble:
        click.echo(f"not reached: {trouble}")
        return
    if not alive:
        last = f"; the last sign of life is {age(beats[0].beat_utc, now)} old" if beats else ""
        click.echo(f"custosd is not running{last}")
        return
    for beat in alive:
        click.echo(
            f"{beat.name} {beat.version} runs as process {beat.pid} for"
            f" {age(beat.started_utc, now)}: {beat.agents} agents, {beat.sweeps} sweeps,"
            f" last sign of life {age(beat.beat_utc, now)} ago"
        )
    standings = [agent.standing for agent in agents]
    for standing in sorted(set(standings), key=lambda s: -standings.count(s)):
        click.echo(f"  {standings.count(standing):5} {standing.value.replace('_', ' ')}")


@click.group("agents")
def agents() -> None:
    """Who is watched, and how each one stands."""


@agents.command("list")
@_as_json
@click.pass_context
def list_agents(ctx: click.Context, *, as_json: bool) -> None:
    """List all agents with what is held of them."""
    config = settings(ctx)
    log_for_a_command(ctx)
    found = run_to_the_end(_agents, config)
    if as_json:
        _print_json(found)
    else:
        Console(highlight=False).print(agent_table(found, datetime.now(UTC)))


async def _agents(config: Config) -> tuple[AgentView, ...]:
    async with open_postgres(config, os.environ, serve=False) as database:
        return (await PostgresStore(database).restore()).agents


@agents.command("show")
@click.argument("agent")
@_as_json
@click.pass_context
def show_agent(ctx: click.Context, agent: str, *, as_json: bool) -> None:
    """Show one agent: its goal, its trajectory, its verdicts with their evidence.

    AGENT is an id as `agents list` shows it, or any part that only one id has.
    """
    config = settings(ctx)
    log_for_a_command(ctx)
    views = run_to_the_end(_agents, config)
    found = [v for v in views if v.ref.agent == agent] or [v for v in views if agent in v.ref.agent]
    if len(found) != 1:
        problem = "no agent has" if not found else f"{len(found)} agents have"
        names = ", ".join(sorted(v.ref.agent for v in (found or views))[:10])
        click.echo(f"{problem} {agent!r} in the id; there is: {names or 'none'}", err=True)
        sys.exit(FAILURE)
    view = found[0]
    verdicts, entries = run_to_the_end(_history, config, view)
    if as_json:
        _print_json({"agent": view, "verdicts": verdicts, "facts": entries})
    else:
        _show(view, verdicts, entries)


async def _history(
    config: Config, view: AgentView
) -> tuple[tuple[Verdict, ...], tuple[Entry, ...]]:
    async with open_postgres(config, os.environ, serve=False) as database:
        store = PostgresStore(database)
        verdicts = await store.recent_verdicts([view.ref.agent], 5)
        return verdicts.get(view.ref.agent, ()), await store.recent_entries(view.ref.agent, 10)


def _show(view: AgentView, verdicts: tuple[Verdict, ...], entries: tuple[Entry, ...]) -> None:
    console = Console(highlight=False)
    now = datetime.now(UTC)
    console.print(printable(view.ref.agent), style="bold")
    digest = view.digest
    rows = [
        ("standing", standing_text(view.standing)),
        ("state", view.state.value),
        ("transcript", printable(f"{view.path} ({view.format})", 400)),
        ("seen", f"{age(view.seen_utc, now)} ago, grown {age(view.grown_utc, now)} ago"),
    ]
    if digest is not None:
        rows += [
            ("goal", printable(digest.goal, 400)),
            ("focus", printable(digest.focus)),
            ("phase", digest.phase.value),
            (
                "steps",
                f"{digest.steps}, {digest.errors} failed, {digest.edits} edits,"
                f" {digest.tests_run} test runs",
            ),
            ("written", printable(", ".join(digest.written), 400)),
        ]
    for name, value in rows:
        console.print(f"  {name:<11}", value, end="\n")
    console.print("verdicts", style="bold")
    for verdict in verdicts:
        judgement = verdict.judgement
        console.print(
            f"  {age(verdict.at_utc, now):>7} ago ",
            standing_text(judgement.standing),
            f" at step {verdict.steps} by {verdict.by.judge}: ",
            printable(judgement.summary or judgement.unknown_reason, 300),
        )
        for signal in verdict.signals:
            steps = ", ".join(map(str, signal.steps))
            console.print(
                f"              {signal.severity.value} {signal.kind.value}"
                f" (steps {steps or '-'}) ",
                printable(signal.about),
            )
    console.print("facts", style="bold")
    for entry in entries:
        console.print(f"  {age(entry.at_utc, now):>7} ago  {kind_of(entry.fact)}")
