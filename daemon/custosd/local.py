"""What the daemon acts with on this machine: controls, channels, notices, and its doors."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import structlog
import trio

from custosd.acting import Doors, Hands, Roster
from custosd.adapters.beats.admission import Admission
from custosd.adapters.beats.socket import BeatSocketSettings, receive_beats
from custosd.adapters.channels.command import CommandChannel, CommandChannelSettings
from custosd.adapters.channels.http import HttpChannel, HttpChannelSettings
from custosd.adapters.channels.inbox import InboxChannel, InboxSettings
from custosd.adapters.channels.tmux import TmuxChannel, TmuxChannelSettings
from custosd.adapters.control.command import CommandControl
from custosd.adapters.control.http import HttpControl
from custosd.adapters.control.systemd import SystemdControl
from custosd.adapters.control_socket import (
    ControlAccess,
    ControlLimits,
    serve_control,
    socket_path,
    user_names,
)
from custosd.adapters.notify.command import CommandNotifier
from custosd.adapters.notify.http import HttpNotifier
from custosd.adapters.notify.log import LogNotifier
from custosd.adapters.probes import LocalProber, Probed
from custosd.adapters.process_identity import has_ended, identify, own_name
from custosd.api.application import ApiPorts
from custosd.api.listening import ApiAddress
from custosd.api.serving import ApiLimits, serve_api
from custosd.config.acting import AlertSettings
from custosd.config.agents import AgentSettings
from custosd.config.secret import Secret
from custosd.config.settings import Config
from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError
from custosd.flow.supervise import Failure, FirstStart, RestartPolicy, supervise
from custosd.ports import (
    ActionStore,
    AgentControl,
    Notifier,
    Prober,
    ProcessWatch,
    SteeringChannel,
    TaskStore,
)

log = structlog.get_logger()

DOOR_RETRY_S = 30.0
"""How soon a door that could not be opened, or has failed, is tried again."""

BEATS_SOCKET = "beats.sock"
"""The name of the socket for beats, beside that for commands."""


def beats_path(state_folder: Path, environ: Mapping[str, str]) -> Path:
    """Where the daemon's socket for beats lies: beside the one for commands."""
    return socket_path(state_folder, environ).with_name(BEATS_SOCKET)


def local_hands(
    config: Config,
    environ: Mapping[str, str],
    actions: ActionStore,
    watch: ProcessWatch,
    now_utc: Callable[[], datetime],
    tasks: TaskStore | None = None,
) -> Hands:
    """Everything that the daemon acts with on this machine."""
    state = config.daemon.state_folder(environ)
    hand_overs = state.with_name(f"{state.name}-handover")
    if hand_overs.is_dir():
        # Agents that are started by hand come through here, too; they do not see who else does.
        with suppress(OSError):
            hand_overs.chmod(0o711)

    async def serve_doors(doors: Doors, task_status: trio.TaskStatus[None]) -> None:
        await open_doors(config, environ, doors, task_status)

    return Hands(
        actions,
        _prober,
        watch,
        lambda agent: control_of(agent, state, hand_overs, told_to(agent, config, environ)),
        lambda agent: channel_of(agent, now_utc),
        notifiers_of,
        serve_doors,
        identify,
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        own_name(config.daemon.name.replace(":", "_")),
        has_ended,
        tasks,
    )


def _prober(roster: Roster) -> Prober:
    def probed(agent: AgentId) -> Probed | None:
        settings = roster.agents.get(agent)
        if settings is None:
            return None
        return Probed(roster.controls.get(agent), settings.workspace, settings.transcripts)

    return LocalProber(probed)


def told_to(agent: AgentSettings, config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Where an agent finds the daemon and its letters: variables for its environment."""
    told = {}
    if config.doors.beats:
        told["CUSTOSD_SOCKET"] = str(beats_path(config.daemon.state_folder(environ), environ))
    if agent.channel == "inbox":
        told["CUSTOSD_INBOX"] = str(agent.inbox)
    return told


def control_of(
    agent: AgentSettings, state: Path, hand_overs: Path, told: Mapping[str, str]
) -> AgentControl | None:
    """How an agent is stopped and started, as its table says; None: it is not.

    `hand_overs` is where units look for what is handed over to them (see the template
    custosd-agent@.service): beside the state folder, for that one is closed to agents.
    """
    match agent.control:
        case "systemd":
            return SystemdControl(agent.unit, hand_overs, told=told)
        case "command":
            # Below the state folder: what was started must be known after a boot, too.
            return CommandControl(
                agent.id,
                agent.start,
                state / "agents",
                stop=agent.stop,
                workspace=agent.workspace,
                told=told,
            )
        case "http":
            return HttpControl(agent.control_url, token_file=agent.control_token_file)
        case "none":
            return None


def channel_of(agent: AgentSettings, now_utc: Callable[[], datetime]) -> SteeringChannel | None:
    """How an agent is told something, as its table says; None: it is not."""
    match agent.channel:
        case "inbox":
            assert agent.inbox is not None  # noqa: S101 - the configuration sees to it
            return InboxChannel(InboxSettings(agent.inbox), now_utc)
        case "http":
            file = agent.letter_token_file
            token = Secret(f"agent[{agent.id}].letter_token_file", file) if file else None
            return HttpChannel(HttpChannelSettings(agent.letter_url, token))
        case "command":
            return CommandChannel(CommandChannelSettings(agent.letter_command))
        case "tmux":
            return TmuxChannel(
                TmuxChannelSettings(agent.tmux_target, agent.tmux_programs, agent.tmux_socket)
            )
        case "none":
            return None


def notifiers_of(alerts: AlertSettings) -> Sequence[Notifier]:
    """Every way by which a person is told: the log, and what is configured beside it."""
    ways: list[Notifier] = [LogNotifier()]
    if alerts.command:
        ways.append(CommandNotifier(alerts.command))
    if alerts.url:
        ways.append(HttpNotifier(alerts.url, alerts.url_token_file))
    return ways


async def open_doors(
    config: Config,
    environ: Mapping[str, str],
    doors: Doors,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Open the configured doors and serve them until cancelled.

    Started: when each is open, or was told why it is not: then it is tried again and again,
    and the others serve meanwhile.
    """
    settings = config.doors
    state = config.daemon.state_folder(environ)
    control = socket_path(state, environ)
    control.parent.mkdir(parents=True, exist_ok=True)
    admission = Admission(doors.beats, doors.tokens, doors.uid_of)

    async def beats(*, task_status: trio.TaskStatus[None]) -> None:
        mode = 0o666 if settings.everybody else 0o660
        where = BeatSocketSettings(beats_path(state, environ), mode)
        with doors.pulses.watched("beats") as pulse:
            await receive_beats(where, admission, pulse, task_status=task_status)

    async def commands(*, task_status: trio.TaskStatus[None]) -> None:
        access, limits = ControlAccess(), ControlLimits()
        await serve_control(
            control, doors.acts, access, limits, user_names(), task_status=task_status
        )

    async def http(*, task_status: trio.TaskStatus[list[str]]) -> None:
        ports = ApiPorts(
            admission,
            doors.acts,
            doors.tokens,
            doors.ready,
            metrics=doors.metrics,
            metrics_open=settings.metrics_open,
            coordination=doors.coordination,
            tasks=doors.tasks,
            agents=doors.agents,
            sync=doors.sync,
            claims_per_agent=settings.claims_per_agent,
        )
        limits = ApiLimits(connections=settings.connections)
        where, stopping = ApiAddress(settings.listen), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_at_the_end, stopping)
            # Requests that are under way are answered, for as long as a drain may take.
            with trio.CancelScope(shield=True):
                await serve_api(where, ports, limits, stopping, task_status=task_status)
            nursery.cancel_scope.cancel("closed")

    async with trio.open_nursery() as nursery:
        for wanted, name, serve in (
            (settings.control, "control", commands),
            (settings.beats, "beats", beats),
            (settings.listen, "http", http),
        ):
            if wanted:
                await nursery.start(_keep_open, name, serve)
        task_status.started()
        await trio.sleep_forever()


async def _keep_open(
    name: str,
    serve: Callable[..., Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Serve one door, again and again where it fails: no other one closes because of it."""
    first = FirstStart(task_status)

    async def door(status: trio.TaskStatus[None]) -> None:
        await serve(task_status=status)

    def failed(failure: Failure) -> None:
        if failure.delay_s is not None:
            error = str(_first_of(failure.error))
            log.error("door.failed", door=name, error=error, again_in_s=failure.delay_s)
            first.started()

    await supervise(name, door, _DOORS, failed, task_status=first)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(_may_pass, error.exceptions))
    return isinstance(error, OSError | CustosdError)


_DOORS = RestartPolicy(DOOR_RETRY_S, 1.0, DOOR_RETRY_S, most=math.inf, restart_on=_may_pass)


async def _set_at_the_end(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
