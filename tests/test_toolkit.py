"""The daemon does concurrency by custosd.flow alone: no second semaphore, retry or gather.

What looks like one and is none stands in `ALLOWED`, with the reason.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from custosd.flow.monitor import Kind

DAEMON = Path(__file__).resolve().parent.parent / "daemon" / "custosd"
PLACES = (
    "services", "adapters", "api", "cli", "app.py", "acting.py", "local.py", "client.py"
)  # fmt: skip

PRIMITIVES = {
    "CapacityLimiter": "a limit: flow.adaptive (Fixed), flow.bounded, flow.threads",
    "Semaphore": "a limit: flow.adaptive (Fixed), flow.bounded",
    "BoundedSemaphore": "a limit: flow.adaptive (Fixed), flow.bounded",
    "gather": "a gather: flow.bounded.for_each, flow.parallel",
    "as_completed": "a gather: flow.bounded",
    "open_memory_channel": "a queue: flow.work_queue, flow.bus, flow.batcher",
    "OrderedDict": "a cache: flow.cache",
    "lru_cache": "a cache: flow.cache",
    "cache": "a cache: flow.cache",
    "random": "jitter: flow.retry, flow.schedule",
    "fsync": "a durable file: flow.file_writer",
    "fdatasync": "a durable file: flow.file_writer",
    "mkstemp": "a file written whole: flow.file_writer",
    "NamedTemporaryFile": "a file written whole: flow.file_writer",
    "rename": "a file written whole: flow.file_writer",
    "replace": "a file written whole: flow.file_writer",
    "link": "a file written whole: flow.file_writer",
}
"""What a module of trio's, asyncio's, functools' ... has of it, and what to use in its place."""

OWNERS = {"trio", "asyncio", "functools", "collections", "random", "os", "tempfile"}

FAR_SIDE = "on the asyncio side of the database's bridge, where trio's constructs do not work"

MOVED = "a database's folder, made by initdb beside its place: moved, and not written"

CLIENT = "an agent's side, which is one file and imports nothing but the standard library"

STATEMENTS = "adapters/postgres/task_queries.py"

STATEMENT = "the text of a statement, of the few that settings and powers of two make; never loaded"

ALLOWED = {
    ("adapters/channels/inbox_folder.py", "InboxFolder._move", "rename"): (
        "a letter that was claimed in vain goes back: moved, and not written"
    ),
    ("adapters/postgres/binaries.py", "copied", "rename"): "a folder of programs, copied whole",
    ("adapters/postgres/data_directory.py", "_moved", "fsync"): MOVED,
    ("adapters/postgres/data_directory.py", "_moved", "rename"): MOVED,
    ("adapters/postgres/processes.py", "Journal.open", "rename"): (
        "the server's own log is put aside, and appended to by the server"
    ),
    ("client.py", "_acknowledge", "fsync"): CLIENT,
    ("client.py", "_acknowledge", "rename"): CLIENT,
    ("client.py", "_claimed", "rename"): CLIENT,
    ("adapters/postgres/pool.py", "Pool.__init__", "Semaphore"): FAR_SIDE,
    ("adapters/postgres/pool.py", "Pool.close", "gather"): FAR_SIDE,
    ("adapters/postgres/pool.py", "Pool._dial", "gather"): FAR_SIDE,
    (STATEMENTS, "claim", "lru_cache"): STATEMENT,
    (STATEMENTS, "expire", "lru_cache"): STATEMENT,
    (STATEMENTS, "fail", "lru_cache"): STATEMENT,
    (STATEMENTS, "find_tasks", "lru_cache"): STATEMENT,
    (STATEMENTS, "next_tasks", "lru_cache"): STATEMENT,
    (STATEMENTS, "release", "lru_cache"): STATEMENT,
    ("adapters/judges/llm.py", "LlmJudge.__init__", "OrderedDict"): (
        "the last verdict on each run, by the least recent: told to it, and never loaded"
    ),
    ("services/conductor.py", "Conductor", "OrderedDict"): (
        "the last answers on pairs, by the least recent: what is there already decides who is"
        " asked in a sweep, so it is looked up and never loaded"
    ),
    ("adapters/models/guarded.py", "GuardedModel._attempt", "retry"): (
        "back to the door that shut meanwhile: nobody was asked"
    ),
    ("adapters/postgres/migrations.py", "migrate", "gather"): (
        "one migration after the other, each with a ticker beside it"
    ),
    ("api/serving.py", "serve_api", "gather"): "a door for each address, open until the end",
    ("services/alerting.py", "_Alerting.run", "gather"): "the parts of a service",
    ("services/liveness.py", "LivenessWatch.run", "gather"): "the parts of a service",
    ("services/liveness.py", "LivenessWatch._store_lives", "retry"): (
        "halves what was refused; nothing is asked twice"
    ),
    (
        "services/purse.py",
        "Purse._save",
        "retry",
    ): "halves what was refused; nothing is asked twice",
    ("services/restarter.py", "RestarterPorts", "random"): (
        "handed to the decision in core, which says when an agent is restarted"
    ),
    ("services/self_watch.py", "answer_dump_requests", "retry"): (
        "the next round answers the next request"
    ),
    ("services/steering_dispatch.py", "Dispatch.poll_due", "gather"): (
        "each agent's is begun at its own time, by the turn, which does not wait for it"
    ),
    ("app.py", "supervise_fleet", "open_memory_channel"): (
        "facts and entries between services: their ends are handed around, and closing them is"
        " how a drain flows on"
    ),
    (
        "adapters/scripted_process_watch.py",
        "ScriptedProcessWatch.__init__",
        "open_memory_channel",
    ): ("a script for tests"),
}
"""(file, function, what) -> why it may stand there."""


def found_in(source: str) -> Iterator[tuple[str, str]]:
    """(function, what): every pattern in a module that is a construct's business."""
    tree = ast.parse(source)
    imported = _imported(tree)
    yield from _found(tree, "", imported)


def _imported(tree: ast.Module) -> dict[str, str]:
    """What a module's own names stand for: "trio" or "trio.Semaphore"."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name.asname or name.name: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return names


def _found(node: ast.AST, inside: str, imported: dict[str, str]) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        name = inside
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{child.name}".lstrip(".")
        yield from ((name, what) for what in _what(child, imported))
        yield from _found(child, name, imported)


def _what(node: ast.AST, imported: dict[str, str]) -> Iterator[str]:
    match node:
        case ast.Call(func=maker) | ast.keyword(arg="default_factory", value=maker) if (
            primitive := _primitive(_unspecialised(maker), imported)
        ):
            yield primitive
        case ast.Call(keywords=keywords):
            if _moves_a_path(node):
                yield "rename"
            if any(keyword.arg in ("limiter", "abandon_on_cancel") for keyword in keywords):
                yield "limiter"
        case ast.Attribute() if _primitive(node, imported) == "random":
            yield "random"
        case ast.While() | ast.For() | ast.AsyncFor():
            if _repeats_what_failed(node):
                yield "retry"
            # One that waits for clients, and serves each, is a door and no gather.
            for_items = isinstance(node, ast.For)
            if for_items and any(_is_call(one, "start_soon") for one in _steps(node)):
                yield "gather"
    if isinstance(node, ast.FunctionDef) and ast.unparse(node.args):
        # Of a function without arguments it is a constant, and no cache.
        for one in node.decorator_list:
            if (what := _primitive(one, imported)) is not None:
                yield what


def _unspecialised(node: ast.expr) -> ast.expr:
    """`X` of `X[int]`."""
    return node.value if isinstance(node, ast.Subscript) else node


def _moves_a_path(call: ast.Call) -> bool:
    """`path.rename(x)` and `path.replace(x)`; of text, times and values it has another form."""
    return (
        (_is_call(call, "rename") or _is_call(call, "replace"))
        and len(call.args) == 1
        and not call.keywords
    )


def _primitive(node: ast.expr, imported: dict[str, str]) -> str | None:
    match node:
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            whole = f"{imported.get(module)}.{name}"
        case ast.Name(id=name):
            whole = imported.get(name, "")
        case _:
            return None
    owner, _, primitive = whole.rpartition(".")
    return primitive if owner in OWNERS and primitive in PRIMITIVES else None


def _repeats_what_failed(loop: ast.While | ast.For | ast.AsyncFor) -> bool:
    """Whether an error of something awaited in the loop leads to its next round.

    Of a loop over items that is none: the next round is about the next item.
    """
    match loop:
        case ast.While():
            pass
        case ast.For(iter=ast.Call(func=ast.Name(id="range" | "count"))):
            pass
        case _:
            return False
    return any(
        isinstance(one, ast.Try)
        and any(isinstance(step, ast.Await) for part in one.body for step in _steps(part))
        and any(not _leaves(handler.body) for handler in one.handlers)
        for one in _steps(loop)
    )


def _leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Raise | ast.Return | ast.Break)


def _steps(node: ast.AST) -> Iterator[ast.AST]:
    """All below a node, itself included, but what is in functions of its own."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _steps(child)


def _is_call(node: ast.AST, name: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
    )


def modules() -> Iterator[Path]:
    for place in PLACES:
        path = DAEMON / place
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def test_the_daemon_has_no_limit_retry_gather_queue_or_cache_beside_flow() -> None:
    found = {
        (str(path.relative_to(DAEMON)), function, what)
        for path in modules()
        for function, what in found_in(path.read_text())
    }
    more = sorted(found - ALLOWED.keys())
    assert not more, (
        "use the construct of custosd.flow, or say in ALLOWED why it is none of its business:\n"
        + "\n".join(f"{place}: {what} ({PRIMITIVES.get(what, what)})" for *place, what in more)
    )
    assert not sorted(ALLOWED.keys() - found), "these are gone: take them out of ALLOWED"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import trio\ndef f(): trio.CapacityLimiter(2)", "CapacityLimiter"),
        ("import trio as t\ndef f(): t.CapacityLimiter(2)", "CapacityLimiter"),
        ("from random import random as r\ndef f(): r()", "random"),
        ("from trio import Semaphore as S\ndef f(): S(2)", "Semaphore"),
        ("import trio\ndef f(): trio.open_memory_channel[int](2)", "open_memory_channel"),
        ("from collections import OrderedDict\ndef f(): OrderedDict()", "OrderedDict"),
        ("import trio\nclass f: x = field(default_factory=trio.Semaphore[A])", "Semaphore"),
        ("from functools import cache\n@cache\ndef f(x): ...", "cache"),
        ("import random\ndef f(): return random.random()", "random"),
        ("import os\ndef f(): os.fsync(3)", "fsync"),
        ("from os import replace\ndef f(): replace(a, b)", "replace"),
        ("import os\ndef f(): os.rename(a, b, src_dir_fd=3)", "rename"),
        ("import tempfile\ndef f(): tempfile.mkstemp()", "mkstemp"),
        ("def f(path): path.replace(other)", "rename"),
        ("def f(path): path.rename(other)", "rename"),
        ("import trio\nasync def f(): await trio.to_thread.run_sync(g, limiter=x)", "limiter"),
        ("async def f(n):\n for i in x:\n  n.start_soon(g, i)", "gather"),
        (
            "async def f():\n while True:\n  try:\n   await g()\n  except E:\n   await sleep(1)",
            "retry",
        ),
        (
            "async def f():\n for _ in range(3):\n  try:\n   await g()\n  except E:\n   continue",
            "retry",
        ),
    ],
)
def test_each_pattern_is_found(source: str, what: str) -> None:
    assert ("f", what) in set(found_in(source))


@pytest.mark.parametrize(
    "source",
    [
        "async def f():\n while True:\n  await trio.sleep(1)\n  await g()",
        "async def f():\n for x in y:\n  try:\n   await g(x)\n  except OSError:\n   pass",
        "async def f():\n while True:\n  try:\n   await g()\n  except OSError:\n   return",
        "async def f(n):\n n.start_soon(g)",
        "async def f(n):\n while True:\n  n.start_soon(g, await accept())",
        "from functools import cache\n@cache\ndef f(): ...",
        "def f():\n self.random()",
        "def f(text): text.replace(a, b)",
        "def f(at): at.replace(tzinfo=UTC)",
        "from dataclasses import replace\ndef f(x): replace(x, a=1)",
    ],
)
def test_what_is_no_pattern_is_not_taken_for_one(source: str) -> None:
    assert not list(found_in(source))


def test_every_kind_of_operation_occurs_in_the_daemon() -> None:
    text = "".join(path.read_text() for path in modules())
    assert {kind.name for kind in Kind if f"Kind.{kind.name}, " not in text} == set()


def test_the_page_says_which_constructs_the_daemon_does_not_use_yet() -> None:
    page = (DAEMON.parent / "FLOW.md").read_text()
    examples = "\n".join(line[4:] for line in page.splitlines() if line.startswith(">>> "))
    shown = set(_imported(ast.parse(_imports(examples))).values())
    used = {
        whole
        for path in DAEMON.rglob("*.py")
        if path.parent.name != "flow"
        for whole in _imported(ast.parse(path.read_text())).values()
    }
    begin, end = page.index("No service uses yet"), page.index("Each contract is in")
    told = set(re.findall(r"`(\w+\.\w+)`", page[begin:end]))
    unused = {name.removeprefix("custosd.flow.") for name in shown - used}
    assert told == unused, "FLOW.md names what nobody but its examples and tests uses"


def _imports(examples: str) -> str:
    return "\n".join(
        line for line in examples.splitlines() if line.startswith("from custosd.flow.")
    )
