"""The commands that tell how the fleet stands as a whole: reading, findings, claims."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import click
import msgspec

from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.coordination import PostgresCoordination
from custosd.adapters.postgres.opening import open_postgres
from custosd.api.coordination import claim_forms, finding_form, fleet_form
from custosd.cli.acts import ack_finding
from custosd.cli.settings import log_for_a_command, run_to_the_end, settings
from custosd.cli.showing import Look, age, printable
from custosd.config.settings import Config
from custosd.core.agents import AgentId
from custosd.core.coherence import Coherence
from custosd.core.findings import Finding
from custosd.core.holds import Hold, HoldKind
from custosd.core.intents import Claim

PATHS_SHOWN = 3

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("conductor")
@_as_json
@click.pass_context
def conductor(ctx: click.Context, *, as_json: bool) -> None:
    """Say how the fleet stands as a whole, and what to do about it.

    \b
    JSON:       at_utc coherence (null: never looked) findings
    coherence:  status score components agents covered judged trend
                recommendations coverage
    component:  name value weight        recommendation: advice agents reason
    findings are as `custosd findings` has them.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    readings, findings, _ = run_to_the_end(_fleet, config, _NEVER)
    if as_json:
        _print_json(fleet_form(readings, findings))
    elif not readings:
        click.echo("the conductor has not looked at the fleet yet")
    else:
        _say_reading(*readings[0], len(findings))


@click.group("findings", invoke_without_command=True)
@click.option("--past", "past_h", type=float, default=0.0, help="Also those over in so many hours.")
@_as_json
@click.pass_context
def findings(ctx: click.Context, *, past_h: float, as_json: bool) -> None:
    """List what was found between agents: the same work done twice, writes in one place.

    That one is known is said with `custosd findings ack ID`.

    \b
    JSON, for each:  id concern kind agents likeness confidence paths
                     first_line last_line judge summary said (a model's own
                     words) first_seen_utc last_seen_utc sightings
                     resolved_utc resolution
                     acked_by acked_utc acked_until_utc acked_note
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    if ctx.invoked_subcommand is not None:
        return
    config = settings(ctx)
    log_for_a_command(ctx)
    now = datetime.now(UTC)
    since_utc = now - timedelta(hours=past_h) if past_h > 0 else _NEVER
    _, found, acks = run_to_the_end(_fleet, config, since_utc)
    if as_json:
        forms = [finding_form(each) | _ack_form(acks.get(each.concern)) for each in found]
        _print_json(forms)
    elif not found:
        click.echo("nothing was found between agents")
    else:
        look = Look()
        for each in found:
            _say_finding(look, each, acks.get(each.concern), now)


findings.add_command(ack_finding)


@click.command("claims")
@click.option("--agent", default=None, metavar="ID", help="Only of this agent.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="How many."
)
@_as_json
@click.pass_context
def claims(ctx: click.Context, *, agent: str | None, limit: int, as_json: bool) -> None:
    """List what agents have leased to do, the oldest lease first.

    \b
    JSON, for each:  id agent repository files goal taken_utc expires_utc
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    found = run_to_the_end(_claims, config, limit + 1, agent)
    if len(found) > limit:
        click.echo(f"the {limit} oldest; there are more: --limit, --agent", err=True)
        found = found[:limit]
    if as_json:
        _print_json(claim_forms(found))
    elif not found:
        click.echo("no agent has claimed anything")
    else:
        look, now = Look(), datetime.now(UTC)
        for claim in found:
            intent = claim.intent
            what = ", ".join(intent.files[:PATHS_SHOWN]) or intent.goal
            left = age(now - (claim.expires_utc - now), now)
            look.line(printable(intent.agent), f" for {left} more: ", printable(what))


_NEVER = datetime(9999, 1, 1, tzinfo=UTC)

Reading = tuple[datetime, Coherence]


async def _fleet(
    config: Config, since_utc: datetime
) -> tuple[tuple[Reading, ...], tuple[Finding, ...], Mapping[str, Hold]]:
    """The last reading, the findings, and who said of which concern that it is known."""
    async with open_postgres(config, os.environ, serve=False) as database:
        store = PostgresCoordination(database)
        holds = await PostgresActions(database).holds()
        acks = {hold.subject: hold for hold in holds if hold.kind is HoldKind.ACK}
        return await store.readings(1), await store.findings(since_utc), acks


async def _claims(config: Config, limit: int, agent: str | None) -> tuple[Claim, ...]:
    async with open_postgres(config, os.environ, serve=False) as database:
        name = None if agent is None else AgentId(agent)
        return await PostgresCoordination(database).claims(limit, name)


def reading_line(at_utc: datetime, reading: Coherence, now: datetime) -> str:
    """A reading in one line."""
    score = "" if reading.score is None else f", coherence {reading.score:.2f}"
    return (
        f"the fleet is {reading.status.value.replace('_', ' ')}{score}, {reading.trend.value},"
        f" known of {reading.covered} of {reading.agents} agents, {age(at_utc, now)} ago"
    )


def _say_reading(at_utc: datetime, reading: Coherence, findings: int) -> None:
    look = Look()
    look.line(reading_line(at_utc, reading, datetime.now(UTC)))
    for part in reading.components:
        look.line(f"  {part.value:5.2f} x {part.weight:+.2f}  {part.name.replace('_', ' ')}")
    if findings:
        look.line(f"  {findings} open findings: see `custosd findings`")
    for each in reading.recommendations:
        names = ", ".join(each.agents)
        words = f"{each.advice.value} {each.reason}".replace("_", " ")
        look.line(f"  {words}: ", printable(names))


def _say_finding(look: Look, finding: Finding, ack: Hold | None, now: datetime) -> None:
    sighting = finding.sighting
    over = "" if finding.open else f", over: {finding.resolution}".replace("_", " ")
    known = f", known to {ack.by}" if ack else ""
    look.line(
        f"{finding.concern}  {sighting.kind.value}  ",
        printable(f"{sighting.one} and {sighting.other}"),
        f"  for {age(finding.first_seen_utc, now)}, seen {finding.sightings} times{over}{known}",
    )
    if sighting.paths:
        lines = f":{sighting.first_line}-{sighting.last_line}" if sighting.first_line else ""
        look.row("in", f"{', '.join(sighting.paths[:PATHS_SHOWN])}{lines}")
    if sighting.summary:
        look.row("because", sighting.summary)
    if sighting.said:
        # Of a model that read what agents wrote: quoted, and beside what was measured.
        words = json.dumps(sighting.said, ensure_ascii=False)
        look.row("says", f"{sighting.judge}: {words}")
    if ack and ack.reason:
        look.row("noted", ack.reason)


def _ack_form(ack: Hold | None) -> dict[str, object]:
    return {
        "acked_by": ack and ack.by,
        "acked_utc": ack and ack.since_utc,
        "acked_until_utc": ack and ack.until_utc,
        "acked_note": ack and ack.reason,
    }


def _print_json(form: Mapping[str, object] | Sequence[Mapping[str, object]]) -> None:
    click.echo(json.dumps(msgspec.to_builtins(form), indent=2))


fleet_commands = (conductor, findings, claims)
