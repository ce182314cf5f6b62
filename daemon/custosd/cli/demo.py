"""`custosd demo`: the daemon with a fleet of small agents, and a screen that shows both."""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
import trio
from rich.rule import Rule

from custosd.adapters.postgres.data_directory import only_user, wait_for_orphan
from custosd.adapters.systemd import ServiceManager
from custosd.app import run_daemon
from custosd.cli.exit_codes import USAGE
from custosd.cli.settings import read_settings, run_to_the_end, say_if_forced
from custosd.cli.showing import Look, agent_table
from custosd.config.reading import Reading
from custosd.config.settings import Config
from custosd.core.agents import AgentId
from custosd.core.facts import SweepFinished
from custosd.core.verdicts import Standing
from custosd.core.view import FleetView
from custosd.demo.fleet import SHOWN, demonstration_fleet
from custosd.flow.clock import wall_clock
from custosd.flow.stopping import open_stopping
from custosd.logs import configure_logging

HINT_AFTER_S = 60.0
"""By now the newcomer is told what to look at next, whatever has shown by then."""

ORPHAN_S = 20.0
"""How long the server of a demonstration that was killed may take to end."""


@click.command("demo")
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Run the daemon with a demonstration fleet: nine small agents, each with its own trouble.

    Needs a state folder of its own, as config/demo.toml names it: what an earlier
    demonstration left there is removed. The log goes to a file, the screen shows who
    stands how.
    """
    reading = read_settings(ctx)
    config = reading.config
    folder = config.daemon.state_folder(os.environ)
    _refuse_what_is_no_demonstration(config, folder)
    # What marks the folder as a demonstration's.
    (folder / "fleet").mkdir(parents=True, exist_ok=True, mode=0o700)
    log_file = folder / "custosd.log"
    with log_file.open("w", encoding="utf-8") as stream:
        configure_logging("json", ctx.obj["log_level"] or config.log.level, stream=stream)
        say_if_forced(run_to_the_end(_demo, reading, folder, log_file, ctx.obj["config"]))


def _refuse_what_is_no_demonstration(config: Config, folder: Path) -> None:
    ours = not folder.is_dir() or not any(folder.iterdir()) or (folder / "fleet").is_dir()
    if ours and not config.store.dsn and not config.store.embedded.data_dir:
        return
    click.echo(
        f"custosd: {folder} is the state of a real daemon, and a demonstration would mix its"
        " agents in; give it a folder and a private server of its own, as config/demo.toml does",
        err=True,
    )
    sys.exit(USAGE)


async def _demo(reading: Reading, folder: Path, log_file: Path, files: Sequence[str]) -> bool:
    screen = DemonstrationScreen(log_file, files)
    await _forget_earlier(reading.config, folder)
    screen.greet()
    async with AsyncExitStack() as stack:
        stopping = await stack.enter_async_context(open_stopping())
        await stack.enter_async_context(demonstration_fleet(folder / "fleet"))
        await run_daemon(
            reading, os.environ, ServiceManager(), stopping.stop, wall_clock(), screen.swept
        )
    screen.part()
    return stopping.forced


async def _forget_earlier(config: Config, folder: Path) -> None:
    """Remove what the last demonstration remembered: its agents would stand beside the new."""
    data_dir = config.store.embedded.data_folder(folder)
    with only_user(data_dir):
        await wait_for_orphan(data_dir, ORPHAN_S)
        await trio.to_thread.run_sync(shutil.rmtree, data_dir, True)


class DemonstrationScreen:
    """What a newcomer sees: who is there, each change of standing, and where to look next."""

    def __init__(self, log_file: Path, config_files: Sequence[str]) -> None:
        self._look = Look()
        self._log_file = log_file
        self._program = _as_called()
        self._command = " ".join([self._program, *(f"--config {file}" for file in config_files)])
        self._held: dict[AgentId, Standing] = {}
        self._started_at = trio.current_time()
        self._hinted = False

    def greet(self) -> None:
        """Before anything runs."""
        for line in (
            "custosd starts its private PostgreSQL and nine small agents,",
            "each with a trouble of its own, but for one. They really work, and write",
            "transcripts; custosd reads those, and judges. Ctrl-C ends it all.",
        ):
            self._look.line(line, style="bold")

    def swept(self, _sweep: SweepFinished, view: FleetView) -> None:
        """After each sweep: the table, if anybody stands differently now."""
        held = {agent.ref.agent: agent.standing for agent in view.agents.values()}
        after_s = trio.current_time() - self._started_at
        if held and held != self._held:
            self._held = held
            console = self._look.console
            console.print()
            console.print(Rule(f"after {after_s:.0f} seconds", align="left", style="dim"))
            console.print(agent_table(view.agents.values(), datetime.now(UTC), console.width))
        if not self._hinted and (held == SHOWN or after_s > HINT_AFTER_S):
            self._hinted = True
            self._hint(view)

    def _hint(self, view: FleetView) -> None:
        if self._held == SHOWN:
            self._look.line("\nEach of them has shown by now how it is.", style="bold")
        self._look.line("\nLook at next, in another terminal:", style="bold")
        looks = [(f"{self._command} status", "is it running, and how does the fleet stand")]
        for agent in view.agents.values():
            if agent.standing is Standing.STUCK:
                show = f"{self._command} agents show {agent.ref.agent}"
                analyze = f"{self._program} analyze {agent.path}"
                looks += [(show, "one agent, and the evidence")]
                looks += [(analyze, "any transcript file, without a daemon")]
                break
        looks += [(f"tail -f {self._log_file}", "the structured log, one line an outcome")]
        for command, meaning in looks:
            self._look.line(f"  {command}")
            self._look.line(f"      {meaning}", style="dim")

    def part(self) -> None:
        """After everything has ended."""
        self._look.line("\nThe agents and the daemon have ended.", style="bold")


def _as_called() -> str:
    """How this program was started, so that a command can be copied."""
    called = Path(sys.argv[0])
    return f"{sys.executable} -m custosd" if called.name == "__main__.py" else sys.argv[0]
