"""Chains of evidence and what is to come, composed from values."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.acts import Act, ActOutcome
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.changes import change, in_words
from custosd.core.evidence import Condition, Evidence, Health, Source, Value
from custosd.core.explanations import (
    Asked,
    LifeExplained,
    Outlook,
    Record,
    Setting,
    forecast,
    why,
)
from custosd.core.facts import (
    ActPerformed,
    AmnestyGranted,
    AnalysisSkipped,
    BeatMissed,
    BudgetReached,
    BudgetRenewed,
    ConcernResolved,
    ConfigReloaded,
    DaemonStarted,
    Entry,
    Escalated,
    Fact,
    HoldLifted,
    HoldPlaced,
    InterventionChanged,
    LifeChanged,
    RestartChanged,
    RestartStepped,
    RestartWithheld,
    StandingChanged,
    StateChanged,
)
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.money import Rung
from custosd.core.outlooks import outlooks_of_letters, outlooks_of_restart
from custosd.core.restart_policy import Forecast, Move
from custosd.core.restarts import Cause, RestartState, RestartStep, StepState
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.steering import Intervention, InterventionState
from custosd.core.steering_policy import Clearance
from custosd.core.verdicts import JudgedBy, Judgement, Standing, SteeringKind, Verdict
from custosd.core.view import AgentView, FleetView

ADA = "uid:1000 (ada)"
BOB, JIM = AgentId("bob"), AgentId("jim")
REF = AgentRef(BOB, RunId("r1"))
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
PLACES = {
    "liveness.margin": Setting("liveness.margin", "5s", "custosd.toml:12"),
    "restarts.backoff": Setting("restarts.backoff", "30s"),
}


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def asked(*facts: Fact, agent: AgentId = BOB, view: FleetView | None = None) -> Asked:
    """A question about Bob when these facts have happened, ten seconds apart."""
    entries = [Entry(str(n), ago(10 * (len(facts) - n)), fact) for n, fact in enumerate(facts)]
    view = (view or FleetView()).after(entries)
    return Asked(agent, view, 1_000.0, NOW, lambda _, key: PLACES.get(key, Setting(key)))


def life(*evidence: Evidence, **fields: Any) -> LifeExplained:
    health = Health(Condition.LATE, Value.UNKNOWN, "two_misses", evidence)
    return LifeExplained(3, AgentState.DEGRADED, health, **fields)


LATE = LifeChanged(
    BOB,
    3,
    AgentState.RUNNING,
    AgentState.DEGRADED,
    Condition.LATE,
    Value.UNKNOWN,
    "two_misses",
    (Evidence(Source.BEAT, Value.UNKNOWN, 1.0, 50.0, "silent"),),
)
PAUSED = Hold(HoldKind.PAUSE, BOB, ADA, "maintenance", ago(180), NOW + timedelta(hours=1))
STOPPED = Hold(HoldKind.ESTOP, FLEET, "token:ci", "fire", ago(60))
INCIDENT = Hold(HoldKind.INCIDENT, "i-1", "restarter", "429", ago(60), None, (BOB, JIM))


def test_evidence_is_shown_as_what_it_counts_for_now_beside_what_it_said() -> None:
    fresh = Evidence(Source.BEAT, Value.OK, 970.0, 50.0, "beat_heard")
    stale = Evidence(Source.TRANSCRIPT, Value.OK, 700.0, 60.0, "grown")
    told = why(asked(LATE), life(fresh, stale), Record())
    assert told.form["evidence"] == [
        {
            "source": "beat",
            "value": "ok",
            "said": "ok",
            "detail": "beat_heard",
            "age_s": 30.0,
            "fresh_s": 50.0,
        },
        {
            "source": "transcript",
            "value": "unknown",
            "said": "ok",
            "detail": "grown",
            "age_s": 300.0,
            "fresh_s": 60.0,
        },
    ]
    assert "  beat       ok       seen 30 s ago, counts for 50 s: beat_heard" in told.lines
    assert "  transcript unknown  was ok 5 min ago, counted for 1 min: grown" in told.lines


def test_a_death_counts_for_ever_and_the_answer_is_json_all_the_same() -> None:
    gone = Evidence(Source.PROCESS, Value.BAD, 970.0, math.inf, "process_gone")
    told = why(asked(LATE), life(gone), Record())
    assert "  process    bad      seen 30 s ago, counts for ever: process_gone" in told.lines
    (form,) = json.loads(json.dumps(told.form, allow_nan=False))["evidence"]
    assert form["fresh_s"] is None


def test_the_head_says_how_the_agent_stands_by_life_and_by_verdict() -> None:
    verdict = Verdict(
        "v9",
        REF,
        ago(120),
        41,
        Judgement(Standing.STUCK, evidence=(38, 40)),
        (Signal(SignalKind.REPEATING, Severity.ALARM, (38, 40), 4, 3),),
        JudgedBy("rules"),
    )
    run = AgentView(REF, "custosd", "/t", "", ago(900), AgentState.RUNNING)
    run = replace(run, standing=Standing.STUCK, verdict=verdict)
    under_way = RestartChanged("x1", BOB, 3, 4, RestartState.RUNNING, Cause.HANG, "restarter")
    told = why(asked(LATE, under_way, view=FleetView({BOB: run})), life(), Record())
    shows = "repeating at steps 38, 40 (4, limit 3)"
    assert told.lines[:5] == (
        "bob",
        "  state     degraded, for 20 s (epoch 3)",
        "  life      late, which is unknown: two_misses",
        "  standing  stuck, last judged stuck by rules 2 min ago at step 41: " + shows,
        "  run       running, r1",
    )
    assert told.lines[5] == "  restart   running, because of hang, asked for by restarter"
    form: Any = told.form
    assert form["life"]["changed_utc"] == "2026-01-02T11:59:40Z"
    assert form["run"]["verdict"]["signals"] == [
        {"kind": "repeating", "steps": [38, 40], "measure": 4, "limit": 3}
    ]
    assert form["restart"]["next_epoch"] == 4


def test_what_is_not_known_is_said_to_be_so() -> None:
    told = why(asked(), None, Record((), "the record could not be read (away)"))
    assert told.lines == (
        "bob",
        "  life      not known: it does not beat and has no table of its own",
        "  standing  not known: no transcript of it was read",
        "changes",
        "  not known: the record could not be read (away)",
    )
    assert told.form["life"] is None
    assert told.form["run"] is None
    assert told.form["changes_absent"] == "the record could not be read (away)"
    nothing = why(asked(), life(), Record())
    assert "  none: nothing has been seen of it since the start" in nothing.lines


def test_numbers_are_told_with_the_line_of_the_configuration() -> None:
    told = why(asked(), life(keys=("liveness.margin", "restarts.backoff", "x.y")), Record())
    settings = told.lines[told.lines.index("settings") + 1 :]
    assert settings == (
        "  liveness.margin = 5s, custosd.toml:12",
        "  restarts.backoff = 30s, the default",
        "  x.y",
    )
    assert told.form["settings"] == [
        {"key": "liveness.margin", "value": "5s", "place": "custosd.toml:12"},
        {"key": "restarts.backoff", "value": "30s", "place": ""},
        {"key": "x.y", "value": "", "place": ""},
    ]


def test_holds_on_it_on_all_and_on_its_concerns_are_shown_and_no_others() -> None:
    other = Hold(HoldKind.PAUSE, JIM, ADA, "", ago(5))
    over = Hold(HoldKind.SILENCE, BOB, ADA, "", ago(500), ago(100))
    known = Hold(HoldKind.ACK, "life:bob", ADA, "", ago(50))
    placed = [HoldPlaced(hold) for hold in (PAUSED, STOPPED, INCIDENT, other, over, known)]
    told = why(asked(Escalated("life:bob", "life", BOB, "no_control"), *placed), None, Record())
    form: Any = told.form
    assert [hold["subject"] for hold in form["holds"]] == ["bob", "fleet", "i-1", "life:bob"]
    assert f"  paused by {ADA} for 3 min, 1 h more: maintenance" in told.lines
    assert "  stopped by emergency with the whole fleet by token:ci for 1 min: fire" in told.lines
    assert "  life:bob, for 1 min: no_control" in told.lines
    assert [concern["id"] for concern in form["concerns"]] == ["life:bob"]


def test_changes_are_shown_in_the_order_of_the_record_and_not_without_end() -> None:
    entries = tuple(
        Entry(str(n), ago(n), BeatMissed(BOB if n % 2 else JIM, 3, n, 9.0)) for n in range(100)
    )
    told = why(asked(), None, Record(entries))
    changes: Any = told.form["changes"]
    assert [change["text"] for change in changes[:2]] == [
        "1 beats missed, silent for 9 s",
        "3 beats missed, silent for 9 s",
    ]
    assert len(changes) == 30
    at = told.lines.index("changes")
    assert told.lines[at + 1] == "  11:59:59     1 s ago  1 beats missed, silent for 9 s"
    yesterday = Record((Entry("1", ago(86_400), LATE),))
    (line,) = why(asked(), None, yesterday).lines[at + 1 :]
    assert line.startswith("  2026-01-01 12:00:00     1 d ago  running → degraded")


ABOUT_BOB: list[tuple[Fact, str]] = [
    (LATE, "running → degraded: late, two_misses [beat unknown (silent)]"),
    (replace(LATE, after=AgentState.RUNNING, evidence=()), "still running: late, two_misses"),
    (BeatMissed(BOB, 3, 2, 31.0), "2 beats missed, silent for 31 s"),
    (
        StateChanged(REF, AgentState.RUNNING, AgentState.WAITING, "asked"),
        "run running → waiting: asked",
    ),
    (
        StandingChanged(REF, Standing.UNKNOWN, Standing.STUCK, "v1"),
        "standing unknown → stuck, by verdict v1",
    ),
    (
        RestartChanged("x", BOB, 3, 4, RestartState.FAILED, Cause.CRASH, ADA, "", "not_dead"),
        f"restart failed (epoch 3 → 4): crash, asked for by {ADA}; not_dead",
    ),
    (
        RestartStepped("x", BOB, RestartStep.SPAWN, 1, StepState.DONE, "started", 2.0),
        "restart step spawn done after 2 s: started",
    ),
    (
        RestartWithheld(BOB, 3, Cause.CRASH, "backoff", 90.0),
        "not restarted (crash): backoff; looked at again in 1 min",
    ),
    (HoldPlaced(PAUSED), f"paused until 2026-01-02T13:00:00Z, by {ADA}: maintenance"),
    (HoldPlaced(STOPPED), "stopped by emergency with the whole fleet, by token:ci: fire"),
    (HoldPlaced(INCIDENT), "held by an incident, by restarter: 429"),
    (HoldLifted(HoldKind.PAUSE, BOB, "time", "ran_out"), "no longer paused, by time: ran_out"),
    (
        HoldLifted(HoldKind.ESTOP, FLEET, ADA),
        f"no longer stopped by emergency with the whole fleet, by {ADA}",
    ),
    (
        InterventionChanged(
            "m-1", BOB, InterventionState.QUEUED, InterventionState.FAILED, "steerer", "no_pane"
        ),
        "message m-1 queued → failed, by steerer: no_pane",
    ),
    (
        AmnestyGranted("suspended", 120.0, 50.0, 7),
        "amnesty for all after 2 min (suspended): no silence counts for 50 s",
    ),
    (Escalated("life:bob", "life", BOB, "no_control"), "a person is needed: life:bob: no_control"),
    (ConcernResolved("life:bob", "recovered"), "resolved: life:bob: recovered"),
    (
        ActPerformed(Act.RESTART, ADA, BOB, ActOutcome.REFUSED, dry_run=True, reason="paused"),
        f"{ADA} asked for restart: refused (only tried): paused",
    ),
]
ABOUT_OTHERS: list[Fact] = [
    DaemonStarted("1", 1),
    ConfigReloaded(()),
    replace(LATE, agent=JIM),
    BeatMissed(JIM, 3, 2, 31.0),
    StateChanged(AgentRef(JIM, RunId("r")), AgentState.RUNNING, AgentState.WAITING, "asked"),
    HoldPlaced(replace(PAUSED, subject=JIM)),
    HoldPlaced(replace(INCIDENT, agents=(JIM,))),
    HoldLifted(HoldKind.PAUSE, JIM, ADA),
    Escalated("life:jim", "life", JIM, ""),
    ConcernResolved("life:jim", ""),
    ActPerformed(Act.RESTART, ADA, JIM, ActOutcome.DONE),
]


@pytest.mark.parametrize(("fact", "text"), ABOUT_BOB)
def test_each_change_is_a_line_of_words(fact: Fact, text: str) -> None:
    assert change(fact, BOB) == text


@pytest.mark.parametrize("fact", ABOUT_OTHERS)
def test_what_is_about_others_is_not_told(fact: Fact) -> None:
    assert change(fact, BOB) == ""


def test_an_answer_is_plain_json() -> None:
    facts = [fact for fact, _ in ABOUT_BOB]
    entries = tuple(Entry(str(n), NOW, fact) for n, fact in enumerate(facts))
    told = why(asked(*facts), life(Evidence(Source.UNIT, Value.BAD, 1.0, 9.0)), Record(entries))
    assert json.loads(json.dumps(told.form)) == told.form
    coming = forecast(asked(*facts), life(), [Outlook("x", 1.0), Outlook("y")])
    assert json.loads(json.dumps(coming.form)) == coming.form
    for line in (*told.lines, *coming.lines):
        assert "\n" not in line


# --- forecast -------------------------------------------------------------------------------


def test_the_soonest_comes_first_with_what_it_hangs_on() -> None:
    alive = life(
        outlooks=(Outlook("degraded", 42.4, "a beat comes", ("liveness.margin",)),),
    )
    later = Outlook("restart 2 of 5", 360.0, "it comes back", ("restarts.backoff",))
    told = forecast(asked(), alive, [Outlook("a person is asked"), later])
    assert told.lines == (
        "in 42 s: degraded, unless a beat comes (liveness.margin = 5s, custosd.toml:12)",
        "in 6 min: restart 2 of 5, unless it comes back (restarts.backoff = 30s, the default)",
        "some time: a person is asked",
    )
    outlooks: Any = told.form["outlooks"]
    assert [outlook["in_s"] for outlook in outlooks] == [42.4, 360.0, None]
    assert outlooks[0]["settings"][0]["place"] == "custosd.toml:12"
    assert told.form["nothing_because"] == []


def test_what_keeps_everything_from_happening_is_said_first() -> None:
    facts = [HoldPlaced(hold) for hold in (PAUSED, STOPPED)]
    told = forecast(asked(*facts), None, [Outlook("restart", 5.0)])
    assert told.lines == (
        f"no act: paused by {ADA} for 3 min, 1 h more: maintenance",
        "no act: stopped by emergency with the whole fleet by token:ci for 1 min: fire",
        "in 5 s: restart",
    )
    silent = Hold(HoldKind.SILENCE, BOB, ADA, "", ago(5))
    told = forecast(asked(HoldPlaced(silent)), None, [])
    assert told.lines == ("nothing: no deadline runs for this agent",)


def letter(state: InterventionState) -> Intervention:
    until = NOW + timedelta(minutes=30)
    return Intervention("m-1", BOB, "k", SteeringKind.GUIDANCE, "x", ADA, NOW, until, state=state)


@pytest.mark.parametrize(
    ("state", "clearance", "expected"),
    [
        (
            InterventionState.PROPOSED,
            Clearance("proposed"),
            [Outlook("message m-1 runs out", 1_800.0, "a person approves it")],
        ),
        (InterventionState.QUEUED, Clearance(), [Outlook("message m-1 is sent", 0.0)]),
        (
            InterventionState.QUEUED,
            Clearance("cooldown", NOW + timedelta(seconds=90)),
            [Outlook("message m-1 is sent (cooldown over)", 90.0)],
        ),
        (
            InterventionState.QUEUED,
            Clearance("mid_turn"),
            [Outlook("message m-1 runs out", 1_800.0, "it no longer waits (mid turn)")],
        ),
        (InterventionState.DELIVERED, Clearance("delivered"), []),
    ],
)
def test_a_message_goes_or_runs_out(
    state: InterventionState, clearance: Clearance, expected: list[Outlook]
) -> None:
    assert list(outlooks_of_letters([(letter(state), clearance)], NOW)) == expected


@pytest.mark.parametrize(
    ("move", "why_so", "what"),
    [
        (Move.RESTART, "crash", "restart 2 in a row, 3 left before quarantine"),
        (
            Move.WAIT,
            "fleet_budget",
            "restart 2 in a row, 3 left before quarantine; it waits for fleet budget",
        ),
        (Move.WITHHOLD, "pause", "no restart: pause"),
        (Move.QUARANTINE, "crash_loop", "quarantine: crash loop"),
        (Move.ESCALATE, "no_control", "a person is asked: no control"),
        (Move.NOTHING, "finished", None),
    ],
)
@pytest.mark.parametrize("supposing", ["", "it_died_now"])
def test_each_move_of_the_restarter_is_told_in_words(
    move: Move, why_so: str, what: str | None, supposing: str
) -> None:
    told = Forecast(BOB, move, why_so, 42.0, "it recovers", "x.y", supposing, 1, 3, 9.0)
    if_so = "if it died now: " if supposing else ""
    expected = [] if what is None else [Outlook(if_so + what, 42.0, "it recovers", ("x.y",))]
    assert list(outlooks_of_restart(told)) == expected


@given(st.floats(0, 1e9))
def test_a_duration_is_told_in_a_unit_that_fits(seconds: float) -> None:
    count, unit = in_words(seconds).split()
    size = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}[unit]
    assert abs(int(count) * size - seconds) <= max(size, 0.5)
    assert int(count) < {"s": 60, "min": 60, "h": 24, "d": 10**9}[unit]


def test_why_says_who_judged_instead_for_want_of_money_while_that_lasts() -> None:
    skip = AnalysisSkipped(BOB, "sonnet", "rules", "fleet/day", NOW + timedelta(hours=3))
    by = JudgedBy("rules")
    verdict = Verdict("v", REF, ago(60), 3, Judgement(Standing.PROGRESSING), (), by)
    run = AgentView(REF, "t", "/t", "", ago(900), verdict=verdict)
    view = FleetView({BOB: run})
    record = Record((Entry("e", ago(60), skip),))
    line = "  judge     rules instead of sonnet: no money, fleet/day until 2026-01-02T15:00:00Z"
    question = Asked(BOB, view, 0.0, NOW, lambda _agent, key: Setting(key))
    told = why(question, None, record)
    assert line in told.lines
    assert "not judged by sonnet but by rules" in "\n".join(told.lines)
    later = replace(question, now_utc=NOW + timedelta(hours=4))
    assert line not in why(later, None, record).lines
    of_sonnet = replace(verdict, by=JudgedBy("sonnet"))
    paid = replace(question, view=FleetView({BOB: replace(run, verdict=of_sonnet)}))
    assert line not in why(paid, None, record).lines


def test_a_limit_of_all_concerns_everybody_and_another_agents_nobody_else() -> None:
    fleet = BudgetReached("fleet/day", Rung.RULES, 9.5, 10.0, NOW)
    assert change(fleet, BOB) == (
        "budget fleet/day reached: 9.5 of 10 USD until 2026-01-02T12:00:00Z"
    )
    assert change(BudgetReached("agent/day/jim", Rung.SMALLER, 1, 2, None, JIM), BOB) == ""
    assert change(BudgetReached("agent/day/bob", Rung.SMALLER, 1, 2, None, BOB), BOB) == (
        "budget agent/day/bob nearly reached: 1 of 2 USD"
    )
    assert change(BudgetRenewed("fleet/day"), BOB) == "budget fleet/day has money again"
