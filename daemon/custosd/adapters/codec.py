"""Trajectories as bytes: MessagePack of the fold's own fields, with a version in front."""

import msgspec

from custosd.core.errors import StoreRefused
from custosd.core.trajectory import Trajectory
from custosd.ports import TrajectoryCodec

VERSION = b"1"


class MsgpackCodec(TrajectoryCodec):
    """Fields added later with a default are read from older bytes without harm."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Trajectory)

    def encode(self, trajectory: Trajectory) -> bytes:
        """See the port."""
        return VERSION + self._encoder.encode(trajectory)

    def decode(self, data: bytes) -> Trajectory:
        """See the port."""
        if not data.startswith(VERSION):
            raise StoreRefused("a trajectory of another version of custosd")
        try:
            return self._decoder.decode(memoryview(data)[1:])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreRefused(f"a trajectory that can not be read: {error}") from error
