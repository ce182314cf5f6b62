"""The commands that read: is the daemon running, who is there, how does each one stand."""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import click

from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.store import PostgresStore
from custosd.api.forms import agent_form, daemon_form, entry_form, verdict_form
from custosd.cli.exit_codes import NOT_RUNNING, OK, STATUS_UNKNOWN
from custosd.cli.fleet import Reading, reading_line
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
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.errors import CustosdError, StoreError, StoreUnavailable
from custosd.core.facts import Entry, kind_of
from custosd.core.lives import LifeRecord
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


def with_lives(
    views: Sequence[AgentView], lives: Sequence[LifeRecord]
) -> tuple[tuple[AgentView, ...], Mapping[AgentId, LifeRecord]]:
    """Whoever has a run, and whoever has a life; of the latter alone no transcript is known."""
    known = {view.ref.agent for view in views}
    others = [
        AgentView(AgentRef(life.agent, RunId("")), "", "", "", life.since_utc, life.state)
        for life in lives
        if life.agent not in known
    ]
    return (*views, *others), {life.agent: life for life in lives}


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
    view, life, verdicts, entries = run_to_the_end(_history, config, agent)
    if as_json:
        answer = {
            "agent": agent_form(view, life),
            "verdicts": [verdict_form(verdict) for verdict in verdicts],
            "facts": [entry_form(entry) for entry in entries],
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(view, life, verdicts, entries)


async def _history(
    config: Config, part: str
) -> tuple[AgentView, LifeRecord | None, tuple[Verdict, ...], tuple[Entry, ...]]:
    async with open_postgres(config, os.environ, serve=False) as database:
        store = PostgresStore(database)
        views = (await store.restore()).agents
        views, lives = with_lives(views, await PostgresActions(database).lives())
        view = _chosen(views, part)
        agent = view.ref.agent
        verdicts = await store.recent_verdicts([agent], VERDICTS_SHOWN)
        entries = await store.recent_entries(agent, FACTS_SHOWN)
        return view, lives.get(agent), verdicts.get(agent, ()), entries


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


def _show(
    view: AgentView,
    life: LifeRecord | None,
    verdicts: Sequence[Verdict],
    entries: Sequence[Entry],
) -> None:
    look = Look()
    now = datetime.now(UTC)
    look.line(printable(view.ref.agent, 400), style="bold")
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
