import math

import pytest
import trio
import trio.testing

from custosd.flow.supervise import Failure, RestartPolicy, supervise

POLICY = RestartPolicy(
    first_delay_s=1, factor=2, longest_delay_s=10, stable_after_s=100, most=4, period_s=1000
)


class Faulty:
    """A service that runs for so long each time and then fails, until it is out of faults."""

    def __init__(self, *runs_s: float) -> None:
        self._left = list(runs_s)
        self.began_at: list[float] = []

    async def __call__(self, task_status: trio.TaskStatus[None]) -> None:
        self.began_at.append(trio.current_time())
        task_status.started()
        if not self._left:
            return
        await trio.sleep(self._left.pop(0))
        raise OSError(f"run {len(self.began_at)}")


async def test_a_failed_service_runs_again_after_longer_and_longer_pauses(
    autojump_clock: trio.testing.MockClock,
):
    service, told = Faulty(0, 0, 0), list[Failure]()
    await supervise("svc", service, POLICY, told.append)

    assert service.began_at == [0, 1, 3, 7]
    assert [(f.name, str(f.error), f.failures_in_period, f.delay_s) for f in told] == [
        ("svc", "run 1", 1, 1),
        ("svc", "run 2", 2, 2),
        ("svc", "run 3", 3, 4),
    ]


async def test_a_run_that_held_begins_the_pauses_anew(
    autojump_clock: trio.testing.MockClock,
):
    service, told = Faulty(0, 0, 100, 0), list[Failure]()
    await supervise("svc", service, POLICY, told.append)
    assert [f.delay_s for f in told] == [1, 2, 1, 2]
    assert told[2].ran_s == 100


async def test_too_many_failures_within_the_period_let_the_last_error_out(
    autojump_clock: trio.testing.MockClock,
):
    service, told = Faulty(*[0] * 9), list[Failure]()
    with pytest.raises(OSError, match="run 5"):
        await supervise("svc", service, POLICY, told.append)
    assert [f.delay_s for f in told] == [1, 2, 4, 8, None]
    assert len(service.began_at) == 5


async def test_failures_that_are_long_past_do_not_count(
    autojump_clock: trio.testing.MockClock,
):
    service, told = Faulty(*[500] * 20), list[Failure]()
    await supervise("svc", service, POLICY, told.append)
    assert len(told) == 20
    assert max(f.failures_in_period for f in told) == 2


async def test_cancellation_is_no_failure(autojump_clock: trio.testing.MockClock):
    told: list[Failure] = []

    async def service(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    with trio.move_on_after(5) as scope:
        await supervise("svc", service, POLICY, told.append)
    assert scope.cancelled_caught
    assert told == []


async def test_it_has_started_when_a_run_says_so_for_the_first_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    """The first run fails before it is ready, the second after; the caller waits for one."""
    runs = 0

    async def service(task_status: trio.TaskStatus[None]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise OSError
        task_status.started()
        await trio.sleep(10)
        if runs == 2:
            raise OSError

    told: list[Failure] = []
    await nursery.start(supervise, "svc", service, POLICY, told.append)
    assert trio.current_time() == 1
    await trio.sleep(1000)
    assert runs == 3
    assert len(told) == 2


async def test_an_error_before_it_ever_started_reaches_whoever_starts_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    async def service(_: trio.TaskStatus[None]) -> None:
        raise OSError("cannot start")

    with pytest.raises(OSError, match="cannot start"):
        await nursery.start(supervise, "svc", service, POLICY, lambda _: None)


async def test_what_is_no_exception_is_not_held_back(
    autojump_clock: trio.testing.MockClock,
):
    async def service(_: trio.TaskStatus[None]) -> None:
        raise KeyboardInterrupt

    told: list[Failure] = []
    with pytest.raises(KeyboardInterrupt):
        await supervise("svc", service, POLICY, told.append)
    assert told == []


def test_pauses_stay_finite_however_long_the_row():
    assert POLICY.delay_s(1) == 1
    assert POLICY.delay_s(10_000) == 10


async def test_what_the_policy_does_not_restart_goes_out_at_once_and_is_told(
    autojump_clock: trio.testing.MockClock,
):
    told = list[Failure]()
    policy = RestartPolicy(restart_on=lambda error: not isinstance(error, OSError))
    with pytest.raises(OSError, match="run 1"):
        await supervise("svc", Faulty(0), policy, told.append)
    assert [f.delay_s for f in told] == [None]


async def test_a_policy_without_a_bound_never_gives_up(autojump_clock: trio.testing.MockClock):
    service = Faulty(*[0] * 100)
    policy = RestartPolicy(first_delay_s=30, factor=1, longest_delay_s=30, most=math.inf)
    await supervise("svc", service, policy, lambda _: None)
    assert service.began_at == [30 * number for number in range(101)]
