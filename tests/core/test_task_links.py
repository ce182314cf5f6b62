"""What is written on work says to which tasks it belongs, and never too much of it."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custosd.core.forge import MOST_LINKS, ForgeWork, Link, LinkHow, WorkKind, WorkState
from custosd.core.task_links import (
    belonging,
    links_of_commit,
    links_of_issue,
    links_of_pull_request,
)
from custosd.core.tasks import TaskId, is_task_id

NOW = datetime(2026, 5, 4, tzinfo=UTC)


def work(*links: Link) -> ForgeWork:
    return ForgeWork("github:a/b", WorkKind.PULL_REQUEST, "1", WorkState.OPEN, NOW, links=links)


def found(links: tuple[Link, ...], *known: str) -> list[tuple[str, LinkHow, bool]]:
    tasks = set(map(TaskId, known))
    return [(link.task, link.how, link.closes) for link in belonging(work(*links), tasks)]


@pytest.mark.parametrize(
    ("branch", "task"),
    [
        ("T-12", "T-12"),
        ("task/T-12", "T-12"),
        ("refs/heads/ada/T-12", "T-12"),
        ("feature/T-12-fix-the-parser", "T-12"),
        ("ada/parser/7", "parser/7"),
        ("T-12_x", "T-12"),
        ("T-12.x", "T-12"),
    ],
)
def test_branches_name_tasks(branch: str, task: str) -> None:
    links = links_of_pull_request(branch, "", "")
    assert found(links, task) == [(task, LinkHow.BRANCH, True)]


@pytest.mark.parametrize("branch", ["fix-the-parser", "fix/the-parser", "T-12x", "xT-12", "T12"])
def test_branches_name_no_others(branch: str) -> None:
    assert found(links_of_pull_request(branch, "", ""), "fix", "T-12", "T-1", "the") == []


def test_the_longest_name_in_a_branch_counts() -> None:
    links = links_of_pull_request("T-1-2-x", "", "")
    assert [task for task, _, _ in found(links, "T-1", "T-1-2")] == ["T-1-2"]
    assert [task for task, _, _ in found(links, "T-1")] == ["T-1"]


@pytest.mark.parametrize(
    ("title", "task"),
    [("[T-1] Fix", "T-1"), ("Fix [task-T-1]", "T-1"), ("[task-1] x", "task-1"), ("[a][b] c", "b")],
)
def test_titles_name_tasks_in_brackets(title: str, task: str) -> None:
    links = links_of_pull_request("", title, "")
    assert found(links, task) == [(task, LinkHow.TITLE, True)]
    assert found(links_of_issue(title, ""), task) == [(task, LinkHow.TITLE, False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fix it\n\nTask: T-1", [("T-1", LinkHow.TRAILER, False)]),
        ("Fix it\n\ntasks: T-1, T-2", [("T-1", LinkHow.TRAILER, False),
                                       ("T-2", LinkHow.TRAILER, False)]),
        ("Fix it\n\nCloses-Task: T-1", [("T-1", LinkHow.TRAILER, True)]),
        ("Fix it: closes task T-1.", [("T-1", LinkHow.BODY, True)]),
        ("Fixes task `T-1`", [("T-1", LinkHow.BODY, True)]),
        ("resolved task T-1", [("T-1", LinkHow.BODY, True)]),
        ("Task: T-1\nCloses task T-1", [("T-1", LinkHow.TRAILER, True)]),
        ("see Task: T-1", []),
        ("closes T-1", []),
        ("encloses task T-1x", []),
        ("Task:", []),
    ],
)  # fmt: skip
def test_messages_name_tasks(text: str, expected: list[tuple[str, LinkHow, bool]]) -> None:
    assert found(links_of_commit(text), "T-1", "T-2") == expected


def test_a_pull_request_ends_what_its_body_names() -> None:
    links = links_of_pull_request("x", "y", "Why.\n\nTask: T-1\nCloses task T-2")
    assert found(links, "T-1", "T-2") == [
        ("T-1", LinkHow.TRAILER, True),
        ("T-2", LinkHow.BODY, True),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "```\nTask: T-1\n```",
        "~~~ text\nTask: T-1\n```\nTask: T-1\n~~~",
        "````\n```\nTask: T-1\n````",
        "```\nTask: T-1",
        "<!-- Task: T-1 -->",
        "<!--\nName it:\nTask: T-1\n-->",
        "<!-- Task: T-1",
        "For example:\n\n    Task: T-1\n\tcloses task T-1",
        "> Task: T-1",
    ],
)
def test_examples_and_templates_end_nothing(body: str) -> None:
    assert found(links_of_pull_request("x", "y", body), "T-1") == []
    after = f"{body}\n" if "-->" in body or body.endswith(("```", "~~~", "T-1\n````")) else ""
    if after:
        links = links_of_pull_request("x", "y", f"{after}Task: T-2")
        assert found(links, "T-1", "T-2") == [("T-2", LinkHow.TRAILER, True)]


@given(st.text(), st.text(), st.text())
def test_anything_may_be_written(branch: str, title: str, body: str) -> None:
    links = (
        *links_of_pull_request(branch, title, body),
        *links_of_commit(body),
        *links_of_issue(title, body),
    )
    assert all(is_task_id(link.task) for link in links)


@pytest.mark.parametrize(
    "text",
    [
        "Task: " + "a," * 200_000,
        "closes task " * 100_000,
        "closes" + " " * 500_000,
        "[" * 500_000,
        "[a" * 200_000,
        "a-" * 300_000,
        "a/" * 300_000,
        "Task:a\n" * 200_000,
        "1-" * 100 + "1" * 400_000,
        "<!--" * 100_000,
        "```\n" * 100_000,
    ],
)
def test_long_texts_cost_little(text: str) -> None:
    began = time.process_time()
    for links in (
        links_of_pull_request(text, text, text),
        links_of_commit(text),
        links_of_issue(text, text),
    ):
        assert len(links) <= MOST_LINKS
    assert time.process_time() - began < 1.0
