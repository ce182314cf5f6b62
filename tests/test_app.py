"""The whole daemon on the shipped fakes, living virtual hours."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.scripted_source import ScriptedSource
from custosd.adapters.transcripts.registry import format_named
from custosd.app import Outside, supervise_fleet
from custosd.config.settings import Config, FormatName
from custosd.core.agents import AgentId
from custosd.core.effects import text_of
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import DaemonStarted, DaemonStopped, VerdictReached
from custosd.core.transcript import Acted, Asked, Opened, Result, Step, StepKind, TranscriptEvent
from custosd.core.verdicts import Standing
from custosd.flow.clock import wall_clock
from custosd.ports import Restored, TranscriptSource

LOOP = AgentId("scripted:loop")


def failing(n: int) -> Acted:
    text = text_of("ModuleNotFoundError: No module named 'x'")
    step = Step(
        f"s{n}",
        StepKind.RUN,
        "shell",
        "python",
        text_of("python app.py"),
        text,
        Result.ERROR,
        exit_code=1,
    )
    return Acted("", step)


BEGIN: list[TranscriptEvent] = [Opened("", "loop"), Asked("", "Make app.py run.")]


@dataclass
class Life:
    """One start of the daemon; the store and the transcripts outlive it."""

    store: MemoryStore
    now_utc: Callable[[], datetime]
    manager: RecordingServiceManager = field(default_factory=RecordingServiceManager)
    stop: trio.Event = field(default_factory=trio.Event)
    source: ScriptedSource | None = None

    @asynccontextmanager
    async def _open(self, restored: Restored) -> AsyncGenerator[TranscriptSource]:
        self.source = ScriptedSource(self.now_utc, restored.positions)
        yield self.source

    async def start(self, nursery: trio.Nursery) -> ScriptedSource:
        outside = Outside(self.store, self._open, RulesJudge(), self.manager, self.now_utc)
        await nursery.start(supervise_fleet, Config(), outside, self.stop)
        assert self.source is not None
        return self.source


async def held(store: MemoryStore) -> dict[AgentId, Standing]:
    return {a.ref.agent: a.standing for a in (await store.restore()).agents}


async def test_a_looping_agent_is_held_to_be_stuck_and_everything_is_on_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        life = Life(store, wall_clock())
        source = await life.start(nursery)
        source.grow("/t/loop", *BEGIN, *(failing(n) for n in range(8)))
        await trio.sleep(300)
        life.stop.set()
    assert await held(store) == {LOOP: Standing.STUCK}
    facts = [entry.fact for entry in await store.recent_entries(None, 1000)]
    assert isinstance(facts[0], DaemonStopped)
    assert isinstance(facts[-1], DaemonStarted)
    assert len([f for f in facts if isinstance(f, VerdictReached)]) == 1
    assert [beat.stopped for beat in await store.beats()] == [True]


async def test_the_service_manager_is_told_of_readiness_progress_and_the_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    life = Life(MemoryStore(), wall_clock(), RecordingServiceManager(watchdog_s=30.0))
    async with trio.open_nursery() as nursery:
        await life.start(nursery)
        told = life.manager.messages
        assert any("READY" in message for message in told)
        before = sum("WATCHDOG" in message for message in told)
        await trio.sleep(605)
        assert sum("WATCHDOG" in message for message in told) - before == 60
        life.stop.set()
    assert any("STOPPING" in message for message in told)


async def test_a_database_that_dies_for_an_hour_costs_nothing_that_matters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Supervision goes on, the watchdog is fed, and afterwards everything is stored."""
    store = MemoryStore()
    life = Life(store, wall_clock(), RecordingServiceManager(watchdog_s=30.0))
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            source = await life.start(nursery)
            source.grow("/t/loop", *BEGIN)
            await trio.sleep(120)
            logs.clear()
            store.fail_with(StoreUnavailable("gone"))
            source.grow("/t/loop", *(failing(n) for n in range(8)))
            await trio.sleep(3600)
            reached = [log["standing"] for log in logs if log["event"] == "verdict.reached"]
            assert reached == [Standing.STUCK, Standing.SILENT]
            assert not [log for log in logs if log["event"] == "watchdog.starved"]
            store.fail_with(None)
            await trio.sleep(120)
            life.stop.set()
    restored = (await store.restore()).agents
    assert [(a.standing, a.digest and a.digest.steps) for a in restored] == [(Standing.SILENT, 8)]
    assert not [log for log in logs if log["event"] == "service.failed"]


async def test_a_new_start_takes_up_what_the_last_one_knew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, now_utc = MemoryStore(), wall_clock()
    events = [*BEGIN, *(failing(n) for n in range(8))]
    for _ in range(3):
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                life = Life(store, now_utc)
                source = await life.start(nursery)
                source.grow("/t/loop", *events)
                await trio.sleep(130)
                life.stop.set()
        asked = [log["asked"] for log in logs if log["event"] == "sweep.finished"]
    assert sum(asked) == 0, "what was answered in the first life is not asked in the third"
    assert await held(store) == {LOOP: Standing.STUCK}
    assert [a.digest and a.digest.steps for a in (await store.restore()).agents] == [8]


async def test_a_stop_is_cut_off_when_the_store_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class HangingStore(MemoryStore):
        hangs = False

        async def save_progress(self, batch: object) -> None:
            if self.hangs:
                await trio.sleep_forever()
            await super().save_progress(batch)  # type: ignore[arg-type]

    store = HangingStore()
    async with trio.open_nursery() as nursery:
        life = Life(store, wall_clock())
        source = await life.start(nursery)
        store.hangs = True
        source.grow("/t/loop", *BEGIN)
        await trio.sleep(1)
        life.stop.set()
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at <= Config().daemon.drain_s


@pytest.mark.parametrize("name", [n for n in get_args(FormatName) if n != "auto"])
def test_every_format_that_can_be_configured_exists(name: str) -> None:
    assert format_named(name) is not None
