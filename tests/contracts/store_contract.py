"""What every `ports.Store` promises; collected for each by a subclass with a fixture `store`."""

import itertools
import math
from dataclasses import replace

import pytest
from tests.contracts import store_values as some
from tests.contracts.store_values import ADA, ADA_AGAIN, BOB, DAY, HOSTILE, MINUTE, NOON

from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.errors import StoreRefused
from custosd.core.facts import StateChanged, TrajectoryRewound, VerdictReached
from custosd.core.transcript import RunEnd, Usage
from custosd.core.verdicts import Standing
from custosd.core.view import AgentView
from custosd.ports import Pruned, RetentionLimits, RunProgress, Store, TranscriptPosition

LONG_AGO = NOON - 1_000 * DAY


async def agents_of(store: Store) -> dict[AgentId, AgentView]:
    restored = await store.restore()
    agents = {view.ref.agent: view for view in restored.agents}
    assert len(agents) == len(restored.agents)
    return agents


async def positions_of(store: Store) -> dict[str, TranscriptPosition]:
    restored = await store.restore()
    return {position.key: position for position in restored.positions}


def view_of(run: RunProgress, path: str = "/home/ada/claude/ada.jsonl") -> AgentView:
    return AgentView(
        run.ref,
        "claude_code",
        path,
        run.parent,
        run.seen_utc,
        run.state,
        run.digest,
        run.grown_utc,
    )


def limits(
    facts: object = LONG_AGO, verdicts: object = LONG_AGO, transcripts: object = LONG_AGO
) -> RetentionLimits:
    return RetentionLimits(facts, verdicts, transcripts)  # type: ignore[arg-type]


class StoreContract:
    """The tests. `store` is a fresh, empty store."""

    # progress

    async def test_an_empty_store_knows_nothing_and_says_so(self, store: Store) -> None:
        assert await agents_of(store) == {}
        assert await positions_of(store) == {}
        assert await store.trajectories([ADA]) == {}
        assert await store.recent_verdicts([ADA.agent], 10) == {ADA.agent: ()}
        assert await store.recent_entries(None, 10) == ()
        assert await store.recent_entries(ADA.agent, 10) == ()
        assert await store.beats() == ()
        assert await store.prune(limits(NOON, NOON, NOON)) == Pruned()

    async def test_what_was_saved_is_restored_whole(self, store: Store) -> None:
        told = some.run(parent="claude:parent")
        await store.save_progress([some.progress(told, offset=77)])
        assert await agents_of(store) == {ADA.agent: view_of(told)}
        assert await positions_of(store) == {"claude/ada": some.position(offset=77)}
        assert await store.trajectories([ADA]) == {ADA: told.trajectory}

    async def test_empty_batches_are_no_work(self, store: Store) -> None:
        await store.save_progress([])
        await store.record([])
        assert await store.trajectories([]) == {}
        assert await store.recent_verdicts([], 10) == {}
        assert await agents_of(store) == {}

    async def test_a_position_without_a_run_is_kept(self, store: Store) -> None:
        await store.save_progress([some.progress(offset=5)])
        assert await positions_of(store) == {"claude/ada": some.position(offset=5)}
        assert await agents_of(store) == {}

    async def test_saving_twice_is_saving_once(self, store: Store) -> None:
        batch = [
            some.progress(some.run(ADA), key="a"),
            some.progress(some.run(BOB, 8), key="b"),
        ]
        await store.save_progress(batch)
        before = await store.restore()
        await store.save_progress(batch)
        after = await store.restore()
        assert sorted(before.agents, key=repr) == sorted(after.agents, key=repr)
        assert sorted(before.positions, key=repr) == sorted(after.positions, key=repr)

    async def test_a_later_progress_replaces_the_earlier(self, store: Store) -> None:
        later = some.run(
            steps=9, state=AgentState.TERMINATED, grown_utc=NOON + MINUTE, end=RunEnd.SUBMITTED
        )
        await store.save_progress([some.progress(some.run(steps=3), offset=100)])
        await store.save_progress([some.progress(later, offset=200)])
        assert await agents_of(store) == {ADA.agent: view_of(later)}
        assert (await positions_of(store))["claude/ada"].offset == 200
        assert await store.trajectories([ADA]) == {ADA: later.trajectory}

    async def test_the_last_word_of_a_batch_stays(self, store: Store) -> None:
        last = some.run(steps=5)
        batch = [some.progress(some.run(steps=n), offset=n) for n in range(1, 5)]
        await store.save_progress([*batch, some.progress(last, offset=5)])
        assert await agents_of(store) == {ADA.agent: view_of(last)}
        assert (await positions_of(store))["claude/ada"].offset == 5

    async def test_a_rewound_run_is_replaced_by_the_shorter_one(self, store: Store) -> None:
        anew = some.run(steps=1, grown_utc=NOON - MINUTE)
        await store.save_progress([some.progress(some.run(steps=50), offset=5_000)])
        await store.record([some.entry("e", TrajectoryRewound(ADA, 50))])
        await store.save_progress([some.progress(anew, offset=10)])
        assert await agents_of(store) == {ADA.agent: view_of(anew)}
        assert (await positions_of(store))["claude/ada"].offset == 10

    async def test_threads_of_one_transcript_are_agents_of_their_own(self, store: Store) -> None:
        main = some.run(ADA)
        helper = AgentRef(AgentId(f"{ADA.agent}/explore"), RunId("ada-1"))
        sub = some.run(helper, 2, thread="explore", parent=ADA.agent)
        await store.save_progress([some.progress(main, sub)])
        assert await agents_of(store) == {ADA.agent: view_of(main), helper.agent: view_of(sub)}
        folds = await store.trajectories([ADA, helper])
        assert folds == {ADA: main.trajectory, helper: sub.trajectory}
        assert len(await positions_of(store)) == 1

    async def test_the_latest_run_of_an_agent_is_restored(self, store: Store) -> None:
        first, second = some.run(ADA, 50), some.run(ADA_AGAIN, 2, seen_utc=NOON + MINUTE)
        await store.save_progress([some.progress(first, key="one")])
        await store.save_progress([some.progress(second, key="two")])
        assert (await agents_of(store))[ADA.agent].ref == ADA_AGAIN
        # Even when the older one's transcript is written once more.
        await store.save_progress([some.progress(replace(first, state=AgentState.IDLE), key="one")])
        assert await agents_of(store) == {ADA.agent: view_of(second, "/home/ada/two.jsonl")}
        assert await store.trajectories([ADA]) == {ADA: first.trajectory}
        both = {ADA: first.trajectory, ADA_AGAIN: second.trajectory}
        assert await store.trajectories([ADA_AGAIN, BOB, ADA]) == both
        assert len(await positions_of(store)) == 2

    async def test_the_latest_run_is_the_one_met_last_whatever_the_clock_says(
        self, store: Store
    ) -> None:
        """The wall clock jumped back between two runs, which came in one batch."""
        second = some.run(ADA_AGAIN, seen_utc=NOON - DAY)
        batch = [some.progress(some.run(ADA), key="z"), some.progress(second, key="a")]
        await store.save_progress(batch)
        assert (await agents_of(store))[ADA.agent].ref == ADA_AGAIN

    async def test_many_agents_come_back_each_with_its_own(self, store: Store) -> None:
        runs = [some.run(some.ref(n), n + 1) for n in range(300)]
        batch = [some.progress(run, key=f"t{n}", offset=n) for n, run in enumerate(runs)]
        await store.save_progress(batch)
        told = [some.bare_verdict(f"v{n}", run.ref) for n, run in enumerate(runs)]
        await store.record(some.verdict_entries(told))
        agents = await agents_of(store)
        assert len(agents) == 300
        for n, run in enumerate(runs):
            expected = replace(view_of(run, f"/home/ada/t{n}.jsonl"), verdict=told[n])
            assert agents[run.ref.agent] == expected
        folds = await store.trajectories([run.ref for run in runs])
        assert folds == {run.ref: run.trajectory for run in runs}
        positions = await positions_of(store)
        assert {key: at.offset for key, at in positions.items()} == {f"t{n}": n for n in range(300)}

    @pytest.mark.parametrize(
        "bad",
        [
            some.run(seen_utc=NOON.replace(tzinfo=None)),
            some.run(grown_utc=NOON.replace(tzinfo=None), state_utc=NOON),
            some.run(state_utc=NOON.replace(tzinfo=None)),
            some.run(AgentRef(AgentId(""), RunId("r"))),
            some.run(AgentRef(AgentId("a"), RunId(""))),
            some.run(steps=-1),
        ],
    )
    async def test_bad_progress_is_refused_with_its_batch(
        self, store: Store, bad: RunProgress
    ) -> None:
        with pytest.raises(StoreRefused):
            await store.save_progress(
                [some.progress(some.run(BOB), key="good"), some.progress(bad, key="bad")]
            )
        assert await agents_of(store) == {}
        assert await positions_of(store) == {}

    # the record

    async def test_every_kind_of_fact_comes_back_as_it_was(self, store: Store) -> None:
        facts = some.one_fact_of_each_kind()
        told = [some.entry(f"e{n:02}", fact, NOON + n * MINUTE) for n, fact in enumerate(facts)]
        await store.record(told)
        assert await store.recent_entries(None, 100) == tuple(reversed(told))

    async def test_the_record_is_read_newest_first_to_a_limit(self, store: Store) -> None:
        """Of one instant, the entry that was made later is the newer."""
        changed = some.state_changed(AgentState.RUNNING)
        told = [some.entry(f"e{n:03}", changed, NOON + (n // 2) * MINUTE) for n in range(20)]
        await store.record([*told[10:], *told[:10]])
        assert await store.recent_entries(None, 5) == tuple(reversed(told[15:]))

    async def test_the_record_of_one_agent_has_only_its_own(self, store: Store) -> None:
        facts = some.one_fact_of_each_kind()
        told = [some.entry(f"e{n:02}", fact) for n, fact in enumerate(facts)]
        others = some.entry("f", some.state_changed(AgentState.IDLE, BOB))
        await store.record([*told, others])
        mine = {entry.id for entry in await store.recent_entries(ADA.agent, 100)}
        runs = range(2, 10)
        acting = (13, 14, 15, 16, 20, 21, 22, 23, 24, 28, 31, 32, 34, 39, 41, 49)
        assert mine == {f"e{n:02}" for n in (*runs, *acting)}
        assert await store.recent_entries(BOB.agent, 100) == (others,)

    async def test_recording_twice_is_recording_once(self, store: Store) -> None:
        facts = some.one_fact_of_each_kind()
        told = [some.entry(f"e{n:02}", fact) for n, fact in enumerate(facts)]
        for batch in (told, told[3:], [*told, *told], told[:4]):
            await store.record(batch)
        assert await store.recent_entries(None, 100) == tuple(reversed(told))
        verdicts = await store.recent_verdicts([ADA.agent], 100)
        assert verdicts == {ADA.agent: (some.verdict(),)}

    async def test_a_verdict_whose_id_is_known_is_left_as_it_is(self, store: Store) -> None:
        other = some.verdict(standing=Standing.DONE, at_utc=NOON + MINUTE)
        await store.record([some.entry("e1", VerdictReached(some.verdict()))])
        await store.record([some.entry("e2", VerdictReached(other), NOON + MINUTE)])
        verdicts = await store.recent_verdicts([ADA.agent], 10)
        assert verdicts == {ADA.agent: (some.verdict(),)}

    async def test_facts_may_come_before_the_progress_of_their_run(self, store: Store) -> None:
        changed = some.entry("s", some.standing_changed(Standing.STUCK), NOON + MINUTE)
        await store.record([*some.verdict_entries([some.verdict()]), changed])
        early = (await agents_of(store))[ADA.agent]
        assert early == AgentView(
            ADA, "", "", "", NOON, standing=Standing.STUCK, verdict=some.verdict()
        )
        told = some.run(seen_utc=NOON - MINUTE)
        await store.save_progress([some.progress(told)])
        expected = replace(view_of(told), standing=Standing.STUCK, verdict=some.verdict())
        assert await agents_of(store) == {ADA.agent: expected}

    async def test_an_agent_that_was_only_seen_is_known(self, store: Store) -> None:
        fact = some.seen()
        await store.record([some.entry("e", fact)])
        expected = AgentView(ADA, fact.format, fact.path, fact.parent, fact.seen_utc)
        assert await agents_of(store) == {ADA.agent: expected}

    async def test_the_record_names_no_latest_run_against_progress(self, store: Store) -> None:
        """Facts about an old run that come late do not make it the latest one."""
        await store.save_progress([some.progress(some.run(ADA_AGAIN))])
        await store.record([some.entry("e", some.seen(ADA, NOON + MINUTE))])
        assert (await agents_of(store))[ADA.agent].ref == ADA_AGAIN
        await store.record([some.entry("f", some.seen(BOB, NOON))])
        assert (await agents_of(store))[BOB.agent].ref == BOB

    async def test_the_latest_change_wins_in_any_order_of_batches(self, store: Store) -> None:
        """State and standing follow the facts' own times, also where facts come twice."""
        states = (AgentState.RUNNING, AgentState.WAITING, AgentState.IDLE)
        standings = (Standing.PROGRESSING, Standing.STUCK, Standing.DONE)
        for n, order in enumerate(itertools.permutations(range(3))):
            of = some.ref(n)
            for k in (*order, order[0]):
                at = NOON + k * MINUTE
                await store.record(
                    [
                        some.entry(f"a{n}{k}", some.state_changed(states[k], of), at),
                        some.entry(f"b{n}{k}", some.standing_changed(standings[k], of), at),
                    ]
                )
        for view in (await agents_of(store)).values():
            assert (view.state, view.standing) == (AgentState.IDLE, Standing.DONE)

    @pytest.mark.parametrize("first", ["progress", "record"])
    @pytest.mark.parametrize("later", ["progress", "record"])
    async def test_the_latest_state_wins_whether_progress_or_the_record_brings_it(
        self, store: Store, first: str, later: str
    ) -> None:
        at = {word: NOON + (word == later) * MINUTE for word in ("progress", "record")}
        stopped = some.run(state=AgentState.TERMINATED, state_utc=at["progress"])
        running = some.entry("e", some.state_changed(AgentState.RUNNING), at["record"])
        saves = {
            "progress": lambda: store.save_progress([some.progress(stopped)]),
            "record": lambda: store.record([running]),
        }
        await saves[first]()
        await saves["record" if first == "progress" else "progress"]()
        expected = AgentState.TERMINATED if later == "progress" else AgentState.RUNNING
        assert (await agents_of(store))[ADA.agent].state is expected

    async def test_a_state_that_holds_since_earlier_does_not_win_in_a_batch(
        self, store: Store
    ) -> None:
        stopped = some.run(state=AgentState.TERMINATED, state_utc=NOON + MINUTE)
        await store.save_progress([some.progress(stopped), some.progress(some.run(steps=7))])
        view = (await agents_of(store))[ADA.agent]
        assert (view.state, view.digest and view.digest.steps) == (AgentState.TERMINATED, 7)

    async def test_of_changes_at_one_instant_the_later_in_the_batch_wins(
        self, store: Store
    ) -> None:
        await store.record(
            [
                some.entry("a", some.state_changed(AgentState.RUNNING)),
                some.entry("b", some.state_changed(AgentState.WAITING)),
            ]
        )
        assert (await agents_of(store))[ADA.agent].state is AgentState.WAITING

    async def test_a_standing_outlives_later_progress(self, store: Store) -> None:
        await store.save_progress([some.progress(some.run())])
        await store.record([some.entry("a", some.standing_changed(Standing.DRIFTING))])
        await store.save_progress([some.progress(some.run(steps=8))])
        view = (await agents_of(store))[ADA.agent]
        assert (view.standing, view.digest and view.digest.steps) == (Standing.DRIFTING, 8)

    @pytest.mark.parametrize(
        "bad",
        [
            some.entry("bad", some.seen(), NOON.replace(tzinfo=None)),
            some.entry("bad", some.seen(at_utc=NOON.replace(tzinfo=None))),
            some.entry("bad", some.seen(AgentRef(AgentId(""), RunId("r")))),
            some.entry("bad", VerdictReached(some.verdict(""))),
            some.entry("bad", VerdictReached(replace(some.verdict(), steps=-1))),
            *(
                some.entry(
                    "bad",
                    VerdictReached(
                        replace(
                            some.verdict(), judgement=replace(some.verdict().judgement, alignment=a)
                        )
                    ),
                )
                for a in (1.5, -0.1, math.nan)
            ),
        ],
    )
    async def test_a_bad_entry_refuses_its_batch_and_is_named(
        self, store: Store, bad: some.Entry
    ) -> None:
        good = some.entry("good", some.seen(BOB))
        with pytest.raises(StoreRefused, match="bad"):
            await store.record([good, bad])
        assert await store.recent_entries(None, 10) == ()
        assert await agents_of(store) == {}
        await store.record([good])
        assert await store.recent_entries(None, 10) == (good,)

    # verdicts

    async def test_the_last_verdicts_of_many_agents_come_newest_first(self, store: Store) -> None:
        told = {
            some.ref(n).agent: [
                some.bare_verdict(f"v{n}-{k:02}", some.ref(n), NOON + k * MINUTE) for k in range(n)
            ]
            for n in range(8)
        }
        await store.record(some.verdict_entries(v for of in told.values() for v in of))
        found = await store.recent_verdicts([*told, BOB.agent], 3)
        expected = {agent: tuple(reversed(of[-3:])) for agent, of in told.items()}
        assert found == expected | {BOB.agent: ()}

    async def test_verdicts_of_all_runs_of_an_agent_are_read(self, store: Store) -> None:
        of_first = some.verdict("v1", ADA)
        of_second = some.bare_verdict("v2", ADA_AGAIN, NOON + MINUTE)
        await store.record(some.verdict_entries([of_second, of_first]))
        found = await store.recent_verdicts([ADA.agent], 10)
        assert found == {ADA.agent: (of_second, of_first)}

    async def test_a_new_run_is_restored_without_the_old_ones_verdict(self, store: Store) -> None:
        await store.save_progress([some.progress(some.run(ADA))])
        await store.record(some.verdict_entries([some.verdict()]))
        assert (await agents_of(store))[ADA.agent].verdict == some.verdict()
        await store.save_progress([some.progress(some.run(ADA_AGAIN))])
        view = (await agents_of(store))[ADA.agent]
        assert (view.ref, view.verdict) == (ADA_AGAIN, None)

    # text and numbers

    async def test_any_text_comes_back_as_it_was(self, store: Store) -> None:
        """NUL, lone surrogates and quotes, in names as in what agents wrote."""
        of = AgentRef(AgentId(f"claude:{HOSTILE}"), RunId(HOSTILE))
        at = TranscriptPosition(HOSTILE, f"/{HOSTILE}", HOSTILE, HOSTILE, 3, b"")
        told = RunProgress(
            of, HOSTILE, HOSTILE, AgentState.IDLE, some.digest(3, HOSTILE), b"\0", NOON, NOON, NOON
        )
        verdict = some.verdict(HOSTILE, of, text=HOSTILE)
        verdict = replace(verdict, by=replace(verdict.by, judge=HOSTILE, model=HOSTILE))
        entries = [
            some.entry(f"{HOSTILE}{n}", fact)
            for n, fact in enumerate(
                [*some.one_fact_of_each_kind(HOSTILE), VerdictReached(verdict)]
            )
        ]
        await store.save_progress([some.Progress(at, (told,))])
        await store.record(entries)
        view = (await agents_of(store))[of.agent]
        assert view == AgentView(
            of, HOSTILE, at.path, HOSTILE, NOON, AgentState.IDLE, told.digest, NOON, verdict=verdict
        )
        assert await positions_of(store) == {HOSTILE: at}
        assert await store.trajectories([of]) == {of: b"\0"}
        assert await store.recent_verdicts([of.agent], 1) == {of.agent: (verdict,)}
        assert set(await store.recent_entries(None, 100)) == set(entries)
        assert (await store.recent_entries(of.agent, 100))[0].fact == VerdictReached(verdict)

    async def test_names_that_look_alike_stay_apart(self, store: Store) -> None:
        names = ["a\0", "a\ufdd00000", "a\ufdd0", "a\ufdd0fdd00000", "a"]
        refs = [AgentRef(AgentId(name), RunId(name)) for name in names]
        await store.save_progress(
            [some.progress(some.run(of, n), key=of.agent) for n, of in enumerate(refs)]
        )
        agents = await agents_of(store)
        assert {a: v.digest and v.digest.steps for a, v in agents.items()} == {
            AgentId(name): n for n, name in enumerate(names)
        }
        assert set(await positions_of(store)) == set(names)

    async def test_numbers_without_bound_come_back(self, store: Store) -> None:
        endless = replace(some.signal(), measure=math.inf, limit=-math.inf)
        verdict = replace(some.verdict(), signals=(endless,))
        digest = replace(some.digest(), usage=Usage(2**62, 0, 0, math.inf))
        told = replace(some.run(), digest=digest)
        await store.record(some.verdict_entries([verdict]))
        await store.save_progress([some.progress(told)])
        assert (await store.recent_verdicts([ADA.agent], 1))[ADA.agent] == (verdict,)
        assert (await store.recent_entries(None, 1))[0].fact == VerdictReached(verdict)
        assert (await agents_of(store))[ADA.agent].digest == digest

    # signs of life

    async def test_a_daemon_has_one_sign_of_life_and_the_newest_comes_first(
        self, store: Store
    ) -> None:
        for beat in (
            some.daemon_beat("a"),
            some.daemon_beat("b", NOON + MINUTE),
            some.daemon_beat("a", NOON + 2 * MINUTE),
            replace(some.daemon_beat("c"), stopped=True),
        ):
            await store.beat(beat)
        assert await store.beats() == (
            some.daemon_beat("a", NOON + 2 * MINUTE),
            some.daemon_beat("b", NOON + MINUTE),
            replace(some.daemon_beat("c"), stopped=True),
        )

    async def test_snapshots_of_metrics_come_back_whole_the_newest_first(
        self, store: Store
    ) -> None:
        told = [
            some.metrics("a"),
            some.metrics("b", NOON + MINUTE),
            some.metrics("a", NOON + MINUTE),
        ]
        for snapshot in (*told, replace(told[0], operations=())):
            await store.record_metrics(snapshot)
        assert await store.recent_metrics(10) == (told[2], told[1], told[0])
        assert await store.recent_metrics(1) == (told[2],)

    # retention

    async def test_metrics_go_by_whole_days_with_the_facts(self, store: Store) -> None:
        told = [some.metrics("a", NOON + n * DAY) for n in range(4)]
        for snapshot in told:
            await store.record_metrics(snapshot)
        await store.prune(limits(NOON + 2 * DAY, NOON, NOON))
        assert await store.recent_metrics(10) == (told[3], told[2])

    async def test_days_are_prepared_once(self, store: Store) -> None:
        assert await store.prepare_days(NOON) == 3
        assert await store.prepare_days(NOON) == 0
        assert await store.prepare_days(NOON + DAY) == 1
        assert await store.prepare_days(NOON + 10 * DAY, 0) == 1

    async def test_a_fact_of_a_day_that_was_not_prepared_is_kept(self, store: Store) -> None:
        changed = some.state_changed(AgentState.IDLE)
        told = [some.entry(f"e{n}", changed, NOON + n * DAY) for n in range(-2, 5)]
        await store.record(told)
        assert await store.prepare_days(NOON) == 3
        await store.record(told)
        assert await store.recent_entries(None, 10) == tuple(reversed(told))

    async def test_facts_go_by_whole_days(self, store: Store) -> None:
        """A day is dropped when all of it is older than the limit, prepared or not."""
        changed = some.state_changed(AgentState.IDLE)
        told = [some.entry(f"e{n}", changed, NOON + n * DAY) for n in range(6)]
        await store.prepare_days(NOON)
        await store.prepare_days(NOON + 3 * DAY, 0)
        await store.record(told)
        midnight = NOON.replace(hour=0, minute=0, second=0, microsecond=0)
        assert await store.prune(limits(facts=midnight)) == Pruned()
        assert await store.prune(limits(facts=midnight + DAY - MINUTE)) == Pruned()
        assert await store.prune(limits(facts=midnight + DAY)) == Pruned(fact_days=1)
        assert await store.recent_entries(None, 10) == tuple(reversed(told[1:]))
        assert await store.prune(limits(facts=NOON + 5 * DAY)) == Pruned(fact_days=3)
        assert await store.recent_entries(None, 10) == (told[5],)

    async def test_old_verdicts_go_but_the_last_of_each_run(self, store: Store) -> None:
        old = [some.verdict(f"v{n}", ADA, NOON + n * MINUTE) for n in range(5)]
        of_other_run = some.bare_verdict("w", ADA_AGAIN, NOON)
        young = [some.bare_verdict(f"y{n}", BOB, NOON + n * DAY) for n in (0, 10, 20)]
        await store.record(some.verdict_entries([*old, of_other_run, *young]))
        assert await store.prune(limits(verdicts=NOON + 5 * DAY)) == Pruned(verdicts=5)
        found = await store.recent_verdicts([ADA.agent, BOB.agent], 10)
        assert found == {
            ADA.agent: (old[4], of_other_run),
            BOB.agent: (young[2], young[1]),
        }
        assert await store.prune(limits(verdicts=NOON + 5 * DAY)) == Pruned()

    async def test_a_run_that_grew_since_is_never_pruned(self, store: Store) -> None:
        old = some.run(ADA, grown_utc=NOON - 10 * DAY)
        grown = some.run(BOB, seen_utc=NOON - 100 * DAY, grown_utc=NOON - 4 * DAY)
        await store.save_progress([some.progress(old, key="a"), some.progress(grown, key="b")])
        await store.record(some.verdict_entries([some.verdict()]))
        assert await store.prune(limits(transcripts=NOON - 5 * DAY)) == Pruned(runs=1)
        assert set(await agents_of(store)) == {BOB.agent}
        assert set(await positions_of(store)) == {"b"}
        assert await store.trajectories([ADA, BOB]) == {BOB: grown.trajectory}
        assert await store.recent_verdicts([ADA.agent], 10) == {ADA.agent: ()}

    async def test_a_transcript_stays_while_one_of_its_runs_does(self, store: Store) -> None:
        helper = AgentRef(AgentId(f"{ADA.agent}/explore"), RunId("ada-1"))
        sub = some.run(helper, grown_utc=NOON - 10 * DAY)
        await store.save_progress([some.progress(some.run(ADA), sub)])
        assert await store.prune(limits(transcripts=NOON - DAY)) == Pruned(runs=1)
        assert set(await agents_of(store)) == {ADA.agent}
        assert set(await positions_of(store)) == {"claude/ada"}

    async def test_a_run_of_which_only_facts_spoke_ages_by_them(self, store: Store) -> None:
        await store.record([some.entry("a", some.seen(ADA, NOON - 10 * DAY), NOON - 10 * DAY)])
        changed = StateChanged(BOB, AgentState.IDLE, AgentState.WAITING, "")
        await store.record(
            [
                some.entry("b", some.seen(BOB, NOON - 10 * DAY), NOON - 10 * DAY),
                some.entry("c", changed, NOON - DAY),
            ]
        )
        assert await store.prune(limits(transcripts=NOON - 5 * DAY)) == Pruned(runs=1)
        assert set(await agents_of(store)) == {BOB.agent}

    async def test_an_agent_that_was_pruned_may_come_back(self, store: Store) -> None:
        told = some.run(grown_utc=NOON - 10 * DAY)
        await store.save_progress([some.progress(told)])
        await store.prune(limits(transcripts=NOON))
        assert await agents_of(store) == {}
        await store.save_progress([some.progress(told)])
        assert await agents_of(store) == {ADA.agent: view_of(told)}
