"""A small fleet with plants, under a real daemon: the same as `make fleet`, in half a minute."""

from pathlib import Path

import pytest
from tests.fleet.run import fleet
from tests.fleet.score import table


@pytest.mark.timeout(180)
async def test_all_that_was_planted_is_found_and_nothing_is_invented(home: Path) -> None:
    found, _ = await fleet(home, agents=12, seconds=20.0, seed=1, look="1s", kill=False)
    assert all(row.good for row in found), "\n" + table(found)
    kinds = {row.kind: row.planted for row in found}
    assert all(
        kinds[kind] for kind in ("duplicate", "conflict", "drifting", "stuck", "task comes back")
    )
