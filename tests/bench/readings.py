"""Labelled runs of research sets in the normal form, for measuring detectors.

Plain functions, one a set: `read_x(folder)` takes the folder of all shared transcripts and
returns `LabelledRun`s. What a set does not say is None. These sets are not live formats, so
they have no adapters; coding runs go through the same readings of commands and errors.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from custosd.adapters.transcripts import aider, swe_agent
from custosd.adapters.transcripts.editor import read_editor, tool_outcome
from custosd.core.commands import read_command
from custosd.core.effects import error_class, outcome, text_of
from custosd.core.transcript import (
    Acted,
    Asked,
    Ended,
    ErrorClass,
    Opened,
    Result,
    RunEnd,
    Said,
    Step,
    StepKind,
    Text,
    TranscriptEvent,
    digest_of,
)


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One run with what is known of how it went.

    `task` groups runs of the same task: split by it. `failed` is the outside judgement (hidden
    tests, reward), `exit` what the harness wrote. `human_labels` is the set's own record;
    its keys are told by the function that read it.
    """

    source: str
    id: str
    task: str
    events: list[TranscriptEvent]
    failed: bool | None = None
    exit: str | None = None
    human_labels: dict[str, Any] = field(default_factory=dict)


def labels(folder: Path) -> dict[str, dict[str, Any]]:
    """The rich labels by path within the folder."""
    with (folder / "labels.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    return {record["path"]: record for record in records}


def _files(folder: Path, name: str, pattern: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((folder / name).glob(pattern)):
        yield f"{name}/{path.name}", path


def _step(
    key: str,
    tool: str,
    args: dict[str, Any],
    observation: str | None,
    thought: str = "",
) -> Step:
    """A call of a shell or of the file editor, by its arguments."""
    shown = observation or ""
    if tool in ("bash", "execute_bash", "run") and "command" in args:
        action = str(args["command"])
        reading = read_command(action)
        result, error = outcome(shown, None, reading.kind)
        kind, verb, files, edits = reading.kind, reading.verb, reading.files, reading.edits
        changes = reading.changes_state
    elif "path" in args:
        call = read_editor(args, observation)
        action = json.dumps(args, sort_keys=True)
        kind, verb, files, edits = call.kind, call.verb, call.files, call.edits
        result, error, changes = call.result, call.error, call.changes_state
    else:
        action = json.dumps(args, sort_keys=True) if args else ""
        kind = {"finish": StepKind.SUBMIT, "think": StepKind.PLAN}.get(tool, StepKind.OTHER)
        verb, files, edits, changes = tool, (), (), False
        result, error = tool_outcome(shown, kind)
    if observation is None:
        result, error = Result.UNANSWERED, None
    return Step(
        key=key,
        kind=kind,
        tool=tool,
        verb=verb,
        action=text_of(action),
        observation=text_of(shown),
        result=result,
        error=error,
        files=files,
        edits=edits,
        changes_state=changes,
        thought=text_of(thought) if thought else None,
    )


# --- dgm: Anthropic messages as a Python literal ----------------------------------------

_TOOL_USE = re.compile(r"<tool_use>\s*(.*?)\s*</tool_use>", re.DOTALL)
_TOOL_NAME = re.compile(r"\{'tool_name': ['\"]?(\w+)['\"]?, 'tool_input': (.*)\}\s*$", re.DOTALL)
_RESULT = "Tool Result: "


def read_dgm(folder: Path) -> list[LabelledRun]:
    """dgm on SWE-bench; `exit` is the label (resolved, unresolved, empty-patch)."""
    known = labels(folder)
    runs = []
    for name, path in _files(folder, "dgm", "*.md"):
        messages = ast.literal_eval(path.read_text(encoding="utf-8").strip())
        result = known.get(name, {}).get("outcome")
        failed = None if result is None else result != "resolved"
        runs.append(
            LabelledRun("dgm", name, path.stem, _read_dgm_messages(messages), failed, result)
        )
    return runs


def _read_dgm_messages(messages: list[dict[str, Any]]) -> list[TranscriptEvent]:
    events: list[TranscriptEvent] = [Opened("", "")]
    call: tuple[str, dict[str, Any]] | None = None
    thought = ""
    for number, message in enumerate(messages):
        content = message["content"]
        text = content if isinstance(content, str) else "\n".join(b["text"] for b in content)
        if message["role"] == "user":
            if call is not None and text.startswith(_RESULT):
                step = _step(str(number), *call, text.removeprefix(_RESULT), thought)
                events.append(Acted("", step))
            else:
                events.append(Asked("", text))
            call = None
            continue
        call = _dgm_call(text)
        thought = _TOOL_USE.sub("", text).strip()
        if call is None:
            events.append(Said("", text, final=True))
    events.append(Ended("", RunEnd.FINISHED))
    return events


def _dgm_call(text: str) -> tuple[str, dict[str, Any]] | None:
    used = _TOOL_USE.search(text)
    named = _TOOL_NAME.match(used[1]) if used else None
    if named is None:
        return None
    try:
        args = ast.literal_eval(named[2])
    except (ValueError, SyntaxError):
        args = {"command": named[2]}
    return named[1], args if isinstance(args, dict) else {}


# --- OpenHands study: steps with human labels -------------------------------------------


def read_openhands_study(folder: Path) -> list[LabelledRun]:
    """OpenHands runs of the labelling study.

    `human_labels["action_action"][i]` speaks of the pair of steps i and i + 1 (in the order
    of the `Acted` events, whose key is the step's number), "Repetition" among others; the
    lists `categories`, `thought_action`, … are by step. The lists' lengths differ from the
    count of steps in some runs.
    """
    known = labels(folder)
    runs = []
    for name, path in _files(folder, "llm-agents-study-openhands", "*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        events: list[TranscriptEvent] = [Opened("", document["instance"])]
        for step in document["steps"]:
            action = _literal(step["action"])
            try:
                args = json.loads(action.get("arguments", "{}"))
            except ValueError:
                args = {"command": action["arguments"]}
            thought = "" if step.get("thought") in (None, "None") else str(step["thought"])
            observation = str(step.get("observation") or "")
            tool = str(action.get("name", ""))
            events.append(Acted("", _step(str(step["i"]), tool, args, observation, thought)))
        label = known.get(name, {})
        resolved = label.get("resolved")
        failed = None if resolved is None else not resolved
        human = label.get("step_labels", {})
        runs.append(
            LabelledRun("openhands-study", name, path.stem, events, failed, human_labels=human)
        )
    return runs


def _literal(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"name": "", "arguments": json.dumps({"command": text})}
    return value if isinstance(value, dict) else {"name": str(value)}


# --- Dialogues: tau-bench ---------------------------------------------------------------


def read_tau_airline(folder: Path) -> list[LabelledRun]:
    """tau-bench airline: conversations with a (simulated) customer; `failed` by reward."""
    return _read_tau(folder, "tau-bench-airline")


def read_agentrx_retail(folder: Path) -> list[LabelledRun]:
    """tau-bench retail with AgentRx labels: `human_labels` is their `ground_truth`.

    Their `step_number` counts messages from 1, the `index` in the file; a step's key is the
    index of its call's message.
    """
    return _read_tau(folder, "agentrx-tau-retail")


def _read_tau(folder: Path, name: str) -> list[LabelledRun]:
    known = labels(folder)
    runs = []
    for key, path in _files(folder, name, "*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        events = _read_chat(document["traj"])
        failed = document["reward"] < 1
        human = known.get(key, {}).get("ground_truth", {})
        task = f"{name}/{document['task_id']}"
        runs.append(LabelledRun(name, key, task, events, failed, human_labels=human))
    return runs


def _read_chat(messages: list[dict[str, Any]]) -> list[TranscriptEvent]:
    events: list[TranscriptEvent] = [Opened("", "")]
    pending: dict[str, tuple[str, str, str]] = {}
    for number, message in enumerate(messages, 1):
        content = message.get("content") or ""
        match message["role"]:
            case "user":
                events.append(Asked("", content))
            case "assistant" if calls := message.get("tool_calls"):
                for call in calls:
                    function = call["function"]
                    key = str(message.get("index", number))
                    pending[call["id"]] = (key, function["name"], function["arguments"])
            case "assistant":
                events.append(Said("", content, final=True))
            case "tool":
                called = pending.pop(message.get("tool_call_id", ""), (str(number), "", ""))
                events.append(Acted("", _api_step(*called, content)))
    return events


def _api_step(key: str, name: str, arguments: str, observation: str) -> Step:
    failed = observation.startswith("Error")
    looks = name.startswith(("get_", "find_", "search_", "list_", "calculate", "think"))
    return Step(
        key=key,
        kind=StepKind.READ if looks else StepKind.OTHER,
        tool=name,
        verb=name,
        action=text_of(arguments),
        observation=text_of(observation),
        result=Result.ERROR if failed else Result.OK,
        error=ErrorClass.OTHER if failed else None,
        changes_state=not looks and not failed,
    )


# --- InterCode --------------------------------------------------------------------------


def read_intercode(folder: Path) -> list[LabelledRun]:
    """InterCode shell and CTF runs; a run stops at success: its length tells the label."""
    runs = []
    for name, path in _files(folder, "intercode", "*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        turns = document["turn_history"]
        events: list[TranscriptEvent] = [Opened("", ""), Asked("", document["query"])]
        pairs = zip(turns["actions"], turns["observations"], turns["valid_action"], strict=False)
        for number, (action, observation, valid) in enumerate(pairs):
            events.append(Acted("", _turn(str(number), action, str(observation), valid=valid)))
        summary = document["summary"]
        source = f"intercode/{path.stem.rsplit('-', 1)[0]}"
        runs.append(
            LabelledRun(
                source,
                name,
                f"{document['environment']}/{document['task_id']}",
                events,
                summary["max_reward"] < 1,
                f"turns={summary['turns_taken']}/{summary['turns_max']}",
            )
        )
    return runs


def _turn(key: str, action: str, observation: str, *, valid: bool) -> Step:
    action = str(action)
    if action.startswith("submit"):
        kind, verb, files, edits, changes = StepKind.SUBMIT, "submit", (), (), False
    else:
        reading = read_command(action)
        kind, verb, files, edits = reading.kind, reading.verb, reading.files, reading.edits
        changes = reading.changes_state
    result, error = outcome(observation, None, kind, failed=None if valid else True)
    return Step(
        key=key,
        kind=kind,
        tool="bash",
        verb=verb,
        action=text_of(action),
        observation=text_of(observation),
        result=result,
        error=error,
        files=files,
        edits=edits,
        changes_state=changes,
    )


# --- Who&When: dialogues of many agents -------------------------------------------------

_EXIT_CODE = re.compile(r"exitcode: (\d+) \(")


def read_who_and_when(folder: Path) -> list[LabelledRun]:
    """Failed multi-agent runs; all failed.

    `human_labels`: `mistake_step` (index into the history), `mistake_agent`, and `agentrx`
    (a second set of labels) for some. An answer of the code terminal is a step, every other
    message is `Said`; `human_labels["history"]` has for each message the index of its event.
    """
    known = labels(folder)
    runs = []
    for name, path in _files(folder, "who-and-when", "*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        events: list[TranscriptEvent] = [Opened("", ""), Asked("", document["question"])]
        index: list[int] = []
        before = ""
        for number, message in enumerate(document["history"]):
            content = str(message.get("content") or "")
            index.append(len(events))
            if code := _EXIT_CODE.match(content):
                events.append(Acted("", _terminal_step(str(number), before, content, code)))
            else:
                events.append(Said("", content))
            before = content
        human = {**known.get(name, {}), "history": index}
        human.setdefault("mistake_agent", document.get("mistake_agent"))
        human["mistake_step"] = int(document["mistake_step"])
        task = str(document.get("question_ID"))
        runs.append(
            LabelledRun("who-and-when", name, task, events, failed=True, human_labels=human)
        )
    return runs


def _terminal_step(key: str, before: str, content: str, code: re.Match[str]) -> Step:
    exit_code = int(code[1])
    error = error_class(content, exit_code, StepKind.RUN)
    return Step(
        key=key,
        kind=StepKind.RUN,
        tool="terminal",
        verb="code",
        action=text_of(before),
        observation=text_of(content),
        result=Result.OK if exit_code == 0 else Result.ERROR,
        error=error,
        exit_code=exit_code,
    )


# --- Live formats with labels -----------------------------------------------------------


def read_aider(folder: Path) -> list[LabelledRun]:
    """aider on SWE-bench, read by the adapter.

    `human_labels`: attempts, attempt_outcomes (edit, lint, test outcome of each try),
    edited_files, gold_files.
    """
    known = labels(folder)
    runs = []
    for name, path in _files(folder, "aider", "*.md"):
        label = known.get(name, {})
        state = aider.AiderState()
        events: list[TranscriptEvent] = []
        for line in path.read_text(encoding="utf-8").split("\n"):
            events.extend(aider.read(line, state))
        events.extend(aider.settle(state))
        resolved = label.get("resolved")
        failed = None if resolved is None else not resolved
        runs.append(LabelledRun("aider", name, path.stem, events, failed, human_labels=label))
    return runs


def read_swe_agent(folder: Path) -> list[LabelledRun]:
    """SWE-agent trajectories, read by the adapter; most are demonstrations."""
    known = labels(folder)
    return [
        LabelledRun(
            "swe-agent",
            name,
            path.stem,
            list(swe_agent.read_document(path.read_bytes())),
            exit=known.get(name, {}).get("exit_status"),
        )
        for name, path in _files(folder, "swe-agent", "*.traj")
    ]


# --- Hashed fingerprints ----------------------------------------------------------------


def read_fingerprints(folder: Path) -> list[LabelledRun]:
    """3,481 runs as hashed steps: equality is testable, text is not.

    A step is [action, observation, normalised observation, error 0/1, always 0, kind, size,
    [files]]; hashes have 8 hex digits. The hashes stand as digests, files as their hashes;
    `size` (of the observation, coarse) stands as its length. An erroneous edit is read as
    rejected, and an edit that was not as changing state, since nothing else is known.
    """
    runs = []
    with (folder / "fingerprints_external.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            events: list[TranscriptEvent] = [Opened("", document["id"])]
            events.extend(
                Acted("", _hashed_step(str(number), columns))
                for number, columns in enumerate(document["steps"])
            )
            if (end := _end_of(document["exit"])) is not None:
                events.append(Ended("", end))
            source, task = document["src"], str(document["task"])
            runs.append(
                LabelledRun(
                    source, document["id"], task, events, document["fail"], document["exit"]
                )
            )
    return runs


def _hashed_step(key: str, columns: list[Any]) -> Step:
    action, observation, loose, failed, _, kind_name, size, files = columns
    kind = StepKind(kind_name)
    result, error = Result.OK, None
    if failed:
        rejected = kind is StepKind.EDIT
        result = Result.REJECTED if rejected else Result.ERROR
        error = ErrorClass.EDIT_REJECTED if rejected else ErrorClass.OTHER
    return Step(
        key=key,
        kind=kind,
        tool=kind_name,
        verb=action,
        action=Text("", 0, action, action),
        observation=Text("", int(size), observation, loose),
        result=result,
        error=error,
        files=tuple(files),
        changes_state=kind is StepKind.EDIT and not failed,
    )


def _end_of(written: str | None) -> RunEnd | None:
    if not written:
        return None
    if written == "submitted":
        return RunEnd.SUBMITTED
    return RunEnd.LIMIT if "exit_" in written else RunEnd.ABORTED


def content_hash(run: LabelledRun) -> str:
    """One digest over a run's actions, to find the same run in two sets."""
    steps = [event.step.action.digest for event in run.events if isinstance(event, Acted)]
    return digest_of("".join(steps))


ALL = (
    read_dgm,
    read_openhands_study,
    read_tau_airline,
    read_agentrx_retail,
    read_intercode,
    read_who_and_when,
    read_aider,
    read_swe_agent,
    read_fingerprints,
)
"""Every set."""
