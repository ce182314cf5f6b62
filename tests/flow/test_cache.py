import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.cache import Cache


class Store:
    """Takes a second to load; a value is the key and the number of the load."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.loads = self.now = 0

    async def __call__(self, key: str) -> str:
        self.loads += 1
        load, error = self.loads, self.error
        self.now += 1
        try:
            await trio.sleep(1)
        finally:
            self.now -= 1
        if error is not None:
            raise error
        return f"{key}{load}"


async def test_a_value_is_kept_for_its_time_from_the_end_of_its_load(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    cache = Cache(nursery, Store(), ttl_s=10)
    assert await cache.get("a") == "a1"
    await trio.sleep(9.9)
    assert await cache.get("a") == "a1"
    await trio.sleep(0.1)
    assert await cache.get("a") == "a2"
    assert (cache.hits, cache.misses, cache.loads, cache.evictions) == (1, 2, 2, 0)


async def test_all_who_ask_meanwhile_share_one_load(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    cache = Cache(nursery, Store(), ttl_s=10)
    async with trio.open_nursery() as callers:
        for _ in range(10):
            callers.start_soon(cache.get, "a")
    assert (cache.misses, cache.loads) == (10, 1)


async def test_none_is_a_value(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery):
    async def load(key: str) -> None:
        await trio.lowlevel.checkpoint()

    cache = Cache(nursery, load, ttl_s=10)
    assert await cache.get("a") is None
    assert await cache.get("a") is None
    assert (cache.hits, cache.loads) == (1, 1)


async def test_the_one_not_asked_for_the_longest_goes_when_there_is_no_room(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    cache = Cache(nursery, Store(), ttl_s=1000, most=2)
    for key in "abacab":
        await cache.get(key)
    # a, b loaded; a asked for again; c drives out b; a is there; b drives out c.
    assert (cache.loads, cache.hits, cache.evictions, len(cache)) == (4, 2, 2, 2)


async def test_an_error_is_not_kept_unless_it_was_said_to_be_an_answer(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    store = Store()
    cache = Cache(
        nursery,
        store,
        ttl_s=10,
        negative_ttl_s=5,
        is_negative=lambda error: isinstance(error, LookupError),
    )
    for error, loads in ((OSError("down"), 2), (LookupError("none such"), 3)):
        store.error = error
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                await cache.get("a")
        assert cache.loads == loads
    store.error = None
    await trio.sleep(5)
    assert await cache.get("a") == "a4"


async def test_a_kept_error_is_raised_as_a_new_one_each_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    store, raised = Store(), []
    store.error = LookupError("none such")
    cache = Cache(nursery, store, ttl_s=1, negative_ttl_s=5, is_negative=lambda _: True)
    for _ in range(3):
        with pytest.raises(LookupError) as info:
            await cache.get("a")
        raised.append(info.value)
    assert len({id(error) for error in raised}) == 3
    kept = raised[-1].__cause__
    assert kept is not None
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)


async def test_what_is_asked_for_after_an_invalidation_was_loaded_after_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    cache, got = Cache(nursery, Store(), ttl_s=100), {}

    async def caller(name: str) -> None:
        got[name] = await cache.get("a")

    nursery.start_soon(caller, "before")
    await trio.sleep(0.5)
    cache.invalidate("a")
    nursery.start_soon(caller, "after")
    await trio.sleep(0.75)  # the first load has ended: it is not kept
    assert len(cache) == 0
    await trio.sleep(0.5)
    assert got == {"before": "a1", "after": "a2"}
    assert await cache.get("a") == "a2"
    cache.clear()
    assert len(cache) == 0
    assert await cache.get("a") == "a3"


async def test_clear_covers_what_is_being_loaded(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    cache = Cache(nursery, Store(), ttl_s=100)
    nursery.start_soon(cache.get, "a")
    await trio.sleep(0.5)
    cache.clear()
    await trio.sleep(1)
    assert await cache.get("a") == "a2"


async def test_a_load_that_is_given_up_is_cancelled_and_keeps_nothing(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    store = Store()
    cache = Cache(nursery, store, ttl_s=100)
    with trio.move_on_after(0.5):
        await cache.get("a")
    await trio.testing.wait_all_tasks_blocked()
    assert (store.now, len(cache), cache._loading) == (0, 0, {})


async def test_cancelled_anywhere_it_has_no_load_under_way_and_loads_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    store = Store()
    cache = Cache(nursery, store, ttl_s=100, most=2)

    async def scenario() -> None:
        cache.clear()
        async with trio.open_nursery() as callers:
            for key in "aabc":
                callers.start_soon(cache.get, key)
        await cache.get("a")

    def check() -> None:
        assert store.now == 0
        assert (cache._loading, len(cache._flights)) == ({}, 0)
        assert len(cache) <= 2

    assert await cancel_at_every_checkpoint(scenario, check) > 8


@given(
    st.lists(
        st.tuples(st.sampled_from(["get", "drop"]), st.sampled_from("abcd"), st.integers(0, 12)),
        max_size=40,
    ),
    st.integers(1, 3),
)
def test_no_value_is_older_than_its_time_or_its_invalidation_and_there_is_never_more_than_most(
    plan: list[tuple[str, str, int]], most: int
):
    dropped_at = dict.fromkeys("abcd", -1.0)
    gets = 0

    async def load(key: str) -> float:
        began_at = trio.current_time()
        await trio.sleep(1)
        return began_at

    async def get(cache: Cache[str, float], key: str) -> None:
        not_before, asked_at = dropped_at[key], trio.current_time()
        began_at = await cache.get(key)
        assert began_at >= not_before
        assert asked_at - began_at <= 1 + 3

    async def main() -> None:
        nonlocal gets
        async with trio.open_nursery() as background:
            cache = Cache(background, load, ttl_s=3, most=most)
            async with trio.open_nursery() as callers:
                for act, key, pause_ds in plan:
                    await trio.sleep(pause_ds / 4)
                    if act == "get":
                        gets += 1
                        callers.start_soon(get, cache, key)
                    else:
                        cache.invalidate(key)
                        dropped_at[key] = trio.current_time()
                    assert len(cache) <= most
        assert cache.hits + cache.misses == gets
        assert cache.loads <= cache.misses
        assert cache.loads - cache.evictions >= len(cache)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_what_would_keep_nothing_or_leaves_the_errors_unsaid_is_refused(
    nursery: trio.Nursery,
):
    with pytest.raises(ValueError, match="keeps nothing"):
        Cache(nursery, Store(), ttl_s=1, most=0)
    with pytest.raises(ValueError, match="both"):
        Cache(nursery, Store(), ttl_s=1, negative_ttl_s=1)
