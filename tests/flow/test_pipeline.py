from collections.abc import AsyncGenerator

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.pipeline import OnError, Pipeline, Stage, StageCount, StageError


class Work:
    """A stage's function: item n takes n tenths of a second; counts what is under way."""

    def __init__(self, *fails: int) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.now = self.most = 0
        self.fails = fails

    async def __call__(self, item: int) -> int:
        self.begun.append(item)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(item / 10)
            if item in self.fails:
                raise ValueError(f"no {item}")
            self.ended.append(item)
            return item
        finally:
            self.now -= 1


async def test_items_pass_all_stages_in_order_each_with_its_own_concurrency(
    autojump_clock: trio.testing.MockClock,
):
    fetch, parse = Work(), Work()
    pipeline = Pipeline.of(Stage("fetch", fetch, concurrency=4)).then(Stage("parse", parse))
    async with pipeline.run([5, 1, 4, 2, 3]) as results:
        got = [(index, result.unwrap()) async for index, result in results]
    assert got == [(0, 5), (1, 1), (2, 4), (3, 2), (4, 3)]
    assert (fetch.most, parse.most) == (4, 1)


async def test_an_unordered_stage_passes_on_as_they_end(autojump_clock: trio.testing.MockClock):
    pipeline = Pipeline.of(Stage("fetch", Work(), concurrency=5, ordered=False))
    async with pipeline.run([5, 1, 4, 2, 3]) as results:
        assert [index async for index, _ in results] == [1, 3, 4, 2, 0]


async def test_none_is_an_item_and_a_result_like_any_other():
    async def same(item: int | None) -> int | None:
        return item

    pipeline = Pipeline.of(Stage("first", same)).then(Stage("second", same, concurrency=2))
    async with pipeline.run([None, 1, None]) as results:
        assert [result.unwrap() async for _, result in results] == [None, 1, None]


async def test_a_kept_error_is_the_items_outcome_and_later_stages_do_not_see_it(
    autojump_clock: trio.testing.MockClock,
):
    first, second = Work(2), Work(3)
    counts: dict[str, StageCount] = {}
    pipeline = Pipeline.of(Stage("first", first, on_error="keep")).then(
        Stage("second", second, on_error="keep")
    )
    async with pipeline.run([1, 2, 3, 4], progress=counts.__setitem__) as results:
        got = [result async for _, result in results]
    assert [isinstance(each, outcome.Error) for each in got] == [False, True, True, False]
    assert second.begun == [1, 3, 4]
    assert counts["first"] == StageCount(taken=4, done=3, failed=1)
    assert counts["second"] == StageCount(taken=4, done=2, failed=1, skipped=1)
    with pytest.raises(ValueError, match="no 2") as raised:
        got[1].unwrap()
    assert raised.value.__notes__ == ["in stage 'first', for item 1"]


async def test_an_error_under_fail_ends_the_run_and_cancels_the_rest(
    autojump_clock: trio.testing.MockClock,
):
    work = Work(1)
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="no 1")):
        async with Pipeline.of(Stage("work", work, concurrency=3)).run([50, 1, 50]) as results:
            async for _ in results:
                pass
    assert work.now == 0
    assert trio.current_time() == pytest.approx(0.1)


async def test_an_error_that_a_policy_is_told_of_leaves_the_others_in_order(
    autojump_clock: trio.testing.MockClock,
):
    told: list[StageError] = []
    pipeline = Pipeline.of(Stage("work", Work(3), concurrency=2, on_error=told.append))
    async with pipeline.run([4, 3, 2]) as results:
        assert [index async for index, _ in results] == [0, 2]
    assert [(each.stage, each.index, str(each.error)) for each in told] == [("work", 1, "no 3")]


async def test_a_slow_reader_holds_the_source_back(autojump_clock: trio.testing.MockClock):
    taken = 0

    async def source() -> AsyncGenerator[int, None]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield 0

    pipeline = Pipeline.of(Stage("a", Work(), concurrency=2, room=3)).then(Stage("b", Work()))
    async with pipeline.run(source()) as results:
        await trio.sleep(100)
        # 2 + 1 in the stages, 3 in the room, and one in the hand of the source.
        assert taken <= 2 + 1 + 3 + 1
        await anext(results)
        await trio.sleep(100)
        assert taken <= 2 + 1 + 3 + 1 + 1


async def test_leaving_early_cancels_what_is_under_way_and_closes_the_source(
    autojump_clock: trio.testing.MockClock,
):
    closed = False

    async def source() -> AsyncGenerator[int, None]:
        nonlocal closed
        try:
            while True:
                yield 1
                await trio.sleep(0.01)
        finally:
            closed = True

    first, second = Work(), Work()
    pipeline = Pipeline.of(Stage("a", first, concurrency=3)).then(Stage("b", second))

    async def block() -> None:
        async with pipeline.run(source()) as results:
            await anext(results)
            raise KeyError

    with pytest.raises(KeyError):
        await block()
    assert first.now == second.now == 0
    assert closed


async def test_an_error_of_the_source_comes_out():
    async def source() -> AsyncGenerator[int, None]:
        yield 0
        raise OSError("source")

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="source")):
        async with Pipeline.of(Stage("a", Work())).run(source()) as results:
            async for _ in results:
                pass


def test_stages_are_checked():
    with pytest.raises(ValueError, match="different names"):
        Pipeline.of(Stage("a", Work())).then(Stage("a", Work()))
    with pytest.raises(ValueError, match="concurrency of at least 1"):
        Stage("a", Work(), concurrency=0)


async def test_cancelled_at_any_checkpoint_nothing_runs_on_or_twice(
    autojump_clock: trio.testing.MockClock,
):
    works: list[Work] = []

    async def scenario() -> None:
        works[:] = Work(), Work(2)
        pipeline = Pipeline.of(Stage("a", works[0], concurrency=2, room=1)).then(
            Stage("b", works[1], concurrency=2, ordered=False, on_error="keep")
        )
        async with pipeline.run([3, 2, 1]) as results:
            assert len([each async for each in results]) == 3

    def check() -> None:
        for work in works:
            assert work.now == 0
            assert len(work.begun) == len(set(work.begun))

    assert await cancel_at_every_checkpoint(scenario, check) > 20


@given(
    st.lists(st.integers(0, 9), max_size=15),
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(0, 2), st.booleans(), st.sampled_from(["keep", "tell"])
        ),
        min_size=1,
        max_size=3,
    ),
    st.sets(st.integers(0, 9), max_size=4),
)
def test_every_item_ends_once_and_ordered_stages_keep_the_order(
    items: list[int], stages: list[tuple[int, int, bool, str]], failing: set[int]
):
    told: list[StageError] = []
    works = [Work(*failing) if number == 0 else Work() for number in range(len(stages))]

    async def main() -> None:
        def policy(kind: str) -> OnError:
            return "keep" if kind == "keep" else told.append

        pipeline = Pipeline[int, int](
            tuple(
                Stage(str(number), work, concurrency, room, ordered, policy(kind))
                for number, (work, (concurrency, room, ordered, kind)) in enumerate(
                    zip(works, stages, strict=True)
                )
            )
        )
        async with pipeline.run(items) as results:
            got = [each async for each in results]
        indices = [index for index, _ in got]
        assert sorted([*indices, *(each.index for each in told)]) == list(range(len(items)))
        if all(ordered for _, _, ordered, _ in stages):
            assert indices == sorted(indices)
        for index, result in got:
            assert isinstance(result, outcome.Error) == (items[index] in failing)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    for work, (concurrency, *_) in zip(works, stages, strict=True):
        assert work.most <= concurrency
