"""What the tests inside the booted machine share."""

from collections.abc import Iterator

import pytest
from tests.systemd.machine import Journal, check_inside, uninstall


@pytest.fixture
def journal() -> Iterator[Journal]:
    """What the unit says during this test; at its end the unit is stopped and its state gone."""
    check_inside()
    journal = Journal()
    yield journal
    journal.close()
    uninstall()
