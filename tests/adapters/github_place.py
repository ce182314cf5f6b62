"""GitHub, as far as its REST answers go, over a real socket; and its faults, as a test says."""

import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.adapters.http_place import Answer, Asked, Place, Stream, place, said

START_UTC = datetime(2026, 5, 4, 12, tzinfo=UTC)
SHA = "a3f1c09be4d25867f0a1b2c3d4e5f60718293a4b"


def stamp(at_utc: datetime) -> str:
    return at_utc.strftime("%Y-%m-%dT%H:%M:%SZ")


def pull_form(number: int, minute: int = 0, **more: Any) -> dict[str, Any]:
    """A pull request as GitHub tells it, shortened to what anybody reads, and some more."""
    merged = more.pop("merged", False)
    at = stamp(START_UTC + timedelta(minutes=minute))
    return {
        "id": 9_000 + number,
        "node_id": "PR_kwDO",
        "number": number,
        "state": "closed" if merged or more.pop("closed", False) else "open",
        "locked": False,
        "title": more.pop("title", f"Change {number}"),
        "body": more.pop("body", None),
        "user": {"login": "ada", "id": 1, "type": "User"},
        "labels": [],
        "html_url": f"https://github.com/ada/engine/pull/{number}",
        "created_at": stamp(START_UTC),
        "updated_at": at,
        "closed_at": at if merged else None,
        "merged_at": at if merged else None,
        "draft": False,
        "head": {
            "label": "ada:work",
            "ref": more.pop("branch", f"work-{number}"),
            "sha": more.pop("sha", f"{number:040x}"),
            "user": None,
            "repo": None,
        },
        "base": {
            "label": "ada:main",
            "ref": more.pop("base", "main"),
            "sha": SHA,
            "repo": about_form(),
        },
        "author_association": "OWNER",
        "auto_merge": None,
    } | more


def issue_form(number: int, minute: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": 8_000 + number,
        "number": number,
        "state": "open",
        "title": f"Trouble {number}",
        "body": "It is broken.",
        "user": {"login": "bob"},
        "html_url": f"https://github.com/ada/engine/issues/{number}",
        "updated_at": stamp(START_UTC + timedelta(minutes=minute)),
    } | more


def commit_form(sha: str, minute: int = 0, message: str = "Change it") -> dict[str, Any]:
    who = {
        "name": "Ada",
        "email": "ada@example.org",
        "date": stamp(START_UTC + timedelta(minutes=minute)),
    }
    return {
        "sha": sha,
        "commit": {"author": who, "committer": who, "message": message, "comment_count": 0},
        "html_url": f"https://github.com/ada/engine/commit/{sha}",
        "author": None,
        "parents": [],
    }


def check_form(number: int, sha: str = SHA, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "name": f"build {number}",
        "head_sha": sha,
        "status": "completed",
        "conclusion": "success",
        "started_at": stamp(START_UTC),
        "completed_at": stamp(START_UTC + timedelta(minutes=1)),
        "html_url": f"https://github.com/ada/engine/runs/{number}",
        "check_suite": {"id": 5, "head_branch": "work"},
        "app": {"slug": "actions"},
    } | more


def about_form(name: str = "ada/engine", id_: int = 77) -> dict[str, Any]:
    return {"id": id_, "full_name": name, "private": False, "default_branch": "main"}


@dataclass
class GitHubPlace:
    """Serves one repository, newest first, `per_page` at a time; counts what costs something.

    `in_order`: lists come as they stand, as commits do by their descent.

    `faults` by a part of the target: each is used once, before all else. `asked` counts
    targets without their query; `charged` what counts against the limit of `limit` requests.
    """

    name: str = "ada/engine"
    per_page: int = 100
    limit: int = 5_000
    charged: int = 0
    resets_at: datetime = START_UTC + timedelta(hours=1)
    now_utc: datetime = START_UTC + timedelta(minutes=30)
    about: dict[str, Any] = field(default_factory=about_form)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    faults: list[tuple[str, Answer]] = field(default_factory=list)
    lasting: list[tuple[str, Answer]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    unchanged: int = 0
    base: str = ""
    in_order: bool = False

    async def answer(self, asked: Asked, stream: Stream) -> bool:
        path = urlsplit(asked.target).path
        self.asked[path] += 1
        for fault in self.faults:
            if fault[0] in asked.target:
                self.faults.remove(fault)
                return await fault[1](asked, stream)
        for part, answer in self.lasting:
            if part in asked.target:
                return await answer(asked, stream)
        await stream.send_all(self._said(asked, path))
        return True

    def _said(self, asked: Asked, path: str) -> bytes:
        query = parse_qs(urlsplit(asked.target).query)
        page = int(query.get("page", ["1"])[0])
        found = self._found(path)
        if found is None:
            self.charged += 1
            return said(404, b'{"message": "Not Found"}', *self._limits())
        form, link = found, ""
        if isinstance(found, list):
            newest = found if self.in_order else sorted(found, key=_moment, reverse=True)
            start = (page - 1) * self.per_page
            form = newest[start : start + self.per_page]
            if start + self.per_page < len(newest):
                link = self._link(path, page)
        body = json.dumps(form).encode()
        etag = f'W/"{hashlib.sha256(body).hexdigest()}"'
        if asked.headers.get("if-none-match") == etag:
            self.unchanged += 1
            return said(304, b"", f"ETag: {etag}", *self._limits())
        self.charged += 1
        headers = [f"ETag: {etag}", "Content-Type: application/json", *self._limits()]
        return said(200, body, *headers, *([f"Link: {link}"] if link else []))

    def _link(self, path: str, page: int) -> str:
        def to(number: int, rel: str) -> str:
            return f'<{self.base}{path}?page={number}&x=1,2>; rel="{rel}"'

        return ", ".join([to(max(page - 1, 1), "prev"), to(page + 1, "next"), to(99, "last")])

    def _limits(self) -> list[str]:
        reset = int(self.resets_at.timestamp())
        left = max(self.limit - self.charged, 0)
        return [
            f"X-RateLimit-Limit: {self.limit}",
            f"X-RateLimit-Remaining: {left}",
            f"X-RateLimit-Reset: {reset}",
            f"Date: {self.now_utc.strftime('%a, %d %b %Y %H:%M:%S GMT')}",
        ]

    def _found(self, path: str) -> Any:
        for root in (f"/repos/{self.name}", f"/repositories/{self.about['id']}"):
            if path == root:
                return self.about
            if path.startswith(f"{root}/commits/") and path.endswith("/check-runs"):
                sha = path.removesuffix("/check-runs").rsplit("/", 1)[-1]
                runs = self.checks.get(sha)
                return None if runs is None else {"total_count": len(runs), "check_runs": runs}
            lists = {"pulls": self.pulls, "issues": self.issues, "commits": self.commits}
            for sort, forms in lists.items():
                if path == f"{root}/{sort}":
                    return forms
        return None


def _moment(form: dict[str, Any]) -> str:
    return str(form.get("updated_at") or form["commit"]["committer"]["date"])


def refusing(status: int, *headers: str, body: bytes = b"{}") -> Answer:
    """Answers so, always."""

    async def answer(_asked: Asked, stream: Stream) -> bool:
        await stream.send_all(said(status, body, *headers))
        return True

    return answer


@asynccontextmanager
async def github_place(
    change: Callable[[GitHubPlace], None] = lambda _it: None,
) -> AsyncGenerator[tuple[GitHubPlace, Place]]:
    """A GitHub for the block, at `place.url`."""
    made = GitHubPlace()
    change(made)
    async with place(made.answer) as where:
        made.base = where.url
        yield made, where
