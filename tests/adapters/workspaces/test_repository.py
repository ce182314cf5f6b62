"""The state of repositories, as git tells it; and a repository that would like to run something."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from tests.adapters.workspaces.conftest import git
from tests.contracts.workspaces_contract import place

from custosd.adapters.places import located
from custosd.adapters.workspaces.local import LocalWorkspaces
from custosd.adapters.workspaces.repository import repository_at
from custosd.core.errors import WorkspaceError
from custosd.core.workspaces import Repository, Workspace, WorkspacePart


async def state(workspaces: LocalWorkspaces, folder: Path) -> Repository:
    seen = await looked(workspaces, folder)
    assert not seen.gaps
    assert seen.repository is not None
    return seen.repository


async def looked(workspaces: LocalWorkspaces, folder: Path) -> Workspace:
    [seen] = await workspaces.look([place(str(folder))], {WorkspacePart.REPOSITORY})
    assert isinstance(seen, Workspace)
    return seen


async def test_a_clean_copy_and_a_dirty_one(workspaces: LocalWorkspaces, copy: Path) -> None:
    head = git(copy, "rev-parse", "HEAD").strip()
    clean = await state(workspaces, copy)
    assert clean == Repository(str(copy), "main", head, changed=0, untracked=0)
    assert clean.dirty is False
    (copy / "a.py").write_text("2\n")
    (copy / "b.py").write_text("")
    (copy / "c").mkdir()
    (copy / "c" / "d.py").write_text("")
    (copy / ".gitignore").write_text("*.o\n")
    (copy / "x.o").write_text("")
    git(copy, "add", ".gitignore")
    dirty = await state(workspaces, copy)
    assert (dirty.changed, dirty.untracked, dirty.dirty) == (2, 2, True)


def test_a_repository_of_another_user_is_none_of_the_agents(copy: Path) -> None:
    """A folder that is only claimed could point anywhere."""
    found = located(str(copy))
    assert found is not None
    assert repository_at(found, os.geteuid()).repository.branch == "main"
    with pytest.raises(WorkspaceError) as caught:
        repository_at(found, os.geteuid() + 1)
    assert caught.value.reason == "not_owned"


async def test_no_other_file_is_read_for_the_repositorys_settings(
    workspaces: LocalWorkspaces, copy: Path, tmp_path: Path
) -> None:
    """An include of a repository could be any file of whoever asks; also one that hangs."""
    os.mkfifo(tmp_path / "theirs")
    with (copy / ".git" / "config").open("a") as config:
        config.write(f"[include]\n\tpath = {tmp_path / 'theirs'}\n")
    with trio.fail_after(20):
        assert (await state(workspaces, copy)).dirty is False


async def test_a_file_that_was_only_touched_is_no_change(
    workspaces: LocalWorkspaces, copy: Path
) -> None:
    os.utime(copy / "a.py", (1, 1))
    before = (copy / ".git" / "index").read_bytes()
    assert (await state(workspaces, copy)).dirty is False
    assert (copy / ".git" / "index").read_bytes() == before, "nothing is written"


async def test_commits_ahead_and_behind_are_counted(
    workspaces: LocalWorkspaces, copy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(copy), str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "two")
    git(other, "commit", "-q", "--allow-empty", "-m", "three")
    git(copy, "commit", "-q", "--allow-empty", "-m", "two, too")
    git(other, "fetch", "-q")
    seen = await state(workspaces, other)
    assert (seen.upstream, seen.ahead, seen.behind) == ("origin/main", 2, 1)
    git(other, "pack-refs", "--all")
    assert await state(workspaces, other) == seen


async def test_detached_unborn_bare_and_a_second_copy(
    workspaces: LocalWorkspaces, copy: Path, tmp_path: Path
) -> None:
    head = git(copy, "rev-parse", "HEAD").strip()
    second = tmp_path / "second"
    git(copy, "worktree", "add", "-q", "-b", "fix/it", str(second))
    (second / "new.py").write_text("")
    expected = Repository(str(second), "fix/it", head, changed=0, untracked=1)
    assert await state(workspaces, second) == expected
    git(copy, "checkout", "-q", "--detach")
    detached = await state(workspaces, copy)
    assert (detached.branch, detached.head) == ("", head)
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q", "-b", "first")
    (empty / "x").write_text("")
    git(empty, "add", "x")
    expected = Repository(str(empty), "first", "", changed=1, untracked=0)
    assert await state(workspaces, empty) == expected
    bare = tmp_path / "bare"
    git(tmp_path, "clone", "-q", "--bare", str(copy), str(bare))
    seen = await state(workspaces, bare)
    assert (seen.bare, seen.changed, seen.head) == (True, None, head)


async def test_a_shallow_copy_and_one_with_long_digests(
    workspaces: LocalWorkspaces, copy: Path, tmp_path: Path
) -> None:
    git(copy, "commit", "-q", "--allow-empty", "-m", "two")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{copy}", str(shallow))
    assert (await state(workspaces, shallow)).ahead == 0
    long = tmp_path / "long"
    long.mkdir()
    git(long, "init", "-q", "--object-format=sha256")
    (long / "x").write_text("")
    git(long, "add", "x")
    assert (await state(workspaces, long)).changed == 1
    git(long, "commit", "-q", "-m", "one")
    assert (await state(workspaces, long)).changed == 0


async def test_only_what_lies_below_the_agents_folder_counts(
    workspaces: LocalWorkspaces, copy: Path
) -> None:
    (copy / "sub").mkdir()
    (copy / "b.py").write_text("")
    assert (await state(workspaces, copy / "sub")).untracked == 0
    assert (await state(workspaces, copy)).untracked == 1


async def test_no_repository_is_none_and_no_gap(
    workspaces: LocalWorkspaces, tmp_path: Path
) -> None:
    seen = await looked(workspaces, tmp_path)
    assert (seen.repository, seen.gaps) == (None, ())


# --- a repository that is an attack -------------------------------------------------------------


def _filter(copy: Path, program: str) -> None:
    git(copy, "config", "filter.evil.clean", program)
    git(copy, "config", "filter.evil.process", program)
    (copy / ".gitattributes").write_text("* filter=evil diff=evil\n")


def _monitor(copy: Path, program: str) -> None:
    git(copy, "config", "core.fsmonitor", program)


def _hooks(copy: Path, program: str) -> None:
    (copy / "hooks").mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        (copy / "hooks" / name).write_text(f"#!/bin/sh\n{program}\n")
        (copy / "hooks" / name).chmod(0o755)
    git(copy, "config", "core.hooksPath", str(copy / "hooks"))


def _words(copy: Path, program: str) -> None:
    for key in (
        *("core.pager", "pager.diff", "diff.external", "diff.evil.textconv", "diff.evil.command"),
        *("core.sshCommand", "core.editor", "alias.status", "core.gitProxy"),
    ):  # fmt: skip
        git(copy, "config", key, program)
    (copy / ".gitattributes").write_text("* diff=evil\n")


def _included(copy: Path, program: str) -> None:
    (copy / "more").write_text(f"[core]\n\tfsmonitor = {program}\n")
    git(copy, "config", "include.path", str(copy / "more"))


def _submodule(copy: Path, program: str) -> None:
    inner = copy / "inner"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "main")
    (inner / "x").write_text("")
    git(inner, "add", "x")
    git(inner, "commit", "-q", "-m", "x")
    git(copy, "add", "inner")
    git(inner, "config", "core.fsmonitor", program)
    (inner / "x").write_text("changed")


ATTACKS = (_filter, _monitor, _hooks, _words, _included, _submodule)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_a_hostile_repository_runs_nothing(
    workspaces: LocalWorkspaces,
    copy: Path,
    tmp_path: Path,
    attack: Callable[[Path, str], None],
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    attack(copy, f"touch {traces}/ran; cat")
    (copy / "a.py").write_text("3\n")
    seen = await looked(workspaces, copy)
    assert list(traces.iterdir()) == []
    assert seen.repository is not None
    assert seen.repository.dirty is True
    # The attack is one: git itself falls for it, or refuses to.
    if attack in (_filter, _monitor):
        git(copy, "status")
        assert list(traces.iterdir())


async def test_no_environment_of_ours_leads_git_elsewhere(
    workspaces: LocalWorkspaces, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"touch {tmp_path}/ran; false")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    assert (await state(workspaces, copy)).dirty is False
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "head", ["ref: ../../../../etc/passwd", "ref: refs/heads/../../../x", "garbage", ""]
)
async def test_a_head_that_leads_elsewhere_is_a_broken_repository(
    workspaces: LocalWorkspaces, copy: Path, head: str
) -> None:
    (copy / ".git" / "HEAD").write_text(head)
    seen = await looked(workspaces, copy)
    assert seen.repository is None or seen.repository.head == ""
    assert [gap.reason for gap in seen.gaps] == ["broken"]


@pytest.mark.parametrize("name", ["HEAD", "index", "config", "packed-refs", "info/exclude"])
async def test_a_pipe_in_the_place_of_a_file_holds_nobody(
    copy: Path, workspaces: LocalWorkspaces, name: str
) -> None:
    (copy / ".git" / name).unlink(missing_ok=True)
    os.mkfifo(copy / ".git" / name)
    with trio.fail_after(30):
        seen = await looked(workspaces, copy)
    assert seen.gaps or name in {"config", "packed-refs", "info/exclude"}
