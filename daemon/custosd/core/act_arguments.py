"""What a request for an act says beside its subject: read once, or refused with the reason.

Law: an argument that the act does not know is refused, and so is an end that is none: a
misspelt limit must not mean no limit.
"""

from datetime import datetime, timedelta

from custosd.core.acts import Act, ActRequest
from custosd.core.changes import in_words
from custosd.core.errors import CustosdError
from custosd.core.verdicts import SteeringKind

LONGEST_HOLD_S = 30 * 86_400.0
"""The longest that a hold with an end may last: whoever wants more says so again."""

LONGEST_REASON = 500

LONGEST_WAIT_S = 20.0
"""How long an answer may wait for what was asked for to arrive."""

SHORTEST_DEADLINE_S = 1.0
LONGEST_DEADLINE_S = 300.0
DEADLINE_S = 60.0
"""How long an emergency or a cycle may take, where nothing else is said."""

_MOST_SECONDS = 1e12


class RefusedAct(CustosdError):
    """The request makes no sense, or may not be done; the message says why."""


def check(request: ActRequest, known: frozenset[str]) -> None:
    """Raise `RefusedAct` for a request that nobody made, or with an argument unknown to it."""
    if not request.author:
        raise RefusedAct("it is not known who asks")
    if unknown := request.arguments.keys() - known:
        knows = ", ".join(sorted(known)) or "none"
        raise RefusedAct(f"{request.act.value} has no argument {min(unknown)!r}; it has: {knows}")
    if len(reason_of(request)) > LONGEST_REASON:
        raise RefusedAct(f"a reason has at most {LONGEST_REASON} characters")


def reason_of(request: ActRequest) -> str:
    """Why a person wants it, on one line; "" where nothing was said. Never a steering text."""
    given = request.arguments.get("reason", "")
    if request.act is not Act.STEER and not given:
        given = request.text
    return " ".join(str(given).split())


def kind_of_message(request: ActRequest) -> SteeringKind:
    """How strongly an agent is to be told; raises `RefusedAct`."""
    given = request.arguments.get("kind", SteeringKind.GUIDANCE.value)
    try:
        return SteeringKind(str(given))
    except ValueError:
        kinds = ", ".join(kind.value for kind in SteeringKind)
        raise RefusedAct(f"a message is one of {kinds}, not {given!r}") from None


def end_of(request: ActRequest, now_utc: datetime) -> datetime | None:
    """When a hold ends; None: nothing was said. Raises `RefusedAct`."""
    for_s, until = request.arguments.get("for_s"), request.arguments.get("until")
    if for_s is not None and until is not None:
        raise RefusedAct("an end is given by `for_s` or by `until`, not by both")
    if for_s is not None:
        return _checked_end(_seconds(for_s), now_utc)
    if until is None:
        return None
    try:
        given = datetime.fromisoformat(str(until))
    except ValueError:
        raise RefusedAct(f"{until!r} is no time; give one as 2026-01-31T18:00:00Z") from None
    if given.utcoffset() is None:
        raise RefusedAct(f"{until!r} does not say in which zone; end it in Z for UTC")
    return _checked_end((given - now_utc).total_seconds(), now_utc)


def wait_of(request: ActRequest) -> float:
    """How long the answer waits for the delivery, seconds; raises `RefusedAct`."""
    wait_s = _seconds(request.arguments.get("wait_s", 0.0))
    if not 0 <= wait_s <= LONGEST_WAIT_S:
        raise RefusedAct(f"an answer waits at most {LONGEST_WAIT_S:g} s")
    return wait_s


def deadline_of(request: ActRequest) -> float:
    """How long the work may take, seconds; raises `RefusedAct`."""
    deadline_s = _seconds(request.arguments.get("deadline_s", DEADLINE_S))
    if not SHORTEST_DEADLINE_S <= deadline_s <= LONGEST_DEADLINE_S:
        raise RefusedAct(f"a deadline is {SHORTEST_DEADLINE_S:g} to {LONGEST_DEADLINE_S:g} s")
    return deadline_s


def _seconds(given: object) -> float:
    # A truth value is a whole number to Python.
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise RefusedAct(f"{given!r} is no number of seconds")
    # A whole number may be too great for a float, and even to be written out.
    if not -_MOST_SECONDS <= given <= _MOST_SECONDS:
        raise RefusedAct(f"a number of seconds is at most {_MOST_SECONDS:g}")
    return float(given)


def _checked_end(left_s: float, now_utc: datetime) -> datetime:
    if not 0 < left_s <= LONGEST_HOLD_S:
        raise RefusedAct(f"an end lies ahead, at most {in_words(LONGEST_HOLD_S)}")
    return now_utc + timedelta(seconds=left_s)
