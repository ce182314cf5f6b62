"""What every `ports.Workspaces` promises; collected by a subclass with its fixtures.

`known` is a folder with an output file, a changed file and a repository on the branch "main";
`gone` is none.
"""

from datetime import UTC, datetime

import trio

from custosd.core.agents import AgentId
from custosd.core.errors import WorkspaceError
from custosd.core.workspaces import WorkPlace, Workspace, WorkspacePart
from custosd.ports import Workspaces

NEVER = datetime(9_000, 1, 1, tzinfo=UTC)


def place(folder: str, agent: str = "ada") -> WorkPlace:
    return WorkPlace(AgentId(agent), folder)


class WorkspacesContract:
    """The tests."""

    async def test_a_folder_comes_with_all_its_parts(
        self, workspaces: Workspaces, known: str
    ) -> None:
        [seen] = await workspaces.look([place(known)])
        assert isinstance(seen, Workspace)
        assert (seen.agent, seen.folder) == ("ada", known)
        assert [output.path for output in seen.outputs] == ["output.log"]
        assert seen.changes is not None
        assert seen.changes.count >= len(seen.changes.files) > 0
        assert seen.repository is not None
        assert seen.repository.branch == "main"
        assert not seen.gaps

    async def test_of_many_folders_each_has_its_own_answer_in_their_order(
        self, workspaces: Workspaces, known: str, gone: str
    ) -> None:
        folders = [known, gone, known, gone]
        seen = await workspaces.look([place(f, f"a{n}") for n, f in enumerate(folders)])
        assert [isinstance(each, WorkspaceError) for each in seen] == [False, True] * 2
        assert [each.agent for each in seen if isinstance(each, Workspace)] == ["a0", "a2"]
        assert {each.reason for each in seen if isinstance(each, WorkspaceError)} == {"gone"}
        assert await workspaces.look([]) == ()

    async def test_only_what_is_asked_for_is_looked_at(
        self, workspaces: Workspaces, known: str
    ) -> None:
        [seen] = await workspaces.look([place(known)], {WorkspacePart.CHANGES})
        assert isinstance(seen, Workspace)
        assert (seen.outputs, seen.repository) == ((), None)
        assert seen.changes is not None

    async def test_what_changed_before_is_left_out(
        self, workspaces: Workspaces, known: str
    ) -> None:
        [seen] = await workspaces.look([place(known)], since_utc=NEVER)
        assert isinstance(seen, Workspace)
        assert seen.changes is not None
        assert (seen.changes.since_utc, seen.changes.count, seen.changes.files) == (NEVER, 0, ())

    async def test_a_cancelled_look_leaves_it_usable(
        self, workspaces: Workspaces, known: str
    ) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await workspaces.look([place(known)])
        assert scope.cancelled_caught
        [seen] = await workspaces.look([place(known)])
        assert isinstance(seen, Workspace)
