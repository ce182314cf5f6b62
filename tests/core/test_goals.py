"""The goals nearest to a goal are found without looking at all of them."""

from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import AgentId
from custosd.core.goals import GoalIndex

WORDS = ["login", "billing", "search", "cache", "mail", "theme", "quota", "audit", "parser", "sync"]
GOALS = st.lists(st.sampled_from(WORDS), min_size=0, max_size=6).map(" ".join)


def indexed(goals: dict[str, str]) -> GoalIndex:
    index = GoalIndex()
    for agent, goal in goals.items():
        index.note(AgentId(agent), goal)
    return index


def test_the_twin_comes_first() -> None:
    index = indexed(
        {
            "a": "Implement the costs command: break token usage down by agent",
            "b": "Add a costs command that breaks down tokens by agents",
            "c": "Fix the login form of the web page",
            "d": "Implement the replay command",
        }
    )
    peers = index.nearest(AgentId("a"))
    assert peers[0][0] == "b"
    assert peers[0][1] > 0.4


def test_words_of_one_stem_and_parts_of_names_are_one_word() -> None:
    index = indexed({"a": "migrate TokenBucket", "b": "migration of the token bucket", "c": "x y"})
    assert [peer for peer, _ in index.nearest(AgentId("a"))] == ["b"]


@given(st.dictionaries(st.sampled_from("abcdefgh"), GOALS), st.sets(st.sampled_from("abcdefgh")))
def test_an_index_after_changes_is_the_index_of_what_is_left(
    goals: dict[str, str], gone: set[str]
) -> None:
    index = indexed(dict.fromkeys(goals, "something else first") | goals)
    for agent in gone:
        index.forget(AgentId(agent))
    left = {agent: goal for agent, goal in goals.items() if agent not in gone}
    anew = indexed(left)
    for agent in left:
        assert (
            dict(index.nearest(AgentId(agent))).keys() == dict(anew.nearest(AgentId(agent))).keys()
        )


@given(st.dictionaries(st.sampled_from("abcdef"), GOALS))
def test_likeness_is_a_share_and_the_same_from_both_sides(goals: dict[str, str]) -> None:
    index = indexed(goals)
    for one in goals:
        for other in goals:
            alike = index.likeness(AgentId(one), AgentId(other))
            assert 0 <= alike <= 1
            assert alike == index.likeness(AgentId(other), AgentId(one))


def test_in_a_large_fleet_a_twin_is_found_among_its_rare_words() -> None:
    goals = {
        f"agent-{i}": f"Fix module m{i} in package p{i % 50} of the service" for i in range(900)
    }
    goals |= {"x": "Rewrite the zebra importer for the service", "y": "zebra importer: rewrite it"}
    index = indexed(goals)
    assert index.nearest(AgentId("x"))[0][0] == "y"
