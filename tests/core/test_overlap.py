"""Duplicated work is found agent by agent, and only where goals really are the same."""

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import AgentId
from custosd.core.overlap import Work, WorkIndex, jaccard


def indexed(works: list[Work]) -> WorkIndex:
    index = WorkIndex()
    for each in works:
        index.note(each)
    while index.settle():
        pass
    return index


def duplicates(works: list[Work]) -> list[tuple[str, str, float]]:
    """All pairs of an index over these works."""
    return pairs(indexed(works))


def pairs(index: WorkIndex) -> list[tuple[str, str, float]]:
    return sorted((a, b, alike) for a in index for b, alike in index.peers(a) if a < b)


def work(agent: str, goal: str, *written: str) -> Work:
    return Work(AgentId(agent), goal, written)


TOPICS = [
    "login",
    "billing",
    "search",
    "export",
    "cache",
    "mail",
    "theme",
    "quota",
    "audit",
    "sync",
]


def different(count: int) -> list[Work]:
    return [
        work(f"agent-{i}", f"{TOPICS[i % 10]} {i} needs {TOPICS[i // 10 % 10]} rework {i * 7} soon")
        for i in range(count)
    ]


def test_two_agents_with_the_same_goal_are_a_pair() -> None:
    goal = "Write the React components for the todo application"
    pairs = duplicates([work("a", goal), work("b", goal), work("c", "Fix the database migration")])
    assert pairs == [("a", "b", 1.0)]


def test_a_similar_goal_with_a_common_file_is_a_pair_and_without_it_is_not() -> None:
    one = "Build the filter component and the list component for todos"
    two = "Build the filter component and the list component of the page"
    with_file = [work("a", one, "src/Filter.tsx"), work("b", two, "app/src/Filter.tsx")]
    assert [pair[:2] for pair in duplicates(with_file)] == [("a", "b")]
    assert duplicates([work("a", one, "x/one.tsx"), work("b", two, "x/two.tsx")]) == []


def test_a_common_file_alone_is_no_duplicate() -> None:
    one, two = "Add a flag for verbose output", "Correct the rounding of totals in reports"
    assert duplicates([work("a", one, "src/main.py"), work("b", two, "src/main.py")]) == []


def test_a_template_that_all_goals_share_makes_no_pairs() -> None:
    template = "You are an engineer working in our repository and follow the style guide strictly. "
    fleet = [work(w.agent, template + w.goal) for w in different(40)]
    assert duplicates(fleet) == []


def test_the_one_pair_in_a_large_fleet_is_found() -> None:
    fleet = different(1_500)
    twin = work("twin", fleet[700].goal)
    assert duplicates([*fleet, twin]) == [("agent-700", "twin", 1.0)]


def test_empty_and_tiny_goals_are_never_compared() -> None:
    assert duplicates([work("a", ""), work("b", ""), work("c", "go"), work("d", "go")]) == []
    assert duplicates([]) == []


def test_similarity_is_a_share() -> None:
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert jaccard(set(), set()) == 0


GOAL = "Write the React components for the todo application"


def test_both_members_of_a_pair_know_of_it_and_both_forget_it() -> None:
    index = indexed([work("a", GOAL), work("b", GOAL)])
    assert index.peers(AgentId("a")) == (("b", 1.0),)
    assert index.peers(AgentId("b")) == (("a", 1.0),)
    index.forget(AgentId("a"))
    assert index.peers(AgentId("a")) == index.peers(AgentId("b")) == ()


def test_a_parent_and_its_child_are_no_pair_and_two_children_are() -> None:
    family = [
        Work(AgentId("p"), GOAL),
        Work(AgentId("p/1"), GOAL, (), "p"),
        Work(AgentId("p/2"), GOAL, (), "p"),
    ]
    assert duplicates(family) == [("p/1", "p/2", 1.0)]


def test_a_goal_that_changes_ends_the_pair() -> None:
    index = indexed([work("a", GOAL), work("b", GOAL)])
    index.note(work("b", "Correct the rounding of totals in the monthly reports"))
    assert not index.settle()
    assert pairs(index) == []


def test_a_pair_in_a_fleet_that_shares_a_template_is_found_and_no_other() -> None:
    template = " ".join(f"rule{n}" for n in range(60))
    fleet = [work(w.agent, f"{template} {w.goal}") for w in different(60)]
    twin = work("twin", fleet[30].goal)
    assert duplicates([*fleet, twin]) == [("agent-30", "twin", 1.0)]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([GOAL, "", "x y z a b"]))))
def test_however_it_came_about_an_index_says_what_a_new_one_says(
    story: list[tuple[str, str]],
) -> None:
    index, now = WorkIndex(), dict[str, str]()
    for name, goal in story:
        if goal:
            index.note(work(name, goal))
            now[name] = goal
        else:
            index.forget(AgentId(name))
            now.pop(name, None)
        index.settle()
    assert pairs(index) == duplicates([work(name, goal) for name, goal in now.items()])


def test_an_index_that_forgot_everybody_holds_nothing() -> None:
    index = indexed([work(w.agent, w.goal, f"src/{w.agent}.py") for w in different(100)])
    for agent in list(index):
        index.forget(agent)
    assert not index._buckets
    assert not index._pairs
    assert not index._sketches
    assert not index._unsettled
    assert not index._sample


def test_an_agent_takes_little_memory() -> None:
    """150 words, nine files: below the 2 KiB that are promised."""
    chosen = random.Random(1)
    words = [f"word{n}" for n in range(3_000)]
    works = [
        work(
            f"a{n}",
            " ".join(chosen.choices(words, k=150)),
            *(f"/work/p{n}/f{i}.py" for i in range(9)),
        )
        for n in range(1_000)
    ]
    tracemalloc.start()
    index = indexed(works)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list(index)) == 1_000
    assert size < 1_000 * 2_048
