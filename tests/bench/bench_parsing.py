"""How dear reading transcripts is, beside merely decoding their JSON.

Prints, for each real transcript beside the checkout and for a made Claude Code session
of 50 MB: the time that msgspec alone takes to decode the bytes, the time until all
events are there, their ratio, and steps a second. Run: `python tests/bench/bench_parsing.py`.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "daemon"))

from custosd.adapters.transcripts.format import LineFormat, Sample  # noqa: E402 - path first
from custosd.adapters.transcripts.registry import FORMATS, recognise  # noqa: E402 - path first
from custosd.core.transcript import Acted, TranscriptEvent  # noqa: E402 - path first

TRANSCRIPTS = PROJECT.parent / "shared" / "transcripts"
OURS = ("claude-code", "codex", "gemini-cli", "gemini-cli-jsonl", "pi")
SMALLEST_BYTES = 40_000
SYNTHETIC_BYTES = 50_000_000
BATCH_BYTES = 1_000_000


def best_s(work: Callable[[], object], rounds: int) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def decode(data: bytes) -> None:
    """What any reader has to pay at least."""
    decoder = msgspec.json.Decoder()
    if data.lstrip()[:1] == b"{" and b"\n{" not in data:
        decoder.decode(data)
        return
    for line in data.split(b"\n"):
        if line:
            decoder.decode(line)


def parse(data: bytes, fmt: Any) -> Sequence[TranscriptEvent]:
    """All events, as the daemon gets them: the state is stored after each batch."""
    if not isinstance(fmt, LineFormat):
        return fmt.read(data)
    state, events, size = fmt.state(), list[TranscriptEvent](), 0
    for line in data.split(b"\n"):
        if line:
            events.extend(fmt.read(line.decode(), state))
            size += len(line)
            if size > BATCH_BYTES:
                msgspec.msgpack.encode(state)
                size = 0
    return [*events, *fmt.settle(state)]


def synthetic(size: int) -> bytes:
    """A session of reads, edits, searches and commands, with answers of all lengths."""
    chance = random.Random(7)
    words = [f"{w}{i}" for i in range(400) for w in ("value", "self.node", "return ", "x == ")]
    lines, made, parent = list[str](), 0, None
    head = {"isSidechain": False, "sessionId": "synthetic", "cwd": "/w", "version": "2.1.0"}
    while made < size:
        n = len(lines)
        shape = {
            "parentUuid": parent,
            "uuid": f"uuid-{n:08}",
            "timestamp": "2026-01-02T03:04:05.678Z",
        }
        output = "\n".join(
            f"{row:6}\t{' '.join(chance.choices(words, k=8))}"
            for row in range(int(chance.lognormvariate(4.2, 1.1)))
        )
        tool = chance.choice(("Read", "Bash", "Grep", "Edit"))
        args = {
            "Read": {"file_path": f"/w/src/m{n % 90}.py"},
            "Bash": {"command": f"cd /w && pytest -q tests/test_{n % 40}.py | tail -20"},
            "Grep": {"pattern": "node", "path": "/w/src"},
            "Edit": {"file_path": f"/w/src/m{n % 90}.py", "old_string": "a\nb", "new_string": "c"},
        }[tool]
        use = {"type": "tool_use", "id": f"toolu_{n:08}", "name": tool, "input": args}
        usage = {"input_tokens": 3, "cache_read_input_tokens": 20_000 + n, "output_tokens": 120}
        message = {
            "id": f"msg_{n}",
            "role": "assistant",
            "model": "m",
            "content": [use],
            "usage": usage,
        }
        record = {**head, **shape, "type": "assistant", "message": message}
        answer = {"type": "tool_result", "tool_use_id": f"toolu_{n:08}", "content": output}
        result: dict[str, Any] = {"stdout": output, "stderr": "", "interrupted": False}
        if tool == "Edit":
            patch = [
                {"oldStart": 3, "oldLines": 2, "newStart": 3, "newLines": 1, "lines": ["-a", "+c"]}
            ]
            result = {
                "filePath": f"/w/src/m{n % 90}.py",
                "originalFile": output,
                "structuredPatch": patch,
            }
        shape = {
            "parentUuid": shape["uuid"],
            "uuid": f"uuid-{n:08}-r",
            "timestamp": "2026-01-02T03:04:09.678Z",
        }
        reply = {
            **head, **shape, "type": "user",
            "message": {"role": "user", "content": [answer]}, "toolUseResult": result,
        }  # fmt: skip
        parent = shape["uuid"]
        lines += [json.dumps(record), json.dumps(reply)]
        made += len(lines[-1]) + len(lines[-2])
    return "\n".join(lines).encode()


def measure(name: str, data: bytes, fmt: Any, rounds: int) -> tuple[float, float]:
    """Print one line; returns both times."""
    decoding_s = best_s(lambda: decode(data), rounds)
    parsing_s = best_s(lambda: parse(data, fmt), rounds)
    steps = sum(isinstance(event, Acted) for event in parse(data, fmt))
    print(
        f"{name[-44:]:44} {len(data) / 1e6:7.2f} {decoding_s * 1e3:9.2f} {parsing_s * 1e3:9.2f}"
        f" {decoding_s / parsing_s:6.2f} {steps:6} {steps / parsing_s:9.0f}"
    )
    return decoding_s, parsing_s


def main() -> None:
    print(f"{'transcript':44} {'MB':>7} {'decode ms':>9} {'events ms':>9}  ratio  steps   steps/s")
    sums = [0.0, 0.0]
    for path in sorted(TRANSCRIPTS.rglob("*.json*")):
        size = path.stat().st_size
        if not SMALLEST_BYTES <= size <= SYNTHETIC_BYTES or "fixtures" in path.parts[-3]:
            continue
        data = path.read_bytes()
        fmt = recognise(Sample(str(path), data[:65_536]))
        if fmt is None or fmt.name not in OURS:
            continue
        decoding_s, parsing_s = measure(str(path.relative_to(TRANSCRIPTS)), data, fmt, 3)
        sums = [sums[0] + decoding_s, sums[1] + parsing_s]
    if sums[1]:
        decoding_ms, parsing_ms = sums[0] * 1e3, sums[1] * 1e3
        ratio = f"{decoding_ms / parsing_ms:6.2f}"
        print(f"{'all of these':44} {'':7} {decoding_ms:9.2f} {parsing_ms:9.2f} {ratio}")
    claude = next(fmt for fmt in FORMATS if fmt.name == "claude-code")
    measure("synthetic claude-code session", synthetic(SYNTHETIC_BYTES), claude, 2)


if __name__ == "__main__":
    main()
