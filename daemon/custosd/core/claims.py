"""What an agent's last words say: that it is done, that it is not, or that it asks."""

import re

from custosd.core.effects import bounded

SCANNED_CHARS = 4_000
_QUESTION_CHARS = 400

_ASKS = re.compile(
    r"\?\s*[\"'`*_)\]]*\s*\Z"
    r"|\bplease\s+(?:confirm|provide|clarify|choose|approve|advise|specify|tell\s+me)\b",
    re.IGNORECASE,
)
_CLAIMS_DONE = re.compile(
    r"\b(?:done|complete[d]?|finished|fixed|resolved|implemented|solved|works?\s+now|"
    r"all\s+(?:\w+\s+)?tests\s+(?:now\s+)?pass\w*|successfully|ready\s+(?:for|to)|in\s+place)\b",
    re.IGNORECASE,
)
_DISCLAIMS = re.compile(
    r"\b(?:not\s+(?:yet\s+)?(?:done|complete|finished|fixed|resolved|implemented|solved|working)|"
    r"unable\s+to|could\s+not|couldn['’]?t|still\s+fail\w*|partially|gave\s+up|incomplete)\b",  # noqa: RUF001 - people type both
    re.IGNORECASE,
)


def asks(text: str) -> bool:
    """Whether a closing text ends in a question, or in a request to a person."""
    return bool(_ASKS.search(text[-_QUESTION_CHARS:]))


def says_done(text: str) -> bool:
    """Whether a closing text says that the task is done, and takes nothing of it back."""
    said = bounded(text, SCANNED_CHARS)
    return bool(_CLAIMS_DONE.search(said)) and not _DISCLAIMS.search(said)


def disclaims(text: str) -> bool:
    """Whether a text says that something is not done, or only in part."""
    return bool(_DISCLAIMS.search(bounded(text, SCANNED_CHARS)))
