"""The command that sends one heartbeat, for agents that are shell scripts."""

import os
import sys
from pathlib import Path

import click

from custosd.cli.acts import control_path
from custosd.cli.exit_codes import FAILURE, TEMPORARY, USAGE
from custosd.cli.settings import settings_to_reach_the_daemon
from custosd.cli.showing import printable
from custosd.client import SYSTEM_SOCKET, BeatRefused, Client, ClientError, NotDelivered
from custosd.config.quantities import parse_duration
from custosd.core.beats import BeatStatus, WaitKind

_LINE_CHARS = 500


class _Seconds(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}; write it as 90s, 20m or 1h30m", param, ctx)


class _Metric(click.ParamType[tuple[str, float]]):
    name = "name=number"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, _, number = str(value).partition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r}: write it as tests_passed=31", param, ctx)


@click.command("beat")
@click.argument("agent", required=False)
@click.option("--epoch", type=click.IntRange(0), help="Which incarnation. [CUSTOSD_EPOCH, or 0]")
@click.option(
    "--status",
    type=click.Choice([status.value for status in BeatStatus]),
    default=BeatStatus.RUNNING.value,
    show_default=True,
    help="What the agent is doing.",
)
@click.option("--progress", help="Anything that changes when work was done.")
@click.option("--task", help="The task at hand.")
@click.option("--metric", "metrics", type=_Metric(), multiple=True, help="A plain number.")
@click.option(
    "--wait",
    "wait_for",
    type=click.Choice([kind.value for kind in WaitKind]),
    help="Declare a wait; say with --expected how long it will take.",
)
@click.option("--expected", "expected_s", type=_Seconds(), help="How long the wait will take.")
@click.option("--interval", "interval_s", type=_Seconds(), help="When the next beat will come.")
@click.option("--socket", type=click.Path(), help="The socket for beats. [CUSTOSD_SOCKET]")
@click.option("--url", help="The daemon's HTTP side, instead of the socket. [CUSTOSD_URL]")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the token. [CUSTOSD_TOKEN, CUSTOSD_TOKEN_FILE]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=_Seconds(),
    default="2s",
    show_default=True,
    help="How long to try.",
)
@click.pass_context
def beat(
    ctx: click.Context,
    /,
    agent: str | None,
    epoch: int | None,
    socket: str | None,
    url: str | None,
    token_file: Path | None,
    timeout_s: float,
    wait_for: str | None,
    expected_s: float | None,
    interval_s: float | None,
    metrics: tuple[tuple[str, float], ...],
    **said: str | None,
) -> None:
    """Send one beat for AGENT (or CUSTOSD_AGENT), and wait for the answer.

    Exits with 0 if it was let in, 1 if it was refused, 75 if it did not arrive or nobody
    answered. Says nothing when all is well.
    """
    if (wait_for is None) != (expected_s is None):
        raise click.UsageError("a wait is declared with --wait and --expected together")
    if not socket and not url and not {"CUSTOSD_SOCKET", "CUSTOSD_URL"} & os.environ.keys():
        socket = str(
            control_path(settings_to_reach_the_daemon(ctx), os.environ).with_name(
                Path(SYSTEM_SOCKET).name
            )
        )
    token = token_file.read_text("utf-8").strip() if token_file else None
    client = Client(agent, epoch, socket, url, token, timeout_s=timeout_s, strict=True)
    wait = None if wait_for is None or expected_s is None else (wait_for, expected_s)
    try:
        client.beat(**said, metrics=dict(metrics), wait=wait, interval_s=interval_s)
    except ClientError as error:
        click.echo(printable(f"custosd: {error}", _LINE_CHARS).plain, err=True)
        sys.exit(_code_of(error))


def _code_of(error: ClientError) -> int:
    match error:
        case BeatRefused():
            return FAILURE
        case NotDelivered():
            return TEMPORARY
        case _:
            return USAGE
