"""The chat completions protocol of OpenAI, as many services and local servers speak it.

Pure. The reply is asked for as structured output by JSON schema; servers that know only
"some JSON object", or not even that, are told so by the configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

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

DEFAULT_URL = "https://api.openai.com/v1"

Structure = Literal["schema", "object", "none"]


@dataclass(frozen=True, slots=True)
class OpenAiProtocol:
    """How one model is spoken to; `temperature` below 0 is not sent.

    `tokens_field` is the name of the bound on the answer: newer models of OpenAI itself know
    only max_completion_tokens, most other servers only max_tokens.
    """

    model: str
    prices: Prices = FREE
    max_tokens: int = 1_024
    temperature: float = -1.0
    structure: Structure = "schema"
    tokens_field: str = "max_tokens"

    def secret_headers(self, key: str) -> Mapping[str, str]:
        """What carries the key."""
        return {"authorization": f"Bearer {key}"}

    def request(self, prompt: Prompt, *, stream: bool) -> WireRequest:
        """The request that asks this."""
        turns = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
        body: dict[str, Any] = {
            "model": self.model,
            self.tokens_field: self.max_tokens,
            "messages": [{"role": "system", "content": prompt.system}, *turns],
        }
        if self.structure == "schema":
            schema = {"name": prompt.schema_name, "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.structure == "object":
            body["response_format"] = {"type": "json_object"}
        if self.temperature >= 0:
            body["temperature"] = self.temperature
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"content-type": "application/json"}
        return WireRequest("/chat/completions", headers, msgspec.json.encode(body), prompt.nonce)

    def reply(self, headers: Mapping[str, str], body: bytes, now_utc: datetime) -> Reply:
        """The reply in a whole answer; raises `ModelError`."""
        answer = decoded(body, "the model's answer")
        if error := told_error(answer, now_utc, "the provider"):
            raise error
        usage = self.usage_of(answer.get("usage"))
        _check_stop(
            text_in(answer, "choices", 0, "finish_reason"),
            text_in(answer, "choices", 0, "message", "refusal"),
            usage,
        )
        text = text_in(answer, "choices", 0, "message", "content")
        return self.said(text, text_in(answer, "model"), usage, headers, now_utc)

    def said(
        self, text: str, model: str, usage: Usage, headers: Mapping[str, str], now_utc: datetime
    ) -> Reply:
        """The reply that says this, whole or streamed; raises `ModelError`."""
        return reply_with(
            text,
            model or self.model,
            usage,
            headers.get("x-request-id", ""),
            self.left(headers, now_utc),
        )

    def left(self, headers: Mapping[str, str], now_utc: datetime) -> Any:
        """What the headers say is left."""
        return allowances(headers, "x-ratelimit-", "before", now_utc)

    def stream(self) -> "OpenAiStream":
        """A reader of one streamed answer."""
        return OpenAiStream(self)

    def usage_of(self, said: object) -> Usage:
        """What the provider's count of tokens comes to."""
        usage = said if isinstance(said, dict) else {}
        details = usage.get("prompt_tokens_details")
        cached = count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        whole = count(usage.get("prompt_tokens"))
        cached = min(cached, whole)
        return self.prices.usage(whole - cached, count(usage.get("completion_tokens")), cached)


@dataclass(slots=True)
class OpenAiStream:
    """Folds the events of one answer; it is whole once `[DONE]`, or a reason to end, came.

    Some servers leave one of the two out. What it cost comes between them: `ended` is only
    what came to its `[DONE]`.
    """

    protocol: OpenAiProtocol
    whole: bool = False
    ended: bool = False
    _model: str = ""
    _said: list[str] = field(default_factory=list[str])
    _refusal: str = ""
    _stop: str = ""
    _usage: object = None

    @property
    def usage(self) -> Usage:
        """What has been told of the cost so far."""
        return self.protocol.usage_of(self._usage)

    def take(self, event: ServerEvent, now_utc: datetime, place: str) -> None:
        """Fold one event in; raises `ModelError` for an event that tells of an error."""
        if event.data.strip() == "[DONE]":
            self.whole = self.ended = True
            return
        said = decoded(event.data, "an event of the stream")
        if error := told_error(said, now_utc, place):
            raise error
        self._model = text_in(said, "model") or self._model
        self._said.append(text_in(said, "choices", 0, "delta", "content"))
        self._refusal += text_in(said, "choices", 0, "delta", "refusal")
        if stop := text_in(said, "choices", 0, "finish_reason"):
            self._stop, self.whole = stop, True
        self._usage = said.get("usage") or self._usage

    def reply(self, headers: Mapping[str, str], now_utc: datetime) -> Reply:
        """The reply, once the stream has ended; raises `ModelError`."""
        if not self.whole:
            raise ModelError(
                ModelErrorKind.CUT_OFF, "the stream ended before the answer did", usage=self.usage
            )
        _check_stop(self._stop, self._refusal, self.usage)
        text = "".join(self._said)
        return self.protocol.said(text, self._model, self.usage, headers, now_utc)


def _check_stop(reason: str, refusal: str, usage: Usage) -> None:
    if reason == "length":
        raise ModelError(
            ModelErrorKind.TRUNCATED,
            "the model's answer was cut at its most tokens; raise max_tokens",
            usage=usage,
        )
    if refusal or reason == "content_filter":
        raise ModelError(ModelErrorKind.REFUSED, "the model refused to answer", usage=usage)
