"""What the benches of the toolkit measure with: percentiles, slopes, memory, lateness, children."""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

PROJECT = Path(__file__).resolve().parents[2]
KIB = 1024
_Z95 = 1.96


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def load() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


def theil_sen(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """The median of the slopes of all pairs, and its 95 % interval.

    H. Theil, 1950; the interval by ranks, P. K. Sen, Journal of the ASA 63, 1968.
    """
    pairs = sorted(
        (ys[j] - ys[i]) / (xs[j] - xs[i]) for i in range(len(xs)) for j in range(i + 1, len(xs))
    )
    n = len(xs)
    spread = _Z95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, round((len(pairs) - spread) / 2))
    high = min(len(pairs) - 1, round((len(pairs) + spread) / 2))
    return statistics.median(pairs), pairs[low], pairs[high]


class Lateness:
    """How late a task of the loop wakes that wants to each `every_s`."""

    def __init__(self, every_s: float = 0.005) -> None:
        self.late_s: list[float] = []
        self._every_s = every_s

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            # By the clock of the machine: trio's own is what is questioned.
            due_at = time.perf_counter() + self._every_s
            await trio.sleep(self._every_s)
            self.late_s.append(time.perf_counter() - due_at)

    def taken_ms(self, share: float = 0.99) -> float:
        """The quantile since it was asked last."""
        late_s, self.late_s = self.late_s, []
        return quantile(late_s, share) * 1e3 if late_s else math.nan


def child(script: str, *args: object) -> Any:
    """What a stage of a bench, in a process of its own, prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, script, *map(str, args)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
