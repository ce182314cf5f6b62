"""A home of its own for each test: short, for a unix socket's path lies in it."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.end_to_end.daemons import QUICK, nobody_left


@pytest.fixture
async def home() -> AsyncIterator[Path]:
    """Removed when the last process below it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="custosd-e2e-"))
    (folder / "transcripts").mkdir()
    yield folder
    await nobody_left(folder)
    shutil.rmtree(folder)


@pytest.fixture
def config(home: Path) -> Path:
    """The file of a daemon that looks each second, below `home`."""
    path = home / "custosd.toml"
    path.write_text(QUICK.format(home=home))
    return path
