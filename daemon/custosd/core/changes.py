"""What a fact changed for one agent, in a line of words.

Law: a line has no text of agents in it: codes, names, numbers, and what a person gave as a
reason. Who shows it makes it fit for a terminal all the same.
"""

import math
from datetime import UTC, datetime

from custosd.core.agents import AgentId
from custosd.core.facts import (
    ActPerformed,
    AgentDismissed,
    AmnestyGranted,
    AnalysisSkipped,
    BeatMissed,
    BudgetReached,
    BudgetRenewed,
    ConcernResolved,
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

HELD = {
    HoldKind.QUARANTINE: "quarantined",
    HoldKind.PAUSE: "paused",
    HoldKind.ESTOP: "stopped by emergency",
    HoldKind.SILENCE: "silenced",
    HoldKind.ACK: "acknowledged",
    HoldKind.INCIDENT: "held by an incident",
    HoldKind.NOTIFIED: "a person was told",
}
"""What a hold makes of its subject, in words."""

_Own = (
    LifeChanged
    | AgentDismissed
    | BeatMissed
    | RestartChanged
    | RestartStepped
    | RestartWithheld
    | InterventionChanged
)


def in_words(seconds: float) -> str:
    """A duration in its largest whole unit: "42 s", "6 min", "2 h", "5 d"; "ever"."""
    if seconds == math.inf:
        return "ever"
    whole = max(0, round(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def rfc3339(at_utc: datetime) -> str:
    """RFC 3339 in UTC, to the second where there is no fraction."""
    return at_utc.astimezone(UTC).isoformat().replace("+00:00", "Z")


def change(fact: Fact, agent: AgentId) -> str:
    """What a fact changed for this agent; "" where it is about something else."""
    match fact:
        case StateChanged(ref=ref) | StandingChanged(ref=ref) if ref.agent == agent:
            return _of_run(fact)
        case HoldPlaced() | HoldLifted() | AmnestyGranted():
            return _of_many(fact, agent)
        case BudgetReached() | BudgetRenewed() | AnalysisSkipped():
            return _of_money(fact, agent)
        case Escalated() | ConcernResolved() | ActPerformed():
            return _of_people(fact, agent)
        case (
            LifeChanged()
            | AgentDismissed()
            | BeatMissed()
            | RestartChanged()
            | RestartStepped()
            | RestartWithheld()
            | InterventionChanged()
        ) if fact.agent == agent:
            return _of_agent(fact)
        case _:
            return ""


def with_whom(subject: str) -> str:
    """What a hold on the fleet is told with."""
    return " with the whole fleet" if subject == FLEET else ""


def _of_run(fact: StateChanged | StandingChanged) -> str:
    match fact:
        case StateChanged():
            return f"run {fact.before.value} → {fact.after.value}: {fact.reason}"
        case StandingChanged():
            by = f", by verdict {fact.verdict_id}" if fact.verdict_id else ""
            return f"standing {fact.before.value} → {fact.after.value}{by}"


def _of_many(fact: HoldPlaced | HoldLifted | AmnestyGranted, agent: AgentId) -> str:
    match fact:
        case HoldPlaced(hold=hold) if hold.subject in {agent, FLEET} or agent in hold.agents:
            return _placed(hold)
        case HoldLifted(subject=subject) if subject in {agent, FLEET}:
            words = f"no longer {HELD[fact.kind]}{with_whom(subject)}, by {fact.by}"
            return words + _because(fact.reason)
        case AmnestyGranted():
            words = f"amnesty for all after {in_words(fact.gap_s)} ({fact.reason})"
            return f"{words}: no silence counts for {in_words(fact.grace_s)}"
        case _:
            return ""


def _of_money(fact: BudgetReached | BudgetRenewed | AnalysisSkipped, agent: AgentId) -> str:
    if fact.agent not in {agent, None}:
        return ""
    match fact:
        case BudgetReached():
            said = "reached" if fact.rung is Rung.RULES else "nearly reached"
            words = f"budget {fact.limit} {said}: {fact.spent_usd:.4g} of {fact.most_usd:.4g} USD"
            return words + _until(fact.until_utc)
        case BudgetRenewed():
            return f"budget {fact.limit} has money again"
        case AnalysisSkipped():
            words = f"not judged by {fact.judge} but by {fact.by}: no money, {fact.limit}"
            return words + _until(fact.until_utc)


def _until(at_utc: datetime | None) -> str:
    return "" if at_utc is None else f" until {rfc3339(at_utc)}"


def _of_people(fact: Escalated | ConcernResolved | ActPerformed, agent: AgentId) -> str:
    match fact:
        case Escalated(agent=about) if about == agent:
            return f"a person is needed: {fact.concern}" + _because(fact.reason)
        case ConcernResolved(concern=concern) if concern.partition(":")[2] == agent:
            return f"resolved: {concern}" + _because(fact.reason)
        case ActPerformed(subject=subject) if subject == agent:
            tried = " (only tried)" if fact.dry_run else ""
            words = f"{fact.author} asked for {fact.act.value}: {fact.outcome.value}{tried}"
            return words + _because(fact.reason)
        case _:
            return ""


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _of_agent(fact: _Own) -> str:  # noqa: PLR0911 - one line a kind of fact
    match fact:
        case LifeChanged():
            shown = ", ".join(
                f"{piece.source.value} {piece.value.value}"
                + (f" ({piece.detail})" if piece.detail else "")
                for piece in fact.evidence
            )
            words = f"{fact.before.value} → {fact.after.value}"
            if fact.before is fact.after:
                words = f"still {fact.after.value}"
            words += f": {fact.condition.value}, {fact.reason}"
            return f"{words} [{shown}]" if shown else words
        case AgentDismissed():
            return "watched no longer"
        case BeatMissed():
            return f"{fact.misses} beats missed, silent for {in_words(fact.silent_s)}"
        case RestartChanged():
            words = f"restart {fact.state.value} (epoch {fact.epoch} → {fact.next_epoch}):"
            words += f" {fact.cause.value}, asked for by {fact.requested_by}"
            return f"{words}; {fact.failure}" if fact.failure else words
        case RestartStepped():
            words = f"restart step {fact.step.value} {fact.state.value}"
            return f"{words} after {in_words(fact.duration_s)}: {fact.result or 'no result'}"
        case RestartWithheld():
            again = "" if fact.until_s is None else f"; looked at again in {in_words(fact.until_s)}"
            return f"not restarted ({fact.cause.value}): {fact.why}{again}"
        case InterventionChanged():
            before = "" if fact.before is None else f"{fact.before.value} → "
            out = ", held out" if fact.hold_out else ""
            words = f"message {fact.id} {before}{fact.after.value}{out}, by {fact.by}"
            return words + _because(fact.reason)


def _placed(hold: Hold) -> str:
    until = "" if hold.until_utc is None else f" until {rfc3339(hold.until_utc)}"
    return f"{HELD[hold.kind]}{with_whom(hold.subject)}{until}, by {hold.by}" + _because(
        hold.reason
    )
