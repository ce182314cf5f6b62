"""Hooks over HTTP: signed, once, bounded, stored before they are answered; and sync is told."""

from typing import Any

import httpx
import pytest
import trio
from tests.api.conftest import Serve, Side, bearer
from tests.contracts.sync_contract import ALL, pull
from tests.services.sync_stage import ENGINE

from custosd.adapters.memory_actions import virtual_utc
from custosd.adapters.memory_forge import MemoryForge
from custosd.adapters.memory_sync import MemorySync
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import Fact
from custosd.flow.pulse import Pulse
from custosd.services.sync import Sync, SyncPorts, SyncSetup
from custosd.services.sync_desk import SyncDesk

PATH = "/api/v1/webhooks/memory"


class Hooked:
    """A side whose hooks lead to a real sync over a forge and a store in memory."""

    def __init__(self) -> None:
        self.forge, self.store = MemoryForge(), MemorySync()
        self.facts_in, self.facts_out = trio.open_memory_channel[Fact](100)
        ports = SyncPorts(self.store, {"memory": self.forge}, virtual_utc)
        pulse = Pulse("sync", 0.0)
        self.sync = Sync(ports, SyncSetup((ENGINE,)), self.facts_in, pulse)
        self.desk = SyncDesk(self.store)
        self.side = Side(sync=self.desk)

    async def post(self, headers: dict[str, str], body: bytes, path: str = PATH) -> httpx.Response:
        async with self.side.client() as client:
            return await client.post(path, headers=headers, content=body)


@pytest.fixture
async def hooked(serve: Serve) -> Hooked:
    made = Hooked()
    await serve(made.side)
    return made


async def test_a_signed_hook_is_stored_and_a_replayed_one_refused(hooked: Hooked) -> None:
    headers, body = hooked.forge.signed("d1", pull())
    with hooked.desk.led_to(hooked.sync):
        told = await hooked.post(headers, body)
        assert (told.status_code, told.json()) == (202, {"changed": 1})
        assert await hooked.store.works(ALL) == (pull(),)
        for again in (headers, headers | {"x-delivery": "another"}):
            answer = await hooked.post(again, body)
            assert (answer.status_code, answer.json()["error"]) == (409, "replayed")


@pytest.mark.parametrize(
    ("change", "cut", "status", "code"),
    [
        ({"x-signature": "0" * 64}, 0, 401, "unsigned"),
        ({"x-signature": ""}, 0, 401, "unsigned"),
        ({}, 1, 401, "unsigned"),
        ({"x-delivery": ""}, 0, 400, "malformed"),
    ],
)
async def test_what_is_not_right_is_refused_and_kept_nowhere(
    hooked: Hooked, change: dict[str, str], cut: int, status: int, code: str
) -> None:
    headers, body = hooked.forge.signed("d1", pull())
    with hooked.desk.led_to(hooked.sync):
        answer = await hooked.post(headers | change, body[: len(body) - cut])
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert await hooked.store.works(ALL) == ()


async def test_what_can_not_be_taken_now_may_come_again(hooked: Hooked) -> None:
    headers, body = hooked.forge.signed("d1", pull())
    assert (await hooked.post(headers, body)).status_code == 503
    with hooked.desk.led_to(hooked.sync):
        hooked.store.fail_with(StoreUnavailable("gone"))
        answer = await hooked.post(headers, body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        hooked.store.fail_with(None)
        assert (await hooked.post(headers, body)).status_code == 202
        assert (await hooked.post(headers, body, "/api/v1/webhooks/nobody")).status_code == 404


async def test_of_a_body_that_is_too_large_nothing_is_read(hooked: Hooked) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n"
    )
    with hooked.desk.led_to(hooked.sync):
        assert (await hooked.side.raw(head.encode())).startswith(b"HTTP/1.1 413 ")


async def test_sync_is_told_to_who_may_read(hooked: Hooked) -> None:
    assert (await hooked.side.ask("GET", "/api/v1/sync"))[0] == 401
    assert (await hooked.side.ask("GET", "/api/v1/sync", headers=bearer("ada")))[0] == 401
    hooked.forge.put(pull())
    await hooked.sync.sweep()
    told: dict[str, Any]
    status, told = await hooked.side.ask("GET", "/api/v1/sync", headers=bearer("reader"))
    assert status == 200
    assert [one["repository"] for one in told["repositories"]] == [ENGINE.id]
    assert [one["key"] for one in told["works"]] == ["1"]
    assert told["closings"] == []
    hooked.store.fail_with(StoreUnavailable("gone"))
    assert (await hooked.side.ask("GET", "/api/v1/sync", headers=bearer("reader")))[0] == 503
