"""The shipped fake keeps the contract of the real channels."""

import pytest
from tests.contracts.channel_contract import ChannelContract

from custosd.adapters.channels.recorded import RecordedChannel


class Recording:
    def __init__(self) -> None:
        self.channel = RecordedChannel()

    async def arrived(self) -> list[str]:
        return [letter.text for letter in self.channel.letters]


class TestRecordedChannel(ChannelContract):
    @pytest.fixture
    def scene(self) -> Recording:
        return Recording()
