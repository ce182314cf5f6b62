"""The source on real files and the real inotify; it is the source itself that is waited on."""

import os
import resource
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.adapters.transcripts.tiny_formats import TINY_FORMATS, TINY_LINES, TinyState

from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.format import LineFormat
from custosd.adapters.transcripts.limits import ReadLimits
from custosd.adapters.transcripts.source import SourceSettings, TranscriptSource, open_source
from custosd.adapters.transcripts.tail import Formats
from custosd.core.transcript import Opened, Said, TranscriptEvent
from custosd.ports import Growth, TranscriptPosition

SETTINGS = SourceSettings(settle_s=0.001, rescan_s=1_000.0)


@dataclass
class Consumer:
    """Folds and stores as the real one does: both in one step."""

    root: Path
    settings: SourceSettings = SETTINGS
    formats: Formats = TINY_FORMATS
    stored: dict[str, TranscriptPosition] = field(default_factory=dict)
    events: dict[str, list[TranscriptEvent]] = field(default_factory=dict)
    incidents: list[str] = field(default_factory=list)
    rewinds: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TranscriptSource]:
        roots = [Root(self.root)]
        positions = list(self.stored.values())
        async with open_source(roots, positions, self.formats, self.settings) as source:
            yield source

    def take(self, batch: Sequence[Growth]) -> None:
        for growth in batch:
            self.incidents += [i.kind for i in growth.incidents]
            if not growth.position.key:
                assert growth.events == ()
                continue
            if growth.rewound:
                self.events[growth.position.key] = []
                self.rewinds += 1
            self.events.setdefault(growth.position.key, []).extend(growth.events)
            self.stored[growth.position.key] = growth.position

    async def until(self, source: TranscriptSource, *words: str) -> None:
        """Take batches until these words were said, by whichever transcript."""
        while not set(words) <= self.words():
            self.take(await source.next_batch())

    async def until_told(self, source: TranscriptSource, *kinds: str) -> None:
        while not set(kinds) <= set(self.incidents):
            self.take(await source.next_batch())

    def words(self) -> set[str]:
        return {w for key in self.events for w in self.said(key)}

    def said(self, key: str | Path) -> list[str]:
        return [e.text.split(maxsplit=1)[-1] for e in self.events[str(key)] if isinstance(e, Said)]


@pytest.fixture
def consumer(tmp_path: Path) -> Consumer:
    root = tmp_path / "root"
    root.mkdir()
    return Consumer(root)


def append(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{{{line}}}\n" for line in lines)
    return path


async def test_what_is_there_and_what_is_written_later_is_told_once(consumer: Consumer) -> None:
    a = append(consumer.root / "a.jsonl", "open s", "say one")
    async with consumer.open() as source:
        await consumer.until(source, "one")
        append(a, "say two")
        b = append(consumer.root / "b.jsonl", "open t", "say three")
        await consumer.until(source, "two", "three")
    assert consumer.said(a) == ["one", "two"]
    assert consumer.said(b) == ["three"]
    assert consumer.incidents == []


async def test_new_folders_are_watched_as_they_appear(consumer: Consumer) -> None:
    async with consumer.open() as source:
        append(consumer.root / "a.jsonl", "say one")
        await consumer.until(source, "one")
        path = append(consumer.root / "p" / "q" / "b.jsonl", "say two")
        await consumer.until(source, "two")
        append(path, "say three")
        await consumer.until(source, "three")
        (consumer.root / "p").rename(consumer.root / "moved")
        append(consumer.root / "moved" / "q" / "c.jsonl", "say four")
        await consumer.until(source, "four")
    assert consumer.said(path) == ["two", "three"]


async def test_a_root_that_is_made_later_is_found_by_a_rescan(
    consumer: Consumer, autojump_clock: trio.testing.MockClock
) -> None:
    shutil.rmtree(consumer.root)
    async with consumer.open() as source, trio.open_nursery() as nursery:
        nursery.start_soon(consumer.until, source, "one")
        await trio.sleep(1)
        append(consumer.root / "a.jsonl", "say one")


async def test_names_of_any_bytes_are_followed(consumer: Consumer) -> None:
    """The watch, the position and the message bear what UTF-8 does not."""
    async with consumer.open() as source:
        append(consumer.root / "a.jsonl", "say one")
        await consumer.until(source, "one")
        path = Path(os.fsdecode(os.fsencode(consumer.root) + b"/bad\xff\n.jsonl"))
        append(path, "say two")
        await consumer.until(source, "two")
        append(path, "say three")
        await consumer.until(source, "three")
    key = f"{consumer.root}/bad\\xff\\n.jsonl"
    assert consumer.said(key) == ["two", "three"]
    assert consumer.stored[key].path == key
    append(path, "say four")
    async with consumer.open() as source:
        await consumer.until(source, "four")
    assert consumer.said(key) == ["two", "three", "four"]


async def test_opened_again_it_goes_on_behind_what_was_stored(consumer: Consumer) -> None:
    a = append(consumer.root / "a.jsonl", "open s", "say one")
    async with consumer.open() as source:
        await consumer.until(source, "one")
        append(a, "say two")
        before = await source.next_batch()  # handed out, and lost with the process
        assert before
    append(a, "say three")
    async with consumer.open() as source:
        await consumer.until(source, "three")
    assert consumer.said(a) == ["one", "two", "three"]
    assert consumer.rewinds == 0


async def test_what_did_not_change_is_not_opened_at_a_restart(consumer: Consumer) -> None:
    a = append(consumer.root / "a.jsonl", "open s", "say one")
    async with consumer.open() as source:
        await consumer.until(source, "one")
    b = append(consumer.root / "b.jsonl", "say two")
    seen: list[str] = []

    def opening(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(consumer.root)):
            seen.append(str(arguments[0]))

    _auditors.append(opening)
    async with consumer.open() as source:
        await consumer.until(source, "two")
    _auditors.remove(opening)
    assert str(b) in seen
    assert str(a) not in seen


_auditors: list = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    for auditor in _auditors:
        auditor(event, arguments)


@pytest.fixture(autouse=True, scope="module")
def auditing() -> None:
    import sys  # noqa: PLC0415 only this fixture needs it

    sys.addaudithook(_audit)


async def test_a_cancelled_wait_loses_nothing(consumer: Consumer) -> None:
    a = append(consumer.root / "a.jsonl", *(f"say w{i}" for i in range(200)))
    consumer.settings = replace(SETTINGS, limits=ReadLimits(read_chunk_bytes=64))
    async with consumer.open() as source:
        calls = 0
        while "w199" not in consumer.words():
            calls += 1
            with trio.CancelScope() as scope:
                # Cut short at a checkpoint further along each time.
                scope.deadline = trio.current_time() + 0.0001 * (calls % 20)
                consumer.take(await source.next_batch())
    assert consumer.said(a) == [f"w{i}" for i in range(200)]


async def test_a_large_file_does_not_starve_the_others(consumer: Consumer) -> None:
    consumer.settings = replace(SETTINGS, limits=ReadLimits(read_chunk_bytes=1000))
    append(consumer.root / "large.jsonl", *(f"say w{i}" for i in range(20_000)))
    append(consumer.root / "small.jsonl", "say small")
    async with consumer.open() as source:
        await consumer.until(source, "small")
        assert "w19999" not in consumer.words()
        await consumer.until(source, "w19999")


async def test_without_watches_rescans_find_the_changes(
    consumer: Consumer, autojump_clock: trio.testing.MockClock
) -> None:
    """EMFILE, as when all inotify instances of the user are taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    append(consumer.root / "a.jsonl", "say one")
    used = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 names only
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        async with consumer.open() as source:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            source._open_watch = lambda: None  # type: ignore[method-assign]
            await consumer.until(source, "one")
            assert source.statistics().blind
            append(consumer.root / "a.jsonl", "say two")
            append(consumer.root / "p" / "b.jsonl", "say three")
            started_at = trio.current_time()
            await consumer.until(source, "two", "three")
            assert trio.current_time() - started_at <= 2 * SETTINGS.blind_rescan_s
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert consumer.incidents.count("watch_unavailable") == 1


async def test_one_file_whose_reading_fails_costs_itself(consumer: Consumer) -> None:
    def failing(sample: object) -> LineFormat[TinyState]:
        if str(getattr(sample, "path", "")).endswith("bad.jsonl"):
            raise ZeroDivisionError
        return TINY_LINES

    consumer.formats = Formats(failing, lambda _: TINY_LINES)
    append(consumer.root / "bad.jsonl", "say never")
    append(consumer.root / "good.jsonl", "say one")
    async with consumer.open() as source:
        await consumer.until(source, "one")
        append(consumer.root / "good.jsonl", "say two")
        append(consumer.root / "bad.jsonl", "say never")
        await consumer.until(source, "two")
        await consumer.until_told(source, "read_failed")
    assert consumer.incidents == ["read_failed"]


async def test_old_files_are_left_alone_until_they_change(consumer: Consumer) -> None:
    old = append(consumer.root / "old.jsonl", "say old")
    os.utime(old, (1, 1))
    append(consumer.root / "new.jsonl", "say new")
    async with consumer.open() as source:
        await consumer.until(source, "new")
        assert source.statistics().followed == 1
        append(old, "say again")
        await consumer.until(source, "again")
    assert consumer.said(old) == ["old", "again"]


async def test_the_newest_files_are_followed_when_there_are_too_many(consumer: Consumer) -> None:
    consumer.settings = replace(SETTINGS, max_files=3)
    now = int(time.time())
    for i in range(6):
        path = append(consumer.root / f"{i}.jsonl", f"say w{i}")
        os.utime(path, (now - 100 + i, now - 100 + i))
    async with consumer.open() as source:
        await consumer.until(source, "w3", "w4", "w5")
        await consumer.until_told(source, "too_many_files")
        assert source.statistics().followed == 3
        (consumer.root / "3.jsonl").unlink()
        await consumer.until_told(source, "vanished")
        append(consumer.root / "0.jsonl", "say again")
        await consumer.until(source, "again")
        assert source.statistics().followed == 3


async def test_links_and_pipes_are_told_once_and_the_rest_goes_on(consumer: Consumer) -> None:
    outside = append(consumer.root.parent / "outside.jsonl", "say secret")
    (consumer.root / "link.jsonl").symlink_to(outside)
    os.mkfifo(consumer.root / "pipe.jsonl")
    async with consumer.open() as source:
        append(consumer.root / "a.jsonl", "say one")
        await consumer.until(source, "one")
        await consumer.until_told(source, "link_refused", "not_a_file")
        append(outside, "say secret")
        append(consumer.root / "a.jsonl", "say two")
        await consumer.until(source, "two")
    assert sorted(consumer.incidents) == ["link_refused", "not_a_file"]
    assert "secret" not in consumer.words()


async def test_a_new_sort_of_record_is_told_once_for_all_files(consumer: Consumer) -> None:
    for i in range(5):
        append(consumer.root / f"{i}.jsonl", "novelty", f"say w{i}")
    async with consumer.open() as source:
        await consumer.until(source, *(f"w{i}" for i in range(5)))
    assert consumer.incidents == ["record_unknown"]


async def test_a_vanished_file_keeps_its_position(consumer: Consumer) -> None:
    a = append(consumer.root / "a.jsonl", "open s", "say one")
    async with consumer.open() as source:
        await consumer.until(source, "one")
        kept = a.rename(consumer.root.parent / "kept")
        await consumer.until_told(source, "vanished")
        append(kept, "say two")
        kept.rename(a)
        await consumer.until(source, "two")
    assert consumer.said(a) == ["one", "two"]


class TestCopies:
    async def test_a_copy_is_not_counted_again(self, consumer: Consumer) -> None:
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        async with consumer.open() as source:
            await consumer.until(source, "one")
            shutil.copy(a, consumer.root / "b.jsonl")
            await consumer.until_told(source, "duplicate")
            append(a, "say two")
            await consumer.until(source, "two")
        assert list(consumer.events) == [str(a)]
        assert consumer.incidents == ["duplicate"]

    async def test_two_copies_met_at_once_are_one(self, consumer: Consumer) -> None:
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        shutil.copy(a, consumer.root / "b.jsonl")
        async with consumer.open() as source:
            await consumer.until_told(source, "duplicate")
        assert len(consumer.events) == 1

    async def test_the_copy_that_grows_longer_takes_over(self, consumer: Consumer) -> None:
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        async with consumer.open() as source:
            await consumer.until(source, "one")
            b = consumer.root / "b.jsonl"
            shutil.copy(a, b)
            await consumer.until_told(source, "duplicate")
            append(b, "say two")
            await consumer.until(source, "two")
            append(b, "say three")
            await consumer.until(source, "three")
        assert list(consumer.events) == [str(a)]  # the key that was known first
        assert consumer.said(a) == ["one", "two", "three"]
        assert consumer.stored[str(a)].path == str(b)
        append(b, "say four")
        async with consumer.open() as source:
            await consumer.until(source, "four")
        assert consumer.said(a) == ["one", "two", "three", "four"]
        assert consumer.rewinds == 0

    async def test_a_copy_takes_over_while_what_it_was_copied_from_is_read(
        self, consumer: Consumer
    ) -> None:
        """Both changed while nobody looked: what both hold is told once."""
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        async with consumer.open() as source:
            await consumer.until(source, "one")
        append(a, "say two")
        shutil.copy(a, consumer.root / "b.jsonl")
        append(consumer.root / "b.jsonl", "say three")
        async with consumer.open() as source:
            await consumer.until(source, "three")
            await consumer.until_told(source, "duplicate")
        assert list(consumer.events) == [str(a)]
        assert consumer.said(a) == ["one", "two", "three"]

    async def test_a_moved_file_goes_on_under_its_key(self, consumer: Consumer) -> None:
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        async with consumer.open() as source:
            await consumer.until(source, "one")
            b = a.rename(consumer.root / "b.jsonl")
            append(b, "say two")
            await consumer.until(source, "two")
            append(a, "open u", "say other")  # a new transcript at the old path
            await consumer.until(source, "other")
        assert consumer.said(a) == ["one", "two"]
        (other,) = set(consumer.events) - {str(a)}
        assert other.startswith(f"{a}#")
        assert consumer.said(other) == ["other"]

    async def test_a_fork_of_a_session_is_a_transcript_of_its_own(self, consumer: Consumer) -> None:
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        async with consumer.open() as source:
            await consumer.until(source, "one")
            b = consumer.root / "b.jsonl"
            shutil.copy(a, b)
            await consumer.until_told(source, "duplicate")
            append(a, "say two")
            append(b, "say else", "say entirely")
            await consumer.until(source, "two", "entirely")
        assert consumer.said(a) == ["one", "two"]
        assert consumer.said(b) == ["one", "else", "entirely"]

    async def test_one_name_for_two_sessions_is_two_transcripts(self, consumer: Consumer) -> None:
        append(consumer.root / "a.jsonl", "open s", "say one")
        append(consumer.root / "b.jsonl", "open s", "say two")
        async with consumer.open() as source:
            await consumer.until(source, "one", "two")
        assert len(consumer.events) == 2

    async def test_a_shorter_copy_takes_over_when_the_longer_one_is_gone_and_it_grew(
        self, consumer: Consumer
    ) -> None:
        a = append(consumer.root / "a.jsonl", "open s", "say one")
        b = consumer.root / "b.jsonl"
        async with consumer.open() as source:
            await consumer.until(source, "one")
            shutil.copy(a, b)
            await consumer.until_told(source, "duplicate")
            a.unlink()
            await consumer.until_told(source, "vanished", "moved")
            append(b, "say two")
            await consumer.until(source, "two")
        assert list(consumer.events) == [str(a)]
        assert consumer.said(a) == ["one", "two"]

    async def test_documents_are_compared_by_what_they_tell(self, consumer: Consumer) -> None:
        a = consumer.root / "a.json"
        a.write_text('["s", "one"]')
        async with consumer.open() as source:
            await consumer.until(source, "one")
            (consumer.root / "b.json").write_text('["s","one"]')
            await consumer.until_told(source, "duplicate")
            (consumer.root / "c.json").write_text('["s", "else"]')
            await consumer.until(source, "else")
        assert set(consumer.events) == {str(a), str(consumer.root / "c.json")}


async def test_documents_rewritten_are_told_by_what_is_new(consumer: Consumer) -> None:
    a = consumer.root / "a.json"
    a.write_text('["s", "one"]')
    async with consumer.open() as source:
        await consumer.until(source, "one")
        part = consumer.root / "a.json.part"
        part.write_text('["s", "one", "two"]')
        part.rename(a)
        await consumer.until(source, "two")
    assert consumer.events[str(a)] == [Opened("", "s"), Said("", "one"), Said("", "two")]
    assert consumer.rewinds == 0


async def test_an_idle_source_is_asleep(
    consumer: Consumer, autojump_clock: trio.testing.MockClock
) -> None:
    """Between two rescans nobody runs: the only thing that wakes is the next rescan."""
    for i in range(50):
        append(consumer.root / f"{i}.jsonl", f"say w{i}")
    async with consumer.open() as source:
        await consumer.until(source, *(f"w{i}" for i in range(50)))
        with trio.move_on_after(0.5):
            await source.next_batch()  # late hints of the writing itself
        wakes: list[float] = []

        class Wakes(trio.abc.Instrument):
            def task_scheduled(self, task: trio.lowlevel.Task) -> None:
                wakes.append(trio.current_time())

        trio.lowlevel.add_instrument(instrument := Wakes())
        with trio.move_on_after(900):
            await source.next_batch()
        trio.lowlevel.remove_instrument(instrument)
    assert len({round(at) for at in wakes}) <= 2  # falling asleep, and being cancelled
