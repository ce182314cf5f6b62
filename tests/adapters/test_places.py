"""Where a folder lies is read from git's own files."""

import os
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from tests.adapters.looped_folders import LOOPED

from custosd.adapters.hung_looks import HungLooks
from custosd.adapters.places import LocalPlaces, look, open_places
from custosd.adapters.workspaces.local import LocalWorkspaces, WorkspaceLimits
from custosd.adapters.workspaces.outputs import TailLimits
from custosd.core.agents import AgentId
from custosd.core.errors import WorkspaceError
from custosd.core.pairs import Place
from custosd.core.workspaces import WorkPlace
from custosd.flow.bounded import for_each


def git(folder: Path, *args: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(("git", *who, *args), cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "one"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("1\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "begin")
    return folder


def test_a_folder_below_a_copy_lies_in_it(repository: Path) -> None:
    shared = str((repository / ".git").resolve())
    own = str(repository)
    assert look(own) == Place(shared, own, "", "main", own)
    assert look(str(repository / "src")) == Place(shared, own, "src", "main", own)


def test_a_working_tree_is_another_copy_of_the_same_repository(repository: Path) -> None:
    tree = repository.parent / "two"
    git(repository, "worktree", "add", "-q", "-b", "other", str(tree))
    found = look(str(tree / "src"))
    shared = str((repository / ".git").resolve())
    assert found == Place(shared, str(tree), "src", "other", str(repository))


def test_a_clone_is_another_repository_of_the_same_project(repository: Path) -> None:
    clone, other = repository.parent / "clone", repository.parent / "other"
    git(repository, "clone", "-q", str(repository), str(clone))
    git(repository, "clone", "-q", "--no-local", f"file://{repository}/.git", str(other))
    places = [look(str(each)) for each in (repository, clone, other)]
    assert len({place.repository for place in places}) == 3
    assert {place.project for place in places} == {str(repository)}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/Ada/App.git",
        "https://ada:secret@example.org/ada/app/",
        "git@example.org:ada/app.git",
        "ssh://git@example.org:2222/ada/app",
        "example.org:ada/app",
    ],
)
def test_a_project_is_the_same_however_it_is_reached_and_holds_no_secret(
    repository: Path, url: str
) -> None:
    git(repository, "remote", "add", "before", "https://example.com/else")
    git(repository, "remote", "add", "origin", url)
    assert look(str(repository)).project == "example.org/ada/app"


def test_what_is_gone_or_in_no_repository_is_a_look_its_own(tmp_path: Path) -> None:
    for folder in (tmp_path / "gone" / "away", tmp_path):
        assert look(str(folder)) == Place("", str(folder))


async def test_what_an_agent_says_of_its_branch_counts_where_git_says_nothing(
    tmp_path: Path, repository: Path
) -> None:
    async with open_places() as places:
        assert (await places.place(str(tmp_path), "told")).branch == "told"
        assert (await places.place(str(repository), "told")).branch == "main"
        assert await places.place("relative", "told") == Place("", "relative", "", "told")


def test_a_configuration_that_cannot_be_read_leaves_the_repository_to_itself(
    repository: Path,
) -> None:
    config = repository / ".git" / "config"
    config.write_bytes(b'[remote "origin"]\n' + b" \n" * 30_000 + b"\xff\xfe url =" + b" " * 9_000)
    assert look(str(repository)).project == str(repository)
    config.unlink()
    os.mkfifo(config)
    assert look(str(repository)).project == str(repository)


def test_a_pipe_in_the_look_gits_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git" / "HEAD")
    assert look(str(tmp_path)) == Place("", str(tmp_path))


async def test_what_was_found_stays_known_for_a_while(repository: Path) -> None:
    async with open_places() as places:
        before = await places.place(str(repository), "")
        git(repository, "checkout", "-q", "-b", "other")
        assert await places.place(str(repository), "") == before


@pytest.mark.parametrize("name", LOOPED)
async def test_links_that_lead_nowhere_make_a_place_of_its_own(tmp_path: Path, name: str) -> None:
    LOOPED[name](tmp_path)
    async with open_places() as places:
        assert await places.place(str(tmp_path), "") == Place("", str(tmp_path))
    assert look(str(tmp_path)) == Place("", str(tmp_path))


class Dead:
    """Looks at folders named "dead" hang, as on a file server that is gone, until let go."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.looks = 0

    def __call__(self, folder: str) -> Place:
        self.looks += 1
        if "dead" in folder:
            self.answers.wait()
        return Place("/r/.git", folder)


async def test_folders_that_hang_hold_no_other_and_are_not_asked_again(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    dead, guard, found = Dead(), HungLooks(), dict[str, Place]()
    places = LocalPlaces(nursery, dead, guard, look_s=0.5)
    folders = [f"{'/proc/dead' if n % 3 else '/w/good'}{n}" for n in range(120)]

    async def find(folder: str) -> None:
        found[folder] = await places.place(folder, "")

    try:
        with trio.fail_after(20):
            await for_each(folders, find, limit=8)
        for folder in folders:
            repository = "" if "dead" in folder else "/r/.git"
            assert found[folder] == Place(repository, folder)
        assert 4 <= guard.hung <= 4 + 7
        before = dead.looks
        with trio.fail_after(0.4):
            assert await places.place("/proc/dead1", "") == Place("", "/proc/dead1")
        assert dead.looks == before
        # Who looks at whole folders has heard of it.
        limits = WorkspaceLimits(TailLimits((), 1, 1_024))
        workspaces = LocalWorkspaces(tmp_path, limits, lambda: datetime.now(UTC), guard=guard)
        [seen] = await workspaces.look([WorkPlace(AgentId("ada"), "/proc/dead1", "")])
        assert isinstance(seen, WorkspaceError)
        assert seen.reason == "hangs"
    finally:
        dead.answers.set()
    with trio.fail_after(20):
        while guard.hung:  # noqa: ASYNC110 - the end of a thread that nobody waits for
            await trio.sleep(0.01)
    # It was not kept that it hung.
    assert (await places.place("/proc/dead1", "")).repository == "/r/.git"


async def test_whatever_a_look_ends_with_is_that_folders_alone(nursery: trio.Nursery) -> None:
    def see(folder: str) -> Place:
        if folder == "/w/evil":
            raise RuntimeError("/w/evil does what nobody thought of")
        return Place("/r/.git", folder)

    places = LocalPlaces(nursery, see)
    with capture_logs() as logs:
        assert await places.place("/w/evil", "told") == Place("", "/w/evil", "", "told")
    assert await places.place("/w/good", "") == Place("/r/.git", "/w/good")
    (line,) = logs
    assert (line["event"], line["error"]) == ("place.unread", "RuntimeError")
    assert "evil" not in line["folder"]
