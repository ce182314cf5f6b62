"""What the actors say of their next step with an agent, as outlooks for `forecast`."""

from collections.abc import Sequence
from datetime import datetime

from custosd.core.explanations import Outlook
from custosd.core.restart_policy import Forecast, Move
from custosd.core.steering import Intervention, InterventionState
from custosd.core.steering_policy import Clearance


def outlooks_of_restart(told: Forecast) -> tuple[Outlook, ...]:
    """What the restarter will do; where the agent is well, what it would if it died now."""
    if told.move is Move.NOTHING:
        return ()
    if_so = "if it died now: " if told.supposing else ""
    keys = (told.setting,) if told.setting else ()
    number = told.restarts_in_a_row + 1
    restart = f"restart {number} in a row, {told.before_quarantine} left before quarantine"
    why = told.why.replace("_", " ")
    what = {
        Move.RESTART: restart,
        Move.WAIT: f"{restart}; it waits for {why}",
        Move.WITHHOLD: f"no restart: {why}",
        Move.QUARANTINE: f"quarantine: {why}",
        Move.ESCALATE: f"a person is asked: {why}",
    }[told.move]
    return (Outlook(if_so + what, told.in_s, told.unless, keys),)


def outlooks_of_letters(
    letters: Sequence[tuple[Intervention, Clearance]], now_utc: datetime
) -> tuple[Outlook, ...]:
    """When each message that has not gone yet goes, or runs out."""
    outlooks = []
    for letter, clearance in letters:
        left_s = (letter.expires_utc - now_utc).total_seconds()
        waits = f"it no longer waits ({clearance.why.replace('_', ' ')})"
        if letter.state is InterventionState.PROPOSED:
            unless = "a person approves it"
            outlooks.append(Outlook(f"message {letter.id} runs out", left_s, unless))
        elif letter.state is not InterventionState.QUEUED:
            continue
        elif clearance.why and clearance.until_utc is None:
            outlooks.append(Outlook(f"message {letter.id} runs out", left_s, waits))
        else:
            until = clearance.until_utc if clearance.why else None
            in_s = 0.0 if until is None else max(0.0, (until - now_utc).total_seconds())
            because = f" ({clearance.why.replace('_', ' ')} over)" if clearance.why else ""
            outlooks.append(Outlook(f"message {letter.id} is sent{because}", in_s))
    return tuple(outlooks)
