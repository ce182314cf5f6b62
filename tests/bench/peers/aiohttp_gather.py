"""The calls of a plan by asyncio.gather and aiohttp, in the forms that one finds. See `callers`.

`semaphore`: all at once behind a semaphore. `batches`: in batches of `concurrency`, each waited
for to its end. `client a call`: behind a semaphore, each call with a client of its own.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp
from callers import PROMPT, Told, plan, tell

HEADERS = {"content-type": "application/json"}


async def call(
    session: aiohttp.ClientSession, url: str, n: int, delay_us: int, told: Told
) -> bytes:
    began = time.perf_counter()
    async with session.post(f"{url}/sleep/{delay_us}", headers=HEADERS, data=PROMPT) as answer:
        body = await answer.read()
        told.heard(n, time.perf_counter() - began, int(answer.headers["x-server-us"]))
    return body


async def by_semaphore(session: aiohttp.ClientSession, given: dict[str, Any], told: Told) -> None:
    turn = asyncio.Semaphore(given["concurrency"])

    async def one(n: int, delay_us: int) -> bytes:
        async with turn:
            return await call(session, given["url"], n, delay_us, told)

    await asyncio.gather(*(one(n, us) for n, us in enumerate(given["delays_us"])))


async def by_batches(session: aiohttp.ClientSession, given: dict[str, Any], told: Told) -> None:
    delays_us, size = list(enumerate(given["delays_us"])), given["concurrency"]
    for start in range(0, len(delays_us), size):
        batch = delays_us[start : start + size]
        await asyncio.gather(*(call(session, given["url"], n, us, told) for n, us in batch))


async def by_own_clients(_session: object, given: dict[str, Any], told: Told) -> None:
    turn = asyncio.Semaphore(given["concurrency"])

    async def one(n: int, delay_us: int) -> bytes:
        async with turn, aiohttp.ClientSession() as session:
            return await call(session, given["url"], n, delay_us, told)

    await asyncio.gather(*(one(n, us) for n, us in enumerate(given["delays_us"])))


FORMS = {"semaphore": by_semaphore, "batches": by_batches, "client a call": by_own_clients}


async def run(given: dict[str, Any]) -> Told:
    told = Told()
    connector = aiohttp.TCPConnector(limit=given["concurrency"])
    async with aiohttp.ClientSession(connector=connector) as session:
        with told.clocked():
            await FORMS[given["form"]](session, given, told)
    return told


if __name__ == "__main__":
    tell(asyncio.run(run(plan())))
