import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.flow.cancelling import cancel_at_every_checkpoint

from custosd.flow.background import (
    Background,
    TaskCancelled,
    block_nursery,
    open_background,
)
from custosd.flow.supervise import RestartPolicy


class Jobs:
    def __init__(self) -> None:
        self.now = self.most = 0
        self.errors: list[tuple[str, str]] = []

    async def job(self, takes_s: float = 1.0, result: object = None, fails: str = "") -> object:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(takes_s)
            if fails:
                raise OSError(fails)
            return result
        finally:
            self.now -= 1

    def on_error(self, name: str, error: Exception) -> None:
        self.errors.append((name, str(error)))


async def test_each_task_is_awaited_by_name_and_none_is_a_result(
    autojump_clock: trio.testing.MockClock,
):
    jobs = Jobs()
    async with open_background(jobs.on_error) as tasks:
        one = await tasks.start("one", lambda: jobs.job(result=1))
        await tasks.start("none", jobs.job)
        assert tasks.running == ("one", "none")
        assert await one.wait() == 1
        assert await tasks["none"].wait() is None
        assert await one.wait() == 1  # who holds the task may ask again
        assert tasks.kept == ()
        with pytest.raises(KeyError, match="no background task 'one' runs"):
            tasks["one"]


async def test_an_error_is_told_at_once_and_to_each_who_asks(
    autojump_clock: trio.testing.MockClock,
):
    jobs = Jobs()
    async with open_background(jobs.on_error) as tasks:
        task = await tasks.start("fails", lambda: jobs.job(fails="disk"))
        other = await tasks.start("other", lambda: jobs.job(2, result="good"))
        await trio.sleep(1.5)
        assert jobs.errors == [("fails", "disk")]
        for _ in range(2):
            with pytest.raises(OSError, match="disk"):
                await task.wait()
        assert await other.wait() == "good"
        assert tasks.failed == 1


async def test_one_is_cancelled_alone_and_did_not_fail(autojump_clock: trio.testing.MockClock):
    jobs = Jobs()
    async with open_background(jobs.on_error) as tasks:
        one = await tasks.start("one", lambda: jobs.job(9))
        two = await tasks.start("two", lambda: jobs.job(2, "two"))
        await trio.sleep(1)
        one.cancel()
        with pytest.raises(TaskCancelled, match="'one' was cancelled"):
            await one.wait()
        assert await two.wait() == "two"
    assert (jobs.errors, tasks.failed) == ([], 0)


async def test_no_more_run_than_may_and_names_are_unique(autojump_clock: trio.testing.MockClock):
    jobs = Jobs()
    async with open_background(jobs.on_error, most=2) as tasks:
        for number in range(5):
            await tasks.start(str(number), jobs.job)
        assert trio.current_time() == 2
        with pytest.raises(ValueError, match="named '4' runs already"):
            await tasks.start("4", jobs.job)
        with trio.move_on_after(0.1):
            await tasks.start("5", lambda: jobs.job(99))
            await tasks.start("6", jobs.job)
        await tasks["5"].wait() if "5" not in tasks.running else tasks["5"].cancel()
        await tasks.wait_idle()
    assert jobs.most == 2


async def test_outcomes_that_nobody_asks_for_are_bounded_and_counted(
    autojump_clock: trio.testing.MockClock,
):
    jobs = Jobs()
    async with open_background(jobs.on_error, most_kept=3) as tasks:
        for number in range(5):
            await tasks.start(str(number), jobs.job)
            await tasks.wait_idle()
        assert tasks.kept == ("2", "3", "4")
        assert tasks.dropped == 2
        await tasks.start("4", jobs.job)
        assert tasks.dropped == 3


async def test_leaving_ends_everything_and_the_blocks_error_comes_out_bare(
    autojump_clock: trio.testing.MockClock,
):
    jobs = Jobs()

    async def block() -> None:
        async with open_background(jobs.on_error) as tasks:
            await tasks.start("long", lambda: jobs.job(99))
            await trio.sleep(1)
            raise KeyError

    with pytest.raises(KeyError):
        await block()
    assert jobs.now == 0
    assert trio.current_time() == 1


async def test_a_supervised_task_is_run_again_and_each_failure_told(
    autojump_clock: trio.testing.MockClock,
):
    jobs = Jobs()
    left = ["one", "two"]

    async def job() -> object:
        return await jobs.job(fails=left.pop(0) if left else "", result="done")

    async with open_background(jobs.on_error) as tasks:
        task = await tasks.start("job", job, restarts=RestartPolicy())
        assert await task.wait() == "done"
        assert task.restarts == 2
        assert jobs.errors == [("job", "one"), ("job", "two")]
        left.extend("abc")
        task = await tasks.start("gives up", job, restarts=RestartPolicy(most=1))
        with pytest.raises(OSError, match="b"):
            await task.wait()
        assert jobs.errors[2:] == [("gives up", "a"), ("gives up", "b")]


async def test_a_servants_error_ends_its_block():
    async def fails() -> None:
        raise OSError("servant")

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="servant")):
        async with block_nursery("left") as nursery:
            nursery.start_soon(fails)
            await trio.sleep_forever()


async def test_a_blocks_own_group_comes_out_as_it_is_unless_a_servant_failed_too():
    async def fails() -> None:
        raise OSError("servant")

    group = ExceptionGroup("own", [KeyError(), ExceptionGroup("inner", [ValueError()])])
    with pytest.raises(ExceptionGroup) as raised:
        async with block_nursery("left"):
            raise group
    assert raised.value is group
    with pytest.RaisesGroup(KeyError, OSError):
        async with block_nursery("left") as nursery:
            nursery.start_soon(fails)
            raise KeyError


async def test_cancelled_at_any_checkpoint_nothing_runs_on(
    autojump_clock: trio.testing.MockClock,
):
    jobs, opened = Jobs(), list[Background]()

    async def scenario() -> None:
        async with open_background(jobs.on_error, most=2) as tasks:
            opened.append(tasks)
            for number in range(3):
                await tasks.start(str(number), lambda: jobs.job(fails="often"))
            await tasks.wait_idle()

    def check() -> None:
        assert jobs.now == 0
        assert all(tasks.running == () for tasks in opened)
        assert len(jobs.errors) == sum(tasks.failed for tasks in opened)

    assert await cancel_at_every_checkpoint(scenario, check) > 5


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 10), st.booleans(), st.booleans()), max_size=20
    ),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_every_outcome_is_kept_asked_for_or_counted_as_dropped(
    plan: list[tuple[int, int, bool, bool]], most: int, most_kept: int
):
    jobs, asked = Jobs(), 0

    async def main() -> None:
        nonlocal asked
        async with open_background(jobs.on_error, most=most, most_kept=most_kept) as tasks:
            for number, (pause, takes, fails, asks) in enumerate(plan):
                await trio.sleep(pause / 10)
                fails_with = "often" if fails else ""
                task = await tasks.start(
                    str(number),
                    lambda takes=takes, fails_with=fails_with: jobs.job(takes / 10, 1, fails_with),
                )
                if asks:
                    asked += 1
                    try:
                        await task.wait()
                    except OSError:
                        assert fails
            await tasks.wait_idle()
            assert len(tasks.kept) <= most_kept
            assert tasks.started == len(plan)
            assert len(tasks.kept) + tasks.dropped <= len(plan)
            assert len(tasks.kept) + tasks.dropped + asked >= len(plan)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert jobs.most <= most
    assert len(jobs.errors) == sum(fails for *_, fails, _ in plan)


async def test_who_asks_an_old_task_drops_no_newer_ones_outcome(
    autojump_clock: trio.testing.MockClock,
):
    jobs = Jobs()
    async with open_background(jobs.on_error) as tasks:
        old = await tasks.start("again", lambda: jobs.job(result="old"))
        await tasks.wait_idle()
        await tasks.start("again", lambda: jobs.job(result="new"))
        await tasks.wait_idle()
        assert await old.wait() == "old"
        assert tasks.kept == ("again",)
        assert await tasks["again"].wait() == "new"
        assert tasks.kept == ()
