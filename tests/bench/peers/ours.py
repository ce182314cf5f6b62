"""The calls of a plan by `flow.parallel` and the daemon's HTTP client. See `callers`."""

import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2] / "daemon")]

import trio  # noqa: E402 - after the path
from callers import PROMPT, Told, plan, tell  # noqa: E402

from custosd.adapters.http_client import (  # noqa: E402
    HttpClient,
    HttpLimits,
    HttpRequest,
    open_http,
)
from custosd.flow.file_writer import FileWriter  # noqa: E402
from custosd.flow.parallel import run_parallel  # noqa: E402

HEADERS = {"content-type": "application/json"}


async def call(client: HttpClient, url: str, n: int, delay_us: int, told: Told) -> bytes:
    began = time.perf_counter()
    request = HttpRequest("POST", f"{url}/sleep/{delay_us}", HEADERS, body=PROMPT)
    async with client.exchange(request) as answer:
        body = await answer.body()
        told.heard(n, time.perf_counter() - began, int(answer.headers["x-server-us"]))
    return body


async def kept(
    writer: FileWriter, folder: str, n: int, answered: Callable[[], Awaitable[bytes]]
) -> None:
    await writer.write(Path(folder, "results", f"{n}.json"), await answered())


async def run(given: dict[str, Any]) -> Told:
    at_once, told = given["concurrency"], Told()
    async with open_http(HttpLimits(connections=at_once)) as client:
        calls = [
            partial(call, client, given["url"], n, us, told)
            for n, us in enumerate(given["delays_us"])
        ]
        if given.get("folder"):
            async with FileWriter(concurrency=10) as writer:
                tasks = [
                    partial(kept, writer, given["folder"], n, each) for n, each in enumerate(calls)
                ]
                await all_of(tasks, at_once, told)
        else:
            await all_of(calls, at_once, told)
    return told


async def all_of(tasks: list[Callable[[], Awaitable[object]]], at_once: int, told: Told) -> None:
    with told.clocked():
        for each in await run_parallel(tasks, max_concurrent=at_once):
            each.unwrap()


if __name__ == "__main__":
    tell(trio.run(run, plan()))
