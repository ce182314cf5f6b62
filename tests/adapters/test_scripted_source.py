"""The scripted source keeps the contract of the real one."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from tests.contracts.source_contract import SourceContract
from tests.contracts.store_values import NOON

from custosd.adapters.scripted_source import ScriptedSource
from custosd.core.transcript import Said
from custosd.ports import Incident, TranscriptPosition, TranscriptSource


class ScriptedScene:
    """Remembers what was said, as files do, and says it again to each new source."""

    def __init__(self) -> None:
        self._words: dict[str, list[str]] = {}
        self._source: ScriptedSource | None = None

    @asynccontextmanager
    async def open(
        self, positions: Iterable[TranscriptPosition] = ()
    ) -> AsyncIterator[TranscriptSource]:
        self._source = ScriptedSource(lambda: NOON, positions)
        for name, words in self._words.items():
            self._source.grow(name, *(Said("", word) for word in words))
        yield self._source
        self._source = None

    def grow(self, name: str, *words: str) -> None:
        self._words.setdefault(name, []).extend(words)
        if self._source is not None:
            self._source.grow(name, *(Said("", word) for word in words))

    def rewrite(self, name: str, *words: str) -> None:
        self._words[name] = list(words)
        if self._source is not None:
            self._source.rewrite(name, *(Said("", word) for word in words))

    def trouble(self, name: str) -> None:
        assert self._source is not None
        self._source.trouble(name, Incident("record_garbled", name))

    def word(self, said: Said) -> str:
        return said.text


class TestScriptedSource(SourceContract):
    @pytest.fixture
    def scene(self) -> ScriptedScene:
        return ScriptedScene()
