"""Duplicated work is found below n², and only where goals really are the same."""

from custosd.core.agents import AgentId
from custosd.core.overlap import Work, duplicates, jaccard


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
