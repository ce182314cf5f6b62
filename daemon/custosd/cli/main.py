"""The command line: `custosd COMMAND`.

A command's module is imported when that command is asked for: a beat out of an agent's shell
does not read all of the daemon first.
"""

from collections.abc import Mapping
from importlib import import_module

import click

from custosd import __version__

COMMANDS: Mapping[str, str] = {
    "run": "run:run",
    "demo": "demo:demo",
    "migrate": "run:migrate",
    "status": "agents:status",
    "agents": "agents:agents",
    "analyze": "analyze:analyze",
    "beat": "beat:beat",
    "token": "token:token",
    "sync": "sync:sync",
    "task": "task:task",
    "drill": "drill:drill",
    "steer": "acts:steer",
    "approve": "acts:approve",
    "reject": "acts:reject",
    "restart": "acts:restart",
    "quarantine": "acts:quarantine",
    "release": "acts:release",
    "pause": "acts:pause",
    "resume": "acts:resume",
    "estop": "acts:estop",
    "thaw": "acts:thaw",
    "silence": "acts:silence",
    "ack": "acts:ack",
    "why": "acts:why",
    "forecast": "acts:forecast",
    "tasks": "acts:tasks",
    "budget": "budget:budget",
    "reload": "acts:reload",
    "emergency": "acts:emergency",
    "cycle": "acts:cycle",
    "conductor": "fleet:conductor",
    "findings": "fleet:findings",
    "claims": "fleet:claims",
    "check-config": "config:check_config",
    "config": "config:config_group",
}
"""Where each command is: a module of this package, and its name there."""


class _OnDemand(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, name = COMMANDS[cmd_name].partition(":")
            self.add_command(getattr(import_module(f"custosd.cli.{module}"), name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_OnDemand, context_settings={"help_option_names": ["-h", "--help"]})
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
