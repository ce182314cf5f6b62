"""Messages arrive once, late, or loudly not at all; never under a hold, never out of date."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.services.steering_stage import (
    ACT,
    ADA,
    BOB,
    OBSERVE,
    SUGGEST,
    Crash,
    Fuse,
    FusedStore,
    Stage,
)

from custosd.adapters.channels.recorded import RecordedChannel
from custosd.core.acts import ActOutcome
from custosd.core.agents import AgentId, AgentState
from custosd.core.errors import ChannelError, StoreConflict, StoreRefused, StoreUnavailable
from custosd.core.evidence import Condition, Value
from custosd.core.facts import Escalated, InterventionChanged, LifeChanged
from custosd.core.holds import HoldKind
from custosd.core.steering import CLOSED, TRANSITIONS, InterventionState, Letter, Receipt, end_of
from custosd.core.steering_policy import SteeringLimits, held_out
from custosd.core.trajectory import Activity
from custosd.core.verdicts import Standing, SteeringKind
from custosd.flow.clock import wall_clock

S = InterventionState
Clock = trio.testing.MockClock
Wall = Callable[[], datetime]
RETRY = ChannelError("no_pane", retry=True)
FOR_GOOD = ChannelError("not_the_agent")


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    """The stage with its steerer at work; left, the daemon is gone."""
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.run)
        yield stage
        nursery.cancel_scope.cancel()


# In act: from a standing to a letter, and on.


async def test_a_standing_that_needs_steering_becomes_a_letter_that_is_read_and_acted_upon(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        (letter,) = stage.channel().letters
        assert letter.text.startswith("[custosd supervisor · guidance · stuck · id ")
        assert "| seen: stuck\n" in letter.text
        assert await stage.states() == [S.DELIVERED]
        assert stage.concerns() == {"standing:ada"}
        stage.channel().acknowledge(letter.id)
        await trio.sleep(6)
        assert await stage.states() == [S.ACKNOWLEDGED]
        stage.advance(ADA, 4, Activity.WORKING)
        await trio.sleep(2)
        (acted,) = await stage.stored()
        assert acted.state is S.ACTED
        assert (acted.attempts, acted.channel, acted.approved_by) == (1, "recorded", "policy")
        stage.judge(ADA, Standing.PROGRESSING)
        await trio.sleep(700)
        (done,) = await stage.stored()
        assert (done.standing_before, done.standing_after) == (Standing.STUCK, Standing.PROGRESSING)
        assert stage.concerns() == set()
        assert stage.changes(letter.id) == [
            S.PROPOSED,
            S.APPROVED,
            S.QUEUED,
            S.DELIVERED,
            S.ACKNOWLEDGED,
            S.ACTED,
        ]


async def test_no_text_of_a_message_gets_into_facts_or_the_log(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    with capture_logs() as logs:
        async with running(Stage(now_utc)) as stage:
            stage.meet(ADA)
            stage.judge(ADA, Standing.STUCK, message="hunter2")
            await stage.steerer.steer(BOB, "hunter2", "uid:0")
            stage.channel().fail_next(RETRY, FOR_GOOD)
            await trio.sleep(60)
    said = [log for log in logs if log["event"] == "intervention.changed"]
    assert said
    assert "hunter2" not in repr(logs)
    changed = [f for f in stage.told if isinstance(f, InterventionChanged | Escalated)]
    assert "hunter2" not in repr(changed)


async def test_a_message_waits_for_the_end_of_the_turn(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, activity=Activity.WORKING)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(120)
        assert stage.arrived() == []
        assert [c.why for _, c in stage.steerer.outlook(ADA)] == ["mid_turn"]
        stage.advance(ADA, 3, Activity.WAITING)
        await trio.sleep(2)
        assert len(stage.arrived()) == 1


async def test_an_inbox_takes_it_in_the_middle_of_a_turn_and_an_emergency_interrupts_any(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    channels = {ADA: RecordedChannel("inbox"), BOB: RecordedChannel("tmux")}
    async with running(Stage(now_utc, channels=dict(channels))) as stage:
        stage.meet(ADA, BOB, activity=Activity.WORKING)
        stage.judge(ADA, Standing.STUCK)
        stage.judge(BOB, Standing.DRIFTING, SteeringKind.EMERGENCY, agreed=False)
        await trio.sleep(2)
        assert len(channels[ADA].letters) == len(channels[BOB].letters) == 1
        assert channels[BOB].letters[0].kind is SteeringKind.EMERGENCY


async def test_an_emergency_takes_the_place_of_a_gentler_message_that_waits(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, activity=Activity.WORKING)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(5)
        stage.judge(ADA, Standing.STUCK, SteeringKind.EMERGENCY, "stop now")
        await trio.sleep(3)
        assert [letter.kind for letter in stage.channel().letters] == [SteeringKind.EMERGENCY]
        assert await stage.states() == [S.EXPIRED, S.DELIVERED]


async def test_what_is_not_so_any_more_is_not_said(autojump_clock: Clock, now_utc: Wall) -> None:
    """In doubt it waits; when the agent recovered it is closed, and nobody is bothered."""
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, activity=Activity.WORKING)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        stage.judge(ADA, Standing.UNKNOWN, agreed=False)
        stage.advance(ADA, 3)
        await trio.sleep(3)
        assert await stage.states() == [S.QUEUED]
        stage.judge(ADA, Standing.PROGRESSING)
        await trio.sleep(3)
        (item,) = await stage.stored()
        assert (item.state, end_of(item)) == (S.EXPIRED, "superseded")
        assert stage.concerns() == set()
        assert stage.arrived() == []


# Modes.


async def test_in_observe_it_is_written_down_told_and_never_sent(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc, OBSERVE)) as stage:
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        (item,) = await stage.stored()
        assert item.state is S.PROPOSED
        assert stage.concerns() == {"standing:ada"}
        answer = await stage.steerer.approve(item.id, "uid:0")
        assert answer.outcome is ActOutcome.REFUSED
        await trio.sleep(1_800)
        assert stage.steerer.get(item.id).state is S.EXPIRED  # type: ignore[union-attr]
        assert stage.arrived() == []
        assert stage.concerns() == {"standing:ada"}


async def test_a_proposal_that_ran_out_a_moment_ago_can_not_be_approved_any_more(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """The wall clock was set, and nobody has looked at what is over since."""
    ahead = timedelta()
    async with running(Stage(lambda: now_utc() + ahead, SUGGEST)) as stage:
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(60)
        (item,) = await stage.stored()
        assert item.state is S.PROPOSED
        ahead = item.expires_utc - now_utc()
        answer = await stage.steerer.approve(item.id, "uid:0")
        assert answer.outcome is ActOutcome.REFUSED
        assert "ran out" in answer.message
        await trio.sleep(600)
        assert await stage.states() == [S.EXPIRED]
        assert stage.arrived() == []


async def test_in_suggest_a_person_decides(autojump_clock: Clock, now_utc: Wall) -> None:
    async with running(Stage(now_utc, SUGGEST)) as stage:
        stage.meet(ADA, BOB)
        stage.judge(ADA, Standing.STUCK)
        stage.judge(BOB, Standing.STUCK)
        await trio.sleep(60)
        assert stage.arrived() == []
        (ada,) = await stage.stored(ADA)
        (bob,) = await stage.stored(BOB)
        dry = await stage.steerer.approve(ada.id, "uid:0", dry_run=True)
        assert dry.outcome is ActOutcome.WOULD_BE_DONE
        assert await stage.states(ADA) == [S.PROPOSED]
        assert (await stage.steerer.approve(ada.id, "uid:0")).outcome is ActOutcome.DONE
        assert (await stage.steerer.reject(bob.id, "uid:0")).outcome is ActOutcome.DONE
        again = await stage.steerer.approve(bob.id, "uid:0")
        assert again.outcome is ActOutcome.NOTHING_TO_DO
        nobody = await stage.steerer.reject("i-x", "uid:0")
        assert nobody.outcome is ActOutcome.UNKNOWN_SUBJECT
        await trio.sleep(600)
        assert stage.arrived() == [ada.id]
        (ada,) = await stage.stored(ADA)
        (bob,) = await stage.stored(BOB)
        assert (ada.approved_by, ada.state) == ("uid:0", S.DELIVERED)
        assert (bob.failure, bob.state) == ("rejected", S.FAILED)
        # Neither is a letter that was lost; what was rejected is not proposed once more.
        assert stage.concerns() == {"standing:ada", "standing:bob"}


async def test_what_was_proposed_is_sent_when_the_mode_becomes_act_and_kept_when_it_is_not(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc, OBSERVE)) as stage:
        stage.meet(ADA, BOB)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        stage.steerer.adopt(ACT)
        await trio.sleep(3)
        assert len(stage.channel(ADA).letters) == 1
        stage.advance(BOB, 3, Activity.WORKING)
        stage.judge(BOB, Standing.STUCK)
        await trio.sleep(3)
        assert await stage.states(BOB) == [S.QUEUED]
        stage.steerer.adopt(OBSERVE)
        stage.advance(BOB, 3)
        await trio.sleep(1_000)
        assert stage.channel(BOB).letters == []


async def test_an_agent_without_a_channel_is_observed_in_every_mode(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    carl = AgentId("carl")
    async with running(Stage(now_utc)) as stage:
        stage.meet(carl)
        stage.judge(carl, Standing.STUCK)
        await trio.sleep(60)
        assert await stage.states() == [S.PROPOSED]
        assert stage.concerns() == {"standing:carl"}
        assert (await stage.steerer.steer(carl, "x", "me")).outcome is ActOutcome.REFUSED
        gone = await stage.steerer.steer(AgentId("dora"), "x", "me")
        assert gone.outcome is ActOutcome.UNKNOWN_SUBJECT


# Persons.


@pytest.mark.parametrize("limits", [OBSERVE, SUGGEST, ACT])
async def test_a_persons_words_go_in_every_mode_and_the_answer_says_that_they_arrived(
    autojump_clock: Clock, now_utc: Wall, limits: SteeringLimits
) -> None:
    async with running(Stage(now_utc, limits)) as stage:
        stage.meet(ADA)
        dry = await stage.steerer.steer(ADA, "Look\x1b[2J at\tb.py", "uid:0", dry_run=True)
        assert dry.outcome is ActOutcome.WOULD_BE_DONE
        assert "| Look at b.py\n" in str(dry.detail["text"])
        assert await stage.stored() == []
        answer = await stage.steerer.steer(ADA, "Look at b.py", "uid:0", wait_s=30)
        assert answer.outcome is ActOutcome.DONE
        assert answer.detail["state"] == "delivered"
        (item,) = await stage.stored()
        assert (item.proposed_by, item.approved_by) == ("uid:0", "uid:0")


async def test_a_persons_message_that_does_not_arrive_is_answered_so_and_escalated(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        stage.channel().fail_next(FOR_GOOD)
        answer = await stage.steerer.steer(ADA, "hello", "uid:0", wait_s=30)
        assert answer.outcome is ActOutcome.FAILED
        assert answer.detail["failure"] == "not_the_agent"
        await trio.sleep(1)
        assert stage.concerns() == {f"letter:{answer.detail['id']}"}
        await stage.steerer.steer(ADA, "hello again", "uid:0", wait_s=30)
        await trio.sleep(1)
        assert stage.concerns() == set()


async def test_who_waits_for_a_message_is_not_told_that_all_is_well_before_it_has_arrived(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        stage.channel().fail_next(*[RETRY] * 2)
        answer = await stage.steerer.steer(ADA, "hello", "uid:0", key="k", wait_s=3)
        assert (answer.outcome, answer.detail["state"]) == (ActOutcome.FAILED, "queued")
        assert "has not arrived within 3 s" in answer.message
        # It goes on its way all the same, and asking again with the key says how far it is.
        answer = await stage.steerer.steer(ADA, "hello", "uid:0", key="k", wait_s=60)
        assert (answer.outcome, answer.detail["state"]) == (ActOutcome.DONE, "delivered")
        assert len(stage.channel().letters) == 1


@pytest.mark.parametrize("text", ["", " \x1b[0m\u200b ", "x" * 2_001])
async def test_what_cannot_be_said_is_refused(
    autojump_clock: Clock, now_utc: Wall, text: str
) -> None:
    async with running(Stage(now_utc)) as stage:
        assert (await stage.steerer.steer(ADA, text, "uid:0")).outcome is ActOutcome.REFUSED
        assert await stage.stored() == []


async def test_of_one_key_there_is_one_message(autojump_clock: Clock, now_utc: Wall) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        for _ in range(3):
            answer = await stage.steerer.steer(ADA, "once", "uid:0", key="k1", wait_s=5)
            assert answer.outcome is ActOutcome.DONE
        await stage.steerer.steer(ADA, "other", "uid:1", key="k1", wait_s=5)
        assert len(stage.channel().letters) == 2


async def test_a_store_that_is_away_when_a_person_speaks_is_said_and_nothing_comes_twice(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """The write was kept, its answer lost: asking again with the key finds it."""
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await trio.sleep(2)
        flaky = Flaky(stage)
        flaky.lose_answers = 1
        answer = await stage.steerer.steer(ADA, "once", "uid:0", key="k")
        assert answer.outcome is ActOutcome.FAILED
        await trio.sleep(10)
        answer = await stage.steerer.steer(ADA, "once", "uid:0", key="k", wait_s=5)
        assert answer.outcome is ActOutcome.DONE
        assert len(stage.channel().letters) == 1


# Holds.


@pytest.mark.parametrize(
    ("kind", "subject"),
    [(HoldKind.ESTOP, "fleet"), (HoldKind.PAUSE, "ada"), (HoldKind.QUARANTINE, "ada")],
)
async def test_under_a_hold_nothing_is_delivered_and_persons_are_told_so(
    autojump_clock: Clock, now_utc: Wall, kind: HoldKind, subject: str
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, activity=Activity.WORKING)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        await stage.hold(kind, subject)
        stage.advance(ADA, 3)
        await trio.sleep(60)
        assert stage.channel().offered == []
        assert [c.why for _, c in stage.steerer.outlook(ADA)] == [kind.value]
        refused = await stage.steerer.steer(ADA, "now", "uid:0", SteeringKind.EMERGENCY)
        assert refused.outcome is ActOutcome.REFUSED
        assert "lift it first" in refused.message
        await stage.holds.lift(kind, subject, "uid:0")
        await trio.sleep(1)
        assert len(stage.arrived()) == 1


async def test_a_hold_placed_while_the_attempt_is_being_stored_is_in_time(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        flaky = Flaky(stage)

        async def stop_all() -> None:
            if stage.steerer.interventions():
                await stage.hold(HoldKind.ESTOP, "fleet")

        flaky.on_save = stop_all
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(60)
        (item,) = await stage.stored()
        assert item.attempts == 1
        assert stage.channel().offered == []


async def test_an_agent_that_is_restarting_or_not_alive_is_not_spoken_to(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        dead = LifeChanged(
            ADA, 3, AgentState.RUNNING, AgentState.FAILED, Condition.DEAD, Value.BAD, "exit"
        )
        stage.tell(dead)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(60)
        assert stage.arrived() == []
        stage.tell(replace(dead, epoch=4, after=AgentState.IDLE))
        await trio.sleep(2)
        (letter,) = stage.channel().letters
        assert letter.epoch == 4


# Budgets.


async def test_one_message_an_agent_in_its_cooldown(autojump_clock: Clock, now_utc: Wall) -> None:
    async with running(Stage(now_utc, channels={ADA: RecordedChannel(reads=True)})) as stage:
        stage.meet(ADA)
        sent_at = []
        for n in range(40):
            stage.judge(ADA, Standing.STUCK, message=f"words {n}")
            stage.advance(ADA, 10 + n)
            await trio.sleep(20)
            if len(stage.arrived()) > len(sent_at):
                sent_at.append(trio.current_time())
        gaps = [b - a for a, b in pairwise(sent_at)]
        assert len(sent_at) == 3
        assert all(gap >= 300 for gap in gaps)


async def test_the_cooldown_outlives_the_daemon(autojump_clock: Clock, now_utc: Wall) -> None:
    stage = Stage(now_utc, channels={ADA: RecordedChannel(reads=True)})
    async with running(stage):
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        stage.advance(ADA, 4)
        await trio.sleep(3)
        assert await stage.states() == [S.ACTED]
    stage.hire()
    async with running(stage):
        stage.judge(ADA, Standing.STUCK, message="more words")
        await trio.sleep(280)
        assert len(stage.arrived()) == 1
        await trio.sleep(20)
        assert len(stage.arrived()) == 2


async def test_the_fleet_gets_so_many_a_minute(autojump_clock: Clock, now_utc: Wall) -> None:
    agents = [AgentId(f"a{n:02}") for n in range(35)]
    stage = Stage(now_utc, channels={name: RecordedChannel() for name in agents})
    async with running(stage):
        stage.meet(*agents)
        for name in agents:
            stage.judge(name, Standing.STUCK)
        counts = []
        for _ in range(4):
            await trio.sleep(59)
            counts.append(len(stage.arrived()))
            await trio.sleep(1)
        assert counts == [10, 20, 30, 35]


async def test_only_so_many_are_queued_as_can_go_soon(autojump_clock: Clock, now_utc: Wall) -> None:
    agents = [AgentId(f"a{n:02}") for n in range(50)]
    limits = replace(ACT, most_open=7, fleet_cap=1)
    stage = Stage(now_utc, limits, channels={name: RecordedChannel() for name in agents})
    async with running(stage):
        stage.meet(*agents, activity=Activity.WORKING)
        for name in agents:
            stage.judge(name, Standing.STUCK)
        await trio.sleep(60)
        assert await stage.states() == [S.QUEUED] * 7
        assert len(stage.concerns()) == 50


async def test_the_same_words_are_said_once_in_a_run(autojump_clock: Clock, now_utc: Wall) -> None:
    async with running(Stage(now_utc, channels={ADA: RecordedChannel(reads=True)})) as stage:
        stage.meet(ADA)
        for n in range(20):
            stage.judge(ADA, Standing.STUCK)
            stage.advance(ADA, 10 + n)
            await trio.sleep(100)
        assert len(stage.arrived()) == 1


# Channels that fail.


async def test_a_channel_that_fails_for_now_is_tried_again_with_longer_pauses(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        stage.channel().fail_next(RETRY, RETRY, "lost", None)
        with capture_logs() as logs:
            stage.judge(ADA, Standing.STUCK)
            await trio.sleep(120)
        pauses = [log["again_in_s"] for log in logs if log["event"] == "delivery.failed"]
        assert pauses == [5, 10, 20, 40]
        assert len(stage.channel().offered) == 5
        assert len(set(stage.channel().offered)) == 1
        assert len(stage.channel().letters) == 1
        (item,) = await stage.stored()
        assert (item.state, item.attempts) == (S.DELIVERED, 5)


@pytest.mark.parametrize("limits", [replace(ACT, most_attempts=4), ACT])
async def test_a_letter_that_never_arrives_is_dead_and_a_person_is_asked(
    autojump_clock: Clock, now_utc: Wall, limits: SteeringLimits
) -> None:
    async with running(Stage(now_utc, limits)) as stage:
        stage.meet(ADA)
        stage.channel().fail_next(*[RETRY] * 100)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(1_900)
        (item,) = await stage.stored()
        assert item.state is S.FAILED
        assert item.attempts == limits.most_attempts
        assert stage.concerns() == {"standing:ada", f"letter:{item.id}"}


async def test_a_letter_that_cannot_go_in_its_time_is_dead(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    stage = Stage(now_utc)
    async with running(stage):
        stage.meet(ADA, activity=Activity.WORKING)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(1_790)
        assert await stage.states() == [S.QUEUED]
        await trio.sleep(15)
        item = (await stage.stored())[0]
        assert (item.state, end_of(item)) == (S.EXPIRED, "undelivered")
        concern = f"letter:{item.id}"
        assert concern in stage.concerns()
        stage.advance(ADA, 3)
        await trio.sleep(60)
        assert stage.arrived() == []
    # The board of the next start knows of no concern; it is told again, from the store.
    stage.told.clear()
    stage.hire()
    async with running(stage):
        await trio.sleep(1)
        assert any(isinstance(f, Escalated) and f.concern == concern for f in stage.told)


async def test_a_letter_that_lies_unread_is_dead_unless_the_agent_went_on(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, BOB)
        stage.judge(ADA, Standing.STUCK)
        stage.judge(BOB, Standing.STUCK)
        await trio.sleep(10)
        stage.advance(BOB, 9)
        await trio.sleep(1_800)
        (ada,) = await stage.stored(ADA)
        (bob,) = await stage.stored(BOB)
        assert (end_of(ada), end_of(bob)) == ("unread", "unacknowledged")
        assert f"letter:{ada.id}" in stage.concerns()
        assert f"letter:{bob.id}" not in stage.concerns()


async def test_a_channel_whose_receipts_fail_is_told_of_once(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        stage.channel().deaf = ChannelError("away", retry=True)
        with capture_logs() as logs:
            stage.judge(ADA, Standing.STUCK)
            await trio.sleep(100)
        assert [log["event"] for log in logs].count("receipts.failed") == 1
        stage.channel().deaf = None
        stage.channel().acknowledge(stage.arrived()[0])
        await trio.sleep(6)
        assert await stage.states() == [S.ACKNOWLEDGED]


async def test_receipts_are_asked_for_only_while_a_letter_is_out(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await trio.sleep(600)
        assert stage.channel().polled == 0
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(101)
        assert 18 <= stage.channel().polled <= 21
        stage.channel().acknowledge(stage.arrived()[0])
        await trio.sleep(10)
        polled = stage.channel().polled
        await trio.sleep(600)
        assert stage.channel().polled == polled


# What it was good for.


async def test_the_hold_out_passes_the_same_gates_is_never_delivered_and_is_measured(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    agents = [AgentId(f"a{n:02}") for n in range(60)]
    limits = replace(ACT, hold_out=0.5, fleet_cap=1_000)
    stage = Stage(now_utc, limits, channels={name: RecordedChannel(reads=True) for name in agents})
    async with running(stage):
        stage.meet(*agents, activity=Activity.WORKING)
        for name in agents:
            stage.judge(name, Standing.STUCK)
        await trio.sleep(30)
        assert await stage.states() == [S.QUEUED] * 60
        for name in agents:
            stage.advance(name, 3)
        await trio.sleep(2)
        kept = {item.id for item in await stage.stored() if item.hold_out}
        assert kept == {item.id for item in await stage.stored() if held_out(item.id, 0.5)}
        assert 15 < len(kept) < 45
        assert kept.isdisjoint(stage.arrived())
        assert len(stage.arrived()) == 60 - len(kept)
        for item in await stage.stored():
            if not item.hold_out:
                stage.judge(item.agent, Standing.PROGRESSING)
        await trio.sleep(700)
        (uplift,) = stage.steerer.uplifts()
        assert (uplift.delivered.share, uplift.held_out.share) == (1.0, 0.0)
        assert uplift.lower is not None
        assert uplift.lower > 0.5
        letters = {c for c in stage.concerns() if c.startswith("letter:")}
        assert letters == set()


async def test_a_kind_that_does_not_help_is_stopped_and_a_person_told(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    agents = [AgentId(f"a{n:02}") for n in range(80)]
    limits = replace(ACT, hold_out=0.5, fleet_cap=1_000)
    stage = Stage(now_utc, limits, channels={name: RecordedChannel() for name in agents})
    async with running(stage):
        stage.meet(*agents)
        for name in agents:
            stage.judge(name, Standing.STUCK)
        await trio.sleep(5)
        # Those that were left alone recover by themselves; those that were told do not.
        for item in await stage.stored():
            if item.hold_out:
                stage.judge(item.agent, Standing.PROGRESSING)
        await trio.sleep(700)
        assert "steering_kind:guidance/stuck" in stage.concerns()
        before = len(await stage.stored())
        for name in agents:
            stage.judge(name, Standing.STUCK, message="new words")
        await trio.sleep(2_000)
        assert len(await stage.stored()) == before
        for name in agents[:3]:
            stage.judge(name, Standing.DRIFTING)
        await trio.sleep(10)
        assert len(await stage.stored()) == before + 3


async def test_after_three_without_effect_a_person_is_asked_and_the_agent_left_alone(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    stage = Stage(now_utc, channels={ADA: RecordedChannel(reads=True)})

    async def nag(times: int) -> None:
        for _ in range(times):
            stage.judge(ADA, Standing.STUCK, message=f"words {stage.verdicts}")
            stage.advance(ADA, 10 + stage.verdicts)
            await trio.sleep(100)

    async with running(stage):
        stage.meet(ADA)
        await nag(60)
        assert len(stage.arrived()) == 3
        assert stage.concerns() == {"standing:ada", "steering:ada"}
    stage.hire()
    async with running(stage):
        await nag(10)
        assert len(stage.arrived()) == 3
        stage.judge(ADA, Standing.PROGRESSING)
        await trio.sleep(10)
        assert stage.concerns() == set()
        await nag(3)
        assert len(stage.arrived()) == 4


async def test_the_outcome_of_another_run_is_not_taken_for_an_effect(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(5)
        known = stage.view.value.agents[ADA]
        fresh = replace(known.ref, run=type(known.ref.run)("ada-2"))
        agents = {**stage.view.value.agents, ADA: replace(known, ref=fresh)}
        stage.view.publish(replace(stage.view.value, agents=agents))
        await trio.sleep(700)
        (item,) = await stage.stored()
        assert item.standing_after is Standing.UNKNOWN


# The store.


class Flaky:
    """Puts itself between a stage's steerer and its store."""

    def __init__(self, stage: Stage) -> None:
        self.inner = stage.store
        self.away = False
        self.lose_answers = 0
        self.conflicts = 0
        self.refuse = False
        self.on_save: Callable[[], object] | None = None
        stage.steerer._record._store = self  # type: ignore[assignment]

    async def _call(self, answer: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable("away")
        if self.conflicts:
            self.conflicts -= 1
            raise StoreConflict("in the way")
        if self.refuse:
            raise StoreRefused("bad")
        done = await answer()  # type: ignore[misc]
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnavailable("lost on the way")
        return done

    async def propose(self, item: object) -> object:
        return await self._call(lambda: self.inner.propose(item))  # type: ignore[arg-type]

    async def save_intervention(self, item: object, before: object) -> object:
        done = await self._call(
            lambda: self.inner.save_intervention(item, before)  # type: ignore[arg-type]
        )
        if self.on_save is not None:
            await self.on_save()  # type: ignore[misc]
        return done

    async def interventions(self, since_utc: datetime) -> object:
        if self.away:
            raise StoreUnavailable("away")
        return await self.inner.interventions(since_utc)


async def test_a_store_that_is_away_delays_messages_and_hides_no_concern(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        flaky = Flaky(stage)
        flaky.away = True
        with capture_logs() as logs:
            stage.judge(ADA, Standing.STUCK)
            await trio.sleep(100)
            assert stage.concerns() == {"standing:ada"}
            assert stage.channel().offered == []
            flaky.away = False
            await trio.sleep(10)
        assert len(stage.arrived()) == 1
        lost = [log["event"] for log in logs if log["event"].startswith("store.")]
        assert lost == ["store.lost", "store.returned"]


async def test_a_proof_that_cannot_be_stored_is_kept_and_the_letter_not_sent_again(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await trio.sleep(2)
        flaky = Flaky(stage)
        # The proposal and the attempt are stored; then the store is gone.
        saves = 0

        async def gone() -> None:
            nonlocal saves
            saves += 1
            flaky.away = saves == 1

        flaky.on_save = gone
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(300)
        assert len(stage.channel().offered) == 1
        assert await stage.states() == [S.QUEUED]
        flaky.away = False
        await trio.sleep(10)
        assert await stage.states() == [S.DELIVERED]
        assert len(stage.channel().offered) == 1


async def test_a_slow_store_and_many_looks_at_a_time_do_no_harm(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    """While proofs are being stored, turns go on, and store none of them a second time."""
    agents = [AgentId(f"a{n}") for n in range(8)]
    stage = Stage(now_utc, channels={name: RecordedChannel() for name in agents})
    async with running(stage):
        stage.meet(*agents)
        await trio.sleep(2)
        flaky = Flaky(stage)
        saved: list[S] = []

        async def slowly() -> None:
            saved.append(S.DELIVERED)
            await trio.sleep(0.1 * (1 + len(saved) * 7 % 5))

        flaky.on_save = slowly
        for name in agents:
            stage.judge(name, Standing.STUCK)
        for _ in range(200):
            stage.steerer.adopt(ACT)
            await trio.sleep(0.05)
        assert await stage.states() == [S.DELIVERED] * 8
        assert len(saved) == 16


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
async def test_a_write_whose_answer_was_lost_is_looked_up(
    autojump_clock: Clock, now_utc: Wall, lost: int
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await trio.sleep(2)
        Flaky(stage).lose_answers = lost
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(120)
        assert await stage.states() == [S.DELIVERED]
        assert len(stage.arrived()) == 1


async def test_conflicts_are_repeated_at_once(autojump_clock: Clock, now_utc: Wall) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA)
        await trio.sleep(2)
        Flaky(stage).conflicts = 5
        stage.judge(ADA, Standing.STUCK)
        await trio.sleep(3)
        assert await stage.states() == [S.DELIVERED]


async def test_what_the_store_refuses_goes_no_further_and_a_person_is_told(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    async with running(Stage(now_utc)) as stage:
        stage.meet(ADA, activity=Activity.WORKING)
        stage.meet(BOB)
        flaky = Flaky(stage)
        await stage.steerer.steer(ADA, "hello", "uid:0")
        flaky.refuse = True
        stage.advance(ADA, 3)
        await trio.sleep(60)
        assert stage.arrived() == []
        assert len(stage.concerns()) == 1
        flaky.refuse = False
        answer = await stage.steerer.steer(BOB, "hello", "uid:0", wait_s=5)
        assert answer.outcome is ActOutcome.DONE


# Crashes.


class FusedChannel(RecordedChannel):
    """A channel at whose calls the daemon can be killed, on either side of the arrival."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__("tmux")
        self.fuse = fuse

    async def deliver(self, letter: Letter) -> Receipt:
        self.fuse.before_call()
        receipt = await super().deliver(letter)
        self.fuse.after_call()
        return receipt


async def _live(stage: Stage, *, until: S) -> None:
    """An agent's life from stuck to measured, as far as the daemon lives."""
    for _ in range(40):
        await trio.sleep(2)
        letters = stage.channel().letters
        if letters and until is S.ACTED:
            stage.channel().acknowledge(letters[0].id)
    stage.advance(ADA, 9, Activity.WORKING)
    await trio.sleep(1_900)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
async def test_killed_at_any_call_a_message_arrives_once_and_ends_well(
    autojump_clock: Clock, now_utc: Wall, at: int, *, after: bool
) -> None:
    """The calls: propose, attempt, deliver, proof, acknowledged, acted, measured."""
    fuse = Fuse(at, after=after)
    stage = Stage(now_utc, channels={ADA: FusedChannel(fuse)})
    stage.meet(ADA)
    stage.judge(ADA, Standing.STUCK)
    stage.hire(FusedStore(stage.store, fuse))  # type: ignore[arg-type]
    died = False
    try:
        async with running(stage):
            await _live(stage, until=S.ACTED)
    except* Crash:
        died = True
    assert died
    facts_in, stage.facts_out = trio.open_memory_channel[object](10_000)  # type: ignore[assignment]
    stage.facts_in = facts_in  # type: ignore[assignment]
    stage.holds = type(stage.holds)(stage.store, stage.facts_in, now_utc)
    stage.hire()
    async with running(stage):
        await _live(stage, until=S.ACTED)
        stage.advance(ADA, 12, Activity.TURN_ENDED)
        await trio.sleep(60)
    (item,) = await stage.stored()
    assert item.state is S.ACTED
    assert item.measured_utc is not None
    assert [letter.id for letter in stage.channel().letters] == [item.id]
    assert set(stage.channel().offered) == {item.id}
    assert len(stage.channel().offered) <= 2


async def test_killed_in_the_middle_of_a_delivery_it_is_made_again_under_its_id(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    stage = Stage(now_utc)
    stage.channel().fail_next(None)
    stage.meet(ADA)
    stage.judge(ADA, Standing.STUCK)
    async with running(stage):
        await trio.sleep(5)
    (item,) = await stage.stored()
    assert (item.state, item.attempts) == (S.QUEUED, 1)
    stage.hire()
    async with running(stage):
        await trio.sleep(5)
        assert stage.channel().offered == [item.id] * 2
        assert stage.arrived() == [item.id]


async def test_after_a_restart_under_estop_the_queued_stay_where_they_are(
    autojump_clock: Clock, now_utc: Wall
) -> None:
    stage = Stage(now_utc)
    stage.meet(ADA, activity=Activity.WORKING)
    stage.judge(ADA, Standing.STUCK)
    async with running(stage):
        await trio.sleep(5)
    stage.hire()
    await stage.hold(HoldKind.ESTOP, "fleet")
    stage.advance(ADA, 3)
    async with running(stage):
        await trio.sleep(1_000)
        assert stage.channel().offered == []


# Anything at all, in any order.

ACTIONS = st.sampled_from(
    [
        "stuck",
        "emergency",
        "unknown",
        "progressing",
        "work",
        "rest",
        "estop",
        "thaw",
        "steer",
        "approve",
        "reject",
        "read",
        "fail",
        "lose",
        "hang",
        "crash",
        "observe",
        "suggest",
        "act",
        "wait",
        "wait long",
    ]
)


class Honest(RecordedChannel):
    """Looks at every letter that it is offered, and at the stage it is offered on."""

    def __init__(self) -> None:
        super().__init__("tmux")
        self.stage: Stage | None = None

    async def deliver(self, letter: Letter) -> Receipt:
        stage = self.stage
        assert stage is not None
        # Before anything is awaited: what comes later is too late for this letter.
        assert stage.holds.holding(letter.agent, HoldKind.ESTOP) is None
        assert stage.now_utc() < letter.expires_utc
        stored = {item.id: item for item in await stage.stored()}
        item = stored[letter.id]
        assert not item.hold_out
        assert item.state is S.QUEUED
        assert item.attempts >= 1
        return await super().deliver(letter)


async def _play(actions: list[str]) -> None:
    channel = Honest()
    limits = replace(ACT, hold_out=0.4, ttl_s=900, cooldown_s=60)
    stage = Stage(wall_clock(), limits, channels={ADA: channel})
    channel.stage = stage
    stage.meet(ADA)
    while True:
        if "crash" in actions:
            at = actions.index("crash")
            part, actions = actions[:at], actions[at + 1 :]
        else:
            part, actions = actions, []
        async with running(stage):
            for action in part:
                await _do(stage, action)
            if not actions:
                await trio.sleep(4_000)
        if not actions:
            break
        stage.hire()
    items = await stage.stored()
    assert all(item.state in CLOSED for item in items)
    assert all(not (item.hold_out and item.delivered_utc) for item in items)
    assert len(set(stage.arrived())) == len(stage.arrived())
    for item in items:
        chain = stage.changes(item.id)
        assert all(b in TRANSITIONS[a] for a, b in pairwise(chain)), chain


async def _do(stage: Stage, action: str) -> None:  # noqa: PLR0912 - a list of what may happen
    steerer, words = stage.steerer, f"words {stage.verdicts}"
    match action:
        case "stuck":
            stage.judge(ADA, Standing.STUCK, message=words)
        case "emergency":
            stage.judge(ADA, Standing.DRIFTING, SteeringKind.EMERGENCY, words, agreed=False)
        case "unknown":
            stage.judge(ADA, Standing.UNKNOWN, agreed=False)
        case "progressing":
            stage.judge(ADA, Standing.PROGRESSING)
        case "work" | "rest":
            steps = stage.view.value.agents[ADA].digest.steps + 1  # type: ignore[union-attr]
            activity = Activity.WORKING if action == "work" else Activity.TURN_ENDED
            stage.advance(ADA, steps, activity)
        case "estop":
            await stage.hold(HoldKind.ESTOP, "fleet")
        case "thaw":
            await stage.holds.lift(HoldKind.ESTOP, "fleet", "uid:0")
        case "steer":
            await steerer.steer(ADA, words, "uid:0")
        case "approve" | "reject":
            for item in steerer.interventions():
                if item.state is S.PROPOSED:
                    await getattr(steerer, action)(item.id, "uid:0")
        case "read":
            for letter in stage.channel().letters:
                stage.channel().acknowledge(letter.id)
        case "fail":
            stage.channel().fail_next(RETRY)
        case "lose":
            stage.channel().fail_next("lost")
        case "hang":
            stage.channel().fail_next(None)
        case "observe" | "suggest" | "act":
            steerer.adopt(replace(steerer.limits, mode=type(ACT.mode)(action)))
        case "wait long":
            await trio.sleep(700)
        case _:
            await trio.sleep(7)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, max_size=25))
def test_in_no_order_of_events_is_a_wrong_letter_sent_or_a_step_left_out(
    actions: list[str],
) -> None:
    """Never what is held out, expired or under estop; every message ends, none comes twice."""
    clock = trio.testing.MockClock(rate=0, autojump_threshold=0)
    trio.run(_play, actions, clock=clock)
