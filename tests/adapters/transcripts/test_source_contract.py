"""The source on real files keeps the contract that its fake keeps."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.adapters.transcripts.tiny_formats import TINY_FORMATS
from tests.contracts.source_contract import SourceContract

from custosd.adapters.transcripts.discovery import Root
from custosd.adapters.transcripts.source import SourceSettings, open_source
from custosd.core.transcript import Said
from custosd.ports import TranscriptPosition, TranscriptSource

SETTINGS = SourceSettings(settle_s=0.001, rescan_s=1_000.0)


class FileScene:
    """Files of the tiny line format below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @asynccontextmanager
    async def open(
        self, positions: Iterable[TranscriptPosition] = ()
    ) -> AsyncIterator[TranscriptSource]:
        roots = [Root(self._root)]
        async with open_source(roots, list(positions), TINY_FORMATS, SETTINGS) as source:
            yield source

    def grow(self, name: str, *words: str) -> None:
        with self._path(name).open("a") as file:
            file.writelines(f"{{say {word}}}\n" for word in words)

    def rewrite(self, name: str, *words: str) -> None:
        self._path(name).write_text("".join(f"{{say {word}}}\n" for word in words))

    def trouble(self, name: str) -> None:
        with self._path(name).open("a") as file:
            file.write("no braces\n")

    def word(self, said: Said) -> str:
        return said.text.partition(" ")[2]

    def _path(self, name: str) -> Path:
        return self._root / f"{name}.jsonl"


class TestTranscriptSource(SourceContract):
    @pytest.fixture
    def scene(self, tmp_path: Path) -> FileScene:
        return FileScene(tmp_path)
