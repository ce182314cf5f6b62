"""The loop rules of other agents, each written anew from its description.

A rule looks at a run's steps and says at which step number it first fires, or None.
They compare for exact equality, as their makers do: they are the floor.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import pairwise

from custosd.core.transcript import Result, Step, StepKind

Rule = Callable[[Sequence[Step]], int | None]

FAILED = frozenset({Result.ERROR, Result.REJECTED})


def pair(step: Step) -> tuple[str, str]:
    return step.action.digest, step.observation.digest


def same_pairs(steps: Sequence[Step], times: int = 4) -> int | None:
    """OpenHands 1: the last four actions are equal, and so are their observations."""
    for i in range(times - 1, len(steps)):
        if len({pair(step) for step in steps[i - times + 1 : i + 1]}) == 1:
            return i
    return None


def same_action_errors(steps: Sequence[Step]) -> int | None:
    """OpenHands 2: the last three actions are equal and all of them failed."""
    for i in range(2, len(steps)):
        last = steps[i - 2 : i + 1]
        if len({s.action.digest for s in last}) == 1 and all(s.result in FAILED for s in last):
            return i
    return None


def two_in_turn(steps: Sequence[Step]) -> int | None:
    """OpenHands 4: the last six actions and observations alternate A B A B A B."""
    for i in range(5, len(steps)):
        last = [pair(step) for step in steps[i - 5 : i + 1]]
        if last[0] != last[1] and last == last[:2] * 3:
            return i
    return None


def first_of(*rules: Rule) -> Rule:
    def rule(steps: Sequence[Step]) -> int | None:
        return min((at for r in rules if (at := r(steps)) is not None), default=None)

    return rule


def gemini_cycle(steps: Sequence[Step]) -> int | None:
    """Gemini CLI: among the last 25 calls a cycle of 1 to 5 calls came five times in a row."""
    calls = [step.action.digest for step in steps]
    for i in range(len(calls)):
        recent = calls[max(0, i - 24) : i + 1]
        for length in range(1, 6):
            if len(recent) >= 5 * length and recent[-5 * length :] == recent[-length:] * 5:
                return i
    return None


def same_call(times: int) -> Rule:
    """The same call with the same arguments, `times` in a row."""

    def rule(steps: Sequence[Step]) -> int | None:
        row = 1
        for i, (before, step) in enumerate(pairwise(steps), start=1):
            row = row + 1 if before.action.digest == step.action.digest else 1
            if row >= times:
                return i
        return None

    return rule


def crush(steps: Sequence[Step]) -> int | None:
    """Crush: one call with one output came more than five times within ten steps."""
    recent: deque[tuple[str, str]] = deque(maxlen=10)
    for i, step in enumerate(steps):
        recent.append(pair(step))
        if Counter(recent)[pair(step)] > 5:
            return i
    return None


def reflexion(steps: Sequence[Step]) -> int | None:
    """Reflexion: the same action twice in a row, or 49 steps."""
    twice = same_call(2)(steps)
    return 48 if twice is None and len(steps) >= 49 else twice


def errors_in_a_row(steps: Sequence[Step], times: int = 3) -> int | None:
    """Cline's and SWE-agent's mistake limit: three failures in a row."""
    row = 0
    for i, step in enumerate(steps):
        row = row + 1 if step.result in FAILED else 0
        if row >= times:
            return i
    return None


def format_errors(steps: Sequence[Step]) -> int | None:
    """SWE-agent and mini-swe-agent: three malformed calls in a row."""
    row = 0
    for i, step in enumerate(steps):
        row = row + 1 if step.error == "tool_misuse" else 0
        if row >= 3:
            return i
    return None


def step_limit(limit: int) -> Rule:
    """A plain limit on steps: what any detector has to beat."""
    return lambda steps: limit - 1 if len(steps) >= limit else None


def stale_pair(times: int) -> Rule:
    """The floor's own rule: an action with its normalised observation, seen before, apart."""

    def rule(steps: Sequence[Step]) -> int | None:
        seen: dict[tuple[str, str], list[int]] = {}
        for i, step in enumerate(steps):
            at = seen.setdefault((step.action.digest, step.observation.loose_digest), [])
            if not at or i - at[-1] > 1 or times > 2:
                at.append(i)
                if len(at) >= times:
                    return i
            else:
                at[-1] = i
        return None

    return rule


def created_again(steps: Sequence[Step]) -> int | None:
    """A file that was created before is created anew."""
    seen: set[str] = set()
    for i, step in enumerate(steps):
        for edit in step.edits:
            if edit.created and edit.path in seen:
                return i
            if edit.created:
                seen.add(edit.path)
    return None


OPENHANDS = first_of(same_pairs, same_action_errors, two_in_turn)
RULES: dict[str, Rule] = {
    "OpenHands, any": OPENHANDS,
    "OpenHands 1 and 4": first_of(same_pairs, two_in_turn),
    "Gemini cycle x5": gemini_cycle,
    "Roo same call x4": same_call(4),
    "opencode, Cline soft x3": same_call(3),
    "Cline hard x5": same_call(5),
    "Crush": crush,
    "Reflexion same x2": reflexion,
    "three errors in a row": errors_in_a_row,
    "three malformed calls": format_errors,
    "stale pair x2 (floor)": stale_pair(2),
    "stale pair x3 (floor)": stale_pair(3),
}

LOOKS = frozenset({StepKind.READ, StepKind.SEARCH, StepKind.BROWSE})
