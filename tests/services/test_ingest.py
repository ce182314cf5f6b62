"""Growth becomes trajectories, and both are stored at once."""

from collections.abc import Callable, Sequence
from datetime import datetime

import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.memory import MemoryStore
from custosd.adapters.scripted_source import ScriptedSource
from custosd.core.agents import AgentId, AgentState
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import (
    AgentSeen,
    Fact,
    SourceTroubled,
    StateChanged,
    TrajectoryAdvanced,
    TrajectoryRewound,
)
from custosd.core.folds import Folds
from custosd.core.transcript import Ended, RunEnd, Said, TranscriptEvent, Unread
from custosd.flow.pulse import Pulses
from custosd.ports import Incident, Progress, Restored, Store
from custosd.services.ingest import Intake, follow_transcripts

from .conftest import opened, step

CODEC = MsgpackCodec()


class Ingestion:
    """A running service, over a store that outlives it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        now_utc: Callable[[], datetime],
        store: Store,
        restored: Restored = Restored(),
    ) -> None:
        self.source = ScriptedSource(now_utc, restored.positions)
        facts_in, self._facts = trio.open_memory_channel[Fact](10_000)
        self.folds = Folds(hot=10)
        self.intake = Intake(self.folds, restored, CODEC, now_utc)
        nursery.start_soon(follow_transcripts, self.source, facts_in, self.intake, store, Pulses())

    async def told(self) -> list[Fact]:
        await trio.testing.wait_all_tasks_blocked()
        facts: list[Fact] = []
        while True:
            try:
                facts.append(self._facts.receive_nowait())
            except trio.WouldBlock:
                return facts


async def stored_steps(store: Store) -> dict[AgentId, int]:
    restored = await store.restore()
    return {a.ref.agent: a.digest.steps for a in restored.agents if a.digest is not None}


async def test_a_growing_transcript_becomes_an_agent_with_its_steps(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/a", *opened("a"), step(1), step(2))
    facts = await ingestion.told()
    assert [type(f) for f in facts] == [AgentSeen, TrajectoryAdvanced, StateChanged]
    ingestion.source.grow("/t/a", step(3), Ended("", RunEnd.FINISHED))
    facts = await ingestion.told()
    advanced = next(f for f in facts if isinstance(f, TrajectoryAdvanced))
    assert (advanced.new_steps, advanced.digest.steps) == (1, 3)
    changed = next(f for f in facts if isinstance(f, StateChanged))
    assert changed.after is AgentState.TERMINATED
    assert await stored_steps(store) == {AgentId("scripted:a"): 3}


async def test_sub_agents_are_agents_of_their_own(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    child = opened("a", "Write the tests", thread="k")[1:]
    ingestion.source.grow("/t/a", *opened("a"), step(1), *child, step(2, thread="k"))
    seen = {f.ref.agent: f.parent for f in await ingestion.told() if isinstance(f, AgentSeen)}
    assert seen == {"scripted:a": "", "scripted:a/k": "scripted:a"}
    assert await stored_steps(store) == {"scripted:a": 1, "scripted:a/k": 1}


async def test_a_crash_at_any_moment_counts_every_step_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """The daemon dies after each event in turn; the transcript is what survives."""
    events: list[TranscriptEvent] = [*opened("a"), *(step(n) for n in range(12))]
    store = MemoryStore()
    for end in range(1, len(events) + 1):
        async with trio.open_nursery() as life:
            ingestion = Ingestion(life, now_utc, store, await store.restore())
            ingestion.source.grow("/t/a", *events[:end])
            await ingestion.told()
            life.cancel_scope.cancel()
    assert await stored_steps(store) == {AgentId("scripted:a"): 12}


class FlakyStore(MemoryStore):
    """Loses the answer, or the work, of every other write: like a cut connection."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def save_progress(self, batch: Sequence[Progress]) -> None:
        self.calls += 1
        if self.calls % 4 == 1:
            raise StoreUnavailable("cut before the commit")
        await super().save_progress(batch)
        if self.calls % 4 == 3:
            raise StoreUnavailable("cut after the commit")


async def test_a_write_of_unknown_outcome_is_repeated_without_counting_twice(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = FlakyStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/a", *opened("a"))
    for n in range(20):
        ingestion.source.grow("/t/a", step(n))
        await trio.sleep(3)
    await trio.sleep(120)
    assert await stored_steps(store) == {AgentId("scripted:a"): 20}
    assert ingestion.intake.backlog == 0


async def test_folding_goes_on_while_the_store_is_away_and_is_stored_afterwards(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/a", *opened("a"), step(0))
    await ingestion.told()
    store.fail_with(StoreUnavailable("away"))
    with capture_logs() as logs:
        ingestion.source.grow("/t/a", step(1))
        advanced = [f for f in await ingestion.told() if isinstance(f, TrajectoryAdvanced)]
        assert advanced[-1].digest.steps == 2
        await trio.sleep(600)
        store.fail_with(None)
        await trio.sleep(60)
    assert await stored_steps(store) == {AgentId("scripted:a"): 2}
    assert [log["event"] for log in logs] == ["store.lost", "store.returned"]


async def test_a_fold_that_cooled_down_is_taken_up_where_it_was(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """Room for ten folds and thirty agents: the first one's is in the store by then."""
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    for n in range(30):
        ingestion.source.grow(f"/t/{n}", *opened(str(n)), step(n))
        await ingestion.told()
    assert len(ingestion.folds) == 10
    ingestion.source.grow("/t/0", step(31))
    advanced = [f for f in await ingestion.told() if isinstance(f, TrajectoryAdvanced)]
    assert [f.digest.steps for f in advanced] == [2]


async def test_a_rewritten_transcript_is_told_again_from_its_start(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/a", *opened("a"), step(1), step(2), step(3))
    await ingestion.told()
    ingestion.source.rewrite("/t/a", *opened("a"), step(9))
    facts = await ingestion.told()
    assert TrajectoryRewound in [type(f) for f in facts]
    assert await stored_steps(store) == {AgentId("scripted:a"): 1}


async def test_a_fork_of_a_session_is_an_agent_of_its_own_before_and_after_a_restart(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """Two files name one session and go different ways: their steps are not mixed."""
    store = MemoryStore()
    one, two = [*opened("a"), step(1)], [*opened("a"), step(2), step(3)]
    for more in (0, 1):
        async with trio.open_nursery() as life:
            ingestion = Ingestion(life, now_utc, store, await store.restore())
            for key, events in (("/t/one", one), ("/t/two", two)):
                ingestion.source.grow(key, *events, *([step(9)] * more))
                await ingestion.told()
            life.cancel_scope.cancel()
    counts = await stored_steps(store)
    assert counts.pop(AgentId("scripted:a")) == 2
    assert list(counts.values()) == [3]


async def test_words_that_nothing_follows_end_the_turn_also_over_a_restart(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """Some makers do not say that a turn has ended; thirty seconds of silence do."""
    store = MemoryStore()
    events = [*opened("a"), step(1), Said("", "Which database should I use?")]
    async with trio.open_nursery() as life:
        ingestion = Ingestion(life, now_utc, store)
        ingestion.source.grow("/t/a", *events)
        facts = await ingestion.told()
        assert [f.after for f in facts if isinstance(f, StateChanged)] == [AgentState.RUNNING]
        await trio.sleep(10)
        life.cancel_scope.cancel()
    ingestion = Ingestion(nursery, now_utc, store, await store.restore())
    ingestion.source.grow("/t/a", *events)
    await trio.sleep(19.9)
    assert not [f for f in await ingestion.told() if isinstance(f, StateChanged)]
    await trio.sleep(0.2)
    facts = await ingestion.told()
    assert [f.after for f in facts if isinstance(f, StateChanged)] == [AgentState.WAITING]
    restored = (await store.restore()).agents[0]
    assert restored.state is AgentState.WAITING
    assert restored.digest is not None
    assert (restored.digest.waiting_on, restored.digest.steps) == ("human", 1)


async def test_an_agent_that_speaks_and_goes_on_did_not_end_its_turn(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    ingestion = Ingestion(nursery, now_utc, MemoryStore())
    ingestion.source.grow("/t/a", *opened("a"), Said("", "Let me look."))
    await trio.sleep(29)
    ingestion.source.grow("/t/a", step(1))
    await trio.sleep(3600)
    states = [f.after for f in await ingestion.told() if isinstance(f, StateChanged)]
    assert states == [AgentState.RUNNING]


async def test_troubles_of_no_transcript_make_no_transcript(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    with capture_logs():
        ingestion.source.trouble("", Incident("link_refused", "/t/x"))
        facts = await ingestion.told()
    assert facts == [SourceTroubled("link_refused", "/t/x", 0)]
    assert (await store.restore()).positions == ()


async def test_what_is_wrong_with_a_transcript_is_told_and_the_rest_goes_on(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    ingestion = Ingestion(nursery, now_utc, MemoryStore())
    with capture_logs() as logs:
        ingestion.source.trouble("/t/a", Incident("record_garbled", "/t/a", 7, {"length": 3}))
        ingestion.source.grow("/t/a", Unread("x"), *opened("a"), step(1))
        facts = await ingestion.told()
    assert SourceTroubled("record_garbled", "/t/a", 7) in facts
    assert any(isinstance(f, TrajectoryAdvanced) for f in facts)
    assert logs == [
        {
            "event": "transcript.troubled",
            "log_level": "warning",
            "kind": "record_garbled",
            "path": "/t/a",
            "line": 7,
            "length": 3,
        }
    ]
