"""Hand-made steps, so that a test reads as what an agent did."""

from collections.abc import Iterable

from custosd.core.detectors import DetectorLimits, signals
from custosd.core.effects import text_of
from custosd.core.signals import Severity, Signal, SignalKind
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import (
    Acted,
    Asked,
    EditRange,
    ErrorClass,
    Result,
    Said,
    Step,
    StepKind,
    TranscriptEvent,
    digest_of,
)

LIMITS = DetectorLimits()


def step(
    kind: StepKind,
    verb: str,
    action: str,
    shown: str = "",
    *,
    error: ErrorClass | None = None,
    files: tuple[str, ...] = (),
    edits: tuple[EditRange, ...] = (),
    changes: bool = False,
    result: Result | None = None,
) -> Acted:
    ended = Result.OK if error is None else Result.ERROR
    return Acted(
        "",
        Step(
            key="",
            kind=kind,
            tool=verb,
            verb=verb,
            action=text_of(action),
            observation=text_of(shown),
            result=result or ended,
            error=error,
            files=files,
            edits=edits,
            changes_state=changes or bool(edits),
        ),
    )


def read(path: str, shown: str = "source", at: str = "") -> Acted:
    return step(StepKind.READ, "cat", f"cat {path} {at}", shown + at, files=(path,))


def search(words: str, shown: str) -> Acted:
    return step(StepKind.SEARCH, "grep", f"grep {words}", shown)


def write(
    path: str, content: str, *, lines: tuple[int, int] = (0, 0), created: bool = False
) -> Acted:
    edit = EditRange(path, *lines, created=created, digest=digest_of(content))
    return step(StepKind.EDIT, "write", f"write {path} {content}", "done", edits=(edit,))


def refused(path: str, content: str) -> Acted:
    return step(
        StepKind.EDIT,
        "write",
        f"write {path} {content}",
        "File has not been read yet",
        error=ErrorClass.EDIT_REJECTED,
        edits=(EditRange(path, digest=digest_of(content)),),
        result=Result.REJECTED,
    )


def run(line: str, shown: str = "", error: ErrorClass | None = None, **more: object) -> Acted:
    return step(StepKind.RUN, line.split(maxsplit=1)[0], line, shown, error=error, **more)  # type: ignore[arg-type]


def remove(path: str) -> Acted:
    """A deletion as the reading of commands tells it: an edit without a content."""
    return step(StepKind.EDIT, "rm", f"rm {path}", files=(path,), edits=(EditRange(path),))


def passing(shown: str = "5 passed") -> Acted:
    return step(StepKind.TEST, "pytest", "pytest -q", shown)


def failing(shown: str = "1 failed", line: str = "pytest -q") -> Acted:
    return step(StepKind.TEST, "pytest", line, shown, error=ErrorClass.TEST_FAILURE)


def submit() -> Acted:
    return step(StepKind.SUBMIT, "submit", "submit")


def asked(text: str) -> Asked:
    return Asked("", text)


def said(text: str) -> Said:
    return Said("", text, final=True)


def folded(*events: TranscriptEvent) -> Trajectory:
    trajectory = Trajectory()
    for event in events:
        trajectory.advance(event)
    return trajectory


def found(*events: TranscriptEvent, quiet_s: float = 0.0) -> dict[SignalKind, Signal]:
    return {s.kind: s for s in signals(folded(*events), LIMITS, quiet_s)}


def ever(
    events: Iterable[TranscriptEvent], least: Severity = Severity.SUSPICION
) -> set[SignalKind]:
    """Every kind of signal that was raised at any time with at least this severity."""
    order = list(Severity)
    trajectory, kinds = Trajectory(), set()
    for event in events:
        trajectory.advance(event)
        for signal in signals(trajectory, LIMITS, 0.0):
            if order.index(signal.severity) >= order.index(least):
                kinds.add(signal.kind)
    return kinds
