"""The commands that run something: the daemon, the demonstration, the migrations."""

import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import click

from custosd.adapters.postgres.migrations import migrate as apply
from custosd.adapters.postgres.migrations import pending
from custosd.adapters.systemd import ServiceManager
from custosd.app import open_postgres, run_daemon
from custosd.cli.exit_codes import FAILURE
from custosd.cli.settings import log_for_a_command, log_for_a_daemon, run_to_the_end, settings
from custosd.cli.showing import DemonstrationScreen
from custosd.config.settings import Config
from custosd.demo.fleet import demonstration_fleet
from custosd.flow.clock import wall_clock
from custosd.flow.stopping import open_stopping
from custosd.logs import configure_logging


@click.command("run")
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run the daemon in the foreground, until SIGTERM or SIGINT; a second one ends it at once."""
    config = settings(ctx)
    log_for_a_daemon(ctx, config)
    manager = ServiceManager()
    run_to_the_end(_run, config, manager)


async def _run(config: Config, manager: ServiceManager) -> None:
    async with open_stopping() as stopping:
        await run_daemon(config, os.environ, manager, stopping.stop, wall_clock())


@click.command("demo")
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Run the daemon with a demonstration fleet: nine small agents, each with its own trouble.

    Meant for config/demo.toml. The log goes to a file, the screen shows who stands how.
    """
    config = settings(ctx)
    folder = config.daemon.state_folder(os.environ)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_file = folder / "custosd.log"
    with log_file.open("w", encoding="utf-8") as stream:
        configure_logging("json", ctx.obj["log_level"] or config.log.level, stream=stream)
        run_to_the_end(_demo, config, folder, log_file, ctx.obj["config"])


async def _demo(config: Config, folder: Path, log_file: Path, files: list[str]) -> None:
    screen = DemonstrationScreen(log_file, files)
    screen.greet()
    async with AsyncExitStack() as stack:
        stopping = await stack.enter_async_context(open_stopping())
        await stack.enter_async_context(demonstration_fleet(folder / "fleet"))
        await run_daemon(
            config, os.environ, ServiceManager(), stopping.stop, wall_clock(), screen.swept
        )
        screen.part()


@click.command("migrate")
@click.option("--check", is_flag=True, help="Only say what would be done; exits with 1 if any.")
@click.pass_context
def migrate(ctx: click.Context, *, check: bool) -> None:
    """Bring the database's schema up to this version. `custosd run` does so by itself."""
    config = settings(ctx)
    log_for_a_command(ctx)
    left = run_to_the_end(_migrate, config, check)
    if check and left:
        sys.exit(FAILURE)


async def _migrate(config: Config, check: bool) -> int:
    # The private server of a running daemon has its schema; of none, it must be started.
    async with open_postgres(config, os.environ) as database:
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
