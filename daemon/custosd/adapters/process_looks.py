"""What a process does: whether it is there, stopped or gone, and how much it has computed.

Laws: gone is only what was seen to be gone; stopped is only what a signal has stopped, for a
debugger stops a process many times a second. Everything that /proc refuses is unknown.
"""

import os
import threading
import time
from collections import defaultdict

import psutil

from custosd.adapters.process_identity import identify, is_gone, parent_of
from custosd.core.evidence import Observation, ProcessIdentity, Source, Value

MOST_CHILDREN = 200
"""Processes below an agent's own of which the processor time is counted."""

_FRESH_S = 1.0


class Families:
    """Who is whose child, among all processes: looked at once a second at most, by any thread.

    A look is at every process of the machine, whosever children are wanted. It is done here,
    because psutil takes five times as long for it: 0.16 s for a thousand processes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: dict[int, list[int]] = {}
        self._looked_at = -_FRESH_S

    def below(self, pid: int) -> list[int]:
        """Its children, their children and so on; `MOST_CHILDREN` at most, the nearest first."""
        children = self._known()
        found = list(children.get(pid, ()))
        for one in found:
            if len(found) >= MOST_CHILDREN:
                break
            found += children.get(one, ())
        return found[:MOST_CHILDREN]

    def _known(self) -> dict[int, list[int]]:
        with self._lock:
            if time.monotonic() - self._looked_at > _FRESH_S:
                self._children, self._looked_at = _children(), time.monotonic()
            return self._children


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):  # noqa: PTH208 - of thousands of names
        if name.isdecimal() and (parent := parent_of(int(name))) is not None:
            children[parent].append(int(name))
    return children


def look_at_process(process: ProcessIdentity, families: Families) -> Observation:
    """Look at one process; `progress` is in processor seconds. Blocks as /proc does.

    That is of the process and all below it, with those that have ended and were waited for.
    """
    gone = Observation(Source.PROCESS, Value.BAD, "process_gone", process=process)
    unseen = Observation(Source.PROCESS, Value.UNKNOWN, "process_unseen", process=process)
    match is_gone(process):
        case True:
            return gone
        case None:
            return unseen
    try:
        found = psutil.Process(process.pid)
        status = found.status()
        busy_s = _busy_s(process.pid) + sum(map(_busy_s, families.below(process.pid)))
    except psutil.Error:
        return gone if is_gone(process) else unseen
    # What was read may have been of a successor with the same id.
    if identify(process.pid) != process:
        return gone if is_gone(process) else unseen
    if status == psutil.STATUS_STOPPED:
        return Observation(Source.PROCESS, Value.BAD, "process_stopped", busy_s, process)
    return Observation(Source.PROCESS, Value.OK, "process_there", busy_s, process)


def _busy_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
