"""Tasks over HTTP, and by the client: who may do what, what comes back, what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import pytest
import trio
from tests.api.conftest import Serve, Side, bearer

from custosd.adapters.memory_actions import virtual_utc
from custosd.adapters.memory_tasks import MemoryTasks
from custosd.api.application import ApiPorts
from custosd.client import Client, TaskNotDone
from custosd.core.acts import ActAnswer
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import Fact
from custosd.core.tasks import TaskId, TaskState
from custosd.core.tokens import Token, hash_of
from custosd.core.view import FleetView
from custosd.flow.latest import Latest
from custosd.services.tasks import TaskDesk, TaskTimes

TASKS = "/api/v1/tasks"
LATEST = "9999-12-31T23:59:59-14:00"
AB = {"tasks": [{"id": "x/a#1", "title": "A"}, {"id": "b", "title": "B", "depends_on": ["x/a#1"]}]}


@dataclass
class TaskSide(Side):
    """The HTTP side before a real desk over a memory store. `lost`: answers that get lost."""

    store: MemoryTasks = field(default_factory=MemoryTasks)
    lost: int = 0

    def ports(self) -> ApiPorts:
        self.facts_in, self.facts = trio.open_memory_channel[Fact](10_000)
        self.tokens["boss"] = replace(self.tokens["ops"], id="boss", scopes=frozenset({"task"}))
        self.tokens["boss"] = _same_secret(self.tokens["boss"])
        self.desk = TaskDesk(
            self.store, Latest(FleetView()), self.facts_in, TaskTimes(), virtual_utc
        )
        return replace(super().ports(), tasks=self)

    async def ask(self, *args: Any, **more: Any) -> Any:
        """As a door for tasks where it is given a form, else as any side."""
        if len(args) == 3:
            answer = await self.desk.ask(*args)
            return self._unless_lost(answer)
        return await super().ask(*args, **more)

    def _unless_lost(self, answer: ActAnswer) -> ActAnswer:
        if self.lost:
            self.lost -= 1
            raise RuntimeError("the answer is lost")
        return answer

    async def post(self, operation: str, token: str = "boss", **form: Any) -> tuple[int, Any]:
        return await self.ask("POST", f"{TASKS}/{operation}", json=form, headers=bearer(token))

    async def get(self, path: str = "", token: str = "reader") -> tuple[int, Any]:
        return await self.ask("GET", TASKS + path, headers=bearer(token))


def _same_secret(token: Token) -> Token:
    return replace(token, secret_hash=hash_of(f"secret-{token.id}"))


@pytest.fixture
async def side(serve: Serve) -> TaskSide:
    found = await serve(TaskSide())
    assert isinstance(found, TaskSide)
    return found


async def test_a_task_goes_from_its_order_to_its_end(side: TaskSide) -> None:
    status, told = await side.post("add", **AB)
    assert (status, [change["after"] for change in told["changes"]]) == (200, ["blocked", "ready"])
    status, told = await side.post("claim", "ada", agent="ada", key="k")
    assert status == 200
    [task] = told["tasks"]
    fence = task["claim"]["fence"]
    assert (await side.post("claim", "ada", agent="ada", key="k"))[1]["tasks"] == [task]
    word = {"task": task["id"], "agent": "ada", "fence": fence}
    assert (await side.post("extend", "ada", **word, lease_s=60))[0] == 200
    status, told = await side.post("complete", "ada", **word, result="it went well")
    assert (status, told["task"]["state"], told["task"]["result"]) == (
        200,
        "succeeded",
        "it went well",
    )
    status, told = await side.get(f"?id={quote('x/a#1', safe='')}&id=b")
    assert [one["state"] for one in told["tasks"]] == ["succeeded", "ready"]
    authors = [side.facts.receive_nowait().by for _ in range(5)]  # type: ignore[union-attr]
    assert authors == ["token:boss"] * 2 + ["token:ada"] * 3


async def test_reading(side: TaskSide) -> None:
    await side.post("add", **AB)
    assert [one["id"] for one in (await side.get("?state=blocked&limit=5"))[1]["tasks"]] == ["b"]
    [urgent] = (await side.get("/next?limit=3&capability=gpu"))[1]["tasks"]
    assert (urgent["id"], urgent["score"]) == ("x/a#1", pytest.approx(0.29, abs=0.01))
    await side.post("claim", agent="ada")
    told = (await side.get("/assigned?agent=ada&agent=bob"))[1]["agents"]
    assert {agent: [one["id"] for one in held] for agent, held in told.items()} == {
        "ada": ["x/a#1"],
        "bob": [],
    }
    assert (await side.get("/assigned?agent=ada", "ada"))[0] == 200
    for path, status in (
        ("?limit=x", 400),
        ("?limit=0", 400),
        ("?limits=5", 400),
        ("?state=odd", 400),
        ("?id=zed", 404),
        ("?after=zed", 404),
        ("/explode", 404),
        ("/claim", 404),
    ):
        got, told = await side.get(path)
        assert (got, "message" in told) == (status, True), path


@pytest.mark.parametrize(
    ("token", "operation", "form", "status"),
    [
        ("boss", "add", {"tasks": [{"id": "x", "title": "X"}]}, 200),
        ("root", "add", {"tasks": [{"id": "x", "title": "X"}]}, 200),
        ("reader", "add", {"tasks": [{"id": "x", "title": "X"}]}, 403),
        ("ada", "add", {"tasks": [{"id": "x", "title": "X"}]}, 403),
        ("ops", "cancel", {"tasks": ["a"]}, 403),
        ("ada", "cancel", {"tasks": ["a"]}, 403),
        ("ada", "claim", {"agent": "ada"}, 200),
        ("ada", "claim", {"agent": "bob"}, 403),
        ("all", "claim", {"agent": "bob"}, 200),
        ("reader", "claim", {"agent": "ada"}, 403),
        ("ada", "complete", {"task": "a"}, 403),
        ("ada", "complete", {"task": "a", "agent": "ada"}, 400),
        ("ada", "complete", {"task": "a", "agent": "ada", "fence": 7}, 409),
        ("boss", "complete", {"task": "a"}, 200),
        ("boss", "complete", {"task": "zed"}, 404),
        ("boss", "complete", {"task": "a", "agnet": "ada"}, 400),
        ("boss", "link", {"edges": [["a", "a"]]}, 409),
        ("boss", "explode", {}, 404),
        ("boss", "add", {"tasks": [{"id": "x", "title": "X", "deadline": LATEST}]}, 400),
    ],
)
async def test_the_scope_decides(
    side: TaskSide, token: str, operation: str, form: dict[str, Any], status: int
) -> None:
    await side.post("add", tasks=[{"id": "a", "title": "A"}])
    got, told = await side.post(operation, token, **form)
    assert got == status, told
    if status != 200:
        assert (await side.store.tasks([TaskId("a")]))[TaskId("a")].state is TaskState.READY


async def test_nobody_is_told_anything_without_a_token(side: TaskSide) -> None:
    for method, path in (("GET", TASKS), ("GET", f"{TASKS}/next"), ("POST", f"{TASKS}/claim")):
        status, _ = await side.ask(method, path, headers={"authorization": "Bearer cust_x_y"})
        assert status == 401


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "x" * 301])
async def test_what_is_no_name_is_the_callers_mistake(side: TaskSide, name: str) -> None:
    for operation, form in (
        ("complete", {"task": name}),
        ("extend", {"task": "a", "agent": name}),
        ("cancel", {"tasks": [name]}),
        ("claim", {"agent": name}),
        ("claim", {"agent": "ada", "key": name}),
    ):
        status, told = await side.post(operation, **form)
        assert (status, told["error"]) == (400, "malformed"), (operation, told)
    asked = quote(name)
    for path in (f"{TASKS}?after={asked}", f"{TASKS}?agent={asked}"):
        status, told = await side.ask("GET", path, headers=bearer("boss"))
        assert (status, told["error"]) == (400, "malformed"), path


async def test_a_circle_is_named_and_a_store_that_is_away_is_to_be_asked_again(
    side: TaskSide,
) -> None:
    circle = [{"id": a, "title": a, "depends_on": [b]} for a, b in ("ab", "bc", "ca")]
    status, told = await side.post("add", tasks=circle)
    assert (status, told["error"], told["path"]) == (409, "cycle", ["a", "b", "c", "a"])
    for body in (b"[]", b"{", b"\xff"):
        status, told = await side.ask("POST", f"{TASKS}/add", content=body, headers=bearer("boss"))
        assert (status, told["error"]) == (400, "malformed")
    side.store.fail_with(StoreUnavailable("gone"))
    async with side.client() as client:
        answer = await client.get(TASKS, headers=bearer("reader"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


# the client


def client_of(side: TaskSide, agent: str = "ada", **more: Any) -> Client:
    return Client(agent, url=side.url, token=f"cust_{agent}_secret-{agent}", environ={}, **more)


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    return await trio.to_thread.run_sync(call, *args)


async def test_the_client_claims_extends_and_ends(side: TaskSide) -> None:
    await side.post("add", **AB)
    await side.post("add", tasks=[{"id": "c", "title": "C", "capabilities": ["gpu"]}])
    client = client_of(side)
    [work] = await in_thread(client.claim_tasks, 5)
    assert (work.task, work.title, work.attempt) == ("x/a#1", "A", 1)
    assert await in_thread(client.extend_task, work, 30.0)
    assert await in_thread(client.complete_task, work, "done")
    assert await in_thread(client.complete_task, work, "done")
    found = await in_thread(client.claim_tasks, 5, ["gpu"])
    assert sorted(one.task for one in found) == ["b", "c"]
    assert await in_thread(client.fail_task, found[0], "no", "permanent")
    assert await in_thread(client.claim_tasks) == []
    assert (client.failures, client.trouble) == (0, "")


async def test_the_client_is_told_that_its_claim_was_lost(side: TaskSide) -> None:
    await side.post("add", tasks=[{"id": "a", "title": "A"}])
    [work] = await in_thread(client_of(side).claim_tasks)
    await side.post("cancel", tasks=["a"])
    client = client_of(side)
    assert not await in_thread(client.complete_task, work)
    assert "not yours any more (cancelled): it is cancelled" in client.trouble
    with pytest.raises(TaskNotDone) as caught:
        await in_thread(client_of(side, strict=True).complete_task, work)
    assert caught.value.why == "lost"


async def test_a_claim_whose_answer_was_lost_is_asked_for_again_and_brings_the_same(
    side: TaskSide,
) -> None:
    """The daemon has claimed, and cannot say so: the client asks again by its key."""
    await side.post("add", tasks=[{"id": "a", "title": "A"}, {"id": "b", "title": "B"}])
    side.lost = 1
    client = client_of(side)
    found = await in_thread(client.claim_tasks)
    assert [work.task for work in found] == ["a"]
    assert (await side.store.tasks([TaskId("b")]))[TaskId("b")].state is TaskState.READY


async def test_the_client_never_raises_unless_it_is_strict(side: TaskSide) -> None:
    nowhere = Client("ada", environ={})
    assert nowhere.claim_tasks() == []
    assert "CUSTOSD_URL" in nowhere.trouble
    wrong = Client("ada", url=side.url, token="cust_ada_wrong", environ={})
    assert await in_thread(wrong.claim_tasks) == []
    assert wrong.failures == 1
