"""Real sessions of native agents, each thread of each file as a run without a label."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from readings import LabelledRun

from custosd.adapters.transcripts.format import LineFormat, Sample
from custosd.adapters.transcripts.registry import SAMPLE_BYTES, recognise
from custosd.core.transcript import TranscriptEvent, Unread

FOLDERS = ("claude-code", "codex", "gemini-cli", "pi", "openhands", "mini-swe-agent", "swe-agent")


def read_sessions(folder: Path) -> Iterator[LabelledRun]:
    """Every thread of every recognised session; invented fixtures are left out."""
    for name in FOLDERS:
        for path in sorted((folder / name).glob("*")):
            if path.name.startswith("fixture"):
                continue
            threads: dict[str, list[TranscriptEvent]] = defaultdict(list)
            for event in events_of(path):
                if not isinstance(event, Unread):
                    threads[event.thread].append(event)
            for thread, events in threads.items():
                yield LabelledRun(name, f"{path.name[:48]}#{thread[:24]}", path.stem, events)


def events_of(path: Path) -> Sequence[TranscriptEvent]:
    data = path.read_bytes()
    fmt = recognise(Sample(str(path), data[:SAMPLE_BYTES]))
    if fmt is None:
        return ()
    if not isinstance(fmt, LineFormat):
        return fmt.read(data)
    state, events = fmt.state(), []
    for line in data.decode("utf-8", "replace").splitlines():
        if line.strip():
            events.extend(fmt.read(line, state))
    return [*events, *fmt.settle(state)]
