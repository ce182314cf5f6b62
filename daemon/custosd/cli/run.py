"""The commands of the daemon itself: run it, bring its database up to date."""

import faulthandler
import os
import sys
from collections.abc import Callable
from functools import partial

import click

from custosd.adapters.postgres.migrations import migrate as apply
from custosd.adapters.postgres.migrations import pending
from custosd.adapters.postgres.opening import open_postgres
from custosd.adapters.postgres.served import is_served
from custosd.adapters.systemd import ServiceManager
from custosd.app import run_daemon
from custosd.cli.exit_codes import FAILURE
from custosd.cli.settings import (
    log_for_a_command,
    log_for_a_daemon,
    read_again,
    read_settings,
    run_to_the_end,
    say_if_forced,
    settings,
)
from custosd.config.reading import Reading
from custosd.config.settings import Config
from custosd.flow.clock import wall_clock
from custosd.flow.stopping import open_stopping


@click.command("run")
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run the daemon in the foreground, until SIGTERM or SIGINT; a second one ends it at once.

    SIGHUP has it read its configuration again: validated first, then taken up as a whole.
    SIGUSR2 has it write the tree of its tasks to tasks.txt in its state folder.

    Exits with 0 when all that was under way is stored, 1 when a second signal cut that
    short, 69 if something needed is not there, 75 if it may be there later, 78 if the
    configuration is wrong.
    """
    reading = read_settings(ctx)
    log_for_a_daemon(ctx, reading.config)
    if sys.__stderr__ is not None:
        # A service manager that finds us hanging sends SIGABRT: then every thread says where.
        faulthandler.enable(sys.__stderr__)
    reread = partial(read_again, ctx)
    say_if_forced(run_to_the_end(_run, reading, ServiceManager(), reread))


async def _run(reading: Reading, manager: ServiceManager, reread: Callable[[], Reading]) -> bool:
    async with open_stopping() as stopping:
        await run_daemon(
            reading,
            os.environ,
            manager,
            stopping.stop,
            wall_clock(),
            reread=reread,
            hangups=stopping.hangups,
            dumps=stopping.user2,
        )
    return stopping.forced


@click.command("migrate")
@click.option("--check", is_flag=True, help="Only say what would be done; exits with 1 if any.")
@click.pass_context
def migrate(ctx: click.Context, *, check: bool) -> None:
    """Bring the database's schema up to this version. `custosd run` does so by itself.

    Beside a running daemon its private server is used; where none runs, one is started.
    """
    config = settings(ctx)
    log_for_a_command(ctx)
    left = run_to_the_end(_migrate, config, check)
    if check and left:
        sys.exit(FAILURE)


async def _migrate(config: Config, check: bool) -> int:
    folder = config.store.embedded.data_folder(config.daemon.state_folder(os.environ))
    served = not config.store.dsn and is_served(folder)
    async with open_postgres(config, os.environ, serve=not served) as database:
        if check:
            waiting = await pending(database)
            for migration in waiting:
                click.echo(f"pending  {migration.file_name}")
            click.echo(f"{len(waiting)} pending" if waiting else "the schema is up to date")
            return len(waiting)
        done = await apply(database)
        for applied in done:
            click.echo(f"applied  {applied.number:03} {applied.name}")
        click.echo(f"{len(done)} applied" if done else "the schema is up to date")
        return 0
