"""Who is in whose way: by two sets of marks, as the law says it of paths, and within bounds."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from custosd.core.agents import AgentId
from custosd.core.intents import (
    DEEPEST_PATH,
    LONGEST_PATH,
    MOST_FILES,
    MOST_PATH_CHARS,
    Intent,
    RefusedIntent,
    checked_intent,
    marks_of,
    normal_path,
    sought_by,
)

ADA = AgentId("ada")
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "..", ".", "", "\u00e9", "e\u0301"]), max_size=5)
FILES = st.lists(PATHS.map("/".join), min_size=1, max_size=4)


def intent(*files: str, goal: str = "", repository: str = "") -> Intent:
    return Intent(ADA, goal, files, repository)


def meets(one: Intent, other: Intent) -> bool:
    return not sought_by(one).isdisjoint(marks_of(other))


def covers(path: str, other: str) -> bool:
    """Law 1, word by word."""
    folder = path.rstrip("/")
    return other.rstrip("/") == folder or other.startswith(f"{folder}/")


@given(FILES, FILES)
@example(["a/"], ["a/b"])
@example(["a"], ["a/b"])
@example(["a//b/"], ["a/b/../b"])
def test_marks_say_what_the_law_says(files: list[str], others: list[str]) -> None:
    one, other = intent(*files), intent(*others)
    mine = [path for path in map(normal_path, files) if path]
    theirs = [path for path in map(normal_path, others) if path]
    met = any(covers(a, b) or covers(b, a) for a in mine for b in theirs)
    assert meets(one, other) is met
    assert meets(other, one) is met


@given(st.text(alphabet="a./\u00e9e\u0301\ud800", max_size=20))
def test_a_normal_path_is_its_own_normal_form(path: str) -> None:
    normal = normal_path(path)
    assert normal_path(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert not {"", ".", ".."} & set(normal.strip("/").split("/")) or not normal


def test_goals_and_repositories() -> None:
    assert meets(intent(goal="Fix the parser"), intent(goal="fix  the parser."))
    assert not meets(intent(goal="..."), intent(goal="!!!"))
    assert not meets(intent("a", repository="r"), intent("a"))
    assert not meets(intent(goal="a"), intent("a"))


@pytest.mark.parametrize(
    "files",
    [
        [""],
        ["."],
        ["./"],
        ["/"],
        ["a/.."],
        ["../a"],
        ["a/../../b"],
        ["a/" * (DEEPEST_PATH + 2)],
        ["a" * (LONGEST_PATH + 1)],
        [f"{number}{'a' * 200}" for number in range(MOST_FILES)],
        ["a"] * (MOST_FILES + 1),
        ["a/" * number for number in range(1, MOST_FILES + 1)],
    ],
)
def test_what_names_nothing_or_too_much_is_refused(files: list[str]) -> None:
    with pytest.raises(RefusedIntent):
        checked_intent(intent(*files), 60.0)


def test_one_path_said_in_many_ways_is_one() -> None:
    said = ["src/a.py", "src//a.py", "./src/a.py", "src/b/../a.py", "src/./a.py"]
    assert checked_intent(intent(*said), 60.0).files == ("src/a.py",)
    assert checked_intent(intent("src//", "./src/."), 60.0).files == ("src/",)


def test_the_worst_intent_leaves_a_bounded_number_of_marks() -> None:
    nested = checked_intent(intent(*("a/" * depth for depth in range(1, DEEPEST_PATH))), 60.0)
    assert len(marks_of(nested)) < 3 * DEEPEST_PATH
    chars = MOST_PATH_CHARS // MOST_FILES
    deep = [f"{number:03}/" + "a/" * ((chars - 4) // 2) for number in range(MOST_FILES)]
    deep = [path[: 2 * DEEPEST_PATH + 1] for path in deep]
    worst = checked_intent(intent(*deep), 60.0)
    for marks in (marks_of(worst), sought_by(worst)):
        assert len(marks) <= MOST_FILES * (DEEPEST_PATH + 2)
        assert all(-(2**63) <= mark < 2**63 for mark in marks)
