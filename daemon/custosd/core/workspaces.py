"""What is seen of the folder that an agent works in: its output, its changes, its repository.

Law: what could not be seen is a `Gap` with its reason; an empty part without a gap is empty.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentId
from custosd.core.view import AgentView


class WorkspacePart(StrEnum):
    """What a look may be about."""

    OUTPUTS = "outputs"
    CHANGES = "changes"
    REPOSITORY = "repository"


ALL_PARTS = frozenset(WorkspacePart)


@dataclass(frozen=True, slots=True)
class WorkPlace:
    """The folder that an agent works in, and who says so.

    `claimed_by`: the path of the transcript whose author said so; it is believed only of
    folders and files that belong to whoever owns the transcript. "": a person configured it.
    """

    agent: AgentId
    folder: str
    claimed_by: str = ""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """The end of one output file, without secrets.

    `encoding` is what it was read as; "latin-1" is a last resort. `whole`: nothing stands
    before `text`. `text` is None for one that is no text: `note` says why. Of one that changed
    while it was read, `note` says "cut_while_read" or "rotated_while_read".
    """

    path: str
    size_bytes: int
    changed_utc: datetime
    text: str | None
    encoding: str = ""
    whole: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """One file that changed, by its path below the folder."""

    path: str
    size_bytes: int
    changed_utc: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since a time: the latest first, not more than a bounded number of `count`."""

    since_utc: datetime
    files: tuple[ChangedFile, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Repository:
    """The state of a working copy; None for what is not known, or does not exist.

    `branch` "" : no branch is checked out. `head` "": nothing was committed yet. `changed`
    counts files that differ from the last commit, `untracked` files and folders that are not
    in it, both below the agent's folder. `ahead` and `behind` count commits as against `upstream`,
    as far as that was fetched.
    """

    copy: str
    branch: str
    head: str
    bare: bool = False
    changed: int | None = None
    untracked: int | None = None
    upstream: str = ""
    ahead: int | None = None
    behind: int | None = None

    @property
    def dirty(self) -> bool | None:
        """Whether anything is not committed; None: that is not known."""
        if self.changed or self.untracked:
            return True
        return None if self.changed is None or self.untracked is None else False


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that was not seen: of which part, at which path, and why (a short code)."""

    part: WorkspacePart
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """What one look at an agent's folder saw; a part that was not asked for is None or ()."""

    agent: AgentId
    folder: str
    outputs: tuple[OutputFile, ...] = ()
    changes: Changes | None = None
    repository: Repository | None = None
    gaps: tuple[Gap, ...] = ()


def work_place(view: AgentView | None, agent: AgentId, configured: str = "") -> WorkPlace | None:
    """Where an agent works: where its table says, else where it says itself; None: nowhere known.

    What it says is a claim: see `WorkPlace`.
    """
    if configured:
        return WorkPlace(agent, configured)
    if view is None or view.digest is None or not view.digest.cwd or not view.path:
        return None
    return WorkPlace(agent, view.digest.cwd, view.path)
