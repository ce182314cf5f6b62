"""Which agents seem to do the same work: kept up to date agent by agent, asked in no time.

Laws:

1. Conservative: a pair is named when the goals are nearly the same, or much the same
   with one of their latest written files in common. A common file alone is no finding:
   in a team, many concurrent sessions share one. A parent and its child are no pair.
2. Only what changed costs: an agent is sketched when it is noted, and compared with
   those in a bucket with it. Buckets that hold many (a template that every goal begins
   with) are skipped.
3. Bounded: below 2 KiB for an agent, and some 100 bytes for each pair that it is in.
"""

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from custosd.core.agents import AgentId

SAME_GOAL = 0.8
SAME_GOAL_AND_FILE = 0.4
SHINGLE_WORDS = 2
FEWEST_WORDS = 4
_PEERS_SHOWN = 8
_NAMES_KEPT = 4
_SHINGLES_KEPT = 200
_BANDS = 7
_BAND_ROWS = 2
_BINS = _BANDS * _BAND_ROWS
_LARGEST_BUCKET = 64
_SAMPLE = 64
_FEWEST_TO_COMPARE = 5
_GOAL_CHARS = 4_000
_MASK = (1 << 32) - 1
_ODD = 0x9E3779B97F4A7C15
_WORD = re.compile(r"\w+")

Peers = tuple[tuple[AgentId, float], ...]
"""Who seems to do the same, with the similarity of the goals 0..1, the most alike first."""


@dataclass(frozen=True, slots=True)
class Work:
    """One agent's goal, the tails of the paths that it wrote, and who gave it the work."""

    agent: AgentId
    goal: str
    written: tuple[str, ...] = ()
    parent: str = ""


@dataclass(slots=True)
class _Sketch:
    version: str
    parent: str
    shingles: bytes  # of 32-bit numbers, sorted: a set of them would be ten times as large
    names: tuple[int, ...]
    keys: tuple[int, ...] = ()


class WorkIndex:
    """The works under way, and which of them seem to be the same.

    `note` and `forget` what changed, `settle` until nothing is left, then ask `peers`.
    """

    def __init__(self) -> None:
        self._sketches: dict[AgentId, _Sketch] = {}
        self._buckets: dict[int, AgentId | set[AgentId]] = {}
        self._pairs: dict[AgentId, dict[AgentId, float]] = {}
        self._unsettled: dict[AgentId, None] = {}
        self._sample: dict[AgentId, int] = {}
        self._sample_changed = False
        self._common: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[AgentId]:
        return iter(self._sketches)

    def version(self, agent: AgentId) -> str | None:
        """Which version of an agent's work was noted last; None where none is."""
        sketch = self._sketches.get(agent)
        return sketch.version if sketch else None

    def note(self, work: Work, version: str = "") -> None:
        """Take in an agent's work as it is now; it is compared by `settle`."""
        shingles = array("I", sorted(_shingles(work.goal))).tobytes()
        names = tuple({_hash(_name(path)): None for path in work.written[:_NAMES_KEPT]})
        old = self._sketches.get(work.agent)
        if old is not None:
            old.version = version
            if (old.parent, old.shingles, old.names) == (work.parent, shingles, names):
                return
            self._leave_buckets(work.agent, old)
        self._sketches[work.agent] = _Sketch(version, work.parent, shingles, names)
        self._unsettled[work.agent] = None
        if old is None or old.shingles != shingles:
            self._enter_sample(work.agent)

    def forget(self, agent: AgentId) -> None:
        """Leave an agent out from now on; harmless where it is not known."""
        sketch = self._sketches.pop(agent, None)
        if sketch is None:
            return
        self._leave_buckets(agent, sketch)
        self._part(agent)
        self._unsettled.pop(agent, None)
        if self._sample.pop(agent, None) is not None:
            self._sample_changed = True

    def settle(self, at_most: int = 64) -> bool:
        """Compare so many of those that were noted; True if there are more."""
        if self._sample_changed:
            self._sample_changed = False
            self._learn_common()
        for _ in range(min(at_most, len(self._unsettled))):
            agent, _ = self._unsettled.popitem()
            self._compare(agent)
        if self._unsettled:
            return True
        self._unsettled = {}  # an emptied dictionary keeps its size
        return False

    def peers(self, agent: AgentId) -> Peers:
        """Who seems to do what this agent does, at most 8; constant time where nobody does.

        The similarity is Jaccard's over pairs of neighbouring words, those that more than
        half of a sample of all goals share left out (from five agents on).
        """
        found = self._pairs.get(agent)
        if not found:
            return ()
        return tuple(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:_PEERS_SHOWN])

    def _compare(self, agent: AgentId) -> None:
        sketch = self._sketches[agent]
        self._leave_buckets(agent, sketch)
        self._part(agent)
        telling = self._telling(sketch)
        if not telling:
            return
        keys = (*_bands(telling), *sketch.names)
        for peer in self._candidates(keys):
            other = self._sketches[peer]
            if peer == sketch.parent or agent == other.parent:
                continue
            alike = jaccard(telling, self._telling(other))
            shared = not set(sketch.names).isdisjoint(other.names)
            if alike >= SAME_GOAL or (shared and alike >= SAME_GOAL_AND_FILE):
                self._pairs.setdefault(agent, {})[peer] = round(alike, 3)
                self._pairs.setdefault(peer, {})[agent] = round(alike, 3)
        self._enter_buckets(agent, sketch, tuple(dict.fromkeys(keys)))

    def _telling(self, sketch: _Sketch) -> frozenset[int]:
        """A goal without what most goals share: the words of a template tell nothing."""
        return frozenset(_numbers(sketch.shingles)) - self._common

    def _part(self, agent: AgentId) -> None:
        for peer in self._pairs.pop(agent, ()):
            del self._pairs[peer][agent]
            if not self._pairs[peer]:
                del self._pairs[peer]

    # Buckets: mostly one member, which then stands for itself

    def _candidates(self, keys: Iterable[int]) -> set[AgentId]:
        found: set[AgentId] = set()
        for key in keys:
            members = self._buckets.get(key)
            if isinstance(members, str):
                found.add(members)
            elif members is not None and len(members) < _LARGEST_BUCKET:
                found |= members
        return found

    def _enter_buckets(self, agent: AgentId, sketch: _Sketch, keys: tuple[int, ...]) -> None:
        sketch.keys = keys
        for key in keys:
            members = self._buckets.get(key)
            if members is None:
                self._buckets[key] = agent
            elif isinstance(members, str):
                self._buckets[key] = {members, agent}
            else:
                members.add(agent)

    def _leave_buckets(self, agent: AgentId, sketch: _Sketch) -> None:
        for key in sketch.keys:
            members = self._buckets[key]
            if isinstance(members, str):
                del self._buckets[key]
                continue
            members.discard(agent)
            if not members:
                del self._buckets[key]
        sketch.keys = ()

    # What a fleet's goals have in common, learnt from a sample of them

    def _enter_sample(self, agent: AgentId) -> None:
        """The agents whose names hash lowest stand for all, in whatever order they come."""
        rank = _hash(agent)
        if agent not in self._sample and len(self._sample) >= _SAMPLE:
            last = max(self._sample, key=self._sample.__getitem__)
            if self._sample[last] <= rank:
                return
            del self._sample[last]
        self._sample[agent] = rank
        self._sample_changed = True

    def _learn_common(self) -> None:
        """What is common becomes so above a half, and ceases to be at a third."""
        size = len(self._sample)
        if size < _FEWEST_TO_COMPARE:
            common: frozenset[int] = frozenset()
        else:
            goals = (self._sketches[agent].shingles for agent in self._sample)
            spread = Counter(shingle for goal in goals for shingle in _numbers(goal))
            common = frozenset(
                shingle
                for shingle, count in spread.items()
                if count > size / 2 or (shingle in self._common and count > size / 3)
            )
        if common != self._common:
            self._common = common
            self._unsettled = dict.fromkeys(self._sketches)


def jaccard(one: AbstractSet[int], other: AbstractSet[int]) -> float:
    """The share of common members, 0..1; 0 where there are none at all."""
    common = len(one & other)
    union = len(one) + len(other) - common
    return common / union if union else 0.0


def _shingles(goal: str) -> set[int]:
    words = _WORD.findall(goal[:_GOAL_CHARS].lower())[: _SHINGLES_KEPT + SHINGLE_WORDS - 1]
    if len(words) < FEWEST_WORDS:
        return set()
    last = len(words) - SHINGLE_WORDS + 1
    return {_hash(" ".join(words[i : i + SHINGLE_WORDS])) for i in range(last)}


def _numbers(shingles: bytes) -> Iterable[int]:
    return memoryview(shingles).cast("I")


def _hash(text: str) -> int:
    """32 bits, the same in every process; mixed, since a CRC alone is too regular."""
    return (zlib.crc32(text.encode("utf-8", "replace")) * _ODD >> 29) & _MASK


def _bands(goal: frozenset[int]) -> list[int]:
    """Bucket keys by MinHash with one permutation (Li, Owen and Zhang 2012).

    Empty bins borrow from the next full one (Shrivastava and Li 2014). Of pairs as alike
    as SAME_GOAL 1 in 1,000 is missed; the less alike are found by the names they share.
    """
    bins = [_MASK] * _BINS
    for shingle in goal:
        value, place = divmod(shingle, _BINS)
        bins[place] = min(bins[place], value)
    full = bins + bins
    for place in range(2 * _BINS - 2, -1, -1):
        if full[place] == _MASK:
            full[place] = full[place + 1]
    return [
        hash((band, *full[band : band + _BAND_ROWS])) & _MASK
        for band in range(0, _BINS, _BAND_ROWS)
    ]


def _name(path: str) -> str:
    """The last two parts of a written path: enough to tell one index.js from another."""
    return "/".join(path.rsplit("/", 2)[-2:])
