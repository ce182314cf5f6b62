"""The fold of all steps of a run, in bounded memory.

Laws:

1. `Trajectory.advance` never raises and costs O(1), whatever a transcript says.
2. State is plain bounded data: below 24 KiB encoded however long the run, and a fold
   that was stored and loaded goes on as if it had not been.
3. An *effect* is what a step comes to: verb, target and normalised result. It is
   counted until the world changes in a way that matters for it; a change that is itself
   a repetition (the same content written again, the same deletion) does not matter.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from custosd.core.claims import asks, disclaims, says_done
from custosd.core.constraints import (
    CONSTRAINT_CHARS,
    CONSTRAINTS_KEPT,
    breaks,
    lifts,
    read_rules,
    scope_of,
)
from custosd.core.footprints import Footprint, Track, looked, refused, wrote
from custosd.core.history import (
    CONTENTS_KEPT,
    KEY_CHARS,
    PATH_CHARS,
    RETRY_STEPS,
    WINDOW_STEPS,
    Effect,
    EffectHistory,
    ErrorStreak,
    FileHistory,
    FileRecord,
    Mark,
    latest,
    printable,
    tail_of,
)
from custosd.core.phases import focus_of, phase_of
from custosd.core.steps import (
    CHECKS,
    FAILED,
    LOOKS,
    NOT_A_CHECK,
    attempt_key_of,
    deletes,
    effect_key_of,
    goes_on,
    writes,
)
from custosd.core.topics import is_document, topics_of, wants_documents, wants_files
from custosd.core.transcript import (
    Acted,
    Asked,
    Compacted,
    EditRange,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Spent,
    Step,
    StepKind,
    TranscriptEvent,
    Unread,
    Usage,
    Waiting,
    digest_of,
)
from custosd.core.verdicts import Phase

TURN_QUIET_S = 30.0
"""After so long a silence, words without an action were the end of the agent's turn.

Several makers do not mark it, and a model that goes on to act does so within seconds.
"""

GOAL_CHARS = 1_000
CLAIM_CHARS = 400
VIOLATIONS_KEPT = 8
SPEND_SAMPLES = 8
CWD_CHARS = 400
BRANCH_CHARS = 120
_CUT_CHARS = PATH_CHARS // 2
FILES_SHOWN = 24


class Activity(StrEnum):
    """What the transcript says the agent is doing just now."""

    STARTING = "starting"
    WORKING = "working"
    WAITING = "waiting"
    TURN_ENDED = "turn_ended"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule that a person set. `step` is the number of steps taken when it was set."""

    text: str
    step: int
    lifted_step: int | None = None
    set_utc: datetime | None = None
    lifted_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A write that goes against a constraint in force: at which step, where, which one."""

    step: int
    path: str
    constraint: str


@dataclass(frozen=True, slots=True)
class TrajectoryDigest:
    """What others see of a trajectory: small, frozen, comparable.

    Holds agent text (`goal`, `focus`, `claim`, `files`): shown and stored, never logged.
    `fingerprint` changes whenever an event was folded in that a judge could care about.
    """

    fingerprint: str
    goal: str
    constraints: tuple[Constraint, ...]
    focus: str
    phase: Phase
    activity: Activity
    waiting_on: str
    steps: int
    errors: int
    edits: int
    tests_run: int
    tests_passed_at: int | None
    last_edit_at: int | None
    claim: str
    end: RunEnd | None
    files: tuple[str, ...]
    written: tuple[str, ...]
    usage: Usage
    last_step_utc: datetime | None
    progress_at: int | None = None
    """The last step that brought something new: None where none did, or no step yet."""
    claims_done: bool = False
    """`claim` says that the task is done, in words or by submitting."""
    spoke: bool = False
    """The agent spoke last, and may or may not have ended its turn with that."""
    cwd: str = ""
    """The folder that the agent said it works in; "" where it did not."""
    branch: str = ""
    footprints: tuple[Footprint, ...] = ()
    """Where it changed files, by path as in `written`; the latest first."""

    @property
    def gave_up(self) -> bool:
        """Whether the agent rests, and says that what it was asked for is not done."""
        resting = self.activity is Activity.TURN_ENDED and not self.claims_done
        return resting and disclaims(self.claim)


@dataclass(slots=True)
class Trajectory:
    """One run, folded up to now; see the module's laws."""

    steps: int = 0
    fingerprint: str = ""
    goal: str = ""
    goal_last: str = ""
    topics: tuple[str, ...] = ()
    wants_documents: bool = False
    wants_files: bool = False
    asked_step: int = 0
    constraints: list[Constraint] = field(default_factory=list[Constraint])
    violations: list[Violation] = field(default_factory=list[Violation])
    activity: Activity = Activity.STARTING
    waiting_on: str = ""
    claim: str = ""
    claims_done: bool = False
    answered: bool = False
    spoke: str = ""
    end: RunEnd | None = None
    window: list[Mark] = field(default_factory=list[Mark])
    effects: EffectHistory = field(default_factory=EffectHistory)
    views: EffectHistory = field(default_factory=EffectHistory)
    files: FileHistory = field(default_factory=FileHistory)
    repeats: Effect | None = None
    repeats_look: bool = False
    repeat_about: str = ""
    repeated: int = 0
    stale_steps: tuple[int, ...] = ()
    stale: int = 0
    streak: ErrorStreak = field(default_factory=ErrorStreak)
    errors: int = 0
    errors_by_class: dict[str, int] = field(default_factory=dict[str, int])
    rejected: int = 0
    edits: int = 0
    world: int = 0
    progress_step: int = -1
    edit_step: int = -1
    code_edit_step: int = -1
    tests_run: int = 0
    test_step: int = -1
    test_passed_step: int = -1
    test_failed_step: int = -1
    ran_step: int = -1
    red_step: int = -1
    red_key: str = ""
    compactions: int = 0
    usage: Usage = Usage()
    spend: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    last_step_utc: datetime | None = None
    cwd: str = ""
    branch: str = ""

    def advance(self, event: TranscriptEvent) -> None:
        """Fold one event in. Events of other threads are the caller's to keep apart."""
        match event:
            case Acted():
                self._act(event.step)
            case Asked():
                self._be_asked(event)
            case Said():
                self._say(event)
            case Waiting():
                self._wait(event)
            case Ended():
                self._end(event)
            case Spent():
                self._spend(event.usage)
            case Compacted():
                self.compactions += 1
            case Opened():
                self.cwd = printable(event.cwd)[:CWD_CHARS] or self.cwd
                self.branch = printable(event.branch)[:BRANCH_CHARS] or self.branch
            case Unread():
                pass
            case _:
                assert_never(event)

    def settle(self) -> None:
        """Take the agent's last words as the end of its turn: nothing followed them."""
        if self.spoke:
            self._say(Said("", self.spoke, final=True))

    def digest(self) -> TrajectoryDigest:
        """What others see of the run up to now."""
        touched = [(path, record) for path, record in self.files.seen.items() if path][::-1]
        return TrajectoryDigest(
            fingerprint=self.fingerprint,
            goal=self.goal,
            constraints=tuple(self.constraints),
            focus=focus_of(self.window),
            phase=phase_of(
                self.window,
                waiting=self.activity is Activity.WAITING,
                finishing=self.claims_done or self.activity is Activity.ENDED,
            ),
            activity=self.activity,
            waiting_on=self.waiting_on,
            steps=self.steps,
            errors=self.errors,
            edits=self.edits,
            tests_run=self.tests_run,
            tests_passed_at=_known(self.test_passed_step),
            last_edit_at=_known(self.edit_step),
            claim=self.claim,
            end=self.end,
            files=tuple(path for path, _ in touched[:FILES_SHOWN]),
            written=tuple(path for path, r in touched if r.writes)[:FILES_SHOWN],
            usage=self.usage,
            last_step_utc=self.last_step_utc,
            cwd=self.cwd,
            branch=self.branch,
            footprints=tuple(
                _footprint(path, r.track, self.cwd)
                for path, r in touched
                if r.writes or r.track.refused_s
            )[:FILES_SHOWN],
            progress_at=_known(self.progress_step),
            claims_done=self.claims_done,
            spoke=bool(self.spoke),
        )

    # What people and the agent say

    def _mix(self, *parts: str) -> None:
        self.fingerprint = digest_of("\x1f".join((self.fingerprint, *parts)))

    def _be_asked(self, event: Asked) -> None:
        text = printable(event.text)
        if not text.strip():
            return
        if not self.goal:
            self.goal = text[:GOAL_CHARS]
        elif text[:GOAL_CHARS] != self.goal_last:
            # Doing again what was done before is right when a person asks for it. A prompt
            # that a harness repeats word for word asks for nothing new.
            self.goal_last = text[:GOAL_CHARS]
            self.effects, self.views, self.repeats = EffectHistory(), EffectHistory(), None
            self.streak, self.stale_steps = ErrorStreak(), ()
        self.topics = tuple(sorted({*self.topics, *topics_of(text)}))[:48]
        self.wants_documents = self.wants_documents or wants_documents(text)
        self.wants_files = self.wants_files or wants_files(text)
        self.asked_step = self.steps
        self._set_rules(text, event.at_utc)
        self._resume()
        self._mix("asked", text)

    def _set_rules(self, text: str, at_utc: datetime | None) -> None:
        rules = read_rules(text)
        for index, old in enumerate(self.constraints):
            taken_back = rules.lifts_all or any(lifts(said, old.text) for said in rules.lifts)
            if old.lifted_step is None and taken_back:
                self.constraints[index] = Constraint(
                    old.text, old.step, self.steps, old.set_utc, at_utc
                )
        known = {old.text for old in self.constraints if old.lifted_step is None}
        for said in rules.sets:
            if said not in known:
                self.constraints.append(
                    Constraint(said[:CONSTRAINT_CHARS], self.steps, None, at_utc)
                )
        while len(self.constraints) > CONSTRAINTS_KEPT:
            # A lifted one goes first; else the oldest: the latest word counts.
            lifted = (i for i, c in enumerate(self.constraints) if c.lifted_step is not None)
            del self.constraints[next(lifted, 0)]

    def _resume(self) -> None:
        """The agent is at work (again): what was claimed or waited for is past."""
        self.activity = Activity.WORKING
        self.waiting_on = ""
        self.spoke = ""
        self.claim = ""
        self.claims_done = False
        self.end = None

    def _say(self, event: Said) -> None:
        text = printable(event.text)
        self._mix("said", text, str(event.final))
        self.spoke = "" if event.final else text[-CLAIM_CHARS:]
        if not event.final:
            if self.activity is not Activity.ENDED:
                self.activity = Activity.WORKING
                self.waiting_on = ""
            return
        self.claim = text[-CLAIM_CHARS:]
        asking = asks(text)
        self.claims_done = says_done(text) and not asking
        self.activity = Activity.WAITING if asking else Activity.TURN_ENDED
        self.waiting_on = "human" if asking else ""

    def _wait(self, event: Waiting) -> None:
        self.spoke = ""
        self.activity = Activity.WAITING
        self.waiting_on = printable(event.on)[:40]
        self._mix("waiting", event.on)

    def _end(self, event: Ended) -> None:
        self.spoke = ""
        self.activity = Activity.ENDED
        self.waiting_on = ""
        self.end = event.end
        if event.claim:
            self.claim = printable(event.claim)[-CLAIM_CHARS:]
        # Who ends the run of its own accord holds that it is done, unless it says otherwise.
        by_itself = event.end in {RunEnd.SUBMITTED, RunEnd.FINISHED}
        self.claims_done = by_itself and not disclaims(self.claim)
        self._mix("ended", event.end, event.claim)

    def _spend(self, usage: Usage) -> None:
        self.usage = self.usage + usage
        if self.spend and self.spend[-1][0] == self.steps:
            self.spend.pop()
        self.spend.append((self.steps, self.usage.cost_usd))
        if len(self.spend) > SPEND_SAMPLES:
            # Every second sample goes: the slope stays, over a longer stretch.
            del self.spend[1:-1:2]

    # What the agent does

    def _act(self, step: Step) -> None:
        self._resume()
        number = self.steps
        self.steps += 1
        failed = step.result in FAILED
        effect_key = effect_key_of(step)[:KEY_CHARS]
        seen_new = self._look(step, number, failed=failed)
        changed = False
        if writes(step):
            changed = self._edit(step, number, failed=failed)
        repeat = self._count_effect(step, effect_key, number, changed=changed)
        if step.changes_state and not writes(step) and not failed and not repeat:
            changed = True
        if deletes(step) and not failed:
            self._delete(step, number)
        if changed:
            self.world += 1
            # The change counts as had in the world that it made, so that doing it again,
            # with nothing else changed, is seen as the repetition that it is.
            self.effects.seen[effect_key] = self.effects.seen[effect_key]._replace(
                world=self._effect_world(step)
            )
        for path in () if step.edits else step.files:
            record = self.files.get(path)
            ran = step.kind in CHECKS
            self.files.put(
                path,
                record._replace(
                    reads=record.reads + (not ran),
                    runs=record.runs + ran,
                    track=record.track if failed else looked(record.track, _seconds(step)),
                ),
            )
        self._test(step, number, failed=failed)
        self._fail(step, number, failed=failed)
        novel = not failed and (changed or (seen_new and not repeat))
        if novel:
            self.progress_step = number
            self._use(step)
        self._mark(step, number, effect_key, failed=failed, repeat=repeat, novel=novel)
        self.last_step_utc = step.ended_utc or step.started_utc or self.last_step_utc
        if step.kind is StepKind.SUBMIT:
            self.answered = len(step.action.excerpt.split()) > 1
        if step.kind is StepKind.SUBMIT and not failed:
            self.claims_done = True
            self.claim = printable(step.action.excerpt)[:CLAIM_CHARS]
        elif step.kind is StepKind.ASK and step.result is Result.UNANSWERED:
            self.activity, self.waiting_on = Activity.WAITING, "human"
        self._mix("acted", step.key, step.action.digest, step.observation.digest, step.result)

    def _mark(
        self, step: Step, number: int, effect: str, *, failed: bool, repeat: bool, novel: bool
    ) -> None:
        paths = tuple(edit.path for edit in step.edits) or step.files
        target = tail_of(paths[0]) if paths else ""
        wrote = bool(step.edits) and writes(step) and not failed
        verb = printable(step.verb)[:24]
        # By the call and not by the content: what was refused may have no content to show.
        attempt = step.action.digest[:8]
        again = (
            writes(step)
            and (failed or bool(step.edits))
            and any(m.attempt == attempt for m in self.window[-RETRY_STEPS:])
        )
        self.window.append(
            Mark(
                step=number,
                kind=step.kind,
                verb=verb,
                target=target,
                effect=effect[:8],
                attempt=attempt,
                failed=failed,
                repeat=repeat,
                novel=novel,
                wrote=wrote,
                again=again,
            )
        )
        del self.window[:-WINDOW_STEPS]

    def _look(self, step: Step, number: int, *, failed: bool) -> bool:
        """Note what was shown; True if it was not seen before.

        Stale is what the same family of action showed before, with nothing relevant
        changed since and other steps in between: the agent looks again at what it knew.
        """
        if not step.observation.length:
            return False
        shown = step.observation.loose_digest
        key = digest_of(f"{step.kind}\x1f{attempt_key_of(step)}\x1f{shown}")[:KEY_CHARS]
        before = self.views.seen.get(key)
        view = self.views.note(key, number, self._relevant_world(step))
        apart = view.times > 1 and number - view.steps[-2] > 1
        if apart and not step.edits and not goes_on(step):
            self.stale += 1
            self.stale_steps = latest(self.stale_steps, number, 16)
        return before is None and not failed

    def _relevant_world(self, step: Step) -> int:
        """The version of the part of the world that this step's result depends on."""
        if step.kind in LOOKS and step.files:
            return max(self.files.get(path).written_step for path in step.files)
        return self.world

    def _effect_world(self, step: Step) -> int:
        """As `_relevant_world`, but narrower for what changes files itself.

        An edit's effect depends on nothing else that changed, a deletion's only on what
        had been written there.
        """
        if writes(step):
            return 0
        if deletes(step) and (paths := [e.path for e in step.edits] or step.files):
            return max(self.files.get(path).written_step for path in paths)
        return self._relevant_world(step)

    def _count_effect(self, step: Step, key: str, number: int, *, changed: bool) -> bool:
        """Count the step's effect; True if it was had before, nothing relevant since."""
        effect = self.effects.note(key, number, self._effect_world(step))
        if changed or effect.times == 1 or goes_on(step):
            return False
        self.repeated += 1
        self.repeats = effect
        self.repeats_look = step.kind in LOOKS
        target = tail_of(step.files[0]) if step.files else ""
        self.repeat_about = " ".join(filter(None, (printable(step.verb)[:24], target)))
        return True

    def _edit(self, step: Step, number: int, *, failed: bool) -> bool:
        """Note the edits of a step; True if any file came to a content not seen before."""
        # An edit whose place is not told is kept as one of its own, "" by name.
        edits = step.edits or tuple(EditRange(path) for path in step.files[:1] or ("",))
        if failed:
            self.rejected += 1
        else:
            self.edits += 1
            self.edit_step = number
            if any(not is_document(tail_of(edit.path)) for edit in edits):
                self.code_edit_step = number
        changed = False
        for edit in edits[:16]:
            record, new = _written(self.files.get(edit.path), edit, step, number, failed=failed)
            self.files.put(edit.path, record)
            changed = changed or new
            if not failed:
                self._check_scope(edit.path, number)
        return changed

    def _use(self, step: Step) -> None:
        """Running a file with a new result is why it is written anew: no churn."""
        if step.kind in CHECKS:
            for path in step.files:
                self.files.put(path, self.files.get(path)._replace(rewrites=0))

    def _delete(self, step: Step, number: int) -> None:
        """Note a deletion: a change like an edit, unless the run tidies up after itself."""
        for path in dict.fromkeys([*(edit.path for edit in step.edits), *step.files][:16]):
            if not self.files.get(path).own:
                self.edit_step = self.code_edit_step = number
            self._check_scope(path, number)

    def _check_scope(self, path: str, number: int) -> None:
        if not path or path.startswith(("/tmp/", "/dev/")):  # noqa: S108 - scratch files are nobody's scope
            return
        for constraint in self.constraints:
            if constraint.lifted_step is None and breaks(scope_of(constraint.text), tail_of(path)):
                self.violations.append(Violation(number, tail_of(path), constraint.text))
                del self.violations[:-VIOLATIONS_KEPT]
                return

    def _test(self, step: Step, number: int, *, failed: bool) -> None:
        if step.kind is StepKind.TEST:
            self.tests_run += 1
            self.test_step = number
            if failed:
                self.test_failed_step = number
            elif step.result is Result.OK:
                self.test_passed_step = number
                # What is written between tests that pass is built, not churned.
                for path, record in list(self.files.seen.items()):
                    if record.rewrites:
                        self.files.seen[path] = record._replace(rewrites=0)
        if step.kind in CHECKS:
            self._check(step, number, failed=failed)

    def _check(self, step: Step, number: int, *, failed: bool) -> None:
        """Remember the failed run that nothing has put right since: the state is "red".

        What could not start for its surroundings has checked nothing.
        """
        key = step.action.loose_digest
        if failed:
            if step.error not in NOT_A_CHECK:
                self.red_step, self.red_key = number, key
            return
        if any(self.files.get(path).writes for path in step.files):
            self.ran_step = number
        if step.kind is StepKind.TEST or self.red_key == key:
            self.red_step, self.red_key = -1, ""

    def _fail(self, step: Step, number: int, *, failed: bool) -> None:
        if not failed:
            self.streak = ErrorStreak()
            return
        kind = step.error or ErrorClass.OTHER
        was = self.streak
        same = was.same + 1 if was.kind is kind else 1
        self.streak = ErrorStreak(kind, same, latest(was.steps, number, 16), was.length + 1)
        self.errors += 1
        self.errors_by_class[kind] = self.errors_by_class.get(kind, 0) + 1


def _written(
    record: FileRecord, edit: EditRange, step: Step, number: int, *, failed: bool
) -> tuple[FileRecord, bool]:
    """A file's record after one edit, and whether its content is a new one."""
    if failed:
        return (
            record._replace(
                refused=record.refused + 1,
                refused_steps=latest(record.refused_steps, number),
                track=refused(record.track, _seconds(step)),
            ),
            False,
        )
    content = (edit.digest or step.action.digest)[:12]
    # Several edits of one file in one step are one rewriting, not many.
    first = record.steps[-1:] != (number,)
    returned = first and content in record.contents
    over = first and _overlaps(record, edit)
    new = FileRecord(
        reads=record.reads,
        runs=record.runs,
        writes=record.writes + 1,
        creations=record.creations + edit.created,
        own=record.own or (edit.created and not record.reads and not record.writes),
        rewrites=record.rewrites + 1 if over else 0 if first else record.rewrites,
        returns=record.returns + returned,
        first_line=edit.first_line,
        last_line=edit.last_line,
        written_step=record.written_step if returned else number,
        contents=(*(c for c in record.contents if c != content), content)[-CONTENTS_KEPT:],
        steps=latest(record.steps, number) if over else (number,) if first else record.steps,
        track=wrote(record.track, edit, _seconds(step)),
    )
    return new, not returned


def _overlaps(record: FileRecord, edit: EditRange) -> bool:
    """Whether an edit writes over what the last edit of the file wrote."""
    if not record.writes:
        return False
    if edit.created:
        return True
    if not (edit.first_line and record.first_line):
        return False
    return edit.first_line <= record.last_line and record.first_line <= edit.last_line


def _seconds(step: Step) -> int:
    """When a step was done, in POSIX seconds; 0 where that is not told."""
    at = step.ended_utc or step.started_utc
    return int(at.timestamp()) if at else 0


def _footprint(path: str, track: Track, cwd: str) -> Footprint:
    return Footprint(
        below(path, cwd),
        track.spans,
        track.whole,
        track.replaced,
        track.first_s,
        track.last_s,
        track.seen_s,
        track.refused_s,
    )


def below(path: str, cwd: str) -> str:
    """A tail of a path as seen from the folder `cwd`, where it lies below it.

    Of a tail that was cut, what it shares with the end of the folder goes.
    """
    folder = cwd.replace("\\", "/").rstrip("/")
    if folder and path.startswith(f"{folder}/"):
        return path[len(folder) + 1 :]
    if path.startswith("/") or len(path) < _CUT_CHARS:
        return path
    parts = folder.split("/")
    for place in range(1, len(parts)):
        head = "/".join(parts[place:]) + "/"
        if path.startswith(head):
            return path[len(head) :]
    return path


def _known(step: int) -> int | None:
    return step if step >= 0 else None
