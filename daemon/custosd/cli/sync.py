"""`custosd sync`: what was seen on forges. Showing asks the store, `now` the running daemon."""

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.sync import PostgresSync
from custosd.api.sync import sync_form
from custosd.cli.acts import answer_json, answer_of
from custosd.cli.exit_codes import FAILURE, OK
from custosd.cli.settings import (
    log_for_a_command,
    run_to_the_end,
    settings,
)
from custosd.cli.showing import Look, age, printable
from custosd.config.settings import Config
from custosd.core.acts import Act, ActOutcome, ActRequest
from custosd.core.forge import (
    Closing,
    ForgeWork,
    RepositoryRecord,
    SyncOutcome,
    WorkKind,
    WorkQuery,
    WorkState,
)

WORKS_SHOWN = 20
_LINE_CHARS = 2_000
_GOOD = frozenset({ActOutcome.DONE, ActOutcome.NOTHING_TO_DO})

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("sync")
def sync() -> None:
    """What happens in the repositories that are followed."""


@sync.command("show")
@_as_json
@click.pass_context
def show(ctx: click.Context, *, as_json: bool) -> None:
    """Say how following each repository goes, what is open, and which tasks were done by it.

    \b
    JSON:        repositories works closings
    repository:  repository forge_id full_name outcome looked_utc synced_utc
                 failures trouble detail retry_utc
    work:        repository kind key state updated_utc title url author sha
                 branches landed landed_utc links
    closing:     task repository kind key intended_utc agent done_utc told
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    config = settings(ctx)
    log_for_a_command(ctx)
    if as_json:
        form = run_to_the_end(_form, config)
        click.echo(json.dumps(msgspec.to_builtins(form), indent=2))
        return
    records, works, closings = run_to_the_end(_known, config)
    look, now = Look(), datetime.now(UTC)
    known = {record.repository: record for record in records}
    for repository in config.sync.repositories:
        name = repository.followed().id
        _say_record(look, known.get(name, RepositoryRecord(name)), now)
    if not config.sync.repositories:
        click.echo("no repository is followed: see [[sync.repository]] in the configuration")
    for work in works:
        number = f"#{work.key}" if work.kind is not WorkKind.COMMIT else work.key[:12]
        look.line(
            f"  {work.kind.value.replace('_', ' ')} {work.state.value},"
            f" {age(work.updated_utc, now)} ago: ",
            printable(f"{work.repository.partition(':')[2]} {number} {work.title}"),
        )
    for closing in closings:
        who = f", {closing.agent} told: {closing.told}" if closing.agent else ""
        look.line(
            f"  task {closing.task} done {age(closing.intended_utc, now)} ago by ",
            printable(f"{closing.repository.partition(':')[2]} {closing.key[:12]}{who}"),
        )


@sync.command("now")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The daemon's control socket; the configuration is not read then.",
)
@_as_json
def now(socket: Path | None, *, as_json: bool) -> None:
    """Have the running daemon look at all repositories, also those that rest after failures."""
    answer = answer_of(ActRequest(Act.SYNC, ""), socket)
    good = answer.outcome in _GOOD
    if as_json:
        click.echo(answer_json(answer))
    else:
        click.echo(printable(answer.message, _LINE_CHARS).plain, err=not good)
    sys.exit(OK if good else FAILURE)


async def _form(config: Config) -> dict[str, object]:
    async with open_postgres(config, os.environ, serve=False) as database:
        return await sync_form(PostgresSync(database))


async def _known(
    config: Config,
) -> tuple[Sequence[RepositoryRecord], Sequence[ForgeWork], Sequence[Closing]]:
    pulls = WorkQuery(
        kinds=frozenset({WorkKind.PULL_REQUEST}),
        states=frozenset({WorkState.OPEN}),
        limit=WORKS_SHOWN,
    )
    async with open_postgres(config, os.environ, serve=False) as database:
        store = PostgresSync(database)
        return await store.records(), await store.works(pulls), await store.closings(WORKS_SHOWN)


def _say_record(look: Look, record: RepositoryRecord, now: datetime) -> None:
    if record.looked_utc is None:
        look.line(printable(record.repository), "  not looked at yet")
        return
    synced = f"synced {age(record.synced_utc, now)} ago" if record.synced_utc else "never synced"
    trouble = f", {record.trouble.value} {record.failures} times" if record.trouble else ""
    held = ", held: the account has had enough" if record.outcome is SyncOutcome.HELD else ""
    look.line(printable(record.repository), f"  {synced}{trouble}{held}")
    if record.detail:
        look.row("because", record.detail)
    if record.retry_utc is not None and record.retry_utc > now:
        look.row("again in", age(now - (record.retry_utc - now), now))
