"""Services are run anew when what they were made of has changed, and only then."""

from dataclasses import dataclass

import trio
import trio.testing

from custosd.flow.renewal import Renewal
from custosd.flow.supervise import Failure, RestartPolicy


@dataclass(frozen=True)
class Made:
    one: int = 0
    two: int = 0


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures: list[Failure] = []

    def service(self, name: str, start_s: float = 1.0, end_s: float = 1.0):
        async def run(value: Made, task_status: trio.TaskStatus[None]) -> None:
            self.lines.append(f"{name} begins {value.one}{value.two}")
            await trio.sleep(start_s)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(end_s)
                self.lines.append(f"{name} ended")

        return run


async def test_only_what_was_made_of_what_changed_is_run_anew_after_it_has_ended(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    log, renewal = Log(), Renewal(Made())
    for name, needs in (("a", lambda made: made.one), ("b", lambda made: made.two)):
        await nursery.start(
            renewal.run, name, needs, log.service(name), RestartPolicy(), log.failures.append
        )
    assert log.lines == ["a begins 00", "b begins 00"]
    assert await renewal.renew(Made(one=1)) == ("a",)
    assert log.lines[2:] == ["a ended", "a begins 10"]
    assert await renewal.renew(Made(one=1)) == ()
    assert await renewal.renew(Made(one=1, two=2)) == ("b",)
    assert log.lines[4:] == ["b ended", "b begins 12"]
    assert log.failures == []


async def test_a_renewal_waits_until_the_new_run_has_started(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    log, renewal = Log(), Renewal(Made())
    service = log.service("a", start_s=7, end_s=3)
    await nursery.start(
        renewal.run, "a", lambda made: made.one, service, RestartPolicy(), log.failures.append
    )
    began = trio.current_time()
    await renewal.renew(Made(one=1))
    assert trio.current_time() - began == 10


async def test_a_service_that_fails_is_run_again_with_the_same_value(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    seen: list[int] = []
    failures: list[Failure] = []

    async def service(value: Made, task_status: trio.TaskStatus[None]) -> None:
        seen.append(value.one)
        task_status.started()
        if len(seen) == 2:
            raise OSError
        await trio.sleep_forever()

    renewal = Renewal(Made(one=5))
    await nursery.start(
        renewal.run, "a", lambda made: made.one, service, RestartPolicy(), failures.append
    )
    await renewal.renew(Made(one=6))
    await trio.sleep(60)
    assert seen == [5, 6, 6]
    assert len(failures) == 1


async def test_a_service_that_ended_is_not_run_anew(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async def service(_: Made, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    renewal = Renewal(Made())
    await nursery.start(
        renewal.run, "a", lambda made: made.one, service, RestartPolicy(), lambda _: None
    )
    await trio.testing.wait_all_tasks_blocked()
    assert await renewal.renew(Made(one=1)) == ()


async def test_a_cancellation_from_outside_ends_it_during_a_renewal_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log, renewal = Log(), Renewal(Made())
    async with trio.open_nursery() as nursery:
        service = log.service("a", start_s=5)
        await nursery.start(
            renewal.run, "a", lambda made: made.one, service, RestartPolicy(), log.failures.append
        )
        nursery.start_soon(renewal.renew, Made(one=1))
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert log.lines == ["a begins 00", "a ended", "a begins 10"]
