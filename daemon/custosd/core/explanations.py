"""Why an agent is held to be as it is, and what will happen to it: chains of evidence in words.

Laws:

1. What is not known is said to be absent, with the reason; it is never left out.
2. A number is told with the key of the configuration that it comes from.
3. Ages are reckoned here, from the time of the question; evidence that has grown old is
   shown as what it counts for now (unknown), beside what it said then.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from custosd.core.agents import AgentId, AgentState
from custosd.core.changes import HELD, change, in_words, rfc3339, with_whom
from custosd.core.evidence import Evidence, Health
from custosd.core.facts import AnalysisSkipped, Entry, kind_of
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.signals import Signal
from custosd.core.view import AgentView, Concern, FleetView

CHANGES_SHOWN = 30

Form = dict[str, object]


@dataclass(frozen=True, slots=True)
class Setting:
    """A number's origin: the key, its value as people write it, and the line that sets it.

    `place` is "FILE:LINE", or "" for the default.
    """

    key: str
    value: str = ""
    place: str = ""


SettingOf = Callable[[AgentId, str], Setting]
"""The setting of a key, as it is in force for an agent."""


def only_keys(_agent: AgentId, key: str) -> Setting:
    """A `SettingOf` that knows no values."""
    return Setting(key)


@dataclass(frozen=True, slots=True)
class Outlook:
    """One thing to come. `in_s` None: not at a known time. `keys` are those that decide when.

    `what` and `unless` are short words: "degraded", "a beat comes"; `unless` may be "".
    """

    what: str
    in_s: float | None = None
    unless: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LifeExplained:
    """What liveness holds of an agent, and why: its evidence, its numbers, its deadlines."""

    epoch: int
    state: AgentState
    health: Health
    keys: tuple[str, ...] = ()
    outlooks: tuple[Outlook, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """What the record tells, newest first; `absent` says why it could not be read."""

    entries: tuple[Entry, ...] = ()
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one agent: on which view, by which clocks and settings."""

    agent: AgentId
    view: FleetView
    now: float
    now_utc: datetime
    setting_of: SettingOf

    def setting(self, key: str) -> Setting:
        """The setting of a key, as it is in force for this agent."""
        return self.setting_of(self.agent, key)


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer for programs (`form`: plain JSON) and for people (`lines`)."""

    form: Form
    lines: tuple[str, ...]


def why(asked: Asked, life: LifeExplained | None, record: Record) -> Explanation:
    """The chain of evidence to the agent's present state.

    The form: agent at_utc life evidence run settings restart holds concerns changes
    changes_absent. Lines that are not indented are headings.
    """
    run = asked.view.agents.get(asked.agent)
    holds = _holds(asked)
    concerns = _concerns(asked)
    settings = [asked.setting(key) for key in (life.keys if life else ())]
    changes = [
        (entry, text) for entry in record.entries if (text := change(entry.fact, asked.agent))
    ][:CHANGES_SHOWN]
    under_way = asked.view.hands.restarting.get(asked.agent)
    form: Form = {
        "agent": asked.agent,
        "at_utc": rfc3339(asked.now_utc),
        "life": _life_form(asked, life),
        "evidence": [_evidence_form(piece, asked.now) for piece in _evidence(life)],
        "run": None if run is None else _run_form(run),
        "settings": [_setting_form(setting) for setting in settings],
        "restart": None
        if under_way is None
        else {
            "id": under_way.restart_id,
            "state": under_way.state.value,
            "cause": under_way.cause.value,
            "requested_by": under_way.requested_by,
            "next_epoch": under_way.next_epoch,
        },
        "holds": [_hold_form(hold) for hold in holds],
        "concerns": [_concern_form(concern) for concern in concerns],
        "changes": [
            {"at_utc": rfc3339(entry.at_utc), "kind": kind_of(entry.fact), "text": text}
            for entry, text in changes
        ],
        "changes_absent": record.absent,
    }
    lines = [
        *_head(asked, life, run, _skip_in(record, asked)),
        *_section("evidence", _evidence_lines(asked, life)),
        *_section("settings", [f"  {_setting_words(setting)}" for setting in settings]),
        *_section("held", [f"  {_hold_words(hold, asked.now_utc)}" for hold in holds]),
        *_section("concerns", [_concern_line(concern, asked.now_utc) for concern in concerns]),
        *_section("changes", _change_lines(changes, record, asked.now_utc)),
    ]
    return Explanation(form, tuple(lines))


def forecast(asked: Asked, life: LifeExplained | None, outlooks: Iterable[Outlook]) -> Explanation:
    """What will happen when, unless what; the soonest first.

    `outlooks` are the actors'; those of liveness are in `life`. The form: agent at_utc
    nothing_because outlooks.
    """
    stopping = _stopping(asked)
    coming = [*(life.outlooks if life else ()), *outlooks]
    coming.sort(key=lambda outlook: (outlook.in_s is None, outlook.in_s or 0.0))
    form: Form = {
        "agent": asked.agent,
        "at_utc": rfc3339(asked.now_utc),
        "nothing_because": [_hold_form(hold) for hold in stopping],
        "outlooks": [_outlook_form(asked, outlook) for outlook in coming],
    }
    lines = [f"no act: {_hold_words(hold, asked.now_utc)}" for hold in stopping] + [
        _outlook_line(asked, outlook) for outlook in coming
    ]
    return Explanation(form, tuple(lines) or ("nothing: no deadline runs for this agent",))


# --- the parts of `why` -------------------------------------------------------------------


def _head(
    asked: Asked, life: LifeExplained | None, run: AgentView | None, skip: AnalysisSkipped | None
) -> list[str]:
    lines = [str(asked.agent)]
    if life is not None:
        health = life.health
        known = asked.view.hands.lives.get(asked.agent)
        since = f", for {_ago(known.changed_utc, asked.now_utc)}" if known else ""
        lines.append(f"  state     {life.state.value}{since} (epoch {life.epoch})")
        words = f"{health.condition.value}, which is {health.value.value}: {health.reason}"
        lines.append(f"  life      {words}")
    else:
        lines.append("  life      not known: it does not beat and has no table of its own")
    if run is not None:
        lines.append(f"  standing  {run.standing.value}{_judged(run, asked.now_utc)}")
        if skip is not None and run.verdict is not None and run.verdict.by.judge == skip.by:
            lines.append(f"  judge     {_skip_words(skip)}")
        lines.append(f"  run       {run.state.value}, {run.ref.run}")
    else:
        lines.append("  standing  not known: no transcript of it was read")
    under_way = asked.view.hands.restarting.get(asked.agent)
    if under_way is not None:
        words = f"{under_way.state.value}, because of {under_way.cause.value}"
        lines.append(f"  restart   {words}, asked for by {under_way.requested_by}")
    return lines


def _skip_in(record: Record, asked: Asked) -> AnalysisSkipped | None:
    """The last time that another judge was asked for want of money, while that lasts."""
    found = (entry.fact for entry in record.entries if isinstance(entry.fact, AnalysisSkipped))
    skip = next(found, None)
    over = skip is not None and skip.until_utc is not None and asked.now_utc >= skip.until_utc
    return None if over else skip


def _skip_words(skip: AnalysisSkipped) -> str:
    until = "" if skip.until_utc is None else f" until {rfc3339(skip.until_utc)}"
    return f"{skip.by} instead of {skip.judge}: no money, {skip.limit}{until}"


def _judged(run: AgentView, now_utc: datetime) -> str:
    verdict = run.verdict
    if verdict is None:
        return ", not judged yet"
    judgement = verdict.judgement
    reasons = [_signal_words(signal) for signal in verdict.signals]
    if judgement.unknown_reason:
        reasons.append(judgement.unknown_reason)
    if judgement.evidence and not verdict.signals:
        reasons.append(f"steps {', '.join(map(str, judgement.evidence))}")
    because = f": {'; '.join(reasons)}" if reasons else ""
    words = f"last judged {judgement.standing.value} by {verdict.by.judge}"
    return f", {words} {_ago(verdict.at_utc, now_utc)} ago at step {verdict.steps}{because}"


def _signal_words(signal: Signal) -> str:
    at = f" at steps {', '.join(map(str, signal.steps))}" if signal.steps else ""
    return f"{signal.kind}{at} ({signal.measure:g}, limit {signal.limit:g})"


def _evidence(life: LifeExplained | None) -> Sequence[Evidence]:
    return () if life is None else life.health.evidence


def _evidence_lines(asked: Asked, life: LifeExplained | None) -> list[str]:
    if life is None:
        return []
    pieces = _evidence(life)
    if not pieces:
        return ["  none: nothing has been seen of it since the start"]
    lines = []
    for piece in pieces:
        counts, age = piece.value_at(asked.now), in_words(asked.now - piece.at)
        if counts is piece.value:
            seen = f"seen {age} ago, counts for {in_words(piece.fresh_s)}"
        else:
            seen = f"was {piece.value.value} {age} ago, counted for {in_words(piece.fresh_s)}"
        detail = f": {piece.detail}" if piece.detail else ""
        lines.append(f"  {piece.source.value:<11}{counts.value:<9}{seen}{detail}")
    return lines


def _section(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, *lines] if lines else []


def _holds(asked: Asked) -> list[Hold]:
    """Everything in force that is about this agent, its concerns, or the fleet."""
    subjects = {str(asked.agent), FLEET, *(concern.id for concern in _concerns(asked))}
    return sorted(
        (
            hold
            for hold in asked.view.hands.holds.values()
            if hold.in_force(asked.now_utc)
            and (hold.subject in subjects or asked.agent in hold.agents)
        ),
        key=lambda hold: (hold.since_utc, hold.key),
    )


def _stopping(asked: Asked) -> list[Hold]:
    kinds = {HoldKind.ESTOP, HoldKind.PAUSE, HoldKind.QUARANTINE, HoldKind.INCIDENT}
    return [hold for hold in _holds(asked) if hold.kind in kinds]


def _concerns(asked: Asked) -> list[Concern]:
    found = asked.view.hands.concerns.values()
    return sorted(
        (concern for concern in found if concern.agent == asked.agent),
        key=lambda concern: (concern.since_utc, concern.id),
    )


def _change_lines(
    changes: Sequence[tuple[Entry, str]], record: Record, now_utc: datetime
) -> list[str]:
    lines = [
        f"  {_clock(entry.at_utc, now_utc)}  {_ago(entry.at_utc, now_utc):>6} ago  {text}"
        for entry, text in changes
    ]
    if record.absent:
        lines.append(f"  not known: {record.absent}")
    return lines


# --- what stands, in words ------------------------------------------------------------------


def _hold_words(hold: Hold, now_utc: datetime) -> str:
    """As "paused by ada for 3 min, 57 min more: maintenance"."""
    left = ""
    if hold.until_utc is not None:
        left = f", {in_words((hold.until_utc - now_utc) / timedelta(seconds=1))} more"
    because = f": {hold.reason}" if hold.reason else ""
    words = f"{HELD[hold.kind]}{with_whom(hold.subject)} by {hold.by}"
    return f"{words} for {_ago(hold.since_utc, now_utc)}{left}{because}"


def _concern_line(concern: Concern, now_utc: datetime) -> str:
    return f"  {concern.id}, for {_ago(concern.since_utc, now_utc)}: {concern.reason}"


# --- outlooks -----------------------------------------------------------------------------


def _outlook_line(asked: Asked, outlook: Outlook) -> str:
    when = "some time" if outlook.in_s is None else f"in {in_words(outlook.in_s)}"
    unless = f", unless {outlook.unless}" if outlook.unless else ""
    settings = "; ".join(_setting_words(asked.setting(key)) for key in outlook.keys)
    return f"{when}: {outlook.what}{unless}" + (f" ({settings})" if settings else "")


def _outlook_form(asked: Asked, outlook: Outlook) -> Form:
    return {
        "what": outlook.what,
        "in_s": None if outlook.in_s is None else round(max(outlook.in_s, 0.0), 3),
        "unless": outlook.unless,
        "settings": [_setting_form(asked.setting(key)) for key in outlook.keys],
    }


# --- forms and words of the small parts ---------------------------------------------------


def _life_form(asked: Asked, life: LifeExplained | None) -> Form | None:
    if life is None:
        return None
    known = asked.view.hands.lives.get(asked.agent)
    return {
        "state": life.state.value,
        "condition": life.health.condition.value,
        "value": life.health.value.value,
        "reason": life.health.reason,
        "epoch": life.epoch,
        "changed_utc": rfc3339(known.changed_utc) if known else None,
    }


def _evidence_form(piece: Evidence, now: float) -> Form:
    return {
        "source": piece.source.value,
        "value": piece.value_at(now).value,
        "said": piece.value.value,
        "detail": piece.detail,
        "age_s": _finite(max(now - piece.at, 0.0)),
        "fresh_s": _finite(piece.fresh_s),
    }


def _finite(seconds: float) -> float | None:
    """Rounded, or None for "ever", which JSON has no number for."""
    return round(seconds, 3) if math.isfinite(seconds) else None


def _run_form(run: AgentView) -> Form:
    verdict = run.verdict
    return {
        "run": run.ref.run,
        "state": run.state.value,
        "standing": run.standing.value,
        "grown_utc": None if run.grown_utc is None else rfc3339(run.grown_utc),
        "verdict": None
        if verdict is None
        else {
            "id": verdict.id,
            "at_utc": rfc3339(verdict.at_utc),
            "judge": verdict.by.judge,
            "standing": verdict.judgement.standing.value,
            "unknown_reason": verdict.judgement.unknown_reason,
            "steps": verdict.steps,
            "evidence": list(verdict.judgement.evidence),
            "signals": [
                {
                    "kind": signal.kind,
                    "steps": list(signal.steps),
                    "measure": signal.measure,
                    "limit": signal.limit,
                }
                for signal in verdict.signals
            ],
        },
    }


def _hold_form(hold: Hold) -> Form:
    return {
        "kind": hold.kind.value,
        "subject": hold.subject,
        "by": hold.by,
        "reason": hold.reason,
        "since_utc": rfc3339(hold.since_utc),
        "until_utc": None if hold.until_utc is None else rfc3339(hold.until_utc),
    }


def _concern_form(concern: Concern) -> Form:
    return {
        "id": concern.id,
        "kind": concern.kind,
        "reason": concern.reason,
        "since_utc": rfc3339(concern.since_utc),
    }


def _setting_form(setting: Setting) -> Form:
    return {"key": setting.key, "value": setting.value, "place": setting.place}


def _setting_words(setting: Setting) -> str:
    value = f" = {setting.value}" if setting.value else ""
    place = setting.place or ("the default" if setting.value else "")
    return f"{setting.key}{value}" + (f", {place}" if place else "")


def _ago(since_utc: datetime, now_utc: datetime) -> str:
    return in_words((now_utc - since_utc) / timedelta(seconds=1))


def _clock(at_utc: datetime, now_utc: datetime) -> str:
    at_utc = at_utc.astimezone(UTC)
    same_day = at_utc.date() == now_utc.astimezone(UTC).date()
    return at_utc.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")
