"""The rules judge's reasoning: what detectors can defend, and "unknown" otherwise.

Laws:

1. Alignment is never given: rules cannot compare work with a goal.
2. It says what stands now, never how the run will come out.
3. Only an ALARM makes an accusation (stuck, drifting) and asks for steering; the message
   names what was seen, and where. A suspicion makes the standing "unknown" unless there
   is recent progress: a rule cannot look closer, and a healthy agent must not be accused.
4. Every judgement names steps that show it, once there are any: its signal's, else the
   one that it rests on, else the last.
"""

from collections.abc import Sequence

from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Activity, TrajectoryDigest
from custosd.core.transcript import RunEnd
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason

CONFIDENCE = {
    Severity.ALARM: 0.9,
    Severity.SUSPICION: 0.6,
    Severity.NOTE: 0.3,
}
"""How far a standing is to be trusted that rests on a signal of this severity.

On labelled coding runs, alarms spoke of runs that failed in 93 to 100 % of cases and
suspicions in 84 to 98 %, where 88 % failed at all; a healthy fleet fails less often, so
the numbers here are lower.
"""

RECENT_STEPS = 10
"""Progress this many steps back still counts as progress."""

_IN_MINUTES_S = 120.0

_STOPPED = {
    RunEnd.ERROR: "with an error",
    RunEnd.ABORTED: "because it was aborted",
    RunEnd.LIMIT: "at its own limit",
    RunEnd.GAVE_UP: "because the agent gave up",
}
_STUCK = (
    SignalKind.REPEATING,
    SignalKind.ALTERNATING,
    SignalKind.ERRORS,
    SignalKind.CHURNING,
    SignalKind.STALE,
    SignalKind.NO_PROGRESS,
)
_SAID = {
    SignalKind.REPEATING: "had the same result {n} times with nothing changed between",
    SignalKind.ALTERNATING: "alternates between two actions, {n} steps long",
    SignalKind.ERRORS: "failed {n} steps in a row",
    SignalKind.CHURNING: "wrote over the same place {n} times",
    SignalKind.STALE: "looked {n} times at what it had seen already",
    SignalKind.NO_PROGRESS: "brought nothing new for {n} steps",
    SignalKind.DRIFTING: "wrote {n} times where the goal does not point",
    SignalKind.SCOPE: "wrote {n} times against a constraint",
}
_ADVICE = {
    SignalKind.REPEATING: "The result will be the same unless something changes: try another way.",
    SignalKind.ALTERNATING: "Stop and say what you expect to change before the next step.",
    SignalKind.ERRORS: "Read the last error in full and deal with its cause before going on.",
    SignalKind.CHURNING: "Decide what this place should be, with a test that shows it.",
    SignalKind.STALE: "You have seen this already: write down what you know, then act on it.",
    SignalKind.NO_PROGRESS: "Say what is missing, and take the smallest step towards it.",
    SignalKind.DRIFTING: "Go back to what was asked, or say why this is needed for it.",
    SignalKind.SCOPE: "Undo that change, or ask for the constraint to be lifted.",
}


def judge_by_rules(
    digest: TrajectoryDigest, signals: Sequence[Signal], quiet_s: float
) -> Judgement:
    """Judge a trajectory by its digest and signals.

    Precedence: stopped, scope violation, waiting, done, silent, stuck, drifting (which
    explains churn), idle, duplicating, progressing, suspected, unknown.
    """
    by_kind = {signal.kind: signal for signal in signals}
    for rule in (_stopped, _out_of_scope, _waiting, _done, _silent, _stuck, _drifting, _resting):
        judgement = rule(digest, by_kind)
        if judgement is not None:
            return judgement
    return _under_way(digest, by_kind, quiet_s)


Signals = dict[SignalKind, Signal]


def _judgement(
    digest: TrajectoryDigest,
    standing: Standing,
    summary: str,
    *,
    by: Signal | None = None,
    confidence: float | None = None,
    at: int | None = None,
) -> Judgement:
    return Judgement(
        standing=standing,
        phase=digest.phase,
        confidence=CONFIDENCE[by.severity] if by and confidence is None else confidence,
        summary=summary,
        focus=digest.focus,
        goal=digest.goal,
        evidence=_evidence(digest, by, at),
    )


def _evidence(
    digest: TrajectoryDigest, by: Signal | None = None, at: int | None = None
) -> tuple[int, ...]:
    if by is not None and by.steps:
        return by.steps
    if at is None:
        at = digest.steps - 1
    return (at,) if at >= 0 else ()


def _steered(
    judgement: Judgement, kind: SteeringKind, reason: SteeringReason, message: str
) -> Judgement:
    return Judgement(
        standing=judgement.standing,
        phase=judgement.phase,
        confidence=judgement.confidence,
        needs_steering=True,
        steering_kind=kind,
        steering_reason=reason,
        message=message,
        summary=judgement.summary,
        focus=judgement.focus,
        goal=judgement.goal,
        evidence=judgement.evidence,
    )


def _stopped(digest: TrajectoryDigest, _signals: Signals) -> Judgement | None:
    if digest.end is None or digest.end not in _STOPPED:
        return None
    summary = f"Ended {_STOPPED[digest.end]} after {digest.steps} steps."
    return _judgement(digest, Standing.STOPPED, summary, confidence=1.0)


def _out_of_scope(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    signal = signals.get(SignalKind.SCOPE)
    if signal is None:
        return None
    summary = f"{_said(signal)} ({signal.about})"
    judgement = _judgement(digest, Standing.DRIFTING, summary, by=signal)
    return _steered(
        judgement,
        SteeringKind.CORRECTION,
        SteeringReason.VIOLATING_CONSTRAINTS,
        f"{_said(signal)} ({signal.about}). {_ADVICE[SignalKind.SCOPE]}",
    )


def _waiting(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    if digest.activity is not Activity.WAITING:
        return None
    signal = signals.get(SignalKind.WAITING) or signals.get(SignalKind.SILENT)
    summary = f"Waits for {digest.waiting_on or 'something outside'} since step {digest.steps}."
    return _judgement(digest, Standing.WAITING, summary, by=signal, confidence=0.9)


def _done(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    ended = digest.activity in {Activity.TURN_ENDED, Activity.ENDED}
    if not digest.claims_done or not ended:
        return None
    untested = signals.get(SignalKind.UNTESTED_CLAIM)
    if untested is not None:
        summary = f"Says it is done after {digest.steps} steps; {untested.about}."
        return _judgement(digest, Standing.DONE_UNTESTED, summary, by=untested)
    if digest.tests_passed_at is not None:
        summary = f"Says it is done; tests passed at step {digest.tests_passed_at}."
    else:
        summary = f"Says it is done after {digest.steps} steps; no code was edited."
    at = digest.tests_passed_at
    return _judgement(digest, Standing.DONE, summary, confidence=0.6, at=at)


def _silent(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    signal = signals.get(SignalKind.SILENT)
    if signal is None:
        return None
    summary = (
        f"Silent for {_lasting(signal.measure)} in the middle of work, at step {digest.steps}."
    )
    return _judgement(digest, Standing.SILENT, summary, by=signal)


def _stuck(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    signal = next(
        (s for kind in _STUCK if (s := signals.get(kind)) and s.severity is Severity.ALARM), None
    )
    drift = signals.get(SignalKind.DRIFTING)
    strays = drift is not None and drift.severity is Severity.ALARM
    if signal is None or (strays and signal.kind is SignalKind.CHURNING):
        return None  # where it writes says more than that it writes there again
    told = f"{_said(signal)}{_at(signal)}."
    return _steered(
        _judgement(digest, Standing.STUCK, told, by=signal),
        SteeringKind.GUIDANCE,
        SteeringReason.STUCK,
        f"{told} {_ADVICE[signal.kind]}",
    )


def _drifting(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    signal = signals.get(SignalKind.DRIFTING)
    if signal is None or signal.severity is not Severity.ALARM:
        return None
    told = f"{_said(signal)}{_at(signal)}."
    return _steered(
        _judgement(digest, Standing.DRIFTING, told, by=signal),
        SteeringKind.GUIDANCE,
        SteeringReason.DRIFTING,
        f"{told} {_ADVICE[SignalKind.DRIFTING]}",
    )


def _resting(digest: TrajectoryDigest, signals: Signals) -> Judgement | None:
    if signal := signals.get(SignalKind.IDLE):
        summary = f"Ended its turn {_lasting(signal.measure)} ago at step {digest.steps}."
        return _judgement(digest, Standing.IDLE, summary, by=signal, confidence=0.9)
    if signal := signals.get(SignalKind.DUPLICATING):
        summary = f"Works on what {', '.join(signal.peers)} works on."
        return _judgement(digest, Standing.DUPLICATING, summary, by=signal)
    return None


def _under_way(digest: TrajectoryDigest, signals: Signals, quiet_s: float) -> Judgement:
    if digest.activity is Activity.TURN_ENDED:
        summary = f"Ended its turn at step {digest.steps}, {_lasting(quiet_s)} ago."
        return _judgement(digest, Standing.IDLE, summary, confidence=0.6)
    at = digest.progress_at
    suspected = next(
        (
            signal
            for kind in (*_STUCK, SignalKind.DRIFTING)
            if (signal := signals.get(kind)) and signal.severity is Severity.SUSPICION
        ),
        None,
    )
    # Something new among the very steps that are suspected speaks against the suspicion.
    since = suspected.steps[0] if suspected and suspected.steps else -1
    if at is not None and at > since and digest.steps - 1 - at <= RECENT_STEPS:
        summary = f"Something new at step {at} of {digest.steps}: {digest.focus}."
        return _judgement(digest, Standing.PROGRESSING, summary, confidence=0.6, at=at)
    if suspected is not None:
        reason = f"suspected_{suspected.kind}"
        summary = f"Perhaps stuck: {_said(suspected).lower()}{_at(suspected)}."
    elif not digest.steps:
        reason, summary = "no_steps", "Has not acted yet."
    else:
        reason = "no_recent_progress"
        summary = f"Nothing new for {digest.steps - 1 - (at or 0)} steps, and no detector speaks."
    return Judgement(
        standing=Standing.UNKNOWN,
        phase=digest.phase,
        summary=summary,
        focus=digest.focus,
        goal=digest.goal,
        evidence=_evidence(digest, suspected),
        unknown_reason=reason,
    )


def _lasting(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _IN_MINUTES_S else f"{seconds / 60:.0f} min"


def _said(signal: Signal) -> str:
    said = _SAID[signal.kind].format(n=f"{signal.measure:.0f}")
    about = f" ({signal.about})" if signal.about and signal.kind is not SignalKind.SCOPE else ""
    return said[0].upper() + said[1:] + about


def _at(signal: Signal) -> str:
    if not signal.steps:
        return ""
    numbers = ", ".join(str(step) for step in signal.steps[-6:])
    return f", at steps {numbers}"
