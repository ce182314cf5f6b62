import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.flow.line import Line


def test_priorities_then_age_and_the_overdue_before_all():
    line = Line[str](most_wait_s=10)
    line.join("old and low", 0, now=0)
    line.join("high", 5, now=1)
    line.join("high too", 5, now=2)
    assert line.first(now=9.9) == "high"
    assert line.first(now=10) == "old and low"
    line.leave("old and low")
    assert line.first(now=100) == "high"
    line.leave("high")
    line.leave("high too")
    assert line.first(now=100) is None
    assert len(line) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40), st.integers(0, 30))
def test_who_is_overdue_is_served_in_the_order_of_joining(
    plan: list[tuple[int, int]], patience: int
):
    line, now = Line[int](patience), 0
    joined_at: dict[int, tuple[int, int]] = {}
    for name, (priority, pause) in enumerate(plan):
        now += pause
        line.join(name, priority, now)
        joined_at[name] = (now, priority)
    served: list[int] = []
    while (first := line.first(now)) is not None:
        overdue = [name for name in line if joined_at[name][0] + patience <= now]
        if overdue:
            assert first == min(overdue)
        else:
            best = max(joined_at[name][1] for name in line)
            assert first == min(name for name in line if joined_at[name][1] == best)
        line.leave(first)
        served.append(first)
    assert sorted(served) == list(range(len(plan)))


def test_who_is_promoted_keeps_its_age():
    line = Line[str](most_wait_s=10)
    for now, (name, priority) in enumerate((("a", 0), ("b", 0), ("c", 1), ("d", 0), ("e", 1))):
        line.join(name, priority, now)
    line.promote("d", 1)
    line.promote("e", 0)
    assert line.overdue_at("d") == 13
    served: list[str] = []
    while (first := line.first(now=9)) is not None:
        line.leave(first)
        served.append(first)
    assert served == ["c", "d", "e", "a", "b"]
    with pytest.raises(KeyError):
        line.promote("a", 1)


def test_who_is_promoted_is_overdue_when_it_would_have_been():
    line = Line[str](most_wait_s=10)
    for now, name in enumerate(("low", "lower")):
        line.join(name, 0, now)
    line.join("high", 1, 2)
    line.promote("lower", 1)
    assert line.first(now=10) == "low"
    line.leave("low")
    assert line.first(now=12) == "lower"
