"""Acts: every one done, tried, refused, and told with its author."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from tests.services.shelf import Shelf

from custosd.core.acts import TELLING, Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.beats import Beat, BeatStatus, ReceivedBeat
from custosd.core.errors import CustosdError, StoreUnavailable
from custosd.core.evidence import Condition, Value
from custosd.core.explanations import Explanation
from custosd.core.facts import (
    ActPerformed,
    ConfigReloaded,
    Entry,
    Escalated,
    Fact,
    HoldLifted,
    HoldPlaced,
    LifeChanged,
)
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.liveness import LivenessLimits, Lives, Watched
from custosd.core.money_words import MoneyShown, money_explained
from custosd.core.restart_policy import Forecast, Move
from custosd.core.steering import Intervention, InterventionState
from custosd.core.steering_policy import Clearance
from custosd.core.verdicts import SteeringKind
from custosd.core.view import AgentView, FleetView
from custosd.services.acts import ActPorts, Acts
from custosd.services.explainer import Explainer
from custosd.services.holds import Holds

O = ActOutcome  # noqa: E741 - read as a table's column
ADA = "uid:1000 (ada)"
ANNA, ANNABEL, BOB = AgentId("custosd:anna"), AgentId("custosd:annabel"), AgentId("builder/bob")
NowUtc = Callable[[], datetime]
Clock = trio.testing.MockClock


@dataclass
class Hands:
    """A restarter and a steerer that remember what they were asked."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    error: Exception | None = None
    hold: trio.Event | None = None
    letters: tuple[Intervention, ...] = ()

    async def order(
        self, agent: AgentId, by: str, reason: str, *, dry_run: bool = False
    ) -> ActAnswer:
        return await self._answer("order", agent, by, reason, dry_run)

    def forecast(self, agent: AgentId, now: float) -> Forecast | None:
        words, key = "a person orders it", "restarts.backoff"
        return Forecast(agent, Move.WAIT, "backoff", 360.0, words, key, "", 1, 3, 0.0)

    def released(self, agent: AgentId) -> None:
        self.asked.append(("released", agent))

    def interventions(self) -> tuple[Intervention, ...]:
        return self.letters

    def outlook(self, agent: AgentId) -> tuple[tuple[Intervention, Clearance], ...]:
        return tuple((one, Clearance(one.state.value)) for one in self.letters)

    async def steer(
        self,
        agent: AgentId,
        text: str,
        by: str,
        kind: SteeringKind = SteeringKind.GUIDANCE,
        *,
        dry_run: bool = False,
        key: str = "",
        wait_s: float = 0.0,
    ) -> ActAnswer:
        return await self._answer("steer", agent, text, by, kind, key, wait_s, dry_run)

    async def approve(self, intervention_id: str, by: str, *, dry_run: bool = False) -> ActAnswer:
        return await self._answer("approve", intervention_id, by, dry_run)

    async def reject(self, intervention_id: str, by: str, *, dry_run: bool = False) -> ActAnswer:
        return await self._answer("reject", intervention_id, by, dry_run)

    async def _answer(self, *asked: Any) -> ActAnswer:
        self.asked.append(asked)
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        return ActAnswer(O.WOULD_BE_DONE if asked[-1] is True else O.DONE, asked[0])


class Told:
    """A record that is given."""

    def __init__(self) -> None:
        self.entries: tuple[Entry, ...] = ()
        self.error: Exception | None = None

    async def recent_entries(self, agent: AgentId | None, limit: int) -> tuple[Entry, ...]:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return self.entries if agent is None else ()


class NoLives:
    def explain(self, agent: AgentId, now: float) -> None:
        return None


def no_money_known() -> Explanation:
    return money_explained(MoneyShown(datetime(2026, 3, 1, tzinfo=UTC), (), 0.0, None, 0.0))


class Bench:
    """Acts with all that they stand on; `view` is folded from `facts` by hand."""

    def __init__(self, now_utc: NowUtc, **options: Any) -> None:
        self.now_utc = now_utc
        self.shelf: Any = Shelf()
        self.hands = Hands()
        self.history = Told()
        self.view = FleetView({agent: _seen(agent, now_utc()) for agent in (ANNA, ANNABEL)})
        self.reloaded = ConfigReloaded(("guardian.cadence",), ("store.dsn",))
        self.reloads = 0
        self.facts_in, self.facts = trio.open_memory_channel[Fact](100)
        self.holds = Holds(self.shelf, self.facts_in, now_utc)
        explainer = Explainer(
            NoLives(), self.hands, self.hands, self.history, lambda: self.view, now_utc
        )
        ports = ActPorts(
            self.holds, self.hands, self.hands, explainer, self.reload, budget=no_money_known
        )
        self.acts = Acts(ports, lambda: self.view, self.facts_in, now_utc, **options)
        born = LifeChanged(
            BOB, 0, AgentState.STARTING, AgentState.RUNNING, Condition.ALIVE, Value.OK, "heard"
        )
        self.happened(born, Escalated("life:builder/bob", "life", BOB, "no_control"))

    async def reload(self) -> ConfigReloaded:
        self.reloads += 1
        return self.reloaded

    def happened(self, *facts: Fact) -> None:
        now = self.now_utc()
        self.view = self.view.after([Entry(str(n), now, fact) for n, fact in enumerate(facts)])

    async def __call__(self, act: Act, subject: str = "", **fields: Any) -> ActAnswer:
        answer = await self.acts.perform(ActRequest(act, ADA, subject, **fields))
        assert "\n" not in answer.message
        assert answer.message
        return answer

    def told(self) -> list[Fact]:
        """All facts since the last time, which the view takes in."""
        found: list[Fact] = []
        while True:
            try:
                found.append(self.facts.receive_nowait())
            except trio.WouldBlock:
                self.happened(*found)
                return found


def _seen(agent: AgentId, now: datetime) -> AgentView:
    return AgentView(AgentRef(agent, RunId("r1")), "custosd", "/t", "", now)


def _letter(name: str, now: datetime, state: InterventionState) -> Intervention:
    until = now + timedelta(minutes=30)
    kind = SteeringKind.GUIDANCE
    return Intervention(name, ANNA, name, kind, "text", "policy", now, until, state=state)


@pytest.fixture
async def bench(
    autojump_clock: Clock, now_utc: NowUtc
) -> Bench:  # inside the loop: it reads the clock
    return Bench(now_utc)


SUBJECTS = {
    Act.WHY: "annabel",
    Act.FORECAST: "annabel",
    Act.TASKS: "",
    Act.BUDGET: "",
    Act.STEER: "annabel",
    Act.APPROVE: "m-12",
    Act.REJECT: "m-12",
    Act.RESTART: "annabel",
    Act.QUARANTINE: "annabel",
    Act.RELEASE: "annabel",
    Act.PAUSE: "annabel",
    Act.RESUME: "annabel",
    Act.ESTOP: "",
    Act.THAW: "fleet",
    Act.SILENCE: "annabel",
    Act.ACK: "builder",
    Act.RELOAD: "",
}
RESOLVED = {"annabel": ANNABEL, "m-12": "m-1234", "builder": "life:builder/bob", "": FLEET}
BEFORE = {Act.RELEASE: Act.QUARANTINE, Act.RESUME: Act.PAUSE, Act.THAW: Act.ESTOP}
"""What must have been done before there is something to undo."""

# Who comes for a while is in test_enrolments.py, tasks and sync have files of their own, and who
# is judged now is in test_cycling.py.
ELSEWHERE = {Act.ENROL, Act.DISMISS, Act.TASK, Act.EMERGENCY, Act.CYCLE, Act.SYNC}
ACTS = [act for act in Act if act not in ELSEWHERE]
CHANGING = [act for act in ACTS if act not in TELLING]


async def ready(bench: Bench, act: Act) -> dict[str, Any]:
    """Bring about what the act needs, and return the fields of its request."""
    bench.hands.letters = (_letter("m-1234", bench.now_utc(), InterventionState.PROPOSED),)
    if before := BEFORE.get(act):
        await bench(before, SUBJECTS[act])
    bench.told()
    bench.shelf.calls.clear()
    bench.hands.asked.clear()
    text = "look at the tests" if act is Act.STEER else ""
    return {"subject": SUBJECTS[act], "text": text}


@pytest.mark.parametrize("act", CHANGING)
async def test_each_act_is_done_and_told_with_its_author_and_whom_it_was_about(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    answer = await bench(act, **fields)
    assert answer.outcome is O.DONE
    *_, fact = bench.told()
    about = "" if act is Act.RELOAD else RESOLVED.get(fields["subject"], fields["subject"])
    assert fact == ActPerformed(act, ADA, about, O.DONE)


@pytest.mark.parametrize("act", CHANGING)
async def test_a_trial_changes_nothing_and_is_told(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    held, kept = bench.holds.all(), dict(bench.shelf.kept)
    answer = await bench(act, **fields, dry_run=True)
    assert answer.outcome is O.WOULD_BE_DONE
    assert bench.holds.all() == held
    assert (bench.shelf.kept, bench.shelf.calls, bench.reloads) == (kept, [], 0)
    # Whoever has acts of its own is asked to try, and nobody is asked to do.
    assert all(asked[-1] is True for asked in bench.hands.asked)
    (fact,) = bench.told()
    assert isinstance(fact, ActPerformed)
    assert (fact.act, fact.author, fact.outcome, fact.dry_run) == (act, ADA, O.WOULD_BE_DONE, True)


@pytest.mark.parametrize("act", [act for act in ACTS if SUBJECTS[act] not in {"", "fleet"}])
async def test_whom_nobody_knows_nothing_happens_to(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    answer = await bench(act, **(fields | {"subject": "zed"}))
    assert answer.outcome is O.UNKNOWN_SUBJECT
    assert "'zed'" in answer.message
    assert answer.detail["candidates"]
    assert bench.hands.asked == []
    facts = bench.told()
    told = [ActPerformed(act, ADA, "zed", O.UNKNOWN_SUBJECT, reason=answer.message)]
    assert facts == ([] if act in TELLING else told)


@pytest.mark.parametrize("act", ACTS)
async def test_an_argument_that_is_not_known_is_refused(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    answer = await bench(act, **fields, arguments={"untill": "tomorrow"})
    assert answer.outcome is O.REFUSED
    assert "'untill'" in answer.message
    assert bench.hands.asked == []
    assert [fact.outcome for fact in bench.told() if isinstance(fact, ActPerformed)] == [
        O.REFUSED
    ] * (act not in TELLING)


@pytest.mark.parametrize("act", ACTS)
async def test_who_cannot_be_named_gets_nothing(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    answer = await bench.acts.perform(ActRequest(act, "", **fields))
    assert answer.outcome is O.REFUSED
    assert bench.hands.asked == []


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("custosd:anna", ANNA),
        ("annabel", ANNABEL),
        ("bob", BOB),
        ("builder", BOB),
        ("anna", None),
        ("nobody", None),
        ("", None),
    ],
)
async def test_an_agent_is_named_by_its_id_or_a_part_that_only_it_has(
    bench: Bench, autojump_clock: Clock, part: str, found: AgentId | None
) -> None:
    """Of all that write or beat; who is meant by several names is nobody's guess."""
    answer = await bench(Act.QUARANTINE, part)
    assert (answer.outcome is O.DONE) is (found is not None)
    assert [hold.subject for hold in bench.holds.all()] == ([found] if found else [])
    if part == "anna":
        assert answer.detail["candidates"] == [ANNA, ANNABEL]
        assert "custosd:anna, custosd:annabel" in answer.message


# --- holds ----------------------------------------------------------------------------------

PLACING = {
    Act.QUARANTINE: HoldKind.QUARANTINE,
    Act.PAUSE: HoldKind.PAUSE,
    Act.ESTOP: HoldKind.ESTOP,
    Act.ACK: HoldKind.ACK,
}
LIFTING = {act: PLACING[before] for act, before in BEFORE.items()}


@pytest.mark.parametrize("act", PLACING)
async def test_what_is_placed_is_a_hold_of_its_author_and_the_second_time_nothing(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    await bench(act, **fields, arguments={"reason": "maintenance\n tonight"})
    (hold,) = bench.holds.all()
    assert (hold.kind, hold.by, hold.reason) == (PLACING[act], ADA, "maintenance tonight")
    assert hold.until_utc is None
    assert bench.shelf.kept == {hold.key: hold}
    facts = bench.told()
    about = hold.subject
    assert facts == [
        HoldPlaced(hold),
        ActPerformed(act, ADA, about, O.DONE, reason="maintenance tonight"),
    ]
    again = await bench.acts.perform(ActRequest(act, "token:ci", fields["subject"]))
    assert again.outcome is O.NOTHING_TO_DO
    assert ADA in again.message
    assert bench.holds.all() == (hold,)
    told = bench.told()
    assert [(fact.author, fact.outcome) for fact in told if isinstance(fact, ActPerformed)] == [
        ("token:ci", O.NOTHING_TO_DO)
    ]


@pytest.mark.parametrize("act", LIFTING)
async def test_what_is_lifted_is_gone_and_the_second_time_nothing(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    fields = await ready(bench, act)
    await bench(act, **fields)
    assert bench.holds.all() == ()
    assert bench.shelf.kept == {}
    lifted, performed = bench.told()
    assert isinstance(lifted, HoldLifted)
    assert (lifted.kind, lifted.by) == (LIFTING[act], ADA)
    assert isinstance(performed, ActPerformed)
    assert (await bench(act, **fields)).outcome is O.NOTHING_TO_DO


async def test_an_emergency_stop_holds_while_the_database_is_away(
    bench: Bench, autojump_clock: Clock
) -> None:
    bench.shelf.error = StoreUnavailable("away")
    answer = await bench(Act.ESTOP, text="fire")
    assert answer.outcome is O.DONE
    assert answer.detail["stored"] is False
    assert "in force" in answer.message
    hold = bench.holds.holding(ANNA, HoldKind.ESTOP)
    assert hold is not None
    assert hold.reason == "fire"


async def test_what_cannot_be_lifted_in_the_database_stays_and_that_is_said(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench(Act.ESTOP)
    bench.told()
    bench.shelf.error = StoreUnavailable("away")
    answer = await bench(Act.THAW)
    assert answer.outcome is O.FAILED
    assert "away" in answer.message
    assert bench.holds.holding(ANNA, HoldKind.ESTOP)
    (fact,) = bench.told()
    assert isinstance(fact, ActPerformed)
    assert fact.outcome is O.FAILED


async def test_release_lets_the_count_of_restarts_begin_anew(
    bench: Bench, autojump_clock: Clock
) -> None:
    assert (await bench(Act.RELEASE, "annabel")).outcome is O.NOTHING_TO_DO
    assert bench.hands.asked == []
    await bench(Act.QUARANTINE, "annabel")
    await bench(Act.RELEASE, "annabel", dry_run=True)
    assert bench.hands.asked == []
    await bench(Act.RELEASE, "annabel")
    assert bench.hands.asked == [("released", ANNABEL)]


async def test_the_whole_fleet_is_paused_and_resumed_by_name(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench(Act.PAUSE, "fleet")
    assert bench.holds.holding(BOB, HoldKind.PAUSE)
    answer = await bench(Act.RESUME, "bob")
    assert answer.outcome is O.NOTHING_TO_DO
    assert "resume fleet" in answer.message
    assert (await bench(Act.RESUME, "fleet")).outcome is O.DONE


async def test_a_shorter_pause_does_not_end_a_longer_one_of_somebody_else(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench(Act.PAUSE, "bob")
    answer = await bench(Act.PAUSE, "bob", arguments={"for_s": 60})
    assert (answer.outcome, "lift that first" in answer.message) == (O.REFUSED, True)
    hold = bench.holds.get(HoldKind.PAUSE, BOB)
    assert hold is not None
    assert hold.until_utc is None
    await bench(Act.RESUME, "bob")
    assert (await bench(Act.PAUSE, "bob", arguments={"for_s": 60})).outcome is O.DONE
    assert (await bench(Act.PAUSE, "bob", arguments={"for_s": 600})).outcome is O.DONE


@pytest.mark.parametrize("act", [Act.ESTOP, Act.THAW])
async def test_an_emergency_stop_is_never_for_one(
    bench: Bench, autojump_clock: Clock, act: Act
) -> None:
    answer = await bench(act, "annabel")
    assert answer.outcome is O.REFUSED
    assert bench.holds.all() == ()


@pytest.mark.parametrize("act", [Act.PAUSE, Act.SILENCE, Act.ACK])
@pytest.mark.parametrize("way", ["for_s", "until"])
async def test_an_end_is_kept_and_a_new_one_replaces_it(
    bench: Bench, autojump_clock: Clock, act: Act, way: str
) -> None:
    fields = await ready(bench, act)
    now = bench.now_utc()
    for hours in (2, 3):
        end = now + timedelta(hours=hours)
        given: Any = 3_600 * hours if way == "for_s" else end.isoformat()
        answer = await bench(act, **fields, arguments={way: given})
        assert answer.outcome is O.DONE
        (hold,) = bench.holds.all()
        assert hold.until_utc == end
        assert f"{hours} h" in answer.message


@pytest.mark.parametrize(
    "arguments",
    [
        {"for_s": 0},
        {"for_s": -1},
        {"for_s": 30 * 86_400 + 1},
        {"for_s": float("nan")},
        {"for_s": float("inf")},
        {"for_s": 10**400},
        {"for_s": 10**5_000},
        {"for_s": "1h"},
        {"for_s": True},
        {"until": "tomorrow"},
        {"until": "2026-01-31T18:00:00"},
        {"until": "1999-01-31T18:00:00Z"},
        {"until": "2999-01-31T18:00:00Z"},
        {"for_s": 60, "until": "2026-01-01T00:10:00Z"},
        {"reason": "x" * 501},
    ],
)
async def test_an_end_that_is_none_is_refused(
    bench: Bench, autojump_clock: Clock, arguments: dict[str, Any]
) -> None:
    """A misspelt limit must not mean no limit."""
    answer = await bench(Act.PAUSE, "annabel", arguments=arguments)
    assert answer.outcome is O.REFUSED
    assert bench.holds.all() == ()


async def test_a_silence_lasts_an_hour_where_nothing_is_said_and_ends_by_zero(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench(Act.SILENCE, "annabel")
    (hold,) = bench.holds.all()
    assert hold.until_utc == bench.now_utc() + timedelta(hours=1)
    answer = await bench(Act.SILENCE, "annabel", arguments={"for_s": 0})
    assert answer.outcome is O.DONE
    assert bench.holds.all() == ()
    answer = await bench(Act.SILENCE, "annabel", arguments={"for_s": 0})
    assert answer.outcome is O.NOTHING_TO_DO


@pytest.mark.parametrize(
    ("subject", "held"),
    [
        ("fleet", FLEET),
        ("annabel", ANNABEL),
        ("life:builder/bob", "life:builder/bob"),
        ("bob", BOB),
        ("life", "life:builder/bob"),
    ],
)
async def test_silence_is_about_a_concern_an_agent_or_the_fleet(
    bench: Bench, autojump_clock: Clock, subject: str, held: str
) -> None:
    await bench(Act.SILENCE, subject)
    assert [hold.subject for hold in bench.holds.all()] == [held]


async def test_a_concern_or_an_incident_is_acknowledged_by_the_beginning_of_its_id(
    bench: Bench, autojump_clock: Clock
) -> None:
    """One that is both is one; what begins alike is told apart by whoever asks."""
    now = bench.now_utc()
    for name in ("i-17", "i-28"):
        bench.happened(HoldPlaced(_incident(name, now)))
    bench.happened(
        Escalated("incident:i-17", "incident", None, "5 died"),
        Escalated("life:custosd:anna", "life", ANNA, "dead"),
    )
    assert (await bench(Act.ACK, "i-1")).outcome is O.DONE
    assert (await bench(Act.ACK, "i-2")).outcome is O.DONE
    assert (await bench(Act.ACK, "custosd:an")).outcome is O.DONE
    assert (await bench(Act.ACK, "life")).outcome is O.UNKNOWN_SUBJECT
    assert {hold.subject for hold in bench.holds.all()} == {
        *("incident:i-17", "i-28", "life:custosd:anna")
    }


def _incident(name: str, now: datetime) -> Hold:
    return Hold(HoldKind.INCIDENT, name, "restarter", "", now, None, (ANNA,))


# --- restarts and messages ------------------------------------------------------------------


async def test_a_restart_is_ordered_in_the_name_of_whoever_asks(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench(Act.RESTART, "annabel", arguments={"reason": "wedged"})
    assert bench.hands.asked == [("order", ANNABEL, ADA, "wedged", False)]


async def test_a_message_goes_to_the_steerer_whole(bench: Bench, autojump_clock: Clock) -> None:
    arguments = {"kind": "correction", "key": "k1", "wait_s": 5}
    await bench(Act.STEER, "annabel", text=" run the\n tests ", arguments=arguments)
    assert bench.hands.asked == [
        ("steer", ANNABEL, "run the\n tests", ADA, SteeringKind.CORRECTION, "k1", 5.0, False)
    ]
    (fact,) = bench.told()
    assert isinstance(fact, ActPerformed)
    # The text is the store's to keep; it is in no fact and in no line of the log.
    assert fact.reason == ""


@pytest.mark.parametrize(
    ("text", "arguments"),
    [("  ", {}), ("x", {"kind": "order"}), ("x", {"wait_s": 21}), ("x", {"wait_s": "now"})],
)
async def test_a_message_that_makes_no_sense_is_refused(
    bench: Bench, autojump_clock: Clock, text: str, arguments: dict[str, Any]
) -> None:
    answer = await bench(Act.STEER, "annabel", text=text, arguments=arguments)
    assert answer.outcome is O.REFUSED
    assert bench.hands.asked == []


@pytest.mark.parametrize("act", [Act.EMERGENCY, Act.CYCLE])
@pytest.mark.parametrize(
    "deadline_s", [10**400, -(10**5_000), float("nan")], ids=["big", "low", "nan"]
)
async def test_a_deadline_beyond_all_numbers_is_answered(
    bench: Bench, autojump_clock: Clock, act: Act, deadline_s: float
) -> None:
    """It is read before the act is begun, where no net is below it."""
    answer = await bench(act, arguments={"deadline_s": deadline_s})
    assert answer.outcome in {O.REFUSED, O.FAILED}
    (fact,) = bench.told()
    assert isinstance(fact, ActPerformed)
    assert fact.outcome is answer.outcome


async def test_a_message_is_named_by_the_beginning_of_its_id_while_it_waits(
    bench: Bench, autojump_clock: Clock
) -> None:
    """One that waits no longer must be named in full: then the steerer says what it is."""
    state = InterventionState
    now = bench.now_utc()
    bench.hands.letters = (
        _letter("m-aa", now, state.PROPOSED),
        _letter("m-ab", now, state.QUEUED),
        _letter("m-ba", now, state.PROPOSED),
    )
    assert (await bench(Act.APPROVE, "m-a")).outcome is O.DONE
    assert (await bench(Act.REJECT, "m-ab")).outcome is O.DONE
    assert (await bench(Act.REJECT, "m-")).outcome is O.UNKNOWN_SUBJECT
    assert bench.hands.asked == [("approve", "m-aa", ADA, False), ("reject", "m-ab", ADA, False)]


# --- the daemon itself ----------------------------------------------------------------------


async def test_a_reload_says_what_has_changed(bench: Bench, autojump_clock: Clock) -> None:
    answer = await bench(Act.RELOAD)
    assert answer.detail == {"changed": ["guardian.cadence"], "after_restart": ["store.dsn"]}
    assert "store.dsn" in answer.message
    bench.reloaded = ConfigReloaded(())
    assert (await bench(Act.RELOAD)).outcome is O.NOTHING_TO_DO
    bench.reloaded = ConfigReloaded((), (), "custosd.toml:3: no such key")
    answer = await bench(Act.RELOAD)
    assert answer.outcome is O.FAILED
    assert "custosd.toml:3" in answer.message
    assert (await bench(Act.RELOAD, "annabel")).outcome is O.REFUSED


# --- whatever goes wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StoreUnavailable("it is away"), "it is away"),
        (CustosdError("no unit of that name"), "no unit"),
        (RuntimeError("a secret of somebody"), "RuntimeError"),
    ],
)
async def test_an_error_is_an_answer_and_a_fact(
    bench: Bench, autojump_clock: Clock, error: Exception, words: str
) -> None:
    bench.hands.error = error
    with structlog.testing.capture_logs() as logged:
        answer = await bench(Act.RESTART, "annabel")
    assert answer.outcome is O.FAILED
    assert words in answer.message
    assert "secret" not in answer.message
    (fact,) = bench.told()
    assert fact == ActPerformed(Act.RESTART, ADA, ANNABEL, O.FAILED, reason=answer.message)
    events = [line["event"] for line in logged]
    expected = ["act.failed", "act.performed"]
    assert events == (expected if isinstance(error, RuntimeError) else expected[1:])


async def test_an_act_ends_within_its_time_and_says_so(bench: Bench, autojump_clock: Clock) -> None:
    bench.hands.hold = trio.Event()
    began = trio.current_time()
    answer = await bench(Act.RESTART, "annabel")
    assert trio.current_time() - began == 30
    assert answer.outcome is O.FAILED
    assert "30 s" in answer.message
    (fact,) = bench.told()
    assert isinstance(fact, ActPerformed)
    assert fact.outcome is O.FAILED


async def test_a_board_that_does_not_listen_keeps_nobody_waiting_for_long(
    now_utc: NowUtc, autojump_clock: Clock
) -> None:
    bench = Bench(now_utc)
    for _ in range(100):
        bench.facts_in.send_nowait(ConfigReloaded(()))
    began = trio.current_time()
    with structlog.testing.capture_logs() as logged:
        assert (await bench(Act.RELOAD)).outcome is O.DONE
        assert trio.current_time() - began == 5
        bench.facts.close()
        assert (await bench(Act.RELOAD)).outcome is O.DONE
    assert [line["event"] for line in logged] == ["act.performed", "act.untold"] * 2


async def test_what_was_done_is_told_also_when_the_daemon_stops(
    bench: Bench, autojump_clock: Clock
) -> None:
    """The board is busy, and whoever asked is cut off before it takes the fact."""
    await bench.holds.place(Hold(HoldKind.PAUSE, BOB, ADA, "", bench.now_utc()))
    for _ in range(99):
        bench.facts_in.send_nowait(ConfigReloaded(()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench, Act.RELOAD)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        assert bench.reloads == 1
        assert bench.told()[-1] == ActPerformed(Act.RELOAD, ADA, "", O.DONE)


async def test_each_act_is_one_line_of_the_log(bench: Bench, autojump_clock: Clock) -> None:
    with structlog.testing.capture_logs() as logged:
        await bench(Act.WHY, "annabel")
        await bench(Act.STEER, "annabel", text="the words of a person")
    (line,) = logged
    assert line == {
        "event": "act.performed",
        "log_level": "info",
        "act": "steer",
        "author": ADA,
        "subject": ANNABEL,
        "outcome": "done",
        "dry_run": False,
    }


# --- why and forecast -----------------------------------------------------------------------


async def test_why_brings_together_view_and_record(bench: Bench, autojump_clock: Clock) -> None:
    await bench(Act.PAUSE, "bob", text="maintenance")
    now = bench.now_utc()
    bench.history.entries = tuple(
        Entry(f"e{n}", now + timedelta(seconds=n), fact) for n, fact in enumerate(bench.told())
    )
    answer = await bench(Act.WHY, "bob")
    assert answer.outcome is O.DONE
    assert answer.detail["agent"] == BOB
    changes: Any = answer.detail["changes"]
    assert [change["kind"] for change in changes] == ["act_performed", "hold_placed"]
    assert [hold["reason"] for hold in answer.detail["holds"]] == ["maintenance"]  # type: ignore[attr-defined]
    assert [one["id"] for one in answer.detail["concerns"]] == ["life:builder/bob"]  # type: ignore[attr-defined]
    assert bench.told() == []


async def test_why_and_forecast_of_a_life_that_is_watched(
    bench: Bench, autojump_clock: Clock, now_utc: NowUtc
) -> None:
    """With the lives themselves: a beat, then silence, then the ladder that lies ahead."""
    lives = Lives(LivenessLimits())
    lives.watch(Watched(BOB), trio.current_time())
    beat = Beat(BOB, 0, 1, BeatStatus.RUNNING)
    lives.beat(ReceivedBeat(beat, trio.current_time(), "socket"))
    await trio.sleep(12)
    explainer = Explainer(
        lives, bench.hands, bench.hands, bench.history, lambda: bench.view, now_utc
    )
    ports = ActPorts(bench.holds, bench.hands, bench.hands, explainer, bench.reload)
    acts = Acts(ports, lambda: bench.view, bench.facts_in, now_utc)
    answer = await acts.perform(ActRequest(Act.WHY, ADA, "bob"))
    evidence: Any = answer.detail["evidence"]
    assert [(piece["source"], piece["value"], piece["age_s"]) for piece in evidence] == [
        ("beat", "ok", 12.0)
    ]
    settings: Any = answer.detail["settings"]
    assert "liveness.margin" in {setting["key"] for setting in settings}
    answer = await acts.perform(ActRequest(Act.FORECAST, ADA, "bob"))
    outlooks: Any = answer.detail["outlooks"]
    missed = next(outlook for outlook in outlooks if outlook["what"] == "a beat is missed")
    assert missed["unless"] == "a beat comes"
    assert missed["in_s"] > 0


async def test_why_answers_without_the_record_and_says_so(
    bench: Bench, autojump_clock: Clock
) -> None:
    bench.history.error = StoreUnavailable("away")
    answer = await bench(Act.WHY, "bob")
    assert answer.outcome is O.DONE
    assert answer.detail["changes"] == []
    assert "away" in str(answer.detail["changes_absent"])
    lines: Any = answer.detail["lines"]
    assert any("not known" in line and "away" in line for line in lines)


async def test_forecast_brings_together_what_the_actors_will_do(
    bench: Bench, autojump_clock: Clock
) -> None:
    now = bench.now_utc()
    bench.hands.letters = (_letter("m-aa", now, InterventionState.PROPOSED),)
    answer = await bench(Act.FORECAST, "annabel")
    assert answer.outcome is O.DONE
    outlooks: Any = answer.detail["outlooks"]
    assert [outlook["in_s"] for outlook in outlooks] == [360, 1_800]
    assert "restarts.backoff" in answer.message
    assert bench.told() == []


async def test_the_tasks_are_told_with_where_they_wait(bench: Bench, autojump_clock: Clock) -> None:
    answer = await bench(Act.TASKS)
    assert answer.outcome is O.DONE
    lines = answer.detail["lines"]
    assert isinstance(lines, list)
    assert any("waits at" in line for line in lines)
    assert bench.told() == []
    assert (await bench(Act.TASKS, "annabel")).outcome is O.REFUSED


async def test_how_money_stands_is_told_where_anybody_knows(
    bench: Bench, autojump_clock: Clock
) -> None:
    answer = await bench(Act.BUDGET)
    assert answer.outcome is O.DONE
    assert answer.detail["limits"] == []
    assert "no limit is set: see [money] in the configuration" in str(answer.detail["lines"])
    assert bench.told() == []
    assert (await bench(Act.BUDGET, "annabel")).outcome is O.REFUSED
