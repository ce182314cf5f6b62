"""Which goals are nearest to which: an index of words, kept up to date goal by goal.

A goal is its words, weighed by how rare they are among the goals under way (tf-idf), those
of its first line twice. Laws:

1. The nearest are looked for among the goals that share one of its rarest words, never
   among all: a query looks at so many of those (`_LOOKED_AT`), in a fleet of any size. Words
   that too many goals share lead to nobody.
2. Below 8 KiB for a goal of any length.
"""

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from custosd.core.agents import AgentId

TERMS_KEPT = 128
_LOOKED_AT = 600
_CANDIDATES = 24
_GOAL_CHARS = 4_000
_FIRST_LINE_COUNTS = 2
_SHORTEST_STEM = 3
_FEW = 6
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ed", "es", "s", "er")

_LOGS = [0.0, *(1 + math.log(count) for count in range(1, 64))]

Nearest = tuple[tuple[AgentId, float], ...]
"""Peers with how alike their goals are, 0..1, the most alike first."""


@dataclass(slots=True)
class _Goal:
    """`terms` are counts (their logarithms), `weights` what they come to, of length 1."""

    terms: dict[str, float]
    weights: dict[str, float]
    weighed: int = 0


class GoalIndex:
    """The goals under way."""

    def __init__(self) -> None:
        self._goals: dict[AgentId, _Goal] = {}
        self._postings: dict[str, dict[AgentId, None]] = {}

    def __iter__(self) -> Iterator[AgentId]:
        return iter(self._goals)

    def __len__(self) -> int:
        return len(self._goals)

    def __contains__(self, agent: AgentId) -> bool:
        return agent in self._goals

    def note(self, agent: AgentId, goal: str) -> bool:
        """Take in an agent's goal as it is now; True if it is another than before."""
        terms = terms_of(goal)
        old = self._goals.get(agent)
        if old is not None:
            if old.terms == terms:
                return False
            self.forget(agent)
        self._goals[agent] = _Goal(terms, {})
        for term in terms:
            self._postings.setdefault(term, {})[agent] = None
        return True

    def forget(self, agent: AgentId) -> None:
        """Leave an agent out from now on; harmless where it is not known."""
        goal = self._goals.pop(agent, None)
        if goal is None:
            return
        for term in goal.terms:
            posting = self._postings[term]
            del posting[agent]
            if not posting:
                del self._postings[term]

    def nearest(self, agent: AgentId, at_most: int = 5) -> Nearest:
        """Whose goals are most like this agent's; () where it has none, or nobody's is."""
        goal = self._goals.get(agent)
        if goal is None:
            return ()
        weights = self._weights(goal)
        found = (
            (peer, _dot(weights, self._weights(self._goals[peer])))
            for peer in self._candidates(agent, weights)
        )
        best = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:at_most]
        return tuple((peer, round(alike, 3)) for peer, alike in best if alike > 0)

    def likeness(self, one: AgentId, other: AgentId) -> float:
        """How alike two goals are, 0..1; 0 where one is not known."""
        goal, beside = self._goals.get(one), self._goals.get(other)
        if goal is None or beside is None:
            return 0.0
        return round(_dot(self._weights(goal), self._weights(beside)), 3)

    def _candidates(self, agent: AgentId, weights: dict[str, float]) -> list[AgentId]:
        """Those that share the rarest words with it, weighed by how rare those are."""
        shared: dict[AgentId, float] = defaultdict(float)
        left = _LOOKED_AT
        for size, term in sorted((len(self._postings[term]), term) for term in weights):
            left -= size
            if left < 0:
                break
            if size == 1:
                continue
            posting = self._postings[term]
            weight = weights[term] * self._idf(term)
            for peer in posting:
                shared[peer] += weight
        shared.pop(agent, None)
        if len(shared) <= _CANDIDATES:
            return list(shared)
        return sorted(shared, key=shared.__getitem__)[-_CANDIDATES:]

    def _idf(self, term: str) -> float:
        return math.log((len(self._goals) + 1) / (len(self._postings[term]) + 0.5))

    def _weights(self, goal: _Goal) -> dict[str, float]:
        # They change with every goal; while the fleet's size stays within a tenth, hardly.
        size = len(self._goals)
        if not goal.weighed or abs(size - goal.weighed) * 10 > goal.weighed:
            weights = {term: tf * self._idf(term) for term, tf in goal.terms.items()}
            norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
            goal.weights = {term: weight / norm for term, weight in weights.items()}
            goal.weighed = size
        return goal.weights


def _dot(one: dict[str, float], other: dict[str, float]) -> float:
    both = one.keys() & other.keys()
    return min(1.0, math.fsum(one[term] * other[term] for term in both))


def terms_of(goal: str) -> dict[str, float]:
    """The words of a goal with their weights (1 + ln of how often), the first ones."""
    head, _, rest = goal[:_GOAL_CHARS].partition("\n")
    counts: Counter[str] = Counter()
    for word in words_of(head):
        counts[word] += _FIRST_LINE_COUNTS
    counts.update(words_of(rest))
    kept = list(counts.items())[:TERMS_KEPT]
    return {sys.intern(word): _LOGS[min(count, len(_LOGS) - 1)] for word, count in kept}


def words_of(text: str) -> list[str]:
    """The words of a text without their endings, in lower case; names are taken apart."""
    return [_stem(word) for word in _WORD.findall(_CAMEL.sub(" ", text).lower())]


def another_thing(one: str, other: str) -> bool:
    """Whether two goals are one sentence about two things: a few of its words are others.

    Templates are like that, "test module A" and "test module B"; who puts a goal in words of
    their own does not keep to the order of all the others.
    """
    words, beside = words_of(one[:_GOAL_CHARS]), words_of(other[:_GOAL_CHARS])
    if len(words) != len(beside):
        return False
    others = sum(a != b for a, b in zip(words, beside, strict=True))
    return 0 < others <= max(1, len(words) // _FEW)


def _stem(word: str) -> str:
    if word.endswith(_ENDINGS):
        for ending in _ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
                return word[: -len(ending)]
    return word
