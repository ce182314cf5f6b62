"""A model that can be asked: what goes in, what comes out, and how it fails.

Laws: a reply is whole or it is an error; what it cost is told where the provider says so;
an error's message names the place and never holds text of the conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from custosd.core.errors import CustosdError
from custosd.core.transcript import Usage

PER_MILLION = 1e-6

BYTES_PER_TOKEN = 3
"""Text of any language has at least so many bytes a token, nearly always: an upper estimate."""


class ModelErrorKind(StrEnum):
    """Why a model gave no reply."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    UNAUTHORIZED = "unauthorized"
    BAD_REQUEST = "bad_request"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    CUT_OFF = "cut_off"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    ANSWER_TOO_LARGE = "answer_too_large"
    TIMEOUT = "timeout"
    NOT_RECORDED = "not_recorded"
    NO_MONEY = "no_money"


PASSING = frozenset(
    {
        ModelErrorKind.RATE_LIMITED,
        ModelErrorKind.OVERLOADED,
        ModelErrorKind.UNAVAILABLE,
        ModelErrorKind.CUT_OFF,
        ModelErrorKind.MALFORMED,
        ModelErrorKind.TIMEOUT,
    }
)
"""Kinds that may pass by themselves. `TRUNCATED` is the model's own end at its most tokens:
asked again it would end there again; `CUT_OFF` is the connection's. `TOO_LARGE` is the
question's size, and nothing was done; `ANSWER_TOO_LARGE` an answer's, which was worked for."""


class ModelError(CustosdError):
    """No reply. `after_s`: what the provider asks to wait; `usage`: what was paid all the same."""

    def __init__(
        self,
        kind: ModelErrorKind,
        message: str,
        *,
        after_s: float | None = None,
        usage: Usage = Usage(),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.after_s = after_s
        self.usage = usage


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens. Cached input that was read, or written, has its own."""

    input_usd: float = 0.0
    output_usd: float = 0.0
    cached_usd: float | None = None
    cache_write_usd: float | None = None

    def usage(self, fresh: int, output: int, cached: int = 0, cache_written: int = 0) -> Usage:
        """What so many tokens are and cost; the four counts do not overlap."""
        read_usd = self.input_usd if self.cached_usd is None else self.cached_usd
        write_usd = self.input_usd if self.cache_write_usd is None else self.cache_write_usd
        cost_usd = PER_MILLION * (
            fresh * self.input_usd
            + output * self.output_usd
            + cached * read_usd
            + cache_written * write_usd
        )
        return Usage(fresh + cached + cache_written, output, cached, cost_usd)


FREE = Prices()
"""What a model of one's own costs, as far as anybody knows."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to a model, which is to answer with one JSON object of this schema.

    `system` is instruction and holds nothing of others; `turns` begin and end with the user.
    `nonce` stands in both where the data are fenced; a recording is found without it.
    `about` is the agent that is asked about: whoever pays is told, and nobody else.
    """

    system: str
    turns: tuple[Turn, ...]
    schema: Mapping[str, object]
    schema_name: str
    nonce: str = ""
    about: str = ""

    @property
    def length(self) -> int:
        """Bytes of text in it: a measure of its tokens before they are counted."""
        return len(self.system.encode()) + sum(len(turn.text.encode()) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a provider says is left: of "requests" or "tokens", all of it again in `reset_s`."""

    dimension: str
    remaining: float
    reset_s: float | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said: `text` is to be JSON, and is not checked here."""

    text: str
    model: str
    usage: Usage
    request_id: str = ""
    allowances: tuple[Allowance, ...] = field(default=())


def reply_with(
    text: str, model: str, usage: Usage, request_id: str, allowances: tuple[Allowance, ...]
) -> Reply:
    """The reply that says this; raises `ModelError` where it says nothing."""
    if not text:
        raise ModelError(ModelErrorKind.MALFORMED, "the model's answer has no content", usage=usage)
    return Reply(text, model, usage, request_id, allowances)


class Model(Protocol):
    """Someone who can be asked. May take long, may be cancelled at any time."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    async def ask(self, prompt: Prompt) -> Reply:
        """Ask once, without trying again; raises `ModelError`."""
        ...
