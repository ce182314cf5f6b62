import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio.testing
from tests.adapters.transcripts.tiny_formats import TINY_FORMATS

from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.inotify import Inotify
from custosd.adapters.transcripts.source import SourceSettings, open_source

MAX_QUEUED_EVENTS = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


@pytest.fixture
def watch(tmp_path: Path):
    watch = Inotify()
    yield watch
    watch.close()


def test_it_names_what_changed(watch: Inotify, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")
    Path(bad).write_bytes(b"x")
    seen = watch.changes(10)
    assert seen.files == {str(tmp_path / "a"), bad}
    assert seen.folders == {str(tmp_path / "folder")}
    assert not seen.lost
    assert watch.changes(10).files == set()


def test_a_link_is_not_watched(watch: Inotify, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NotADirectoryError):
        watch.add(str(tmp_path / "link"))
    assert len(watch) == 0


def test_more_names_than_asked_for_are_lost_and_said_so(watch: Inotify, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    for i in range(20):
        (tmp_path / str(i)).write_bytes(b"")
    seen = watch.changes(10)
    assert seen.lost
    assert seen.files == set()


def test_folders_that_are_gone_or_unwanted_are_watched_no_more(
    watch: Inotify, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        watch.add(str(tmp_path / name))
    (tmp_path / "a").rmdir()
    watch.changes(10)
    assert len(watch) == 2
    watch.keep_only({str(tmp_path / "b")})
    assert len(watch) == 1
    (tmp_path / "c" / "x").write_bytes(b"")
    assert watch.changes(10).files == set()


async def test_after_an_overflow_a_rescan_finds_what_was_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    limit = MAX_QUEUED_EVENTS
    if limit > 100_000:
        pytest.skip(f"this kernel queues {limit} events: too many to overflow in a test")
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_bytes(b"{say a}\n")
    two.write_bytes(b"{say b}\n")
    settings = SourceSettings(rescan_s=math.inf)
    async with open_source([Root(tmp_path)], (), TINY_FORMATS, settings) as source:
        while source.statistics().followed < 2 or source.statistics().pending:
            await source.next_batch()
        for _ in range(limit // 2 + 10):  # alternating, or the kernel would merge them
            os.utime(one)
            os.utime(two)
        (tmp_path / "3.jsonl").write_bytes(b"{say c}\n")
        (growth,) = await source.next_batch()
        assert growth.position.path == str(tmp_path / "3.jsonl")


SCRIPT = """
import sys, trio
from pathlib import Path
from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.source import SourceSettings, open_source
from tests.adapters.transcripts.tiny_formats import TINY_FORMATS

async def main(root):
    for i in range(10):
        (root / str(i)).mkdir()
        (root / str(i) / "a.jsonl").write_bytes(b"{say a}\\n")
    settings = SourceSettings(rescan_s=1e6, blind_rescan_s=0.01)
    growths = []
    async with open_source([Root(root)], (), TINY_FORMATS, settings) as source:
        while len(growths) < 11:
            growths += await source.next_batch()
        for i in range(10):
            with (root / str(i) / "a.jsonl").open("ab") as file:
                file.write(b"{say b}\\n")
        while len(growths) < 21:
            growths += await source.next_batch()
        assert source.statistics().blind
    print(sorted(str(i.kind) + i.detail["error"] for g in growths for i in g.incidents))

trio.run(main, Path(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_when_watches_run_out_it_says_so_once_and_rescans(tmp_path: Path) -> None:
    """ENOSPC from the kernel itself: a user namespace of its own is allowed three watches."""
    limit = "echo 3 > /proc/sys/user/max_inotify_watches && exec "
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit + '"$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no user namespace")
    done = subprocess.run(
        [*command, sys.executable, "-c", SCRIPT, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
    )
    assert done.stderr == ""
    assert done.stdout == "['watch_unavailableENOSPC']\n"
