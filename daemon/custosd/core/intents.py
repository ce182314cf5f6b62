"""What agents say they are going to do, so that another one is told before it begins.

Laws:

1. Two intents are in each other's way in one repository where a file of one is a file of the
   other, or lies below a folder of it (a path that ends in a slash); or where the goals are
   the same words.
2. A claim is a lease: it ends by itself, and who holds it is told to whoever asks for it.
3. A claim forbids nothing: nobody is kept from writing by it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError
from custosd.core.goals import words_of
from custosd.core.transcript import digest_of

MOST_FILES = 200
LONGEST_PATH = 500
LONGEST_GOAL = 1_000
LONGEST_TTL_S = 86_400.0
_LONGEST_NAME = 300


class RefusedIntent(CustosdError):
    """An intent that says nothing, or too much; the message says what."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What an agent is going to do: to which files of a repository, to what end.

    `files` are paths in the repository; one that ends in "/" is all that lies below. `repository`
    is any name that those who share it use alike, "" where there is only one.
    """

    agent: AgentId
    goal: str = ""
    files: tuple[str, ...] = ()
    repository: str = ""

    @property
    def id(self) -> str:
        """The claim that it would be: the same for the same intent."""
        parts = (self.agent, self.repository, self.goal, *sorted(self.files))
        return digest_of("\x1f".join(parts))[:12]


@dataclass(frozen=True, slots=True)
class Claim:
    """An intent that was leased, until it runs out."""

    id: str
    intent: Intent
    taken_utc: datetime
    expires_utc: datetime


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """The claim, or those of others that are in its way (then `claim` is None)."""

    claim: Claim | None
    held: tuple[Claim, ...] = ()


def checked_intent(intent: Intent, ttl_s: float) -> Intent:
    """The intent in its normal form; raises `RefusedIntent`."""
    files = tuple(dict.fromkeys(path.removeprefix("./") for path in intent.files))
    words = (
        "it has no agent" if not intent.agent
        else "it names neither files nor a goal" if not (files or intent.goal.strip())
        else f"it names more than {MOST_FILES} files" if len(files) > MOST_FILES
        else f"a path is empty, or longer than {LONGEST_PATH}"
        if not all(0 < len(path) <= LONGEST_PATH for path in files)
        else f"its goal is longer than {LONGEST_GOAL}" if len(intent.goal) > LONGEST_GOAL
        else "a name is too long"
        if max(len(intent.agent), len(intent.repository)) > _LONGEST_NAME
        else f"a claim lasts more than 0 and at most {LONGEST_TTL_S:g} s"
        if not 0 < ttl_s <= LONGEST_TTL_S
        else ""
    )  # fmt: skip
    if words:
        raise RefusedIntent(f"this intent cannot be claimed: {words}")
    return Intent(intent.agent, intent.goal.strip(), files, intent.repository)


def in_the_way(intent: Intent, claims: Iterable[Claim], now_utc: datetime) -> tuple[Claim, ...]:
    """Claims of other agents that last and that this intent would run into."""
    return tuple(
        claim
        for claim in claims
        if claim.intent.agent != intent.agent
        and now_utc < claim.expires_utc
        and meet(intent, claim.intent)
    )


def meet(one: Intent, other: Intent) -> bool:
    """Whether two intents are in each other's way."""
    if one.repository != other.repository:
        return False
    if any(_covers(a, b) or _covers(b, a) for a in one.files for b in other.files):
        return True
    goal = words_of(one.goal)
    return bool(goal) and goal == words_of(other.goal)


def _covers(path: str, other: str) -> bool:
    return path == other or (path.endswith("/") and other.startswith(path))
