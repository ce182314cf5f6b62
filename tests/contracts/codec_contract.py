"""What every `ports.TrajectoryCodec` promises; collected by a subclass with a fixture `codec`."""

import pytest

from custosd.core.effects import text_of
from custosd.core.errors import StoreRefused
from custosd.core.trajectory import Trajectory
from custosd.core.transcript import Acted, Asked, Opened, Result, Step, StepKind, TranscriptEvent
from custosd.ports import TrajectoryCodec


def events(first: int, end: int) -> list[TranscriptEvent]:
    return [
        Acted(
            "",
            Step(
                f"s{n}",
                StepKind.RUN,
                "shell",
                "python",
                text_of(f"python a{n % 3}.py 日本"),
                text_of("\0 no\n" * n),
                Result.ERROR if n % 2 else Result.OK,
                exit_code=n % 2,
            ),
        )
        for n in range(first, end)
    ]


def folded(*told: TranscriptEvent) -> Trajectory:
    trajectory = Trajectory()
    for event in told:
        trajectory.advance(event)
    return trajectory


BEGIN: tuple[TranscriptEvent, ...] = (Opened("", "s"), Asked("", "Fix src/parser.py 🦊"))


class CodecContract:
    """The tests."""

    @pytest.mark.parametrize("steps", [0, 1, 40])
    async def test_a_fold_comes_back_as_it_was(self, codec: TrajectoryCodec, steps: int) -> None:
        trajectory = folded(*BEGIN, *events(0, steps))
        again = codec.decode(codec.encode(trajectory))
        assert again == trajectory
        assert again.digest() == trajectory.digest()

    async def test_a_fold_that_came_back_goes_on_as_if_it_had_never_left(
        self, codec: TrajectoryCodec
    ) -> None:
        again = codec.decode(codec.encode(folded(*BEGIN, *events(0, 10))))
        for event in events(10, 20):
            again.advance(event)
        assert again.digest() == folded(*BEGIN, *events(0, 20)).digest()

    async def test_what_is_encoded_does_not_change_with_the_fold(
        self, codec: TrajectoryCodec
    ) -> None:
        trajectory = folded(*BEGIN)
        data = codec.encode(trajectory)
        before = codec.decode(data).digest()
        for event in events(0, 5):
            trajectory.advance(event)
        assert codec.decode(data).digest() == before

    @pytest.mark.parametrize("of", ["nothing", "another version", "half", "garbage"])
    async def test_bytes_that_are_not_a_fold_of_this_version_are_refused(
        self, codec: TrajectoryCodec, of: str
    ) -> None:
        data = codec.encode(folded(*BEGIN, *events(0, 3)))
        bad = {
            "nothing": b"",
            "another version": bytes([data[0] + 1]) + data[1:],
            "half": data[: len(data) // 2],
            "garbage": data[:1] + b"\xc1\xff" * 20,
        }
        with pytest.raises(StoreRefused):
            codec.decode(bad[of])
