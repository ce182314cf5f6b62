"""Tokens: who may speak for an agent, and who may ask for acts.

Laws:

1. Only the hash of a secret is kept. A secret has 256 random bits, so one round of SHA-256
   is enough: there is nothing to guess.
2. Secrets are compared in constant time, also when the token is not known.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

PREFIX = "cust_"

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored. `id` is its public half; `secret_hash` has 32 bytes.

    `agent` is whom it may beat for ("" nobody, "*" everybody); `scopes` are names of acts,
    "read" (what only tells) or "*".
    """

    id: str
    secret_hash: bytes
    created_utc: datetime
    created_by: str
    agent: str = ""
    scopes: frozenset[str] = frozenset()

    def may_beat_for(self, agent: str) -> bool:
        """Whether this token speaks for that agent."""
        return self.agent in {"*", agent} and self.agent != ""

    def may(self, scope: str) -> bool:
        """Whether this token may ask for that."""
        return scope in self.scopes or "*" in self.scopes


def presented(token_id: str, secret: str) -> str:
    """The token as its holder has it."""
    return f"{PREFIX}{token_id}_{secret}"


def hash_of(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def recognised(text: str, tokens: Mapping[str, Token]) -> Token | None:
    """The token that was presented, if it is one of these (by id) and its secret is right."""
    token_id, _, secret = text.removeprefix(PREFIX).partition("_")
    token = tokens.get(token_id)
    expected = token.secret_hash if token is not None else _NO_HASH
    right = hmac.compare_digest(hash_of(secret), expected)
    return token if right and token is not None and text.startswith(PREFIX) else None
