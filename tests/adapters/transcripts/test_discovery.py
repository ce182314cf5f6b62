import os
import subprocess
import sys
from pathlib import Path

import pytest

from custosd.adapters.transcripts.discovery import (
    MOST_DEEP,
    Folder,
    Root,
    look_at,
    walk,
    well_known_roots,
)
from custosd.ports import Incident


def names(root: Path, *globs: str) -> tuple[set[str], list[Incident]]:
    """What a walk finds, relative to the root, and what it tells."""
    incidents: list[Incident] = []
    folder = Folder(Root(root, globs) if globs else Root(root))
    found = {os.path.relpath(f.path, root) for f in walk(folder, incidents.append, lambda _: None)}
    return found, incidents


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("glob", "wanted"),
    [
        ("**/*.jsonl", {"a.jsonl", "p/b.jsonl", "p/q/c.jsonl"}),
        ("*.jsonl", {"a.jsonl"}),
        ("*/b.jsonl", {"p/b.jsonl"}),
        ("p/**", {"p/b.jsonl", "p/q/c.jsonl", "p/q/c.md"}),
        ("**/?.md", {"p/q/c.md"}),
        ("a.json", set()),
        ("a[.]jsonl", set()),
    ],
)
def test_a_glob_is_matched_below_the_root(tmp_path: Path, glob: str, wanted: set[str]) -> None:
    for name in ("a.jsonl", "p/b.jsonl", "p/q/c.jsonl", "p/q/c.md"):
        put(tmp_path / name)
    assert names(tmp_path, glob)[0] == wanted


def test_weird_names_are_names(tmp_path: Path) -> None:
    put(tmp_path / "new\nline.jsonl")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jsonl")))
    assert names(tmp_path)[0] == {"new\nline.jsonl", "bad\udcff.jsonl"}


def test_links_are_not_followed_and_told_where_they_lead_out(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "secret.jsonl").parent
    root = put(tmp_path / "root" / "a.jsonl").parent
    (root / "out").symlink_to(outside)
    (root / "out.jsonl").symlink_to(outside / "secret.jsonl")
    (root / "in.jsonl").symlink_to(root / "a.jsonl")
    (root / "loop").symlink_to(root)
    found, incidents = names(root)
    assert found == {"a.jsonl"}
    assert sorted((i.kind, Path(i.path).name) for i in incidents) == [
        ("link_refused", "out"),
        ("link_refused", "out.jsonl"),
    ]


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    real = put(tmp_path / "real" / "a.jsonl").parent
    (tmp_path / "link").symlink_to(real)
    folder = Folder(Root(tmp_path / "link"))
    (found,) = walk(folder, pytest.fail, lambda _: None)
    assert found.path == str(real / "a.jsonl")


def test_folders_too_deep_are_told_and_left(tmp_path: Path) -> None:
    put(tmp_path.joinpath(*["d"] * MOST_DEEP, "in.jsonl"))
    put(tmp_path.joinpath(*["d"] * (MOST_DEEP + 1), "out.jsonl"))
    found, incidents = names(tmp_path)
    assert {Path(name).name for name in found} == {"in.jsonl"}
    assert [i.kind for i in incidents] == ["too_deep"]


def test_paths_too_long_are_told_and_left(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl")
    put(tmp_path.joinpath(*["d" * 240] * 5, "out.jsonl"))
    found, incidents = names(tmp_path)
    assert found == {"a.jsonl"}
    assert [i.kind for i in incidents] == ["path_too_long"]


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    found, incidents = names(tmp_path)
    assert found == set()
    assert {(i.kind, Path(i.path).name) for i in incidents} == {
        ("not_a_file", "a.jsonl"),
        ("not_a_file", "b.jsonl"),
    }
    assert look_at(str(tmp_path / "a.jsonl"), Folder(Root(tmp_path)), lambda _: None) is None


def test_a_folder_that_may_not_be_read_is_told_and_the_rest_found(tmp_path: Path) -> None:
    """Root may read all, so this runs as nobody in a process of its own."""
    put(tmp_path / "root" / "a.jsonl")
    put(tmp_path / "root" / "closed" / "b.jsonl").parent.chmod(0)
    (tmp_path / "root").chmod(0o755)
    tmp_path.chmod(0o755)
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from custosd.adapters.transcripts.discovery import Folder, Root, walk\n"
        "if os.geteuid() == 0: os.chown('root/closed', 65534, 65534)\n"
        "folder = Folder(Root(Path('root')))\n"
        "folder.real = 'root'\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "told = []\n"
        "print([f.path for f in walk(folder, told.append, lambda _: None)],"
        " [(str(i.kind), i.path, i.detail['error']) for i in told])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "['root/a.jsonl'] [('unreadable', 'root/closed', 'EACCES')]\n"


def test_a_root_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert names(tmp_path / "none") == (set(), [])


def test_each_folder_is_named_before_it_is_listed(tmp_path: Path) -> None:
    """A file that appears once the folder is watched is found by the listing or the watch."""
    (tmp_path / "p").mkdir()

    def on_folder(folder: str) -> None:
        put(Path(folder) / "late.jsonl")

    folder = Folder(Root(tmp_path))
    found = {f.path for f in walk(folder, pytest.fail, on_folder)}
    assert found == {str(tmp_path / "late.jsonl"), str(tmp_path / "p" / "late.jsonl")}


def test_well_known_roots_are_those_that_exist(tmp_path: Path) -> None:
    assert well_known_roots({}, tmp_path) == ()
    for name in (".claude/projects", ".codex/sessions", "else/projects", "cx/sessions"):
        (tmp_path / name).mkdir(parents=True)
    plain = [r.path.relative_to(tmp_path) for r in well_known_roots({}, tmp_path)]
    assert plain == [Path(".claude/projects"), Path(".codex/sessions")]
    moved = {"CLAUDE_CONFIG_DIR": str(tmp_path / "else"), "CODEX_HOME": str(tmp_path / "cx")}
    paths = [r.path.relative_to(tmp_path) for r in well_known_roots(moved, tmp_path)]
    assert paths == [Path(".claude/projects"), Path("else/projects"), Path("cx/sessions")]
