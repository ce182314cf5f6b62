"""What is cut off, dropped or mixed up leaves no message lost, sent twice, or unheard of."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import pytest
import trio
import trio.testing
from tests.services.steering_stage import ADA, BOB, SUGGEST, Stage

from custosd.adapters.channels.recorded import RecordedChannel
from custosd.adapters.memory_actions import MemoryActions
from custosd.core.acts import ActOutcome
from custosd.core.agents import AgentId
from custosd.core.errors import ChannelError
from custosd.core.holds import HoldKind
from custosd.core.steering import Intervention, InterventionState, Receipt
from custosd.core.verdicts import Standing, SteeringKind
from custosd.flow.pulse import Pulses
from custosd.services.steerer import keep_steering

S = InterventionState
Clock = trio.testing.MockClock
Wall = Callable[[], datetime]


class SlowStore(MemoryActions):
    """Commits, and answers `answer_s` later; tells a hook before it answers."""

    def __init__(self, now_utc: Wall) -> None:
        super().__init__(now_utc)
        self.answer_s = 0.0
        self.on_commit: Callable[[], object] | None = None

    async def propose(self, intervention: Intervention) -> bool:
        stored = await super().propose(intervention)
        await self._answer()
        return stored

    async def save_intervention(self, intervention: Intervention, before: S) -> bool:
        saved = await super().save_intervention(intervention, before)
        await self._answer()
        return saved

    async def interventions(self, since_utc: datetime) -> tuple[Intervention, ...]:
        found = await super().interventions(since_utc)
        await self._answer()
        return found

    async def _answer(self) -> None:
        if self.on_commit is not None:
            self.on_commit()
        if self.answer_s:
            await trio.sleep(self.answer_s)


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    """The stage with its steerer at work; left, the daemon is gone."""
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.run)
        yield stage
        nursery.cancel_scope.cancel()


# Cancelled between the commit and the answer: an act has its time, and then it is over.


async def test_a_message_whose_author_gave_up_waiting_for_the_store_goes_its_way(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    store = SlowStore(now_utc)
    async with running(Stage(now_utc, store=store)) as stage:
        stage.meet(ADA)
        store.answer_s = 100.0
        with trio.move_on_after(30) as act:
            await stage.steerer.steer(ADA, "hello", "uid:0")
        assert act.cancelled_caught
        store.answer_s = 0.0
        await trio.sleep(5)
        assert await stage.states() == [S.DELIVERED]
        (letter,) = stage.channel().letters
        assert stage.changes(letter.id) == [S.PROPOSED, S.APPROVED, S.QUEUED, S.DELIVERED]


async def test_a_message_that_nobody_waits_for_any_more_and_that_cannot_go_is_a_dead_letter(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    store = SlowStore(now_utc)
    async with running(Stage(now_utc, store=store)) as stage:
        stage.meet(ADA)
        store.answer_s = 100.0
        with trio.move_on_after(30):
            await stage.steerer.steer(ADA, "hello", "uid:0")
        store.answer_s = 0.0
        await stage.hold(HoldKind.PAUSE, ADA)
        await trio.sleep(7_200)
        (item,) = await stage.stored()
        assert item.state is S.EXPIRED
        assert stage.channel().offered == []
        assert stage.concerns() == {f"letter:{item.id}"}


async def test_an_approval_whose_author_gave_up_waiting_for_the_store_counts(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    store = SlowStore(now_utc)
    async with running(Stage(now_utc, SUGGEST, store)) as stage:
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(5)
        (item,) = await stage.stored()
        store.answer_s = 100.0
        with trio.move_on_after(30) as act:
            await stage.steerer.approve(item.id, "uid:0")
        assert act.cancelled_caught
        store.answer_s = 0.0
        await trio.sleep(5)
        assert await stage.states() == [S.DELIVERED]
        assert stage.changes(item.id) == [S.PROPOSED, S.APPROVED, S.QUEUED, S.DELIVERED]


async def test_what_was_stored_as_its_author_gave_up_is_told_all_the_same(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """The answer is there, and so is the end of the act's time."""
    store = SlowStore(now_utc)
    async with running(Stage(now_utc, store=store)) as stage:
        stage.meet(ADA)
        await stage.hold(HoldKind.PAUSE, BOB)
        with trio.CancelScope() as act:

            def give_up() -> None:
                store.on_commit = None
                act.cancel()

            store.on_commit = give_up
            await stage.steerer.steer(ADA, "hello", "uid:0")
        assert act.cancelled_caught
        await trio.sleep(5)
        (letter,) = stage.channel().letters
        assert stage.changes(letter.id) == [S.PROPOSED, S.APPROVED, S.QUEUED, S.DELIVERED]


# Agents that are dismissed, or get another channel, while something is under way.


class SlowChannel(RecordedChannel):
    """Takes its time, and then cannot be reached."""

    async def receipts(self, ids: Collection[str]) -> Sequence[Receipt]:
        await trio.sleep(5)
        raise ChannelError("http_unreachable", f"{len(ids)} letters", retry=True)


async def test_an_agent_that_is_dismissed_while_its_channel_is_asked_is_no_crash(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    stage = Stage(now_utc, channels={ADA: SlowChannel(), BOB: RecordedChannel()})
    async with running(stage):
        stage.meet(ADA, BOB)
        assert (await stage.steerer.steer(ADA, "hello", "uid:0", wait_s=3)).outcome is (
            ActOutcome.DONE
        )
        await trio.sleep(7)
        del stage.channels[ADA]
        await trio.sleep(30)
        # The steerer is at work still, and a letter that nobody can prove is told of.
        answer = await stage.steerer.steer(BOB, "hello", "uid:0", wait_s=5)
        assert answer.outcome is ActOutcome.DONE
        await trio.sleep(7_200)
        assert stage.concerns() == {f"letter:{item.id}" for item in await stage.stored()}


class Dismissal(trio.abc.Instrument):
    """Dismisses an agent when the delivery of its message is about to take its first step."""

    def __init__(self, stage: Stage, agent: AgentId) -> None:
        self.stage = stage
        self.agent = agent

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("Dispatch._deliver"):
            self.stage.channels.pop(self.agent, None)


async def test_an_agent_that_is_dismissed_as_its_message_goes_out_is_no_crash(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """The message waits for a channel, says so, and is a dead letter when it runs out."""
    ada = RecordedChannel()
    async with running(Stage(now_utc, channels={ADA: ada})) as stage:
        stage.meet(ADA)
        trio.lowlevel.add_instrument(Dismissal(stage, ADA))
        await stage.steerer.steer(ADA, "hello", "uid:0")
        await trio.sleep(60)
        assert ADA not in stage.channels
        assert ada.offered == []
        assert [c.why for _, c in stage.steerer.outlook(ADA)] == ["no_channel"]
        await trio.sleep(7_200)
        (item,) = await stage.stored()
        assert item.state is S.EXPIRED
        assert stage.concerns() == {f"letter:{item.id}"}


async def test_a_message_goes_by_the_channel_that_its_agent_has_now(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """The configuration changed while the attempt was being stored."""
    store = SlowStore(now_utc)
    before, after = RecordedChannel("tmux"), RecordedChannel("inbox")
    async with running(Stage(now_utc, store=store, channels={ADA: before})) as stage:
        stage.meet(ADA)

        def change() -> None:
            if stage.steerer.interventions():
                stage.channels[ADA] = after

        store.on_commit = change
        await stage.steerer.steer(ADA, "hello", "uid:0")
        await trio.sleep(30)
        assert (before.offered, len(after.letters)) == ([], 1)


# Keys.


async def test_one_key_is_one_message_to_each_agent(autojump_clock: Clock, now_utc: Wall) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, BOB)
        for _ in range(2):
            for agent in (ADA, BOB):
                said = await stage.steerer.steer(agent, "freeze", "uid:0", key="k", wait_s=5)
                assert said.outcome is ActOutcome.DONE
        assert [len(stage.channel(agent).letters) for agent in (ADA, BOB)] == [1, 1]
        other = await stage.steerer.steer(ADA, "freeze", "uid:1", key="k", wait_s=5)
        assert other.outcome is ActOutcome.DONE
        assert len(stage.channel().letters) == 2


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_key_does_not_stand_for_other_words(
    autojump_clock: Clock, now_utc: Wall, *, dry_run: bool
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await stage.steerer.steer(ADA, "freeze", "uid:0", key="k", wait_s=5)
        for text, kind in [
            ("thaw", SteeringKind.GUIDANCE),
            ("freeze", SteeringKind.EMERGENCY),
        ]:
            answer = await stage.steerer.steer(ADA, text, "uid:0", kind, key="k", dry_run=dry_run)
            assert answer.outcome is ActOutcome.REFUSED
            assert "choose a new key" in answer.message
        assert len(stage.channel().letters) == 1


async def test_a_key_whose_first_answer_was_lost_does_not_stand_for_other_words(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """Also where only the store knows yet what it stands for."""
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await stage.steerer.steer(ADA, "freeze", "uid:0", key="k")
        (first,) = await stage.stored()
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await trio.sleep(2)
        await stage.store.propose(first)
        for text, outcome in [("thaw", ActOutcome.REFUSED), ("freeze", ActOutcome.DONE)]:
            answer = await stage.steerer.steer(ADA, text, "uid:0", key="k")
            assert answer.outcome is outcome


# The watchdog.


async def test_a_store_that_does_not_answer_is_no_stand_still_of_the_steerer(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    store = SlowStore(now_utc)
    stage = Stage(now_utc, store=store)
    pulses = Pulses()

    async def steering(task_status: trio.TaskStatus[None]) -> None:
        with pulses.watched("steering") as pulse:
            await keep_steering(stage.steerer, pulse, task_status=task_status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage._board)
        await nursery.start(steering)
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        store.answer_s = 200.0
        for _ in range(300):
            await trio.sleep(3)
            assert pulses.stale(trio.current_time(), 120.0) == {}
        nursery.cancel_scope.cancel()
