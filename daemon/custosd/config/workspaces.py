"""The settings of the looks into agents' folders."""

from typing import Annotated

from custosd.config.kinds import Count, Duration, Patterns, Size
from custosd.config.section import Section, default


class WorkspaceSettings(Section):
    """What is looked at in the folders that agents work in; taken up at a start."""

    outputs: Annotated[tuple[str, ...], Patterns()] = default(
        ["output.log", "agent.log", "conversation.log", "stderr.log", "stdout.log"],
        "Files of output, by patterns below the folder; a * stays within its own folder.",
    )
    tail_lines: Annotated[int, Count(1, 10_000, "lines")] = default(
        20, "How many of the last lines of such a file are shown."
    )
    tail_bytes: Annotated[int, Size("1KiB", "1MiB")] = default(
        "16KiB", "How much of the end of such a file is read at most."
    )
    changed_s: Annotated[float, Duration("1s", "30d")] = default(
        "1h", "Files that changed within this time are told."
    )
    most_changed: Annotated[int, Count(1, 1_000, "files")] = default(
        50, "How many changed files are named; the others are counted."
    )
    concurrency: Annotated[int, Count(1, 256, "folders")] = default(
        8, "How many folders are looked at at the same time."
    )
    timeout_s: Annotated[float, Duration("10ms", "1m")] = default(
        "4s", "How long one folder may take, half of it for its files and half for git."
    )
