from collections.abc import Callable
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.adaptive import AdaptiveLimit, Aimd, Fixed, Gradient2, Sample


class Overloaded(Exception):
    pass


class Server:
    """Serves `capacity` at once, 0.2 s each; queues 40 more and rejects beyond that."""

    def __init__(self, capacity: int, seed: int = 1) -> None:
        self.places = trio.CapacityLimiter(capacity)
        self.served = self.rejected = self.in_it = 0
        self.random = Random(seed)

    async def __call__(self) -> None:
        if self.in_it >= self.places.total_tokens + 40:
            self.rejected += 1
            await trio.sleep(0.01)
            raise Overloaded
        self.in_it += 1
        try:
            async with self.places:
                await trio.sleep(0.2 * self.random.uniform(0.8, 1.2))
            self.served += 1
        finally:
            self.in_it -= 1


def sample(*, took_s: float = 0.1, began_at: float = 0.0, in_flight: int = 10, rejected: bool):
    return Sample(began_at, began_at + took_s, in_flight, rejected)


async def load(limit: AdaptiveLimit[Aimd] | AdaptiveLimit[Gradient2], server: Server, for_s: float):
    async def client() -> None:
        while True:
            try:
                async with limit.slot():
                    await server()
            except Overloaded:
                pass

    with trio.move_on_after(for_s):
        async with trio.open_nursery() as nursery:
            for _ in range(80):
                nursery.start_soon(client)


def is_overload(error: Exception) -> bool:
    return isinstance(error, Overloaded)


@pytest.mark.parametrize(
    ("rule", "most_rejected"), [(Aimd(), 0.01), (Gradient2(), 0.15)], ids=["aimd", "gradient2"]
)
async def test_it_follows_a_capacity_that_changes(
    autojump_clock: trio.testing.MockClock, rule: Aimd | Gradient2, most_rejected: float
):
    limit = AdaptiveLimit(rule, is_rejection=is_overload)
    server = Server(10)
    for capacity in (10, 25, 5):
        server.places.total_tokens = capacity
        await load(limit, server, 20)
        served, rejected = server.served, server.rejected
        await load(limit, server, 20)
        throughput = (server.served - served) / (20 * capacity / 0.2)
        assert throughput > 0.65
        assert server.rejected - rejected < most_rejected * (server.served - served)
    assert limit.in_flight == limit.waiting == 0


def test_aimd_shrinks_by_a_tenth_once_for_all_that_were_in_flight_and_grows_by_one_a_round():
    rule = Aimd(limit=100).after(sample(began_at=1, rejected=True))
    assert rule.limit == 90
    for _ in range(50):
        rule = rule.after(sample(began_at=1, rejected=True))
    assert rule.limit == 90
    assert rule.after(sample(began_at=2, rejected=True)).limit == 81
    for _ in range(90):
        rule = rule.after(sample(in_flight=90, rejected=False))
    assert rule.limit == pytest.approx(91, abs=0.02)


def test_aimd_does_not_grow_while_nobody_feels_it():
    assert Aimd(limit=100).after(sample(in_flight=49, rejected=False)).limit == 100


def test_gradient2_shrinks_when_uses_get_slower_and_no_faster_than_smoothing_lets_it():
    rule = Gradient2(limit=100)
    for _ in range(100):
        rule = rule.after(sample(in_flight=1, took_s=0.1, rejected=False))
    assert rule.limit == 100  # not felt
    slower = rule.after(sample(in_flight=100, took_s=1.0, rejected=False))
    assert slower.limit == pytest.approx(100 * 0.8 + 50 * 0.2)
    same = rule.after(sample(in_flight=100, took_s=0.1, rejected=False))
    assert same.limit == pytest.approx(100 + 4 * 0.2)


@given(
    st.sampled_from([Aimd(limit=5, floor=2, ceiling=9), Gradient2(limit=5, floor=2, ceiling=9)]),
    st.lists(
        st.builds(Sample, st.floats(0, 10), st.floats(10, 20), st.integers(1, 300), st.booleans())
    ),
)
def test_the_limit_stays_between_floor_and_ceiling(rule: Aimd | Gradient2, samples: list[Sample]):
    for each in samples:
        rule = rule.after(each)
        assert 2 <= rule.limit <= 9


@pytest.mark.parametrize("make", [lambda: Aimd(limit=0.5, floor=0.5), lambda: Gradient2(limit=300)])
def test_bounds_out_of_order_are_refused(make: Callable[[], object]):
    with pytest.raises(ValueError, match="have to be in order"):
        make()


async def test_cancellation_and_other_errors_are_neutral(autojump_clock: trio.testing.MockClock):
    limit = AdaptiveLimit(Aimd(limit=4), is_rejection=is_overload)
    with trio.move_on_after(1):
        async with limit.slot():
            await trio.sleep_forever()
    with pytest.raises(KeyError):
        async with limit.slot():
            raise KeyError
    assert limit.rule == Aimd(limit=4)
    assert (limit.used, limit.rejected, limit.neutral) == (0, 0, 2)
    with pytest.raises(Overloaded):
        async with limit.slot():
            raise Overloaded
    async with limit.slot() as slot:
        slot.rejected()

    async def is_answered_no() -> None:
        async with limit.slot() as slot:
            slot.ok()
            raise KeyError

    with pytest.raises(KeyError):
        await is_answered_no()
    assert (limit.used, limit.rejected) == (1, 2)


async def test_a_lower_limit_takes_effect_as_uses_end(autojump_clock: trio.testing.MockClock):
    limit = AdaptiveLimit(Aimd(limit=10))

    async def use() -> None:
        async with limit.slot() as slot:
            await trio.sleep(10)
            slot.ok()

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked()
        async with limit.slot() as slot:
            slot.rejected()
        assert limit.limit == 9
        assert limit.in_flight == 9
        nursery.start_soon(use)
        await trio.sleep(1)
        assert limit.waiting == 1
    assert limit.in_flight == 0


async def test_cancelled_at_any_checkpoint_no_slot_leaks(autojump_clock: trio.testing.MockClock):
    limit = AdaptiveLimit(Aimd(limit=2))

    async def scenario() -> None:
        nonlocal limit
        limit = AdaptiveLimit(Aimd(limit=2))

        async def use() -> None:
            async with limit.slot():
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(use)

    def check() -> None:
        assert limit.in_flight == limit.waiting == 0
        assert limit.rejected == 0

    assert await cancel_at_every_checkpoint(scenario, check) > 10


async def test_a_fixed_limit_stays_whatever_happens_and_each_is_told_how_long_it_waited(
    autojump_clock: trio.testing.MockClock,
):
    limit = AdaptiveLimit(Fixed(2))
    waited: list[float] = []

    async def use(number: int) -> None:
        async with limit.slot() as slot:
            waited.append(slot.queued_s)
            await trio.sleep(1)
            if number % 2:
                slot.rejected()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(use, number)
    assert sorted(waited) == [0, 0, 1, 1, 2, 2]
    assert (limit.limit, limit.used, limit.rejected, limit.in_flight) == (2, 3, 3, 0)


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_a_fixed_limit_lets_in_one_at_least_and_not_everybody(limit: float):
    with pytest.raises(ValueError, match="in order"):
        Fixed(limit)
