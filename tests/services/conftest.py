"""What the services' tests share: a virtual clock's wall time, and steps to tell."""

from collections.abc import Callable
from datetime import datetime

import pytest
import trio.testing

from custosd.core.effects import text_of
from custosd.core.transcript import Acted, Asked, Opened, Result, Step, StepKind, TranscriptEvent
from custosd.flow.clock import wall_clock


@pytest.fixture
def now_utc(autojump_clock: trio.testing.MockClock) -> Callable[[], datetime]:
    """Virtual wall time; made lazily, since the clock runs only inside the test."""
    made: list[Callable[[], datetime]] = []

    def now() -> datetime:
        if not made:
            made.append(wall_clock())
        return made[0]()

    return now


def opened(session: str, goal: str = "Fix the parser", thread: str = "") -> list[TranscriptEvent]:
    return [Opened(thread, session), Asked(thread, goal)]


def step(
    n: int, action: str = "ls", observation: str = "a.py", thread: str = "", **fields: object
) -> Acted:
    given = {
        "kind": StepKind.RUN,
        "result": Result.OK,
        "verb": action.split(maxsplit=1)[0],
        **fields,
    }
    return Acted(
        thread,
        Step(
            key=f"s{n}",
            tool="shell",
            action=text_of(action),  # type: ignore[arg-type]
            observation=text_of(observation),
            **given,
        ),
    )


def failing(n: int, thread: str = "") -> Acted:
    return step(
        n,
        "python app.py",
        "ModuleNotFoundError: no module named x",
        thread,
        result=Result.ERROR,
        exit_code=1,
    )
