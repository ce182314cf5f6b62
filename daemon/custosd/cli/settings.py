"""What commands share: the configuration in force, and one way to end on an error."""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import click
import trio

from custosd.adapters.postgres.migrations import MigrationBusy
from custosd.cli.exit_codes import BAD_CONFIG, FAILURE, TEMPORARY, UNAVAILABLE
from custosd.config.problems import InvalidConfig
from custosd.config.reading import Reading, read, read_valid_part
from custosd.config.settings import Config
from custosd.config.sources import locate_config
from custosd.core.errors import CustosdError, StoreConflict, StoreError, StoreUnavailable
from custosd.logs import Format, configure_logging

T = TypeVar("T")


def settings(ctx: click.Context) -> Config:
    """The configuration in force; ends with BAD_CONFIG, all problems told, if it is wrong."""
    return read_settings(ctx).config


def read_settings(ctx: click.Context) -> Reading:
    """As `settings`, with the origin of each value."""
    try:
        return read_again(ctx)
    except InvalidConfig as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(BAD_CONFIG)


def settings_to_reach_the_daemon(ctx: click.Context) -> Config:
    """As `settings`, but what does not say where the daemon is may be wrong, and is only told.

    An emergency stop must not wait for somebody's mistake to be mended, nor reach another
    daemon because of it.
    """
    reading, problems = read_valid_part(locate_config(ctx.obj["config"], os.environ))
    for problem in problems:
        click.echo(str(problem), err=True)
    if any(not problem.key or problem.key.startswith("daemon") for problem in problems):
        click.echo("custosd: name the daemon's socket by --socket, or mend this", err=True)
        sys.exit(BAD_CONFIG)
    return reading.config


def read_again(ctx: click.Context) -> Reading:
    """The configuration as it stands in the files now; raises `InvalidConfig`."""
    return read(locate_config(ctx.obj["config"], os.environ))


def log_for_a_daemon(ctx: click.Context, config: Config) -> None:
    """Log to standard output, as configured or as the command line says."""
    chosen: Format = ctx.obj["log_format"] or config.log.format
    configure_logging(chosen, ctx.obj["log_level"] or config.log.level)


def log_for_a_command(ctx: click.Context) -> None:
    """Log only troubles, and to standard error: standard output is the answer's."""
    chosen: Format = ctx.obj["log_format"] or "auto"
    configure_logging(chosen, ctx.obj["log_level"] or "error", stream=sys.stderr)


def run_to_the_end(afn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """`trio.run`, with custosd's own errors told in a line and turned into exit codes."""
    error: BaseException = AssertionError("no value and no error")
    try:
        return trio.run(afn, *args, strict_exception_groups=True)
    except* CustosdError as group:
        # Not ended here: beside an error that is not ours that would be a group, too.
        error = _first(group)
    return end_on(error)


def say_if_forced(forced: bool) -> None:
    """End with FAILURE if a second signal cut the daemon's end short."""
    if forced:
        click.echo(
            "custosd: a second signal ended it at once; what was not stored yet is read again"
            " at the next start",
            err=True,
        )
        sys.exit(FAILURE)


def end_on(error: BaseException) -> NoReturn:
    """Tell the error and end with the code that says what would help."""
    click.echo(f"custosd: {error}", err=True)
    match error:
        case InvalidConfig():
            sys.exit(BAD_CONFIG)
        case StoreUnavailable() | StoreConflict() | MigrationBusy():
            sys.exit(TEMPORARY)
        case StoreError():
            sys.exit(UNAVAILABLE)
        case _:
            sys.exit(FAILURE)


def _first(group: BaseExceptionGroup[CustosdError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
