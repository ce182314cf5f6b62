"""What is to be said of one life: its numbers, where they come from, and what comes next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from custosd.core.agents import AgentState
from custosd.core.appointments import listens, look_at, next_rung_at, rung_at
from custosd.core.beats import WaitKind
from custosd.core.evidence import Health
from custosd.core.explanations import LifeExplained, Outlook
from custosd.core.ladder import (
    DEGRADE,
    SUSPECT,
    WARN,
    Deadline,
    LivenessLimits,
    deadline,
    interval_of,
)
from custosd.core.ledger import NEVER, Ledger

_NO_DEADLINE = Deadline(0.0, "", 0.0)

_RUNGS = {WARN: "a beat is missed", DEGRADE: "degraded", SUSPECT: "suspected"}


@dataclass(frozen=True, slots=True)
class LifeAccount(LifeExplained):
    """What is held of a life, with every number that went into it. Spans are seconds.

    `heard_ago_s` None: never in this incarnation. `interval_key` "": the agent declares it.
    `misses` are rungs already told; `next_rung` 0: none is to come, `next_rung_in_s` is when
    it comes if the silence lasts. `wait_left_s` and `grace_left_s` are 0 where there is none;
    `worked_ago_s` is when work was last seen, by anything but the agent's word.
    """

    heard_ago_s: float | None = None
    interval_s: float = 0.0
    interval_key: str = ""
    misses: int = 0
    deadline: Deadline = _NO_DEADLINE
    next_rung: int = 0
    next_rung_in_s: float | None = None
    wait_kind: WaitKind | None = None
    wait_left_s: float = 0.0
    grace_left_s: float = 0.0
    worked_ago_s: float | None = None
    slowness: float = 1.0


def account(
    life: Ledger,
    state: AgentState,
    health: Health,
    limits: LivenessLimits,
    slowness: float,
    now: float,
) -> LifeAccount:
    """The account of one life as it stands now."""
    interval_s, interval_key = interval_of(
        life.status, life.declared_s, life.watched.interval_s, limits
    )
    usual_s = 0.0 if life.gaps is None else life.gaps.usual_s
    decided = deadline(interval_s, usual_s, limits)
    climbs = listens(life) and life.rung < SUSPECT
    rung_in_s = max(0.0, next_rung_at(life, limits, now, slowness) - now)
    heard = life.heard_at > NEVER
    keys = [key for key in (interval_key, "liveness.margin", decided.key) if key]
    if not heard and life.quiet_from > now:
        keys.append("liveness.startup_grace")
    if life.works_now():
        keys.append("liveness.hang_after")
    return LifeAccount(
        life.epoch,
        state,
        health,
        tuple(dict.fromkeys(keys)),
        tuple(_outlooks(life, limits, slowness, now, tuple(dict.fromkeys(keys[:3])))),
        heard_ago_s=now - life.heard_at if heard else None,
        interval_s=interval_s,
        interval_key=interval_key,
        misses=life.rung,
        deadline=decided,
        next_rung=life.rung + 1 if climbs else 0,
        next_rung_in_s=rung_in_s if climbs else None,
        wait_kind=life.wait_kind,
        wait_left_s=max(0.0, life.wait_until - now),
        grace_left_s=max(0.0, life.quiet_from - max(now, life.wait_until)),
        worked_ago_s=now - life.worked_at if life.worked_at > NEVER else None,
        slowness=slowness,
    )


def _outlooks(
    life: Ledger, limits: LivenessLimits, slowness: float, now: float, keys: tuple[str, ...]
) -> Iterator[Outlook]:
    if life.wait_until > now:
        yield Outlook("its declared wait ends", life.wait_until - now, "a beat says more")
    if listens(life) and life.rung < SUSPECT:
        for rung in range(life.rung + 1, SUSPECT + 1):
            in_s = max(0.0, rung_at(life, rung, limits, slowness) - now)
            yield Outlook(_RUNGS[rung], in_s, "a beat comes", keys)
    next_look_at = look_at(life, limits, slowness)
    if next_look_at < math.inf:
        look_keys = ("liveness.probe_timeout",)
        unless = "it is heard" if life.ended else "work is seen"
        yield Outlook("looked at", max(0.0, next_look_at - now), unless, look_keys)
    if life.works_now() and not life.ended and len(life.looks) + bool(life.claim) > 1:
        at = max(life.worked_at, life.rested_at) + life.hang_s(limits)
        unless = "work is seen, or its sources do not agree"
        yield Outlook("hung", max(0.0, at - now), unless, ("liveness.hang_after",))
