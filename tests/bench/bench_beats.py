"""Beats by each door and into the database, against what PostgreSQL takes and against peers.

Real sockets, the real admission, register and liveness service, the real store on an embedded
server; every client is a process of its own. All of it shares this machine, in one run: only
the ratios mean something. A beat is durable when the stored life of its agent has its
sequence or a later one; of the doors it is so after the answer, by the next flush, and of the
bound before it.

    python tests/bench/bench_beats.py [seconds a measurement]

The Pushgateway comes from the distribution's package, unpacked into a temporary folder. A peer
that cannot be had here has a row that says so, and no figure.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import structlog  # noqa: E402 - after the path
import trio  # noqa: E402
from liveness_rig import Rig, now_utc  # noqa: E402

from custosd.adapters.beats.admission import Admission  # noqa: E402
from custosd.adapters.beats.socket import BeatSocketSettings, receive_beats  # noqa: E402
from custosd.adapters.postgres.actions import PostgresActions  # noqa: E402
from custosd.adapters.postgres.bridge import open_database  # noqa: E402
from custosd.adapters.postgres.embedded import embedded_postgres  # noqa: E402
from custosd.adapters.postgres.migrations import migrate  # noqa: E402
from custosd.api.application import ApiPorts  # noqa: E402
from custosd.api.listening import ApiAddress  # noqa: E402
from custosd.api.serving import ApiLimits, serve_api  # noqa: E402
from custosd.core.acts import ActAnswer, ActOutcome, ActRequest  # noqa: E402
from custosd.core.beats import Beat, ReceivedBeat  # noqa: E402
from custosd.core.lives import LifeRecord  # noqa: E402
from custosd.core.tokens import Token, hash_of, presented  # noqa: E402
from custosd.flow.pulse import Pulse, Pulses  # noqa: E402

HERE = Path(__file__).resolve().parent
SIZES = (5_000, 50_000)
"""Agents; so many that of none two beats are on their way at once, which could overtake."""

GROUPS = 1_000
"""Agents of the Pushgateway: fewer, for it slows down with their number."""

LIVES = 10_000
BATCH = 1_000
FLUSH_S = 1.0
KNOWN_BEATS = 3
GAPS = 32
DRAIN_S = 2.0
CLIENT_SHARE = 0.9
"""From this share of a processor on the client may have been what held us up."""

NOT_HERE = "Healthchecks"
"""It stores each ping before it answers; no registry has it, only its authors' repository."""

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class CountingStore(PostgresActions):
    """The store, and how many lives were written to it."""

    written = 0

    async def save_lives(self, lives: Sequence[LifeRecord]) -> None:
        await super().save_lives(lives)
        self.written += len(lives)


class NoActs:
    async def perform(self, request: ActRequest) -> ActAnswer:
        return ActAnswer(ActOutcome.REFUSED, "nothing is done here")


def cpu_of_tree(pid: int) -> float:
    """Seconds of CPU of a process, its children, and those of them that have ended."""
    used = _ticks(pid, 4)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _field(int(folder.name), 1) == pid:
            used += _ticks(int(folder.name), 2)
    return used * _TICK_S


def _fields(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def _field(pid: int, place: int) -> int:
    fields = _fields(pid)
    return int(fields[place]) if fields else -1


def _ticks(pid: int, count: int) -> int:
    """utime and stime, and those of children waited for."""
    return sum(map(int, _fields(pid)[11 : 11 + count]))


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def child(script: str, *args: object) -> dict[str, Any]:
    done = await trio.run_process(
        [sys.executable, str(HERE / script), *map(str, args)], capture_stdout=True
    )
    return json.loads(done.stdout)


@dataclass(slots=True)
class Doors:
    """Everything between a beat and the database, open."""

    rig: Rig
    store: CountingStore
    server_pid: int
    path: Path
    http: str
    save: Callable[..., Any]
    seconds: float
    bound: float = 1.0

    def _held(self, expected: int) -> bool:
        return self.rig.register.accepted < expected or bool(self.rig.register._waiting)

    async def measure(self, name: str, door: str, array: int, *more: object) -> str:
        first_seq, agents = time.time_ns() // 1_000, len(self.rig.agents)
        target = self.path if door == "datagram" else self.http
        accepted, written = self.rig.register.accepted, self.store.written
        own_s, loop_s, server_s = own_cpu_s(), time.thread_time(), cpu_of_tree(self.server_pid)
        began = time.perf_counter()
        told = await child(
            "beat_client.py", door, target, "--agents", agents, "--array", array,
            "--seconds", self.seconds, "--first-seq", first_seq, *more,
        )  # fmt: skip
        with trio.move_on_after(DRAIN_S):
            # What the kernel holds still is read, and what the register holds is heard.
            while self._held(accepted + told["beats"]):  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.001)
        await self.save(everything=True)
        stored_s = time.perf_counter() - began
        own_s, loop_s = own_cpu_s() - own_s, time.thread_time() - loop_s
        server_s = cpu_of_tree(self.server_pid) - server_s
        accepted = self.rig.register.accepted - accepted
        written = self.store.written - written
        durable = sum(
            life.sequence - first_seq + 1
            for life in await self.store.lives()
            if life.sequence >= first_seq
        )
        if accepted != told["beats"] or told["failed"]:
            name += f" ({told['beats'] - accepted + told['failed']} not let in!)"
        us = 1e6 / max(1, accepted)
        return _row(
            name, accepted / told["wall_s"], self.bound, loop_s * us, (own_s - loop_s) * us,
            server_s * us, told, durable / stored_s, durable / max(1, accepted),
            written / stored_s,
        )  # fmt: skip


def _row(
    name: str,
    rate: float,
    bound: float,
    loop_us: float,
    bridge_us: float | None = None,
    server_us: float | None = None,
    told: dict[str, Any] | None = None,
    durable: float | None = None,
    share: float | None = None,
    written: float | None = None,
) -> str:
    def told_as(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    trip = f"{told['p50_ms']:.1f} / {told['p99_ms']:.1f}" if told and told["p50_ms"] else "-"
    busy = f"{told['busy']:.2f}{'!' if told['busy'] > CLIENT_SHARE else ''}" if told else "-"
    return (
        f"{name:<38} {rate:>9,.0f} {rate / bound:>9.4f} {told_as(durable, ',.0f'):>9}"
        f" {told_as(share, '.4f'):>7} {told_as(written, ',.0f'):>7} {loop_us:>8.1f}"
        f" {told_as(bridge_us, '.1f'):>7} {told_as(server_us, '.1f'):>6} {busy:>7} {trip:>14}"
    )


HEAD = (
    f"{'':38} {'beats/s':>9} {'of bound':>9} {'durable/s':>9} {'share':>7} {'rows/s':>7}"
    f" {'CPU us':>8} {'db thr.':>7} {'PG us':>6} {'client':>7} {'p50/p99 ms':>14}"
)


@asynccontextmanager
async def doors(folder: Path, seconds: float, agents: int) -> AsyncIterator[Doors]:
    async with (
        embedded_postgres(folder / "postgres") as server,
        open_database(server.dsn) as database,
        trio.open_nursery() as nursery,
    ):
        await migrate(database)
        store = CountingStore(database)
        rig = Rig(agents, store)
        nursery.start_soon(_drop_facts, rig.told)
        service = rig.service(flush_s=FLUSH_S)
        await nursery.start(service.run, Pulses())
        token = Token("bench", hash_of("secret"), now_utc(), "bench", "*")
        admission = Admission(rig.register, lambda: {token.id: token})
        path = folder / "beats.sock"
        pulse = Pulse("beats", trio.current_time())
        await nursery.start(receive_beats, BeatSocketSettings(path), admission, pulse)
        ports = ApiPorts(admission, NoActs(), lambda: {token.id: token}, lambda: (True, ()))
        [url, *_] = await nursery.start(
            serve_api, ApiAddress("127.0.0.1:0"), ports, ApiLimits(), trio.Event()
        )
        await _make_known(rig)
        await service._save(everything=True)
        yield Doors(
            rig, store, server.pid, path, url.removeprefix("http://"), service._save, seconds
        )
        nursery.cancel_scope.cancel()


async def _make_known(rig: Rig) -> None:
    """Have everybody heard until its next beat is nothing new."""
    first_seq = time.time_ns() // 1_000
    for round_ in range(KNOWN_BEATS):
        for agent in rig.agents:
            rig.register.offer(Beat(agent, 0, first_seq + round_), "http")
        while rig.register._waiting:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.001)


async def _drop_facts(told: trio.MemoryReceiveChannel[Any]) -> None:
    async for _ in told:
        pass


async def flush(store: CountingStore, server_pid: int, gaps: int, seconds: float) -> dict[str, Any]:
    """All lives stored again and again by the service, each heard since."""
    rig = Rig(LIVES, store, since_s=60.0 * (gaps + 2))
    start, heard = trio.current_time() - 15.0 * (gaps + 1), 0

    def hear_all(at: float) -> None:
        nonlocal heard
        heard += 1
        for agent in rig.agents:
            rig.lives.beat(ReceivedBeat(Beat(agent, 0, first_seq + heard), at, "http"))
            service._heard[agent] = None

    service, first_seq = rig.service(), time.time_ns() // 1_000
    for n in range(gaps + 1):
        hear_all(start + 15.0 * n)
    await service._save(everything=True)
    rows, wall_s, cpu_s = store.written, 0.0, 0.0
    loop_s = server_s = 0.0
    while wall_s < seconds:
        hear_all(trio.current_time())
        began, cpu, loop = time.perf_counter(), own_cpu_s(), time.thread_time()
        server = cpu_of_tree(server_pid)
        await service._save(everything=True)
        wall_s += time.perf_counter() - began
        cpu_s, loop_s = cpu_s + own_cpu_s() - cpu, loop_s + time.thread_time() - loop
        server_s += cpu_of_tree(server_pid) - server
    rows = store.written - rows
    us = 1e6 / rows
    return {
        "rate": rows / wall_s,
        "loop_us": loop_s * us,
        "bridge_us": (cpu_s - loop_s) * us,
        "server_us": server_s * us,
    }


async def bounds(folder: Path, seconds: float) -> float:
    """Print the bound and the service's own flush; returns the bound."""
    async with (
        embedded_postgres(folder / "postgres") as server,
        open_database(server.dsn) as database,
    ):
        await migrate(database)
        server_s = cpu_of_tree(server.pid)
        got = await child(
            "upsert_bound.py", server.dsn, "--rows", LIVES, "--batch", BATCH, "--seconds", seconds
        )
        server_s = cpu_of_tree(server.pid) - server_s
        bound = got["rows"] / got["wall_s"]
        us = 1e6 / got["rows"]
        print(_row("bound: unnest upsert, plain asyncpg", bound, bound, got["cpu_s"] * us, None,
                   server_s * us, None, bound))  # fmt: skip
        store = CountingStore(database)
        for gaps in (0, GAPS):
            one = await flush(store, server.pid, gaps, seconds / 2)
            name = f"flush of {LIVES:,} lives, {gaps} gaps each"
            print(_row(name, one["rate"], bound, one["loop_us"], one["bridge_us"],
                       one["server_us"], None, one["rate"]), flush=True)  # fmt: skip
        return bound


def pushgateway(folder: Path) -> Path | None:
    """The program, out of the distribution's package; None, said, where it cannot be had."""
    known = shutil.which("prometheus-pushgateway") or shutil.which("pushgateway")
    if known:
        return Path(known)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        print("(no Pushgateway: there is no apt-get here)")
        return None
    folder.mkdir()
    got = subprocess.run(
        ["apt-get", "download", "-qq", "prometheus-pushgateway"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    packages = list(folder.glob("*.deb"))
    if got.returncode or not packages:
        why = (got.stderr.strip().splitlines() or ["no package"])[-1]
        print(f"(no Pushgateway: apt-get download says: {why})")
        return None
    subprocess.run(["dpkg-deb", "-x", packages[0], folder / "x"], check=True)
    return folder / "x/usr/bin/prometheus-pushgateway"


async def push(program: Path, bound: float, seconds: float, *, checked: bool) -> str:
    address = f"127.0.0.1:{_free_port()}"
    options = [] if checked else ["--push.disable-consistency-check"]
    async with trio.open_nursery() as nursery:
        command = [program, f"--web.listen-address={address}", "--log.level=error", *options]
        process = await nursery.start(partial(trio.run_process, command, stderr=subprocess.DEVNULL))
        await _listening(address)
        # All groups are there before it is measured, as ours are.
        await _push_for(address, 4.0 if checked else 1.0)
        used_s = cpu_of_tree(process.pid)
        told = await _push_for(address, seconds)
        used_s = cpu_of_tree(process.pid) - used_s
        nursery.cancel_scope.cancel()
    name = f"Pushgateway, consistency check {'on' if checked else 'off'}"
    beats = told["beats"]
    rate = beats / told["wall_s"]
    return _row(name, rate, bound, used_s / max(1, beats) * 1e6, told=told)


async def _push_for(address: str, seconds: float) -> dict[str, Any]:
    return await child(
        "beat_client.py", "pushgateway", address, "--agents", GROUPS, "--seconds", seconds,
        "--first-seq", time.time_ns() // 1_000,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def _listening(address: str) -> None:
    host, _, port = address.partition(":")
    with trio.fail_after(10):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, int(port))
            except OSError:
                await trio.sleep(0.05)
                continue
            await stream.aclose()
            return


async def main(folder: Path, seconds: float) -> None:
    print(
        f"flushed each {FLUSH_S:g} s; one client, over HTTP of 16 connections;"
        f" {GROUPS:,} groups for the Pushgateway; load average {os.getloadavg()[0]:.1f}"
    )
    print(HEAD)
    bound = await bounds(folder, seconds)
    token = ("--token", presented("bench", "secret"))
    for agents in SIZES:
        async with doors(folder, seconds, agents) as open_doors:
            open_doors.bound = bound
            for door, array, more in (
                ("datagram", 1, ()),
                ("datagram", 100, ()),
                ("http", 1, token),
                ("http", 100, token),
            ):
                beats = f"arrays of {array}" if array > 1 else "single beats"
                name = f"{door}, {beats}, {agents:,} agents"
                print(await open_doors.measure(name, door, array, *more), flush=True)
    program = pushgateway(folder / "pushgateway")
    if program:
        for checked in (False, True):
            print(await push(program, bound, seconds, checked=checked), flush=True)
    print(f"{NOT_HERE:<38} {'-':>9}   not measured: it cannot be installed from a registry")
    print(
        f"load average {os.getloadavg()[0]:.1f}\n"
        "\nbeats/s: accepted, or of the bound and the flushes rows. durable/s: beats that the"
        " database covers after\na last flush, by the time until then; share: of those that were"
        " accepted (the others wait for the next\nbeat of their agent). rows/s: written; a row"
        " covers all beats of an agent since the last.\nCPU us: a beat (or a row), of the thread"
        " that serves, or of the peer's process; db thr.: of our thread\nthat talks to the"
        " database; PG us: of the server. client: its share of one processor, ! where it may\n"
        "have been the limit. The Pushgateway keeps what it is told in memory."
    )


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


if __name__ == "__main__":
    _quiet()
    with tempfile.TemporaryDirectory(prefix="custosd-bench-") as name:
        # The server may run as another user, who has to get in.
        Path(name).chmod(0o755)
        trio.run(main, Path(name), float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
