"""What every `ports.TranscriptSource` promises; collected for each by a subclass with `scene`."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from custosd.core.transcript import Said
from custosd.ports import Growth, TranscriptPosition, TranscriptSource


class Scene(Protocol):
    """Transcripts that a test lets grow; they outlive the sources that read them."""

    def open(
        self, positions: Iterable[TranscriptPosition] = ()
    ) -> AbstractAsyncContextManager[TranscriptSource]:
        """A source that goes on behind these positions."""
        ...

    def grow(self, name: str, *words: str) -> None:
        """Let something more be said in a transcript."""
        ...

    def rewrite(self, name: str, *words: str) -> None:
        """Replace a transcript as a whole."""
        ...

    def trouble(self, name: str) -> None:
        """Let something come that cannot be read; an incident of kind "record_garbled"."""
        ...

    def word(self, said: Said) -> str:
        """The word that was told by `grow` or `rewrite`."""
        ...


@dataclass
class Reader:
    """Folds and stores as the real consumer does, both in one step."""

    scene: Scene
    stored: dict[str, TranscriptPosition] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    incidents: list[str] = field(default_factory=list)
    rewinds: int = 0

    def take(self, growths: Sequence[Growth]) -> None:
        for growth in growths:
            at = growth.position
            told = self.words.setdefault(_name(at), [])
            if growth.rewound:
                told.clear()
                self.rewinds += 1
            told += [self.scene.word(e) for e in growth.events if isinstance(e, Said)]
            self.incidents += [incident.kind for incident in growth.incidents]
            self.stored[at.key] = at

    async def until(self, source: TranscriptSource, word: str) -> None:
        """Take batches until this word was told."""
        while not any(word in told for told in self.words.values()):
            self.take(await source.next_batch())


def _name(at: TranscriptPosition) -> str:
    return at.path.rpartition("/")[2].partition(".")[0]


class SourceContract:
    """The tests. `scene` has no transcripts yet."""

    async def test_growth_is_told_in_order_and_once(self, scene: Scene) -> None:
        reader = Reader(scene)
        scene.grow("a", "one", "two")
        async with scene.open() as source:
            scene.grow("a", "three")
            await reader.until(source, "three")
            scene.grow("b", "five")
            scene.grow("a", "four")
            await reader.until(source, "four")
            await reader.until(source, "five")
            scene.grow("a", "six")
            await reader.until(source, "six")
        assert reader.words == {"a": ["one", "two", "three", "four", "six"], "b": ["five"]}
        assert (reader.rewinds, reader.incidents) == (0, [])

    async def test_from_stored_positions_exactly_the_rest_is_told(self, scene: Scene) -> None:
        reader = Reader(scene)
        scene.grow("a", "one", "two")
        scene.grow("b", "three")
        async with scene.open() as source:
            await reader.until(source, "two")
            await reader.until(source, "three")
        scene.grow("a", "four")
        scene.grow("c", "five")
        async with scene.open(reader.stored.values()) as source:
            await reader.until(source, "four")
            await reader.until(source, "five")
            scene.grow("b", "six")
            await reader.until(source, "six")
        assert reader.words == {
            "a": ["one", "two", "four"],
            "b": ["three", "six"],
            "c": ["five"],
        }
        assert reader.rewinds == 0

    async def test_what_was_told_and_not_stored_is_told_again(self, scene: Scene) -> None:
        reader = Reader(scene)
        scene.grow("a", "one", "two")
        async with scene.open() as source:
            await Reader(scene).until(source, "two")
        async with scene.open() as source:
            await reader.until(source, "two")
        assert reader.words == {"a": ["one", "two"]}

    async def test_a_cancelled_wait_loses_nothing(self, scene: Scene) -> None:
        """Cancelled before it waits and while it does, with news there and without."""
        reader = Reader(scene)
        scene.grow("a", "one")
        async with scene.open() as source:
            for n in range(10):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    reader.take(await source.next_batch())
                with trio.move_on_after(0.0005 * n):
                    reader.take(await source.next_batch())
                scene.grow("a", f"w{n}")
            await reader.until(source, "w9")
        assert reader.words == {"a": ["one", *(f"w{n}" for n in range(10))]}
        assert reader.rewinds == 0

    async def test_of_a_rewritten_transcript_all_is_told_anew(self, scene: Scene) -> None:
        reader = Reader(scene)
        scene.grow("a", "one", "two", "three")
        async with scene.open() as source:
            await reader.until(source, "three")
            scene.rewrite("a", "new", "words")
            await reader.until(source, "words")
            scene.grow("a", "more")
            await reader.until(source, "more")
        assert reader.words == {"a": ["new", "words", "more"]}
        assert reader.rewinds == 1

    async def test_trouble_is_told_once_and_the_rest_goes_on(self, scene: Scene) -> None:
        reader = Reader(scene)
        scene.grow("a", "one")
        async with scene.open() as source:
            await reader.until(source, "one")
            scene.trouble("a")
            scene.grow("a", "two")
            scene.grow("b", "three")
            await reader.until(source, "two")
            await reader.until(source, "three")
            scene.grow("a", "four")
            await reader.until(source, "four")
        assert reader.words == {"a": ["one", "two", "four"], "b": ["three"]}
        assert reader.incidents == ["record_garbled"]
