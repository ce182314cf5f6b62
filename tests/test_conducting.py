"""The whole daemon on the shipped fakes: what agents write reaches a person as one finding."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import trio
import trio.testing
from tests.idle_hands import idle_hands

from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.places import ToldPlaces
from custosd.adapters.scripted_source import ScriptedSource
from custosd.app import Outside, supervise_fleet
from custosd.config.reading import Reading
from custosd.config.settings import Config
from custosd.core.coherence import CoherenceRules, read_coherence
from custosd.core.effects import text_of
from custosd.core.facts import (
    ConcernResolved,
    ConductorSwept,
    Escalated,
    Fact,
    FindingOpened,
    FindingResolved,
)
from custosd.core.findings import FindingKind
from custosd.core.pairs import Place
from custosd.core.transcript import (
    Acted,
    Asked,
    Change,
    EditRange,
    Ended,
    Opened,
    Result,
    RunEnd,
    Step,
    StepKind,
    TranscriptEvent,
)
from custosd.core.view import FleetView
from custosd.flow.clock import wall_clock
from custosd.flow.latest import Latest
from custosd.ports import Restored, TranscriptSource

PLACES = ToldPlaces({f"/w/{name}": Place("/r/.git", f"/w/{name}") for name in ("ada", "bob")})


def wrote(name: str, number: int, path: str, at: int) -> Acted:
    edit = EditRange(path, at, at + 2, changes=(Change(at, 3, 3),))
    text = text_of(f"{name} {number}")
    kind, ok = StepKind.EDIT, Result.OK
    return Acted(
        "",
        Step(f"s{number}", kind, "edit", "edit", text, text, ok, files=(path,), edits=(edit,)),
    )


def begun(name: str, goal: str) -> list[TranscriptEvent]:
    return [Opened("", name, cwd=f"/w/{name}"), Asked("", goal)]


BOB = [
    *begun("bob", "Draw the login page of the shop anew"),
    wrote("bob", 1, "/w/bob/src/a.py", 12),
]


@dataclass
class Life:
    """One start of the daemon; its stores and its transcripts outlive it."""

    now_utc: Callable[[], datetime]
    store: MemoryStore = field(default_factory=MemoryStore)
    actions: MemoryActions = field(default_factory=MemoryActions)
    coordination: MemoryCoordination = field(default_factory=MemoryCoordination)
    source: ScriptedSource | None = None
    view: Latest[FleetView] | None = None

    @asynccontextmanager
    async def open(self, restored: Restored) -> AsyncGenerator[TranscriptSource]:
        self.source = ScriptedSource(self.now_utc, restored.positions)
        yield self.source

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[ScriptedSource]:
        def seen(view: Latest[FleetView]) -> None:
            self.view = view

        stop = trio.Event()
        outside = Outside(
            self.store,
            self.open,
            lambda _: nullcontext(RulesJudge()),
            RecordingServiceManager(),
            self.now_utc,
            idle_hands(self.actions),
            lambda: Reading(Config(), {}),
            seen=seen,
            coordination=self.coordination,
            places=PLACES,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(supervise_fleet, Config(), outside, stop)
            assert self.source is not None
            yield self.source
            stop.set()

    async def facts(self, kind: type[Fact]) -> list[Fact]:
        entries = await self.store.recent_entries(None, 10_000)
        return [entry.fact for entry in reversed(entries) if isinstance(entry.fact, kind)]


async def test_two_who_write_to_one_place_are_one_finding_through_restarts_until_one_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    life = Life(wall_clock())
    async with life.run() as source:
        source.grow("/t/ada", *begun("ada", "Skip broken rows in the zebra importer"))
        source.grow("/t/bob", *BOB[:2])
        source.grow("/t/ada", wrote("ada", 1, "src/a.py", 10))
        await trio.sleep(310)
        assert await life.facts(FindingOpened) == []
        source.grow("/t/bob", *BOB[2:])
        await trio.sleep(910)
        assert life.view is not None
        assert "conflicting_work" in {each.kind for each in life.view.value.hands.concerns.values()}
    (opened,) = await life.facts(FindingOpened)
    assert isinstance(opened, FindingOpened)
    assert opened.kind is FindingKind.CONFLICT
    assert opened.agents == ("scripted:ada", "scripted:bob")
    concern = f"finding:{opened.finding}"
    raised = [
        fact for fact in await life.facts(Escalated) if getattr(fact, "concern", "") == concern
    ]
    assert len(raised) == 1

    async with life.run() as source:
        await trio.sleep(610)
        assert await life.facts(FindingOpened) == [opened]
        (stored,) = await life.coordination.findings(life.now_utc())
        assert stored.id == opened.finding
        assert stored.sighting.paths == ("src/a.py",)
        assert stored.sighting.first_line == 12
        source.grow("/t/bob", *BOB, Ended("", RunEnd.FINISHED))
        await trio.sleep(310)
    (resolved,) = await life.facts(FindingResolved)
    assert isinstance(resolved, FindingResolved)
    assert resolved.finding == opened.finding
    over = await life.facts(ConcernResolved)
    assert [fact for fact in over if concern in str(fact)]
    assert await life.coordination.findings(life.now_utc() + timedelta(hours=1)) == ()


async def test_guardian_and_conductor_keep_their_own_times(
    autojump_clock: trio.testing.MockClock,
) -> None:
    life = Life(wall_clock())
    async with life.run() as source:
        source.grow("/t/ada", *begun("ada", "Skip broken rows in the zebra importer"))
        await trio.sleep(3_010)
        assert life.view is not None
        assert life.view.value.conducted is not None
        assert life.view.value.conducted.agents == 1
    assert len(await life.facts(ConductorSwept)) == 11
    assert len(await life.coordination.readings(100)) == 11


async def test_readings_are_let_go_of_when_acts_are(autojump_clock: trio.testing.MockClock) -> None:
    life = Life(wall_clock())
    old_utc = life.now_utc() - timedelta(seconds=Config().retention.acts_s + 60)
    await life.coordination.save_sweep(old_utc, read_coherence((), (), CoherenceRules()), ())
    async with life.run():
        await trio.sleep(310)
    assert old_utc not in {at_utc for at_utc, _ in await life.coordination.readings(100)}
