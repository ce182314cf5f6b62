"""What comes next for one life: the next rung of its silence, and the next look at it.

Law: nothing is due again at the moment at which it was done; whoever keeps the deadlines
does not turn in a circle.
"""

import math

from custosd.core.beats import BeatStatus
from custosd.core.evidence import Source
from custosd.core.ladder import DEGRADE, SUSPECT, LivenessLimits, rung_s
from custosd.core.ledger import LOOK_AGAIN_S, LOOK_FRESH_S, NEVER, PRESENCE, Ledger

ATTEND_S = 60.0
"""How often a process is looked at whose end, or whose new start, nobody would tell of."""

FIRST_LOOK_S = 2.0
"""How soon after its start an agent is looked at for the first time."""

AT_ONCE_S = 1.0
"""The least time between two looks."""


def listens(life: Ledger) -> bool:
    """Whether its silence counts at all."""
    return life.watched.beats and not life.ended and not life.restarting


def rung_at(life: Ledger, rung: int, limits: LivenessLimits, slowness: float = 1.0) -> float:
    """When its silence reaches a rung, if it lasts."""
    usual_s = 0.0 if life.gaps is None else life.gaps.usual_s
    silent_s = rung_s(rung, life.interval_s(limits), usual_s, limits)
    return life.quiet_from + silent_s * slowness


def next_rung_at(life: Ledger, limits: LivenessLimits, now: float, slowness: float = 1.0) -> float:
    """When its silence next means something: a rung, or the end of an amnesty; inf if never."""
    if not listens(life):
        return math.inf
    if life.rung < SUSPECT:
        return rung_at(life, life.rung + 1, limits, slowness)
    excused_until = rung_at(life, SUSPECT, limits)
    return excused_until if excused_until > now else math.inf


def turn_at(life: Ledger, limits: LivenessLimits, now: float) -> float:
    """When what was seen begins to count by the passing of time alone; inf if never.

    That a process stands stopped counts once the work that was seen before it is too old.
    """
    look = life.looks.get(Source.PROCESS)
    if look is None or look.stopped_since is None:
        return math.inf
    at = life.worked_at + life.suspect_s(limits)
    return at if at > now else math.inf


def look_at(life: Ledger, limits: LivenessLimits, slowness: float = 1.0) -> float:
    """When it should be looked at next; inf where it need not be, or there is no way."""
    looks = life.watched.sources - {Source.BEAT}
    if not looks or life.restarting or life.looking_since is not None:
        return math.inf
    pause_s = _pause_s(life, looks)
    if pause_s < math.inf:
        return max(life.looked_at + pause_s, life.began_at + FIRST_LOOK_S)
    if life.ended or not (life.works_now() or not life.watched.beats):
        return math.inf
    step_s = life.hang_s(limits) / 2 * slowness
    first_at = max(life.worked_at, life.rested_at) + step_s
    if life.looked_at < first_at:
        return first_at
    # Nobody is late: an answer that comes a quarter of the step later is soon enough.
    return life.looked_at + max(AT_ONCE_S, min(step_s, max(LOOK_AGAIN_S, step_s / 4)))


def _pause_s(life: Ledger, looks: frozenset[Source]) -> float:  # noqa: PLR0911 - cases in order, the first counts
    """How long after the last look it is looked at anyhow; inf: as its work demands."""
    if life.ended and life.gone is not None and life.protests:
        return LOOK_AGAIN_S
    if life.ended:
        # A person may start it again; whether it beats then is another question.
        return ATTEND_S if looks & PRESENCE else math.inf
    if life.rung >= SUSPECT and life.looked_at < life.suspect_at:
        return AT_ONCE_S
    if life.gone is not None or life.rung >= DEGRADE:
        return LOOK_AGAIN_S
    if life.looked_at == NEVER:
        return AT_ONCE_S
    if not life.watched.beats:
        return LOOK_AGAIN_S if life.works_now() else LOOK_FRESH_S / 2
    if looks & PRESENCE and not life.attended:
        # Found once, it is watched; where it can not be found, looking often does not help.
        return ATTEND_S
    if life.status is BeatStatus.STOPPING:
        return LOOK_AGAIN_S
    return math.inf
