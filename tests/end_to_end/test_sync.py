"""A merged pull request ends its task and tells its agent, once, through a real daemon."""

import hashlib
import hmac
import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.adapters.github_place import GitHubPlace, about_form, github_place, pull_form, stamp
from tests.end_to_end.daemons import QUICK, Answer, Custosd, ask, custosd

from custosd.cli.exit_codes import NOT_RUNNING, OK

pytestmark = pytest.mark.timeout(180)

KEY = "of a test"

CONFIG = (
    QUICK
    + """
[doors]
listen = "127.0.0.1:0"
[steering]
mode = "act"
[[agent]]
id = "builder"
channel = "inbox"
inbox = "{home}/inbox"
[sync]
interval = "1h"
base_url = "{url}"
token_file = "{home}/token"
webhook_secret_file = "{home}/key"
[[sync.repository]]
name = "ada/engine"
"""
)


@pytest.fixture
def config(home: Path) -> Path:
    for name, text in (("token", "t0ken"), ("key", KEY)):
        (home / name).write_text(text)
        (home / name).chmod(0o600)
    return home / "custosd.toml"


def write(config: Path, home: Path, url: str) -> None:
    config.write_text(CONFIG.format(home=home, url=url))


async def told(config: Path, home: Path, *words: str, code: int = OK) -> Answer:
    answer = await ask("--config", config, *words, home=home)
    assert answer.code == code, answer.out + answer.err
    return answer


def merge(it: GitHubPlace, title: str = "Fix the parser") -> dict[str, Any]:
    """Merge pull request 7, of the branch T-1-fix, at this moment."""
    at = stamp(datetime.now(UTC) + timedelta(seconds=2))
    form = pull_form(7, branch="T-1-fix", title=title, merged=True)
    form |= {"merged_at": at, "updated_at": at}
    it.pulls[:] = [form]
    return form


async def hook(daemon: Custosd, form: dict[str, Any], key: str = KEY) -> int:
    body = json.dumps({"repository": about_form(), "pull_request": form}).encode()
    signature = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-Hub-Signature-256": f"sha256={signature}",
        "X-GitHub-Delivery": f"d-{signature[:8]}",
        "X-GitHub-Event": "pull_request",
    }
    opened = await daemon.out.event("http.opened")
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        url = f"{opened['addresses'][0]}/api/v1/webhooks/github"
        return (await client.post(url, headers=headers, content=body)).status_code


async def test_a_merge_ends_its_task_once_over_a_kill(config: Path, home: Path) -> None:
    async with github_place() as (github, where):
        write(config, home, where.url)
        github.pulls.append(pull_form(7, branch="T-1-fix"))
        await told(config, home, "sync", "now", code=NOT_RUNNING)
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            await daemon.out.event("forges.swept", synced=1)
            assert where.asked[0].headers["authorization"] == "Bearer t0ken"
            await told(config, home, "task", "add", "T-1", "Fix the parser")
            await told(config, home, "task", "claim", "builder", "--lease", "1h")
            since = len(daemon.out.lines)
            form = merge(github)
            assert await hook(daemon, form, "forged") == 401
            await told(config, home, "sync", "now")
            landed = await daemon.out.event("work.landed", since=since)
            assert (landed["task"], landed["agent"], landed["told"]) == ("T-1", "builder", "queued")
            task = (await told(config, home, "task", "show", "T-1", "--json")).json
            task = task[0] if isinstance(task, list) else task
            assert task["state"] == "succeeded"
            await daemon.end(signal.SIGKILL)
        async with custosd("--config", config, "run", home=home) as daemon:
            await daemon.ready()
            swept = await daemon.out.event("forges.swept")
            assert (swept["changed"], swept["unchanged"]) == (0, swept["pages"])
            assert await hook(daemon, form) == 202
            assert await hook(daemon, form) == 409
            assert await hook(daemon, merge(github, "[T-1] Fix the parser at last")) == 202
            await daemon.out.event("webhook.taken", changed=1)
            shown = (await told(config, home, "sync", "show", "--json")).json
            [closing] = shown["closings"]
            assert (closing["task"], closing["told"]) == ("T-1", "queued")
            [record] = shown["repositories"]
            assert (record["outcome"], record["full_name"]) == ("synced", "ada/engine")
            words = (await told(config, home, "sync", "show")).out
            assert "github:ada/engine  synced" in words
            assert "task T-1 done" in words
            assert daemon.out.found("work.landed") == []
