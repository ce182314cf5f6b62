"""What a judge is shown of this machine's files: bounded, and never by way of a trap."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from tests.contracts import store_values as some
from tests.contracts.context_contract import ContextContract

from custosd.adapters.context import TAIL_BYTES, LocalContext
from custosd.adapters.scripted_context import ScriptedContext
from custosd.adapters.workspaces.memory import MemoryWorkspaces
from custosd.core.agents import AgentId
from custosd.core.errors import WorkspaceError
from custosd.core.view import AgentView
from custosd.core.workspaces import ChangedFile, Changes, Gap, Workspace, WorkspacePart


def agent(path: Path | str, *written: str) -> AgentView:
    digest = replace(some.digest(), written=written)
    return AgentView(some.ADA, "t", str(path), "", some.NOON, digest=digest)


class TestLocalContext(ContextContract):
    @pytest.fixture
    def known(self, tmp_path: Path) -> AgentView:
        path = tmp_path / "a.jsonl"
        path.write_text("{}\n")
        return agent(path, str(path))

    @pytest.fixture
    def context(self) -> LocalContext:
        return LocalContext()


class TestScriptedContext(ContextContract):
    @pytest.fixture
    def known(self) -> AgentView:
        return agent("/a.jsonl", "/a.py")

    @pytest.fixture
    def context(self) -> ScriptedContext:
        return ScriptedContext({"transcript_tail": "the end", "changed_files": "a.py"})


async def tail(path: Path | str) -> tuple[str | None, str]:
    with trio.fail_after(5):
        part = await LocalContext().part("transcript_tail", agent(path))
    return part.text, part.why_absent


async def test_the_tail_is_the_end_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"begin" + b"x" * TAIL_BYTES + b"\xffend")
    text, _ = await tail(path)
    assert text is not None
    assert TAIL_BYTES - 1_024 <= len(text) <= TAIL_BYTES
    assert text.endswith("x\ufffdend")


async def test_a_cut_leaves_no_half_of_a_word_nor_a_value_without_its_name(tmp_path: Path) -> None:
    """What it leaves of a secret no detector would know."""
    path = tmp_path / "a"
    key = b"ghp_" + b"Zq7Lw2Xc" * 5
    rest = b" and so on" * (TAIL_BYTES // 10 + 1)
    for line in (b'"password": "hunter-2 hunter", ', b"TOKEN=" + key + b" "):
        for at in range(len(line)):
            path.write_bytes(b"begin " + line + rest[-(TAIL_BYTES - len(line) + at) :])
            text, _ = await tail(path)
            assert text is not None
            assert "hunter" not in text
            assert "Zq7Lw2Xc" not in text
            assert len(text) > TAIL_BYTES - 200


async def test_no_link_no_pipe_and_no_folder_is_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    assert await tail(tmp_path / "link") == (None, "link_refused")
    assert await tail(tmp_path / "pipe") == (None, "not_a_file")
    assert await tail(tmp_path) == (None, "not_a_file")
    for nowhere in ("", tmp_path / "none", "a\0b"):
        text, why = await tail(nowhere)
        assert text is None
        assert why


async def test_a_folder_that_was_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("the key")
    (tmp_path / "sessions").symlink_to(tmp_path / "elsewhere")
    assert await tail(tmp_path / "sessions" / "a") == (None, "link_refused")


async def test_only_files_with_a_whole_path_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative one is relative to the agent's folder; ours may hold one of the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("12345")
    names = ("a.py", str(tmp_path / "a.py"), "/nowhere/b.py")
    part = await LocalContext().part("changed_files", agent("", *names))
    assert part.text == f"a.py\n{tmp_path}/a.py: 5 bytes\n/nowhere/b.py: FileNotFoundError"


# --- what changed in the agent's folder ---------------------------------------------------------


def looking(known: Workspace | WorkspaceError, folder: str = "") -> LocalContext:
    return LocalContext(MemoryWorkspaces({"/w/ada": known}), lambda _agent: folder)


def claiming(cwd: str) -> AgentView:
    view = agent("/a.jsonl", "a.py")
    assert view.digest is not None
    return replace(view, digest=replace(view.digest, cwd=cwd))


CHANGES = Changes(some.NOON, (ChangedFile("src/b.py", 7, some.NOON),), 3)


async def test_changed_files_are_what_it_says_and_what_did_change() -> None:
    seen = Workspace(
        AgentId("ada"),
        "/w/ada",
        changes=CHANGES,
        gaps=(Gap(WorkspacePart.CHANGES, "x/", "EACCES"),),
    )
    for context in (looking(seen), looking(seen, "/w/ada")):
        part = await context.part("changed_files", claiming("/w/ada"))
        assert part.text is not None
        assert part.text.splitlines() == [
            "a.py",
            "",
            "in its folder 3 files changed since 12:00:00Z:",
            "src/b.py: 7 bytes",
            "and 2 more",
            "not all was seen: EACCES",
        ]


@pytest.mark.parametrize("reason", ["timeout", "hangs", "EACCES", "not_owned"])
async def test_a_folder_that_cannot_be_looked_at_makes_the_part_absent(reason: str) -> None:
    context = looking(WorkspaceError(reason), "/w/ada")
    part = await context.part("changed_files", claiming(""))
    assert (part.text, part.why_absent) == (None, reason)


async def test_a_folder_that_the_agent_made_up_is_no_folder() -> None:
    for reason in ("gone", "not_owned"):
        context = looking(WorkspaceError(reason))
        part = await context.part("changed_files", claiming("/w/ada"))
        assert (part.text, part.why_absent) == ("a.py", "")
    part = await looking(WorkspaceError("timeout")).part("changed_files", claiming("/w/ada"))
    assert (part.text, part.why_absent) == (None, "timeout")
