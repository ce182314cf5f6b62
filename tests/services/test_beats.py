from datetime import UTC, datetime

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import Beat, BeatStatus, Refusal
from custosd.core.lives import LifeRecord
from custosd.services.beats import MOST_COUNTED, BeatRegister

ADA, BOB = AgentId("ada"), AgentId("bob")
NOW_UTC = datetime(2026, 1, 1, tzinfo=UTC)


def register(most_agents: int = 100) -> BeatRegister:
    return BeatRegister(lambda agent: agent != "stranger", most_agents)


def beat(agent: AgentId = ADA, epoch: int = 0, sequence: int = 1) -> Beat:
    return Beat(agent, epoch, sequence)


async def test_the_newest_beat_of_each_agent_is_handed_over_once() -> None:
    beats = register()
    for sequence in (1, 2, 3):
        assert beats.offer(beat(sequence=sequence), "socket") is None
    assert beats.offer(beat(BOB), "http") is None
    batch = await beats.next_batch()
    assert [(r.beat.agent, r.beat.sequence, r.door) for r in batch] == [
        (ADA, 3, "socket"),
        (BOB, 1, "http"),
    ]
    assert beats.take() == []
    assert beats.take_counts().superseded == 2
    assert beats.accepted == 4


async def test_a_batch_has_a_bound_and_the_rest_stays() -> None:
    beats = register()
    for n in range(5):
        beats.offer(beat(AgentId(f"a{n}")), "socket")
    first = await beats.next_batch(3)
    assert [r.beat.agent for r in first] == ["a0", "a1", "a2"]
    assert [r.beat.agent for r in beats.take(3)] == ["a3", "a4"]


async def test_who_waits_for_beats_is_woken_and_loses_none_when_cancelled(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    beats = register()
    with trio.move_on_after(5) as scope:
        await beats.next_batch()
    assert scope.cancelled_caught

    async def speak() -> None:
        await trio.sleep(3)
        beats.offer(beat(), "socket")

    nursery.start_soon(speak)
    (received,) = await beats.next_batch()
    assert received.at == trio.current_time()


async def test_replays_and_old_incarnations_are_refused() -> None:
    beats = register()
    assert beats.offer(beat(epoch=4, sequence=10), "socket") is None, "the first word counts"
    assert beats.offer(beat(epoch=4, sequence=10), "socket") is Refusal.REPLAYED
    assert beats.offer(beat(epoch=4, sequence=9), "socket") is Refusal.REPLAYED
    assert beats.offer(beat(epoch=3, sequence=11), "socket") is Refusal.OLD_EPOCH
    assert beats.offer(beat(epoch=5, sequence=11), "socket") is Refusal.FUTURE_EPOCH
    assert beats.offer(beat(AgentId("stranger")), "socket") is Refusal.UNKNOWN_AGENT
    counts = beats.take_counts()
    assert counts.refused == {
        (Refusal.REPLAYED, ADA): 2,
        (Refusal.OLD_EPOCH, ADA): 1,
        (Refusal.FUTURE_EPOCH, ADA): 1,
        (Refusal.UNKNOWN_AGENT, "stranger"): 1,
    }
    assert beats.take_counts().refused == {}


async def test_the_incarnation_that_a_restart_expects_is_let_in_and_shuts_out_the_old() -> None:
    beats = register()
    beats.offer(beat(sequence=10), "socket")
    beats.expect(ADA, 1)
    assert beats.offer(beat(sequence=11), "socket") is None, "the old one still speaks"
    assert beats.offer(beat(epoch=2, sequence=1), "socket") is Refusal.FUTURE_EPOCH
    assert beats.offer(beat(epoch=1, sequence=1), "socket") is None, "a sequence starts anew"
    assert beats.offer(beat(sequence=12), "socket") is Refusal.OLD_EPOCH
    beats.fence(ADA, 1)
    assert beats.offer(beat(epoch=1, sequence=2), "socket") is None
    (received,) = await beats.next_batch()
    assert received.beat.epoch == 1


async def test_a_fence_drops_what_waits_of_an_older_incarnation() -> None:
    beats = register()
    beats.offer(beat(sequence=10), "socket")
    beats.fence(ADA, 1)
    assert beats.take() == []
    assert beats.offer(beat(sequence=11), "socket") is Refusal.OLD_EPOCH
    assert beats.offer(beat(epoch=2, sequence=1), "socket") is Refusal.FUTURE_EPOCH
    assert beats.offer(beat(epoch=1, sequence=0), "socket") is None


async def test_an_agent_that_never_spoke_and_was_restarted_has_the_epoch_it_was_given() -> None:
    beats = register()
    beats.fence(BOB, 3)
    assert beats.offer(beat(BOB, epoch=7), "socket") is Refusal.FUTURE_EPOCH
    assert beats.offer(beat(BOB, epoch=3), "socket") is None


async def test_what_a_daemon_before_us_heard_is_not_new() -> None:
    beats = register()
    beats.restore(
        [
            LifeRecord(ADA, 2, 40, AgentState.RUNNING, NOW_UTC, NOW_UTC),
            LifeRecord(BOB, 0, 0, AgentState.STARTING, NOW_UTC),
        ]
    )
    assert beats.offer(beat(epoch=2, sequence=40), "socket") is Refusal.REPLAYED
    assert beats.offer(beat(epoch=1, sequence=41), "socket") is Refusal.OLD_EPOCH
    assert beats.offer(beat(epoch=2, sequence=41), "socket") is None
    assert beats.offer(beat(BOB, epoch=5, sequence=1), "socket") is None


async def test_more_agents_than_there_is_room_for_are_refused_and_room_can_be_made() -> None:
    beats = register(most_agents=2)
    assert beats.offer(beat(AgentId("a")), "socket") is None
    assert beats.offer(beat(AgentId("b")), "socket") is None
    assert beats.offer(beat(AgentId("c")), "socket") is Refusal.FULL
    assert beats.offer(beat(AgentId("b"), sequence=2), "socket") is None
    beats.forget(AgentId("a"))
    assert beats.offer(beat(AgentId("c")), "socket") is None


def test_refusals_are_counted_apart_for_so_many_agents_and_together_beyond() -> None:
    beats = register()
    for n in range(MOST_COUNTED + 50):
        beats.refuse(Refusal.FORGED, AgentId(f"a{n}"))
    counts = beats.take_counts().refused
    assert counts[Refusal.FORGED, None] == 50
    assert len(counts) == MOST_COUNTED + 1
    assert sum(counts.values()) == MOST_COUNTED + 50


@pytest.mark.parametrize("most_agents", [3])
@given(
    ops=st.lists(
        st.tuples(
            st.sampled_from(["offer", "offer", "offer", "expect", "fence", "take"]),
            st.integers(0, 4),
            st.integers(0, 3),
            st.integers(0, 9),
        ),
        max_size=60,
    )
)
def test_epoch_and_sequence_only_grow_and_nothing_let_in_is_lost(
    most_agents: int, ops: list[tuple[str, int, int, int]]
) -> None:
    """Whatever is offered: what is handed over of an agent is ever newer, and bounded."""

    async def play() -> None:
        beats = register(most_agents)
        handed: dict[AgentId, tuple[int, int]] = {}
        newest: dict[AgentId, tuple[int, int]] = {}
        fenced: dict[AgentId, int] = {}
        for op, agent_n, epoch, sequence in [*ops, ("take", 0, 0, 0)]:
            agent = AgentId(f"a{agent_n}")
            match op:
                case "offer":
                    told = Beat(agent, epoch, sequence, BeatStatus.RUNNING)
                    if beats.offer(told, "socket") is None:
                        assert (epoch, sequence) > newest.get(agent, (-1, -1))
                        assert epoch >= fenced.get(agent, 0)
                        newest[agent] = (epoch, sequence)
                case "expect":
                    beats.expect(agent, epoch)
                case "fence":
                    beats.fence(agent, epoch)
                    fenced[agent] = max(epoch, fenced.get(agent, 0))
                case _:
                    batch = beats.take()
                    assert len(batch) <= most_agents + len(fenced)
                    for received in batch:
                        key = (received.beat.epoch, received.beat.sequence)
                        assert key > handed.get(received.beat.agent, (-1, -1))
                        assert key == newest[received.beat.agent]
                        handed[received.beat.agent] = key

    trio.run(play)


async def test_a_configured_agent_is_heard_however_many_were_heard_before_it() -> None:
    """Names that are used once would else shut out those who are waited for."""
    beats = BeatRegister(lambda _: True, 2, {ADA}.__contains__)
    beats.restore(
        LifeRecord(AgentId(name), 0, 5, AgentState.TERMINATED, NOW_UTC, NOW_UTC)
        for name in ("job-1", "job-2", "job-3")
    )
    assert beats.offer(beat(BOB), "socket") is Refusal.FULL
    assert beats.offer(beat(ADA), "socket") is None
    assert beats.offer(beat(ADA), "socket") is Refusal.REPLAYED
