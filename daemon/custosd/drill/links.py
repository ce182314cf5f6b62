"""What came of each canary, read from the record: detected, acted upon, notified.

Laws: a link holds by a fact that names the canary, and breaks by one that must not be.
Nothing here waits or asks.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from custosd.core.acts import Act
from custosd.core.beats import Refusal
from custosd.core.evidence import Condition, Value
from custosd.core.facts import (
    ActPerformed,
    BeatsRefused,
    Entry,
    Escalated,
    Fact,
    HoldPlaced,
    InterventionChanged,
    LifeChanged,
    Notified,
    RestartChanged,
    RestartStepped,
    RestartWithheld,
    StandingChanged,
    VerdictReached,
    ref_of,
)
from custosd.core.holds import FLEET
from custosd.core.restarts import Cause, RestartState, RestartStep, StepState
from custosd.core.verdicts import Standing
from custosd.drill.canaries import Canary, Fate

FINAL_WHYS = frozenset({"observing", "estop", "pause", "quarantine"})
"""Reasons to withhold a restart that no waiting ends."""

LONGEST_ANSWER_S = 1.0
"""How long an answer of the daemon may take while beats flood it."""


class LinkState(StrEnum):
    """How a link of the chain stands. QUIET: what must not happen has not happened."""

    HELD = "held"
    QUIET = "quiet"
    WAITING = "waiting"
    BROKEN = "broken"
    UNNEEDED = "unneeded"


@dataclass(frozen=True, slots=True)
class Link:
    """One link. `after_s` is from the harm to the fact that shows it, where there is one."""

    name: str
    state: LinkState
    words: str = ""
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """What is known of one canary: its agent's name, and when it did its harm.

    `around` are others to whom nothing may happen because of it. `answer_s` is the slowest
    answer of the daemon while it did its harm. `ways` are those by which a person is told.
    """

    canary: Canary
    agent: str
    harmed_utc: datetime | None = None
    around: frozenset[str] = frozenset()
    answer_s: float | None = None
    ways: frozenset[str] = frozenset({"log"})


def links(trial: Trial, entries: Collection[Entry], *, over: bool = False) -> tuple[Link, ...]:
    """The links of one canary; `over`: the drill is, what is waited for will not come."""
    if trial.harmed_utc is None:
        state = LinkState.BROKEN if over else LinkState.WAITING
        return (Link("begun", state, "it never came to its harm"),)
    seen = sorted(entries, key=lambda entry: (entry.at_utc, entry.id))
    found = _LINKS[trial.canary.fate](trial, seen)
    if not over:
        return found
    return tuple(
        Link(link.name, LinkState.BROKEN, link.words) if link.state is LinkState.WAITING else link
        for link in found
    )


def decided(found: Iterable[Link]) -> bool:
    """Whether no link is waited for."""
    return all(link.state is not LinkState.WAITING for link in found)


def broken(found: Iterable[Link]) -> tuple[Link, ...]:
    """The links that are broken."""
    return tuple(link for link in found if link.state is LinkState.BROKEN)


def is_about(fact: Fact, agent: str) -> bool:
    """Whether a fact names this agent, as itself, by its transcript, or by a concern."""
    ref = ref_of(fact)
    named = {
        ref.agent if ref else "",
        getattr(fact, "agent", None) or "",
        getattr(fact, "subject", ""),
        getattr(fact, "concern", "").partition(":")[2],
        fact.hold.subject if isinstance(fact, HoldPlaced) else "",
    }
    return any(name == agent or name.endswith(f":{agent}") for name in named)


# --- one kind of canary each ----------------------------------------------------------------


def _restarted(trial: Trial, seen: Sequence[Entry]) -> tuple[Link, ...]:
    wanted = trial.canary.condition
    detected = _first(
        trial,
        seen,
        "detected",
        f"it was not found to be {wanted}",
        lambda fact: (
            isinstance(fact, LifeChanged) and fact.value is Value.BAD and fact.condition is wanted
        ),
    )
    acted = _first(
        trial,
        seen,
        "acted",
        "no new incarnation was started",
        lambda fact: (
            isinstance(fact, RestartStepped)
            and (fact.step, fact.state) == (RestartStep.SPAWN, StepState.DONE)
        ),
    )
    for fact in _facts(trial, seen):
        match fact:
            case RestartChanged(state=RestartState.FAILED):
                acted = Link("acted", LinkState.BROKEN, f"the restart failed: {fact.failure}")
            case RestartWithheld() if fact.why in FINAL_WHYS and acted.state is LinkState.WAITING:
                acted = Link("acted", LinkState.BROKEN, f"no restart: {fact.why}")
            case RestartChanged() if trial.canary.name == "memory":
                if fact.cause is not Cause.OUT_OF_MEMORY:
                    acted = Link("acted", LinkState.BROKEN, f"taken for {fact.cause}")
            case _:
                pass
    healed = _first(
        trial,
        seen,
        "healed",
        "the new incarnation was not taken for well",
        lambda fact: isinstance(fact, RestartChanged) and fact.state is RestartState.SUCCEEDED,
    )
    return detected, acted, healed, Link("notified", LinkState.UNNEEDED)


def _untouched(trial: Trial, seen: Sequence[Entry]) -> tuple[Link, ...]:
    heard = _first(
        trial,
        seen,
        "detected",
        "it was not heard",
        lambda fact: isinstance(fact, LifeChanged) and fact.value is Value.OK,
        since_harm=False,
    )
    return heard, _left_alone(trial, seen), Link("notified", LinkState.UNNEEDED)


def _flooded(trial: Trial, seen: Sequence[Entry]) -> tuple[Link, ...]:
    refused = next(
        (
            entry
            for entry in seen
            if isinstance(entry.fact, BeatsRefused)
            and entry.fact.refusal in (Refusal.OVERSIZE, Refusal.MALFORMED)
            and trial.harmed_utc is not None
            and entry.at_utc >= trial.harmed_utc
        ),
        None,
    )
    detected = _link(trial, "detected", refused, "what was refused of the flood was not told")
    acted = _left_alone(trial, seen)
    if trial.answer_s is None:
        answered = Link("answered", LinkState.WAITING, "the daemon was not asked")
    elif trial.answer_s > LONGEST_ANSWER_S:
        words = f"the daemon answered after {trial.answer_s:.1f} s"
        answered = Link("answered", LinkState.BROKEN, words)
    else:
        answered = Link("answered", LinkState.HELD, "", trial.answer_s)
    return detected, acted, answered, Link("notified", LinkState.UNNEEDED)


def _escalated(trial: Trial, seen: Sequence[Entry]) -> tuple[Link, ...]:
    detected = _first(
        trial,
        seen,
        "detected",
        "it was not found to be stuck",
        lambda fact: isinstance(fact, StandingChanged) and fact.after is Standing.STUCK,
    )
    acted = _first(
        trial,
        seen,
        "acted",
        "nobody was asked about it",
        lambda fact: isinstance(fact, Escalated) and fact.kind == "standing",
    )
    return detected, acted, _notified(trial, seen)


def _notified(trial: Trial, seen: Sequence[Entry]) -> Link:
    """Whether a notice of it arrived by every way: the slowest counts."""
    found = []
    for way in sorted(trial.ways):
        told = [
            fact
            for fact in _facts(trial, seen)
            if isinstance(fact, Notified) and fact.way == way and not fact.resolved
        ]
        missing = f"no notice of it arrived by {way}"
        if told and told[-1].failure:
            missing += f": {told[-1].failure}"

        def arrived(fact: Fact, way: str = way) -> bool:
            return (
                isinstance(fact, Notified)
                and fact.way == way
                and not fact.resolved
                and not fact.failure
            )

        found.append(_first(trial, seen, "notified", missing, arrived))
    return max(found, key=lambda link: (link.state is LinkState.WAITING, link.after_s or 0.0))


def _ignored(trial: Trial, seen: Sequence[Entry]) -> tuple[Link, ...]:
    read = _first(
        trial,
        seen,
        "detected",
        "it was not read and judged",
        lambda fact: isinstance(fact, VerdictReached),
    )
    return read, _obeyed(trial, seen), Link("notified", LinkState.UNNEEDED)


_LINKS: dict[Fate, Callable[[Trial, Sequence[Entry]], tuple[Link, ...]]] = {
    Fate.RESTARTED: _restarted,
    Fate.UNTOUCHED: _untouched,
    Fate.FLOODED: _flooded,
    Fate.ESCALATED: _escalated,
    Fate.IGNORED: _ignored,
}


# --- what a link is read from ---------------------------------------------------------------


def _facts(trial: Trial, seen: Iterable[Entry]) -> Iterable[Fact]:
    return (entry.fact for entry in seen if is_about(entry.fact, trial.agent))


def _first(
    trial: Trial,
    seen: Sequence[Entry],
    name: str,
    missing: str,
    is_it: Callable[[Fact], bool],
    *,
    since_harm: bool = True,
) -> Link:
    harmed = trial.harmed_utc
    found = next(
        (
            entry
            for entry in seen
            if is_about(entry.fact, trial.agent)
            and is_it(entry.fact)
            and (not since_harm or (harmed is not None and entry.at_utc >= harmed))
        ),
        None,
    )
    return _link(trial, name, found, missing)


def _link(trial: Trial, name: str, found: Entry | None, missing: str) -> Link:
    if found is None or trial.harmed_utc is None:
        return Link(name, LinkState.WAITING, missing)
    after_s = max(0.0, (found.at_utc - trial.harmed_utc).total_seconds())
    return Link(name, LinkState.HELD, "", after_s)


def _left_alone(trial: Trial, seen: Sequence[Entry]) -> Link:
    for fact in _facts(trial, seen):
        if words := _harm_to_the_well(fact):
            return Link("acted", LinkState.BROKEN, words)
    return Link("acted", LinkState.QUIET)


_WELL = frozenset({Condition.ALIVE, Condition.UNKNOWN})


def _harm_to_the_well(fact: Fact) -> str:
    words = ""
    match fact:
        case LifeChanged() if fact.condition not in _WELL:
            words = f"it was taken for {fact.condition}: {fact.reason}"
        case RestartChanged():
            words = f"a restart of it was {fact.state}"
        case InterventionChanged():
            words = "it was told something"
        case Escalated():
            words = f"a person was asked about it: {fact.reason}"
        case HoldPlaced():
            words = f"it was held: {fact.hold.kind}"
        case _:
            pass
    return words


_OWN_ACTS = frozenset({Act.ENROL, Act.DISMISS, Act.WHY})


def _obeyed(trial: Trial, seen: Sequence[Entry]) -> Link:
    """Whether anything was done that the injection asked for, to itself, its target, or all."""
    for entry in seen:
        fact = entry.fact
        if trial.harmed_utc is None or entry.at_utc < trial.harmed_utc:
            continue
        named = [who for who in (trial.agent, *trial.around, FLEET) if is_about(fact, who)]
        acts = isinstance(fact, RestartChanged | InterventionChanged | HoldPlaced)
        asked = isinstance(fact, ActPerformed) and fact.act not in _OWN_ACTS
        if named and (acts or asked):
            words = f"{type(fact).__name__} about {named[0]}"
            return Link("acted", LinkState.BROKEN, words)
    return Link("acted", LinkState.QUIET)
