"""Takes secrets out of what is kept of a transcript, at the door: nothing behind it has them.

Laws:

1. What is kept or shown is cleared: what was said and asked, the names of programs and files,
   an answer that was handed in, and what a format remembers until its next line. What is only
   looked at (observations, the rest of the calls) is not: clearing it would cost more than
   reading it.
2. Digests are of what was written, so clearing makes no two things equal or different.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from custosd.core.secrets import without_secrets
from custosd.core.transcript import (
    Acted,
    Asked,
    EditRange,
    Ended,
    Said,
    Step,
    StepKind,
    TranscriptEvent,
)


def cleared(events: Iterable[TranscriptEvent]) -> tuple[TranscriptEvent, ...]:
    """The events without secrets in what is kept of them; those without any are the same."""
    return tuple(map(_cleared, events))


def cleared_state(state: bytes) -> bytes:
    """A format's encoded state without secrets in its texts; its keys stay as they are."""
    # The texts in it are as they are, between marks: most states are passed over at once.
    whole = state.decode("latin-1")
    if without_secrets(whole) == whole:
        return state
    return msgspec.msgpack.encode(_walked(msgspec.msgpack.decode(state)))


def _cleared(event: TranscriptEvent) -> TranscriptEvent:
    match event:
        case Asked() | Said():
            text = without_secrets(event.text)
            return event if text == event.text else replace(event, text=text)
        case Ended(claim=claim) if claim:
            return replace(event, claim=without_secrets(claim))
        case Acted(step=step):
            shown = _cleared_step(step)
            return event if shown is step else Acted(event.thread, shown)
        case _:
            return event


def _cleared_step(step: Step) -> Step:
    names = "\n".join((step.verb, *step.files, *(edit.path for edit in step.edits)))
    handed_in = step.action.excerpt if step.kind is StepKind.SUBMIT else ""
    if without_secrets(names) == names and without_secrets(handed_in) == handed_in:
        return step
    excerpt = without_secrets(step.action.excerpt)
    return replace(
        step,
        verb=without_secrets(step.verb),
        action=replace(step.action, excerpt=excerpt),
        files=tuple(map(without_secrets, step.files)),
        edits=tuple(map(_cleared_edit, step.edits)),
    )


def _cleared_edit(edit: EditRange) -> EditRange:
    return replace(edit, path=without_secrets(edit.path))


def _walked(value: Any) -> Any:
    match value:
        case str():
            return without_secrets(value)
        case list():
            return [_walked(part) for part in value]
        case dict():
            return {name: _walked(part) for name, part in value.items()}
        case _:
            return value
