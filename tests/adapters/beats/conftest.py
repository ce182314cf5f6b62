"""A door on a real socket before a real register."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from custosd.adapters.beats.admission import Admission
from custosd.adapters.beats.socket import BeatSocketSettings, receive_beats
from custosd.core.tokens import Token, hash_of
from custosd.flow.pulse import Pulse
from custosd.services.beats import BeatRegister


@dataclass
class OpenDoor:
    """The register behind the socket at `path`; `uids` are the agents' users."""

    path: Path
    uids: dict[str, int] = field(default_factory=dict)
    register: BeatRegister = field(default_factory=lambda: BeatRegister(lambda _agent: True))

    def __post_init__(self) -> None:
        when = datetime(2026, 1, 1, tzinfo=UTC)
        tokens = {"a": Token("a", hash_of("secret"), when, "test", "ada")}
        self.admission = Admission(self.register, lambda: tokens, self.uids.get)

    def settings(self, **limits: Any) -> BeatSocketSettings:
        return BeatSocketSettings(self.path, **limits)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "beats.sock"


@pytest.fixture
async def door(nursery: trio.Nursery, path: Path) -> OpenDoor:
    opened = OpenDoor(path)
    pulse = Pulse("beats", trio.current_time())
    await nursery.start(receive_beats, opened.settings(), opened.admission, pulse)
    return opened
