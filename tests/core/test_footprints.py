"""What an agent changed is kept in lines of the file before, and laid over what others changed."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from custosd.core.footprints import (
    NO_TRACK,
    SPANS_KEPT,
    Footprint,
    Span,
    clash,
    looked,
    patched,
    wrote,
)
from custosd.core.transcript import Change, EditRange

LINES = 60

CHANGES = st.lists(
    st.tuples(st.integers(1, LINES), st.integers(0, 5), st.integers(0, 5)), max_size=6
)


def footprint(*spans: tuple[int, int, int], **known: int | bool) -> Footprint:
    times = {"first_s": 0, "last_s": 0, "seen_s": 0, "whole": False, "replaced": False} | known
    return Footprint("src/a.py", tuple(Span(*span) for span in spans), **times)  # type: ignore[arg-type]


@given(CHANGES)
def test_every_line_that_is_gone_lies_in_a_span_and_spans_are_apart(
    changes: list[tuple[int, int, int]],
) -> None:
    """The model: a file of numbered lines, really edited."""
    lines: list[int | None] = list(range(1, LINES + 1))
    spans: tuple[Span, ...] = ()
    for at, removed, added in changes:
        if at > len(lines):
            continue
        gone = min(removed, len(lines) - at + 1)
        lines[at - 1 : at - 1 + gone] = [None] * added
        spans = patched(spans, at, gone, added)
    left = set(lines)
    removed_lines = {line for line in range(1, LINES + 1) if line not in left}
    covered = {line for s in spans for line in range(s.start, s.start + s.removed)}
    assert removed_lines <= covered
    assert all(a.start + a.removed < b.start for a, b in itertools.pairwise(spans))
    assert sum(s.added - s.removed for s in spans) == len(lines) - LINES


@given(st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 9), st.integers(0, 9))))
def test_a_track_is_bounded(changes: list[tuple[int, int, int]]) -> None:
    track = NO_TRACK
    for change in changes:
        track = wrote(track, EditRange("a", 1, 1, changes=(Change(*change),)), 1)
    assert len(track.spans) <= SPANS_KEPT


@given(CHANGES, CHANGES)
def test_a_clash_is_the_same_from_both_sides(
    one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]
) -> None:
    def marked(changes: list[tuple[int, int, int]]) -> Footprint:
        spans: tuple[Span, ...] = ()
        for change in changes:
            spans = patched(spans, *change)
        return footprint(*spans)

    a, b = marked(one), marked(other)
    assert clash(a, b, same_copy=False) == clash(b, a, same_copy=False)


def test_on_two_branches_spans_that_touch_are_a_clash_whenever_they_were_written() -> None:
    early = footprint((10, 2, 3), first_s=100, last_s=110)
    late = footprint((12, 1, 1), first_s=9_000, last_s=9_000)
    found = clash(early, late, same_copy=False)
    assert found is not None
    assert found.sure
    assert clash(early, footprint((14, 1, 1)), same_copy=False) is None


def test_a_change_at_an_unknown_place_is_no_clash_between_branches() -> None:
    assert clash(footprint((1, 1, 1)), footprint(whole=True), same_copy=False) is None


def test_two_who_wrote_the_same_file_anew_clash() -> None:
    anew = footprint(whole=True, replaced=True)
    assert clash(anew, anew, same_copy=False) is not None


def test_in_one_copy_who_comes_after_and_looks_is_in_nobodys_way() -> None:
    before = footprint((10, 2, 2), first_s=100, last_s=110)
    after = footprint((10, 2, 2), first_s=200, last_s=210, seen_s=190)
    assert clash(before, after, same_copy=True) is None


def test_in_one_copy_mingled_writes_to_one_place_are_a_clash() -> None:
    one = footprint((10, 2, 2), first_s=100, last_s=300)
    other = footprint((11, 1, 1), first_s=200, last_s=250)
    found = clash(one, other, same_copy=True)
    assert found is not None
    assert found.mingled
    assert clash(one, footprint((40, 1, 1), first_s=200, last_s=250), same_copy=True) is None


def test_writing_a_file_anew_over_what_was_not_looked_at_is_a_clash() -> None:
    one = footprint((10, 2, 2), first_s=100, last_s=110)
    over = footprint(whole=True, replaced=True, first_s=200, last_s=200, seen_s=50)
    found = clash(one, over, same_copy=True)
    assert found is not None
    assert found.blind
    seen = over._replace(seen_s=150)
    assert clash(one, seen, same_copy=True) is None


def test_a_later_edit_above_does_not_move_what_was_marked_below() -> None:
    track = wrote(NO_TRACK, EditRange("a", changes=(Change(50, 2, 2),)), 1)
    track = wrote(track, EditRange("a", changes=(Change(1, 0, 20),)), 2)
    track = wrote(track, EditRange("a", changes=(Change(90, 1, 1),)), 3)
    assert [span.start for span in track.spans] == [1, 50, 70]


def test_the_last_look_before_the_last_write_is_remembered() -> None:
    track = looked(wrote(looked(NO_TRACK, 10), EditRange("a"), 20), 30)
    assert (track.seen_s, track.last_s) == (10, 20)
