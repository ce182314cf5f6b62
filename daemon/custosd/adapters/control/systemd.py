"""Stops and starts an agent that runs as a unit of systemd.

It is done by `systemctl`, not over the bus: it is on every such machine, asks polkit like
everybody else, and a look at a unit is rare (the kernel tells of deaths by itself).

Laws:

1. A unit that somebody stopped, or that ended by itself without a fault, has ended: it is not
   dead. Only what systemd calls failed is.
2. Agents live in cgroups of their own, and what is killed is the whole of one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from custosd.adapters.control.handover import read_key, write_hand_over
from custosd.adapters.process_identity import identify
from custosd.adapters.programs import (
    Finished,
    ProgramAbsent,
    ProgramLate,
    ProgramStarved,
    plain_environment,
    run_program,
)
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, Source, Value
from custosd.ports import HandOver

_PROPERTIES = "LoadState,ActiveState,SubState,MainPID,ExecMainCode,ExecMainStatus,Result"

NOT_THERE = 5
"""systemctl's exit code for a unit that is not loaded."""


class SystemdControl:
    """`ports.AgentControl` of one unit. `folder` is where hand-overs are written.

    `owner` is the user id that the unit runs as, if the files should be given to it.
    """

    def __init__(
        self,
        unit: str,
        folder: Path,
        *,
        timeout_s: float = 20.0,
        owner: int | None = None,
        systemctl: Sequence[str] = ("systemctl",),
    ) -> None:
        self._unit = unit
        self._folder = folder
        self._timeout_s = timeout_s
        self._owner = owner
        self._systemctl = tuple(systemctl)

    async def sight(self) -> Observation:
        """See the port. `unit_inactive` is an end without a fault."""
        try:
            told = await self._run("show", f"--property={_PROPERTIES}", self._unit)
        except ControlError as error:
            return Observation(Source.UNIT, Value.UNKNOWN, error.reason)
        if told.status != 0:
            return Observation(Source.UNIT, Value.UNKNOWN, "systemctl_failed")
        text = told.stdout.decode("utf-8", "replace")
        return seen(dict(line.partition("=")[::2] for line in text.splitlines()))

    async def interrupt(self) -> None:
        """See the port: SIGINT to the main process."""
        await self._do("kill", "--kill-whom=main", "--signal=SIGINT", self._unit)

    async def stop(self) -> None:
        """See the port."""
        await self._do("stop", "--no-block", self._unit)

    async def kill(self) -> None:
        """See the port: SIGKILL to every process of the unit."""
        await self._do("kill", "--kill-whom=all", "--signal=SIGKILL", self._unit)

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port. A unit that runs with this key already is left as it is."""
        known = read_key(self._folder, hand_over.agent) == key
        if known and (await self.sight()).value is Value.OK:
            return
        await write_hand_over(self._folder, key, hand_over, self._owner)
        # A unit that failed too often is not started again until that is forgotten.
        await self._run("reset-failed", self._unit)
        await self._do("start", self._unit)

    async def _do(self, *args: str) -> None:
        told = await self._run(*args)
        if told.status == 0:
            return
        words = " ".join(told.stderr.decode("utf-8", "replace").split())[:300]
        verb = args[0]
        if verb == "kill" and ("not loaded" in words or "No such process" in words):
            return  # there is nobody left to be killed
        if told.status == NOT_THERE or "not found" in words:
            raise ControlError("no_such_unit", f"{self._unit}: {words}")
        denied = "uthentication" in words or "denied" in words
        remedy = "; see systemd/50-custosd.rules for the rule of polkit" if denied else ""
        reason = "not_allowed" if denied else f"{verb}_failed"
        raise ControlError(reason, f"systemctl {verb} {self._unit}: {words}{remedy}")

    async def _run(self, *args: str) -> Finished:
        argv = (*self._systemctl, "--no-ask-password", "--no-pager", *args)
        try:
            return await run_program(
                argv, environment=plain_environment(), timeout_s=self._timeout_s
            )
        except ProgramLate as error:
            raise ControlError("took_too_long", str(error)) from error
        except (ProgramAbsent, ProgramStarved) as error:
            raise ControlError("no_systemctl", str(error)) from error


def seen(properties: Mapping[str, str]) -> Observation:
    """What the properties of a unit say of its agent."""
    pid = int(properties.get("MainPID") or 0)
    process = identify(pid) if pid else None
    match properties.get("ActiveState"):
        case "active" | "reloading" | "activating" | "deactivating" if process is not None:
            detail = f"unit_{properties['ActiveState']}"
            return Observation(Source.UNIT, Value.OK, detail, None, process)
        case "failed":
            return Observation(
                Source.UNIT, Value.BAD, "unit_failed", None, None, _exit_of(properties)
            )
        case "inactive" if properties.get("LoadState") == "loaded":
            return Observation(
                Source.UNIT, Value.BAD, "unit_inactive", None, None, _exit_of(properties)
            )
        case _:
            state = properties.get("ActiveState") or "unknown"
            return Observation(Source.UNIT, Value.UNKNOWN, f"unit_{state}_without_process")


def _exit_of(properties: Mapping[str, str]) -> Exit | None:
    memory = properties.get("Result") == "oom-kill"
    status = int(properties.get("ExecMainStatus") or 0)
    match properties.get("ExecMainCode"):
        case "1":  # exited; these are the codes of SIGCHLD
            return Exit(code=status, out_of_memory=memory)
        case "2" | "3":  # killed, or with its core dumped
            return Exit(signal=status, out_of_memory=memory)
        case _:
            return Exit(out_of_memory=True) if memory else None
