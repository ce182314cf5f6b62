"""The canaries of a drill: what each of them does, and what must come of it."""

from dataclasses import dataclass
from enum import StrEnum

from custosd.core.evidence import Condition


class Fate(StrEnum):
    """What must happen to a canary."""

    UNTOUCHED = "untouched"
    RESTARTED = "restarted"
    FLOODED = "flooded"
    ESCALATED = "escalated"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary. `harm` says in words what it does.

    `enrolled`: it beats and has a control; otherwise it only has a transcript. `condition` is
    what must be held of one that is restarted. `hang_after_s` None: as for all agents.
    """

    name: str
    harm: str
    fate: Fate
    enrolled: bool = True
    condition: Condition = Condition.ALIVE
    hang_after_s: float | None = None


CANARIES = {
    canary.name: canary
    for canary in (
        Canary("healthy", "works and beats", Fate.UNTOUCHED),
        Canary("crash", "ends with an error", Fate.RESTARTED, condition=Condition.DEAD),
        Canary("killed", "is killed", Fate.RESTARTED, condition=Condition.DEAD),
        Canary(
            "hang",
            "is frozen",
            Fate.RESTARTED,
            condition=Condition.HUNG,
            hang_after_s=10.0,
        ),
        Canary(
            "lie",
            "beats and does not work",
            Fate.RESTARTED,
            condition=Condition.HUNG,
            hang_after_s=10.0,
        ),
        Canary("memory", "runs out of memory", Fate.RESTARTED, condition=Condition.DEAD),
        Canary("flood", "sends far too many beats", Fate.FLOODED),
        Canary("loop", "repeats one failing step", Fate.ESCALATED, enrolled=False),
        Canary("injection", "orders its supervisor about", Fate.IGNORED, enrolled=False),
    )
}
"""All canaries, by name."""

OUT_OF_MEMORY_CODE = 71
"""With this a canary ends that could not get any more memory; its hook knows it for that."""

BEAT_S = 1.0
"""How often canaries beat."""

HARM_AFTER_S = 3.0
"""How long a canary works before it does its harm."""

FLOOD_S = 3.0
