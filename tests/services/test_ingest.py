"""Growth becomes trajectories, and both are stored at once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.codec import MsgpackCodec
from custosd.adapters.memory import MemoryStore
from custosd.adapters.scripted_source import ScriptedSource
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.errors import StoreRefused, StoreUnavailable
from custosd.core.facts import (
    AgentForgotten,
    AgentSeen,
    Entry,
    Fact,
    SourceTroubled,
    StateChanged,
    TrajectoryAdvanced,
    TrajectoryRewound,
)
from custosd.core.folds import Folds
from custosd.core.transcript import Asked, Ended, Opened, RunEnd, Said, TranscriptEvent, Unread
from custosd.core.view import AgentView
from custosd.flow.pulse import Pulses
from custosd.ports import Incident, Progress, Restored, Store, TranscriptPosition
from custosd.services.ingest import follow_transcripts, store_rest
from custosd.services.intake import Intake, Named, nobody, renamed

from .conftest import opened, step

CODEC = MsgpackCodec()


class Ingestion:
    """A running service, over a store that outlives it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        now_utc: Callable[[], datetime],
        store: Store,
        restored: Restored | None = None,
        hot: int = 10,
        named: Named = nobody,
    ) -> None:
        restored = restored or Restored()
        self.source = ScriptedSource(now_utc, restored.positions)
        facts_in, self._facts = trio.open_memory_channel[Fact](10_000)
        self.folds = Folds(hot)
        self.pulses = Pulses()
        self.intake = Intake(self.folds, restored, CODEC, now_utc, named)
        nursery.start_soon(
            follow_transcripts, self.source, facts_in, self.intake, store, CODEC, self.pulses
        )

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
    assert [log for log in logs if log["event"] != "agent.seen"] == [
        {
            "event": "transcript.troubled",
            "log_level": "warning",
            "kind": "record_garbled",
            "path": "/t/a",
            "line": 7,
            "length": 3,
        }
    ]


def session(name: str, agent: str = "", thread: str = "") -> list[TranscriptEvent]:
    return [Opened(thread, name, agent=agent), Asked(thread, "the goal of it")]


async def stored_runs(store: MemoryStore, agent: str) -> dict[str, int | None]:
    runs = store._agents[AgentId(agent)].runs.values()
    return {run.ref.run: run.digest.steps if run.digest else None for run in runs}


async def test_a_batch_larger_than_the_memory_for_folds_loses_no_step(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """Room for three; six cold ones are fetched together and all of them go on."""
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store, hot=3)
    for n in range(6):
        ingestion.source.grow(f"/t/{n}", *opened(str(n)), step(1), step(2))
        await ingestion.told()
    for n in range(6):
        ingestion.source.grow(f"/t/{n}", step(3))
    await ingestion.told()
    assert set((await stored_steps(store)).values()) == {3}


async def test_what_is_not_stored_is_not_let_go_however_little_room_there_is(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store, hot=1)
    store.fail_with(StoreUnavailable("away"))
    for _ in range(2):
        for n in range(5):
            ingestion.source.grow(f"/t/{n}", *opened(str(n)), step(1))
        await ingestion.told()
    assert len(ingestion.folds) == 5
    store.fail_with(None)
    await trio.sleep(60)
    assert set((await stored_steps(store)).values()) == {2}


async def test_the_runs_of_one_agent_are_kept_apart_in_whatever_order_they_grow(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    stories = {"s1": [step(1), step(2)], "s2": [step(1)]}
    async with trio.open_nursery() as life:
        ingestion = Ingestion(life, now_utc, store)
        for name, steps in stories.items():
            ingestion.source.grow(f"/t/{name}", *session(name, "bob"), *steps)
        await ingestion.told()
        assert await stored_runs(store, "scripted:bob") == {"s1": 2, "s2": 1}
        ingestion.source.grow("/t/s1", step(3))
        facts = await ingestion.told()
        assert not [f for f in facts if isinstance(f, TrajectoryAdvanced)], "bob is at s2 now"
        life.cancel_scope.cancel()
    ingestion = Ingestion(nursery, now_utc, store, await store.restore())
    for name, steps in stories.items():
        ingestion.source.grow(f"/t/{name}", *session(name, "bob"), *steps)
    ingestion.source.grow("/t/s1", step(3), step(4))
    await ingestion.told()
    assert await stored_runs(store, "scripted:bob") == {"s1": 4, "s2": 1}


async def test_a_header_further_down_opens_the_next_run_of_the_same_agent(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/a", *session("s1", "bob"), step(1), *session("s2", "bob"), step(2))
    ingestion.source.grow("/t/a", step(3))
    await ingestion.told()
    assert await stored_runs(store, "scripted:bob") == {"s1": 1, "s2": 2}


async def test_two_forks_that_are_met_together_are_kept_apart(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/one", *opened("a"), *(step(n) for n in range(5)))
    ingestion.source.grow("/t/two", *opened("a"), *(step(n) for n in range(3)))
    await ingestion.told()
    assert sorted((await stored_steps(store)).values()) == [3, 5]


async def test_a_rewritten_file_of_a_sub_agent_leaves_the_others_alone(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store)
    ingestion.source.grow("/t/main", *opened("a"), *(step(n) for n in range(5)))
    child = session("a", thread="k")
    ingestion.source.grow("/t/sub", *child, step(1, thread="k"))
    await ingestion.told()
    ingestion.source.rewrite("/t/sub", *child, step(1, thread="k"), step(2, thread="k"))
    await ingestion.told()
    ingestion.source.grow("/t/main", step(9))
    await ingestion.told()
    assert await stored_steps(store) == {"scripted:a": 6, "scripted:a/k": 2}


async def test_what_a_rewriting_took_away_is_gone_from_the_store_too(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """The rewritten file is read in two parts, with a crash between them."""
    store = MemoryStore()
    child = [*session("a", thread="k"), *(step(n, thread="k") for n in range(4))]
    async with trio.open_nursery() as life:
        ingestion = Ingestion(life, now_utc, store)
        ingestion.source.grow("/t/a", *opened("a"), step(1), *child)
        await ingestion.told()
        ingestion.source.rewrite("/t/a", *opened("a"), step(1))
        facts = await ingestion.told()
        told = {f.ref.agent: f.digest.steps for f in facts if isinstance(f, TrajectoryAdvanced)}
        assert told == {"scripted:a": 1, "scripted:a/k": 0}
        life.cancel_scope.cancel()
    ingestion = Ingestion(nursery, now_utc, store, await store.restore())
    ingestion.source.grow("/t/a", *opened("a"), step(1), *child)
    await ingestion.told()
    assert await stored_steps(store) == {"scripted:a": 1, "scripted:a/k": 4}


async def test_a_name_is_not_fixed_by_what_cannot_be_read(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as life:
        ingestion = Ingestion(life, now_utc, store)
        ingestion.source.grow("/t/a", Unread("garbled"))
        await ingestion.told()
        life.cancel_scope.cancel()
    ingestion = Ingestion(nursery, now_utc, store, await store.restore())
    ingestion.source.grow("/t/a", Unread("garbled"), *opened("a"), step(1))
    await ingestion.told()
    assert await stored_steps(store) == {"scripted:a": 1}


async def test_an_agent_in_memory_is_folded_while_another_waits_for_the_store(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store, hot=1)
    for name in ("cold", "hot"):
        ingestion.source.grow(f"/t/{name}", *opened(name), step(1))
        await ingestion.told()
    store.fail_with(StoreUnavailable("away"))
    with capture_logs() as logs:
        for n in range(3):
            ingestion.source.grow("/t/cold", step(2 + n))
            ingestion.source.grow("/t/hot", step(2 + n))
            await trio.sleep(10)
        advanced = [f for f in await ingestion.told() if isinstance(f, TrajectoryAdvanced)]
        assert [(f.ref.agent, f.digest.steps) for f in advanced] == [
            ("scripted:hot", n) for n in (2, 3, 4)
        ]
        store.fail_with(None)
        await trio.sleep(60)
    assert await stored_steps(store) == {"scripted:cold": 4, "scripted:hot": 4}
    lost = [log for log in logs if log["event"] == "store.lost" and log["during"] == "fetch"]
    assert len(lost) == 1, "told once, however often it was asked"


async def test_storing_without_end_is_progress(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """The store is slower than the transcripts: the watchdog must not take that for a hang."""

    class SlowStore(MemoryStore):
        async def save_progress(self, batch: Sequence[Progress]) -> None:
            await trio.sleep(1.0)
            await super().save_progress(batch)

    ingestion = Ingestion(nursery, now_utc, SlowStore())
    ingestion.source.grow("/t/a", *opened("a"))
    for n in range(400):
        ingestion.source.grow("/t/a", step(n))
        await trio.sleep(0.5)
        await ingestion.told()
        assert not ingestion.pulses.stale(trio.current_time(), 10.0)


async def test_one_refused_transcript_is_left_out_whatever_else_goes_wrong_meanwhile(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    class PickyStore(MemoryStore):
        calls = 0

        async def save_progress(self, batch: Sequence[Progress]) -> None:
            self.calls += 1
            if self.calls == 2:
                raise StoreUnavailable("away for a moment")
            if any(p.position.key == "/t/bad" for p in batch):
                raise StoreRefused("bad")
            await super().save_progress(batch)

    store = PickyStore()
    with capture_logs() as logs:
        ingestion = Ingestion(nursery, now_utc, store)
        for name in ("a", "bad", "c"):
            ingestion.source.grow(f"/t/{name}", *opened(name), step(1))
        await trio.sleep(60)
    assert await stored_steps(store) == {"scripted:a": 1, "scripted:c": 1}
    assert [log["path"] for log in logs if log["event"] == "progress.refused"] == ["/t/bad"]
    assert ingestion.intake.backlog == 0


async def test_a_quarantined_agent_is_not_let_out_by_its_own_transcript(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as life:
        ingestion = Ingestion(life, now_utc, store)
        ingestion.source.grow("/t/a", *opened("a"), step(1))
        facts = await ingestion.told()
        life.cancel_scope.cancel()
    ref = next(f.ref for f in facts if isinstance(f, AgentSeen))
    change = StateChanged(ref, AgentState.RUNNING, AgentState.QUARANTINED, "restarts")
    await store.record([Entry("q", now_utc() + timedelta(seconds=1), change)])
    ingestion = Ingestion(nursery, now_utc, store, await store.restore())
    ingestion.source.grow("/t/a", *opened("a"), step(1), step(2))
    assert not [f for f in await ingestion.told() if isinstance(f, StateChanged)]
    assert (await store.restore()).agents[0].state is AgentState.QUARANTINED


async def test_what_has_not_grown_for_too_long_is_forgotten(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    ingestion = Ingestion(nursery, now_utc, MemoryStore())
    ingestion.source.grow("/t/old", *opened("old"), step(1))
    await ingestion.told()
    await trio.sleep(1000)
    ingestion.source.grow("/t/new", *opened("new"), step(1))
    await ingestion.told()
    gone = ingestion.intake.forget(now_utc() - timedelta(seconds=500))
    assert [f.ref.agent for f in gone if isinstance(f, AgentForgotten)] == ["scripted:old"]
    assert len(ingestion.folds) == 1


class CountingStore(MemoryStore):
    """Counts how often it was asked for folds."""

    asked = 0

    async def trajectories(self, refs: Collection[AgentRef]) -> Mapping[AgentRef, bytes]:
        self.asked += 1
        return await super().trajectories(refs)


async def test_a_store_that_is_away_is_asked_again_by_time_and_not_by_growth(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = CountingStore()
    ingestion = Ingestion(nursery, now_utc, store, hot=1)
    for name in ("cold", "hot"):
        ingestion.source.grow(f"/t/{name}", *opened(name), step(1))
        await ingestion.told()
    store.fail_with(StoreUnavailable("away"))
    for n in range(600):
        ingestion.source.grow("/t/cold", step(n))
        await trio.sleep(0.1)
    assert store.asked <= 8, "after 0.5, 1, 2, 4 ... seconds"


async def test_what_follows_on_held_back_growth_of_a_file_waits_with_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    """The main agent is cold and its sub-agent hot: the file's position must not jump ahead."""
    store = MemoryStore()
    ingestion = Ingestion(nursery, now_utc, store, hot=1)
    child = session("a", thread="k")
    ingestion.source.grow("/t/a", *opened("a"), step(1), *child)
    await ingestion.told()
    ingestion.source.grow("/t/a", step(2, thread="k"))
    await ingestion.told()
    ingestion.source.grow("/t/a", step(3, thread="k"))
    await ingestion.told()
    offset = (await store.restore()).positions[0].offset
    store.fail_with(StoreUnavailable("away"))
    ingestion.source.grow("/t/a", step(4))
    await trio.sleep(0.1)
    ingestion.source.grow("/t/a", step(5, thread="k"))
    await trio.sleep(0.1)
    assert ingestion.intake.backlog == 0, "nothing of the file was folded out of order"
    assert (ingestion.source._tales["/t/a"].told, offset) == (offset + 2, offset)
    store.fail_with(None)
    await trio.sleep(60)
    assert await stored_steps(store) == {"scripted:a": 2, "scripted:a/k": 3}


async def test_a_refused_transcript_is_told_of_once_and_not_tried_for_ever(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    class RefusingStore(MemoryStore):
        async def save_progress(self, batch: Sequence[Progress]) -> None:
            raise StoreRefused("bad")

    with capture_logs() as logs:
        ingestion = Ingestion(nursery, now_utc, RefusingStore())
        ingestion.source.grow("/t/bad", *opened("bad"))
        for n in range(10):
            ingestion.source.grow("/t/bad", step(n))
            await trio.sleep(1)
    assert [log["event"] for log in logs] == ["agent.seen", "progress.refused"]


async def test_a_stop_in_the_middle_of_a_save_stores_it_all_the_same(
    autojump_clock: trio.testing.MockClock, now_utc: Callable[[], datetime]
) -> None:
    class SlowStore(MemoryStore):
        async def save_progress(self, batch: Sequence[Progress]) -> None:
            await trio.sleep(1.0)
            await super().save_progress(batch)

    store = SlowStore()
    async with trio.open_nursery() as life:
        ingestion = Ingestion(life, now_utc, store)
        ingestion.source.grow("/t/a", *opened("a"), step(1))
        await trio.sleep(0.5)
        life.cancel_scope.cancel()
    await store_rest(ingestion.intake, store)
    assert await stored_steps(store) == {"scripted:a": 1}


async def test_a_transcript_below_an_agents_folder_is_that_agents_whatever_it_calls_itself(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    store = MemoryStore()

    def named(path: str) -> AgentId | None:
        return AgentId("builder") if path.startswith("/t/builder/") else None

    ingestion = Ingestion(nursery, now_utc, store, named=named)
    child = opened("one", "Write the tests", thread="k")[1:]
    ingestion.source.grow("/t/builder/1", *opened("one"), step(1), *child, step(2, thread="k"))
    ingestion.source.grow("/t/other/1", *opened("two"), step(1))
    seen = {f.ref for f in await ingestion.told() if isinstance(f, AgentSeen)}
    assert {(ref.agent, ref.run) for ref in seen} == {
        ("builder", "one"),
        ("builder/k", "one"),
        ("scripted:two", "two"),
    }


async def test_an_earlier_session_that_is_met_later_is_not_how_the_agent_stands(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, now_utc: Callable[[], datetime]
) -> None:
    ingestion = Ingestion(nursery, now_utc, MemoryStore(), named=lambda _: AgentId("builder"))
    ingestion.source.grow("/t/2", *opened("new"), step(1))
    await ingestion.told()
    early = now_utc() - timedelta(days=1)
    ingestion.source.grow("/t/1", *opened("old"), step(1), grown_utc=early)
    assert await ingestion.told() == []


async def test_a_transcript_that_was_given_to_an_agent_since_is_read_anew() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    views = tuple(
        AgentView(AgentRef(AgentId(name), RunId("s")), "scripted", path, "", now)
        for name, path in (("scripted:a", "/t/a"), ("scripted:b", "/t/b"), ("builder/k", "/t/c"))
    )
    positions = tuple(
        TranscriptPosition(view.path, view.path, "scripted", "s", 1, b"") for view in views
    )
    before = Restored(views, positions)

    def named(path: str) -> AgentId | None:
        return AgentId("builder") if path in {"/t/a", "/t/c"} else None

    after = renamed(before, named)
    assert [position.path for position in after.positions] == ["/t/b", "/t/c"]
    assert [view.ref.agent for view in after.agents] == ["scripted:b", "builder/k"]
    gone = renamed(before, lambda _: None)
    assert [position.path for position in gone.positions] == ["/t/a", "/t/b"]
