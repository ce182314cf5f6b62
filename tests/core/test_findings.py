"""Findings: one open for each kind and pair, whatever is seen, missed or unknown."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from custosd.core.agents import AgentId
from custosd.core.findings import (
    MISSES,
    Finding,
    FindingBook,
    FindingKind,
    Key,
    Resolution,
    Sighting,
    superfluous,
)

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
A, B, C, D = (AgentId(name) for name in "abcd")
EVERYBODY = frozenset({A, B, C, D})
PAIRS = [(A, B), (A, C), (B, C)]
SEEN = st.sets(st.tuples(st.sampled_from(FindingKind), st.sampled_from(PAIRS)))


def sighting(kind: FindingKind, one: AgentId, other: AgentId) -> Sighting:
    return Sighting(kind, one, other, 0.5, 0.9)


def duplicate(one: AgentId, other: AgentId) -> Finding:
    return Finding("x", sighting(FindingKind.DUPLICATE, one, other), NOON, NOON)


def swept(book: FindingBook, minute: int, *seen: Sighting, **more: set[Key]) -> list[Resolution]:
    at = NOON + timedelta(minutes=minute)
    changes = book.after(
        seen, EVERYBODY, more.get("undecided", set()), at, more.get("apart", set())
    )
    book.keep(changes)
    return [finding.resolution for finding in changes.resolved if finding.resolution]


@given(st.lists(st.tuples(SEEN, SEEN, st.sets(st.sampled_from([A, B, C]))), max_size=12))
def test_whatever_happens_one_is_open_for_each_key_and_ids_are_never_given_twice(
    sweeps: list[tuple[set[tuple[FindingKind, tuple[AgentId, AgentId]]], ...]],
) -> None:
    book = FindingBook()
    opened: list[str] = []
    live: set[str] = set()
    for minute, (seen, undecided, at_work) in enumerate(sweeps):
        sightings = [sighting(kind, *pair) for kind, pair in seen if set(pair) <= set(at_work)]  # type: ignore[arg-type]
        keys = {(kind, *pair) for kind, pair in undecided}
        at = NOON + timedelta(minutes=minute)
        changes = book.after(sightings, at_work, keys, at)  # type: ignore[arg-type]
        opened += [finding.id for finding in changes.opened]
        live |= {finding.id for finding in changes.opened}
        live -= {finding.id for finding in changes.resolved}
        book.keep(changes)
        assert {finding.id for finding in book.open.values()} == live
        assert all(key == finding.key and finding.open for key, finding in book.open.items())
    assert len(opened) == len(set(opened))


def test_what_is_not_seen_is_over_after_so_many_sweeps_and_comes_back_as_another() -> None:
    book = FindingBook()
    seen = sighting(FindingKind.CONFLICT, A, B)
    swept(book, 0, seen)
    (first,) = book.open.values()
    told = [swept(book, minute) for minute in range(1, MISSES + 1)]
    assert told == [[]] * (MISSES - 1) + [[Resolution.NOT_SEEN]]
    swept(book, 9, seen)
    (again,) = book.open.values()
    assert again.id != first.id


def test_what_could_not_be_looked_at_is_not_missed() -> None:
    book = FindingBook()
    seen = sighting(FindingKind.CONFLICT, A, B)
    swept(book, 0, seen)
    for minute in range(1, 9):
        assert swept(book, minute, undecided={seen.key}) == []
    assert len(book.open) == 1


def test_a_judge_who_says_that_it_is_nothing_ends_it_at_once() -> None:
    book = FindingBook()
    seen = sighting(FindingKind.DUPLICATE, A, B)
    swept(book, 0, seen)
    assert swept(book, 1, apart={seen.key}) == [Resolution.JUDGED_APART]


def test_of_a_group_that_does_the_same_all_but_the_one_of_most_merit_are_superfluous() -> None:
    findings = [duplicate(A, B), duplicate(B, C)]
    merits = {A: 1.0, B: 1.0, C: 5.0, D: 9.0}
    assert superfluous(findings, merits.__getitem__) == {A: C, B: C}
    assert superfluous(findings, lambda _: 0.0) == {B: A, C: A}
