"""What all tests share: where the real transcripts lie, and how their absence is said."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"


@pytest.fixture(scope="session")
def transcripts_dir() -> Path:
    """The folder of real transcripts beside the checkout; skips where there is none."""
    folder = SHARED / "transcripts"
    if not folder.is_dir():
        pytest.skip(f"no real transcripts: {folder.name}/ is not beside the checkout")
    return folder
