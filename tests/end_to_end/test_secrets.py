"""A secret in a transcript is found nowhere behind the daemon: not in what it stores, says, sends
or hands over.

All secrets here are made up for one run each.
"""

import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.adapters.models.fault_server import VERDICT, FaultServer, Well, fault_server
from tests.end_to_end.daemons import QUICK, Custosd, ask, custosd
from tests.end_to_end.test_hands import AGENT, HANDS, lives, succeeded

import custosd as package
from custosd.adapters.models.recorded import read_exchanges
from custosd.adapters.postgres.bridge import open_database
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.cli.exit_codes import OK

SETTINGS = """
transcripts = ["{home}/transcripts/a"]
[[model]]
name = "m"
kind = "anthropic"
model = "judge-1"
base_url = "{url}"
canaries = 0
[alerts]
command = ["{python}", "-c", "import sys; open('{home}/notices','a').write(sys.stdin.read())"]
[doors]
listen = ""
"""


class Fresh:
    """Secrets of several shapes, each new."""

    def __init__(self) -> None:
        token = secrets.token_hex(24)
        lines = "\n".join(secrets.token_hex(32) for _ in range(12))
        begin, end = (f"-----{word} PRIVATE" + " KEY-----" for word in ("BEGIN", "END"))
        self.github = "ghp_" + token[:36]
        self.password = "pw-" + secrets.token_hex(8)
        self.key_line = lines.split("\n")[5]
        self.key = f"{begin}\n{lines}\n{end}"
        self.anthropic = "sk-ant-api03-" + secrets.token_hex(40)

    @property
    def bare(self) -> tuple[str, ...]:
        """What must be found nowhere."""
        return (self.github[8:], self.password, self.key_line, self.anthropic[20:])

    def found_in(self, data: bytes) -> list[str]:
        """Those that are in it, as they are or in hex, as PostgreSQL shows bytes."""
        return [
            one
            for one in self.bare
            if one.encode() in data or one.encode().hex().encode() in data.lower()
        ]


def transcript(fresh: Fresh) -> list[dict[str, Any]]:
    """An agent that looks at secrets, speaks of them, fails, and is left in a call."""
    lines: list[dict[str, Any]] = []

    def put(kind: str, content: Any, **more: Any) -> None:
        message = {"role": kind, "content": content, "id": f"m{len(lines)}", "model": "x", **more}
        lines.append({
            "parentUuid": None, "isSidechain": False, "cwd": "/home/ann", "sessionId": "s1",
            "version": "2.0.1", "type": kind, "message": message, "uuid": f"u{len(lines)}",
            "timestamp": f"2026-03-01T09:00:{len(lines):02}.000Z",
        })  # fmt: skip

    def run(number: int, command: str, answer: str | None) -> None:
        call = {"type": "tool_use", "id": f"t{number}", "name": "Bash"}
        put("assistant", [{**call, "input": {"command": command}}], stop_reason="tool_use")
        if answer is not None:
            told = {"type": "tool_result", "tool_use_id": f"t{number}", "content": answer}
            put("user", [{**told, "is_error": True}])

    put("user", f"Deploy it with {fresh.github}. Do not write to {fresh.github}.txt, ever.")
    put("assistant", [{"type": "text", "text": f"I use password={fresh.password} for that."}])
    run(0, "cat id_rsa", fresh.key)
    for number in range(1, 9):
        run(number, f"curl -u ann:{fresh.password} https://h.example", f"401 {fresh.anthropic}")
    put("assistant", [{"type": "text", "text": f"Stuck with {fresh.anthropic}\n{fresh.key}"}])
    run(20, f"export GITHUB_TOKEN={fresh.github}; cat {fresh.github}", None)
    return lines


async def dump_of(home: Path) -> bytes:
    """Every row of every table, once the daemon is gone."""

    async def read(connection: Any) -> list[str]:
        tables = await connection.fetch(
            "select format('%I.%I', schemaname, tablename) as name from pg_tables"
            " where schemaname not in ('pg_catalog', 'information_schema')"
        )
        rows = []
        for table in tables:
            found = await connection.fetch(f"select t::text as row from {table['name']} t")
            rows += [f"{table['name']}: {row['row']}" for row in found]
        return rows

    async with (
        embedded_postgres(home / "state" / "postgres", shared_buffers_bytes=8 << 20) as server,
        open_database(server.dsn, pool_size=1) as database,
    ):
        return "\n".join(await database.unit(read)).encode()


async def told(daemon: Custosd, server: FaultServer) -> None:
    """Until it was judged by the model, a person was told, and all of that is written."""
    await daemon.out.event("verdict.reached", agent="a", judge="m")
    await daemon.out.event("concern.raised")
    since = len(daemon.out.lines)
    await daemon.out.event("sweep.finished", since=since)
    assert server.requests


@pytest.mark.timeout(120)
async def test_no_secret_of_a_transcript_is_found_behind_the_daemon(home: Path) -> None:
    fresh = Fresh()
    checkout = Path(package.__file__).parents[1]
    # A model that says again whatever it is shown.
    echo = json.dumps({**VERDICT, "summary": f"It logs in with {fresh.github}, {fresh.anthropic}."})
    (home / "work").mkdir()
    (home / "transcripts" / "a").mkdir()
    config = home / "custosd.toml"
    async with fault_server() as server:
        server.always = Well(echo)
        text = QUICK.replace('grace = "0s"', 'grace = "0s"\njudge = "m"') + HANDS + SETTINGS
        config.write_text(text.format(
            python=sys.executable, agent=AGENT, home=home, checkout=checkout, url=server.url
        ))  # fmt: skip
        file = home / "transcripts" / "a" / "s1.jsonl"
        said: list[str] = []
        try:
            async with custosd("--config", config, "run", home=home) as daemon:
                await daemon.ready()
                file.write_text("".join(json.dumps(line) + "\n" for line in transcript(fresh)))
                await told(daemon, server)
                for words in (("restart", "a"), ("why", "a", "--json"), ("why", "a"),
                              ("agents", "show", "a", "--json"), ("agents", "list"), ("status",),
                              ("forecast", "a", "--json")):  # fmt: skip
                    answer = await ask("--config", config, *words, home=home)
                    assert answer.code == OK, (words, answer.out, answer.err)
                    said.append(answer.out + answer.err)
                await succeeded(daemon)
                assert await daemon.end(signal.SIGTERM) == OK
        finally:
            for pid, _ in lives(home):
                os.kill(pid, signal.SIGKILL)
        record = home / "record.jsonl"
        words = ("analyze", str(file), "--judge", "m", "--record", record)
        answer = await ask("--config", config, *words, home=home)
        assert answer.code == OK, answer.err
        said.append(answer.out + answer.err)
    (handed,) = (home / "state").rglob("handover.json")
    sinks = {
        "database": await dump_of(home),
        "log": json.dumps(daemon.out.lines).encode() + daemon.err.plain.encode(),
        "prompts": json.dumps(server.requests, ensure_ascii=False).encode(),
        "notices": (home / "notices").read_bytes(),
        "handed over": handed.read_bytes(),
        "record": record.read_bytes() + b"".join(
            b"".join((one.asked.encode(), *one.pieces)) for one in read_exchanges(record)
        ),
        "commands": "\n".join(said).encode(),
        "state folder": b"".join(
            f.read_bytes() for f in (home / "state").rglob("*")
            if f.is_file() and "postgres" not in f.parts
        ),
    }  # fmt: skip
    leaks = {name: found for name, data in sinks.items() if (found := fresh.found_in(data))}
    assert not leaks
    # Else the rest would say nothing: what was around the secrets is there.
    assert b"Deploy it with [redacted github token]" in sinks["database"]
    assert b"Deploy it with [redacted github token]" in sinks["prompts"]
    assert b"Deploy it with [redacted github token]" in sinks["handed over"]
    assert b"[redacted private key]" in sinks["prompts"]
    assert b"export GITHUB_TOKEN=[redacted" in sinks["prompts"]
    assert b"It logs in with [redacted" in sinks["record"]
    assert sinks["notices"]
    await trio.lowlevel.checkpoint()
