"""Trajectories as MessagePack keep the codec's contract."""

import pytest
from tests.contracts.codec_contract import CodecContract

from custosd.adapters.codec import MsgpackCodec


class TestMsgpackCodec(CodecContract):
    @pytest.fixture
    def codec(self) -> MsgpackCodec:
        return MsgpackCodec()
