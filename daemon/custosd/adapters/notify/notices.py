"""Notices as other programs get them."""

import json

from custosd.core.secrets import without_secrets
from custosd.core.transcript import digest_of
from custosd.ports import Notice


def notice_json(notice: Notice) -> bytes:
    """One JSON object on one line: concern, kind, agent, text, resolved, at_utc (ISO 8601), key.

    `key` is the same whenever the same notice is sent again, so that it can be told apart.
    """
    at_utc = notice.at_utc.isoformat()
    fields = {
        "concern": notice.concern,
        "kind": notice.kind,
        "agent": notice.agent,
        "text": without_secrets(notice.text),
        "resolved": notice.resolved,
        "at_utc": at_utc,
        "key": notice_key(notice),
    }
    return json.dumps(fields, ensure_ascii=True).encode()


def notice_key(notice: Notice) -> str:
    """16 hex digits, one value for one notice."""
    return digest_of(f"{notice.concern}\0{notice.resolved}\0{notice.at_utc.isoformat()}")
