"""What an action and its answer come down to: normal forms that repeats are counted on.

Pure text work, shared by all transcript adapters, so that the same failure looks the
same whoever reports it.
"""

import re

from custosd.core.transcript import EXCERPT_CHARS, Text, digest_of

_LOOSE = (
    (re.compile(r"0x[0-9a-fA-F]+"), "0x#"),
    (re.compile(r"\b[0-9a-f]{7,40}\b"), "#"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "#"),
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),
    (re.compile(r"\s+"), " "),
)


def loosen(text: str) -> str:
    """Make equal what differs only in numbers, hashes, addresses, times and blanks."""
    for pattern, replacement in _LOOSE:
        text = pattern.sub(replacement, text)
    return text.strip()


def bounded(text: str, limit: int = EXCERPT_CHARS) -> str:
    """Head and tail of a text, at most `limit` + 1 characters, a `…` for the cut."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return text[:half] + "…" + text[-half:]


def text_of(whole: str) -> Text:
    """The bounded form of a text; see `Text` for what is kept of it."""
    return Text(bounded(whole), len(whole), digest_of(whole), digest_of(loosen(whole)))
