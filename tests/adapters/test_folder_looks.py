"""Whatever changes below a folder changes what is told of it; a part is never taken for all."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.adapters.folder_looks import look_below


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.py", "src/b.py", "src/deep/c.py", ".git/index", "node_modules/x/y.js"):
        file = tmp_path / "work" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "work"


def changes(folder: Path) -> int:
    look = look_below([folder])
    assert look.whole
    return look.changes


def test_nothing_changes_nothing(folder: Path) -> None:
    before = changes(folder)
    (folder / "src" / "b.py").read_text()
    assert changes(folder) == before


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: (folder / "src/deep/c.py").write_text("changed"),
        lambda folder: (folder / "src/deep/new").touch(),
        lambda folder: (folder / "src/b.py").unlink(),
        lambda folder: (folder / "a.py").rename(folder / "z.py"),
        lambda folder: (folder / "a.py").chmod(0o700),
        lambda folder: os.utime(folder / "a.py", (1, 1)),
        lambda folder: (folder / ".git" / "HEAD").touch(),
        lambda folder: (folder / "link").symlink_to("/"),
    ],
)
def test_whatever_changes_is_seen(folder: Path, act) -> None:
    before = changes(folder)
    act(folder)
    assert changes(folder) != before


def test_a_change_that_keeps_size_and_time_is_seen(folder: Path) -> None:
    file = folder / "src" / "b.py"
    before, times = changes(folder), file.stat()
    file.write_text("SRC/B.PY")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changes(folder) != before


def test_what_is_generated_is_not_gone_into(folder: Path) -> None:
    before = changes(folder)
    (folder / "node_modules" / "x" / "y.js").write_text("changed")
    assert changes(folder) == before


def test_a_link_is_not_followed_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    before = changes(folder)
    (tmp_path / "outside" / "file").touch()
    assert changes(folder) == before


@given(most=st.integers(1, 30))
def test_a_look_is_bounded_and_says_when_it_saw_a_part(most: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("many")
    for number in range(10):
        (folder / str(number)).touch()
    look = look_below([folder], most=most)
    assert look.entries <= most
    assert look.whole is (most >= 11)


def test_a_slow_look_is_cut(folder: Path) -> None:
    look = look_below([folder], longest_s=-1)
    assert (look.whole, look.why_not) == (False, "too_slow")


def test_several_folders_are_one_look_and_an_absent_one_is_nothing(
    folder: Path, tmp_path: Path
) -> None:
    assert look_below([folder, tmp_path / "none"]).changes == look_below([folder]).changes
    assert look_below([tmp_path / "none"]).entries == 0
    assert look_below([folder / "src", folder / ".git"]).whole
