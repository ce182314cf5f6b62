"""Whether an agent is restarted, now, later or never: one function, which forecasts too.

    Case, RestartHistory, Incidents --> [ decide ] --> Decision

Laws:

1. Only health that is known to be bad ends in a restart; `unknown` never does.
2. A person's hold goes before everything; what is not acted on is withheld with its reason,
   or a person is asked.
3. The reasons to wait are looked at in one fixed order, so that the same state of things
   always gives the same answer and its setting.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentId, AgentState
from custosd.core.diagnosis import Diagnosis
from custosd.core.evidence import Condition, Health, Value
from custosd.core.holds import FLEET, HoldKind
from custosd.core.incidents import BREAKER, Incidents
from custosd.core.restart_budget import RestartHistory, RestartLimits, heal_s
from custosd.core.restarts import Cause

HOLDS = (HoldKind.ESTOP, HoldKind.PAUSE, HoldKind.QUARANTINE)
"""What keeps an agent from being restarted, whoever asks for it."""


class Move(StrEnum):
    """What is to be done about an agent."""

    NOTHING = "nothing"
    RESTART = "restart"
    WAIT = "wait"
    WITHHOLD = "withhold"
    QUARANTINE = "quarantine"
    ESCALATE = "escalate"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why (a snake-case code, with the id of an incident or hold).

    `until_at`: when to ask again (trio's clock); None: when something has changed. `setting`
    is the configuration key that has decided it, "" where none has.
    """

    move: Move
    why: str
    until_at: float | None = None
    setting: str = ""
    probe: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One agent as it stands. `bad_at` is since when it is known to be bad, or to be late.

    `held` is the kind of the hold that is in force for it. `released_at`: since when a
    quarantine of it is over. `finished`: it ended because its work was done.
    """

    agent: AgentId
    health: Health
    state: AgentState
    diagnosis: Diagnosis
    bad_at: float
    host: str = ""
    task: str = ""
    controlled: bool = True
    acting: bool = True
    under_way: bool = False
    finished: bool = False
    held: HoldKind | None = None
    released_at: float = float("-inf")


def decide(
    case: Case, history: RestartHistory, incidents: Incidents, now: float, now_utc: datetime
) -> Decision:
    """What is to be done about this agent, now."""
    limits = history.limits
    return (
        _not_our_business(case, incidents, limits, now)
        or _withheld(case)
        or _beyond_restarting(case, history, incidents, limits, now)
        or _too_early(case, history, incidents, now, now_utc)
        or _over_budget(case, history, now)
        or Decision(
            Move.RESTART,
            case.diagnosis.cause,
            probe=incidents.gate(case.agent, case.health.condition, now).probe,
        )
    )


def own_decision(
    case: Case, history: RestartHistory, incidents: Incidents, now: float, now_utc: datetime
) -> Decision:
    """Whether it may stand in line: the same without the budgets of hosts and fleet."""
    decision = decide(case, history, incidents, now, now_utc)
    if decision.move is Move.WAIT and decision.setting == "restarts.fleet_share":
        return Decision(Move.RESTART, case.diagnosis.cause)
    return decision


def _not_our_business(
    case: Case, incidents: Incidents, limits: RestartLimits, now: float
) -> Decision | None:
    if case.under_way:
        return Decision(Move.NOTHING, "under_way")
    if case.state is AgentState.TERMINATED or case.finished:
        return Decision(Move.NOTHING, "finished")
    if case.health.authorises_restart:
        settled_at = case.bad_at + limits.settle_s
        return Decision(Move.NOTHING, "settling", settled_at) if now < settled_at else None
    if case.health.condition is Condition.LATE and case.held is None:
        return _late(case, incidents, limits, now)
    return Decision(Move.NOTHING, str(case.health.condition))


def _late(case: Case, incidents: Incidents, limits: RestartLimits, now: float) -> Decision:
    """Nobody heard of it for long, and nothing proves that it is dead: a person's business."""
    if incidents.breakers() & {case.host, FLEET}:
        return Decision(Move.NOTHING, BREAKER, setting="liveness.breaker_share")
    if now < case.bad_at + limits.late_s:
        return Decision(Move.NOTHING, "late", case.bad_at + limits.late_s)
    return Decision(Move.ESCALATE, f"late_{case.health.reason}")


def _withheld(case: Case) -> Decision | None:
    if case.held is not None:
        return Decision(Move.WITHHOLD, str(case.held))
    if not case.controlled:
        return Decision(Move.ESCALATE, "no_control", setting="agent.control")
    if not case.acting:
        return Decision(Move.WITHHOLD, "observing", setting="restarts.mode")
    return None


def _beyond_restarting(
    case: Case,
    history: RestartHistory,
    incidents: Incidents,
    limits: RestartLimits,
    now: float,
) -> Decision | None:
    if case.diagnosis.cause is Cause.AUTH and not incidents.cured(case.agent):
        if incident := incidents.names(case.agent):
            return Decision(Move.WAIT, f"incident:{incident}", setting="restarts.common_cause")
        return Decision(Move.ESCALATE, "auth")
    if history.during(case.task, case.released_at) >= limits.per_task:
        return Decision(Move.QUARANTINE, Cause.POISON_TASK, setting="restarts.per_task")
    row = history.in_a_row(case.agent, case.bad_at, case.released_at)
    if history.looping(row, now) >= limits.burst:
        return Decision(Move.QUARANTINE, "crash_loop", setting="restarts.burst")
    return None


def _too_early(
    case: Case,
    history: RestartHistory,
    incidents: Incidents,
    now: float,
    now_utc: datetime,
) -> Decision | None:
    limit_over_at = _limit_over_at(case, history, now, now_utc)
    if limit_over_at > now and not incidents.cured(case.agent):
        return Decision(Move.WAIT, Cause.USAGE_LIMIT, limit_over_at)
    ready_at = backed_off_until(case, history)
    if ready_at > now:
        return Decision(Move.WAIT, "backoff", ready_at, "restarts.backoff")
    gate = incidents.gate(case.agent, case.health.condition, now)
    if not gate.open:
        why = f"incident:{gate.incident}"
        return Decision(Move.WAIT, why, gate.until_at, "restarts.common_cause")
    return None


def _limit_over_at(case: Case, history: RestartHistory, now: float, now_utc: datetime) -> float:
    if case.diagnosis.cause is not Cause.USAGE_LIMIT:
        return now
    if case.diagnosis.resets_utc is not None:
        return now + (case.diagnosis.resets_utc - now_utc).total_seconds()
    row = history.in_a_row(case.agent, case.bad_at, case.released_at)
    return case.bad_at + history.limits.pause_s(len(row) + 1, 0.0)


def backed_off_until(case: Case, history: RestartHistory) -> float:
    """Until when the agent's own back-off lasts; -inf where it was never restarted."""
    limits = history.limits
    until = [float("-inf")]
    row = history.in_a_row(case.agent, case.bad_at, case.released_at)
    if row:
        last = row[0]
        ended_at = last.at if last.ended_at is None else last.ended_at
        until.append(ended_at + limits.pause_s(len(row), last.jitter))
    known = history.of(case.agent)
    if known and not known[-1].counts and known[-1].ended_at is not None:
        # What was abandoned a moment ago was so for a reason.
        until.append(known[-1].ended_at + limits.pause_s(1, known[-1].jitter))
    return max(until)


def _over_budget(case: Case, history: RestartHistory, now: float) -> Decision | None:
    ready_at = history.fleet_ready_at(now)
    if ready_at > now:
        return Decision(Move.WAIT, "fleet_budget", ready_at, "restarts.fleet_share")
    ready_at = history.host_ready_at(case.host, now)
    if ready_at > now:
        return Decision(Move.WAIT, "host_budget", ready_at, "restarts.fleet_share")
    return None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What comes next for one agent, and when, unless what.

    `supposing` is "" where it is about how things stand, else "it_died_now". `in_s` None: no
    time is known. `before_quarantine` is how many restarts are left; `heal_s` how long it
    takes at least until all that are bad now are up again.
    """

    agent: AgentId
    move: Move
    why: str
    in_s: float | None
    unless: str
    setting: str
    supposing: str
    restarts_in_a_row: int
    before_quarantine: int
    heal_s: float


_ON_ITS_WAY = frozenset({"under_way", "finished", "settling"})

_UNLESS = {
    Move.RESTART: "it is seen to be well, or is held, before",
    Move.WAIT: "it recovers by itself, or a person orders it before",
    Move.WITHHOLD: "the hold is lifted, or the mode is changed",
    Move.QUARANTINE: "it recovers by itself",
    Move.ESCALATE: "it recovers by itself, or a person acts",
    Move.NOTHING: "",
}


def forecast(
    case: Case,
    history: RestartHistory,
    incidents: Incidents,
    now: float,
    now_utc: datetime,
    bad: int,
) -> Forecast:
    """What will happen; of an agent that is well: what would, if it died now.

    `bad`: how many agents are known to be dead or to hang, for the time to heal.
    """
    supposing = ""
    decision = decide(case, history, incidents, now, now_utc)
    if decision.move is Move.NOTHING and decision.why not in _ON_ITS_WAY:
        supposing = "it_died_now"
        case = replace(
            case,
            health=Health(Condition.DEAD, Value.BAD, supposing),
            diagnosis=Diagnosis(Cause.CRASH, supposing),
            state=AgentState.UNRESPONSIVE,
            bad_at=now - history.limits.settle_s,
        )
        decision = decide(case, history, incidents, now, now_utc)
    in_s = 0.0 if decision.move in (Move.RESTART, Move.QUARANTINE) else None
    if decision.until_at is not None:
        in_s = max(0.0, decision.until_at - now)
    row = history.in_a_row(case.agent, case.bad_at, case.released_at)
    return Forecast(
        case.agent,
        decision.move,
        decision.why,
        in_s,
        _UNLESS[decision.move],
        decision.setting,
        supposing,
        len(row),
        max(0, history.limits.burst - history.looping(row, now)),
        heal_s(bad, history.fleet, history.limits),
    )
