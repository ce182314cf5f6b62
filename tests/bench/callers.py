"""Clients of the latency server: what they are given, what they tell, and how they are run.

Each client is a process of its own, which reads a plan from its standard input: `url`,
`delays_us` (of each call), `concurrency`, `form` where it knows several, `folder` where each
answer is to be kept in a file. It prints one line: `wall_s` and `cpu_s` of all calls together,
`took_us` and `server_us` of each call, in the order of the plan.
"""

import json
import math
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measures import PROJECT, cpu_s

HERE = Path(__file__).resolve().parent
NODE = HERE / "node"
NODE_BUILD = PROJECT / "build" / "bench-node"
PROMPT = b'{"prompt": "' + b"x" * 2_000 + b'"}'
INSTALL_S = 120


class NotHere(Exception):
    """A peer that cannot be run on this machine; the message says why."""


# --- a client's side ------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """What a client tells of its calls."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    took_us: dict[int, int] = field(default_factory=dict[int, int])
    server_us: dict[int, int] = field(default_factory=dict[int, int])

    def heard(self, n: int, took_s: float, server_us: int) -> None:
        self.took_us[n], self.server_us[n] = int(took_s * 1e6), server_us

    @contextmanager
    def clocked(self) -> Iterator[None]:
        began, cpu = time.perf_counter(), cpu_s()
        yield
        self.wall_s, self.cpu_s = time.perf_counter() - began, cpu_s() - cpu

    def over_server_ms(self, skip: int = 0) -> list[float]:
        """What each call took beyond what the server says it took."""
        return [(self.took_us[n] - self.server_us[n]) / 1e3 for n in range(skip, len(self.took_us))]


def in_order(numbered: dict[int, int]) -> list[int]:
    return [numbered[n] for n in range(len(numbered))]


def plan() -> dict[str, Any]:
    return json.load(sys.stdin)


def tell(told: Told) -> None:
    print(
        json.dumps(
            {
                "wall_s": told.wall_s,
                "cpu_s": told.cpu_s,
                "took_us": in_order(told.took_us),
                "server_us": in_order(told.server_us),
            }
        )
    )


# --- the bench's side -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Caller:
    """A client as the bench runs it."""

    name: str
    script: str
    form: str = ""

    def run(self, url: str, delays_us: Sequence[int], concurrency: int, folder: str = "") -> Told:
        """Make all calls; raises `NotHere`."""
        command = [sys.executable, str(HERE / self.script)]
        if self.script.endswith(".mjs"):
            command = ["node", str(node_build() / Path(self.script).name)]
        given = {
            "url": url,
            "delays_us": list(delays_us),
            "concurrency": concurrency,
            "form": self.form,
            "folder": folder,
        }
        done = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{self.name} failed:\n{done.stdout}{done.stderr}")
        said = json.loads(done.stdout.splitlines()[-1])
        took_us, server_us = (dict(enumerate(said[name])) for name in ("took_us", "server_us"))
        told = Told(said["wall_s"], said["cpu_s"], took_us, server_us)
        if len(told.took_us) != len(delays_us):
            sys.exit(f"{self.name} made {len(told.took_us)} of {len(delays_us)} calls")
        return told


def node_build() -> Path:
    """The folder with the Node clients and their packages, made if need be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NotHere("no Node on this machine")
    NODE_BUILD.mkdir(parents=True, exist_ok=True)
    lock = (NODE / "package-lock.json").read_bytes()
    installed = NODE_BUILD / "package-lock.json"
    for file in NODE.glob("*.mjs"):
        shutil.copy(file, NODE_BUILD)
    if not installed.exists() or installed.read_bytes() != lock:
        shutil.copy(NODE / "package.json", NODE_BUILD)
        shutil.copy(NODE / "package-lock.json", NODE_BUILD)
        try:
            subprocess.run(
                ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=NODE_BUILD, check=True, capture_output=True, timeout=INSTALL_S,
            )  # fmt: skip
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            installed.unlink()
            raise NotHere("npm cannot install its packages here") from error
    return NODE_BUILD


class Server:
    """The latency server, running."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()

    def connections(self) -> int:
        """How many connections made calls since this was asked last."""
        with urllib.request.urlopen(f"{self.url}/connections") as answer:
            return json.load(answer)["connections"]


@contextmanager
def latency_server() -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "latency_server.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Server(process)
        finally:
            process.kill()


def lognormal_s(count: int, mean_s: float, sigma: float, seed: int) -> list[float]:
    """Latencies with that mean, and that standard deviation of their logarithm."""
    drawn = random.Random(seed)
    middle = math.log(mean_s) - sigma * sigma / 2
    return [drawn.lognormvariate(middle, sigma) for _ in range(count)]


def bound_s(delays_s: Sequence[float], concurrency: int) -> float:
    """No schedule of so many at once is shorter than this."""
    return max(sum(delays_s) / concurrency, *delays_s)
