"""The commands that read: is the daemon running, who is there, how does each one stand."""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from custosd.adapters.postgres.store import PostgresStore
from custosd.app import open_postgres
from custosd.cli.exit_codes import NOT_RUNNING, OK, STATUS_UNKNOWN
from custosd.cli.forms import agent_form, daemon_form, entry_form, verdict_form
from custosd.cli.settings import log_for_a_command, run_to_the_end, settings
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
from custosd.core.errors import CustosdError, StoreError, StoreUnavailable
from custosd.core.facts import Entry, kind_of
from custosd.core.verdicts import Verdict
from custosd.core.view import AgentView
from custosd.ports import DaemonBeat
from custosd.services.vitals import STALE_S

VERDICTS_SHOWN = 5
FACTS_SHOWN = 10
NAMES_SHOWN = 10


class NoSuchAgent(CustosdError):
    """No agent, or more than one, is meant."""


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("status")
@_as_json
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """Say whether the daemon runs, and how the fleet stands.

    Exits with 0 if it runs, 3 if it does not, 4 if that could not be found out.

    \b
    JSON:    running (true, false, or null: not known) daemons standings trouble
    daemon:  name pid version started_utc beat_utc agents sweeps stopped
    `daemons` are those that live; where none does, the one that lived last.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    beats, agents, trouble, known = run_to_the_end(_status, config)
    now = datetime.now(UTC)
    fresh = timedelta(seconds=STALE_S)
    alive = [beat for beat in beats if not beat.stopped and now - beat.beat_utc < fresh]
    if as_json:
        answer = {
            "running": bool(alive) if known else None,
            "daemons": [daemon_form(beat) for beat in alive or beats[:1]],
            "standings": dict(Counter(agent.standing.value for agent in agents)),
            "trouble": trouble,
        }
        click.echo(json.dumps(answer, indent=2))
    elif not known:
        click.echo(f"whether custosd runs is not known: {trouble}")
    elif not alive:
        last = f"; the last sign of life is {age(beats[0].beat_utc, now)} old" if beats else ""
        click.echo(f"custosd is not running{last}" + (f" ({trouble})" if trouble else ""))
    else:
        _say_status(alive, agents, now)
    sys.exit((OK if alive else NOT_RUNNING) if known else STATUS_UNKNOWN)


async def _status(
    config: Config,
) -> tuple[tuple[DaemonBeat, ...], tuple[AgentView, ...], str, bool]:
    """Signs of life, agents, trouble; and whether these tell if a daemon runs."""
    try:
        async with open_postgres(config, os.environ, serve=False) as database:
            store = PostgresStore(database)
            return await store.beats(), (await store.restore()).agents, "", True
    except StoreError as error:
        # Our own server runs whenever the daemon does, but it may be closed to this user;
        # another's may only be out of reach.
        known = isinstance(error, StoreUnavailable) and not config.store.dsn
        return (), (), str(error), known


def _say_status(alive: Sequence[DaemonBeat], agents: Sequence[AgentView], now: datetime) -> None:
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
                           seen_utc grown_utc trajectory verdict
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
    found = run_to_the_end(_agents, config)
    if as_json:
        click.echo(json.dumps([agent_form(view) for view in found], indent=2))
    elif found:
        look = Look()
        look.console.print(agent_table(found, datetime.now(UTC), look.console.width))
    else:
        click.echo("no agents yet: nothing has grown below the roots of [transcripts]")


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

    \b
    JSON:  agent (as in `agents list`) verdicts (the latest first) facts
    fact:  id at_utc kind fact
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    view, verdicts, entries = run_to_the_end(_history, config, agent)
    if as_json:
        answer = {
            "agent": agent_form(view),
            "verdicts": [verdict_form(verdict) for verdict in verdicts],
            "facts": [entry_form(entry) for entry in entries],
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(view, verdicts, entries)


async def _history(
    config: Config, part: str
) -> tuple[AgentView, tuple[Verdict, ...], tuple[Entry, ...]]:
    async with open_postgres(config, os.environ, serve=False) as database:
        store = PostgresStore(database)
        view = _chosen((await store.restore()).agents, part)
        agent = view.ref.agent
        verdicts = await store.recent_verdicts([agent], VERDICTS_SHOWN)
        return view, verdicts.get(agent, ()), await store.recent_entries(agent, FACTS_SHOWN)


def _chosen(views: Sequence[AgentView], part: str) -> AgentView:
    """The one agent with this id, or with this in its id; raises `NoSuchAgent`."""
    exact = [view for view in views if view.ref.agent == part]
    found = exact or [view for view in views if part in view.ref.agent]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} agents have" if found else "no agent has"
    names = sorted(view.ref.agent for view in found or views)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = (", ".join(names[:NAMES_SHOWN]) or "none") + more
    raise NoSuchAgent(printable(f"{problem} {part!r} in the id; there is: {listed}", 2_000).plain)


def _show(view: AgentView, verdicts: Sequence[Verdict], entries: Sequence[Entry]) -> None:
    look = Look()
    now = datetime.now(UTC)
    look.line(printable(view.ref.agent, 400), style="bold")
    look.line(f"    {'standing':<11}", standing_text(view.standing))
    look.row("state", view.state)
    look.row("transcript", f"{view.path} ({view.format})", 1_000)
    look.row("seen", f"{age(view.seen_utc, now)} ago, grown {age(view.grown_utc, now)} ago")
    if view.digest is not None:
        digest = view.digest
        look.row("goal", digest.goal or "(none found)")
        look.row("focus", shortened(digest.focus))
        look.row("phase", digest.phase)
        counts = f"{digest.steps}, {digest.errors} failed, {digest.edits} edits"
        look.row("steps", f"{counts}, {digest.tests_run} test runs")
        look.row("written", ", ".join(digest.written))
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
    look.line("facts", style="bold")
    for entry in entries:
        look.line(f"  {age(entry.at_utc, now):>7} ago  {kind_of(entry.fact)}")
