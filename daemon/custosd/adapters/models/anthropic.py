"""The Anthropic Messages protocol: a prompt as a request, an answer as a reply.

Pure. The reply is asked for as the input of a tool that the model must use: the one form of
structured output that all its models, and all services that speak for it, have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from custosd.adapters.models.model import (
    FREE,
    ModelError,
    ModelErrorKind,
    Prices,
    Prompt,
    Reply,
    reply_with,
)
from custosd.adapters.models.wire import (
    ServerEvent,
    WireRequest,
    allowances,
    count,
    decoded,
    text_in,
    told_error,
)
from custosd.core.transcript import Usage

VERSION = "2026-10-21"
"""Of Anthropic's own service; with it, a request that says a temperature is refused."""

COMMON_VERSION = "2023-06-01"
"""The one that other services know too; nothing that we read or write differs in it."""

DEFAULT_URL = "https://api.anthropic.com"


@dataclass(frozen=True, slots=True)
class AnthropicProtocol:
    """How one model is spoken to; `temperature` below 0 is not sent.

    `own` is whether it is Anthropic's own service, which takes the key as a bearer's and
    speaks the newest version. Others that speak for it know the older way.
    """

    model: str
    prices: Prices = FREE
    max_tokens: int = 1_024
    temperature: float = -1.0
    own: bool = False

    def secret_headers(self, key: str) -> Mapping[str, str]:
        """What carries the key."""
        return {"authorization": f"Bearer {key}"} if self.own else {"x-api-key": key}

    def request(self, prompt: Prompt, *, stream: bool) -> WireRequest:
        """The request that asks this."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": prompt.system,
            "messages": [{"role": turn.role, "content": turn.text} for turn in prompt.turns],
            "tools": [
                {
                    "name": prompt.schema_name,
                    "description": "Give the answer.",
                    "input_schema": prompt.schema,
                }
            ],
            "tool_choice": {"type": "tool", "name": prompt.schema_name},
        }
        if self.temperature >= 0:
            body["temperature"] = self.temperature
        if stream:
            body["stream"] = True
        version = VERSION if self.own and self.temperature < 0 else COMMON_VERSION
        headers = {"content-type": "application/json", "anthropic-version": version}
        return WireRequest("/v1/messages", headers, msgspec.json.encode(body), prompt.nonce)

    def reply(self, headers: Mapping[str, str], body: bytes, now_utc: datetime) -> Reply:
        """The reply in a whole answer; raises `ModelError`."""
        message = decoded(body, "the model's answer")
        if error := told_error(message, now_utc, "the provider"):
            raise error
        usage = self.usage_of(message.get("usage"))
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        tools = [block for block in blocks if text_in(block, "type") == "tool_use"]
        inputs = [tool.get("input") for tool in tools]
        said = "".join(text_in(b, "text") for b in blocks if text_in(b, "type") == "text")
        text = msgspec.json.encode(inputs[0]).decode() if inputs else said
        _check_stop(text_in(message, "stop_reason"), usage)
        return self.said(text, text_in(message, "model"), usage, headers, now_utc)

    def said(
        self, text: str, model: str, usage: Usage, headers: Mapping[str, str], now_utc: datetime
    ) -> Reply:
        """The reply that says this, whole or streamed; raises `ModelError`."""
        return reply_with(
            text,
            model or self.model,
            usage,
            headers.get("request-id", ""),
            self.left(headers, now_utc),
        )

    def left(self, headers: Mapping[str, str], now_utc: datetime) -> Any:
        """What the headers say is left."""
        return allowances(headers, "anthropic-ratelimit-", "after", now_utc)

    def stream(self) -> "AnthropicStream":
        """A reader of one streamed answer."""
        return AnthropicStream(self)

    def usage_of(self, said: object) -> Usage:
        """What the provider's count of tokens comes to."""
        usage = said if isinstance(said, dict) else {}
        return self.prices.usage(
            count(usage.get("input_tokens")),
            count(usage.get("output_tokens")),
            count(usage.get("cache_read_input_tokens")),
            count(usage.get("cache_creation_input_tokens")),
        )


@dataclass(slots=True)
class AnthropicStream:
    """Folds the events of one answer; it is whole once `message_stop` came."""

    protocol: AnthropicProtocol
    whole: bool = False
    _model: str = ""
    _tools: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    _said: list[str] = field(default_factory=list[str])
    _stop: str = ""
    _usage: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def ended(self) -> bool:
        """Whether nothing can follow: this protocol ends as the answer does."""
        return self.whole

    @property
    def usage(self) -> Usage:
        """What has been told of the cost so far."""
        return self.protocol.usage_of(self._usage)

    def take(self, event: ServerEvent, now_utc: datetime, place: str) -> None:
        """Fold one event in; raises `ModelError` for an event that tells of an error."""
        said = decoded(event.data, "an event of the stream")
        match text_in(said, "type"):
            case "message_start":
                message = said.get("message")
                self._model = text_in(message, "model")
                self._spend(message.get("usage") if isinstance(message, dict) else None)
            case "content_block_delta":
                if piece := text_in(said, "delta", "partial_json"):
                    self._tools.setdefault(count(said.get("index")), []).append(piece)
                self._said.append(text_in(said, "delta", "text"))
            case "message_delta":
                self._stop = text_in(said, "delta", "stop_reason") or self._stop
                self._spend(said.get("usage"))
            case "message_stop":
                self.whole = True
            case _:
                # Pings, and what will be invented, are passed over.
                if error := told_error(said, now_utc, place):
                    raise error

    def reply(self, headers: Mapping[str, str], now_utc: datetime) -> Reply:
        """The reply, once the stream has ended; raises `ModelError`."""
        if not self.whole:
            raise ModelError(
                ModelErrorKind.CUT_OFF, "the stream ended before the answer did", usage=self.usage
            )
        _check_stop(self._stop, self.usage)
        # The first use of the tool, as in a whole answer.
        tools = ["".join(self._tools[index]) for index in sorted(self._tools)]
        text = tools[0] if tools else "".join(self._said)
        return self.protocol.said(text, self._model, self.usage, headers, now_utc)

    def _spend(self, usage: object) -> None:
        if isinstance(usage, dict):
            # The counts of later events are totals, and some of them leave counts out.
            self._usage |= {name: value for name, value in usage.items() if value is not None}


def _check_stop(reason: str, usage: Usage) -> None:
    if reason in {"max_tokens", "model_context_window_exceeded"}:
        raise ModelError(
            ModelErrorKind.TRUNCATED,
            "the model's answer was cut at its most tokens; raise max_tokens",
            usage=usage,
        )
    if reason == "refusal":
        raise ModelError(ModelErrorKind.REFUSED, "the model refused to answer", usage=usage)
