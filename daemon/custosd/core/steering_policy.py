"""When an agent is told something: who needs it, whether it may go now, and whether it helped.

Laws:

1. A message rests on what is *held* of an agent, not on one opinion; only an emergency goes by
   a single verdict. What is not known authorises nothing: then a message waits, and runs out.
2. All budgets are computed from the interventions themselves, so they survive a restart.
3. The hold-out is drawn from the id, which follows from what is said to whom: a crash does
   not draw again. It passes every gate that a delivered message passes, and is measured alike.
4. A person's message is neither drawn, nor capped, nor made to wait for a cooldown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from custosd.core.agents import AgentId, AgentState
from custosd.core.signals import Severity, Signal
from custosd.core.steering import (
    GUARDIAN,
    LONGEST_MESSAGE,
    POLICY,
    Intervention,
    InterventionState,
    by_person,
    clean_message,
    end_of,
    moved,
    was_kept_back,
)
from custosd.core.trajectory import Activity
from custosd.core.transcript import digest_of
from custosd.core.uplift import improved
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason, Verdict
from custosd.core.view import AgentView

NOT_SPOKEN_TO = frozenset(
    {
        AgentState.UNRESPONSIVE,
        AgentState.RESTARTING,
        AgentState.FAILED,
        AgentState.QUARANTINED,
        AgentState.TERMINATED,
    }
)
"""States of a life in which nobody would read a message."""

TURN_BOUNDARY = frozenset({Activity.TURN_ENDED, Activity.WAITING})


class SteeringMode(StrEnum):
    """OBSERVE: proposals are recorded. SUGGEST: a person approves each. ACT: they are sent."""

    OBSERVE = "observe"
    SUGGEST = "suggest"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class SteeringLimits:
    """How much is said, when, and for how long it is remembered.

    `_s` are seconds. `cooldown_s` is per agent; `fleet_cap` messages of our own per
    `fleet_period_s`, `most_open` of them under way. `hold_out` is a share, 0..0.5. After
    `without_effect` in a row an agent is not steered for `pause_s`, or until it recovered. A
    kind and reason are stopped when `least_arm` or more were measured in either arm and an
    uplift of `least_uplift` (a difference of shares) is ruled out. `keeping` are channels that
    hold a letter until the agent fetches it. `letter_s`: how long a dead letter is a concern.
    """

    mode: SteeringMode = SteeringMode.OBSERVE
    ttl_s: float = 1_800.0
    cooldown_s: float = 300.0
    fleet_cap: int = 10
    fleet_period_s: float = 60.0
    most_open: int = 100
    hold_out: float = 0.1
    without_effect: int = 3
    pause_s: float = 86_400.0
    outcome_s: float = 600.0
    outcome_steps: int = 10
    least_arm: int = 20
    least_uplift: float = 0.1
    first_retry_s: float = 5.0
    longest_retry_s: float = 60.0
    most_attempts: int = 20
    deliver_timeout_s: float = 30.0
    receipts_s: float = 5.0
    concurrency: int = 5
    history_s: float = 7 * 86_400.0
    letter_s: float = 86_400.0
    most_kept: int = 50_000
    keeping: frozenset[str] = frozenset({"inbox"})


@dataclass(frozen=True, slots=True)
class Need:
    """That an agent should be told something, by a standing that is agreed upon."""

    kind: SteeringKind
    reason: SteeringReason
    verdict: Verdict


def need(agent: AgentView) -> Need | None:
    """What an agent needs to be told, if anything is held of it that needs steering."""
    verdict = agent.verdict
    if verdict is None or verdict.ref != agent.ref:
        return None
    judged = verdict.judgement
    if not judged.needs_steering or judged.steering_kind is None or judged.steering_reason is None:
        return None
    agreed = agent.standing is judged.standing and agent.standing is not Standing.UNKNOWN
    if not agreed and judged.steering_kind is not SteeringKind.EMERGENCY:
        return None
    return Need(judged.steering_kind, judged.steering_reason, verdict)


_SEEN = {
    SteeringReason.STUCK: "The last steps do not seem to get anywhere",
    SteeringReason.DRIFTING: "The work seems to have left what was asked for",
    SteeringReason.VIOLATING_CONSTRAINTS: "Something was done against a constraint that was set",
    SteeringReason.OVER_ENGINEERING: "More seems to be built than was asked for",
    SteeringReason.CONFUSED: "The last steps seem not to fit together",
    SteeringReason.IDLE: "The task does not seem to be done, and nothing happens any more",
}
_SIGNALS_SHOWN = 3
_STEPS_SHOWN = 6


def message_of(verdict: Verdict) -> str:
    """What the agent is told: the judge's own words, or one sentence on what was seen. Clean."""
    judged = verdict.judgement
    if said := clean_message(judged.message):
        return said
    if judged.steering_reason is None:
        return ""
    telling = [signal for signal in verdict.signals if signal.severity is not Severity.NOTE]
    seen = "; ".join(map(_seen, telling[:_SIGNALS_SHOWN])) or _steps(judged.evidence)
    sentence = _SEEN[judged.steering_reason]
    return clean_message(f"{sentence} ({seen})." if seen else f"{sentence}.")


def _seen(signal: Signal) -> str:
    steps = _steps(signal.steps)
    counted = f"{signal.kind.replace('_', ' ')}: {signal.measure:g}, limit {signal.limit:g}"
    return f"{counted}, {steps}" if steps else counted


def _steps(steps: Sequence[int]) -> str:
    return f"steps {', '.join(map(str, steps[-_STEPS_SHOWN:]))}" if steps else ""


def propose(
    agent: AgentView, limits: SteeringLimits, now_utc: datetime, *, approve: bool = False
) -> Intervention | None:
    """The message that an agent's standing asks for; None where it asks for none.

    Its key is of the agent's run, the kind and reason, and the words: what was said once in
    a run is not said again. `approve`: by policy, in mode ACT.
    """
    found = need(agent)
    message = message_of(found.verdict) if found is not None else ""
    if found is None or not message:
        return None
    judged = found.verdict.judgement
    said = digest_of(message)
    ref = agent.ref
    key = digest_of(f"{ref.agent}\0{ref.run}\0{found.kind}\0{found.reason}\0{said}")
    proposed = Intervention(
        id=f"i-{key}",
        agent=agent.ref.agent,
        key=key,
        kind=found.kind,
        message=message,
        proposed_by=f"{GUARDIAN}{found.verdict.by.judge}",
        proposed_utc=now_utc,
        expires_utc=now_utc + timedelta(seconds=limits.ttl_s),
        reason=found.reason,
        verdict_id=found.verdict.id,
        alignment_before=judged.alignment,
        standing_before=agent.standing,
    )
    return approved_by_policy(proposed, limits, now_utc) if approve else proposed


def approved_by_policy(
    proposed: Intervention, limits: SteeringLimits, now_utc: datetime
) -> Intervention:
    """A proposal, queued without a person's leave; the hold-out is drawn here."""
    drawn = proposed.kind is not SteeringKind.EMERGENCY and held_out(proposed.id, limits.hold_out)
    queued = moved(proposed, InterventionState.QUEUED, now_utc, by=POLICY)
    return replace(queued, hold_out=drawn)


def told_by_person(
    intervention_id: str,
    agent: AgentId,
    text: str,
    by: str,
    kind: SteeringKind,
    view: AgentView | None,
    limits: SteeringLimits,
    now_utc: datetime,
) -> Intervention:
    """A person's message: proposed, approved and queued by that person. `text` is clean."""
    verdict = view.verdict if view is not None else None
    proposed = Intervention(
        id=intervention_id,
        agent=agent,
        key=intervention_id,
        kind=kind,
        message=text,
        proposed_by=by,
        proposed_utc=now_utc,
        expires_utc=now_utc + timedelta(seconds=limits.ttl_s),
        alignment_before=verdict.judgement.alignment if verdict is not None else None,
        standing_before=view.standing if view is not None else None,
    )
    return moved(proposed, InterventionState.QUEUED, now_utc, by=by)


def held_out(intervention_id: str, share: float) -> bool:
    """Whether the draw keeps this message back; the same answer for one id, always."""
    return int(digest_of(f"hold-out\0{intervention_id}"), 16) < share * 2**64


def wanted(intervention: Intervention, agent: AgentView) -> bool | None:
    """Whether what it says is still so; None: not known just now, so it has to wait."""
    found = need(agent)
    if found is None:
        return None if agent.standing is intervention.standing_before else False
    # What is urgent now is said urgently, and what no longer is interrupts nobody.
    urgent = SteeringKind.EMERGENCY
    as_urgent = (found.kind is urgent) == (intervention.kind is urgent)
    return found.reason is intervention.reason and as_urgent


@dataclass(frozen=True, slots=True)
class Clearance:
    """Whether a queued message may go: `why` not is "" if it may.

    `until_utc` is when time alone changes that, None where something else must. `void`: it
    will never go, what it says is not so any more.
    """

    why: str = ""
    until_utc: datetime | None = None
    void: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known around one agent when a message to it is looked at.

    `spoken_utc` is when it was last told something; `recent_utc` when messages of our own
    went out to anybody, in the cap's period. `agent` None: nothing was read of it.
    """

    channel: str
    agent: AgentView | None = None
    life: AgentState | None = None
    restarting: bool = False
    spoken_utc: datetime | None = None
    recent_utc: tuple[datetime, ...] = ()


def clearance(
    intervention: Intervention, scene: Scene, limits: SteeringLimits, now_utc: datetime
) -> Clearance:
    """Whether a queued message may be delivered now. Holds are asked apart from this, last."""
    if intervention.state is not InterventionState.QUEUED or now_utc >= intervention.expires_utc:
        return Clearance("closed")
    if by_person(intervention):
        return _at_turn(intervention, scene, limits)
    for gate in (_still_right, _at_turn):
        held_up = gate(intervention, scene, limits)
        if held_up.why:
            return held_up
    return _within_budget(intervention, scene, limits, now_utc)


def _still_right(intervention: Intervention, scene: Scene, limits: SteeringLimits) -> Clearance:
    if intervention.approved_by == POLICY and limits.mode is not SteeringMode.ACT:
        return Clearance("mode")
    if scene.agent is None:
        return Clearance("not_seen")
    still = wanted(intervention, scene.agent)
    if still is None:
        return Clearance("in_doubt")
    return Clearance() if still else Clearance("superseded", void=True)


def _at_turn(intervention: Intervention, scene: Scene, limits: SteeringLimits) -> Clearance:
    if scene.restarting or scene.life in NOT_SPOKEN_TO:
        return Clearance("not_alive")
    if intervention.kind is SteeringKind.EMERGENCY or scene.channel in limits.keeping:
        return Clearance()
    # Of an agent without transcripts no turn is ever seen; its channel then has to know.
    digest = scene.agent.digest if scene.agent is not None else None
    if digest is not None and digest.activity not in TURN_BOUNDARY:
        return Clearance("mid_turn")
    return Clearance()


def _within_budget(
    intervention: Intervention, scene: Scene, limits: SteeringLimits, now_utc: datetime
) -> Clearance:
    cool_utc = _later(scene.spoken_utc, limits.cooldown_s, now_utc)
    if cool_utc is not None and intervention.kind is not SteeringKind.EMERGENCY:
        return Clearance("cooldown", cool_utc)
    if len(scene.recent_utc) >= limits.fleet_cap:
        first_utc = sorted(scene.recent_utc)[-limits.fleet_cap]
        return Clearance("fleet_cap", _later(first_utc, limits.fleet_period_s, now_utc) or now_utc)
    return Clearance()


def _later(then_utc: datetime | None, period_s: float, now_utc: datetime) -> datetime | None:
    """When a period since then ends, None if it has; a time from the future does not count."""
    period = timedelta(seconds=period_s)
    if then_utc is None or not now_utc - period < then_utc <= now_utc + period:
        return None
    return then_utc + period


def spoken_utc(of_agent: Iterable[Intervention]) -> datetime | None:
    """When an agent was last told something, or would have been but for the hold-out."""
    return max((at for item in of_agent if (at := started_utc(item)) is not None), default=None)


def started_utc(intervention: Intervention) -> datetime | None:
    """When its effect began to be measured: delivered, or kept back instead; None: not yet."""
    kept_back = was_kept_back(intervention)
    return intervention.closed_utc if kept_back else intervention.delivered_utc


def may_propose(
    of_agent: Sequence[Intervention], kind: SteeringKind, limits: SteeringLimits, now_utc: datetime
) -> Clearance:
    """Whether the policy may put a new message to an agent, seen from those before it."""
    ours = [item for item in of_agent if not by_person(item)]
    unended = [item for item in ours if item.closed_utc is None]
    if kind is SteeringKind.EMERGENCY:
        return Clearance("open" if any(item.kind is kind for item in unended) else "")
    if unended:
        return Clearance("open")
    last_utc = max((item.proposed_utc for item in ours), default=None)
    for then_utc in (spoken_utc(of_agent), last_utc):
        cool_utc = _later(then_utc, limits.cooldown_s, now_utc)
        if cool_utc is not None:
            return Clearance("cooldown", cool_utc)
    return Clearance()


def most_urgent_first(queued: Iterable[Intervention]) -> list[Intervention]:
    """In which order queued messages go: emergencies, then persons' words, then by age."""

    def rank(item: Intervention) -> tuple[bool, bool, datetime]:
        return item.kind is not SteeringKind.EMERGENCY, not by_person(item), item.proposed_utc

    return sorted(queued, key=rank)


def retry_s(attempts: int, limits: SteeringLimits) -> float:
    """The pause after so many attempts (>= 1): doubled each time, up to the longest."""
    return min(limits.first_retry_s * 2.0 ** min(attempts - 1, 30), limits.longest_retry_s)


def ends_utc(intervention: Intervention, limits: SteeringLimits) -> datetime:
    """When time alone closes an open intervention; a delivered one has time to be acted on."""
    known_utc = intervention.acknowledged_utc or intervention.delivered_utc
    if known_utc is None:
        return intervention.expires_utc
    return max(intervention.expires_utc, known_utc + timedelta(seconds=limits.outcome_s))


def kept_back(intervention: Intervention, channel: str, now_utc: datetime) -> Intervention:
    """What is held out, at the moment when it would be delivered: an attempt without a letter."""
    tried = replace(intervention, attempts=intervention.attempts + 1, channel=channel)
    return moved(tried, InterventionState.EXPIRED, now_utc)


def ran_out(intervention: Intervention, now_utc: datetime, *, went_on: bool) -> Intervention:
    """An open intervention whose time is over. `went_on`: the agent did, since delivery.

    Where it did not, nobody has read the letter: that one failed.
    """
    state = InterventionState
    if intervention.state is state.DELIVERED and not went_on:
        return moved(intervention, state.FAILED, now_utc, failure="unread")
    return moved(intervention, state.EXPIRED, now_utc)


def is_dead_letter(intervention: Intervention) -> bool:
    """Whether a message that was to arrive did not, so that a person has to know."""
    if intervention.approved_utc is None or intervention.hold_out:
        return False
    failed = intervention.state is InterventionState.FAILED
    return failed or end_of(intervention) == "undelivered"


def outcome_is_due(
    intervention: Intervention,
    agent: AgentView | None,
    steps_then: int | None,
    limits: SteeringLimits,
    now_utc: datetime,
) -> bool:
    """Whether its effect is to be measured now: so long after, or once so many steps are judged.

    `steps_then` is how many steps its run had when it was told, None where that is not known.
    """
    began_utc = started_utc(intervention)
    if began_utc is None or intervention.measured_utc is not None:
        return False
    if now_utc >= began_utc + timedelta(seconds=limits.outcome_s):
        return True
    verdict = agent.verdict if agent is not None else None
    if verdict is None or steps_then is None:
        return False
    return verdict.at_utc > began_utc and verdict.steps >= steps_then + limits.outcome_steps


def after_outcome(
    intervention: Intervention, agent: AgentView | None, now_utc: datetime
) -> Intervention:
    """The intervention with what is held of its agent now; unknown where that is gone."""
    verdict = agent.verdict if agent is not None else None
    return replace(
        intervention,
        standing_after=agent.standing if agent is not None else Standing.UNKNOWN,
        alignment_after=verdict.judgement.alignment if verdict is not None else None,
        measured_utc=now_utc,
    )


def vain(
    of_agent: Iterable[Intervention],
    limits: SteeringLimits,
    now_utc: datetime,
    recovered_utc: datetime | None = None,
) -> int:
    """How many messages in a row, up to now, an agent was told without effect.

    A message of a person begins the count anew, and so does its recovery.
    """
    count = 0
    since_utc = now_utc - timedelta(seconds=limits.pause_s)
    for item in sorted(of_agent, key=lambda item: item.proposed_utc, reverse=True):
        began_utc = item.delivered_utc
        if by_person(item) or item.proposed_utc < since_utc:
            break
        if began_utc is None or item.measured_utc is None:
            continue
        if improved(item) or (recovered_utc is not None and item.measured_utc <= recovered_utc):
            break
        count += improved(item) is False
    return count


def unmeasured(of_agent: Iterable[Intervention]) -> int:
    """How many messages of our own an agent was told whose effect is not known yet."""
    return sum(
        1
        for item in of_agent
        if not by_person(item) and item.delivered_utc is not None and item.measured_utc is None
    )


def is_too_long(text: str) -> bool:
    """Whether a person's text would be cut."""
    return len(clean_message(text, 4 * LONGEST_MESSAGE)) > LONGEST_MESSAGE
