"""The record: batched, patient with a store that is away, strict about what is bad."""

from datetime import UTC, datetime

import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.memory import MemoryStore
from custosd.core.agents import AgentId, AgentRef, RunId
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import AgentSeen, Entry
from custosd.flow.pulse import Pulse
from custosd.services.recorder import InHand, RecorderLimits, record_facts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = RecorderLimits(batch=10, flush_s=1.0)


async def recorded(
    entries: trio.MemoryReceiveChannel[Entry], store: MemoryStore, in_hand: InHand | None = None
) -> None:
    pulse = Pulse("recorder", trio.current_time())
    await record_facts(entries, store, LIMITS, pulse, in_hand or InHand())


def entry(n: int, at: datetime = NOW) -> Entry:
    ref = AgentRef(AgentId(f"t:{n}"), RunId("r"))
    return Entry(f"boot-{n:04}", at, AgentSeen(ref, "t", "/t", "", NOW))


async def test_every_entry_is_stored_before_the_recorder_ends(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    store = MemoryStore()
    entries_in, entries = trio.open_memory_channel[Entry](100)
    for n in range(25):
        await entries_in.send(entry(n))
    await entries_in.aclose()
    await recorded(entries, store)
    assert len(await store.recent_entries(None, 100)) == 25


async def test_an_outage_costs_time_and_no_entry(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """The store is away for an hour; what was told in the meantime is there afterwards."""
    store = MemoryStore()
    store.fail_with(StoreUnavailable("away"))
    entries_in, entries = trio.open_memory_channel[Entry](100)
    with capture_logs() as logs:
        nursery.start_soon(recorded, entries, store)
        for n in range(25):
            await entries_in.send(entry(n))
        await trio.sleep(3600)
        store.fail_with(None)
        assert await store.recent_entries(None, 100) == ()
        await trio.sleep(60)
    assert len(await store.recent_entries(None, 100)) == 25
    assert [log["event"] for log in logs] == ["store.lost", "store.returned"]


async def test_a_refused_entry_is_told_of_and_takes_no_other_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    entries_in, entries = trio.open_memory_channel[Entry](100)
    for n in range(9):
        # A time without a zone is nothing that a store may take.
        await entries_in.send(entry(n, NOW if n != 4 else NOW.replace(tzinfo=None)))
    await entries_in.aclose()
    with capture_logs() as logs:
        await recorded(entries, store)
    assert len(await store.recent_entries(None, 100)) == 8
    assert [(log["event"], log["id"]) for log in logs] == [("fact.refused", "boot-0004")]


async def test_what_a_cancellation_would_lose_is_counted(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    store, in_hand = MemoryStore(), InHand()
    store.fail_with(StoreUnavailable("away"))
    entries_in, entries = trio.open_memory_channel[Entry](100)
    for n in range(12):
        await entries_in.send(entry(n))
    nursery.start_soon(recorded, entries, store, in_hand)
    await trio.sleep(60)
    assert (in_hand.entries, entries_in.statistics().current_buffer_used) == (10, 2)
    store.fail_with(None)
    await trio.sleep(60)
    assert in_hand.entries == 0


async def test_waiting_for_entries_or_for_a_store_that_is_away_is_no_lack_of_progress(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    store, pulse = MemoryStore(), Pulse("recorder", trio.current_time())
    entries_in, entries = trio.open_memory_channel[Entry](100)
    nursery.start_soon(record_facts, entries, store, LIMITS, pulse, InHand())
    await trio.sleep(3600)
    assert pulse.age_s(trio.current_time()) == 0
    store.fail_with(StoreUnavailable("away"))
    await entries_in.send(entry(1))
    await trio.sleep(3600)
    assert pulse.age_s(trio.current_time()) == 0


async def test_a_store_that_never_answers_is_a_lack_of_progress(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    class Hanging(MemoryStore):
        async def record(self, entries: object) -> None:
            del entries
            await trio.sleep_forever()

    pulse = Pulse("recorder", trio.current_time())
    entries_in, entries = trio.open_memory_channel[Entry](100)
    nursery.start_soon(record_facts, entries, Hanging(), LIMITS, pulse, InHand())
    await entries_in.send(entry(1))
    await trio.sleep(3600)
    assert pulse.age_s(trio.current_time()) > 3590
