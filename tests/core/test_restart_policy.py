"""Whether an agent is restarted: never without proof, never while held, never over its budget."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import AgentId, AgentState
from custosd.core.diagnosis import Diagnosis, LastWords, classify, fingerprint, finished, resets_at
from custosd.core.evidence import (
    Condition,
    Exit,
    Health,
    Observation,
    ProcessIdentity,
    Source,
    Value,
)
from custosd.core.holds import HoldKind
from custosd.core.incidents import Incidents, IncidentTurn
from custosd.core.restart_budget import (
    Bucket,
    PastRestart,
    RestartHistory,
    RestartLimits,
    heal_s,
    past_of,
)
from custosd.core.restart_policy import Case, Move, decide, forecast, own_decision
from custosd.core.restarts import (
    Cause,
    Restart,
    RestartState,
    RestartStep,
    Sample,
    StepState,
    begun,
    objection,
    passed,
    stepped,
    stop_begun,
)
from custosd.core.transcript import RunEnd

ADA = AgentId("ada")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEAD = Health(Condition.DEAD, Value.BAD, "process_gone")
HUNG = Health(Condition.HUNG, Value.BAD, "no_progress")
OK = Health(Condition.ALIVE, Value.OK, "heard")
LATE = Health(Condition.LATE, Value.UNKNOWN, "silent")
CRASH = Diagnosis(Cause.CRASH, "exit_1")
NOW = 10_000.0
LIMITS = RestartLimits()


def case(**changes: object) -> Case:
    usual = Case(ADA, DEAD, AgentState.FAILED, CRASH, NOW - 10, "h1")
    return replace(usual, **changes)  # type: ignore[arg-type]


def past(
    at: float,
    agent: AgentId = ADA,
    state: RestartState = RestartState.SUCCEEDED,
    cause: Cause = Cause.CRASH,
    **changes: object,
) -> PastRestart:
    usual = PastRestart(f"{agent}@{at}", agent, "h1", at, at + 5, state, cause)
    return replace(usual, **changes)  # type: ignore[arg-type]


def history(
    *restarts: PastRestart, agents: int = 10, limits: RestartLimits = LIMITS
) -> RestartHistory:
    made = RestartHistory(limits, {"h1": agents})
    made.add_all(restarts)
    return made


def decided(of: Case, known: RestartHistory | None = None, incidents: Incidents | None = None):
    return decide(of, known or history(), incidents or Incidents(LIMITS), NOW, NOON)


def test_a_dead_agent_is_restarted_at_once() -> None:
    assert decided(case()).move is Move.RESTART


@pytest.mark.parametrize(
    ("changes", "move", "why"),
    [
        ({"health": OK}, Move.NOTHING, "alive"),
        ({"health": LATE}, Move.NOTHING, "late"),
        ({"health": LATE, "bad_at": NOW - 61}, Move.ESCALATE, "late_silent"),
        ({"health": LATE, "bad_at": NOW - 61, "held": HoldKind.PAUSE}, Move.NOTHING, "late"),
        ({"bad_at": NOW - 0.5}, Move.NOTHING, "settling"),
        ({"under_way": True}, Move.NOTHING, "under_way"),
        ({"finished": True}, Move.NOTHING, "finished"),
        ({"state": AgentState.TERMINATED}, Move.NOTHING, "finished"),
        ({"held": HoldKind.ESTOP}, Move.WITHHOLD, "estop"),
        ({"held": HoldKind.PAUSE}, Move.WITHHOLD, "pause"),
        ({"held": HoldKind.QUARANTINE}, Move.WITHHOLD, "quarantine"),
        ({"controlled": False}, Move.ESCALATE, "no_control"),
        ({"acting": False}, Move.WITHHOLD, "observing"),
        ({"diagnosis": Diagnosis(Cause.AUTH, "refused")}, Move.ESCALATE, "auth"),
    ],
)
def test_what_is_no_matter_for_a_restart(changes: dict[str, object], move: Move, why: str) -> None:
    decision = decided(case(**changes))
    assert (decision.move, decision.why) == (move, why)


def test_each_restart_in_a_row_doubles_the_pause_up_to_its_longest() -> None:
    waits = []
    for count in range(1, 9):
        row = [
            past(NOW - 1000 * (count - n), ended_at=NOW - 1000 * (count - n) + 5)
            for n in range(count)
        ]
        last = replace(row[-1], at=NOW - 20, ended_at=NOW - 15)
        limits = replace(LIMITS, burst=1000, stable_after_s=1e6)
        decision = decided(case(), history(*row[:-1], last, limits=limits))
        assert decision.until_at is not None
        waits.append(decision.until_at - last.ended_at)
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


def test_a_stable_life_ends_the_row() -> None:
    known = history(*(past(NOW - 3000 + n) for n in range(5)))
    assert decided(case(), known).move is Move.RESTART
    assert known.in_a_row(ADA, NOW) == ()


def test_five_in_the_window_are_a_crash_loop_and_a_release_forgives_them() -> None:
    known = history(*(past(NOW - 800 + 100 * n) for n in range(5)))
    decision = decided(case(), known)
    assert (decision.move, decision.why) == (Move.QUARANTINE, "crash_loop")
    assert decided(case(released_at=NOW - 5), known).move is Move.RESTART
    by_hand = history(*(past(NOW - 800 + 100 * n) for n in range(5)), past(NOW - 100, anew=True))
    assert decided(case(), by_hand).why != "crash_loop"


def test_limits_and_outages_are_not_the_agents_fault() -> None:
    known = history(*(past(NOW - 800 + 100 * n, cause=Cause.USAGE_LIMIT) for n in range(5)))
    assert decided(case(), known).move is Move.WAIT


def test_a_task_has_a_budget_of_its_own_whoever_works_on_it() -> None:
    known = history(
        *(past(NOW - 5000 + 1000 * n, AgentId(f"a{n}"), task="t1") for n in range(3)),
    )
    assert decided(case(task="t1"), known).why == "poison_task"
    assert decided(case(task="t2"), known).move is Move.RESTART
    assert decided(case(task=""), known).move is Move.RESTART


def test_what_was_abandoned_costs_a_pause_and_nothing_else() -> None:
    gone = [past(NOW - 20, state=RestartState.ABANDONED, ended_at=NOW - 10)]
    known = history(*gone)
    assert known.fleet_ready_at(NOW) == NOW
    assert known.in_a_row(ADA, NOW) == ()
    assert decided(case(), known).until_at == NOW + 20


def test_a_usage_limit_waits_until_it_is_over() -> None:
    limited = Diagnosis(Cause.USAGE_LIMIT, "limited", NOON + timedelta(hours=1))
    assert decided(case(diagnosis=limited)).until_at == NOW + 3600
    past_it = replace(limited, resets_utc=NOON - timedelta(seconds=1))
    assert decided(case(diagnosis=past_it)).move is Move.RESTART
    untold = replace(limited, resets_utc=None)
    assert decided(case(diagnosis=untold)).until_at == NOW - 10 + 30


def test_time_to_heal_grows_with_the_dead_by_the_refill_of_the_budget() -> None:
    assert heal_s(0, 1000, LIMITS) == 0
    assert heal_s(1, 1000, LIMITS) == LIMITS.usual_s
    assert heal_s(1000, 1000, LIMITS) == pytest.approx(990 * 60 / 10)
    assert heal_s(1000, 10_000, LIMITS) == pytest.approx(70 + 200 * 10)


def test_what_is_forecast_is_what_is_decided() -> None:
    known = history(past(NOW - 30))
    told = forecast(case(health=OK, bad_at=NOW), known, Incidents(LIMITS), NOW, NOON, 0)
    assert (told.move, told.why, told.supposing) == (Move.WAIT, "backoff", "it_died_now")
    assert told.in_s == 5
    assert (told.restarts_in_a_row, told.before_quarantine) == (1, 4)
    held = forecast(case(held=HoldKind.ESTOP), known, Incidents(LIMITS), NOW, NOON, 3)
    assert (held.move, held.why, held.supposing, held.in_s) == (Move.WITHHOLD, "estop", "", None)
    assert held.heal_s > 0


# --- properties ------------------------------------------------------------------------------

healths = st.sampled_from([DEAD, HUNG, OK, LATE, Health(Condition.UNKNOWN, Value.UNKNOWN, "")])
causes = st.sampled_from(list(Cause))
cases = st.builds(
    Case,
    st.just(ADA),
    healths,
    st.sampled_from(list(AgentState)),
    st.builds(Diagnosis, causes, st.just("x")),
    st.floats(NOW - 5000, NOW),
    st.just("h1"),
    st.sampled_from(["", "t1"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, HoldKind.ESTOP, HoldKind.PAUSE, HoldKind.QUARANTINE]),
)
pasts = st.lists(
    st.builds(
        past,
        st.floats(NOW - 4000, NOW - 6),
        st.sampled_from([ADA, AgentId("bob")]),
        st.sampled_from(list(RestartState)),
        causes,
        task=st.sampled_from(["", "t1"]),
    ),
    max_size=12,
)


@given(cases, pasts)
def test_only_what_is_known_to_be_bad_and_is_not_held_is_ever_restarted(
    of: Case, known: list[PastRestart]
) -> None:
    decision = decided(of, history(*known))
    if decision.move in (Move.RESTART, Move.QUARANTINE):
        assert of.health.value is Value.BAD
        assert of.held is None
        assert of.controlled
        assert of.acting
        assert not of.under_way
        assert not of.finished
        assert of.state is not AgentState.TERMINATED
    if of.health.value is not Value.BAD:
        assert decision.move in (Move.NOTHING, Move.ESCALATE)


@given(cases, pasts)
def test_an_agents_own_decision_differs_only_by_what_agents_share(
    of: Case, known: list[PastRestart]
) -> None:
    told, whole = (
        ask(of, history(*known), Incidents(LIMITS), NOW, NOON) for ask in (own_decision, decide)
    )
    assert told.move is whole.move or (whole.setting, told.move) == (
        "restarts.fleet_share",
        Move.RESTART,
    )


@given(st.lists(st.floats(0, 200), min_size=1, max_size=120), st.integers(1, 2000))
def test_whatever_comes_the_fleets_budget_is_kept(gaps: list[float], agents: int) -> None:
    """In any stretch of time: at most the burst and what is refilled in it."""
    known = history(agents=agents)
    size, per_s = LIMITS.at_once(agents), LIMITS.per_s(agents)
    now, done = 0.0, []
    for number, gap in enumerate(gaps):
        now += gap
        ready_at = known.fleet_ready_at(now)
        assert ready_at >= now
        if ready_at <= now:
            known.add(past(now, AgentId(f"a{number}")))
            done.append(now)
    for first in range(len(done)):
        for last in range(first, len(done)):
            assert last - first + 1 <= size + (done[last] - done[first]) * per_s + 1e-6


@given(st.floats(0, 1e4), st.integers(1, 50), st.integers(5, 100))
def test_a_token_is_there_when_it_was_said_to_be(now: float, spent: int, size: int) -> None:
    bucket = Bucket()
    for _ in range(spent):
        bucket = bucket.spent(now, 1 / 60)
    ready_at = bucket.ready_at(now, size, 1 / 60)
    assert bucket.ready_at(ready_at, size, 1 / 60) <= ready_at + 1e-3


@given(pasts)
def test_budgets_are_the_same_after_our_own_restart(known: list[PastRestart]) -> None:
    """A fold over rows: in whatever order they are read, and told of twice."""
    unique = list({one.id: one for one in known}.values())
    first = history(*unique)
    second = history(*reversed(unique), *unique)
    assert first.in_a_row(ADA, NOW) == second.in_a_row(ADA, NOW)
    assert first.during("t1") == second.during("t1")
    assert first.fleet_ready_at(NOW) == pytest.approx(second.fleet_ready_at(NOW))


def test_when_the_fleets_burst_is_used_up_the_next_waits_for_the_refill() -> None:
    """Whoever it is, and on whatever host; its own decision is that it may stand in line."""
    known = RestartHistory(LIMITS, {"h1": 5, "h2": 5})
    known.add_all(past(NOW - 9, AgentId(f"a{number}")) for number in range(5))
    elsewhere = case(host="h2")
    decision = decided(elsewhere, known)
    assert (decision.move, decision.why) == (Move.WAIT, "fleet_budget")
    assert decision.until_at == pytest.approx(NOW - 9 + 60)
    assert decision.setting == "restarts.fleet_share"
    own = own_decision(elsewhere, known, Incidents(LIMITS), NOW, NOON)
    assert own.move is Move.RESTART
    assert decide(elsewhere, known, Incidents(LIMITS), NOW + 51, NOON).move is Move.RESTART


def test_a_host_whose_burst_is_used_up_waits_alone() -> None:
    """A fleet of 1,000 may start ten at once, a host of ten agents five."""
    known = RestartHistory(LIMITS, {"h1": 10, "h2": 990})
    known.add_all(past(NOW - 9, AgentId(f"a{number}")) for number in range(5))
    decision = decided(case(), known)
    assert (decision.move, decision.why) == (Move.WAIT, "host_budget")
    assert decision.until_at == pytest.approx(NOW - 9 + 60)
    assert decided(case(host="h2"), known).move is Move.RESTART


def test_what_a_person_orders_uses_up_nothing_of_the_fleets_budget() -> None:
    """Whoever dies after a dozen orders is healed as if there had been none."""
    ordered = [
        replace(past(NOW, AgentId(f"o{number}")), cause=Cause.REQUESTED, anew=True)
        for number in range(12)
    ]
    known = history(*ordered)
    assert known.fleet_ready_at(NOW) == NOW
    assert known.host_ready_at("h1", NOW) == NOW
    assert decide(case(), known, Incidents(LIMITS), NOW, NOON).move is Move.RESTART


def test_a_wall_clock_that_was_set_back_does_not_stop_restarts() -> None:
    row = Restart("r", ADA, "k", Cause.CRASH, "", "custosd", 0, 1, NOON + timedelta(hours=5))
    assert past_of(row, "h1", NOW, NOON, 0.0).at == NOW


# --- incidents -------------------------------------------------------------------------------


def struck(incidents: Incidents, *names: str, at: float = NOW) -> list[IncidentTurn]:
    return [
        news.turn for name in names for news in incidents.strike(AgentId(name), "crash@acct", at, 3)
    ]


def test_three_alike_are_an_incident_and_one_at_a_time_may_go() -> None:
    incidents = Incidents(LIMITS)
    assert struck(incidents, "a", "b", "b") == []
    assert struck(incidents, "c", "d") == [IncidentTurn.OPENED, IncidentTurn.GREW]
    assert incidents.gate(AgentId("a"), Condition.DEAD, NOW).probe == "crash@acct"
    incidents.began(AgentId("a"))
    assert incidents.gate(AgentId("a"), Condition.DEAD, NOW).open
    assert not incidents.gate(AgentId("b"), Condition.DEAD, NOW).open
    assert incidents.gate(AgentId("other"), Condition.DEAD, NOW).open
    incidents.restarted(AgentId("a"), NOW + 10, succeeded=True)
    assert incidents.tick(NOW + 69) == ()
    assert incidents.next_at(NOW + 11) == NOW + 70
    (news,) = incidents.tick(NOW + 70)
    assert (news.turn, news.reason) == (IncidentTurn.CLOSED, "probe_lived")
    assert incidents.gate(AgentId("b"), Condition.DEAD, NOW + 70).open
    assert incidents.cured(AgentId("b"))


def test_when_the_first_fails_the_next_try_waits_longer_each_time() -> None:
    incidents = Incidents(LIMITS)
    struck(incidents, "a", "b", "c")
    waits, now = [], NOW
    for name in ("a", "b", "c"):
        incidents.began(AgentId(name))
        (news,) = incidents.restarted(AgentId(name), now, succeeded=False)
        assert news.turn is IncidentTurn.PROBE_FAILED
        gate = incidents.gate(AgentId("a"), Condition.DEAD, now)
        assert gate.until_at is not None
        waits.append(gate.until_at - now)
        now = gate.until_at
    assert waits == [30, 60, 120]


def test_one_that_dies_again_before_its_time_has_failed() -> None:
    incidents = Incidents(LIMITS)
    struck(incidents, "a", "b", "c")
    incidents.began(AgentId("a"))
    incidents.restarted(AgentId("a"), NOW, succeeded=True)
    assert struck(incidents, "a", at=NOW + 59) == [IncidentTurn.PROBE_FAILED]
    assert incidents.tick(NOW + 100) == ()


def test_what_lies_further_apart_than_the_period_is_a_coincidence() -> None:
    incidents = Incidents(LIMITS)
    assert [struck(incidents, f"a{n}", at=NOW + 151 * n) for n in range(9)] == [[]] * 9


def test_an_open_breaker_leaves_the_running_alone_and_lets_one_dead_agent_try() -> None:
    incidents = Incidents(LIMITS)
    members = frozenset({AgentId("a"), AgentId("b")})
    (news,) = incidents.breaker("fleet", members, NOW, is_open=True)
    assert news.turn is IncidentTurn.OPENED
    assert not incidents.gate(AgentId("a"), Condition.HUNG, NOW).open
    assert incidents.gate(AgentId("a"), Condition.DEAD, NOW).probe
    incidents.began(AgentId("a"))
    assert not incidents.gate(AgentId("b"), Condition.DEAD, NOW).open
    incidents.restarted(AgentId("a"), NOW, succeeded=True)
    incidents.tick(NOW + 60)
    assert incidents.gate(AgentId("b"), Condition.DEAD, NOW + 60).open
    assert not incidents.gate(AgentId("b"), Condition.HUNG, NOW + 60).open
    (news,) = incidents.breaker("fleet", frozenset(), NOW + 61, is_open=False)
    assert news.reason == "breaker_closed"
    assert incidents.gate(AgentId("b"), Condition.HUNG, NOW + 61).open


names = st.sampled_from("abcdef")
moves = st.lists(
    st.tuples(st.sampled_from(["strike", "go", "well", "fail", "up"]), names), max_size=60
)


@given(moves)
def test_of_an_open_incident_never_two_go_at_once(story: list[tuple[str, str]]) -> None:
    incidents = Incidents(LIMITS)
    now, going = 0.0, set()
    for what, name in story:
        now += 7
        agent = AgentId(name)
        incidents.tick(now)
        if what == "strike" and agent not in going:
            incidents.strike(agent, "crash", now, 3)
        elif what == "go" and incidents.gate(agent, Condition.DEAD, now).open:
            incident = incidents.get("crash")
            if incident is not None and agent in incident.agents and agent not in going:
                assert not {one for one in going if one in incident.agents}
                incidents.began(agent)
                going.add(agent)
        elif what == "well" and agent not in going:
            incidents.recovered(agent)
        elif what in ("fail", "up") and agent in going:
            going.discard(agent)
            incidents.restarted(agent, now, succeeded=what == "up")


# --- causes ----------------------------------------------------------------------------------

LIMIT_WORDS = LastWords("Claude usage limit reached|1767290400", "rate_limit")


@pytest.mark.parametrize(
    ("condition", "seen", "words", "cause", "detail"),
    [
        (Condition.DEAD, Exit(code=1), LastWords(), Cause.CRASH, "exit_1"),
        (Condition.DEAD, Exit(code=0), LastWords(), Cause.UNKNOWN, "exit_0"),
        (Condition.DEAD, None, LastWords(), Cause.UNKNOWN, "exit_not_seen"),
        (Condition.DEAD, Exit(signal=9), LIMIT_WORDS, Cause.KILLED, "signal_9"),
        (Condition.DEAD, Exit(code=137), LastWords(), Cause.KILLED, "signal_9"),
        (Condition.DEAD, Exit(signal=11), LastWords(), Cause.CRASH, "signal_11"),
        (
            Condition.DEAD,
            Exit(signal=9, out_of_memory=True),
            LastWords(),
            Cause.OUT_OF_MEMORY,
            "out_of_memory",
        ),
        (Condition.HUNG, None, LastWords(), Cause.HANG, "no_progress"),
        (Condition.HUNG, None, LIMIT_WORDS, Cause.USAGE_LIMIT, "limited"),
        (
            Condition.DEAD,
            Exit(code=1),
            LastWords("API Error: 529 overloaded_error", "rate_limit"),
            Cause.PROVIDER_OUTAGE,
            "unreachable",
        ),
        (
            Condition.DEAD,
            Exit(code=1),
            LastWords("Invalid API key. Please run /login", "", RunEnd.ERROR),
            Cause.AUTH,
            "refused",
        ),
        (
            Condition.DEAD,
            Exit(code=1),
            LastWords("The endpoint answers 401 Unauthorized; shall I go on?", "human"),
            Cause.CRASH,
            "exit_1",
        ),
        (
            Condition.DEAD,
            Exit(code=1),
            LastWords("I have added the usage limit to the page.", ""),
            Cause.CRASH,
            "exit_1",
        ),
    ],
)
def test_a_cause_is_read_from_the_exit_first_and_then_from_how_the_transcript_ends(
    condition: Condition, seen: Exit | None, words: LastWords, cause: Cause, detail: str
) -> None:
    told = classify(condition, seen, words, NOON)
    assert (told.cause, told.detail) == (cause, detail)


@pytest.mark.parametrize(
    ("text", "after_s"),
    [
        ("usage limit reached|1767276000", 7200),
        ("limit; resets at 2026-01-01T12:30:00Z", 1800),
        ("limit; resets at 2026-01-01 15:00:00+02:00", 3600),
        ("try again in 2 hours 30 minutes", 9000),
        ("Please retry after 45s.", 45),
        ("resets in 1d", 86400),
        ("resets 3pm", None),
        ("resets at 2026-99-99T99:99:00Z", None),
        ("nothing is said", None),
    ],
)
def test_the_end_of_a_limit_is_read_where_it_is_told(text: str, after_s: float | None) -> None:
    told = resets_at(text, NOON)
    assert told == (None if after_s is None else NOON + timedelta(seconds=after_s))


@given(st.text(max_size=200))
def test_no_words_put_a_restart_off_for_longer_than_a_day(text: str) -> None:
    words = LastWords(f"limit reached|9999999999 {text}", "rate_limit")
    told = classify(Condition.DEAD, Exit(code=1), words, NOON)
    if told.resets_utc is not None:
        assert told.resets_utc <= NOON + timedelta(days=1)


def test_finished_takes_the_word_of_exit_and_transcript_both() -> None:
    done = LastWords("Done.", "", RunEnd.FINISHED)
    assert finished(Exit(code=0), done)
    assert not finished(Exit(code=1), done)
    assert not finished(None, done)
    assert not finished(Exit(code=0), LastWords())


def test_what_a_machine_does_is_alike_by_host_the_rest_by_account() -> None:
    assert fingerprint(Diagnosis(Cause.OUT_OF_MEMORY, "x"), "acct", "h1").endswith("@h1")
    assert fingerprint(CRASH, "acct", "h1") == "crash/exit_1@acct"
    assert fingerprint(CRASH, "", "h1") == "crash/exit_1"


# --- steps and samples -----------------------------------------------------------------------


def test_an_attempt_that_was_cut_short_is_ended_when_the_next_begins() -> None:
    row = Restart("r", ADA, "k", Cause.CRASH, "", "custosd", 0, 1, NOON)
    row = begun(row, RestartStep.SPAWN, NOON)
    row = begun(row, RestartStep.SPAWN, NOON)
    assert [(r.attempt, r.state, r.result) for r in row.steps] == [
        (1, StepState.FAILED, "cut_short"),
        (2, StepState.RUNNING, ""),
    ]
    assert not passed(row, RestartStep.SPAWN)
    assert passed(stepped(row, StepState.DONE, "spawned", NOON), RestartStep.SPAWN)
    skipped = stepped(begun(row, RestartStep.GRACEFUL_STOP, NOON), StepState.SKIPPED, "gone", NOON)
    assert not stop_begun(skipped)
    assert stop_begun(begun(row, RestartStep.GRACEFUL_STOP, NOON))


samples = st.builds(
    Sample,
    st.sampled_from(list(Value)),
    healths,
    st.lists(
        st.builds(
            Observation,
            st.sampled_from([Source.PROCESS, Source.TRANSCRIPT, Source.UNIT]),
            st.sampled_from(list(Value)),
            st.just(""),
            st.sampled_from([None, 1.0, 2.0]),
        ),
        max_size=3,
        unique_by=lambda seen: seen.source,
    ).map(tuple),
)


@given(samples, samples)
def test_no_objection_takes_two_samples_that_are_bad_and_seen(
    first: Sample, second: Sample
) -> None:
    if objection(first, second, requested=False, told_to_end=False):
        return
    for sample in (first, second):
        assert sample.health.authorises_restart
        assert sample.sight is not Value.UNKNOWN
    if second.health.condition is Condition.DEAD:
        assert first.sight is second.sight is Value.BAD


def test_a_process_that_spins_shows_no_progress_and_a_transcript_that_grows_does() -> None:
    def sample(source: Source, progress: float, process: ProcessIdentity | None = None) -> Sample:
        return Sample(Value.OK, HUNG, (Observation(source, Value.OK, "", progress, process),))

    ask = {"requested": False, "told_to_end": False}
    spins = ProcessIdentity(7, 70, "boot")
    cpu = sample(Source.PROCESS, 1, spins), sample(Source.PROCESS, 9, spins)
    assert objection(*cpu, **ask) == ""
    hook = sample(Source.PROCESS, 1), sample(Source.PROCESS, 9)
    assert objection(*hook, **ask) == "progress_seen"
    text = sample(Source.TRANSCRIPT, 1), sample(Source.TRANSCRIPT, 9)
    assert objection(*text, **ask) == "progress_seen"


def test_pauses_never_overflow() -> None:
    assert math.isfinite(LIMITS.pause_s(10**6, 0.5))
