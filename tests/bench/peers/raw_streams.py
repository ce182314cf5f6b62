"""The calls of a plan over bare trio streams, with no client at all: the floor. See `callers`."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from callers import PROMPT, Told, plan, tell

LARGEST = 65_536


async def worker(host: str, port: int, delays_us: Iterator[tuple[int, int]], told: Told) -> None:
    stream: trio.SocketStream | None = None
    for n, delay_us in delays_us:
        began = time.perf_counter()
        if stream is None:
            stream = await trio.open_tcp_stream(host, port)
        await stream.send_all(
            b"POST /sleep/%d HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (delay_us, host.encode(), len(PROMPT), PROMPT)
        )
        answer = b""
        length = sys.maxsize
        while len(answer) < length:
            answer += await stream.receive_some(LARGEST)
            head, end, _ = answer.partition(b"\r\n\r\n")
            if end and length == sys.maxsize:
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
                length = len(head) + len(end) + int(fields[b"content-length"])
                server_us = int(fields[b"x-server-us"])
        told.heard(n, time.perf_counter() - began, server_us)
    if stream is not None:
        await stream.aclose()


async def run(given: dict[str, Any]) -> Told:
    host, _, port = given["url"].removeprefix("http://").partition(":")
    told, delays_us = Told(), iter(enumerate(given["delays_us"]))
    with told.clocked():
        async with trio.open_nursery() as nursery:
            for _ in range(given["concurrency"]):
                nursery.start_soon(worker, host, int(port), delays_us, told)
    return told


if __name__ == "__main__":
    tell(trio.run(run, plan()))
