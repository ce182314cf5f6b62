"""Rules that people set in what they say, and take back: phrases to records.

Deterministic and modest: it finds sentences that forbid, restrict or demand, and the
ones that lift an earlier one. What it misses a model may still find; what it finds is
shown with the step at which it was said.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

CONSTRAINT_CHARS = 240
CONSTRAINTS_KEPT = 16
_SCANNED_CHARS = 20_000

_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_SETS = re.compile(
    r"\b(?:do\s+not|don['’]?t|never|must\s+not|mustn['’]?t|should\s+not|may\s+not|"  # noqa: RUF001 - people type both apostrophes
    r"avoid|only\s+(?:use|edit|change|touch|modify|write|work)|must\s+only|"
    r"must\s+(?:use|keep|be|stay)|without\s+(?:chang|touch|modif|edit|break|us|add)\w*|"
    r"leave\s+\S+(?:\s+\S+){0,4}\s+(?:alone|as\s+(?:is|it\s+is)|untouched|unchanged)|"
    r"keep\s+\S+(?:\s+\S+){0,4}\s+(?:unchanged|untouched|as\s+is)|no\s+changes?\s+to)\b"
    r"|^\s*(?:[-*]\s*)?(?:constraint|rule|important)\s*:",
    re.IGNORECASE,
)
_LIFTS = re.compile(
    r"\b(?:you\s+(?:can|may)\s+(?:now|again)|feel\s+free\s+to|no\s+longer\s+(?:need|have|required)|"
    r"(?:it['’]?s|it\s+is)\s+(?:ok|okay|fine)\s+(?:now\s+)?to|"  # noqa: RUF001 - as above
    r"(?:ignore|disregard|forget|drop|lift)\s+(?:the\s+|that\s+|my\s+)?(?:\w+\s+)?"
    r"(?:rule|constraint|restriction|instruction)|constraint\s+lifted|"
    r"(?:don['’]?t|do\s+not)\s+worry\s+about)\b",  # noqa: RUF001 - as above
    re.IGNORECASE,
)
_ALL_OF_THEM = re.compile(
    r"\b(?:ignore|disregard|forget|drop|lift)\s+(?:all|every|the|my|any)\s+(?:\w+\s+){0,2}"
    r"(?:rules|constraints|restrictions)\b",
    re.IGNORECASE,
)
_NOT_A_RULE = re.compile(
    r"\b(?:don['’]?t|do\s+not)\s+(?:know|think|understand|see|have|want\s+to\s+know|get|worry)\b"  # noqa: RUF001 - as above
    r"|\b(?:it|this|that|they|we|i|which|code|test|tests|function)\s+(?:does\s+not|do\s+not|don['’]?t|never)\b",  # noqa: RUF001 - as above
    re.IGNORECASE,
)
_WORD = re.compile(r"[\w./-]{3,}")
_COMMON = frozenset(
    {
        "the",
        "and",
        "you",
        "can",
        "now",
        "use",
        "any",
        "all",
        "not",
        "don",
        "don't",
        "dont",
        "never",
        "must",
        "should",
        "only",
        "edit",
        "change",
        "touch",
        "modify",
        "write",
        "work",
        "free",
        "feel",
        "again",
        "longer",
        "need",
        "have",
        "fine",
        "okay",
        "rule",
        "constraint",
        "ignore",
        "disregard",
        "forget",
        "drop",
        "lift",
        "that",
        "this",
        "with",
        "for",
        "please",
        "files",
        "file",
        "add",
        "make",
    }
)

_FORBIDS = re.compile(
    r"\b(?:do\s+not|don['’]?t|never|must\s+not|mustn['’]?t|should\s+not|may\s+not|avoid|without)\s+"  # noqa: RUF001 - as above
    r"(?:ever\s+)?(?:chang\w*|touch\w*|modif\w*|edit\w*|writ\w*(?:\s+to)?|delet\w*|overwrit\w*|"
    r"remov\w*|alter\w*|mak\w*\s+(?:any\s+)?changes\s+(?:to|in))\s+(?P<what>.+)",
    re.IGNORECASE,
)
_KEEPS = re.compile(
    r"\b(?:leave|keep)\s+(?P<what>.+?)\s+(?:alone|untouched|unchanged|as\s+(?:is|it\s+is))\b"
    r"|\bno\s+changes?\s+to\s+(?P<what2>.+)",
    re.IGNORECASE,
)
_CONFINES = re.compile(
    r"\b(?:only\s+(?:ever\s+)?(?:edit|change|touch|modify|write(?:\s+to)?|work\s+(?:in|on))|"
    r"must\s+only\s+(?:edit|change|touch|modify))\s+(?P<what>.+)"
    r"|\b(?:edit|change|touch|modify)\s+only\s+(?P<what2>.+)",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"\b(?:except|unless|other\s+than|but\s+not|apart\s+from|outside|if)\b", re.IGNORECASE
)
_CLAUSE_END = re.compile(
    r"\s(?:but|because|since|so\s+that|when|if|as\s+they|as\s+it|and\s+then)\b|[;:(]"
)
_PATH = re.compile(
    r"[`'\"]?(?P<path>[\w@*-]*(?:/[\w.@*-]+)+/?|[\w@*-]+/|\.?[\w*-]+\.[A-Za-z]\w{0,5})[`'\"]?"
)
_NAMED_DIR = re.compile(
    r"[`'\"]?(?P<name>[\w-]+)[`'\"]?\s+(?:director(?:y|ies)|folders?|package|module)\b",
    re.IGNORECASE,
)
_TESTS = re.compile(
    r"\b(?:the\s+|any\s+|existing\s+)?(?:unit\s+)?tests?(?:\s+files?)?\s*[.,!]?\s*$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What one utterance of a person sets and lifts, sentence by sentence."""

    sets: tuple[str, ...] = ()
    lifts: tuple[str, ...] = ()
    lifts_all: bool = False


def read_rules(text: str) -> Rules:
    """Find the constraints that a person's text sets or lifts.

    Looks at the first 20,000 characters, outside code fences; sentences of 8 to 240
    characters; at most 16 of each.
    """
    plain = _FENCE.sub("\n", text[:_SCANNED_CHARS])
    sets: list[str] = []
    lifts: list[str] = []
    for sentence in _SENTENCE.split(plain):
        said = " ".join(sentence.split()).strip("-*> ")
        if not 8 <= len(said) <= CONSTRAINT_CHARS:  # noqa: PLR2004 - documented above
            continue
        if _LIFTS.search(said):
            lifts.append(said)
        elif said.endswith("?") or _NOT_A_RULE.search(said):
            continue
        elif _SETS.search(said):
            sets.append(said)
    return Rules(
        tuple(sets[:CONSTRAINTS_KEPT]),
        tuple(lifts[:CONSTRAINTS_KEPT]),
        bool(_ALL_OF_THEM.search(plain)),
    )


def lifts(lifting: str, constraint: str) -> bool:
    """Whether a lifting sentence speaks of this constraint: they share a telling word."""
    return bool(_telling(lifting) & _telling(constraint))


def _telling(sentence: str) -> set[str]:
    words = (w.lower().strip("./-").removesuffix("s") for w in _WORD.findall(sentence))
    return {w for w in words if len(w) > 2} - _COMMON  # noqa: PLR2004 - shorter words tell nothing


@dataclass(frozen=True, slots=True)
class Scope:
    """Where writing is forbidden, or the only places where it is allowed.

    Patterns are file names ("setup.py"), path tails ("src/a.py"), directories ("docs/")
    or endings ("*.lock").
    """

    forbidden: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@lru_cache(maxsize=512)
def scope_of(constraint: str) -> Scope:
    """The part of a constraint that can be checked against written files, if any.

    Sentences with an exception or a condition ("except", "unless", "if") are left alone:
    to misread one would accuse an agent that obeys.
    """
    if _EXCEPT.search(constraint):
        return Scope()
    if found := _CONFINES.search(constraint):
        return Scope(only=_places(found["what"] or found["what2"]))
    if found := _FORBIDS.search(constraint):
        return Scope(forbidden=_places(found["what"]))
    if found := _KEEPS.search(constraint):
        return Scope(forbidden=_places(found["what"] or found["what2"]))
    return Scope()


def _places(what: str) -> tuple[str, ...]:
    clause = _CLAUSE_END.split(what, maxsplit=1)[0]
    places = [found["path"].lstrip("/").rstrip(".") for found in _PATH.finditer(clause)]
    places += [found["name"] + "/" for found in _NAMED_DIR.finditer(clause)]
    if not places and _TESTS.search(clause):
        places.append("tests/")
    return tuple(dict.fromkeys(place for place in places if place.strip("*/.")))


def breaks(scope: Scope, path: str) -> bool:
    """Whether writing this path goes against the scope."""
    if scope.only:
        return not any(_within(place, path) for place in scope.only)
    return any(_within(place, path) for place in scope.forbidden)


def _within(place: str, path: str) -> bool:
    path = "/" + path.replace("\\", "/").lstrip("/")
    if "*" in place:
        head, _, ending = place.rpartition("*")
        return path.endswith(ending) and head.replace("*", "").strip("/") in path
    if place.endswith("/"):
        named = "/" + place
        return named in path or (place == "tests/" and _is_test(path))
    return path.endswith("/" + place) or ("/" + place + "/") in path


def _is_test(path: str) -> bool:
    name = path.rpartition("/")[2]
    return "/test/" in path or name.startswith("test_") or bool(re.search(r"[._]test\.\w+$", name))
