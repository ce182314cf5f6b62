"""Stops and starts an agent by a command, where there is no service manager to do it.

The command becomes the agent's first process, in a session of its own, nobody's child: it
outlives the daemon. What was started is noted in a file, so that a daemon after this one
knows it, too. Its output goes nowhere: it has its transcript, or writes its own log.

    FOLDER/AGENT/process.json    the key of the last start, and its process
    FOLDER/AGENT/started         the key again, written by that process when it was let go

Laws:

1. A signal goes only to the very process that was started (pid and start), and to its group;
   `kill` goes to all that has inherited its environment, too.
2. Of one key one process is started, whenever the daemon is cut off: a process is let go only
   after it was noted, and leaves a mark when it is.
3. A process of a service's cgroup ends with the service, whatever its session. So a daemon
   that runs as a unit starts nothing here: agents need units of their own then.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from custosd.adapters.control.descent import ended, processes_with, send, sweep
from custosd.adapters.control.handover import KEY, place_of, replace, write_hand_over
from custosd.adapters.process_identity import identify, is_gone
from custosd.adapters.programs import (
    ProgramAbsent,
    ProgramLate,
    ProgramStarved,
    plain_environment,
    run_program,
)
from custosd.core.errors import ControlError
from custosd.core.evidence import Observation, ProcessIdentity, Source, Value
from custosd.ports import AgentControl, HandOver

NEVER_STARTED = "never_started"
"""What is seen where nothing was ever started: nobody knows whether the agent runs."""

_SHELL = "/bin/sh"
_NAME = "custosd-launcher"
_LONGEST_LINE = 64
_DYING_S = 2.0

_LAUNCHER = """\
echo $$
# No line: whoever started this has ended before the id was noted. Then nothing is started.
read -r go || exit 0
echo "$CUSTOSD_RESTART" > "$1" || exit 0
shift
# When memory runs out, the agents go before their guardian, whose rank this process has.
{ echo 0 > /proc/self/oom_score_adj; } 2> /dev/null
# That stdout is closed tells that the mark was made.
exec < /dev/null > /dev/null
exec "$@"
"""
"""Becomes the agent's first process, once it may. Tells its id, and waits for a line."""


@dataclass(frozen=True, slots=True)
class _Note:
    """What was started last, and by which key."""

    key: str
    process: ProcessIdentity


class CommandControl(AgentControl):
    """One agent that `start` becomes; `folder` holds hand-overs and notes of all of them.

    `folder` must outlive a restart of the daemon. `workspace` is where the agent finds
    itself; `told` is what it finds in its environment besides. `within_unit`: start it even
    where it would end with the daemon's own unit.
    """

    def __init__(
        self,
        agent: str,
        start: Sequence[str],
        folder: Path,
        *,
        stop: Sequence[str] = (),
        workspace: Path | None = None,
        timeout_s: float = 20.0,
        within_unit: bool = False,
        told: Mapping[str, str] | None = None,
    ) -> None:
        if not start:
            raise ValueError("a command control needs a program: start is empty")
        self._agent = agent
        self._start = tuple(start)
        self._stop = tuple(stop)
        self._folder = folder
        self._place = place_of(folder, agent)
        self._workspace = workspace
        self._timeout_s = timeout_s
        self._within_unit = within_unit
        self._told = told

    async def sight(self) -> Observation:
        """See the port.

        Where nothing was started here, a process that somebody else started is unknown; none
        at all is BAD, "never_started".
        """
        return await trio.to_thread.run_sync(self._seen)

    async def interrupt(self) -> None:
        """See the port: SIGINT to the process group."""
        await self._signal(signal.SIGINT)

    async def stop(self) -> None:
        """See the port: the configured command, else SIGTERM to the process group."""
        if not self._stop:
            await self._signal(signal.SIGTERM)
            return
        try:
            ended = await run_program(
                self._stop,
                environment=plain_environment({"CUSTOSD_AGENT": self._agent}),
                timeout_s=self._timeout_s,
                most_bytes=0,
            )
        except ProgramStarved as error:
            raise ControlError("starved", str(error)) from error
        except ProgramAbsent as error:
            raise ControlError("no_such_command", str(error)) from error
        except ProgramLate as error:
            raise ControlError("took_too_long", str(error)) from error
        if ended.status != 0:
            raise ControlError("stop_failed", f"{self._stop[0]} ended with {ended.status}")

    async def kill(self) -> None:
        """See the port: SIGKILL to the process group, and to all that came from it."""
        await self._signal(signal.SIGKILL)
        if (note := self._noted()) is not None:
            await trio.to_thread.run_sync(sweep, KEY, note.key)

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port. Raises `ControlError` "still_running" beside another incarnation."""
        if not self._within_unit and (unit := own_service()):
            raise ControlError(
                "in_daemons_unit",
                f"{self._agent} would end with {unit}: use control = systemd, with"
                " custosd-agent@.service",
            )
        if shutil.which(self._start[0], path=plain_environment()["PATH"]) is None:
            raise ControlError("no_such_command", f"{self._start[0]} is no program: check start")
        if self._workspace is not None and not await trio.Path(self._workspace).is_dir():
            raise ControlError(
                "no_workspace", f"{self._agent} cannot begin: {self._workspace} is no folder"
            )
        note = self._noted()
        if note is not None and note.key == key:
            await self._end_unless_let_go(note)
            if self._let_go() == key:
                return
        elif note is not None and not is_gone(note.process):
            words = f"process {note.process.pid} of {self._agent} has not ended: stop it first"
            raise ControlError("still_running", words)
        variables = await write_hand_over(self._folder, key, hand_over, told=self._told)
        try:
            with trio.fail_after(self._timeout_s):
                await self._launch(key, variables)
        except trio.TooSlowError as error:
            raise ControlError("took_too_long", f"{self._start[0]} could not be started") from error
        except OSError as error:
            raise ControlError("not_started", f"{self._start[0]}: {error}") from error

    # --- what was started --------------------------------------------------------------------

    def _noted(self) -> _Note | None:
        try:
            told = json.loads((self._place / "process.json").read_text())
            process = ProcessIdentity(
                int(told["pid"]), int(told["started_ticks"]), str(told["boot_id"])
            )
            return _Note(str(told["key"]), process)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _let_go(self) -> str:
        """The key of the last start that came as far as its program."""
        try:
            return (self._place / "started").read_text().strip()
        except (OSError, ValueError):
            return ""

    def _seen(self) -> Observation:
        note = self._noted()
        if note is None:
            if any(processes_with("CUSTOSD_AGENT", self._agent)):
                return Observation(Source.PROCESS, Value.UNKNOWN, "started_elsewhere")
            return Observation(Source.PROCESS, Value.BAD, NEVER_STARTED)
        match is_gone(note.process):
            case True:
                told = (Value.BAD, "process_gone")
            case False:
                told = (Value.OK, "process_there")
            case _:
                told = (Value.UNKNOWN, "process_unseen")
        return Observation(Source.PROCESS, *told, process=note.process)

    async def _end_unless_let_go(self, note: _Note) -> None:
        """End the launcher of a start that was cut off; it ends by itself, but in its own time."""
        if self._let_go() == note.key:
            return
        send(note.process, signal.SIGKILL)
        with trio.move_on_after(_DYING_S):
            await ended(note.process)
            return
        raise ControlError("still_running", f"process {note.process.pid} can not be ended")

    async def _signal(self, number: signal.Signals) -> None:
        await trio.lowlevel.checkpoint()
        if (note := self._noted()) is not None:
            send(note.process, number, group=True)

    # --- starting ------------------------------------------------------------------------------

    async def _launch(self, key: str, variables: dict[str, str]) -> None:
        launcher = self._popen(variables)
        async with _stream(launcher.stdin) as tell, _stream(launcher.stdout) as told:
            # It has forked the process that matters; the pipes say when that has come so far.
            line = await _first_line(told)
            await trio.to_thread.run_sync(launcher.wait)
            process = identify(int(line)) if line.isdecimal() else None
            if process is None:
                raise ControlError("not_started", f"{_SHELL} or setsid could not be run")
            form = {
                "key": key,
                "pid": process.pid,
                "started_ticks": process.started_ticks,
                "boot_id": process.boot_id,
            }
            file = self._place / "process.json"
            await trio.to_thread.run_sync(replace, file, json.dumps(form).encode())
            try:
                await tell.send_all(b"go\n")
                while await told.receive_some(_LONGEST_LINE):
                    pass
            except trio.BrokenResourceError:
                pass  # it has ended; the mark tells how far it came
        if self._let_go() != key:
            raise ControlError(
                "not_started", f"the launcher of {self._agent} ended before it began"
            )

    def _popen(self, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        setsid = shutil.which("setsid") or "setsid"
        return subprocess.Popen(  # noqa: S603 - the command that the configuration names
            [
                setsid,
                "--fork",
                _SHELL,
                "-c",
                _LAUNCHER,
                _NAME,
                self._place / "started",
                *self._start,
            ],
            env=plain_environment(variables),
            cwd=self._workspace or "/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )


def own_service(cgroups: Path = Path("/proc/self/cgroup")) -> str:
    """The service whose cgroup this process is in, "" where it is in none.

    A login session, a container and a terminal have scopes, which end by themselves.
    """
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, _, where = line.partition(":")
        controllers, _, path = where.partition(":")
        if controllers in ("", "name=systemd") and path.endswith(".service"):
            return path.rpartition("/")[2]
    return ""


def _stream(pipe: IO[bytes] | None) -> trio.lowlevel.FdStream:
    # trio's stream owns its descriptor, as the file object of Popen does: each gets its own.
    assert pipe is not None  # noqa: S101 - both are pipes
    with pipe:
        return trio.lowlevel.FdStream(os.dup(pipe.fileno()))


async def _first_line(stream: trio.lowlevel.FdStream) -> str:
    said = b""
    while b"\n" not in said and len(said) < _LONGEST_LINE:
        chunk = await stream.receive_some(_LONGEST_LINE)
        if not chunk:
            break
        said += chunk
    return said.partition(b"\n")[0].decode("ascii", "replace")
