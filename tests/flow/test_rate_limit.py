import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.rate_limit import CostExceedsBurst, Rate, RateLimiter, RatesClosed


async def test_a_burst_goes_at_once_and_then_so_many_a_second(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(per_s=2, burst=3))
    times: list[float] = []
    for _ in range(6):
        await limiter.take()
        times.append(trio.current_time())
    assert times == pytest.approx([0, 0, 0, 0.5, 1, 1.5])
    await trio.sleep(100)
    assert limiter.level() == 3  # a rest gives no more than the burst
    assert limiter.granted == 6
    assert limiter.waited_s == pytest.approx(1.5)


async def test_a_cost_waits_for_all_its_dimensions_and_takes_them_at_once(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter({"requests": Rate(1, 5), "tokens": Rate(100, 1000)})
    await limiter.take({"requests": 1, "tokens": 1000})
    assert limiter.level("requests") == 4
    with trio.move_on_after(2) as scope:
        await limiter.take({"requests": 1, "tokens": 300})
    assert scope.cancelled_caught
    assert limiter.level("requests") == 5  # who gave up has taken nothing of either
    assert limiter.level("tokens") == pytest.approx(200)
    await limiter.take({"requests": 1, "tokens": 300})
    assert trio.current_time() == pytest.approx(3)


async def test_a_higher_priority_goes_first_and_equals_in_their_order(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(1, 1))
    await limiter.take()
    order: list[str] = []

    async def one(name: str, priority: int) -> None:
        await limiter.take(priority=priority)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name, priority in [("a", 0), ("b", 0), ("c", 5), ("d", 5), ("e", 9)]:
            nursery.start_soon(one, name, priority)
            await trio.testing.wait_all_tasks_blocked()
    assert order == ["e", "c", "d", "a", "b"]
    assert trio.current_time() == pytest.approx(5)


async def test_nobody_starves_under_a_stream_of_higher_priorities(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(1, 1), most_wait_s=10)
    await limiter.take()
    got_at = 0.0

    async def low() -> None:
        nonlocal got_at
        await limiter.take()
        got_at = trio.current_time()

    async def high() -> None:
        for _ in range(40):
            await limiter.take(priority=9)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(low)
        nursery.start_soon(high)
        nursery.start_soon(high)
    assert 10 <= got_at <= 11


async def test_a_large_cost_is_not_overtaken_by_small_ones(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(1, 10))
    await limiter.take(10)
    order: list[float] = []

    async def one(cost: float) -> None:
        await limiter.take(cost)
        order.append(cost)

    async with trio.open_nursery() as nursery:
        for cost in (10.0, 1.0, 1.0):
            nursery.start_soon(one, cost)
            await trio.testing.wait_all_tasks_blocked()
        assert not limiter.take_nowait(0.5)
    assert order == [10, 1, 1]


async def test_what_can_never_be_given_is_said_at_once():
    limiter = RateLimiter({"tokens": Rate(1, 100)})
    with pytest.raises(CostExceedsBurst, match="101 tokens can never be given at a burst of 100"):
        await limiter.take({"tokens": 101})
    with pytest.raises(ValueError, match="no rate is set for 'requests'"):
        await limiter.take()
    with pytest.raises(ValueError, match="not below zero"):
        await limiter.take({"tokens": -1})
    with pytest.raises(ValueError, match="above zero"):
        Rate(0, 1)
    assert limiter.waiting == 0


async def test_headers_only_ever_make_it_slower(autojump_clock: trio.testing.MockClock):
    limiter = RateLimiter(Rate(1, 10))
    limiter.told("requests", remaining=50, reset_at=trio.current_time())
    assert limiter.level() == 10
    limiter.told("requests", remaining=4, reset_at=trio.current_time() + 100)
    assert limiter.level() == pytest.approx(4)
    await limiter.take(4)
    limiter.told("requests", remaining=9)  # four of ours are not counted there yet
    assert limiter.level() == pytest.approx(0)
    limiter.told("requests", remaining=0, reset_at=trio.current_time() + 60)
    await limiter.take()
    assert trio.current_time() == pytest.approx(60)
    limiter.close_until(trio.current_time() + 5)
    await limiter.take()
    assert trio.current_time() == pytest.approx(65)


async def test_a_waiter_hears_of_headers_and_corrections_while_it_waits(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(1, 10))
    await limiter.take(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limiter.take, 8.0)
        await trio.sleep(1)
        limiter.correct(-5)  # the estimate was too high: 6 there now, 8 in two seconds
    assert trio.current_time() == pytest.approx(3)
    limiter.correct(3)
    assert limiter.level() == pytest.approx(-3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limiter.take)
        await trio.sleep(1)
        limiter.close_until(20)
    assert trio.current_time() == pytest.approx(20)


async def test_who_would_wait_too_long_for_closed_rates_is_told_at_once(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter({"requests": Rate(1, 1), "tokens": Rate(100, 100)})
    await limiter.take()
    ends: dict[str, tuple[float, float]] = {}

    async def one(name: str, cost: float | dict[str, float], longest_closed_s: float) -> None:
        until_at = 0.0
        try:
            await limiter.take(cost, longest_closed_s=longest_closed_s)
        except RatesClosed as error:
            until_at = error.until_at
        ends[name] = (trio.current_time(), until_at)

    async with trio.open_nursery() as nursery:
        for name, patience_s in (("patient", 60.0), ("hasty", 10.0), ("last", 10.0)):
            nursery.start_soon(one, name, 1.0, patience_s)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.5)
        limiter.close_until(20.5)
        nursery.start_soon(one, "late", 1.0, 19.0)
        nursery.start_soon(one, "in time", 1.0, 20.0)
    assert ends == {
        "hasty": (0.5, 20.5),
        "last": (0.5, 20.5),
        "late": (0.5, 20.5),
        "patient": (20.5, 0.0),
        "in time": (pytest.approx(21.5), 0.0),
    }
    assert (limiter.waiting, limiter.granted) == (0, 3)


async def test_only_what_costs_something_is_closed_to_who_asks(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter({"requests": Rate(1, 1), "tokens": Rate(100, 100)})
    limiter.told("tokens", remaining=0, reset_at=3_600)
    assert limiter.closed_until({"requests": 1, "tokens": 1}) == 3_600
    assert limiter.closed_until({"requests": 1, "tokens": 0}) < 0
    await limiter.take(1, longest_closed_s=0)
    with pytest.raises(RatesClosed, match="tokens are closed until 3600"):
        await limiter.take({"requests": 0, "tokens": 1}, longest_closed_s=10)


async def test_a_cancelled_waiter_leaves_no_hole(autojump_clock: trio.testing.MockClock):
    limiter = RateLimiter(Rate(1, 1))
    await limiter.take()
    times: list[float] = []

    async def one(patience_s: float) -> None:
        with trio.move_on_after(patience_s):
            await limiter.take()
            times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for patience_s in (0.9, 50, 0.2, 1.5, 50):
            nursery.start_soon(one, patience_s)
            await trio.testing.wait_all_tasks_blocked()
    assert times == pytest.approx([1, 2])
    assert limiter.waiting == 0


async def test_cancelled_at_any_checkpoint_it_spends_what_it_granted_and_nothing_else(
    autojump_clock: trio.testing.MockClock,
):
    limiter = RateLimiter(Rate(1, 2))
    taken = 0

    async def scenario() -> None:
        nonlocal limiter, taken
        limiter, taken = RateLimiter(Rate(1, 2)), 0

        async def one(priority: int) -> None:
            nonlocal taken
            await limiter.take(priority=priority)
            taken += 1

        async with trio.open_nursery() as nursery:
            for priority in (0, 1, 0, 2, 1):
                nursery.start_soon(one, priority)

    def check() -> None:
        assert limiter.waiting == 0
        assert limiter.granted == taken

    assert await cancel_at_every_checkpoint(scenario, check) > 10


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30), st.integers(1, 5), st.integers(0, 2), st.none() | st.integers(1, 40)
        ),
        max_size=30,
    ),
    st.sampled_from([0.5, 1.0, 3.0, 7.0]),
    st.integers(5, 9),
)
def test_no_stretch_of_time_gets_more_than_burst_and_rate(
    plan: list[tuple[int, int, int, int | None]], per_s: float, burst: int
):
    grants: list[tuple[float, int]] = []

    async def one(limiter: RateLimiter, at: int, cost: int, priority: int, patience: int | None):
        await trio.sleep(at / 10)
        with trio.move_on_after(1e6 if patience is None else patience / 10):
            await limiter.take(cost, priority)
            grants.append((trio.current_time(), cost))

    async def main() -> None:
        limiter = RateLimiter(Rate(per_s, burst), most_wait_s=5)
        async with trio.open_nursery() as nursery:
            for at, cost, priority, patience in plan:
                nursery.start_soon(one, limiter, at, cost, priority, patience)
        assert limiter.waiting == 0
        assert limiter.granted == len(grants)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    patient = sum(patience is None for *_, patience in plan)
    assert len(grants) >= patient
    for first, (begun_at, _) in enumerate(grants):
        given_cost = 0
        for at, cost in grants[first:]:
            given_cost += cost
            assert given_cost <= burst + per_s * (at - begun_at) + 1e-6
