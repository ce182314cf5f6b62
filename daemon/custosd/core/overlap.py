"""Which agents seem to do the same work: candidates found below n², confirmed on goals.

Laws:

1. Conservative: a pair is named when the goals are nearly the same, or much the same
   with a file written by both. A common file alone is no finding: in a team, many
   concurrent sessions share one.
2. Sub-quadratic: only agents in one bucket of a MinHash band are compared, and buckets
   that hold many (a template that every goal begins with) are skipped.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations

from custosd.core.agents import AgentId

SAME_GOAL = 0.8
SAME_GOAL_AND_FILE = 0.4
SHINGLE_WORDS = 2
FEWEST_WORDS = 4
_HASHES = 32
_BAND_ROWS = 2
_LARGEST_BUCKET = 64
_GOAL_CHARS = 4_000
_MASK = (1 << 64) - 1
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Work:
    """One agent's goal and the tails of the paths that it wrote."""

    agent: AgentId
    goal: str
    written: tuple[str, ...] = ()


def duplicates(candidates: Sequence[Work]) -> list[tuple[AgentId, AgentId, float]]:
    """Pairs of agents whose work seems the same, with the similarity of their goals 0..1.

    The similarity is Jaccard's over pairs of neighbouring words, those that more than
    half of all goals share left out (from five agents on). Sorted, the most alike first.
    """
    shingles = _telling([_shingles(work.goal) for work in candidates])
    found: list[tuple[AgentId, AgentId, float]] = []
    for a, b in sorted(_pairs(shingles, candidates)):
        alike = jaccard(shingles[a], shingles[b])
        shared = bool(_names(candidates[a]) & _names(candidates[b]))
        if alike >= SAME_GOAL or (shared and alike >= SAME_GOAL_AND_FILE):
            found.append((candidates[a].agent, candidates[b].agent, round(alike, 3)))
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def jaccard(one: AbstractSet[int], other: AbstractSet[int]) -> float:
    """The share of common members, 0..1; 0 where there are none at all."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def _shingles(goal: str) -> frozenset[int]:
    words = _WORD.findall(goal[:_GOAL_CHARS].lower())
    if len(words) < FEWEST_WORDS:
        return frozenset()
    last = len(words) - SHINGLE_WORDS + 1
    return frozenset(_hash(" ".join(words[i : i + SHINGLE_WORDS])) for i in range(last))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _telling(goals: list[frozenset[int]]) -> list[frozenset[int]]:
    """Goals without what most goals share: the words of a template tell nothing."""
    fewest_to_compare = 5
    if len(goals) < fewest_to_compare:
        return goals
    spread = Counter(shingle for goal in goals for shingle in goal)
    common = {shingle for shingle, count in spread.items() if count > len(goals) / 2}
    return [goal - common for goal in goals]


def _pairs(shingles: list[frozenset[int]], candidates: Sequence[Work]) -> set[tuple[int, int]]:
    buckets: dict[tuple[int, ...] | str, list[int]] = defaultdict(list)
    for index, goal in enumerate(shingles):
        if not goal:
            continue
        rows = _min_hashes(goal)
        for band in range(0, _HASHES, _BAND_ROWS):
            buckets[band, *rows[band : band + _BAND_ROWS]].append(index)
        for name in _names(candidates[index]):
            buckets[name].append(index)
    return {
        pair
        for members in buckets.values()
        if len(members) <= _LARGEST_BUCKET
        for pair in combinations(members, 2)
    }


def _min_hashes(goal: frozenset[int]) -> list[int]:
    """MinHash (Broder 1997) under 32 odd multipliers, fixed so that runs agree."""
    return [
        min((value * multiplier + seed) & _MASK for value in goal)
        for seed, multiplier in enumerate(_MULTIPLIERS)
    ]


_MULTIPLIERS = tuple(_hash(f"row {row}") | 1 for row in range(_HASHES))


def _names(work: Work) -> frozenset[str]:
    """The last two parts of each written path: enough to tell one index.js from another."""
    return frozenset("/".join(path.rsplit("/", 2)[-2:]) for path in work.written)
