"""How soon a death or a silence is known, and what watching costs, against the number of agents.

    python tests/bench/bench_liveness.py [agents ...]

Deaths: real processes, killed one by one and all at once, told by pidfd through the real
service. Load, then silence: in real time, agents beat each 15 s in a process for each size;
after that some fall silent, and "late" is how long after its deadline a silence was told. CPU is
that of the process while all beat, less what making the beats costs, which is measured by
itself. Memory is that of the register and the lives alone.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "daemon")]

import structlog  # noqa: E402 - after the path
import trio  # noqa: E402
from liveness_rig import Rig, names, now_utc  # noqa: E402

from custosd.adapters.memory_actions import MemoryActions  # noqa: E402
from custosd.adapters.process_identity import identify  # noqa: E402
from custosd.adapters.process_watch import open_process_watch  # noqa: E402
from custosd.core.agents import AgentId  # noqa: E402
from custosd.core.beats import Beat, BeatStatus, ReceivedBeat  # noqa: E402
from custosd.core.evidence import Condition, Source  # noqa: E402
from custosd.core.facts import BeatMissed, LifeChanged  # noqa: E402
from custosd.core.ladder import SUSPECT, Gaps  # noqa: E402
from custosd.core.liveness import LivenessLimits  # noqa: E402
from custosd.flow.pulse import Pulses  # noqa: E402

SIZES = (1_000, 10_000, 100_000)
DEATHS = 1_000
BEAT_S = 15.0
LOAD_S = 5.0
SILENCE_S = 8.0
LAST_WORDS_S = 2.0
TICK_S = 0.02
SILENT = 200
GAPS = 200
GOAL_DEATH_S = 2.0
GOAL_SILENCE_S = 1.5
AIM_BYTES = 1_536
"""What an agent may take in memory."""

QUICK = LivenessLimits(shortest_deadline_s=5.0, margin_s=2.0)
"""Deadlines that pass while we watch; whoever beats each 15 s has one of 47 s."""


def quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


# --- deaths ---------------------------------------------------------------------------------


async def deaths(count: int) -> dict[str, Any]:
    """Kill so many sleeping processes; half one by one, half at once."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with open_process_watch() as watch, trio.open_nursery() as nursery:
        rig = Rig(
            count,
            MemoryActions(now_utc),
            watch=watch,
            sources=frozenset({Source.BEAT, Source.PROCESS}),
            identify=identify,
        )
        await nursery.start(rig.service().run, Pulses())
        sleeping = [_sleep() for _ in rig.agents]
        for number, (agent, process) in enumerate(zip(rig.agents, sleeping, strict=True)):
            rig.register.offer(Beat(agent, 0, 1, pid=process.pid), "socket")
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        with trio.fail_after(10):
            while sum(rig.lives.process(agent) is not None for agent in rig.agents) < count:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.05)
        half, found = count // 2, {}
        for name, some, pause_s in (
            ("one by one", range(half), 0.005),
            ("all at once", range(half, count), 0.0),
        ):
            found[name] = await _kill(rig, sleeping, some, pause_s)
        nursery.cancel_scope.cancel()
    for process in sleeping:
        process.wait()
    return found


def _sleep() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


async def _kill(
    rig: Rig, sleeping: list[subprocess.Popen[bytes]], some: range, pause_s: float
) -> dict[str, float]:
    killed_at: dict[AgentId, float] = {}
    took_s: list[float] = []

    async def kill_all(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        for number in some:
            killed_at[rig.agents[number]] = trio.current_time()
            os.kill(sleeping[number].pid, signal.SIGKILL)
            if pause_s:
                await trio.sleep(pause_s)

    cpu = cpu_s()
    async with trio.open_nursery() as nursery:
        await nursery.start(kill_all)
        with trio.move_on_after(30):
            while len(took_s) < len(some):
                fact = await rig.told.receive()
                if not isinstance(fact, LifeChanged) or fact.condition is not Condition.DEAD:
                    continue
                if fact.agent in killed_at:
                    took_s.append(trio.current_time() - killed_at.pop(fact.agent))
    p50_s, p99_s = quantiles(took_s)
    return {
        "killed": len(some),
        "told": len(took_s),
        "p50_ms": p50_s * 1e3,
        "p99_ms": p99_s * 1e3,
        "cpu_us": (cpu_s() - cpu) / len(some) * 1e6,
    }


# --- load and silence -----------------------------------------------------------------------


def _beaten(rig: Rig, now: float) -> int:
    """Three beats of everybody, spread over the last interval; returns the last sequence."""
    step_s = BEAT_S / len(rig.agents)
    for n in range(3):
        for number, agent in enumerate(rig.agents):
            at = now - (3 - n) * BEAT_S + number * step_s
            rig.lives.beat(ReceivedBeat(Beat(agent, 0, n), at, "http"))
    gc.collect()
    gc.freeze()
    # That took its time: they were heard within the last interval before now.
    now = trio.current_time()
    for number, life in enumerate(rig.lives._lives.values()):
        life.heard_at = life.quiet_from = now - BEAT_S + number * step_s
    for agent in rig.agents[:SILENT]:
        # They usually beat each second: their own past asks for no more patience.
        rig.lives._lives[agent].gaps = Gaps([1.0] * GAPS)
    rig.lives.due(now)
    rig.lives.take_changed()
    return 3


async def load(agents: int) -> dict[str, Any]:
    """Everybody beats each 15 s, for real; then a few fall silent."""
    rig = Rig(agents, MemoryActions(now_utc), QUICK, since_s=60.0)
    offer_s = _cost_of_offering(rig.agents)
    ticking = await _share_of_ticking()
    sequence = _beaten(rig, trio.current_time())
    late_s: list[float] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.service(flush_s=LOAD_S / 3).run, Pulses())
        nursery.start_soon(_note_silence, rig, late_s)
        before, cpu, began = rig.register.accepted, cpu_s(), time.perf_counter()
        await _beat_in_time(rig, rig.agents, sequence, LOAD_S)
        beats = rig.register.accepted - before
        cpu, wall = cpu_s() - cpu, time.perf_counter() - began
        nursery.start_soon(_say_last_words, rig, sequence + 1)
        await _beat_in_time(rig, rig.agents[SILENT:], sequence + 1, SILENCE_S)
        nursery.cancel_scope.cancel()
    used = cpu - beats * offer_s - ticking * wall
    p50_s, p99_s = quantiles(late_s) if late_s else (float("inf"), float("inf"))
    return {
        "beats": beats,
        "beats_s": beats / wall,
        "used_s": used,
        "share": used / wall,
        "us_beat": used / beats * 1e6,
        "silent": len(late_s),
        "late_p50_ms": p50_s * 1e3,
        "late_p99_ms": p99_s * 1e3,
    }


def _cost_of_offering(agents: list[AgentId], count: int = 20_000) -> float:
    """What making a beat costs us: not the service's."""
    began = time.process_time()
    for n in range(count):
        Beat(agents[n % len(agents)], 0, n)
    return (time.process_time() - began) / count


async def _share_of_ticking() -> float:
    """What waking up to beat costs us, as a share of a processor."""
    cpu, began = time.process_time(), trio.current_time()
    while trio.current_time() < began + 1.0:  # noqa: ASYNC110 - the waking is what is measured
        await trio.sleep(TICK_S)
    return (time.process_time() - cpu) / (trio.current_time() - began)


async def _beat_in_time(rig: Rig, agents: list[AgentId], sequence: int, seconds: float) -> None:
    """Beat for these in turn, each once in 15 s, in ticks."""
    start, sent = trio.current_time(), 0
    while (elapsed_s := trio.current_time() - start) < seconds:
        for _ in range(int(elapsed_s * len(agents) / BEAT_S) - sent):
            rig.register.offer(Beat(agents[sent % len(agents)], 0, sequence), "http")
            sent += 1
        await trio.sleep(TICK_S)


async def _say_last_words(rig: Rig, sequence: int) -> None:
    """Some beat one after the other, say that they will be back in 1 s, and never are."""
    for agent in rig.agents[:SILENT]:
        rig.register.offer(Beat(agent, 0, sequence, BeatStatus.RUNNING, 1.0), "http")
        await trio.sleep(LAST_WORDS_S / SILENT)


async def _note_silence(rig: Rig, late_s: list[float]) -> None:
    """How long after the deadline each suspicion was told."""
    silent = frozenset(rig.agents[:SILENT])
    async for fact in rig.told:
        if isinstance(fact, BeatMissed) and fact.misses == SUSPECT and fact.agent in silent:
            life = rig.lives._lives[fact.agent]
            deadline = life.quiet_from + life.suspect_s(rig.lives.limits)
            late_s.append(trio.current_time() - deadline)


# --- memory, and what is done to all --------------------------------------------------------


async def whole(agents: int) -> dict[str, Any]:
    """Memory an agent, young and with all its gaps; one amnesty, one scan, one flush of all."""
    everybody = names(agents)
    gc.collect()
    empty = rss_bytes()
    rig = Rig(agents, MemoryActions(now_utc), since_s=60.0)
    # The ids themselves belong to the configuration.
    rig.agents = everybody
    gc.collect()
    watched = rss_bytes()
    for agent in everybody:
        rig.register.offer(Beat(agent, 0, 0), "http")
    rig.register.take()
    _beaten(rig, trio.current_time())
    gc.collect()
    young = rss_bytes()
    tenths = array("d", [BEAT_S + n % 7 / 10 for n in range(GAPS)])
    for life in rig.lives._lives.values():
        life.gaps = Gaps(tenths)
        life.gaps.reckon(rig.lives.limits)
    gc.collect()
    grown = rss_bytes()
    now = trio.current_time()
    service = rig.service()
    service._heard.update(dict.fromkeys(everybody))
    return {
        "watched": (watched - empty) / agents,
        "young": (young - empty) / agents,
        "grown": (grown - empty) / agents,
        "scan": _timed(lambda: rig.lives.overdue(now, 5.0)) / agents * 1e6,
        "amnesty": _timed(lambda: rig.lives.amnesty("stall", 6.0, now)) / agents * 1e6,
        "records": _timed(lambda: rig.lives.records(now, now_utc())) / agents * 1e6,
        "flush": await _flushed(service) / agents * 1e6,
    }


def _timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


async def _flushed(service: Any) -> float:
    began = time.process_time()
    await service._save(everything=True)
    return time.process_time() - began


# --- tables ---------------------------------------------------------------------------------


def child(stage: str, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, stage, str(count)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def death_table() -> None:
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(
        f"{'deaths of real processes':<26} {'killed':>7} {'told':>7} {'p50 ms':>8} {'p99 ms':>8}"
        f" {'p99 of 2 s':>11} {'CPU us/death':>13}"
    )
    for name, got in child("deaths", DEATHS).items():
        print(
            f"{name:<26} {got['killed']:>7} {got['told']:>7} {got['p50_ms']:>8.2f}"
            f" {got['p99_ms']:>8.2f} {got['p99_ms'] / 1e3 / GOAL_DEATH_S:>11.4f}"
            f" {got['cpu_us']:>13.0f}",
            flush=True,
        )


def load_table(sizes: list[int]) -> None:
    print(
        f"\n{'agents':>8} {'beats/s':>9} {'CPU us/beat':>12} {'each more us':>13} {'CPU share':>10}"
        f" {'silent':>7} {'late p50 ms':>12} {'late p99 ms':>12} {'p99 of 1.5 s':>13}"
    )
    last = {"beats": 0, "used_s": 0.0}
    for agents in sizes:
        got = child("load", agents)
        more = got["beats"] - last["beats"]
        more_us = (got["used_s"] - last["used_s"]) / more * 1e6 if more > 0 else float("nan")
        print(
            f"{agents:>8} {got['beats_s']:>9,.0f} {got['us_beat']:>12.1f} {more_us:>13.1f}"
            f" {got['share'] * 100:>8.2f} % {got['silent']:>7} {got['late_p50_ms']:>12.1f}"
            f" {got['late_p99_ms']:>12.1f} {got['late_p99_ms'] / 1e3 / GOAL_SILENCE_S:>13.4f}",
            flush=True,
        )
        last = got
    print("(each more: of the beats that there are more of than in the row above)")


def whole_table(sizes: list[int]) -> None:
    print(
        f"\n{'agents':>8} {'B watched':>10} {'B heard':>8} {f'B, {GAPS} gaps':>12}"
        f" {'of 1.5 KiB':>11} {'amnesty us':>11} {'scan us':>8} {'records us':>11} {'flush us':>9}"
        f" {'all of it, s':>13}"
    )
    for agents in sizes:
        got = child("whole", agents)
        each = [got[name] for name in ("amnesty", "scan", "records", "flush")]
        print(
            f"{agents:>8} {got['watched']:>10,.0f} {got['young']:>8,.0f} {got['grown']:>12,.0f}"
            f" {got['grown'] / AIM_BYTES:>11.2f} {each[0]:>11.2f}"
            f" {each[1]:>8.2f} {each[2]:>11.2f} {each[3]:>9.2f}"
            f" {(each[0] + each[1] + each[3]) * agents / 1e6:>13.3f}",
            flush=True,
        )
    print(
        "(B: resident bytes an agent; us: CPU an agent, of one amnesty, scan, making of records,"
        f" flush into memory)\nload average {os.getloadavg()[0]:.1f}"
    )


STAGES = {"deaths": deaths, "load": load, "whole": whole}


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if len(sys.argv) > 1 and sys.argv[1] in STAGES:
        print(json.dumps(trio.run(STAGES[sys.argv[1]], int(sys.argv[2]))))
        return
    sizes = [int(text) for text in sys.argv[1:]] or list(SIZES)
    death_table()
    load_table(sizes)
    whole_table(sizes)


if __name__ == "__main__":
    main()
