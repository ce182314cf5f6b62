"""GitHub's own answers and hooks, as they were recorded, served over a real socket.

They come from packages of the npm registry, which are installed and never kept here:
`make recorded`.
"""

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.http_place import Answer, Asked, Stream, place, said

from custosd.adapters.github import GitHubSettings, open_github
from custosd.config.secret import Secret
from custosd.core.forge import ForgeWork, Repository, WorkKind, WorkState, merged
from custosd.ports import ForgePage

MODULES = Path(__file__).parent.parent / "recorded" / "node_modules" / "@octokit"
SCENARIOS = MODULES / "fixtures" / "scenarios" / "api.github.com"
HOOKS = MODULES / "webhooks-examples" / "api.github.com" / "index.json"
AGES_S = 3650 * 86_400.0 * 2

pytestmark = pytest.mark.skipif(
    not HOOKS.exists() or not SCENARIOS.is_dir(),
    reason="no recorded answers: make recorded",
)


def now_utc() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def recorded(scenario: str) -> Answer:
    """Answers as GitHub did in this scenario, from another address."""
    forms = json.loads((SCENARIOS / scenario / "normalized-fixture.json").read_text())

    async def answer(asked: Asked, stream: Stream) -> bool:
        found = [form for form in forms if _is_asked(form, asked)]
        if not found:
            await stream.send_all(said(404, b'{"message": "Not Found"}'))
            return True
        form, here = found[0], f"http://{asked.headers['host']}"
        headers = _headers(form)
        told = [
            f"{name}: {value.replace('https://api.github.com', here)}"
            for name, value in headers.items()
            if name in {"link", "location", "etag", "last-modified"}
            or name.startswith("x-ratelimit")
        ]
        body = json.dumps(form["response"]).encode()
        await stream.send_all(said(form["status"], body, *told))
        return True

    return answer


def _headers(form: dict[str, Any]) -> dict[str, str]:
    headers = form.get("responseHeaders") or form.get("rawHeaders") or form.get("headers") or {}
    if isinstance(headers, list):
        headers = dict(zip(headers[::2], headers[1::2], strict=True))
    return {name.lower(): str(value) for name, value in headers.items()}


def _is_asked(form: dict[str, Any], asked: Asked) -> bool:
    """The first page is asked for with conditions of ours, the others as GitHub said."""
    if form["method"].upper() != asked.method:
        return False
    if form["path"] == asked.target:
        return True
    first = "page=" not in asked.target.replace("per_page=", "")
    return first and form["path"].split("?")[0] == asked.target.split("?")[0]


async def test_recorded_pages_are_followed_to_their_end() -> None:
    repository = Repository("octokit-fixture-org/paginate-issues")
    async with place(recorded("paginate-issues")) as where:
        settings = GitHubSettings(where.url, history_s=AGES_S)
        async with open_github(settings, now_utc) as github:
            works: list[ForgeWork] = []
            cursor, more = "", True
            while more:
                page = await github.page(repository, "issues", cursor)
                works += page.works
                cursor, more = page.cursor, page.more
    assert [work.key for work in works] == [str(number) for number in range(13, 0, -1)]
    assert len(where.asked) == 5
    assert {work.state for work in works} == {WorkState.OPEN}


async def about(scenario: str, repository: Repository) -> ForgePage:
    async with (
        place(recorded(scenario)) as where,
        open_github(GitHubSettings(where.url), now_utc) as github,
    ):
        return await github.page(repository, "about", "")


async def test_a_recorded_renaming_is_followed() -> None:
    repository = Repository("octokit-fixture-org/rename-repository")
    page = await about("rename-repository", repository)
    assert page.moved
    assert page.full_name == "octokit-fixture-org/rename-repository-newname"


async def test_a_recorded_repository_is_known() -> None:
    page = await about("get-repository", Repository("octokit-fixture-org/hello-world"))
    assert page.full_name == "octokit-fixture-org/hello-world"
    assert page.forge_id


def hooks() -> Iterator[tuple[str, dict[str, Any]]]:
    for event in json.loads(HOOKS.read_text()):
        for form in event["examples"]:
            yield event["name"], form


async def test_every_recorded_hook_is_taken(tmp_path: Path) -> None:
    """All events that GitHub has: works of those that are about works, nothing of the others."""
    file = tmp_path / "secret"
    file.write_text("s")
    file.chmod(0o600)

    def find(name: str, _id: str) -> Repository | None:
        return Repository(name)

    told: Counter[WorkKind] = Counter()
    events: Counter[str] = Counter()
    known: dict[tuple[str, str, str], ForgeWork] = {}
    settings = GitHubSettings("http://127.0.0.1:9", webhook_secret=Secret("x", file))
    async with open_github(settings, now_utc) as github:
        for event, form in hooks():
            body = json.dumps(form).encode()
            signature = hmac.new(b"s", body, hashlib.sha256).hexdigest()
            headers = {
                "x-hub-signature-256": f"sha256={signature}",
                "x-github-delivery": "d",
                "x-github-event": event,
            }
            delivery = await github.delivery(headers, body, find)
            events[event] += 1
            told.update(work.kind for work in delivery.works)
            for work in delivery.works:
                known[work.id] = merged(known.get(work.id, work), work)
    assert len(events) > 40
    assert told[WorkKind.PULL_REQUEST] > 25
    assert told[WorkKind.ISSUE] > 20
    assert told[WorkKind.CHECK] == 9
    assert told[WorkKind.COMMIT] == 2
    assert any(work.landed for work in known.values())
