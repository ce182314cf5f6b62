"""The command line: `custosd COMMAND`."""

import click

from custosd import __version__
from custosd.cli.acts import act_commands
from custosd.cli.agents import agents, status
from custosd.cli.analyze import analyze
from custosd.cli.beat import beat
from custosd.cli.config import config_commands
from custosd.cli.demo import demo
from custosd.cli.drill import drill
from custosd.cli.fleet import fleet_commands
from custosd.cli.run import migrate, run
from custosd.cli.task import task
from custosd.cli.token import token


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_files",
    multiple=True,
    metavar="FILE",
    help="A configuration file; may be given several times, later ones win. Without it:"
    " $CUSTOSD_CONFIG, else /etc/custosd/custosd.toml and conf.d, else the defaults.",
)
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="How to log.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What to log.",
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.pass_context
def main(
    ctx: click.Context,
    config_files: tuple[str, ...],
    log_format: str | None,
    log_level: str | None,
) -> None:
    """Watch fleets of AI agents, judge where each one is going, and act."""
    ctx.obj = {"config": list(config_files), "log_format": log_format, "log_level": log_level}


for command in (
    run,
    demo,
    migrate,
    status,
    agents,
    analyze,
    beat,
    token,
    task,
    drill,
    *act_commands,
    *fleet_commands,
    *config_commands,
):
    main.add_command(command)
