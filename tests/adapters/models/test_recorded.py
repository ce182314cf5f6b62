"""Recorded exchanges are played again bit for bit, without a network, a key or a nonce."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.models.fault_server import (
    Cut,
    Disconnect,
    Garbage,
    Hang,
    Raw,
    Status,
    StreamError,
    Stuck,
    Well,
    fault_server,
)
from tests.contracts.judge_contract import question

from custosd.adapters.http_client import open_http
from custosd.adapters.judges.llm import LlmSettings, open_llm_judge
from custosd.adapters.models.anthropic import AnthropicProtocol
from custosd.adapters.models.clean_record import cleaned, cleaner
from custosd.adapters.models.http import HttpModel, HttpWire, Wire
from custosd.adapters.models.model import ModelError, ModelErrorKind, Prompt, Reply, Turn
from custosd.adapters.models.openai import OpenAiProtocol
from custosd.adapters.models.recorded import Recording, Replayed, read_exchanges
from custosd.config.secret import Secret
from custosd.core.transcript import Usage

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PROTOCOL = AnthropicProtocol("m")


def prompt(nonce: str, text: str = "data") -> Prompt:
    return Prompt(f"Judge {nonce}.", (Turn("user", f"{nonce} {text}"),), {}, "verdict", nonce)


def model(wire: Wire, *, stream: bool) -> HttpModel:
    return HttpModel("m", PROTOCOL, wire, lambda: NOW, 5.0, stream)


async def outcome(asked: HttpModel, one: Prompt) -> Reply | tuple[ModelErrorKind, float | None]:
    try:
        return await asked.ask(one)
    except ModelError as error:
        return error.kind, error.after_s


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_was_recorded_is_played_bit_for_bit(tmp_path: Path, stream: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    file, key = tmp_path / "record.jsonl", tmp_path / "key"
    key.write_text("s3cr3t-key-0123456789")
    key.chmod(0o600)
    async with fault_server() as server, open_http() as http:
        wire = HttpWire(http, server.url, PROTOCOL.secret_headers, Secret("k", key))
        recording = model(Recording(wire, file), stream=stream)
        server.faults = [Status(429, "rate_limit_error", (("retry-after", "3"),)), Well(),
                         Disconnect(), Well("maybe")]  # fmt: skip
        live = [await outcome(recording, prompt(f"n{n}")) for n in range(3)]
        live.append(await outcome(recording, prompt("n9", "other")))
    assert "s3cr3t" not in file.read_text()
    replayed = model(Replayed(read_exchanges(file)), stream=stream)
    # Other nonces: a recording knows what was asked without them.
    again = [await outcome(replayed, prompt(f"x{n}")) for n in range(3)]
    again.append(await outcome(replayed, prompt("x9", "other")))
    assert again == live


async def test_what_was_not_recorded_is_told_so() -> None:
    wire = Replayed([])
    with pytest.raises(ModelError) as caught:
        await model(wire, stream=False).ask(prompt("n"))
    assert caught.value.kind is ModelErrorKind.NOT_RECORDED
    assert wire.missed == 1


async def test_a_judge_gives_the_same_verdicts_over_a_recording(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    settings = LlmSettings(canary_share=0.5)
    asked = [replace(question(f"goal {n}"), input_hash=str(n)) for n in range(8)]
    async with fault_server() as server, open_http() as http:
        wire = Recording(HttpWire(http, server.url, PROTOCOL.secret_headers), file)
        async with open_llm_judge(model(wire, stream=True), settings) as judge:
            live = [await judge.judge(one) for one in asked]
    played = Replayed(read_exchanges(file))
    async with open_llm_judge(model(played, stream=True), settings) as judge:
        assert [await judge.judge(one) for one in asked] == live


async def test_a_record_holds_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    async with fault_server() as server, open_http() as http:
        wire = Recording(HttpWire(http, server.url, PROTOCOL.secret_headers), file)
        server.faults = [Well("the key is AKIAABCDEFGHIJKLMNOP")]
        await model(wire, stream=False).ask(prompt("x9", "password=hunter2222"))
    (exchange,) = read_exchanges(file)
    assert "password=" in exchange.asked
    assert "hunter2222" not in exchange.asked
    replayed = model(Replayed([exchange]), stream=False)
    reply = await replayed.ask(prompt("x8", "password=hunter2222"))
    assert reply.text == "the key is [redacted aws key]"


SECRET = "AKIAABCDEFGHIJKLMNOP"


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_secret_in_the_pieces_of_an_answer_is_taken_out_and_the_rest_reads_the_same(
    tmp_path: Path,
    kind: str,
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    file = tmp_path / "record.jsonl"
    protocol = {"anthropic": AnthropicProtocol, "openai": OpenAiProtocol}[kind]("m")
    # In three pieces, with an escape close before it, and one beside its name only.
    said = {"summary": f"See\n{SECRET}\nthere", "x": "y" * 30, "password": "hunter2222"}
    async with fault_server() as server, open_http() as http:
        wire = HttpWire(http, server.url, protocol.secret_headers)
        server.faults = [Well(json.dumps(said))]
        live = await HttpModel("m", protocol, Recording(wire, file), lambda: NOW, 5.0, stream).ask(
            prompt("x9")
        )
    assert json.loads(live.text) == said, "who asks has it as it came"
    (exchange,) = read_exchanges(file)
    body = b"".join(exchange.pieces).decode()
    texts = body + "".join(re.findall(r'"(?:partial_json|content)":"((?:[^"\\]|\\.)*)"', body))
    assert SECRET not in texts
    assert "hunter2222" not in texts
    again = await HttpModel("m", protocol, Replayed([exchange]), lambda: NOW, 5.0, stream).ask(
        prompt("x8")
    )
    assert json.loads(again.text)["summary"] == "See\n[redacted aws key]\nthere"
    assert again.usage == live.usage


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_failed_halfway_fails_halfway_again(tmp_path: Path, stream: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    file = tmp_path / "record.jsonl"
    faults = [Cut(4), Stuck(4), StreamError("overloaded_error"), Raw(b"{"), Hang(), Garbage()]

    async def failures(wire: Wire) -> list[tuple[ModelErrorKind, Usage] | None]:
        found: list[tuple[ModelErrorKind, Usage] | None] = []
        for number in range(len(faults)):
            asking = HttpModel("m", PROTOCOL, wire, lambda: NOW, 0.2, stream)
            try:
                await asking.ask(prompt("x", str(number)))
            except ModelError as error:
                found.append((error.kind, error.usage))
            else:
                found.append(None)
        return found

    async with fault_server() as server, open_http() as http:
        server.faults = list(faults)
        live = await failures(Recording(HttpWire(http, server.url, PROTOCOL.secret_headers), file))
    kinds = [found and found[0] for found in live]
    middle = "overloaded" if stream else None
    assert kinds == ["cut_off", "timeout", middle, "malformed", "timeout", "malformed"]
    assert await failures(Replayed(read_exchanges(file))) == live


async def test_what_its_asker_gave_up_is_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    async with fault_server() as server, open_http() as http:
        server.always = Hang()
        wire = Recording(HttpWire(http, server.url, PROTOCOL.secret_headers), file)
        with trio.move_on_after(0.1):
            await model(wire, stream=False).ask(prompt("x"))
    assert not file.exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9) | st.just(SECRET),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "content", "type", "a"]), inner, max_size=3)
    ),
    max_leaves=9,
)


@given(st.lists(json_values, max_size=5), st.lists(st.integers(0, 300), max_size=5), st.booleans())
def test_no_body_makes_trouble_and_none_without_a_secret_is_touched(
    values: list[object],
    cuts: list[int],
    stream: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    if stream:
        whole = "".join(f"data: {json.dumps(value)}\n\n" for value in values).encode()
    else:
        whole = json.dumps(values).encode()
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(places)]
    found = cleaned(pieces, cleaner(()))
    assert SECRET.encode() not in b"".join(found)
    if SECRET.encode() not in whole:
        assert found == pieces


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_no_bytes_make_trouble(pieces: list[bytes]) -> None:
    found = b"".join(cleaned(pieces, cleaner(("\x00\x01",))))
    assert b"\x00\x01" not in found


def test_a_garbled_record_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    file.write_text("{}\n")
    with pytest.raises(ValueError, match=r"record\.jsonl:1: "):
        read_exchanges(file)
