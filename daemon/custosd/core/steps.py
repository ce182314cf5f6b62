"""How a step is read by the fold: what it tried, what it came to, what sort of act it is."""

import re

from custosd.core.history import tail_of
from custosd.core.transcript import ErrorClass, Result, Step, StepKind, digest_of

PAGING_VERBS = frozenset(
    {
        "scroll",
        "scroll_down",
        "scroll_up",
        "goto",
        "next",
        "next_page",
        "prev",
        "prev_page",
        "page_down",
        "page_up",
    }
)
"""Verbs that move through a long text, naming no place: the same call goes elsewhere."""

_DELETING_VERBS = frozenset({"rm", "rmdir", "unlink", "del", "delete", "trash"})
FAILED = frozenset({Result.ERROR, Result.REJECTED})
CHECKS = frozenset({StepKind.RUN, StepKind.TEST})
NOT_A_CHECK = frozenset(
    {
        ErrorClass.MISSING_COMMAND,
        ErrorClass.MISSING_FILE,
        ErrorClass.TOOL_MISUSE,
        ErrorClass.PERMISSION,
        ErrorClass.NETWORK,
        ErrorClass.RATE_LIMIT,
        ErrorClass.AUTH,
        ErrorClass.DISK_FULL,
    }
)
LOOKS = frozenset({StepKind.READ, StepKind.SEARCH, StepKind.BROWSE})
_POLLS = re.compile(
    r"\bsleep\s+\d|^(?:sleep|wait\w*|watch|bash_?output|task_?output|write_stdin|poll\w*)\b",
    re.IGNORECASE,
)


def attempt_key_of(step: Step) -> str:
    """What a step tries: 16 hex digits, the contents that an edit writes, else the action.

    Numbers in an action are made equal, but not in a look: they say which page it shows.
    """
    if step.edits:
        wrote = (f"{tail_of(e.path)}={e.digest or step.action.digest}" for e in step.edits)
        return digest_of("\x1f".join(wrote))
    action = step.action.digest if step.kind in LOOKS else step.action.loose_digest
    return digest_of(f"{step.verb}\x1f{action}")


def effect_key_of(step: Step) -> str:
    """What a step comes to: 16 hex digits, equal for equal effects.

    An edit's result is whether it was taken; another step's is what it answered, with
    numbers made equal, or how it ended where it answered nothing.
    """
    if step.edits:
        outcome = str(step.result in FAILED)
    else:
        outcome = step.observation.loose_digest if step.observation.length else step.result
    return digest_of(f"{attempt_key_of(step)}\x1f{outcome}")


def deletes(step: Step) -> bool:
    """Whether a step takes files away, even where it is told as an edit."""
    return step.verb in _DELETING_VERBS


def writes(step: Step) -> bool:
    """Whether a step gives files a content, or tries to."""
    return (bool(step.edits) or step.kind is StepKind.EDIT) and not deletes(step)


def goes_on(step: Step) -> bool:
    """Whether the same call again is no repetition: it pages on, or waits for something."""
    return step.verb in PAGING_VERBS or bool(_POLLS.search(step.verb + " " + step.action.excerpt))
