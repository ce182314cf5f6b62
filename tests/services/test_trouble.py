"""A service that fails again and again is a person's concern until it runs again."""

from collections.abc import Callable

import trio
import trio.testing

from custosd.core.facts import ConcernResolved, Escalated, Fact
from custosd.flow.supervise import RestartPolicy, supervise
from custosd.services.trouble import STEADY_S, ServiceTrouble

Clock = trio.testing.MockClock
POLICY = RestartPolicy(most=float("inf"))


class Service:
    """Starts, and fails `after_s` later, until it is mended."""

    def __init__(self, after_s: float, *, starts: bool = True) -> None:
        self.after_s = after_s
        self.mended = False
        self.runs = 0
        self._starts = starts

    async def __call__(self, task_status: trio.TaskStatus[None]) -> None:
        self.runs += 1
        if self._starts or self.mended:
            task_status.started()
        await trio.sleep(float("inf") if self.mended else self.after_s)
        raise ExceptionGroup("", [KeyError("what an agent wrote")])


async def supervised(
    nursery: trio.Nursery, service: Service
) -> tuple[ServiceTrouble, Callable[[], list[Fact]]]:
    send, receive = trio.open_memory_channel[Fact](100)
    trouble = ServiceTrouble("sync", send, nursery)

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await trouble.watch(service, task_status)

    def told() -> list[Fact]:
        count = receive.statistics().current_buffer_used
        return [receive.receive_nowait() for _ in range(count)]

    await nursery.start(supervise, "sync", run, POLICY, lambda _: None)
    return trouble, told


async def test_it_is_told_once_while_it_fails_and_once_that_it_runs_again(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    service = Service(5.0)
    _, told = await supervised(nursery, service)
    await trio.sleep(600)
    # Of the error its kind: its words may be anybody's.
    assert told() == [Escalated("service:sync", "service_failing", None, "KeyError")]
    service.mended = True
    # The pause, the run that was made before, and then some.
    await trio.sleep(POLICY.longest_delay_s + 5 + STEADY_S + 1)
    assert told() == [ConcernResolved("service:sync", "running")]


async def test_one_failure_is_no_concern_and_one_an_hour_is_none_either(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    service = Service(3_600.0)
    _, told = await supervised(nursery, service)
    await trio.sleep(20_000)
    assert service.runs > 5
    assert told() == []


async def test_a_run_that_has_not_started_proves_nothing(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    """And whoever waits for its start waits for its first failure only."""
    service = Service(100.0, starts=False)
    began_at = trio.current_time()
    trouble, told = await supervised(nursery, service)
    assert trio.current_time() - began_at == 100.0
    await trio.sleep(1_000)
    assert (len(told()), trouble.told) == (1, True)
