"""Letters as other programs get them, and what every channel refuses before it sends.

Law: an id becomes part of file names, headers and options only after `checked_id`.
"""

import json
import re
import unicodedata
from datetime import UTC

from custosd.core.errors import ChannelError
from custosd.core.steering import Letter

LONGEST_TEXT = 32_768
"""Characters of a letter's text; the steerer bounds it far below."""

_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_KEPT_CONTROLS = frozenset("\n\t")


def checked_id(text: str) -> str:
    """The id itself, if it is harmless everywhere; raises `ChannelError` "bad_id"."""
    if _ID.fullmatch(text) and text.strip("."):
        return text
    raise ChannelError("bad_id", "a letter's id has 1 to 80 of A-Z a-z 0-9 _ . - and not only dots")


def letter_json(letter: Letter) -> bytes:
    """The letter as one JSON object, UTF-8: id, agent, epoch, kind, text, expires_utc.

    `expires_utc` is ISO 8601 with an offset. Raises `ChannelError` for a bad id and for a
    text that is longer than `LONGEST_TEXT` characters.
    """
    fields = {
        "id": checked_id(letter.id),
        "agent": letter.agent,
        "epoch": letter.epoch,
        "kind": letter.kind.value,
        "text": plain_text(letter.text),
        "expires_utc": letter.expires_utc.astimezone(UTC).isoformat(),
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def plain_text(text: str) -> str:
    """The text without control characters, whoever let them through; lines end with LF.

    Escape sequences lose their ESC, so that nothing of them has a meaning; characters that
    turn the direction of writing, and halves of surrogate pairs, go too.
    """
    if len(text) > LONGEST_TEXT:
        raise ChannelError("text_too_long", f"a letter has at most {LONGEST_TEXT} characters")
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in lines if c in _KEPT_CONTROLS or not _is_control(c))


def _is_control(character: str) -> bool:
    match unicodedata.category(character):
        case "Cc" | "Cs":
            return True
        case "Cf":
            # Joiners (ZWNJ, ZWJ) belong to words and emoji; bidirectional marks and tags hide.
            return character not in "\u200c\u200d"
        case "Zl" | "Zp":
            return True
        case _:
            return False
