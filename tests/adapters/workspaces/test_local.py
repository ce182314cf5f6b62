"""The folders of this machine: looked at as a whole, and never by way of a trap."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from structlog.testing import capture_logs
from tests.adapters.looped_folders import LOOPED
from tests.adapters.workspaces.conftest import git, limits, now_utc
from tests.contracts.workspaces_contract import WorkspacesContract, place

from custosd.adapters.hung_looks import MOST_HUNG, mount_points
from custosd.adapters.workspaces.local import (
    LocalWorkspaces,
    Seen,
    Wanted,
    look_into,
)
from custosd.core.errors import WorkspaceError
from custosd.core.workspaces import ALL_PARTS, Gap, Workspace, WorkspacePart

LONG_AGO = datetime(1971, 1, 1, tzinfo=UTC)


class TestLocalWorkspaces(WorkspacesContract):
    @pytest.fixture
    def known(self, copy: Path) -> str:
        (copy / "output.log").write_text("done\n")
        return str(copy)

    @pytest.fixture
    def gone(self, tmp_path: Path) -> str:
        return str(tmp_path / "gone")


def seen_in(folder: Path, claimed_by: str = "", **more: object) -> Workspace:
    wanted = Wanted(
        replace(place(str(folder)), claimed_by=claimed_by), ALL_PARTS, LONG_AGO, limits(**more)
    )
    return look_into(wanted).workspace


def changed_in(folder: Path) -> set[str]:
    changes = seen_in(folder).changes
    assert changes is not None
    return {file.path for file in changes.files}


def reasons(seen: Workspace, part: WorkspacePart) -> dict[str, str]:
    return {gap.path: gap.reason for gap in seen.gaps if gap.part is part}


# --- output files ---------------------------------------------------------------------------


def test_output_is_found_by_name_and_by_pattern_one_level_a_star(tmp_path: Path) -> None:
    (tmp_path / "logs" / "deep").mkdir(parents=True)
    for name in ("output.log", "logs/b.log", "logs/a.log", "logs/deep/c.log", "other.log"):
        (tmp_path / name).write_text(name)
    seen = seen_in(tmp_path)
    assert [(output.path, output.text) for output in seen.outputs] == [
        (name, name) for name in ("output.log", "logs/a.log", "logs/b.log")
    ]
    assert not seen.gaps


def test_only_the_last_lines_are_shown(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_text("".join(f"line {n}\n" for n in range(30)))
    [output] = seen_in(tmp_path, lines=3).outputs
    assert (output.text, output.whole) == ("line 27\nline 28\nline 29", False)


def test_a_link_a_pipe_and_a_device_are_told_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the key")
    folder = tmp_path / "w"
    (folder / "logs").mkdir(parents=True)
    (folder / "output.log").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "logs" / "pipe.log")
    (folder / "logs" / "folder.log").mkdir()
    (folder / "logs" / "null.log").symlink_to("/dev/null")
    seen = seen_in(folder)
    assert seen.outputs == ()
    assert reasons(seen, WorkspacePart.OUTPUTS) == {
        "output.log": "link_refused",
        "logs/pipe.log": "not_a_file",
        "logs/folder.log": "not_a_file",
        "logs/null.log": "link_refused",
    }


def test_a_folder_that_is_a_link_is_not_gone_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "key.log").write_text("the key")
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "logs").symlink_to(tmp_path / "elsewhere")
    seen = seen_in(folder)
    assert (seen.outputs, reasons(seen, WorkspacePart.OUTPUTS)) == ((), {"logs": "not_a_folder"})
    assert changed_in(folder) == {"logs"}


def test_secrets_are_taken_out_also_where_only_their_end_is_shown(tmp_path: Path) -> None:
    key = "ghp_" + "Zq7Lw2Xc" * 5
    lines = ["-----BEGIN RSA PRIVATE KEY-----", *["Zq7Lw2Xc" * 8] * 30]
    (tmp_path / "output.log").write_text("\n".join([f"token {key}", *lines, f"and {key}"]))
    for count in (1, 5, 100):
        [output] = seen_in(tmp_path, lines=count).outputs
        assert output.text is not None
        assert "Zq7Lw2Xc" not in output.text, count


# --- changes ----------------------------------------------------------------------------------


def test_the_latest_changes_come_first_and_all_are_counted(tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}.py").write_text("x" * n)
    changes = seen_in(tmp_path, most_changed=2).changes
    assert changes is not None
    assert changes.count == 9
    assert len(changes.files) == 2
    times = [file.changed_utc for file in changes.files]
    assert times == sorted(times, reverse=True)


def test_what_git_ignores_is_left_out_in_any_depth_and_again_let_in(tmp_path: Path) -> None:
    (tmp_path / "a" / "build").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("*.o\nbuild/\n/top\n")
    (tmp_path / "a" / ".gitignore").write_text("!keep.o\n*.tmp\n")
    for name in ("x.o", "x.py", "x.tmp", "top", "a/top", "a/x.o", "a/keep.o", "a/x.tmp",
                 "a/build/x.py"):  # fmt: skip
        (tmp_path / name).write_text("")
    kept = {".gitignore", "a/.gitignore", "x.py", "x.tmp", "a/top", "a/keep.o"}
    assert changed_in(tmp_path) == kept


def test_below_a_repository_the_files_above_count_too(copy: Path) -> None:
    (copy / ".gitignore").write_text("*.o\n/sub/inner/*.a\n")
    (copy / ".git" / "info" / "exclude").write_text("*.e\n")
    folder = copy / "sub" / "inner"
    folder.mkdir(parents=True)
    for name in ("x.o", "x.a", "x.e", "x.py"):
        (folder / name).write_text("")
    assert changed_in(folder) == {"x.py"}


def test_a_pattern_that_would_run_for_hours_is_left_out_and_told(tmp_path: Path) -> None:
    costly = "*a" * 8 + "*b"
    (tmp_path / ".gitignore").write_text(f"{costly}\n*.o\n")
    (tmp_path / ("a" * 250)).write_text("")
    (tmp_path / "x.o").write_text("")
    seen = seen_in(tmp_path)
    assert changed_in(tmp_path) == {".gitignore", "a" * 250}
    assert reasons(seen, WorkspacePart.CHANGES) == {".gitignore": "patterns_left_out"}


def test_ignore_files_that_are_traps_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".gitignore")
    (tmp_path / "x.py").write_text("")
    assert reasons(seen_in(tmp_path), WorkspacePart.CHANGES) == {".gitignore": "not_a_file"}
    assert changed_in(tmp_path) == {".gitignore", "x.py"}


def test_a_folder_of_too_many_levels_is_told(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(70):
        folder /= "d"
    folder.mkdir(parents=True)
    assert set(reasons(seen_in(tmp_path), WorkspacePart.CHANGES).values()) == {"too_deep"}


@contextmanager
def nobody() -> Iterator[None]:
    """Not root for the block, who reads everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_an_unreadable_folder_is_told() -> None:
    # Not below pytest's own folder, which is its user's alone.
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0)
        (folder / "x.py").write_text("")
        try:
            with nobody():
                seen = seen_in(folder)
        finally:
            (folder / "closed").chmod(0o700)
    assert reasons(seen, WorkspacePart.CHANGES) == {"closed/": "EACCES"}


def test_the_look_ends_when_its_time_is_up_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("")
    (tmp_path / "output.log").write_text("x")
    seen = seen_in(tmp_path, timeout_s=0.0)
    assert {gap.reason for gap in seen.gaps} == {"too_slow"}
    assert {gap.part for gap in seen.gaps} == {WorkspacePart.OUTPUTS, WorkspacePart.CHANGES}


# --- whose folder ------------------------------------------------------------------------------


def test_a_claimed_folder_is_read_only_if_it_is_its_owners(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("")
    (tmp_path / "output.log").write_text("mine")
    assert seen_in(tmp_path, claimed_by=str(tmp_path / "t.jsonl")).outputs
    theirs = Path("/etc/passwd") if os.geteuid() else _of_somebody(tmp_path)
    with pytest.raises(WorkspaceError) as caught:
        seen_in(tmp_path, claimed_by=str(theirs))
    assert caught.value.reason == "not_owned"


def _of_somebody(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.jsonl"
    path.write_text("")
    os.chown(path, 12_345, 12_345)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_in_a_claimed_folder_files_of_others_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("")
    (tmp_path / "output.log").write_text("theirs")
    os.chown(tmp_path / "output.log", 12_345, 12_345)
    seen = seen_in(tmp_path, claimed_by=str(tmp_path / "t.jsonl"))
    assert (seen.outputs, reasons(seen, WorkspacePart.OUTPUTS)) == ((), {"output.log": "not_owned"})
    assert seen_in(tmp_path).outputs


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_in_a_claimed_folder_changes_of_others_are_not_told_nor_their_ignore_files_read(
    copy: Path,
) -> None:
    (copy / ".git" / "info").mkdir(exist_ok=True)
    for path, text in {
        "t.jsonl": "",
        "theirs.py": "1",
        "their/a.py": "1",
        "own/b.py": "1",
        "own/c.py": "1",
        ".gitignore": "b.py",
        ".git/info/exclude": "c.py",
    }.items():
        (copy / path).parent.mkdir(exist_ok=True)
        (copy / path).write_text(text)
    for path in ("theirs.py", "their", ".gitignore", ".git/info/exclude"):
        os.chown(copy / path, 12_345, 12_345)
    seen = seen_in(copy, claimed_by=str(copy / "t.jsonl"))
    assert seen.changes is not None
    told = {file.path for file in seen.changes.files}
    assert told == {"a.py", "t.jsonl", "own/b.py", "own/c.py"}
    gaps = dict.fromkeys((".gitignore", "their", "theirs.py"), "not_owned")
    assert reasons(seen, WorkspacePart.CHANGES) == gaps
    # A person who names a folder means all of it.
    assert changed_in(copy) == {"a.py", "t.jsonl", "theirs.py", "their/a.py", ".gitignore"}
    # Below the copy its files count, but not those of others.
    below = seen_in(copy / "own", claimed_by=str(copy / "t.jsonl")).changes
    assert below is not None
    assert {file.path for file in below.files} == {"b.py", "c.py"}


@pytest.mark.parametrize("folder", ["", "w", "/w\0w"])
def test_what_is_no_absolute_path_is_refused(folder: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        look_into(Wanted(place(folder), ALL_PARTS, LONG_AGO, limits()))
    assert caught.value.reason == "not_absolute"


@pytest.mark.parametrize("name", LOOPED)
async def test_links_that_lead_nowhere_are_a_broken_repository(
    workspaces: LocalWorkspaces, copy: Path, tmp_path: Path, name: str
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    LOOPED[name](evil)
    good, bad = await workspaces.look([place(str(copy)), place(str(evil))])
    assert isinstance(good, Workspace)
    assert isinstance(bad, Workspace)
    assert reasons(bad, WorkspacePart.REPOSITORY) == (
        {} if name == "git itself" else {str(evil): "broken"}
    )


async def test_whatever_a_look_ends_with_is_that_folders_alone(tmp_path: Path) -> None:
    def see(wanted: Wanted) -> Seen:
        if wanted.place.folder == "/w/evil":
            raise RuntimeError("what nobody thought of")
        return Seen(Workspace(wanted.place.agent, wanted.place.folder))

    workspaces = LocalWorkspaces(tmp_path, limits(), now_utc, see)
    with capture_logs() as logs:
        good, bad = await workspaces.look([place("/w/good"), place("/w/evil")])
    assert isinstance(good, Workspace)
    assert isinstance(bad, WorkspaceError)
    assert bad.reason == "broken"
    assert [line["event"] for line in logs] == ["workspace.unread"]


# --- what hangs ---------------------------------------------------------------------------------


class Dead:
    """Looks at folders named "dead" hang, as on a file server that is gone, until it is let go."""

    def __init__(self) -> None:
        self._answers = threading.Event()
        self.looks = 0

    def __call__(self, wanted: Wanted) -> Seen:
        self.looks += 1
        if "dead" in wanted.place.folder:
            self._answers.wait()
        return Seen(Workspace(wanted.place.agent, wanted.place.folder))

    @contextmanager
    def held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._answers.set()


async def test_dead_file_systems_hold_no_other_and_are_not_asked_again(tmp_path: Path) -> None:
    dead = Dead()
    few = limits(timeout_s=0.2, concurrency=3)
    workspaces = LocalWorkspaces(tmp_path, few, now_utc, dead)
    with dead.held():
        with trio.fail_after(20):
            seen = await workspaces.look(
                [place(f"{'/proc/dead' if n % 2 else '/w/good'}{n}") for n in range(20)]
            )
        assert [isinstance(each, Workspace) for each in seen] == [True, False] * 10
        told = [each.reason for each in seen if isinstance(each, WorkspaceError)]
        assert told.count("timeout") == workspaces.hung <= 6
        assert set(told) == {"timeout", "file_system_hangs"}
        before = dead.looks
        [again] = await workspaces.look([place("/proc/dead1")])
        assert isinstance(again, WorkspaceError)
        assert again.reason == "hangs"
        assert dead.looks == before
    with trio.fail_after(20):
        while workspaces.hung:  # noqa: ASYNC110 - the end of a thread that nobody waits for
            await trio.sleep(0.01)
    [again] = await workspaces.look([place("/proc/dead1")])
    assert isinstance(again, Workspace)


async def test_what_is_left_behind_is_bounded(tmp_path: Path) -> None:
    dead, few = Dead(), limits(timeout_s=0.05, concurrency=2)
    workspaces = LocalWorkspaces(tmp_path, few, now_utc, dead)
    places = [point for point in mount_points() if point != "/"][:12]
    wanted = [place(f"{point}dead{n}") for point in places for n in range(4)]
    with dead.held(), trio.fail_after(30):
        await workspaces.look(wanted)
        assert workspaces.hung <= MOST_HUNG + 1


async def test_a_look_that_was_cancelled_in_the_queue_hangs_nowhere(tmp_path: Path) -> None:
    workspaces = LocalWorkspaces(tmp_path, limits(), now_utc, Dead())
    with trio.CancelScope() as scope:
        scope.cancel()
        await workspaces.look([place("/w/good")])
    assert workspaces.hung == 0


async def test_without_git_the_files_still_tell_the_branch(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(copy, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    workspaces = LocalWorkspaces(tmp_path, limits(), now_utc)
    [seen] = await workspaces.look([place(str(copy))])
    assert isinstance(seen, Workspace)
    assert seen.repository is not None
    assert (seen.repository.branch, seen.repository.head) == ("main", head)
    assert (seen.repository.changed, seen.repository.dirty) == (None, None)
    assert seen.gaps == (Gap(WorkspacePart.REPOSITORY, str(copy), "no_git"),)
