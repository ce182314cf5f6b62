from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.pool import AcquireTimedOut, Pool, PoolClosed


class Connection:
    def __init__(self, number: int) -> None:
        self.number = number
        self.open = True
        self.users = 0
        self.dirty = False


class Factory:
    """Makes connections in `takes_s`; knows what it made, and finds wrong uses."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.made: list[Connection] = []
        self.making = self.most_making = self.most_live = 0
        self.fails = 0
        self.unheard: list[tuple[str, Exception]] = []

    @property
    def live(self) -> int:
        return sum(each.open for each in self.made)

    async def make(self) -> Connection:
        self.making += 1
        self.most_making = max(self.most_making, self.making)
        try:
            await trio.sleep(self.takes_s)
            if self.fails:
                self.fails -= 1
                raise OSError("no route")
            self.made.append(Connection(len(self.made)))
            self.most_live = max(self.most_live, self.live)
            return self.made[-1]
        finally:
            self.making -= 1

    async def close(self, connection: Connection) -> None:
        assert connection.open, "closed twice"
        await trio.sleep(self.takes_s)
        connection.open = False

    def pool(self, **how: Any) -> Pool[Connection]:
        return Pool(
            self.make,
            self.close,
            on_unheard=lambda doing, error: self.unheard.append((doing, error)),
            **how,
        )


async def fail_in(pool: Pool[Connection]) -> None:
    async with pool.acquire():
        raise KeyError


async def use(pool: Pool[Connection], for_s: float = 0.0) -> int:
    async with pool.acquire() as connection:
        assert connection.open
        assert not connection.users, "used by two at once"
        assert not connection.dirty, "dirty"
        connection.users += 1
        connection.dirty = True
        await trio.sleep(for_s)
        connection.dirty = False
        connection.users -= 1
        return connection.number


async def test_it_keeps_min_grows_to_max_and_shrinks_back_after_idling(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()
    async with factory.pool(min=2, max=10, idle_timeout_s=30) as pool:
        await trio.testing.wait_all_tasks_blocked()
        assert (pool.live, pool.idle) == (2, 2)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(use, pool, 1)
        assert pool.live == factory.live == factory.most_live == 10
        assert trio.current_time() == 10
        assert (pool.made, pool.reused) == (10, 90)
        await trio.sleep(29.9)
        assert pool.live == 10
        await trio.sleep(0.2)
        assert pool.live == pool.idle == factory.live == 2
        await trio.sleep(1000)
        assert pool.live == 2
        assert pool.made == 10  # those two have stayed
    assert factory.live == 0


async def test_creation_is_not_serialised_and_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory(takes_s=5)
    async with factory.pool(min=0, max=10) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use, pool, 1)
        assert factory.most_making == 10
        assert trio.current_time() == 6


async def test_a_waiter_gets_what_comes_back_before_its_own_is_made(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory(takes_s=5)
    async with factory.pool(min=0, max=2) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, pool, 1)
            await trio.sleep(5.5)
            begun_at = trio.current_time()
            await use(pool)
            assert trio.current_time() - begun_at == 0.5
        await trio.sleep(10)
        assert pool.idle == 2


async def test_the_last_used_is_used_next(autojump_clock: trio.testing.MockClock):
    factory = Factory()
    async with factory.pool(min=3, max=3) as pool:
        await trio.testing.wait_all_tasks_blocked()
        assert len({await use(pool) for _ in range(20)}) == 1


@pytest.mark.parametrize("kind", ["cancelled", "failed"])
async def test_a_use_that_was_cancelled_or_failed_is_not_used_again(
    autojump_clock: trio.testing.MockClock, kind: str
):
    factory = Factory()
    async with factory.pool(min=1, max=1) as pool:
        if kind == "cancelled":
            with trio.move_on_after(1):
                await use(pool, 5)
        else:
            with pytest.raises(KeyError):
                async with pool.acquire():
                    raise KeyError
        assert await use(pool) == 1
        assert pool.discarded == 1
        assert not factory.made[0].open
        with pytest.raises(LookupError):
            async with pool.acquire(keep_on_error=(LookupError,)):
                raise KeyError
        with trio.move_on_after(1):
            async with pool.acquire(keep_on_error=(Exception,)):
                await trio.sleep(5)
        assert pool.discarded == 2  # a KeyError is a LookupError: that one was kept


async def test_a_bad_idle_one_is_replaced_before_use(autojump_clock: trio.testing.MockClock):
    factory = Factory()
    bad = {0}

    async def check(connection: Connection) -> bool:
        await trio.sleep(0.1)
        if connection.number == 1:
            raise OSError("reset by peer")
        return connection.number not in bad

    async with factory.pool(min=0, max=1, check=check) as pool:
        assert await use(pool) == 0
        assert await use(pool) == 1
        assert await use(pool) == 2  # the check of 1 raised
        assert await use(pool) == 2
        assert pool.failed_checks == 2
        assert str(pool.last_check_error) == "reset by peer"


async def test_while_a_bad_one_is_closed_another_is_made(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory(takes_s=5)

    async def check(_: Connection) -> bool:
        return False

    async with factory.pool(min=0, max=2, check=check) as pool:
        await use(pool)
        begun_at = trio.current_time()
        await use(pool)
        assert trio.current_time() - begun_at == 5


async def test_one_that_is_made_too_late_is_closed(autojump_clock: trio.testing.MockClock):
    factory = Factory()

    async def make() -> Connection:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return await Factory.make(factory)

    async def make_at_last() -> Connection:
        with trio.CancelScope(shield=True):
            return await make()

    async with Pool(make_at_last, factory.close, min=1):
        await trio.sleep(1)
    assert trio.current_time() == 5
    assert len(factory.made) == 1
    assert factory.live == 0


async def test_a_check_that_hangs_is_a_bad_one_long_before_its_waiter_gives_up(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()
    hangs = False

    async def check(_: Connection) -> bool:
        if hangs:
            await trio.sleep_forever()
        return True

    async with factory.pool(min=0, max=10, check=check, idle_timeout_s=1e9) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use, pool, 1)
        hangs = True
        began_at = trio.current_time()
        assert await use(pool) == 10, "a new one"
        # Of 30 s for the whole acquire: also where each of the ten that were idle hangs.
        assert trio.current_time() - began_at < 20
        assert pool.failed_checks == 10
        await trio.sleep(0.1)
        assert not any(each.open for each in factory.made[:10])


async def test_a_check_has_its_own_time(autojump_clock: trio.testing.MockClock):
    factory = Factory()

    async def check(_: Connection) -> bool:
        await trio.sleep(4)
        return True

    async with factory.pool(min=0, max=1, check=check, check_timeout_s=5) as pool:
        assert [await use(pool) for _ in range(2)] == [0, 0]
    async with factory.pool(min=0, max=1, check=check, check_timeout_s=3) as pool:
        assert [await use(pool) for _ in range(2)] == [1, 2]


async def test_a_failing_factory_raises_to_one_waiter_and_the_others_are_served(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory(takes_s=1)
    factory.fails = 2
    results: list[object] = []

    async def one() -> None:
        try:
            results.append(await use(pool, 1))
        except OSError as error:
            results.append(str(error))

    async with factory.pool(min=0, max=2) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert results.count("no route") == 2
        assert len(results) == 5
        assert (pool.failed_makes, pool.made) == (2, 2)
    assert factory.unheard == []


async def test_what_fails_to_be_kept_warm_is_told_and_tried_again(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()
    factory.fails = 3
    async with factory.pool(min=1, max=2, remake_delay_s=2) as pool:
        await trio.sleep(7)
        assert pool.idle == 1
    assert [doing for doing, _ in factory.unheard] == ["make"] * 3


async def test_without_a_callback_an_unheard_error_ends_the_block(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()
    factory.fails = 1
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no route")):
        async with Pool(factory.make, factory.close, min=1):
            await trio.sleep_forever()


async def test_an_acquire_that_takes_too_long_says_what_is_the_matter(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()
    async with factory.pool(min=0, max=1, acquire_timeout_s=3) as pool:
        async with pool.acquire():
            with pytest.raises(AcquireTimedOut, match="within 3 s: 1 of at most 1 are in use"):
                await use(pool)
            assert trio.current_time() == 3
        assert pool.waiting == 0
        assert await use(pool) == 0


async def test_a_hanging_factory_holds_its_place_no_longer_than_a_waiter_waits(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory(takes_s=100)
    async with factory.pool(min=0, max=1, acquire_timeout_s=3) as pool:
        with pytest.raises((AcquireTimedOut, trio.TooSlowError)):
            await use(pool)
        await trio.sleep(0.1)
        assert pool.live == 0
        factory.takes_s = 1
        await use(pool)


async def test_old_ones_are_replaced(autojump_clock: trio.testing.MockClock):
    factory = Factory()
    async with factory.pool(min=1, max=1, longest_life_s=60) as pool:
        for _ in range(10):
            assert await use(pool, 10) == 0 or trio.current_time() >= 60
        assert pool.made == 2
        await trio.sleep(500)
        assert pool.live == 1
        assert 9 <= pool.made <= 11


async def test_a_close_that_hangs_frees_its_place_in_time_and_is_told(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()

    async def close(_: Connection) -> None:
        await trio.sleep_forever()

    told: list[str] = []
    async with Pool(
        factory.make,
        close,
        min=0,
        max=1,
        close_timeout_s=2,
        on_unheard=lambda doing, error: told.append(f"{doing} {type(error).__name__}"),
    ) as pool:
        with pytest.raises(KeyError):
            async with pool.acquire():
                raise KeyError
        assert await use(pool) == 1
        assert trio.current_time() == 2
    assert told == ["close TooSlowError"] * 2


async def test_leaving_serves_those_inside_and_refuses_newcomers(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    factory = Factory()
    async with factory.pool(min=0, max=1) as pool:
        nursery.start_soon(use, pool, 3)
        nursery.start_soon(use, pool, 3)
        await trio.testing.wait_all_tasks_blocked()

        async def late() -> None:
            await trio.sleep(1)
            with pytest.raises(PoolClosed):
                await use(pool)

        nursery.start_soon(late)
    assert trio.current_time() == 6
    assert factory.live == 0
    assert pool.seized == 0


async def test_a_drain_is_bounded_and_then_closes_everything(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    factory = Factory()
    refused: list[PoolClosed] = []

    async def waits(pool: Pool[Connection]) -> None:
        try:
            await use(pool)
        except PoolClosed as error:
            refused.append(error)

    async def holds(pool: Pool[Connection]) -> None:
        async with pool.acquire():
            await trio.sleep(100)

    async with factory.pool(min=0, max=1, drain_timeout_s=5) as pool:
        nursery.start_soon(holds, pool)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(waits, pool)
        await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == 5
    assert (pool.seized, len(refused), factory.live) == (1, 1, 0)
    await trio.sleep(200)  # the late return finds nobody, and harms nothing
    assert pool.live == 0


async def test_the_blocks_own_error_comes_out_as_it_is_and_without_a_wait(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()

    async def block() -> None:
        async with factory.pool(min=2):
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError

    with pytest.raises(KeyError):
        await block()
    assert factory.live == 0
    assert trio.current_time() == 0


async def test_cancelled_at_any_checkpoint_everything_is_closed_once_and_nothing_leaks(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory()
    pool = factory.pool()

    async def check(_: Connection) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def scenario() -> None:
        nonlocal factory, pool
        factory = Factory(takes_s=0.5)
        pool = factory.pool(min=1, max=2, check=check)
        async with pool, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(use, pool, 1)

    def balanced() -> None:
        assert pool.live == pool.waiting == pool.in_use == factory.live == factory.making == 0
        assert factory.unheard == []

    assert await cancel_at_every_checkpoint(scenario, balanced) > 25


async def test_users_cancelled_at_any_checkpoint_leave_a_pool_that_serves(
    autojump_clock: trio.testing.MockClock,
):
    factory = Factory(takes_s=0.5)
    async with factory.pool(min=1, max=2, idle_timeout_s=3) as pool:

        async def scenario() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(use, pool, 1)

        def balanced() -> None:
            assert pool.waiting == pool.in_use == 0
            assert pool.live <= 2

        assert await cancel_at_every_checkpoint(scenario, balanced) > 15
        await trio.sleep(10)
        assert pool.live == pool.idle == factory.live == 1
        await use(pool)
    assert factory.most_live <= 2


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.integers(0, 20),
            st.none() | st.integers(1, 30),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.integers(0, 2),
    st.integers(2, 4),
    st.integers(0, 6),
    st.booleans(),
)
def test_between_min_and_max_and_every_resource_closed_once(
    plan: list[tuple[int, int, int | None, int]], least: int, most: int, fails: int, checked: int
):
    factory = Factory(takes_s=0.2)

    async def check(connection: Connection) -> bool:
        await trio.sleep(0.05)
        return connection.number % 3 != 1

    async def one(pool: Pool[Connection], at: int, for_: int, patience: int | None, raises: int):
        await trio.sleep(at / 10)
        with trio.move_on_after(1e6 if patience is None else patience / 10 + 0.01):
            try:
                await use(pool, for_ / 10)
                if raises:
                    await fail_in(pool)
            except (OSError, KeyError):
                pass
        assert pool.live <= most

    async def main() -> None:
        factory.fails = fails
        async with factory.pool(
            min=least, max=most, idle_timeout_s=1, check=check if checked else None
        ) as pool:
            async with trio.open_nursery() as nursery:
                for each in plan:
                    nursery.start_soon(one, pool, *each)
            await trio.sleep(30)
            assert pool.live == pool.idle == factory.live == least
            assert pool.waiting == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert factory.live == 0
    assert factory.most_live <= most
