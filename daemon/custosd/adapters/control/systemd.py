"""Stops and starts an agent that runs as a unit of systemd.

It is done by `systemctl`, not over the bus: it is on every such machine, asks polkit like
everybody else, finds its way to the manager where there is no bus at all, and nothing has to
be kept open, resumed and renewed. A look costs some milliseconds, and only suspects are
looked at: of deaths the kernel tells by itself.

Laws:

1. A unit that somebody stopped, or that ended by itself without a fault, has ended: that is
   told apart from what systemd calls failed. Whatever else has no process is unknown.
2. Agents live in cgroups of their own, and what is killed is the whole of one.
3. What the unit will find is written before it is started, and never while it runs.
"""

import grp
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from custosd.adapters.control.handover import (
    KEY,
    place_of,
    read_environment,
    replace,
    write_hand_over,
)
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
from custosd.ports import AgentControl, HandOver

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "FreezerState",
    "MainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "Result",
    "InvocationID",
)

_NOT_LOADED = 5
"""systemctl's exit code for a unit that is not there."""

_THERE = frozenset({"active", "reloading", "refreshing", "activating", "deactivating"})
_NOBODY_LEFT = ("not loaded", "No such process", "No main process", "No process")
_LONGEST_WORDS = 300


class SystemdControl(AgentControl):
    """One unit. Hand-overs are written below `folder`, in a folder of the agent's name.

    The unit must read them from there, as custosd-agent@.service does, and be in the group
    `readers`; where there is no such group, only units of our own user can. `told` is what
    the agent finds in its environment besides.
    """

    def __init__(
        self,
        unit: str,
        folder: Path,
        *,
        timeout_s: float = 20.0,
        readers: str = "custosd-agent",
        systemctl: Sequence[str] = ("systemctl",),
        told: Mapping[str, str] | None = None,
    ) -> None:
        self._unit = unit
        self._folder = folder
        self._timeout_s = timeout_s
        self._readers = readers
        self._systemctl = tuple(systemctl)
        self._told = told

    async def sight(self) -> Observation:
        """See the port: OK "unit_active" and its like; BAD "unit_failed" and "unit_inactive".

        The last is an end without a fault. Never raises: what systemd does not say is unknown.
        """
        try:
            return seen(await self._properties())
        except ControlError as error:
            return Observation(Source.UNIT, Value.UNKNOWN, error.reason)

    async def interrupt(self) -> None:
        """See the port: SIGINT to the main process."""
        await self._do("kill", "--kill-whom=main", "--signal=SIGINT")

    async def stop(self) -> None:
        """See the port. What does not end in the unit's own time systemd kills."""
        await self._do("stop", "--no-block")

    async def kill(self) -> None:
        """See the port: SIGKILL to every process of the unit."""
        await self._do("kill", "--kill-whom=all", "--signal=SIGKILL")

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port. Raises `ControlError` "still_running" beside another incarnation.

        Two starts of one key: only where the daemon was cut off before the first one came
        back, and what was started has ended without a fault since.
        """
        unit = await self._properties()
        sight = seen(unit)
        written = read_environment(self._folder, hand_over.agent).get(KEY) == key
        if written and (sight.value is Value.OK or self._was_started(key, hand_over.agent, unit)):
            return
        if sight.value is Value.OK:
            raise ControlError("still_running", f"{self._unit} runs already: stop it first")
        if sight.value is Value.UNKNOWN and not written:
            raise ControlError(sight.detail, f"{self._unit} can not be started as it stands")
        readers = _group(self._readers)
        await write_hand_over(self._folder, key, hand_over, readers, self._told)
        await self._remember(hand_over.agent, _Start(key, unit.get("InvocationID", "")))
        if unit.get("Result") == "start-limit-hit":
            # How often it is started at most is judged here, not there.
            await self._do("reset-failed")
        await self._do("start")
        await self._remember(hand_over.agent, _Start(key, "", returned=True))

    async def _properties(self) -> dict[str, str]:
        told = await self._run("show", f"--property={','.join(PROPERTIES)}", "--", self._unit)
        if told.status != 0:
            raise ControlError("systemctl_failed", f"systemctl show {self._unit}: {_words(told)}")
        lines = told.stdout.decode("utf-8", "replace").splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def _was_started(self, key: str, agent: str, unit: Mapping[str, str]) -> bool:
        try:
            told = json.loads((place_of(self._folder, agent) / "start.json").read_text())
            start = _Start(str(told["key"]), str(told["before"]), bool(told["returned"]))
        except (OSError, ValueError, LookupError, TypeError):
            return False
        run = unit.get("InvocationID", "")
        return start.key == key and (start.returned or bool(run and run != start.before))

    async def _remember(self, agent: str, start: "_Start") -> None:
        form = {"key": start.key, "before": start.before, "returned": start.returned}
        file = place_of(self._folder, agent) / "start.json"
        try:
            await trio.to_thread.run_sync(replace, file, json.dumps(form).encode())
        except OSError as error:
            raise ControlError("handover_unwritten", f"{file}: {error.strerror}") from error

    async def _do(self, verb: str, *options: str) -> None:
        told = await self._run(verb, *options, "--", self._unit)
        words = _words(told)
        if told.status == 0 or (verb == "kill" and any(said in words for said in _NOBODY_LEFT)):
            return
        place = f"systemctl {verb} {self._unit}: {words}"
        if told.status == _NOT_LOADED or "not found" in words:
            raise ControlError("no_such_unit", f"{place}; is the unit installed?")
        if "authentication" in words.lower() or "denied" in words.lower():
            raise ControlError("not_allowed", f"{place}; install polkit's rule, 50-custosd.rules")
        raise ControlError(f"{verb.replace('-', '_')}_failed", place)

    async def _run(self, *args: str) -> Finished:
        argv = (*self._systemctl, "--no-ask-password", "--no-pager", *args)
        try:
            return await run_program(
                argv, environment=plain_environment(), timeout_s=self._timeout_s
            )
        except ProgramLate as error:
            raise ControlError("took_too_long", str(error)) from error
        except ProgramStarved as error:
            raise ControlError("starved", str(error)) from error
        except ProgramAbsent as error:
            raise ControlError("no_systemctl", str(error)) from error


@dataclass(frozen=True, slots=True)
class _Start:
    """A start of the unit: `before` is the run that was there until then."""

    key: str
    before: str
    returned: bool = False


def seen(unit: Mapping[str, str]) -> Observation:
    """What a unit's properties say of its agent; see `SystemdControl.sight`."""
    state = unit.get("ActiveState") or "untold"
    if unit.get("LoadState") != "loaded":
        return Observation(Source.UNIT, Value.UNKNOWN, "unit_not_loaded")
    if state in _THERE:
        pid = _number(unit, "MainPID")
        process = identify(pid) if pid else None
        if process is None:
            return Observation(Source.UNIT, Value.UNKNOWN, f"unit_{state}_without_process")
        frozen = unit.get("FreezerState", "running") != "running"
        detail = "unit_frozen" if frozen else f"unit_{state}"
        return Observation(Source.UNIT, Value.OK, detail, process=process)
    if state in {"failed", "inactive"}:
        return Observation(Source.UNIT, Value.BAD, f"unit_{state}", exit=_exit_of(unit))
    return Observation(Source.UNIT, Value.UNKNOWN, f"unit_{state}")


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _exit_of(unit: Mapping[str, str]) -> Exit | None:
    memory = unit.get("Result") == "oom-kill"
    status = _number(unit, "ExecMainStatus")
    match unit.get("ExecMainCode"):  # as SIGCHLD tells it
        case "1":
            return Exit(code=status, out_of_memory=memory)
        case "2" | "3":
            return Exit(signal=status, out_of_memory=memory)
        case _:
            return Exit(out_of_memory=True) if memory else None


def _number(unit: Mapping[str, str], name: str) -> int:
    text = unit.get(name, "")
    return int(text) if text.isdecimal() else 0


def _words(told: Finished) -> str:
    return " ".join(told.stderr.decode("utf-8", "replace").split())[:_LONGEST_WORDS]
