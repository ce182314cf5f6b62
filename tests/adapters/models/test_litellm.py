"""Our judge against LiteLLM's proxy: somebody else's server of both protocols, as a process.

Some of its models answer by themselves (`mock_response`); others pass the question on to our
fault server in the *other* protocol, so that what one of ours says the other one reads, and
LiteLLM has understood it in between. Nothing of it leaves the machine.
"""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.adapters.models.fault_server import (
    VERDICT,
    Disconnect,
    Fault,
    FaultServer,
    Status,
    Well,
    fault_server_apart,
)
from tests.contracts.judge_contract import question

from custosd.adapters.http_client import open_http
from custosd.adapters.judges.llm import LlmJudge, LlmSettings, open_llm_judge
from custosd.adapters.models.anthropic import AnthropicProtocol
from custosd.adapters.models.guarded import GuardedModel, policy
from custosd.adapters.models.http import HttpModel, HttpWire, ModelProtocol
from custosd.adapters.models.model import Prices
from custosd.adapters.models.openai import OpenAiProtocol
from custosd.config.secret import Secret
from custosd.core.errors import JudgeError
from custosd.core.verdicts import Standing

KEY = "sk-of-this-test-only"
START_S = 120.0
PROGRAM = Path(os.environ.get("CUSTOSD_LITELLM") or Path(sys.prefix, "litellm/bin/litellm"))

pytestmark = [
    pytest.mark.timeout(START_S + 60),
    pytest.mark.skipif(
        not PROGRAM.is_file(),
        reason=f"LiteLLM's proxy is not at {PROGRAM}: `make test-litellm` installs it,"
        " or name it in CUSTOSD_LITELLM",
    ),
]


def listed(name: str, model: str, **parameters: object) -> dict[str, object]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_key": "k", "max_retries": 0, **parameters},
    }


def config_for(upstream: str) -> dict[str, object]:
    return {
        "model_list": [
            listed("mocked", "openai/m", mock_response=json.dumps(VERDICT)),
            listed("prose", "openai/m", mock_response="It does well, I think."),
            listed("limited", "openai/m", mock_response="litellm.RateLimitError"),
            listed("broken", "openai/m", mock_response="litellm.InternalServerError"),
            listed("long", "openai/m", mock_response="litellm.ContextWindowExceededError"),
            listed("to-openai", "hosted_vllm/judge-1", api_base=f"{upstream}/v1"),
            listed("to-anthropic", "anthropic/claude-sonnet-4-5", api_base=upstream),
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "general_settings": {"master_key": KEY},
    }


@dataclass(frozen=True)
class Proxy:
    url: str
    upstream: FaultServer


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    home = tmp_path_factory.mktemp("litellm")
    with fault_server_apart() as upstream, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = home / "config.yaml"
        config.write_text(json.dumps(config_for(upstream.url)))  # JSON is YAML
        process = subprocess.Popen(
            [PROGRAM, "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            env={
                "PATH": os.defpath,
                "HOME": str(home),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "PYTHONUNBUFFERED": "1",
            },
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_up(process)
            yield Proxy(f"http://127.0.0.1:{port}", upstream)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _wait_until_up(process: "subprocess.Popen[bytes]") -> None:
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:  # to the end: a full pipe would stop it
            lines.put(line.decode(errors="replace"))
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    said = []
    while "Uvicorn running" not in (line := lines.get(timeout=START_S)):
        said.append(line)
        assert line, "LiteLLM ended: " + "".join(said[-20:])


@asynccontextmanager
async def judge_of(
    proxy: Proxy, folder: Path, kind: str, model: str, *, stream: bool = False, key: str = KEY
) -> AsyncGenerator[tuple[LlmJudge, GuardedModel]]:
    file = folder / "key"
    await _write(file, key)
    prices = Prices(3.0, 15.0)
    protocol: ModelProtocol
    if kind == "anthropic":
        protocol, url = AnthropicProtocol(model, prices), proxy.url
    else:
        protocol, url = OpenAiProtocol(model, prices), f"{proxy.url}/v1"
    async with open_http() as http:
        wire = HttpWire(http, url, protocol.secret_headers, Secret("key_file", file))
        asked = HttpModel(model, protocol, wire, lambda: datetime.now(UTC), 20.0, stream)
        tried = replace(policy(2, 0.01), longest_delay_s=0.02)
        guarded = GuardedModel(asked, 500, policy=tried)
        async with open_llm_judge(guarded, LlmSettings(canary_share=0.0)) as judge:
            yield judge, guarded


async def _write(file: Path, text: str) -> None:
    file.write_text(text)  # noqa: ASYNC240 - a few bytes
    file.chmod(0o600)  # noqa: ASYNC240 - as above


both = pytest.mark.parametrize("kind", ["anthropic", "openai"])
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@both
@streamed_or_not
async def test_a_mocked_model_judges(
    proxy: Proxy,
    tmp_path: Path,
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    async with judge_of(proxy, tmp_path, kind, "mocked", stream=stream) as (judge, _):
        answer = await judge.judge(question())
    assert answer.judgement.standing is Standing.PROGRESSING
    assert answer.judgement.summary == VERDICT["summary"]
    assert answer.usage.cost_usd > 0


@both
async def test_prose_is_no_verdict_and_asked_for_once_more(
    proxy: Proxy, tmp_path: Path, kind: str
) -> None:
    async with judge_of(proxy, tmp_path, kind, "prose") as (judge, guarded):
        answer = await judge.judge(question())
    assert answer.judgement.unknown_reason == "malformed_answer"
    assert answer.usage == guarded.spent


@both
@streamed_or_not
@pytest.mark.parametrize(
    ("model", "reason"),
    [("limited", "model_rate_limited"), ("broken", "model_unavailable"),
     ("nobody", "model_bad_request")],
)  # fmt: skip
async def test_a_mocked_failure_is_its_kind_of_failure(
    proxy: Proxy,
    tmp_path: Path,
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
    model: str,
    reason: str,
) -> None:
    async with judge_of(proxy, tmp_path, kind, model, stream=stream) as (judge, _):
        with pytest.raises(JudgeError) as caught:
            await judge.judge(question())
    assert caught.value.reason == reason


@both
async def test_a_question_that_is_too_long_is_the_questions_own_trouble(
    proxy: Proxy, tmp_path: Path, kind: str
) -> None:
    async with judge_of(proxy, tmp_path, kind, "long") as (judge, _):
        assert (await judge.judge(question())).judgement.unknown_reason == "model_too_large"


@both
async def test_a_wrong_key_is_refused(proxy: Proxy, tmp_path: Path, kind: str) -> None:
    async with judge_of(proxy, tmp_path, kind, "mocked", key="sk-wrong") as (judge, _):
        with pytest.raises(JudgeError) as caught:
            await judge.judge(question())
    # Without a database LiteLLM says that it cannot look the key up.
    assert caught.value.reason in {"model_bad_request", "model_unauthorized"}


# Translated: one protocol of ours in, the other one of ours out

ways = pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("anthropic", "to-openai"),
        ("openai", "to-anthropic"),
        ("anthropic", "to-anthropic"),
        ("openai", "to-openai"),
    ],
)


@ways
@streamed_or_not
async def test_a_verdict_survives_the_way_through_the_other_protocol(
    proxy: Proxy,
    tmp_path: Path,
    kind: str,
    model: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    proxy.upstream.always = Well()
    proxy.upstream.requests.clear()
    async with judge_of(proxy, tmp_path, kind, model, stream=stream) as (judge, _):
        answer = await judge.judge(question())
    assert answer.judgement.standing is Standing.PROGRESSING
    assert answer.judgement.summary == VERDICT["summary"]
    assert answer.usage.output_tokens == 100
    assert answer.usage.input_tokens == 1_200
    (request,) = proxy.upstream.requests
    assert bool(request.get("stream")) is stream
    # The schema arrived, as a tool or as the answer's format.
    assert "needs_steering" in json.dumps(request)
    assert "BEGIN-DATA" in json.dumps(request)


@ways
@streamed_or_not
@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        (Status(429, "rate_limit_error"), {"model_rate_limited"}),
        (Status(529, "overloaded_error"), {"model_overloaded", "model_unavailable"}),
        (Status(500), {"model_unavailable"}),
        (Status(401, "authentication_error"), {"model_unauthorized"}),
        (Status(400, "invalid_request_error"), {"model_bad_request"}),
        (Disconnect(), {"model_unavailable", "model_cut_off"}),
    ],
    ids=lambda value: "-or-".join(sorted(value)) if isinstance(value, set) else repr(value),
)
async def test_a_failure_behind_the_proxy_is_told_by_it(
    proxy: Proxy,
    tmp_path: Path,
    kind: str,
    model: str,
    fault: Fault,
    reasons: set[str],
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    proxy.upstream.always = fault
    async with judge_of(proxy, tmp_path, kind, model, stream=stream) as (judge, _):
        with pytest.raises(JudgeError) as caught:
            await judge.judge(question())
    assert caught.value.reason in reasons
