"""What agents say they are going to do, so that another one is told before it begins.

Laws:

1. Two intents are in each other's way in one repository where a path of one is a path of the
   other, or lies below it: what has files below it is a folder, with a slash at its end or
   without; or where the goals are the same words.
2. Whether they are is a question about two sets, what one leaves and what the other looks
   for: so it costs what one intent is large, however many claims there are, where whoever
   keeps them has an index of the marks.
3. A path is what it leads to: slashes too many, dots and the forms of one Unicode text make
   no other path of it.
4. A claim is a lease: it ends by itself, and who holds it is told to whoever asks for it. An
   agent has a bounded number of them.
5. A claim forbids nothing: nobody is kept from writing by it.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from custosd.core.agents import AgentId
from custosd.core.errors import CustosdError
from custosd.core.goals import words_of
from custosd.core.transcript import digest_of

MOST_FILES = 200
LONGEST_PATH = 500
DEEPEST_PATH = 40
MOST_PATH_CHARS = 20_000
LONGEST_GOAL = 1_000
LONGEST_TTL_S = 86_400.0

CLAIMS_PER_AGENT = 20
"""How many claims of one agent last at the same time at most, where nothing else is said."""

MOST_HELD_TOLD = 20
"""Of how many claims that are in its way a taker is told: the oldest."""

_LONGEST_NAME = 300


class RefusedIntent(CustosdError):
    """An intent that says nothing, or too much; the message says what."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What an agent is going to do: to which files of a repository, to what end.

    `files` are paths in the repository; what lies below one belongs to it. `repository`
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
    """The claim, or (`claim` None) why there is none.

    `held` are those of others that are in its way, the oldest `MOST_HELD_TOLD`; without any, the
    agent has as many claims as it may.
    """

    claim: Claim | None
    held: tuple[Claim, ...] = ()


def checked_intent(intent: Intent, ttl_s: float) -> Intent:
    """The intent in its normal form; raises `RefusedIntent`."""
    if words := _too_much(intent, ttl_s):
        raise RefusedIntent(f"this intent cannot be claimed: {words}")
    files = tuple(dict.fromkeys(map(normal_path, intent.files)))
    words = (
        "a path is empty, names the whole repository, or leads out of it" if "" in files
        else f"a path is more than {DEEPEST_PATH} folders deep"
        if any(path.count("/") > DEEPEST_PATH for path in files)
        else "it names neither files nor a goal" if not (files or intent.goal.strip())
        else ""
    )  # fmt: skip
    if words:
        raise RefusedIntent(f"this intent cannot be claimed: {words}")
    return Intent(intent.agent, intent.goal.strip(), files, intent.repository)


def _too_much(intent: Intent, ttl_s: float) -> str:
    lengths = [len(path) for path in intent.files]
    return (
        "it has no agent" if not intent.agent
        else f"it names more than {MOST_FILES} files" if len(lengths) > MOST_FILES
        else f"a path is longer than {LONGEST_PATH}" if max(lengths, default=0) > LONGEST_PATH
        else f"its paths have more than {MOST_PATH_CHARS} characters"
        if sum(lengths) > MOST_PATH_CHARS
        else f"its goal is longer than {LONGEST_GOAL}" if len(intent.goal) > LONGEST_GOAL
        else "a name is too long"
        if max(len(intent.agent), len(intent.repository)) > _LONGEST_NAME
        else f"a claim lasts more than 0 and at most {LONGEST_TTL_S:g} s"
        if not 0 < ttl_s <= LONGEST_TTL_S
        else ""
    )  # fmt: skip


def normal_path(path: str) -> str:
    """The path without what leads nowhere, in composed Unicode; "" for none, or one too far up.

    A folder ends in one slash; a path from the root of the machine keeps its first.
    """
    path = unicodedata.normalize("NFC", path)
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            if not names:
                return ""
            names.pop()
        elif name not in {"", "."}:
            names.append(name)
    if not names:
        return ""
    first = "/" if path.startswith("/") else ""
    last = "/" if path.endswith(("/", "/.", "/..")) else ""
    return f"{first}{'/'.join(names)}{last}"


def marks_of(intent: Intent) -> frozenset[int]:
    """What a claim of this leaves for others to find: 64 bits each, with a sign.

    Of an intent that was checked at most a few thousand, of a usual one two for each file.
    """
    found: set[str] = set()
    for name in _places(intent):
        found.add(_AT + name)
        found.update(_ABOVE + folder for folder in _folders(name))
    return _digests(intent, found)


def sought_by(intent: Intent) -> frozenset[int]:
    """The marks of another's claim that are in this one's way: one of them suffices."""
    found: set[str] = set()
    for name in _places(intent):
        found.update((_AT + name, _ABOVE + name))
        found.update(_AT + folder for folder in _folders(name))
    return _digests(intent, found)


_AT, _ABOVE, _GOAL = "=", "<", "~"


def _places(intent: Intent) -> Iterator[str]:
    for path in map(normal_path, intent.files):
        if path:
            yield path.removesuffix("/")


def _folders(name: str) -> Iterator[str]:
    end = name.find("/", 1)
    while end > 0:
        yield name[:end]
        end = name.find("/", end + 1)


def _digests(intent: Intent, found: set[str]) -> frozenset[int]:
    if goal := words_of(intent.goal):
        found.add(_GOAL + " ".join(goal))
    # The repository in each: the same path of another one is another mark.
    prefix = f"{intent.repository}\x1f"
    return frozenset(int(digest_of(prefix + each), 16) - 2**63 for each in found)
