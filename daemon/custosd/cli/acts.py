"""The commands that ask the running daemon for something, over its control socket."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
import trio

from custosd.adapters.control_socket import (
    ControlDenied,
    ControlSocketError,
    DaemonNotRunning,
    ask,
    socket_path,
)
from custosd.cli.exit_codes import FAILURE, NO_PERMISSION, NOT_RUNNING, OK
from custosd.cli.settings import log_for_a_command, settings_to_reach_the_daemon
from custosd.cli.showing import Look, printable
from custosd.config.quantities import parse_duration
from custosd.config.settings import Config
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.holds import FLEET
from custosd.core.verdicts import SteeringKind

SYSTEM_SOCKET = Path("/run/custosd/control.sock")
"""Where the daemon of systemd/custosd.service listens (RuntimeDirectory=)."""

ANSWER_TIMEOUT_S = 45.0
"""Longer than the daemon gives itself for any act."""

LONGEST_TEXT = 60 * 1024
"""Bytes of a message that are read from standard input; a request has not much more."""

LINE_CHARS = 2_000
KEYS_SHOWN = 50

_GOOD = frozenset({ActOutcome.DONE, ActOutcome.WOULD_BE_DONE, ActOutcome.NOTHING_TO_DO})


def control_path(config: Config, environ: Mapping[str, str]) -> Path:
    """The socket of the user's own daemon, else of the system's.

    Only the system's daemon is told its folders by systemd; whoever asks from a shell has
    to know them.
    """
    own = socket_path(config.daemon.state_folder(environ), environ)
    told = (
        config.daemon.state_dir
        or environ.get("RUNTIME_DIRECTORY")
        or environ.get("STATE_DIRECTORY")
    )
    if told or own.exists() or not SYSTEM_SOCKET.exists():
        return own
    return SYSTEM_SOCKET


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}; write it as 90s, 20m, 1h30m or 2d", param, ctx)


class _Time(click.ParamType[str]):
    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        try:
            given = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no time; write it as 2026-01-31T18:00:00Z", param, ctx)
        # Without a zone the clock on the wall is meant, here and not where the daemon runs.
        return given.astimezone().isoformat()


@dataclass(frozen=True, slots=True)
class Door:
    """Where and how one command asks, as its options say."""

    socket: Path | None
    as_json: bool
    dry_run: bool = False

    def ask(
        self,
        act: Act,
        subject: str = "",
        text: str = "",
        instead: Callable[[Config], ActAnswer] | None = None,
        deadline_s: float | None = None,
        **arguments: str | float | None,
    ) -> None:
        """Ask the daemon, show its answer, and end with the code that fits.

        Arguments that are None, and a reason that is empty, are not sent. `instead` answers
        where no daemon runs and none was named. `deadline_s` is sent, and waited for.
        """
        arguments["deadline_s"] = deadline_s
        told = {
            name: value for name, value in arguments.items() if value is not None and value != ""
        }
        request = ActRequest(act, "", subject, text, told, self.dry_run)
        answer = answer_of(request, self.socket, instead)
        if self.as_json:
            click.echo(answer_json(answer))
        else:
            _show(act, answer)
        sys.exit(OK if answer.outcome in _GOOD else FAILURE)


def answer_of(
    request: ActRequest,
    socket: Path | None,
    instead: Callable[[Config], ActAnswer] | None = None,
) -> ActAnswer:
    """The daemon's answer over `socket`, else over the configured one.

    Where there is none the command ends, with the reason and the code that fits; `instead`
    answers where no daemon runs and none was named.
    """
    ctx = click.get_current_context()
    config = Config() if socket else settings_to_reach_the_daemon(ctx)
    path = socket or control_path(config, os.environ)
    log_for_a_command(ctx)
    try:
        return trio.run(ask, path, request, ANSWER_TIMEOUT_S)
    except ControlSocketError as error:
        if instead is not None and isinstance(error, DaemonNotRunning) and not socket:
            return instead(config)
        click.echo(printable(f"custosd: {error}", LINE_CHARS).plain, err=True)
        sys.exit(_code_of(error))


def answer_json(answer: ActAnswer) -> str:
    """An answer as programs read it."""
    form = {"outcome": answer.outcome, "message": answer.message, "detail": answer.detail}
    return json.dumps(form, indent=2)


_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
_socket = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The daemon's control socket; the configuration is not read then.",
)
_reason = click.option("--reason", default="", help="Why; it is told to everybody who asks.")
_for = click.option("--for", "for_s", type=_Duration(), help="For how long: 20m, 1h30m, 2d.")
_until = click.option("--until", type=_Time(), help="Until when: 2026-01-31T18:00:00Z.")
_agent = click.argument("agent")


def telling(command: Callable[..., None]) -> Callable[..., None]:
    """A command that asks and changes nothing; it is given its door."""

    @wraps(command)
    def asking(socket: Path | None, as_json: bool, dry_run: bool = False, **words: Any) -> None:
        command(Door(socket, as_json, dry_run), **words)

    return _socket(_json(asking))


def _changing(command: Callable[..., None]) -> Callable[..., None]:
    """A command that changes something, or with --dry-run only says what it would."""
    return _dry_run(telling(command))


# --- tell an agent something ----------------------------------------------------------------


@click.command("steer")
@_agent
@click.argument("text")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in SteeringKind]),
    default=SteeringKind.GUIDANCE.value,
    show_default=True,
    help="How strongly it is told.",
)
@click.option("--wait", "wait_s", type=_Duration(), help="Wait so long for it to arrive: 20s.")
@click.option("--key", default="", help="Of one key there is one message, however often asked.")
@_changing
def steer(door: Door, agent: str, text: str, kind: str, wait_s: float | None, key: str) -> None:
    """Tell AGENT a TEXT ("-": from standard input), whatever the mode of steering is.

    Exits with 1 where it is known that the text will not arrive.
    """
    if text == "-":
        text = _standard_input()
    if not text.strip():
        raise click.UsageError("there is nothing to tell: the text is empty")
    door.ask(Act.STEER, agent, text, kind=kind, wait_s=wait_s, key=key)


@click.command("approve")
@click.argument("id_", metavar="ID")
@_changing
def approve(door: Door, id_: str) -> None:
    """Let the proposed message ID go out."""
    door.ask(Act.APPROVE, id_)


@click.command("reject")
@click.argument("id_", metavar="ID")
@_changing
def reject(door: Door, id_: str) -> None:
    """Keep the proposed message ID from going out."""
    door.ask(Act.REJECT, id_)


# --- hold, restart, let go ------------------------------------------------------------------


@click.command("restart")
@_agent
@_reason
@_changing
def restart(door: Door, agent: str, reason: str) -> None:
    """Restart AGENT, also when it is well: it is stopped, started and told where it was."""
    door.ask(Act.RESTART, agent, reason=reason)


@click.command("quarantine")
@_agent
@_reason
@_changing
def quarantine(door: Door, agent: str, reason: str) -> None:
    """Watch AGENT, and neither restart nor steer it until it is released."""
    door.ask(Act.QUARANTINE, agent, reason=reason)


@click.command("release")
@_agent
@_reason
@_changing
def release(door: Door, agent: str, reason: str) -> None:
    """Let AGENT out of quarantine; its count of restarts begins anew."""
    door.ask(Act.RELEASE, agent, reason=reason)


@click.command("pause")
@click.argument("agent", metavar="AGENT|fleet")
@_for
@_until
@_reason
@_changing
def pause(door: Door, agent: str, for_s: float | None, until: str | None, reason: str) -> None:
    """Go on watching AGENT, or the whole fleet, and do nothing about it until it is resumed."""
    door.ask(Act.PAUSE, agent, for_s=for_s, until=until, reason=reason)


@click.command("resume")
@click.argument("agent", metavar="AGENT|fleet")
@_reason
@_changing
def resume(door: Door, agent: str, reason: str) -> None:
    """End a pause."""
    door.ask(Act.RESUME, agent, reason=reason)


@click.command("estop")
@_reason
@_changing
def estop(door: Door, reason: str) -> None:
    """Stop, at once, everything that the daemon does to agents; they themselves go on."""
    door.ask(Act.ESTOP, FLEET, reason=reason)


@click.command("thaw")
@_reason
@_changing
def thaw(door: Door, reason: str) -> None:
    """End an emergency stop."""
    door.ask(Act.THAW, FLEET, reason=reason)


# --- judge now ------------------------------------------------------------------------------


@click.command("emergency")
@click.argument("agents", metavar="AGENT...", nargs=-1, required=True)
@click.option(
    "--deadline",
    "deadline_s",
    type=_Duration(),
    default="60s",
    show_default=True,
    help="How long it may take: 1s to 5m. What is not there by then is named.",
)
@_reason
@_changing
def emergency(door: Door, agents: tuple[str, ...], deadline_s: float, reason: str) -> None:
    """Have AGENTs (100 at most) judged now, all at once, and the fleet looked at as a whole.

    Neither cadence nor "nothing has changed" counts, only the money does. What the verdicts ask
    for is proposed as the mode of steering says. Exits with 1 where anything is missing.

    \b
    JSON:           outcome (done, partly_done, ...) message detail
    detail:         analyses interventions fleet missing cost_usd took_s lines
    analyses:       agent run verdict at_utc steps standing phase alignment confidence
                    needs_steering summary evidence signals absent judge model
                    cost_usd latency_s
    interventions:  agent verdict kind reason message state (only_told, awaits_approval,
                    awaits_agreement, not_proposed, queued, ...) id waits_for
    missing:        agent (or part) why (deadline, judge_failed, no_transcript, no_money,
                    unknown_agent, store_unavailable, defect) words
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    door.ask(Act.EMERGENCY, "\n".join(agents), reason=reason, deadline_s=deadline_s)


@click.command("cycle")
@click.option("--once", is_flag=True, required=True, help="One cycle, now.")
@click.option(
    "--timeout",
    "deadline_s",
    type=_Duration(),
    default="60s",
    show_default=True,
    help="How long it may take: 1s to 5m. A sweep that is not done by then goes on.",
)
@_reason
@_changing
def cycle(door: Door, once: bool, deadline_s: float, reason: str) -> None:  # noqa: ARG001 - said
    """Have the guardian and the conductor sweep now, both at once, and wait for them.

    Who asks while a sweep is under way waits for the next one, together with everybody else who
    asked. Exits with 1 where a sweep failed or was not done in time.

    \b
    JSON:       outcome (done, partly_done, failed, ...) message detail
    detail:     guardian conductor missing cost_usd lines
    guardian:   agents due asked judged failed coverage cost_usd duration_s
    conductor:  status score coverage agents duplicates conflicts asked failed
                waiting cost_usd duration_s
    missing:    part why (deadline, failed)
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    door.ask(Act.CYCLE, reason=reason, deadline_s=deadline_s)


# --- notices --------------------------------------------------------------------------------


@click.command("silence")
@click.argument("subject", metavar="AGENT|CONCERN|fleet")
@click.option(
    "--for", "for_s", type=_Duration(), help="For how long: 20m, 2d; 0s ends it. [default: 1h]"
)
@_until
@_reason
@_changing
def silence(door: Door, subject: str, for_s: float | None, until: str | None, reason: str) -> None:
    """Send no notice about an agent, a concern or the fleet for a time."""
    door.ask(Act.SILENCE, subject, for_s=for_s, until=until, reason=reason)


@click.command("ack")
@click.argument("id_", metavar="CONCERN")
@_for
@_until
@_reason
@_changing
def ack(door: Door, id_: str, for_s: float | None, until: str | None, reason: str) -> None:
    """Say that a concern, or an incident, is known: there is no further notice of it."""
    door.ask(Act.ACK, id_, for_s=for_s, until=until, reason=reason)


@click.command("ack")
@click.argument("id_", metavar="ID")
@_for
@_until
@click.option("--note", default="", help="What is known of it; it is told to everybody who asks.")
@_changing
def ack_finding(door: Door, id_: str, for_s: float | None, until: str | None, note: str) -> None:
    """Say that finding ID (or the beginning of its id) is known: there is no further notice.

    It is known until it is over, or until there is more to it: another file, or much more
    confidence. Then people are told anew.
    """
    named = id_ if id_.startswith("finding:") else f"finding:{id_}"
    door.ask(Act.ACK, named, for_s=for_s, until=until, reason=note)


# --- questions, and the daemon itself -------------------------------------------------------


@click.command("why")
@_agent
@telling
def why(door: Door, agent: str) -> None:
    """Show the chain of evidence to AGENT's present state, with the settings that decide.

    \b
    JSON:      outcome message detail
    detail:    agent at_utc life evidence run settings restart holds concerns
               changes changes_absent lines
    evidence:  source value (as it counts now) said (when seen) detail age_s fresh_s
    settings:  key value place
    changes:   at_utc kind text, the latest first
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    door.ask(Act.WHY, agent)


@click.command("forecast")
@_agent
@telling
def forecast(door: Door, agent: str) -> None:
    """Say what will happen to AGENT, when, and unless what.

    \b
    JSON:      outcome message detail
    detail:    agent at_utc nothing_because outlooks lines
    outlooks:  what in_s (null: no known time) unless settings
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    door.ask(Act.FORECAST, agent)


@click.command("tasks")
@telling
def tasks(door: Door) -> None:
    """Show the daemon's tasks as a tree, and where each one waits.

    \b
    JSON:      outcome message detail
    detail:    lines

    SIGUSR2 has a daemon write the same to tasks.txt in its state folder.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    door.ask(Act.TASKS)


@click.command("reload")
@_changing
def reload(door: Door) -> None:
    """Have the daemon read its configuration again; if it is wrong, the old one stays."""
    door.ask(Act.RELOAD)


act_commands: tuple[click.Command, ...] = (
    steer,
    approve,
    reject,
    restart,
    quarantine,
    release,
    pause,
    resume,
    estop,
    thaw,
    silence,
    ack,
    why,
    forecast,
    tasks,
    reload,
    emergency,
    cycle,
)


def _standard_input() -> str:
    data = sys.stdin.buffer.read(LONGEST_TEXT + 1)
    if len(data) > LONGEST_TEXT:
        raise click.UsageError(f"a text has at most {LONGEST_TEXT} bytes")
    return data.decode("utf-8", "replace")


def _code_of(error: ControlSocketError) -> int:
    match error:
        case DaemonNotRunning():
            return NOT_RUNNING
        case ControlDenied():
            return NO_PERMISSION
        case _:
            return FAILURE


def _show(act: Act, answer: ActAnswer) -> None:
    if answer.outcome not in _GOOD:
        click.echo(printable(f"custosd: {answer.message}", LINE_CHARS).plain, err=True)
    if answer.outcome not in {*_GOOD, ActOutcome.PARTLY_DONE}:
        return
    look = Look()
    for line in _texts(answer.detail.get("lines")):
        heading = act is Act.WHY and not line.startswith(" ")
        look.line(printable(line, LINE_CHARS), style="bold" if heading else "")
    if "lines" not in answer.detail and answer.outcome in _GOOD:
        look.line(printable(answer.message, LINE_CHARS))
    for key in _texts(answer.detail.get("changed"))[:KEYS_SHOWN]:
        look.line("  ", printable(key))


def _texts(value: Any) -> list[str]:
    """The texts of a list; none where there is no list."""
    return [str(text) for text in value] if isinstance(value, list | tuple) else []
