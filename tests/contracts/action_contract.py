"""What every `ports.ActionStore` promises; collected for each by a subclass with `store`."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.contracts import store_values as some
from tests.contracts.store_values import ADA, BOB, DAY, HOSTILE, MINUTE, NOON

from custosd.core.agents import AgentId, AgentState
from custosd.core.beats import LARGEST_SEQUENCE, WaitKind
from custosd.core.errors import StoreRefused
from custosd.core.evidence import ProcessIdentity
from custosd.core.holds import FLEET, HoldKind
from custosd.core.lives import LifeRecord
from custosd.core.restarts import (
    Cause,
    Restart,
    RestartState,
    RestartStep,
    StepRecord,
    StepState,
)
from custosd.core.steering import Intervention, InterventionState, moved
from custosd.core.tokens import Token, hash_of
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason
from custosd.ports import ActionStore, Lease

A, B = ADA.agent, BOB.agent
LONG_AGO = NOON - 1_000 * DAY
NAIVE = datetime(2026, 3, 14)  # noqa: DTZ001 - what must be refused


def life(agent: AgentId = A, epoch: int = 1, sequence: int = 5, text: str = "") -> LifeRecord:
    return LifeRecord(
        agent,
        epoch,
        sequence,
        AgentState.WAITING,
        NOON,
        NOON + MINUTE,
        30.5,
        WaitKind.RATE_LIMIT,
        NOON + 2 * MINUTE,
        ProcessIdentity(4242, 123_456_789_012, f"boot {text}"),
        (29.5, 0.0, 1e-9),
        NOON - MINUTE,
    )


def intent(id_: str = "r1", agent: AgentId = A, key: str = "", epoch: int = 0) -> Restart:
    return Restart(
        id_, agent, key or f"key of {id_}", Cause.HANG, "stale", "custosd", epoch, 0, NOON
    )


def running(restart: Restart, fence: int = 1, owner: str = "host:1") -> Restart:
    state = RestartState.RUNNING
    return replace(restart, state=state, owner=owner, fence=fence, started_utc=NOON)


def ended(restart: Restart, state: RestartState = RestartState.ABANDONED) -> Restart:
    failure = "not_dead" if state is RestartState.FAILED else ""
    return replace(restart, state=state, failure=failure, ended_utc=NOON + MINUTE)


def message(id_: str = "m1", agent: AgentId = A, key: str = "", text: str = "") -> Intervention:
    return Intervention(
        id_,
        agent,
        key or f"key of {id_}",
        SteeringKind.CORRECTION,
        f"look at the error first {text}",
        f"guardian:{text}",
        NOON,
        NOON + MINUTE,
    )


def token(id_: str = "ci", secret: str = "s", text: str = "") -> Token:
    scopes = frozenset({"steer", f"restart {text}"})
    return Token(id_, hash_of(secret), NOON, f"uid:0 {text}", f"{A} {text}", scopes)


async def intended(store: ActionStore, restart: Restart) -> Restart:
    stored = await store.intend_restart(restart)
    assert stored is not None
    return stored


async def leased(store: ActionStore, owner: str, ttl_s: float = 1000.0) -> Lease | None:
    return await store.take_lease("restart:a", owner, ttl_s)


class ActionContract:
    """The tests. `store` is a fresh, empty store."""

    async def test_an_empty_store_knows_nothing_and_says_so(self, store: ActionStore) -> None:
        assert await store.lives() == ()
        assert await store.restarts(LONG_AGO) == ()
        assert await store.interventions(LONG_AGO) == ()
        assert await store.holds() == ()
        assert await store.tokens() == ()
        assert not await store.save_restart(ended(intent()))
        assert not await store.save_intervention(message(), InterventionState.PROPOSED)
        assert not await store.lift_hold(HoldKind.PAUSE, A)
        assert not await store.revoke_token("ci")
        await store.release_lease("restart:a", "one")
        await store.save_lives([])

    # lives

    @pytest.mark.parametrize("text", ["", HOSTILE])
    async def test_lives_come_back_whole(self, store: ActionStore, text: str) -> None:
        told = [
            life(text=text),
            LifeRecord(AgentId(f"bare {text}"), 0, 0, AgentState.STARTING, NOON),
            replace(life(B, 2**62, LARGEST_SEQUENCE), gaps_s=(math.inf,)),
        ]
        await store.save_lives(told)
        assert set(await store.lives()) == set(told)

    async def test_saving_lives_twice_is_saving_them_once(self, store: ActionStore) -> None:
        await store.save_lives([life(), life(B)])
        await store.save_lives([life(), life(B)])
        assert set(await store.lives()) == {life(), life(B)}

    async def test_one_life_is_told_by_its_agent(self, store: ActionStore) -> None:
        mine = replace(life(text=HOSTILE), agent=AgentId(f"a{HOSTILE}"))
        await store.save_lives([mine, life(B)])
        assert await store.life(mine.agent) == mine
        assert await store.life(AgentId("nobody")) is None

    async def test_epoch_and_sequence_never_go_back(self, store: ActionStore) -> None:
        now = replace(life(epoch=3, sequence=7), state=AgentState.IDLE)
        await store.save_lives([now])
        await store.save_lives([life(epoch=3, sequence=6), life(B)])
        await store.save_lives([life(epoch=2, sequence=9)])
        assert set(await store.lives()) == {now, life(B)}
        later = life(epoch=3, sequence=7)
        await store.save_lives([later])
        assert set(await store.lives()) == {later, life(B)}
        anew = life(epoch=4, sequence=1)
        await store.save_lives([anew])
        assert set(await store.lives()) == {anew, life(B)}

    async def test_of_one_batch_the_furthest_record_stays(self, store: ActionStore) -> None:
        last = replace(life(epoch=2, sequence=8), state=AgentState.IDLE)
        told = [life(epoch=2, sequence=8), last, life(epoch=1, sequence=9), life(epoch=2)]
        await store.save_lives(told)
        assert await store.lives() == (last,)

    @pytest.mark.parametrize(
        "bad",
        [
            {"since_utc": NAIVE},
            {"progress_utc": NAIVE},
            {"agent": AgentId("")},
            {"epoch": -1},
            {"sequence": LARGEST_SEQUENCE + 1},
            {"gaps_s": (1.0, -1.0)},
            {"interval_s": -0.5},
            {"process": ProcessIdentity(0, 1, "b")},
        ],
    )
    async def test_a_life_that_cannot_be_refuses_its_batch(
        self, store: ActionStore, bad: dict[str, object]
    ) -> None:
        with pytest.raises(StoreRefused):
            await store.save_lives([life(B), replace(life(), **bad)])  # type: ignore[arg-type]
        assert await store.lives() == ()

    # restarts

    async def test_an_intent_gets_the_next_epoch_and_comes_back(self, store: ActionStore) -> None:
        stored = await intended(store, intent(epoch=4))
        assert stored == replace(intent(epoch=4), next_epoch=5)
        assert await store.restarts(NOON + DAY) == (stored,)

    @pytest.mark.parametrize("text", ["", HOSTILE])
    async def test_a_restart_comes_back_whole(self, store: ActionStore, text: str) -> None:
        step = RestartStep
        told = replace(
            intent(f"r {text}", AgentId(f"a {text}"), f"k {text}"),
            reason=text,
            requested_by=text,
            fingerprint=text,
            task=text,
            evidence=some.evidence(text),
        )
        stored = await intended(store, told)
        full = replace(
            running(stored, 7, f"owner {text}"),
            steps=(
                StepRecord(step.SPAWN, 2, StepState.RUNNING, NOON),
                StepRecord(step.LEASE, 1, StepState.DONE, NOON, NOON - MINUTE, f"taken {text}"),
                StepRecord(step.SPAWN, 1, StepState.FAILED, NOON, NOON, text),
            ),
        )
        assert await store.save_restart(full)
        assert await store.restarts(LONG_AGO) == (full,)
        done = full.with_step(replace(full.steps[0], state=StepState.DONE, ended_utc=NOON))
        assert await store.save_restart(ended(done, RestartState.FAILED))
        assert await store.restarts(LONG_AGO) == (ended(done, RestartState.FAILED),)

    async def test_an_intent_with_steps_keeps_them(self, store: ActionStore) -> None:
        steps = (StepRecord(RestartStep.LEASE, 1, StepState.SKIPPED, NOON, NOON),)
        stored = await intended(store, replace(intent(), steps=steps))
        assert stored.steps == steps
        assert await store.save_restart(running(replace(stored, steps=())))
        assert (await store.restarts(NOON))[0].steps == ()

    async def test_repeating_an_intent_returns_it_as_it_stands(self, store: ActionStore) -> None:
        now = running(await intended(store, intent()))
        assert await store.save_restart(now)
        assert await store.intend_restart(intent()) == now
        assert await store.save_restart(ended(now))
        assert await store.intend_restart(intent()) == ended(now)

    async def test_an_agent_has_one_open_restart(self, store: ActionStore) -> None:
        first = await intended(store, intent("r1"))
        assert await store.intend_restart(intent("r2")) is None
        await intended(store, intent("r3", B))
        assert await store.save_restart(ended(first))
        second = await intended(store, intent("r2"))
        assert [r.next_epoch for r in (first, second)] == [1, 2]

    async def test_of_one_key_there_is_one_restart(self, store: ActionStore) -> None:
        first = await intended(store, intent("r1", key="k"))
        assert await store.save_restart(ended(first))
        assert await store.intend_restart(intent("r2", key="k")) is None
        await intended(store, intent("r3", B, key="k"))

    async def test_a_refused_intent_uses_up_no_epoch(self, store: ActionStore) -> None:
        first = await intended(store, intent("r1"))
        assert await store.intend_restart(intent("r2", epoch=40)) is None
        assert await store.save_restart(ended(first))
        assert (await intended(store, intent("r3"))).next_epoch == 2

    async def test_the_next_epoch_is_beyond_any_the_agent_had(self, store: ActionStore) -> None:
        await store.save_lives([life(epoch=8), life(B, epoch=90)])
        first = await intended(store, intent("r1", epoch=3))
        assert (first.epoch, first.next_epoch) == (3, 9)
        assert await store.save_restart(ended(first))
        second = await intended(store, intent("r2", epoch=3))
        assert second.next_epoch == 10
        assert await store.save_restart(ended(second))
        assert (await intended(store, intent("r3", epoch=20))).next_epoch == 21

    async def test_only_the_stored_fence_or_a_higher_one_may_write(
        self, store: ActionStore
    ) -> None:
        stored = await intended(store, intent())
        assert await store.save_restart(running(stored, 2, "host:2"))
        assert not await store.save_restart(running(stored, 1, "host:1"))
        assert await store.restarts(NOON) == (running(stored, 2, "host:2"),)
        assert await store.save_restart(running(stored, 2, "host:2"))
        assert await store.save_restart(running(stored, 3, "host:1"))

    async def test_what_has_ended_does_not_change(self, store: ActionStore) -> None:
        now = ended(running(await intended(store, intent())), RestartState.SUCCEEDED)
        assert await store.save_restart(now)
        assert not await store.save_restart(running(replace(now, ended_utc=None), 9))
        assert not await store.save_restart(ended(running(now, 9)))
        assert await store.restarts(NOON) == (now,)

    async def test_repeating_the_word_that_ended_it_is_no_loss_of_the_lease(
        self, store: ActionStore
    ) -> None:
        now = ended(running(await intended(store, intent())), RestartState.FAILED)
        assert await store.save_restart(now)
        assert await store.save_restart(now)
        assert not await store.save_restart(replace(now, owner="host:2"))

    async def test_a_save_changes_neither_key_nor_epochs(self, store: ActionStore) -> None:
        stored = await intended(store, intent(epoch=2))
        other = replace(stored, key="x", epoch=50, next_epoch=60, intended_utc=NOON + DAY)
        assert await store.save_restart(running(other))
        assert await store.restarts(NOON) == (running(stored),)

    async def test_restarts_are_all_open_and_the_young(self, store: ActionStore) -> None:
        told = []
        for n, (age, ends) in enumerate([(9, True), (8, False), (2, True), (1, False)]):
            agent, at_utc = AgentId(f"a{n}"), NOON - age * DAY
            stored = await intended(store, replace(intent(f"r{n}", agent), intended_utc=at_utc))
            now = ended(stored) if ends else stored
            assert not ends or await store.save_restart(now)
            told.append(now)
        assert await store.restarts(NOON - 2 * DAY) == tuple(told[1:])
        assert await store.restarts(LONG_AGO) == tuple(told)

    async def test_restarts_of_one_agent_are_its_own(self, store: ActionStore) -> None:
        mine = AgentId(f"a{HOSTILE}")
        old = await intended(store, replace(intent("r1", mine), intended_utc=NOON - 9 * DAY))
        assert await store.save_restart(ended(old))
        again = replace(intent("r2", mine), key="k2", intended_utc=NOON - 8 * DAY)
        still_open = await intended(store, again)
        await intended(store, intent("r3", B))
        assert await store.restarts(NOON - DAY, mine) == (still_open,)
        assert await store.restarts(LONG_AGO, mine) == (ended(old), still_open)
        assert await store.restarts(LONG_AGO, AgentId("nobody")) == ()

    @pytest.mark.parametrize(
        "bad",
        [
            {"intended_utc": NAIVE},
            {"id": ""},
            {"agent": AgentId("")},
            {"key": ""},
            {"epoch": -1},
            {"state": RestartState.RUNNING},
            {"state": RestartState.FAILED, "ended_utc": NOON},
            {"state": RestartState.ABANDONED},
            {"failure": "why"},
            {"steps": (StepRecord(RestartStep.SPAWN, 1, StepState.DONE, NOON),)},
            {"steps": (StepRecord(RestartStep.SPAWN, 0, StepState.RUNNING, NOON),)},
        ],
    )
    async def test_a_restart_that_cannot_be_is_refused(
        self, store: ActionStore, bad: dict[str, object]
    ) -> None:
        with pytest.raises(StoreRefused):
            await store.intend_restart(replace(intent(), **bad))  # type: ignore[arg-type]
        assert await store.restarts(LONG_AGO) == ()

    # interventions

    @pytest.mark.parametrize("text", ["", HOSTILE])
    async def test_an_intervention_comes_back_whole(self, store: ActionStore, text: str) -> None:
        told = message(f"m {text}", AgentId(f"a {text}"), text=text)
        assert await store.propose(told)
        now = replace(
            told,
            reason=SteeringReason.STUCK,
            verdict_id=f"verdict {text}",
            channel=f"inbox {text}",
            attempts=70_000,
            alignment_before=0.25,
            standing_before=Standing.STUCK,
        )
        before = InterventionState.PROPOSED
        for state in InterventionState:
            if state is before or state in {InterventionState.EXPIRED, InterventionState.FAILED}:
                continue
            now = moved(now, state, NOON + MINUTE, by=f"uid:0 {text}")
            assert await store.save_intervention(now, before)
            assert await store.interventions(LONG_AGO) == (now,)
            before = state
        measured = replace(
            now, measured_utc=NOON, alignment_after=1.0, standing_after=Standing.PROGRESSING
        )
        assert await store.save_intervention(measured, InterventionState.ACTED)
        assert await store.interventions(LONG_AGO) == (measured,)

    async def test_of_one_key_there_is_one_message(self, store: ActionStore) -> None:
        assert await store.propose(message("m1", key="k"))
        assert not await store.propose(message("m1", key="k"))
        assert not await store.propose(message("m2", key="k"))
        assert not await store.propose(message("m1", key="other"))
        assert await store.propose(message("m3", B, key="k"))
        assert [told.id for told in await store.interventions(NOON)] == ["m1", "m3"]

    async def test_a_change_needs_the_state_it_began_from(self, store: ActionStore) -> None:
        assert await store.propose(message())
        failed = moved(message(), InterventionState.FAILED, NOON, failure="rejected")
        queued = moved(message(), InterventionState.QUEUED, NOON, by="policy")
        assert not await store.save_intervention(failed, InterventionState.QUEUED)
        assert await store.save_intervention(queued, InterventionState.PROPOSED)
        assert not await store.save_intervention(failed, InterventionState.PROPOSED)
        assert await store.interventions(NOON) == (queued,)

    async def test_a_change_keeps_the_key(self, store: ActionStore) -> None:
        assert await store.propose(message())
        other = replace(message(), key="other", proposed_utc=NOON - DAY)
        assert await store.save_intervention(other, InterventionState.PROPOSED)
        assert await store.interventions(LONG_AGO) == (message(),)

    async def test_interventions_are_all_open_and_the_young(self, store: ActionStore) -> None:
        told = []
        for n, (age, ends) in enumerate([(9, True), (8, False), (2, True), (1, False)]):
            now = replace(message(f"m{n}"), proposed_utc=NOON - age * DAY)
            if ends:
                now = moved(now, InterventionState.EXPIRED, NOON)
            assert await store.propose(now)
            told.append(now)
        assert await store.interventions(NOON - 2 * DAY) == tuple(told[1:])
        assert await store.interventions(LONG_AGO) == tuple(told)

    @pytest.mark.parametrize(
        "bad",
        [
            {"proposed_utc": NAIVE},
            {"closed_utc": NAIVE},
            {"id": ""},
            {"key": ""},
            {"message": ""},
            {"attempts": -1},
            {"alignment_before": 1.5},
            {"alignment_after": 0.5},
            {"standing_after": Standing.IDLE},
            {"failure": "why"},
            {"closed_utc": NOON},
            {"hold_out": True, "delivered_utc": NOON},
            {"state": InterventionState.APPROVED},
            {"state": InterventionState.QUEUED},
            {"state": InterventionState.DELIVERED, "delivered_utc": NOON},
            {"state": InterventionState.EXPIRED},
            {"state": InterventionState.FAILED, "closed_utc": NOON},
        ],
    )
    async def test_an_intervention_that_cannot_be_is_refused(
        self, store: ActionStore, bad: dict[str, object]
    ) -> None:
        told = replace(message(), **bad)  # type: ignore[arg-type]
        with pytest.raises(StoreRefused):
            await store.propose(told)
        assert await store.propose(message("m2"))
        with pytest.raises(StoreRefused):
            await store.save_intervention(told, InterventionState.PROPOSED)
        assert await store.interventions(LONG_AGO) == (message("m2"),)

    # holds

    @pytest.mark.parametrize("text", ["", HOSTILE])
    async def test_holds_come_back_whole(self, store: ActionStore, text: str) -> None:
        told = [
            some.hold(HoldKind.INCIDENT, f"incident {text}", text, agents=(A, f"b {text}", "")),
            some.hold(HoldKind.QUARANTINE, until_utc=NOON - MINUTE),
            some.hold(HoldKind.PAUSE),
            some.hold(HoldKind.ESTOP, FLEET),
        ]
        for hold in told:
            await store.place_hold(hold)
        assert set(await store.holds()) == set(told)

    async def test_a_hold_of_the_same_key_is_replaced(self, store: ActionStore) -> None:
        await store.place_hold(some.hold(until_utc=NOON + DAY))
        again = some.hold(text="again")
        await store.place_hold(again)
        await store.place_hold(again)
        assert await store.holds() == (again,)

    async def test_many_holds_are_placed_and_lifted_as_one_is(self, store: ActionStore) -> None:
        told = [
            some.hold(HoldKind.INCIDENT, f"i {HOSTILE}", HOSTILE, agents=(A, f"b {HOSTILE}", "")),
            some.hold(HoldKind.QUARANTINE, until_utc=NOON - MINUTE),
            some.hold(HoldKind.PAUSE),
            some.hold(HoldKind.PAUSE, B, "first"),
            some.hold(HoldKind.PAUSE, B, "last", agents=(B, A)),
        ]
        await store.place_hold(some.hold(HoldKind.PAUSE, text="before"))
        for _ in range(2):
            await store.place_holds(told)
            assert set(await store.holds()) == {*told[:3], told[4]}
        await store.place_holds(())
        assert await store.lift_holds(()) == 0
        keys = [told[0].key, (HoldKind.ESTOP, A), told[2].key]
        assert await store.lift_holds(keys) == 2
        assert await store.lift_holds(keys) == 0
        assert set(await store.holds()) == {told[1], told[4]}

    async def test_of_many_holds_all_are_placed_or_none(self, store: ActionStore) -> None:
        for bad in (some.hold(subject=""), some.hold(until_utc=NAIVE)):
            with pytest.raises(StoreRefused):
                await store.place_holds([some.hold(), bad])
        assert await store.holds() == ()

    async def test_a_hold_is_lifted_once(self, store: ActionStore) -> None:
        await store.place_hold(some.hold(HoldKind.PAUSE))
        await store.place_hold(some.hold(HoldKind.PAUSE, B))
        assert not await store.lift_hold(HoldKind.ESTOP, A)
        assert await store.lift_hold(HoldKind.PAUSE, A)
        assert not await store.lift_hold(HoldKind.PAUSE, A)
        assert await store.holds() == (some.hold(HoldKind.PAUSE, B),)

    async def test_a_hold_on_nothing_or_of_no_zone_is_refused(self, store: ActionStore) -> None:
        for bad in (some.hold(subject=""), some.hold(until_utc=NAIVE)):
            with pytest.raises(StoreRefused):
                await store.place_hold(bad)
        assert await store.holds() == ()

    # leases

    async def test_a_lease_has_one_owner(self, store: ActionStore) -> None:
        first = await leased(store, "one")
        assert first is not None
        assert (first.name, first.owner, first.fence) == ("restart:a", "one", 1)
        assert await leased(store, "two") is None
        other = await store.take_lease("restart:b", "two", 10.0)
        assert other is not None
        assert other.fence == 1

    async def test_a_fence_stays_while_its_owner_renews_in_time(self, store: ActionStore) -> None:
        first = await leased(store, "one", 500.0)
        again = await leased(store, "one", 1000.0)
        assert first is not None
        assert again is not None
        assert again.fence == first.fence
        assert again.expires_utc - first.expires_utc >= timedelta(seconds=500)

    @pytest.mark.parametrize("next_owner", ["one", "two"])
    async def test_a_fence_grows_after_a_release(self, store: ActionStore, next_owner: str) -> None:
        await leased(store, "one")
        await store.release_lease("restart:a", "two")
        assert await leased(store, "two") is None
        await store.release_lease("restart:a", "one")
        await store.release_lease("restart:a", "one")
        again = await leased(store, next_owner)
        assert again is not None
        assert again.fence == 2

    async def test_any_text_names_a_lease(self, store: ActionStore) -> None:
        lease = await store.take_lease(HOSTILE, HOSTILE, 10.0)
        assert lease is not None
        assert (lease.name, lease.owner) == (HOSTILE, HOSTILE)
        assert await store.take_lease(HOSTILE, "other", 10.0) is None
        await store.release_lease(HOSTILE, HOSTILE)
        assert await store.take_lease(HOSTILE, "other", 10.0) is not None

    @pytest.mark.parametrize(
        ("name", "owner", "ttl_s"),
        [("", "o", 1.0), ("n", "", 1.0), ("n", "o", 0.0), ("n", "o", math.nan), ("n", "o", 1e99)],
    )
    async def test_a_lease_for_nobody_or_no_time_is_refused(
        self, store: ActionStore, name: str, owner: str, ttl_s: float
    ) -> None:
        with pytest.raises(StoreRefused):
            await store.take_lease(name, owner, ttl_s)

    # tokens

    @pytest.mark.parametrize("text", ["", HOSTILE])
    async def test_tokens_come_back_whole_until_they_are_revoked(
        self, store: ActionStore, text: str
    ) -> None:
        told = [token(f"ci {text}", text=text), Token("bare", bytes(32), NOON, "")]
        for one in told:
            await store.save_token(one)
            await store.save_token(one)
        assert set(await store.tokens()) == set(told)
        assert await store.revoke_token(f"ci {text}")
        assert not await store.revoke_token(f"ci {text}")
        assert await store.tokens() == (told[1],)

    async def test_what_was_over_before_is_dropped_and_nothing_else(
        self, store: ActionStore
    ) -> None:
        over = await intended(store, intent("r1"))
        assert await store.save_restart(ended(over))
        open_ = await intended(store, intent("r2", B))
        assert await store.propose(message("m1"))
        closed = moved(message("m1"), InterventionState.EXPIRED, NOON + MINUTE)
        assert await store.save_intervention(closed, InterventionState.PROPOSED)
        assert await store.propose(message("m2", B))
        heard = replace(life(B), heard_utc=NOON + 30 * DAY)
        await store.save_lives([life(epoch=40), heard])

        assert await store.prune(NOON + MINUTE) == 0
        assert await store.prune(NOON + 10 * DAY) == 3

        assert await store.restarts(LONG_AGO) == (open_,)
        assert [m.id for m in await store.interventions(LONG_AGO)] == ["m2"]
        assert await store.lives() == (heard,)
        # No epoch is given twice.
        assert (await intended(store, intent("r3"))).next_epoch == 41
        assert await store.prune(NOON + 10 * DAY) == 0
        with pytest.raises(StoreRefused):
            await store.prune(NAIVE)

    async def test_a_token_is_not_replaced_by_another(self, store: ActionStore) -> None:
        await store.save_token(token())
        with pytest.raises(StoreRefused):
            await store.save_token(token(secret="other"))
        assert await store.tokens() == (token(),)

    @pytest.mark.parametrize(
        "bad", [{"id": ""}, {"created_utc": NAIVE}, {"secret_hash": b"secret"}]
    )
    async def test_a_token_that_cannot_be_is_refused(
        self, store: ActionStore, bad: dict[str, object]
    ) -> None:
        with pytest.raises(StoreRefused):
            await store.save_token(replace(token(), **bad))  # type: ignore[arg-type]
        assert await store.tokens() == ()
