"""Pairs are suspect by places and words, and an index after changes is one made anew."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custosd.core.agents import AgentId
from custosd.core.findings import FindingKind
from custosd.core.footprints import Footprint, Span
from custosd.core.pairs import (
    LATEST_IN_FILE,
    PairIndex,
    Place,
    Suspicion,
    Work,
    content_of,
    file_of,
    judge_by_rules,
)

ZEBRA = "Rewrite the zebra importer so that broken rows are skipped"
LOGIN = "Draw the login page of the shop anew with blue buttons"


def mark(path: str, start: int = 1, *, anew: bool = False, **times: int) -> Footprint:
    known = {"first_s": 0, "last_s": 0, "seen_s": 0} | times
    spans = () if anew else (Span(start, 2, 2),)
    return Footprint(path, spans, anew, anew, **known)


def work(agent: str, *marks: Footprint, goal: str = "", copy: str = "", parent: str = "") -> Work:
    place = Place("/r/.git", copy or f"/w/{agent}")
    return Work(AgentId(agent), f"{marks}{goal}", goal, parent, place, marks)


def indexed(*works: Work) -> PairIndex:
    index = PairIndex()
    for each in works:
        index.note(each)
    while index.settle():
        pass
    return index


def suspected(*works: Work) -> list[tuple[FindingKind, str, str]]:
    return [s.key for s in indexed(*works).suspicions()]


def test_two_branches_that_touch_one_place_are_suspect() -> None:
    assert suspected(work("a", mark("x.py")), work("b", mark("x.py", 3))) == [
        (FindingKind.CONFLICT, "a", "b")
    ]
    assert suspected(work("a", mark("x.py")), work("b", mark("x.py", 9))) == []


def test_files_of_other_repositories_are_other_files() -> None:
    other = replace(work("b", mark("x.py")), place=Place("/s/.git", "/v/b"))
    assert suspected(work("a", mark("x.py")), other) == []


def test_in_one_copy_the_order_of_time_decides() -> None:
    first = work("a", mark("x.py", first_s=10, last_s=20), copy="/w")
    after = work("b", mark("x.py", first_s=30, last_s=40, seen_s=25), copy="/w")
    among = work("b", mark("x.py", first_s=15, last_s=40, seen_s=12), copy="/w")
    assert suspected(first, after) == []
    assert suspected(first, among) == [(FindingKind.CONFLICT, "a", "b")]


def test_the_same_goal_is_suspect_and_a_child_is_not() -> None:
    assert suspected(work("a", goal=ZEBRA), work("b", goal=ZEBRA), work("c", goal=LOGIN)) == [
        (FindingKind.DUPLICATE, "a", "b")
    ]
    child = work("b", goal=ZEBRA, parent="a")
    assert suspected(work("a", goal=ZEBRA), child, work("c", goal=LOGIN)) == []


def test_one_sentence_about_two_things_is_no_suspicion_before_they_share_a_file() -> None:
    goal = "Write a parser with tests for the {} files that our customers send us every night"
    one, other = work("a", goal=goal.format("zebra")), work("b", goal=goal.format("panda"))
    again = "Our customers send us zebra files every night: write a parser for the files with tests"
    crowd = [work(name, goal=" ".join(name * n for n in range(2, 9))) for name in "cdefghijk"]
    assert suspected(one, other, *crowd) == []
    assert suspected(one, work("b", goal=again), *crowd) == [(FindingKind.DUPLICATE, "a", "b")]
    marked = [
        replace(each, footprints=(mark("src/parser.py", n * 90),))
        for n, each in enumerate((one, other), 1)
    ]
    marked = [replace(each, place=Place("/r", "/w")) for each in marked]
    assert suspected(*marked, *crowd) == [(FindingKind.DUPLICATE, "a", "b")]


def test_the_same_goal_in_two_projects_is_no_suspicion() -> None:
    """In two clones of one project it is, and where a project is not known."""
    goal = "Skip broken rows in the zebra importer"
    here = replace(
        work("a", mark("src/zebra.py"), goal=goal), place=Place("/r", "/w/a", "", "", "r")
    )
    there = work("b", mark("src/zebra.py"), goal=goal)
    for project, count in (("s", 0), ("r", 1), ("", 1)):
        place = Place("/s", "/v/b", "", "", project)
        assert len(suspected(here, replace(there, place=place))) == count


def test_new_files_of_the_same_names_elsewhere_are_the_same_work() -> None:
    one = work("a", mark("ui/Filter.tsx", anew=True), mark("ui/List.tsx", anew=True))
    other = work("b", mark("src/ui/Filter.tsx", anew=True), mark("src/ui/List.tsx", anew=True))
    (suspicion,) = indexed(one, other).suspicions()
    assert suspicion.made_twice == 2
    assert judge_by_rules(suspicion).holds
    alone = work("b", mark("src/ui/Filter.tsx", anew=True))
    assert suspected(one, alone) == []


def test_a_likeness_that_changes_a_little_makes_no_other_question() -> None:
    one, other = work("a", goal=ZEBRA), work("b", goal=ZEBRA)
    works = {each.agent: each for each in (one, other)}

    def content(likeness: float) -> str:
        kind = FindingKind.DUPLICATE
        return content_of(Suspicion(kind, one.agent, other.agent, likeness), works)

    assert content(0.51) == content(0.53)
    assert content(0.51) != content(0.63)
    # Both are told to a model as 0.8, of which the rules hold what is no less for true.
    assert content(0.78) != content(0.82)


def test_a_file_that_everybody_writes_leads_to_few() -> None:
    works = [work(f"a{n:03}", mark("CHANGELOG.md")) for n in range(4 * LATEST_IN_FILE)]
    assert len(suspected(*works)) <= len(works) * LATEST_IN_FILE


WORKS = st.builds(
    lambda agent, paths, goal: work(agent, *(mark(p, s) for p, s in paths), goal=goal),
    st.sampled_from("abcde"),
    st.lists(st.tuples(st.sampled_from(["x.py", "y.py"]), st.integers(1, 9)), max_size=3),
    st.sampled_from(["", ZEBRA, LOGIN]),
)


@settings(deadline=None)
@given(st.lists(WORKS, max_size=12), st.sets(st.sampled_from("abcde")))
def test_an_index_after_changes_suspects_whom_one_made_anew_does(
    works: list[Work], gone: set[str]
) -> None:
    index = PairIndex()
    for each in works:
        index.note(each)
        index.settle()
    for agent in gone:
        index.forget(AgentId(agent))
    last = {each.agent: each for each in works if each.agent not in gone}
    conflicts = FindingKind.CONFLICT
    kept = {s.key for s in index.suspicions() if s.kind is conflicts}
    anew = {s.key for s in indexed(*last.values()).suspicions() if s.kind is conflicts}
    assert kept == anew
    assert {agent for s in index.suspicions() for agent in s.key[1:]} <= last.keys()


@pytest.mark.parametrize(
    ("path", "place", "file"),
    [
        ("a.py", Place("/r", "/w"), ("/r", "a.py")),
        ("a.py", Place("/r", "/w", "sub"), ("/r", "sub/a.py")),
        ("/w/sub/a.py", Place("/r", "/w", "sub"), ("/r", "sub/a.py")),
        ("/etc/hosts", Place("/r", "/w"), ("", "/etc/hosts")),
        ("a.py", Place("", "/w"), ("", "/w/a.py")),
        ("a.py", Place(), None),
    ],
)
def test_which_file_a_path_means(path: str, place: Place, file: tuple[str, str] | None) -> None:
    assert file_of(path, place) == file


def test_rules_say_nothing_of_goals_that_are_only_somewhat_alike() -> None:
    def pair(likeness: float, *paths: str) -> Suspicion:
        return Suspicion(FindingKind.DUPLICATE, AgentId("a"), AgentId("b"), likeness, paths)

    assert judge_by_rules(pair(0.6)).holds is None
    assert judge_by_rules(pair(0.6, "x.py")).holds is True
    assert judge_by_rules(pair(0.9)).holds is True
