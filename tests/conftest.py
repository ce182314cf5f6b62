"""What all tests share: where the real transcripts lie, and how their absence is said."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. A build repeats its examples, so
# that it is red for what changed; at the desk new ones are tried each time.
settings.register_profile(
    "custosd",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("custosd")

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"


@pytest.fixture(scope="session")
def transcripts_dir() -> Path:
    """The folder of real transcripts beside the checkout; skips where there is none."""
    folder = SHARED / "transcripts"
    if not folder.is_dir():
        pytest.skip(f"no real transcripts: {folder.name}/ is not beside the checkout")
    return folder
