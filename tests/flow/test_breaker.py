from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.breaker import CircuitBreaker, CircuitChange, CircuitOpen, CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Service:
    """Answers after a second, with an error if it has one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = self.now = self.most = 0

    async def __call__(self) -> None:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(1)
        finally:
            self.now -= 1
        if self.error is not None:
            raise self.error


async def fail(breaker: CircuitBreaker, times: int = 1, error: Exception | None = None) -> None:
    for _ in range(times):
        with pytest.raises((OSError, LookupError)):
            await breaker.run(_raising(error or OSError()))


async def test_so_many_failures_within_the_period_open_it_and_then_no_call_is_made(
    autojump_clock: trio.testing.MockClock,
):
    service, changes = Service(), list[CircuitChange]()
    breaker = CircuitBreaker(3, 60, 30, on_change=changes.append)
    service.error = OSError("down")
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            await breaker.run(service)
    with pytest.raises(CircuitOpen) as refused:
        await breaker.run(service)
    assert (service.calls, breaker.failed, breaker.refused) == (3, 3, 1)
    assert refused.value.until_at == 3 + 30
    assert changes == [CircuitChange(CLOSED, OPEN, 3, service.error)]


async def test_failures_that_are_further_apart_do_not_open_it(
    autojump_clock: trio.testing.MockClock,
):
    breaker = CircuitBreaker(3, 60, 30)
    for _ in range(20):
        await fail(breaker)
        await trio.sleep(30)
    assert breaker.state is CLOSED


async def test_of_ten_calls_at_once_one_is_the_probe_and_its_success_closes_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    service, refused, changes = Service(), [], list[CircuitChange]()
    breaker = CircuitBreaker(1, 60, 30, on_change=changes.append)
    await fail(breaker)
    await trio.sleep(30)

    async def caller() -> None:
        try:
            await breaker.run(service)
        except CircuitOpen as error:
            refused.append(error)

    async with trio.open_nursery() as callers:
        for _ in range(10):
            callers.start_soon(caller)
    assert (service.calls, len(refused)) == (1, 9)
    assert [c.after for c in changes] == [OPEN, HALF_OPEN, CLOSED]
    async with trio.open_nursery() as callers:
        for _ in range(10):
            callers.start_soon(caller)
    assert service.calls == 11


async def test_after_a_recovery_failures_from_before_do_not_count(
    autojump_clock: trio.testing.MockClock,
):
    breaker = CircuitBreaker(3, 1000, 30)
    await fail(breaker, 3)
    await trio.sleep(30)
    await fail(breaker)  # the first probe
    await trio.sleep(30)
    await breaker.run(Service())
    await fail(breaker, 2)
    assert breaker.state is CLOSED
    await fail(breaker)
    assert breaker.state is OPEN


async def test_a_probe_that_fails_opens_it_again_for_the_whole_time(
    autojump_clock: trio.testing.MockClock,
):
    breaker = CircuitBreaker(3, 60, 30)
    await fail(breaker, 3)
    await trio.sleep(30)
    await fail(breaker)
    assert breaker.state is OPEN
    assert breaker.until_at == 60


async def test_cancelled_calls_never_open_it(autojump_clock: trio.testing.MockClock):
    breaker = CircuitBreaker(1)
    for _ in range(5):
        with trio.move_on_after(0.5):
            await breaker.run(Service())
    assert (breaker.state, breaker.neutral, breaker.failed) == (CLOSED, 5, 0)


async def test_a_time_limit_inside_the_call_is_a_failure(
    autojump_clock: trio.testing.MockClock,
):
    breaker = CircuitBreaker(1)

    async def limited() -> None:
        with trio.fail_after(0.5):
            await trio.sleep(1)

    with pytest.raises(trio.TooSlowError):
        await breaker.run(limited)
    assert breaker.state is OPEN


async def test_a_cancelled_probe_frees_its_place_and_changes_nothing(
    autojump_clock: trio.testing.MockClock,
):
    breaker, service = CircuitBreaker(1, 60, 30), Service()
    await fail(breaker)
    await trio.sleep(30)
    with trio.move_on_after(0.5):
        await breaker.run(service)
    assert breaker.state is HALF_OPEN
    await breaker.run(service)
    assert breaker.state is CLOSED


async def test_an_error_that_is_no_failure_is_an_answer(
    autojump_clock: trio.testing.MockClock,
):
    breaker = CircuitBreaker(1, 60, 30, is_failure=lambda error: isinstance(error, OSError))
    await fail(breaker, 3, LookupError())
    assert breaker.state is CLOSED
    await fail(breaker)
    await trio.sleep(30)
    await fail(breaker, 1, LookupError())
    assert breaker.state is CLOSED


async def test_a_probe_whose_error_cannot_be_judged_frees_its_place(
    autojump_clock: trio.testing.MockClock,
):
    def is_failure(error: Exception) -> bool:
        if isinstance(error, LookupError):
            raise TypeError("cannot tell")
        return True

    breaker = CircuitBreaker(1, 60, 30, is_failure=is_failure)
    await fail(breaker)
    await trio.sleep(30)
    with pytest.raises(TypeError):
        await breaker.run(_raising(LookupError()))
    assert (breaker.state, breaker.neutral) == (HALF_OPEN, 1)
    await breaker.run(Service())
    assert breaker.state is CLOSED


def _raising(error: Exception):
    async def fn() -> None:
        raise error

    return fn


async def test_an_answer_from_before_it_opened_neither_closes_it_nor_opens_it_longer(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    breaker = CircuitBreaker(1, 60, 30)

    async def slow(takes_s: float, error: Exception | None) -> None:
        with pytest.RaisesGroup(OSError) if error else trio.CancelScope():
            async with trio.open_nursery(), breaker.call():
                await trio.sleep(takes_s)
                if error:
                    raise error

    for takes_s, error in ((10, OSError()), (11, None), (40, OSError()), (41, None)):
        nursery.start_soon(slow, takes_s, error)
    await trio.testing.wait_all_tasks_blocked()
    await fail(breaker)
    await trio.sleep(12)
    assert (breaker.state, breaker.until_at) == (OPEN, 30)
    await trio.sleep(20)
    await breaker.run(Service())  # the probe, at 32
    assert breaker.state is CLOSED
    await trio.sleep(20)
    assert breaker.state is CLOSED


async def test_cancelled_anywhere_it_holds_no_probes_place(
    autojump_clock: trio.testing.MockClock,
):
    service = Service()
    breakers: list[CircuitBreaker] = []

    async def scenario() -> None:
        breaker = CircuitBreaker(2, 60, 3)
        breakers.append(breaker)
        service.error = OSError()
        for _ in range(2):
            with pytest.raises(OSError):  # noqa: PT011 - the service's only one
                await breaker.run(service)
        await trio.sleep(3)
        service.error = None
        await breaker.run(service)
        await breaker.run(service)

    def check() -> None:
        breaker = breakers[-1]
        assert not breaker._probing
        assert service.now == 0
        assert breaker.failed + breaker.succeeded + breaker.neutral == service.calls
        service.calls = 0

    assert await cancel_at_every_checkpoint(scenario, check) >= 5


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["fine", "fails", "cut"]), st.integers(1, 9)),
        max_size=30,
    ),
    st.integers(1, 3),
)
def test_whatever_happens_the_laws_of_the_states_hold(
    plan: list[tuple[int, str, int]], failures: int
):
    """Never two probes; changes only along the allowed ways; open means no call; all counted."""
    changes: list[CircuitChange] = []
    breaker = CircuitBreaker(failures, 20, 7, on_change=changes.append)
    probes_now = refused = 0

    async def service(end: str, takes_s: int) -> None:
        nonlocal probes_now
        assert breaker.state is not OPEN
        probe = breaker.state is HALF_OPEN
        probes_now += probe
        assert probes_now <= 1
        try:
            await trio.sleep(takes_s + 0.5)
        finally:
            probes_now -= probe
        if end == "fails":
            raise OSError

    async def call(end: str, takes_s: int) -> None:
        nonlocal refused
        try:
            with trio.move_on_after(takes_s if end == "cut" else 1000):
                await breaker.run(partial(service, end, takes_s))
        except OSError:
            pass
        except CircuitOpen as error:
            refused += 1
            soon = error.until_at > trio.current_time()
            assert soon or probes_now

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for pause_s, end, takes_s in plan:
                nursery.start_soon(call, end, takes_s)
                await trio.sleep(pause_s)
        await trio.sleep(1000)
        await breaker.run(Service())  # whatever was: it can always recover

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert breaker.state is CLOSED
    ways = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
    assert all((c.before, c.after) in ways for c in changes)
    assert all(a.after is b.before for a, b in pairwise(changes))
    ended = breaker.succeeded + breaker.failed + breaker.neutral
    assert (ended + breaker.refused, breaker.refused) == (len(plan) + 1, refused)


def test_a_circuit_that_would_never_be_closed_is_refused():
    with pytest.raises(ValueError, match="never closed"):
        CircuitBreaker(0)
