"""What deterministic detectors find in a trajectory: signals with the steps that show them.

Laws:

1. A detector says what is there, never what will come of it.
2. Healthy work is not accused: reading on, batches over many files, tests run again
   after an edit, retries with variation and polling with changing answers raise nothing.
3. Pure: the same trajectory, limits and quiet time give the same signals, in one order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from custosd.core.history import STEPS_SHOWN, Mark
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.topics import is_document, words_of
from custosd.core.trajectory import Activity, Trajectory, TrajectoryDigest
from custosd.core.transcript import ErrorClass, RunEnd, StepKind, digest_of

_SHOWN = 16
_RECENT_STEPS = 8
_REPEAT_SPAN = 16


@dataclass(frozen=True, slots=True)
class DetectorLimits:
    """The thresholds of all detectors; 0 turns the one that it belongs to off.

    repeats: the same effect this often, nothing relevant changed between (steps).
    stale: looks at what was seen before, within the last 16 steps (steps).
    errors: failed steps in a row (steps).
    alternations: steps of an A B A B pattern (steps, even).
    churn: writes over the same lines, or anew of the same file, in a row (writes).
    no_progress_steps: steps without anything new seen, written or passed (steps).
    edit_gap_steps: steps without an edit taken or a test passed, once there was an edit.
    drift_steps: latest steps that a drift is looked for in (steps, at most 32).
    idle_s: how long a transcript may be quiet (seconds).
    waiting_s: how long an agent may wait for a person (seconds).
    spend_usd: what a run may cost (dollars).
    """

    repeats: int = 3
    stale: int = 3
    errors: int = 3
    alternations: int = 6
    churn: int = 4
    no_progress_steps: int = 25
    edit_gap_steps: int = 10
    drift_steps: int = 16
    idle_s: float = 900.0
    waiting_s: float = 300.0
    spend_usd: float = 0.0


def signals(trajectory: Trajectory, limits: DetectorLimits, quiet_s: float) -> tuple[Signal, ...]:
    """Everything that the detectors say of a run now, the gravest kinds first.

    `quiet_s` is how long ago the transcript last grew, in seconds.
    """
    found = (
        scope(trajectory),
        repeating(trajectory, limits),
        errors(trajectory, limits),
        alternating(trajectory, limits),
        churning(trajectory, limits),
        stale(trajectory, limits),
        no_progress(trajectory, limits),
        drifting(trajectory, limits),
        untested_claim(trajectory),
        overspending(trajectory, limits),
        silence(trajectory, limits, quiet_s),
    )
    return tuple(signal for signal in found if signal is not None)


def next_quiet_deadline(
    trajectory: Trajectory | TrajectoryDigest, limits: DetectorLimits
) -> float | None:
    """The quiet time in seconds at which `signals` could say more without new steps.

    None where no length of silence would change anything.
    """
    match trajectory.activity:
        case Activity.ENDED:
            return None
        case Activity.WAITING if trajectory.waiting_on in _PEOPLE:
            return limits.waiting_s or None
        case Activity.STARTING if not trajectory.goal:
            return None
        case _:
            return limits.idle_s or None


_PEOPLE = frozenset({"human", "permission"})


def scope(trajectory: Trajectory) -> Signal | None:
    """SCOPE: a file was written that a constraint in force forbids, or leaves out.

    Rule: a person's sentence forbids writing named places, or confines it to them, and
    a successful edit went elsewhere. Unit: writes. ALARM at the first. Not said of
    sentences with exceptions, of files below /tmp, or of constraints in prose alone.
    """
    broken = [v for v in trajectory.violations if _in_force(trajectory, v.constraint)]
    if not broken:
        return None
    about = f"{broken[-1].path}: {broken[-1].constraint}"
    steps = tuple(v.step for v in broken)
    return Signal(SignalKind.SCOPE, Severity.ALARM, steps, len(broken), 0, about)


def _in_force(trajectory: Trajectory, constraint: str) -> bool:
    return any(
        known.text == constraint and known.lifted_step is None for known in trajectory.constraints
    )


def repeating(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """REPEATING: the same effect again and again, with nothing relevant changed between.

    Rule: verb, target and normalised result equal, `repeats` times within 16 steps and
    since the world last changed; the latest of them within the last 8. Unit: occurrences.
    ALARM at `repeats` (a look, which changes nothing: SUSPICION, ALARM at twice), NOTE one
    before. Paging and polling are left out. Also a NOTE: the same write tried again within
    8 steps, `repeats` times of late, as in cycles of refused, deleted, written. Does not
    say that the agent cannot get out of it.
    """
    effect = trajectory.repeats
    if not limits.repeats:
        return None
    if effect and trajectory.steps - effect.steps[-1] <= _RECENT_STEPS:
        steps = tuple(s for s in effect.steps if s > effect.steps[-1] - _REPEAT_SPAN)
        # Only the latest steps are kept: a row that fills them has lasted longer.
        count = effect.times if len(steps) == STEPS_SHOWN else len(steps)
        if count >= limits.repeats - 1:
            severity = _repeat_severity(count, limits.repeats, look=trajectory.repeats_look)
            about = trajectory.repeat_about
            return Signal(SignalKind.REPEATING, severity, steps, count, limits.repeats, about)
    again = [mark for mark in trajectory.window if mark.again]
    if len(again) < limits.repeats or trajectory.steps - again[-1].step > _RECENT_STEPS:
        return None
    steps = tuple(mark.step for mark in again)[-_SHOWN:]
    about = f"written again: {again[-1].target}"
    return Signal(SignalKind.REPEATING, Severity.NOTE, steps, len(again), limits.repeats, about)


def _repeat_severity(count: int, limit: int, *, look: bool) -> Severity:
    if count < limit:
        return Severity.NOTE
    return Severity.SUSPICION if look and count < 2 * limit else Severity.ALARM


def errors(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """ERRORS: step after step fails.

    Rule: `errors` failed steps in a row. Unit: steps. SUSPICION at the limit, ALARM at
    three times the limit: up to then, trying variations is how problems are solved.
    NOTE: one more than the limit among the last 10 steps, in a row or not. A failing
    test run between edits counts as failed, but a step that succeeds ends the row.
    """
    streak = trajectory.streak
    if not limits.errors:
        return None
    if streak.length < limits.errors:
        return _many_errors(trajectory, limits)
    marks = [mark for mark in trajectory.window if mark.failed][-limits.errors :]
    one_place = len({m.target for m in marks}) == 1 and marks[0].target != ""
    grave = streak.length >= 3 * limits.errors
    return Signal(
        SignalKind.ERRORS,
        Severity.ALARM if grave else Severity.SUSPICION,
        streak.steps,
        streak.length,
        limits.errors,
        f"{streak.kind or ErrorClass.OTHER}" + (f" at {marks[0].target}" if one_place else ""),
    )


def _many_errors(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    failed = tuple(mark.step for mark in trajectory.window[-10:] if mark.failed)
    if len(failed) <= limits.errors:
        return None
    about = "of the last 10 steps"
    return Signal(SignalKind.ERRORS, Severity.NOTE, failed, len(failed), limits.errors + 1, about)


def alternating(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """ALTERNATING: two effects take turns, A B A B A B, and neither brings anything new.

    Rule: the last `alternations` steps have two effects in turn, none novel after the
    first two. Unit: steps. ALARM. Polling whose answer changes is not an alternation.
    """
    count = limits.alternations
    marks = trajectory.window[-count:] if count else []
    if not count or len(marks) < count:
        return None
    turns = all(a.effect == b.effect for a, b in zip(marks, marks[2:], strict=False))
    if not turns or marks[0].effect == marks[1].effect or any(m.novel for m in marks[2:]):
        return None
    about = " / ".join(_told(mark) for mark in marks[:2])
    steps = tuple(mark.step for mark in marks)[-_SHOWN:]
    return Signal(SignalKind.ALTERNATING, Severity.ALARM, steps, len(marks), count, about)


def churning(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """CHURNING: the same place is written over and over, or brought back to what it was.

    Rule: `churn` edits in a row over the same lines of a file (or of the whole file),
    or half as many that brought an earlier content back; the latest within 8 steps.
    Unit: writes. SUSPICION at the limit; ALARM at twice the limit, or when contents
    came back. Edits at different places of one file are no churn.
    """
    if not limits.churn:
        return None
    for path, record in reversed(trajectory.files.seen.items()):
        if not record.steps or trajectory.steps - record.steps[-1] > _RECENT_STEPS:
            continue
        back = record.returns >= max(2, limits.churn // 2)
        over = record.rewrites + 1
        if not back and over < limits.churn:
            continue
        grave = back or over >= 2 * limits.churn
        severity = Severity.ALARM if grave else Severity.SUSPICION
        measure = record.returns if back else over
        return Signal(SignalKind.CHURNING, severity, record.steps, measure, limits.churn, path)
    return None


def stale(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """STALE: the agent keeps looking at what it has seen already.

    Rule: `stale` steps of the last 16 showed what the same kind of call had shown
    before, not directly before, with nothing relevant changed since. Unit: steps.
    SUSPICION at the limit, ALARM at twice the limit. Reading on (paging) is no repeat.
    """
    steps = tuple(s for s in trajectory.stale_steps if s >= trajectory.steps - _REPEAT_SPAN)
    if not limits.stale or len(steps) < limits.stale:
        return None
    grave = len(steps) >= 2 * limits.stale
    severity = Severity.ALARM if grave else Severity.SUSPICION
    return Signal(SignalKind.STALE, severity, steps[-_SHOWN:], len(steps), limits.stale)


def no_progress(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """NO_PROGRESS: for long, nothing new was seen, written or passed.

    Rule: `no_progress_steps` steps since the last novel one. Unit: steps. SUSPICION at
    the limit, ALARM at twice. Also ALARM: work was handed in by a submitting tool with
    no edit ever taken, or with none but to scripts that the run created and ran itself,
    where the goal does not ask for new files. An answer given with it needs no edit.
    NOTE: `edit_gap_steps` steps since the last edit taken or test passed.
    """
    idle = trajectory.steps - 1 - trajectory.progress_step
    if not limits.no_progress_steps:
        return None
    marks = trajectory.window
    handed_in = bool(marks) and marks[-1].kind is StepKind.SUBMIT and not marks[-1].failed
    if handed_in and (about := _empty_handed(trajectory)):
        return Signal(SignalKind.NO_PROGRESS, Severity.ALARM, (marks[-1].step,), 0, 1, about)
    if idle < limits.no_progress_steps:
        return _edit_gap(trajectory, limits)
    grave = idle >= 2 * limits.no_progress_steps
    return Signal(
        SignalKind.NO_PROGRESS,
        Severity.ALARM if grave else Severity.SUSPICION,
        tuple(mark.step for mark in marks[-_SHOWN:]),
        idle,
        limits.no_progress_steps,
    )


def _edit_gap(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    gap = trajectory.steps - 1 - max(trajectory.edit_step, trajectory.test_passed_step)
    limit = limits.edit_gap_steps
    if trajectory.edit_step < 0 or not limit or gap < limit:
        return None
    steps = (trajectory.edit_step, trajectory.steps - 1)
    about = "no edit taken and no test passed since"
    return Signal(SignalKind.NO_PROGRESS, Severity.NOTE, steps, gap, limit, about)


def _empty_handed(trajectory: Trajectory) -> str:
    if trajectory.answered:
        return ""
    if not trajectory.edits:
        return "handed in without an edit"
    wrote = [record for record in trajectory.files.seen.values() if record.writes]
    scripts = bool(wrote) and all(record.own and record.runs for record in wrote)
    if scripts and not trajectory.wants_files:
        return "handed in with no edit but to its own scripts"
    return ""


_DRIFT_WRITES = 4


def drifting(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """DRIFTING: the latest writes touch nothing that the goal names.

    Rule: the goal names files, directories or identifiers; the last `drift_steps` steps
    wrote at least 4 times, and no path written or read among them shares a word with
    the goal. Unit: writes. SUSPICION when all of them are prose or styling that the
    goal did not ask for, ALARM at 8 of them; NOTE otherwise, since a fix often lies
    where no issue points.
    """
    if not limits.drift_steps or not trajectory.topics:
        return None
    since = max(trajectory.steps - limits.drift_steps, trajectory.asked_step)
    marks = [m for m in trajectory.window if m.step >= since and m.target]
    wrote = [m for m in marks if m.wrote]
    topics = set(trajectory.topics)
    if len(wrote) < _DRIFT_WRITES or any(words_of(m.target) & topics for m in marks if m.wrote):
        return None
    documents = all(is_document(m.target) for m in wrote) and not trajectory.wants_documents
    if not documents and any(words_of(m.target) & topics for m in marks):
        return None
    about = ", ".join(dict.fromkeys(m.target for m in wrote))[:200]
    severity = Severity.NOTE
    if documents:
        severity = Severity.ALARM if len(wrote) >= 2 * _DRIFT_WRITES else Severity.SUSPICION
    steps = tuple(m.step for m in wrote)[-_SHOWN:]
    return Signal(SignalKind.DRIFTING, severity, steps, len(wrote), _DRIFT_WRITES, about)


def untested_claim(trajectory: Trajectory) -> Signal | None:
    """UNTESTED_CLAIM: the agent says it is done, and no test since the last edit says so.

    Rule: a claim of done (words or submission), code was edited, and no passing test
    run after the last edit of code. Unit: edits. ALARM when a run or test failed after
    that edit and nothing put it right; SUSPICION when nothing was tried; NOTE when what
    was written ran without an error. Prose and styling need no tests.
    """
    if not trajectory.claims_done or trajectory.code_edit_step < 0:
        return None
    if trajectory.test_passed_step > trajectory.code_edit_step:
        return None
    red = trajectory.red_step > trajectory.code_edit_step
    steps = (trajectory.code_edit_step, *((trajectory.red_step,) if red else ()))
    if red:
        severity, about = Severity.ALARM, "the last run or test failed"
    elif trajectory.ran_step > trajectory.code_edit_step:
        severity, about = Severity.NOTE, "it ran, and no test was run after the last edit"
    else:
        severity, about = Severity.SUSPICION, "no test was run after the last edit"
    return Signal(SignalKind.UNTESTED_CLAIM, severity, steps, trajectory.edits, 0, about)


def overspending(trajectory: Trajectory, limits: DetectorLimits) -> Signal | None:
    """OVERSPENDING: a run cost more than it may, or was cut off at its own limit.

    Rule: dollars spent above `spend_usd`, NOTE above 80 % of it; or the transcript says
    that the run ended by a limit (steps, cost, time): a SUSPICION, since what is over
    needs no alarm. ALARM above `spend_usd`. Unit: dollars.
    """
    last = (trajectory.steps - 1,) if trajectory.steps else ()
    if trajectory.end is RunEnd.LIMIT:
        spent = trajectory.usage.cost_usd
        about = "cut off at the run's own limit"
        return Signal(SignalKind.OVERSPENDING, Severity.SUSPICION, last, spent, 0, about)
    spent = trajectory.usage.cost_usd
    if not limits.spend_usd or spent < 0.8 * limits.spend_usd:
        return None
    severity = Severity.ALARM if spent >= limits.spend_usd else Severity.NOTE
    return Signal(SignalKind.OVERSPENDING, severity, last, spent, limits.spend_usd)


def silence(trajectory: Trajectory, limits: DetectorLimits, quiet_s: float) -> Signal | None:
    """WAITING, SILENT or IDLE: nothing was written for longer than it should be.

    Rule: `waiting_s` while a person is waited for: WAITING; `idle_s` in the middle of
    work: SILENT; `idle_s` after the agent ended its turn: IDLE. Unit: seconds.
    SUSPICION, IDLE a NOTE. Silence is not death: the process is not looked at here.
    """
    deadline = next_quiet_deadline(trajectory, limits)
    if deadline is None or quiet_s < deadline:
        return None
    steps = (trajectory.steps - 1,) if trajectory.steps else ()
    waits = trajectory.activity is Activity.WAITING
    if waits and trajectory.waiting_on in _PEOPLE:
        kind, severity = SignalKind.WAITING, Severity.SUSPICION
    elif trajectory.activity is Activity.TURN_ENDED:
        kind, severity = SignalKind.IDLE, Severity.NOTE
    else:
        kind, severity = SignalKind.SILENT, Severity.SUSPICION
    return Signal(kind, severity, steps, quiet_s, deadline, trajectory.waiting_on)


def _told(mark: Mark) -> str:
    return " ".join(filter(None, (mark.verb or str(mark.kind), mark.target)))


def question_hash(digest: TrajectoryDigest, signals: Sequence[Signal]) -> str:
    """Equal for two questions if nothing that a judge could care about changed.

    16 hex digits over the trajectory's fingerprint and the signals' kinds, severities,
    peers and steps; how long it has been quiet does not count by itself.
    """
    said = sorted(f"{s.kind}:{s.severity}:{s.steps}:{s.peers}" for s in signals)
    return digest_of("\x1f".join((digest.fingerprint, *said)))
