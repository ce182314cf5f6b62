"""One agent of the demonstration: a small process that really works in a scratch folder.

`python -m custosd.demo.agent ROLE NAME FOLDER`. It edits files, runs commands, and
writes its transcript under FOLDER/transcripts, at one action each `PACE_S` seconds.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from custosd.demo.writers import (
    ClaudeCodeWriter,
    CodexWriter,
    CustosdWriter,
    GeminiCliWriter,
    PiWriter,
    Writer,
)

PACE_S = float(os.environ.get("CUSTOSD_DEMO_PACE_S", "1.5"))
COMMAND_TIMEOUT_S = 20
PARENT = os.getppid()


def pause(seconds: float) -> None:
    """Wait; end when whoever started the demonstration is gone, however it went."""
    time.sleep(seconds)
    if os.getppid() != PARENT:
        sys.exit("the demonstration is over")


class Hand:
    """Does what an agent decides, and has it written down."""

    def __init__(self, writer: Writer, workspace: Path) -> None:
        self.writer = writer
        self.workspace = workspace
        self._calls = itertools.count(1)

    def _begin(self, tool: str, **arguments: str) -> str:
        pause(PACE_S)
        call = f"call-{next(self._calls):05}"
        self.writer.called(call, tool, arguments)
        return call

    def run(self, command: str) -> int:
        """Run a command line in the workspace."""
        call = self._begin("shell", command=command)
        done = subprocess.run(  # noqa: S602 - the command lines are this module's own
            command,
            shell=True,
            cwd=self.workspace,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        self.writer.answered(call, (done.stdout + done.stderr)[-4000:], done.returncode)
        return done.returncode

    def read(self, name: str) -> str:
        """Read a file of the workspace."""
        call = self._begin("read", path=name)
        text = (self.workspace / name).read_text(encoding="utf-8")
        self.writer.answered(call, text, None)
        return text

    def write(self, name: str, content: str) -> None:
        """Write a file of the workspace."""
        call = self._begin("write", path=name, content=content)
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        self.writer.answered(call, f"Wrote {len(content)} characters to {name}", None)

    def begin_and_never_end(self, command: str) -> None:
        """Write down that a command was begun."""
        self._begin("shell", command=command)


def _stay() -> None:
    while True:
        pause(PACE_S)


def build_steadily(hand: Hand) -> None:
    """The healthy one: a function and its test at a time, always run, always green."""
    hand.writer.asked("Build a small number library: powers.py with a test for each function.")
    code, tests = "", "import unittest\n\nimport powers\n\n\nclass Powers(unittest.TestCase):\n"
    for n in itertools.count(2):
        code += f'def power_{n}(x):\n    """x to the power of {n}."""\n    return x**{n}\n\n\n'
        tests += (
            f"    def test_{n}(self):\n        self.assertEqual(powers.power_{n}(2), {2**n})\n\n"
        )
        hand.write("powers.py", code)
        hand.write("test_powers.py", tests)
        hand.run(f"{sys.executable} -m unittest -q test_powers")
        hand.read("powers.py")


def loop(hand: Hand) -> None:
    """The looping one: asks the same two questions for ever, and changes nothing."""
    (hand.workspace / "totals.py").write_text(
        "rows = [3, 4, 5]\nprint('total', sum(rows) - 1)\n", encoding="utf-8"
    )
    hand.writer.asked("totals.py prints 11, but the rows add up to 12. Find out why and fix it.")
    hand.read("totals.py")
    while True:
        hand.run("grep -n sum totals.py")
        hand.run(f"{sys.executable} totals.py")


def fail(hand: Hand) -> None:
    """The one stuck on errors: a module is missing, and every way round it fails."""
    (hand.workspace / "report.py").write_text(
        "import chartmaker\n\nprint(chartmaker.draw([1, 2, 3]))\n", encoding="utf-8"
    )
    hand.writer.asked("Make report.py run and print its chart.")
    hand.read("report.py")
    ways = [
        "report.py",
        "-c 'import chartmaker'",
        "-m chartmaker --version",
        "-W ignore report.py",
        "-c 'import chartmaker.draw'",
        "-X dev report.py",
    ]
    for way in itertools.cycle(ways):
        hand.run(f"{sys.executable} {way}")


def drift(hand: Hand) -> None:
    """The drifting one: asked about the parser, busy with the paint."""
    (hand.workspace / "parser.py").write_text(
        "def parse(text):\n    return text.split()[0]\n", encoding="utf-8"
    )
    hand.writer.asked("parser.py crashes on empty input with an IndexError. Fix parse().")
    hand.read("parser.py")
    pages = ["README.md", "docs/guide.md", "style.css", "docs/colours.md", "logo.svg"]
    for n, page in enumerate(itertools.cycle(pages)):
        hand.write(page, f"Draft {n} of {page}\n" + "\n".join(f"line {k * n}" for k in range(n)))


def wait_for_a_person(hand: Hand) -> None:
    """The waiting one: needs a decision, and says so."""
    (hand.workspace / "settings.ini").write_text("[db]\nurl =\n", encoding="utf-8")
    hand.writer.asked("Connect the importer to our database.")
    hand.read("settings.ini")
    hand.run("ls -l")
    hand.writer.said("settings.ini names no database. Which URL should I use?", final=True)
    _stay()


def claim(hand: Hand) -> None:
    """The one that claims done: edits, and never runs a test."""
    (hand.workspace / "slug.py").write_text(
        "def slug(title):\n    return title.lower()\n", encoding="utf-8"
    )
    hand.writer.asked("slug() should replace blanks by hyphens. Fix it in slug.py.")
    hand.read("slug.py")
    hand.write("slug.py", "def slug(title):\n    return title.lower().replace(' ', '_')\n")
    hand.writer.said("Done. slug() now replaces blanks, everything works.", final=True)
    _stay()


def die(hand: Hand) -> None:
    """The one that dies: begins a long command, and is killed."""
    hand.writer.asked("Compute the first ten thousand primes into primes.txt.")
    hand.write(
        "primes.py", "print(*[n for n in range(2, 99) if all(n % d for d in range(2, n))])\n"
    )
    hand.run(f"{sys.executable} primes.py > primes.txt")
    hand.run("wc primes.txt")
    hand.begin_and_never_end(f"{sys.executable} primes.py --count 10000 > primes.txt")
    os.kill(os.getpid(), signal.SIGKILL)


def repeat_a_twin(hand: Hand) -> None:
    """The two that do the same work: one goal, the same files, each in its own folder."""
    hand.writer.asked(
        "Write temperature.py that converts between Celsius, Fahrenheit and Kelvin, with tests."
    )
    code = "def to_kelvin(celsius):\n    return celsius + 273.15\n\n\n"
    tests = "import temperature\n\nassert temperature.to_kelvin(0) == 273.15\n"
    for n in itertools.count(1):
        hand.write("temperature.py", code)
        hand.write("test_temperature.py", tests)
        hand.run(f"{sys.executable} test_temperature.py && echo {n} ok")
        hand.read("temperature.py")
        code += f"def step_{n}(celsius):\n    return celsius * 1.8 + {n}\n\n\n"
        tests += f"assert temperature.step_{n}(0) == {n}\n"


Role = tuple[Callable[[Hand], None], Callable[[Path, str, Path], Writer], str]

ROLES: dict[str, Role] = {
    "steady": (build_steadily, CustosdWriter, "custosd"),
    "looping": (loop, CodexWriter, "codex"),
    "failing": (fail, ClaudeCodeWriter, "claude-code"),
    "drifting": (drift, GeminiCliWriter, "gemini-cli"),
    "waiting": (wait_for_a_person, PiWriter, "pi"),
    "claiming": (claim, ClaudeCodeWriter, "claude-code"),
    "dying": (die, CodexWriter, "codex"),
    "twin-a": (repeat_a_twin, CustosdWriter, "custosd"),
    "twin-b": (repeat_a_twin, ClaudeCodeWriter, "claude-code"),
}
"""What each agent does, how it writes it down, and in which folder of transcripts."""


def main(role: str, folder: Path) -> None:
    """Be one agent, until killed."""
    work, writer, kind = ROLES[role]
    workspace = folder / "work" / role
    workspace.mkdir(parents=True, exist_ok=True)
    work(Hand(writer(folder / "transcripts" / kind, role, workspace), workspace))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
