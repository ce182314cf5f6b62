"""The vendors' own published clients against our server: it speaks as they expect.

So that what our clients are tested against is not our opinion alone. They run on trio as they
are; nothing of theirs is changed but where they ask and how often.
"""

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from tests.adapters.models.fault_server import (
    VERDICT,
    Cut,
    Disconnect,
    Fault,
    FaultServer,
    Garbage,
    Hang,
    Raw,
    Slow,
    Status,
    StreamError,
    Stuck,
    Well,
    fault_server,
)

from custosd.adapters.judges.verdict_schema import VERDICT_SCHEMA
from custosd.adapters.models.anthropic import COMMON_VERSION, AnthropicProtocol
from custosd.adapters.models.model import Prices, Prompt, Turn
from custosd.adapters.models.openai import OpenAiProtocol

anthropic = pytest.importorskip("anthropic", reason="the vendors' clients are not installed")
openai = pytest.importorskip("openai", reason="the vendors' clients are not installed")

# Their streams leave generators of their own to the collector, which Python tells us of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = "k3y"
TIMEOUT_S = 0.3


@pytest.fixture
async def server() -> AsyncGenerator[FaultServer]:
    async with fault_server() as server:
        yield server


@pytest.fixture
async def claude(server: FaultServer) -> AsyncGenerator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key=KEY, base_url=server.url, max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


@pytest.fixture
async def gpt(server: FaultServer) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=server.url + "/v1", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


TOOL = {"name": "verdict", "description": "Give the answer.", "input_schema": VERDICT_SCHEMA}
ASKED_OF_CLAUDE: dict[str, Any] = {
    "model": "judge-1",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "data"}],
}
WITH_TOOL: dict[str, Any] = {
    **ASKED_OF_CLAUDE,
    "system": "Judge.",
    "tools": [TOOL],
    "tool_choice": {"type": "tool", "name": "verdict"},
}
ASKED_OF_GPT: dict[str, Any] = {
    "model": "judge-1",
    "max_tokens": 100,
    "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": "data"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "verdict", "strict": True, "schema": VERDICT_SCHEMA},
    },
}


async def test_anthropics_client_reads_a_use_of_a_tool(
    claude: anthropic.AsyncAnthropic, server: FaultServer
) -> None:
    message = await claude.messages.create(**WITH_TOOL)
    (block,) = message.content
    assert isinstance(block, anthropic.types.ToolUseBlock)
    assert (block.name, block.input) == ("verdict", VERDICT)
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (1_000, 100)
    assert message.usage.cache_read_input_tokens == 200
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_anthropics_client_reads_text(claude: anthropic.AsyncAnthropic) -> None:
    message = await claude.messages.create(**ASKED_OF_CLAUDE)
    (block,) = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert json.loads(block.text) == VERDICT
    assert message.stop_reason == "end_turn"


async def test_anthropics_client_reads_a_streamed_use_of_a_tool(
    claude: anthropic.AsyncAnthropic,
) -> None:
    async with claude.messages.stream(**WITH_TOOL) as stream:
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    (block,) = message.content
    assert isinstance(block, anthropic.types.ToolUseBlock)
    assert block.input == VERDICT
    assert message.stop_reason == "tool_use"
    assert message.usage.input_tokens == 1_000
    assert message.usage.output_tokens == 100
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


async def test_anthropics_client_reads_streamed_text(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(**ASKED_OF_CLAUDE) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    assert json.loads(text) == VERDICT


async def test_openais_client_reads_structured_output(
    gpt: openai.AsyncOpenAI, server: FaultServer
) -> None:
    completion = await gpt.chat.completions.create(**ASKED_OF_GPT)
    (choice,) = completion.choices
    assert json.loads(choice.message.content) == VERDICT
    assert choice.finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1_200, 100)
    assert completion.usage.prompt_tokens_details.cached_tokens == 200
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_openais_client_reads_a_stream(gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.chat.completions.create(
        **ASKED_OF_GPT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert json.loads(text) == VERDICT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 1_300


async def test_openais_client_parses_a_stream_into_one_completion(gpt: openai.AsyncOpenAI) -> None:
    async with gpt.chat.completions.stream(
        **ASKED_OF_GPT, stream_options={"include_usage": True}
    ) as stream:
        completion = await stream.get_final_completion()
    assert json.loads(completion.choices[0].message.content or "") == VERDICT


async def test_a_refusal_is_one_to_either_client(
    claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI, server: FaultServer
) -> None:
    server.always = Well(stop="refusal")
    assert (await claude.messages.create(**WITH_TOOL)).stop_reason == "refusal"
    assert (await gpt.chat.completions.create(**ASKED_OF_GPT)).choices[0].message.refusal


ERRORS = [
    (Status(400, "invalid_request_error"), "BadRequestError"),
    (Status(401, "authentication_error"), "AuthenticationError"),
    (Status(403, "permission_error"), "PermissionDeniedError"),
    (Status(404, "not_found_error"), "NotFoundError"),
    (Status(409, "conflict_error"), "ConflictError"),
    (Status(422, "invalid_request_error"), "UnprocessableEntityError"),
    (Status(429, "rate_limit_error"), "RateLimitError"),
    (Status(500), "InternalServerError"),
    (Status(502, body=b"<html>"), "InternalServerError"),
    (Hang(), "APITimeoutError"),
    (Disconnect(), "APIConnectionError"),
    (Cut(3), "APIConnectionError"),
    (Garbage(), "APIConnectionError"),
]
ONLY_ANTHROPICS = [
    (Status(413, "request_too_large"), "ContentTooLargeError"),
    (Status(503, "overloaded_error"), "ServiceUnavailableError"),
    (Status(504, "timeout_error"), "GatewayTimeoutError"),
    (Status(529, "overloaded_error"), "OverloadedError"),
]


@pytest.mark.parametrize(("fault", "name"), [*ERRORS, *ONLY_ANTHROPICS], ids=repr)
async def test_each_error_is_of_anthropics_own_class(
    claude: anthropic.AsyncAnthropic, server: FaultServer, fault: Fault, name: str
) -> None:
    server.always = fault
    with pytest.raises(anthropic.APIError) as caught:
        await claude.messages.create(**WITH_TOOL)
    assert name in [kind.__name__ for kind in type(caught.value).__mro__]
    if isinstance(caught.value, anthropic.APIStatusError) and isinstance(fault, Status):
        assert caught.value.status_code == fault.status
        assert fault.body is not None or caught.value.type == fault.word


@pytest.mark.parametrize(("fault", "name"), ERRORS, ids=repr)
async def test_each_error_is_of_openais_own_class(
    gpt: openai.AsyncOpenAI, server: FaultServer, fault: Fault, name: str
) -> None:
    server.always = fault
    with pytest.raises(openai.APIError) as caught:
        await gpt.chat.completions.create(**ASKED_OF_GPT)
    assert name in [kind.__name__ for kind in type(caught.value).__mro__]
    if isinstance(fault, Status) and fault.body is None:
        assert caught.value.code == fault.word


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
@pytest.mark.parametrize("fault", [Stuck(4), StreamError("overloaded_error")], ids=repr)
async def test_a_stream_that_fails_fails_at_the_vendors_too(
    claude: anthropic.AsyncAnthropic,
    gpt: openai.AsyncOpenAI,
    server: FaultServer,
    kind: str,
    fault: Fault,
) -> None:
    server.always = fault
    ask: Callable[..., Any]
    ask, asked = (
        (claude.messages.create, WITH_TOOL)
        if kind == "anthropic"
        else (gpt.chat.completions.create, ASKED_OF_GPT)
    )
    stream = await ask(**asked, stream=True)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of three libraries; named below
        await drained(stream)
    names = [each.__name__ for each in type(caught.value).__mro__]
    assert {"APIError", "ReadTimeout"} & set(names)


@pytest.mark.parametrize("after", ["0", "0.01"])
async def test_both_clients_heed_retry_after_and_are_answered_at_the_second_time(
    server: FaultServer, after: str
) -> None:
    """The same header that ours heeds: each client tries again by itself."""
    for client, path in ((anthropic.AsyncAnthropic, ""), (openai.AsyncOpenAI, "/v1")):
        server.requests.clear()
        server.faults = [Status(429, "rate_limit_error", (("retry-after-ms", after),))]
        async with client(api_key=KEY, base_url=server.url + path, max_retries=1) as made:
            if isinstance(made, anthropic.AsyncAnthropic):
                await made.messages.create(**WITH_TOOL)
            else:
                await made.chat.completions.create(**ASKED_OF_GPT)
        assert len(server.requests) == 2


# What the vendors send is what we send: their types are the protocol's description


PROMPT = Prompt("Judge.", (Turn("user", "data"),), VERDICT_SCHEMA, "verdict", "n0nce")


@pytest.mark.parametrize("stream", [False, True])
async def test_our_request_is_what_anthropics_client_sends_for_the_same(
    claude: anthropic.AsyncAnthropic,
    server: FaultServer,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    answer: Any = await claude.messages.create(**WITH_TOOL, stream=stream)
    if stream:
        await drained(answer)
    protocol = AnthropicProtocol("judge-1", Prices(), 100, own=True)
    ours = protocol.request(PROMPT, stream=stream)
    theirs = {k: v for k, v in server.requests[0].items() if k != "stream" or v}
    assert json.loads(ours.body) == theirs
    headers = {**ours.headers, **protocol.secret_headers(KEY)}
    assert {name: server.headers[0][name] for name in headers} == headers


def test_only_the_vendors_own_service_is_spoken_to_in_its_newest_way() -> None:
    """Others know the older one, and only the older one knows a temperature."""
    for own, temperature, version in (
        (True, -1.0, anthropic_version()),
        (True, 0.5, COMMON_VERSION),
        (False, -1.0, COMMON_VERSION),
    ):
        protocol = AnthropicProtocol("m", Prices(), 100, temperature, own)
        request = protocol.request(PROMPT, stream=False)
        assert request.headers["anthropic-version"] == version
        assert ("temperature" in json.loads(request.body)) is (temperature >= 0)


def anthropic_version() -> str:
    headers = anthropic.AsyncAnthropic(api_key=KEY).default_headers
    return str(headers["anthropic-version"])


@pytest.mark.parametrize("stream", [False, True])
async def test_our_request_is_what_openais_client_sends_for_the_same(
    gpt: openai.AsyncOpenAI,
    server: FaultServer,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer: Any = await gpt.chat.completions.create(**ASKED_OF_GPT, **more)
    if stream:
        await drained(answer)
    protocol = OpenAiProtocol("judge-1", Prices(), 100)
    ours = protocol.request(PROMPT, stream=stream)
    assert json.loads(ours.body) == server.requests[0]
    headers = {**ours.headers, **protocol.secret_headers(KEY)}
    assert {name: server.headers[0][name] for name in headers} == headers


async def test_the_vendors_clients_accept_what_the_slow_say(
    server: FaultServer,
) -> None:
    """Bytes one by one: how an answer is cut says nothing."""
    server.always = Slow(0.0)
    async with (
        anthropic.AsyncAnthropic(api_key=KEY, base_url=server.url) as client,
        client.messages.stream(**WITH_TOOL) as stream,
    ):
        message = await stream.get_final_message()
    (block,) = message.content
    assert isinstance(block, anthropic.types.ToolUseBlock)
    assert block.input == VERDICT


async def test_a_page_in_place_of_an_answer_is_no_completion(
    gpt: openai.AsyncOpenAI, server: FaultServer
) -> None:
    server.always = Raw(b"<html>Sign in</html>", "text/html")
    found = await gpt.chat.completions.create(**ASKED_OF_GPT)
    assert type(found).__name__ != "ChatCompletion"
