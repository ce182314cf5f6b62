"""The command that tries the installed daemon: does it find, heal and tell, and how fast."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
import trio
from rich.table import Table

from custosd.adapters.control_socket import ControlDenied, DaemonNotRunning, ask
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.store import PostgresStore
from custosd.cli.acts import ANSWER_TIMEOUT_S, control_path
from custosd.cli.exit_codes import FAILURE, NO_PERMISSION, NOT_RUNNING, OK
from custosd.cli.settings import log_for_a_command, run_to_the_end, settings
from custosd.cli.showing import Look, printable
from custosd.config.acting import AlertSettings
from custosd.config.quantities import parse_duration
from custosd.config.settings import Config
from custosd.core.acts import Act, ActAnswer, ActRequest
from custosd.core.facts import Entry
from custosd.drill.canaries import CANARIES
from custosd.drill.links import Link, LinkState
from custosd.drill.run import Drill, DrillError, DrillPorts, Result
from custosd.flow.stopping import open_stopping
from custosd.local import BEATS_SOCKET

FOLDER = "drill"
"""Below the state folder; the daemon follows the transcripts in it."""

LONGEST_S = 3000.0
"""A canary stays for an hour at most."""


@click.command("drill")
@click.option(
    "--canary",
    "canaries",
    multiple=True,
    type=click.Choice(list(CANARIES)),
    help="Only this one; may be given several times. [default: all]",
)
@click.option("--timeout", default="5m", show_default=True, help="How long to wait for it all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--keep-going", is_flag=True, help="Go on after the first link that is broken.")
@click.pass_context
def drill(
    ctx: click.Context, *, canaries: Sequence[str], timeout: str, as_json: bool, keep_going: bool
) -> None:
    """Try the running daemon: canary agents come to harm, and it must see, act and tell.

    Nothing is done to real agents. Exits with 0 if every link of the chain held, 1 if one is
    broken, 3 if no daemon runs.

    \b
    JSON:    held (true or false) results
    result:  canary agent harm links held
    link:    name state (held quiet unneeded broken) after_s words
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise click.UsageError(f"--timeout {timeout!r}: {error}") from error
    if not 0 < timeout_s <= LONGEST_S:
        raise click.UsageError(f"--timeout: more than 0, and at most {LONGEST_S / 60:g}m")
    config = settings(ctx)
    log_for_a_command(ctx)
    names = tuple(dict.fromkeys(canaries)) or tuple(CANARIES)
    results = run_to_the_end(_drill, config, names, timeout_s, keep_going)
    if as_json:
        click.echo(json.dumps(_form(results), indent=2))
    else:
        _show(results)
    sys.exit(FAILURE if any(result.broken for result in results) else OK)


async def _drill(
    config: Config,
    names: Sequence[str],
    timeout_s: float,
    keep_going: bool,
) -> tuple[Result, ...]:
    control = control_path(config, os.environ)

    async def asked(request: ActRequest) -> ActAnswer:
        return await ask(control, request, ANSWER_TIMEOUT_S)

    await _knock(asked)
    results: tuple[Result, ...] = ()
    async with open_stopping() as stopping, trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at, stopping.stop, nursery.cancel_scope)
        async with open_postgres(config, os.environ, serve=False) as database:
            store = PostgresStore(database)

            async def record(limit: int) -> Sequence[Entry]:
                return await store.recent_entries(None, limit)

            folder = config.daemon.state_folder(os.environ) / FOLDER
            beats = control.with_name(BEATS_SOCKET)
            ports = DrillPorts(
                asked,
                record,
                beats,
                folder,
                lambda: datetime.now(UTC),
                ways_of(config.alerts),
                lambda words: click.echo(f"custosd: {words}", err=True),
            )
            results = await Drill(ports, names, timeout_s, keep_going).run()
        nursery.cancel_scope.cancel("the drill is over")
    if not results:
        raise DrillError("it was cut short; no canary is left, and nothing can be said")
    return results


def ways_of(alerts: AlertSettings) -> frozenset[str]:
    """The ways by which a daemon of this configuration tells people."""
    given = {"log": True, "command": bool(alerts.command), "http": bool(alerts.url)}
    return frozenset(way for way, used in given.items() if used)


async def _knock(asked: Callable[[ActRequest], Awaitable[ActAnswer]]) -> None:
    """End here where there is no daemon, or none that answers us."""
    try:
        await asked(ActRequest(Act.DISMISS, "", "canary-", dry_run=True))
    except DaemonNotRunning as error:
        click.echo(f"custosd: {error}", err=True)
        sys.exit(NOT_RUNNING)
    except ControlDenied as error:
        click.echo(f"custosd: {error}", err=True)
        sys.exit(NO_PERMISSION)


async def _cancel_at(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel("a signal")


# --- what is shown --------------------------------------------------------------------------

COLUMNS = ("detected", "acted", "healed", "answered", "notified")
_MARKS = {LinkState.QUIET: "nothing", LinkState.UNNEEDED: "-", LinkState.BROKEN: "BROKEN"}


def _form(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "held": not any(result.broken for result in results),
        "results": [
            {
                "canary": result.canary.name,
                "agent": result.agent,
                "harm": result.canary.harm,
                "links": [asdict(link) for link in result.links],
                "held": not result.broken,
            }
            for result in results
        ],
    }


def _show(results: Sequence[Result]) -> None:
    look = Look()
    table = Table("canary", "which", *COLUMNS, "verdict", box=None, header_style="bold")
    for result in results:
        links = {link.name: link for link in result.links}
        cells = [_cell(links.get(column)) for column in COLUMNS]
        verdict = "[red]broken[/]" if result.broken else "[green]held[/]"
        table.add_row(result.canary.name, result.canary.harm, *cells, verdict)
    look.console.print(table)
    for result in results:
        for link in result.broken:
            words = f"{result.canary.name}: {link.name}: {link.words}"
            look.line(printable(words, 300), style="red")


def _cell(link: Link | None) -> str:
    if link is None:
        return "-"
    if link.state is LinkState.HELD and link.after_s is not None:
        return f"{link.after_s:.1f} s"
    return _MARKS.get(link.state, str(link.state))
