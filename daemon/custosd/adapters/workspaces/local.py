"""The folders of this machine's agents, each looked at by one thread, and by git after it.

Laws:

1. One agent is one unit of work: all its files are read by one call in a thread, which looks at
   the clock itself; file by file they would cost more to hand over than to read.
2. A look that hangs in the kernel is left behind when its time is up, and told; see
   `adapters.hung_looks`.
3. Whatever a look ends with is that folder's alone.
"""

import os
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
import trio

from custosd.adapters.hung_looks import MOST_HUNG, HungLooks
from custosd.adapters.places import Located, located
from custosd.adapters.workspaces.changes import ChangeLook
from custosd.adapters.workspaces.folders import opened_workspace
from custosd.adapters.workspaces.ignoring import Rules, with_file_of
from custosd.adapters.workspaces.outputs import TailLimits, output_files
from custosd.adapters.workspaces.repository import Checkout, Git, make_skeletons, repository_at
from custosd.config.workspaces import WorkspaceSettings
from custosd.core.errors import WorkspaceError
from custosd.core.workspaces import (
    ALL_PARTS,
    Gap,
    OutputFile,
    WorkPlace,
    Workspace,
    WorkspacePart,
)
from custosd.flow.adaptive import AdaptiveLimit, Fixed
from custosd.flow.bounded import each
from custosd.flow.monitor import Kind, operation
from custosd.flow.threads import Threads
from custosd.ports import Workspaces

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkspaceLimits:
    """How much of one folder is looked at, and how many folders at once.

    `timeout_s` is for one folder in all; its files get half of it, git the rest.
    """

    tails: TailLimits
    changed_s: float = 3_600.0
    most_changed: int = 50
    concurrency: int = 8
    timeout_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one unit of work is to see."""

    place: WorkPlace
    parts: frozenset[WorkspacePart]
    since_utc: datetime
    limits: WorkspaceLimits


@dataclass(frozen=True, slots=True)
class Seen:
    """What the thread saw; git goes on from `checkout` where there is a repository."""

    workspace: Workspace
    checkout: Checkout | None = None


class LocalWorkspaces(Workspaces):
    """`ports.Workspaces` of this machine; see `open_workspaces`. `see` is the unit of work."""

    def __init__(
        self,
        skeletons: Path,
        limits: WorkspaceLimits,
        now_utc: Callable[[], datetime],
        see: Callable[[Wanted], Seen] | None = None,
        guard: HungLooks | None = None,
    ) -> None:
        self._limits = limits
        self._now_utc = now_utc
        self._see = see or look_into
        self._guard = guard or HungLooks()
        self._slots: AdaptiveLimit[Fixed] = AdaptiveLimit(Fixed(limits.concurrency))
        self._threads = Threads(limits.concurrency + MOST_HUNG)
        self._git = Git(skeletons, self._threads, limits.timeout_s / 2)

    @property
    def hung(self) -> int:
        """How many looks were left behind, and still hang."""
        return self._guard.hung

    async def look(
        self,
        places: Sequence[WorkPlace],
        parts: Collection[WorkspacePart] = ALL_PARTS,
        since_utc: datetime | None = None,
    ) -> tuple[Workspace | WorkspaceError, ...]:
        """See the port."""
        since_utc = since_utc or self._now_utc() - timedelta(seconds=self._limits.changed_s)

        async def one(place: WorkPlace) -> Workspace:
            wanted = Wanted(place, frozenset(parts), since_utc, self._limits)
            async with self._slots.slot():
                return await self._look(wanted)

        async with operation(Kind.FILE, "workspaces") as looking:
            looking.used("folders", len(places))
            found = await each(places, one, limit=self._limits.concurrency)
        answers: list[Workspace | WorkspaceError] = []
        for place, outcome in zip(places, found, strict=True):
            try:
                answers.append(outcome.unwrap())
            except WorkspaceError as error:
                answers.append(error)
            except Exception as error:  # noqa: BLE001 - one folder's, and agents make folders
                found_by = type(error).__name__
                log.warning("workspace.unread", agent=place.agent, error=found_by)
                answers.append(WorkspaceError("broken", f"{place.folder} ends a look: {found_by}"))
        return tuple(answers)

    async def _look(self, wanted: Wanted) -> Workspace:
        folder = wanted.place.folder
        late = WorkspaceError("timeout", f"{folder} was not read in {self._limits.timeout_s:g} s")
        with trio.move_on_after(self._limits.timeout_s) as scope:
            seen = await self._guard.run(self._threads, folder, partial(self._see, wanted))
            if seen.checkout is None:
                return seen.workspace
            return await self._with_git(seen.workspace, seen.checkout, scope.deadline)
        raise late

    async def _with_git(
        self, workspace: Workspace, checkout: Checkout, ends_at: float
    ) -> Workspace:
        known = replace(workspace, repository=checkout.repository)
        reason = "timeout"
        # A moment before all of it is cut: what the files told is shown without git, too.
        with trio.move_on_at(ends_at - self._limits.timeout_s / 10):
            try:
                return replace(workspace, repository=await self._git.state(checkout))
            except WorkspaceError as error:
                reason = error.reason
        gap = Gap(WorkspacePart.REPOSITORY, checkout.repository.copy, reason)
        return replace(known, gaps=(*known.gaps, gap))


def limits_of(settings: WorkspaceSettings) -> WorkspaceLimits:
    """The settings as the adapter takes them."""
    return WorkspaceLimits(
        TailLimits(settings.outputs, settings.tail_lines, settings.tail_bytes),
        settings.changed_s,
        settings.most_changed,
        settings.concurrency,
        settings.timeout_s,
    )


@asynccontextmanager
async def open_workspaces(
    limits: WorkspaceLimits, now_utc: Callable[[], datetime], guard: HungLooks | None = None
) -> AsyncGenerator[LocalWorkspaces]:
    """The workspaces of this machine, while the block runs; `guard` as others have it."""
    with tempfile.TemporaryDirectory(prefix="custosd-git-") as folder:
        make_skeletons(Path(folder))
        yield LocalWorkspaces(Path(folder), limits, now_utc, guard=guard)


def look_into(wanted: Wanted) -> Seen:
    """One agent's folder, all of it; blocks as the file system does.

    Raises `WorkspaceError` where the folder cannot be looked at.
    """
    place, limits = wanted.place, wanted.limits
    ends_at = time.monotonic() + limits.timeout_s / 2
    gaps: list[Gap] = []
    with opened_workspace(place.folder, place.claimed_by) as (root, owner):
        found = checkout = changes = None
        outputs: tuple[OutputFile, ...] = ()
        try:
            found = located(os.path.realpath(place.folder))
            if found is not None and WorkspacePart.REPOSITORY in wanted.parts:
                checkout = repository_at(found, owner)
        except WorkspaceError as error:
            gaps.append(Gap(WorkspacePart.REPOSITORY, place.folder, error.reason))
        except (OSError, ValueError):
            gaps.append(Gap(WorkspacePart.REPOSITORY, place.folder, "broken"))
        if WorkspacePart.OUTPUTS in wanted.parts:
            outputs = tuple(output_files(root, limits.tails, owner, ends_at, gaps))
        if WorkspacePart.CHANGES in wanted.parts:
            inside = f"{found.inside}/" if found is not None and found.inside else ""
            rules = Rules()
            if found is not None and not found.bare:
                rules = _rules_above(found, inside, owner)
            looking = ChangeLook(
                wanted.since_utc, limits.most_changed, ends_at, gaps, inside, owner
            )
            changes = looking.changes(root, rules)
    seen = tuple(gap for gap in gaps if gap.part in wanted.parts)
    workspace = Workspace(place.agent, place.folder, outputs, changes, None, seen)
    return Seen(workspace, checkout)


def _rules_above(found: Located, inside: str, owner: int | None) -> Rules:
    """What counts in a folder of a working copy before its own file does."""
    rules = Rules()
    with _opened(found.shared / "info") as info:
        if info is not None:
            rules, _ = with_file_of(rules, info, "", "exclude", owner)
    parts = [part for part in inside.split("/") if part]
    above = found.copy
    for number, part in enumerate(parts):
        with _opened(above) as fd:
            if fd is not None:
                base = "".join(f"{each}/" for each in parts[:number])
                rules, _ = with_file_of(rules, fd, base, owner=owner)
        above /= part
    return rules


class _opened:  # noqa: N801 - used as a function
    """An open folder for a block; None where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def __enter__(self) -> int | None:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._fd = None
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
