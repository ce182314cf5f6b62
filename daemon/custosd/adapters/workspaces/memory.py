"""Workspaces that hold what they were told: the shipped fake of `ports.Workspaces`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import trio

from custosd.core.errors import WorkspaceError
from custosd.core.workspaces import (
    ALL_PARTS,
    WorkPlace,
    Workspace,
    WorkspacePart,
)
from custosd.ports import Workspaces


class MemoryWorkspaces(Workspaces):
    """Answers by folder; of any other it says that it is gone. `asked` counts the looks."""

    def __init__(self, known: Mapping[str, Workspace | WorkspaceError] | None = None) -> None:
        self.known = dict(known or {})
        self.asked = 0

    async def look(
        self,
        places: Sequence[WorkPlace],
        parts: Collection[WorkspacePart] = ALL_PARTS,
        since_utc: datetime | None = None,
    ) -> tuple[Workspace | WorkspaceError, ...]:
        """See the port."""
        await trio.lowlevel.checkpoint()
        self.asked += len(places)
        return tuple(self._answer(place, parts, since_utc) for place in places)

    def _answer(
        self, place: WorkPlace, parts: Collection[WorkspacePart], since_utc: datetime | None
    ) -> Workspace | WorkspaceError:
        known = self.known.get(place.folder)
        if known is None:
            return WorkspaceError("gone", f"{place.folder} is not there")
        if isinstance(known, WorkspaceError):
            return known
        changes = known.changes if WorkspacePart.CHANGES in parts else None
        if changes is not None and since_utc is not None:
            files = tuple(file for file in changes.files if file.changed_utc >= since_utc)
            changes = replace(changes, since_utc=since_utc, files=files, count=len(files))
        return replace(
            known,
            agent=place.agent,
            outputs=known.outputs if WorkspacePart.OUTPUTS in parts else (),
            changes=changes,
            repository=known.repository if WorkspacePart.REPOSITORY in parts else None,
            gaps=tuple(gap for gap in known.gaps if gap.part in parts),
        )
