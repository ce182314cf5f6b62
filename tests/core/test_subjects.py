"""Names that people give: an id, a part that only one has, or a question back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.subjects import UnknownSubject, one_with_part, one_with_prefix

NAMES = st.text("ab:/", min_size=1, max_size=4)


@given(NAMES, st.sets(NAMES))
def test_what_is_found_has_the_name_and_nothing_else_does(part: str, ids: set[str]) -> None:
    for find in (one_with_part, one_with_prefix):
        try:
            found = find(part, ids, "agent")
        except UnknownSubject:
            assert part not in ids
            continue
        assert part in found
        if found != part and find is one_with_part:
            assert [known for known in ids if part in known] == [found]


@given(NAMES, st.sets(NAMES))
def test_an_id_in_full_is_always_found(part: str, ids: set[str]) -> None:
    assert one_with_part(part, ids | {part}, "agent") == part
    assert one_with_prefix(part, ids | {part}, "concern") == part


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("an", "2 agents have 'an' in the id; there is: anna, joan"),
        ("zed", "no agents have 'zed' in the id; there is: anna, bob, joan"),
        ("", "which agent is not said; there is: anna, bob, joan"),
    ],
)
def test_who_is_not_found_is_told_who_there_is(part: str, problem: str) -> None:
    with pytest.raises(UnknownSubject) as caught:
        one_with_part(part, ["joan", "anna", "bob"], "agent")
    assert str(caught.value) == problem


def test_of_many_some_are_named() -> None:
    with pytest.raises(UnknownSubject, match=r"a0, a1, .*a8, a9 and 10 more$") as caught:
        one_with_part("b", [f"a{n}" for n in range(10)] + [f"c{n}" for n in range(10)], "agent")
    assert len(caught.value.candidates) == 10
    with pytest.raises(UnknownSubject, match="there is: none"):
        one_with_part("b", [], "agent")


def test_the_kind_in_front_of_a_concern_may_be_left_out() -> None:
    ids = ["life:builder-1", "incident:ab12", "letter:m-7"]
    assert one_with_prefix("builder", ids, "concern") == "life:builder-1"
    assert one_with_prefix("inc", ids, "concern") == "incident:ab12"
    with pytest.raises(UnknownSubject):
        one_with_prefix("uilder", ids, "concern")
