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


LONGEST_FIRST = ("systemd", "end_to_end", "simulation")
"""Folders of tests that mostly wait: begun first, others are run beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files are run several at a time, the longest are not left for the end."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def transcripts_dir() -> Path:
    """The folder of real transcripts beside the checkout; skips where there is none."""
    folder = SHARED / "transcripts"
    if not folder.is_dir():
        pytest.skip(f"no real transcripts: {folder.name}/ is not beside the checkout")
    return folder
