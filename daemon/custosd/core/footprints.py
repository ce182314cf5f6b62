"""Where in files an agent changed something, and whether two agents are in each other's way.

Laws:

1. A span is kept in lines of the file as it was before the agent's first change of it, so
   that the spans of two agents who began from the same file can be laid over each other.
2. Spans that overlap or touch are a conflict, as they are to a merge of two branches. In
   one working copy it is one only where the writes were mingled in time, or where one wrote
   without having looked at what the other had written: who comes after and looks, goes on.
3. Bounded: `SPANS_KEPT` spans a file. What does not fit is joined to its neighbour, which
   can say too much of the place between them and never too little.
"""

from itertools import pairwise
from typing import NamedTuple

from custosd.core.transcript import EditRange

SPANS_KEPT = 10

TOGETHER_S = 600
"""Who last wrote a file so long before the other came to it was not there with it."""


class Span(NamedTuple):
    """From line `start` (1-based, of the file as it was) on, `removed` lines became `added`."""

    start: int
    removed: int
    added: int


class Track(NamedTuple):
    """What one agent did to one file; times are POSIX seconds, 0 where not known.

    `first_s` to `last_s` is its last time of writing there, without a long pause in it.

    `whole`: it was also changed at a place that is not known, or written anew as a whole,
    which `replaced` says. `seen_s` is the last time that the agent looked into it before
    its last write, `refused_s` when a write of it was refused last.
    """

    spans: tuple[Span, ...] = ()
    whole: bool = False
    replaced: bool = False
    first_s: int = 0
    last_s: int = 0
    looked_s: int = 0
    seen_s: int = 0
    refused_s: int = 0


NO_TRACK = Track()


class Footprint(NamedTuple):
    """A file that an agent changed, as others see it; the fields are those of `Track`."""

    path: str
    spans: tuple[Span, ...]
    whole: bool
    replaced: bool
    first_s: int
    last_s: int
    seen_s: int
    refused_s: int = 0


class Clash(NamedTuple):
    """Two agents in one file. `first_line` to `last_line` is where, 0..0 for the whole of it.

    `sure`: both places are known. `mingled`: in one working copy, each wrote between writes
    of the other; `blind`: one wrote over the other's without having looked, or was refused
    when it tried.
    """

    first_line: int
    last_line: int
    sure: bool
    mingled: bool = False
    blind: bool = False


def looked(track: Track, at_s: int) -> Track:
    """The track after a look into the file."""
    return track._replace(looked_s=max(track.looked_s, at_s))


def refused(track: Track, at_s: int) -> Track:
    """The track after a write that did not come through."""
    return track._replace(refused_s=max(track.refused_s, at_s))


def wrote(track: Track, edit: EditRange, at_s: int) -> Track:
    """The track after one edit of the file."""
    spans, whole, replaced = track.spans, track.whole, track.replaced
    changes = edit.changes
    if edit.created:
        spans, whole, replaced = (), True, True
    elif changes:
        for change in changes:
            spans = patched(spans, *change)
    elif edit.first_line:
        # How many lines it took away is not told: as many as it wrote, then.
        lines = max(1, edit.last_line - edit.first_line + 1)
        spans = patched(spans, edit.first_line, lines, lines)
    else:
        whole = True
    return Track(
        spans,
        whole,
        replaced,
        # Who comes back after a long while begins anew: that is another time of writing.
        at_s if at_s - track.last_s > TOGETHER_S or not track.first_s else track.first_s,
        max(track.last_s, at_s),
        track.looked_s,
        track.looked_s or track.last_s,
        track.refused_s,
    )


def patched(spans: tuple[Span, ...], at: int, removed: int, added: int) -> tuple[Span, ...]:
    """The spans after `removed` lines from line `at` of the file as it is became `added`."""
    before: list[Span] = []
    touched: list[tuple[Span, int]] = []
    after: list[Span] = []
    shift = shift_at = 0
    for span in spans:
        begin = span.start + shift
        if begin > at + removed:
            after.append(span)
            continue
        if begin + span.added < at:
            before.append(span)
            shift_at = shift + span.added - span.removed
        else:
            touched.append((span, shift))
        shift += span.added - span.removed
    if not touched:
        new = Span(max(1, at - shift_at), removed, added)
    else:
        (first, first_shift), (last, last_shift) = touched[0], touched[-1]
        begin = min(at, first.start + first_shift)
        end = max(at + removed, last.start + last_shift + last.added)
        last_shift += last.added - last.removed
        start = max(1, begin - first_shift)
        new = Span(start, max(0, end - last_shift - start), max(0, end - begin - removed + added))
    return _bounded((*before, new, *after))


def _bounded(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    while len(spans) > SPANS_KEPT:
        gaps = [
            (after.start - one.start - one.removed, place)
            for place, (one, after) in enumerate(pairwise(spans))
        ]
        gap, place = min(gaps)
        one, after = spans[place], spans[place + 1]
        gap = max(0, gap)
        joined = Span(one.start, one.removed + gap + after.removed, one.added + gap + after.added)
        spans = (*spans[:place], joined, *spans[place + 2 :])
    return spans


def clash(one: Footprint, other: Footprint, *, same_copy: bool) -> Clash | None:
    """Whether two agents are in each other's way in a file; None: they are not."""
    if same_copy and (_refused_by(one, other) or _refused_by(other, one)):
        return Clash(0, 0, sure=True, blind=True)
    place = _place(one, other)
    if place is None:
        return None
    first, last, sure = place
    if not same_copy:
        # On two branches the order of time is nothing: both are merged in the end. A change
        # whose place is not known is no case yet, a file that both wrote anew is one.
        if not sure and not (one.replaced and other.replaced):
            return None
        return Clash(first, last, sure)
    mingled = _mingled(one, other)
    blind = _blind(one, other) or _blind(other, one)
    return Clash(first, last, sure, mingled, blind) if mingled or blind else None


def _place(one: Footprint, other: Footprint) -> tuple[int, int, bool] | None:
    """Where two footprints touch, and whether both places are known."""
    for span in one.spans:
        for beside in other.spans:
            if span.start > beside.start + beside.removed:
                continue
            if beside.start > span.start + span.removed:
                break
            first = max(span.start, beside.start)
            last = min(span.start + span.removed, beside.start + beside.removed) - 1
            return first, max(first, last), True
    return (0, 0, False) if one.whole or other.whole else None


def _mingled(one: Footprint, other: Footprint) -> bool:
    """Whether neither had done its writing before the other began."""
    if not (one.first_s and other.first_s):
        return False
    return one.first_s <= other.last_s and other.first_s <= one.last_s


def _refused_by(writer: Footprint, other: Footprint) -> bool:
    """Whether a write was refused shortly after the other's had come through."""
    if not (writer.refused_s and other.last_s):
        return False
    return 0 <= writer.refused_s - other.last_s <= TOGETHER_S and writer.seen_s < other.last_s


def _blind(writer: Footprint, other: Footprint) -> bool:
    """Whether the writer's last write came shortly after the other's, which it had not seen.

    Only where it wrote the file anew, or at a place that both know of: an edit that names
    the text it replaces fails where that text has changed.
    """
    if not (writer.last_s and other.last_s and other.last_s <= writer.last_s):
        return False
    unseen = writer.seen_s < other.last_s
    return unseen and writer.replaced and writer.last_s - other.last_s <= TOGETHER_S
