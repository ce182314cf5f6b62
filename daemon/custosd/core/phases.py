"""What an agent is busy with, in words, from its latest steps."""

from collections.abc import Sequence

from custosd.core.history import Mark
from custosd.core.steps import CHECKS
from custosd.core.transcript import StepKind
from custosd.core.verdicts import Phase

_FOCUS_STEPS = 8
_PHASE_STEPS = 6


def focus_of(window: Sequence[Mark]) -> str:
    """What the last eight steps were about: the commonest verbs and targets."""
    marks = window[-_FOCUS_STEPS:]
    verbs = _commonest([mark.verb or str(mark.kind) for mark in marks], 2)
    targets = _commonest([mark.target for mark in marks if mark.target], 2)
    said = ", ".join(verbs)
    return f"{said}: {', '.join(targets)}" if targets else said


def _commonest(words: list[str], most: int) -> list[str]:
    return sorted(dict.fromkeys(words), key=lambda word: -words.count(word))[:most]


_PHASES = {
    StepKind.READ: Phase.EXPLORING,
    StepKind.SEARCH: Phase.EXPLORING,
    StepKind.BROWSE: Phase.EXPLORING,
    StepKind.PLAN: Phase.PLANNING,
    StepKind.EDIT: Phase.IMPLEMENTING,
    StepKind.TEST: Phase.TESTING,
    StepKind.RUN: Phase.TESTING,
    StepKind.SUBMIT: Phase.FINISHING,
}


def phase_of(window: Sequence[Mark], *, waiting: bool, finishing: bool) -> Phase:
    """The phase that the last six steps show; failing runs between edits are debugging."""
    if waiting:
        return Phase.WAITING
    marks = window[-_PHASE_STEPS:]
    if not marks:
        return Phase.STARTING
    if finishing:
        return Phase.FINISHING
    failing = any(m.failed and m.kind in CHECKS for m in marks)
    if failing and any(m.kind is StepKind.EDIT for m in marks):
        return Phase.DEBUGGING
    phases = [_PHASES[m.kind] for m in marks if m.kind in _PHASES]
    return max(phases, key=phases.count) if phases else Phase.UNKNOWN
