"""What a model's judgement may change of what the rules say: it can accuse or ask, never excuse.

A model reads what an agent wrote, and an agent may write anything. So its answer is taken
as a witness's, not as a judge's. Laws:

1. What the rules accuse of stands, by an alarm or without: no model talks it away, weakens it,
   or puts another accusation in its place.
2. Standings that are read off the transcript (waiting, done, stopped, silent, idle) are the
   rules' to give; a model's word for one that the rules do not see comes to "unknown". Where
   the rules see one, a model may make less of it (done to untested), not more.
3. An emergency is steered without a second opinion. A model alone cannot make one: without
   an alarm it comes to a correction, which needs agreement.
   So is that two agents do the same: a model is shown one.
4. A message is a proposal: cleaned and bounded as a person's would be. One that is not plain
   advice by `custosd.core.advice` (no name but of the agent's own files, no command, no rule
   lifted), or that only repeats what the data say, is not passed on: the agent is told
   in our own words instead. A summary that repeats them is left out, for it may be handed on
   to who comes next.
5. How well the work serves the goal is the model's to say, but nobody stands in an alarm and
   is well aligned.
6. Nothing here can approve, lift, raise a budget or change a mode: a judgement has no word
   for it.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from custosd.core.advice import is_advice
from custosd.core.rules import judge_by_rules
from custosd.core.signals import Signal, SignalKind
from custosd.core.steering import clean_message
from custosd.core.trajectory import TrajectoryDigest
from custosd.core.verdicts import Judgement, Standing, SteeringKind, SteeringReason

READ_OFF = frozenset(
    {
        Standing.WAITING,
        Standing.IDLE,
        Standing.SILENT,
        Standing.DONE,
        Standing.DONE_UNTESTED,
        Standing.STOPPED,
    }
)
"""Standings that a transcript shows by itself."""

ACCUSING = frozenset({Standing.STUCK, Standing.DRIFTING, Standing.DUPLICATING})

OWN_WORDS = {
    SteeringReason.STUCK: "This does not get on. Say what is missing, then try another way.",
    SteeringReason.DRIFTING: "Go back to what was asked, or say why this is needed for it.",
    SteeringReason.VIOLATING_CONSTRAINTS: "Keep to the constraints that were set, or ask first.",
    SteeringReason.OVER_ENGINEERING: "Do what was asked for, and leave out what was not.",
    SteeringReason.CONFUSED: "Say what you are to do and what you know, before the next step.",
    SteeringReason.IDLE: "Say whether the task is done; if not, go on with its next step.",
}
"""What is told where a model's own words are not passed on."""

MOST_ALIGNED = 0.5
"""Of whom the rules accuse."""

LONGEST_ADVICE = 800
LONGEST_SUMMARY = 600
LONGEST_FOCUS = 200
LONGEST_GOAL = 1_000


def narrowed(
    said: Judgement,
    digest: TrajectoryDigest,
    signals: Sequence[Signal],
    quiet_s: float,
    told: str = "",
) -> Judgement:
    """A model's judgement, as far as it may count beside what the rules see.

    `told` is what the model was shown of others' words. One that says "unknown" hides nothing
    that the rules do see.
    """
    said = _cleaned(said, _bare(_unescaped(told)), digest.written)
    rules = judge_by_rules(digest, signals, quiet_s)
    if rules.needs_steering or rules.standing in ACCUSING:
        return replace(rules, alignment=_at_most(said.alignment))
    if rules.standing in READ_OFF:
        return _beside_read_off(said, rules)
    duplicating = any(signal.kind is SignalKind.DUPLICATING for signal in signals)
    if said.standing in READ_OFF or (said.standing is Standing.DUPLICATING and not duplicating):
        return _unknown(said, "unsupported_standing")
    if said.steering_kind is SteeringKind.EMERGENCY:
        # An alarm would have been the rules' to steer by, above.
        return replace(said, steering_kind=SteeringKind.CORRECTION)
    return said


def _beside_read_off(said: Judgement, rules: Judgement) -> Judgement:
    """The rules' standing with the model's words; a claim of being done may be doubted."""
    doubts = (rules.standing, said.standing) == (Standing.DONE, Standing.DONE_UNTESTED)
    if rules.standing is Standing.IDLE and said.needs_steering:
        # Who rests may be woken; with anybody else there is nothing to be said to.
        rules = replace(
            rules,
            needs_steering=True,
            steering_kind=SteeringKind.GUIDANCE,
            steering_reason=said.steering_reason,
            message=said.message,
        )
    return replace(
        rules,
        standing=said.standing if doubts else rules.standing,
        alignment=said.alignment,
        summary=said.summary or rules.summary,
        focus=said.focus or rules.focus,
        goal=said.goal or rules.goal,
        evidence=said.evidence or rules.evidence,
    )


def _unknown(said: Judgement, reason: str) -> Judgement:
    return Judgement(
        Standing.UNKNOWN,
        said.phase,
        alignment=said.alignment,
        summary=said.summary,
        focus=said.focus,
        goal=said.goal,
        evidence=said.evidence,
        unknown_reason=reason,
    )


def repeats(text: str, told: str) -> bool:
    """Whether a text says again what somebody else's says, and not only speaks of it.

    That is a whole line or sentence of it, or some forty letters in a row; the names of files
    do not count.
    """
    return _repeats(text, _bare(_unescaped(told)))


_SENTENCE_ENDS = re.compile(r"(?<=[.!?;:。！？；।؟])\s*|\n+")  # noqa: RUF001 - theirs
_NAME = re.compile(r"\S*[/_\\]\S*|\b\w+\.\w{1,5}\b")
# The fillers count as letters, and are not seen.
_NOT_A_LETTER = re.compile(r"[\W_\u115f\u1160]+")
_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")
_SHORTEST_REPEATED = 10
_RUN = 32
_STRIDE = 8
"""A run of 40 letters holds one of 32 that begins at a multiple of 8."""


def _repeats(text: str, told: str) -> bool:
    """As `repeats`; `told` is bare already."""
    text = _unescaped(text)
    pieces = list(map(_bare, _SENTENCE_ENDS.split(text)))
    # Also two in a row: "So: standing: done" has no piece that is long enough by itself.
    sentences = [_bare(text), *pieces, *map("".join, pairwise(pieces))]
    if any(len(one) >= _SHORTEST_REPEATED and one in told for one in sentences):
        return True
    words = _bare(_NAME.sub(" ", text))
    return any(words[at : at + _RUN] in told for at in range(0, len(words) - _RUN + 1, _STRIDE))


def _bare(text: str) -> str:
    """Only letters and digits, in one case, without what cannot be seen."""
    return _NOT_A_LETTER.sub("", unicodedata.normalize("NFKC", text).casefold())


def _unescaped(text: str) -> str:
    """The text of a JSON record without its escapes: a model reads through them."""

    def plain(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else " "

    text = _ESCAPE.sub(plain, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _at_most(alignment: float | None) -> float | None:
    return None if alignment is None else min(alignment, MOST_ALIGNED)


def _cleaned(said: Judgement, told: str, written: Sequence[str]) -> Judgement:
    """Without what cannot be seen; a steering without a message, kind or reason is none."""
    message = clean_message(said.message, LONGEST_ADVICE)
    summary = clean_message(said.summary, LONGEST_SUMMARY)
    if said.steering_reason and not (is_advice(message, written) and not _repeats(message, told)):
        message = OWN_WORDS[said.steering_reason]
    whole = bool(said.needs_steering and message and said.steering_kind and said.steering_reason)
    return replace(
        said,
        needs_steering=whole,
        steering_kind=said.steering_kind if whole else None,
        steering_reason=said.steering_reason if whole else None,
        message=message if whole else "",
        # One without a letter tells nobody anything but how to read dots and dashes.
        summary="" if _repeats(summary, told) or not _bare(summary) else summary,
        focus=clean_message(said.focus, LONGEST_FOCUS),
        goal=clean_message(said.goal, LONGEST_GOAL),
    )
