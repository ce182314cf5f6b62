"""`custosd task`: what the fleet has to do. Reading asks the store, changing the running daemon."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.tasks import PostgresTasks
from custosd.cli.acts import answer_json, answer_of
from custosd.cli.exit_codes import FAILURE, OK
from custosd.cli.settings import (
    log_for_a_command,
    run_to_the_end,
    settings,
)
from custosd.cli.showing import Look, age, printable
from custosd.config.quantities import parse_duration
from custosd.config.settings import Config
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.agents import AgentId
from custosd.core.task_forms import scored_form, task_form
from custosd.core.tasks import (
    TELLABLE,
    ScoredTask,
    Task,
    TaskId,
    TaskPriority,
    TaskQuery,
    TaskState,
)
from custosd.ports import TaskStore

_GOOD = frozenset({ActOutcome.DONE, ActOutcome.NOTHING_TO_DO})
_LINE_CHARS = 2_000
_IDS_SHOWN = 20


@click.group("task")
def task() -> None:
    """What the fleet has to do: who waits for what, who has which."""


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}; write it as 90s, 20m, 1h30m or 2d") from None


def _time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    try:
        # Without a zone the clock on the wall is meant, here and not where the daemon runs.
        return None if value is None else datetime.fromisoformat(value).astimezone().isoformat()
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time: 2026-01-31T18:00:00Z") from None


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_socket = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The daemon's control socket; the configuration is not read then.",
)
_capability = click.option("--capability", "-c", "capabilities", multiple=True)
_agent = click.option("--agent", default="", help="The agent that has it.")
_fence = click.option("--fence", type=int, help="Of which claim; without it, whoever has it.")
_lease = click.option("--lease", "lease_s", callback=_seconds, help="For how long: 5m.")
_reason = click.option("--reason", default="", help="Why; it is told to everybody who asks.")


# --- reading --------------------------------------------------------------------------------


def _read(ctx: click.Context, call: Callable[[TaskStore], Any]) -> Any:
    config = settings(ctx)
    log_for_a_command(ctx)
    return run_to_the_end(partial(_read_from, call), config)


async def _read_from(call: Callable[[TaskStore], Any], config: Config) -> Any:
    async with open_postgres(config, os.environ, serve=False) as database:
        return await call(PostgresTasks(database, config.tasks.rules()))


@task.command("list")
@click.option(
    "--state", "-s", "states", multiple=True, type=click.Choice([s.value for s in TaskState])
)
@click.option("--agent", "agents", multiple=True, help="Only those of this agent.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
@click.option("--after", help="The last task of the page before.")
@_json
@click.pass_context
def list_tasks(
    ctx: click.Context,
    states: tuple[str, ...],
    agents: tuple[str, ...],
    limit: int,
    after: str | None,
    *,
    as_json: bool,
) -> None:
    """List tasks, the newest first."""
    query = TaskQuery(
        frozenset(map(TaskState, states)),
        frozenset(map(AgentId, agents)),
        limit,
        TaskId(after) if after else None,
    )
    found: Sequence[Task] = _read(ctx, lambda store: store.find(query))
    if as_json:
        click.echo(json.dumps([task_form(one) for one in found], indent=2))
    else:
        Look().console.print(_table(found))


@task.command("next")
@click.option("--limit", type=click.IntRange(1, 1_000), default=10, show_default=True)
@_capability
@_json
@click.pass_context
def next_tasks(
    ctx: click.Context, limit: int, capabilities: tuple[str, ...], *, as_json: bool
) -> None:
    """Show what would be claimed next, with its score."""
    found: Sequence[ScoredTask] = _read(ctx, lambda store: store.next_tasks(limit, capabilities))
    if as_json:
        click.echo(json.dumps([scored_form(one) for one in found], indent=2))
        return
    Look().console.print(_table([one.task for one in found], [f"{one.score:.3f}" for one in found]))


@task.command("show")
@click.argument("id_", metavar="ID")
@_json
@click.pass_context
def show(ctx: click.Context, id_: str, *, as_json: bool) -> None:
    """Show one task whole."""
    found = _read(ctx, lambda store: store.tasks([TaskId(id_)]))
    if not found:
        click.echo(f"custosd: there is no task {printable(id_).plain!r}", err=True)
        sys.exit(FAILURE)
    [one] = found.values()
    if as_json:
        click.echo(json.dumps(task_form(one), indent=2))
        return
    look = Look()
    for name, value in task_form(one).items():
        if value not in (None, "", []):
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            look.row(name, text, _LINE_CHARS)


def _table(tasks: Sequence[Task], scores: Sequence[str] = ()) -> Table:
    now = datetime.now(UTC)
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ("task", "state", "priority", "waits", "tries", "age", "agent", "title")
    for name in (*columns, *(["score"] if scores else [])):
        table.add_column(name, no_wrap=name != "title", overflow="ellipsis")
    for place, one in enumerate(tasks):
        table.add_row(
            printable(one.id),
            one.state.value,
            one.priority.value,
            str(one.unmet or ""),
            f"{one.attempts}/{one.max_attempts}",
            age(one.ended_utc or one.ready_utc or one.created_utc, now),
            printable(one.agent or ""),
            printable(one.title, 100),
            *([scores[place]] if scores else []),
        )
    return table


# --- changing -------------------------------------------------------------------------------


def _ask(operation: str, form: dict[str, Any], socket: Path | None, *, as_json: bool) -> None:
    """Ask the daemon, show its answer, and end with the code that fits."""
    told = {name: value for name, value in form.items() if value not in (None, "", (), [])}
    answer = answer_of(ActRequest(Act.TASK, "", operation, json.dumps(told)), socket)
    good = answer.outcome in _GOOD
    if as_json:
        click.echo(answer_json(answer))
    else:
        click.echo(printable(answer.message, _LINE_CHARS).plain, err=not good)
        _say_tasks(answer)
    sys.exit(OK if good else FAILURE)


def _say_tasks(answer: ActAnswer) -> None:
    tasks = answer.detail.get("tasks")
    for one in tasks[:_IDS_SHOWN] if isinstance(tasks, list) else []:
        claim = one.get("claim") or {}
        words = f"  {one['id']}  fence {claim.get('fence')}  {one['title']}"
        click.echo(printable(words, _LINE_CHARS).plain)


@task.command("add")
@click.argument("id_", metavar="ID")
@click.argument("title")
@click.option("--goal", default="", help="What is to be done, in full.")
@click.option("--after", "depends_on", multiple=True, help="A task that it waits for.")
@click.option("--priority", type=click.Choice([p.value for p in TaskPriority]), default="medium")
@_capability
@click.option("--not-before", callback=_time, help="When it may be begun at the earliest.")
@click.option("--deadline", callback=_time, help="When it should be done.")
@click.option("--timeout", "timeout_s", callback=_seconds, help="The longest attempt: 30m.")
@click.option("--retries", type=click.IntRange(0, 999), help="How often it is tried again.")
@_socket
@_json
def add(
    id_: str, retries: int | None, socket: Path | None, *, as_json: bool, **fields: Any
) -> None:
    """Add the task ID. What it waits for must be there; a circle is refused and named."""
    form = {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }
    form |= {"id": id_, "max_attempts": None if retries is None else retries + 1}
    given = {name: value for name, value in form.items() if value not in (None, "", [])}
    _ask("add", {"tasks": [given]}, socket, as_json=as_json)


@task.command("link")
@click.argument("id_", metavar="ID")
@click.argument("depends_on", metavar="AFTER", nargs=-1, required=True)
@_socket
@_json
def link(id_: str, depends_on: tuple[str, ...], socket: Path | None, *, as_json: bool) -> None:
    """Let the task ID wait for AFTER, if nobody has begun it."""
    _ask("link", {"edges": [[id_, other] for other in depends_on]}, socket, as_json=as_json)


@task.command("claim")
@click.argument("agent")
@click.option("--limit", type=click.IntRange(1, 1_000), default=1, show_default=True)
@_capability
@_lease
@click.option("--key", default="", help="Claims of one key are one claim, however often asked.")
@_socket
@_json
def claim(socket: Path | None, *, as_json: bool, **fields: Any) -> None:
    """Give AGENT the most urgent tasks that it can do, until their leases end."""
    fields["capabilities"] = list(fields["capabilities"])
    _ask("claim", fields, socket, as_json=as_json)


@task.command("extend")
@click.argument("task_", metavar="ID")
@_agent
@_fence
@_lease
@_socket
@_json
def extend(task_: str, socket: Path | None, *, as_json: bool, **fields: Any) -> None:
    """Let the lease of the task ID last on."""
    _ask("extend", {"task": task_, **fields}, socket, as_json=as_json)


@task.command("complete")
@click.argument("task_", metavar="ID")
@_agent
@_fence
@click.option("--result", default="", help="What came of it.")
@_socket
@_json
def complete(task_: str, socket: Path | None, *, as_json: bool, **fields: Any) -> None:
    """End the task ID well, whoever has it, unless --agent and --fence say whose word it is."""
    _ask("complete", {"task": task_, **fields}, socket, as_json=as_json)


@task.command("fail")
@click.argument("task_", metavar="ID")
@_agent
@_fence
@click.option(
    "--kind",
    type=click.Choice(sorted(kind.value for kind in TELLABLE)),
    default="error",
    show_default=True,
)
@click.option("--after", "after_s", callback=_seconds, help="Not before so long: 20m.")
@_reason
@_socket
@_json
def fail(task_: str, socket: Path | None, *, as_json: bool, **fields: Any) -> None:
    """End this attempt at the task ID badly; one that nobody has fails for good."""
    _ask("fail", {"task": task_, **fields}, socket, as_json=as_json)


@task.command("cancel")
@click.argument("tasks", metavar="ID", nargs=-1, required=True)
@_reason
@_socket
@_json
def cancel(tasks: tuple[str, ...], reason: str, socket: Path | None, *, as_json: bool) -> None:
    """End the tasks ID, and all that waits for them."""
    _ask("cancel", {"tasks": list(tasks), "reason": reason}, socket, as_json=as_json)
