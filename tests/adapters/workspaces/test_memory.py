"""The shipped fake keeps the port's promises."""

from datetime import UTC, datetime

import pytest
from tests.contracts.workspaces_contract import WorkspacesContract

from custosd.adapters.workspaces.memory import MemoryWorkspaces
from custosd.core.agents import AgentId
from custosd.core.workspaces import ChangedFile, Changes, OutputFile, Repository, Workspace

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SEEN = Workspace(
    AgentId("ada"),
    "/w/ada",
    (OutputFile("output.log", 4, NOON, "done", "utf-8"),),
    Changes(NOON, (ChangedFile("a.py", 3, NOON),), 1),
    Repository("/w/ada", "main", "0" * 40),
)


class TestMemoryWorkspaces(WorkspacesContract):
    @pytest.fixture
    def known(self) -> str:
        return "/w/ada"

    @pytest.fixture
    def gone(self) -> str:
        return "/w/gone"

    @pytest.fixture
    def workspaces(self) -> MemoryWorkspaces:
        return MemoryWorkspaces({"/w/ada": SEEN})
