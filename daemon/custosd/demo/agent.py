"""One agent of the demonstration: a small process that really works in a scratch folder.

`python -m custosd.demo.agent ROLE FOLDER PARENT`. It edits files and runs commands below
FOLDER/work, and writes its transcript below FOLDER/transcripts, one action each `PACE_S`
seconds. It ends when it is no longer the child of the process PARENT.
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
    Action,
    ClaudeCodeWriter,
    CodexWriter,
    CustosdWriter,
    GeminiCliWriter,
    PiWriter,
    Writer,
)

PACE_S = float(os.environ.get("CUSTOSD_DEMO_PACE_S", "1.5"))
COMMAND_TIMEOUT_S = 20


class Hand:
    """Does what an agent decides, and has it written down."""

    def __init__(self, writer: Writer, workspace: Path, parent: int) -> None:
        self.writer = writer
        self.workspace = workspace
        self._parent = parent
        self._keys = (f"call-{number:05}" for number in itertools.count(1))

    def rest(self) -> None:
        """Wait; end when whoever started the demonstration is gone, however it went."""
        time.sleep(PACE_S)
        if os.getppid() != self._parent:
            sys.exit()

    def _begin(self, action: Action) -> Action:
        self.rest()
        self.writer.began(action)
        return action

    def run(self, command: str) -> int:
        """Run a command line in the workspace."""
        action = self._begin(Action(next(self._keys), "shell", command=command))
        done = subprocess.run(  # noqa: S602 - the command lines are this module's own
            command,
            shell=True,
            cwd=self.workspace,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        self.writer.answered(action, (done.stdout + done.stderr)[-4000:], done.returncode)
        return done.returncode

    def read(self, name: str) -> None:
        """Read a file of the workspace."""
        action = self._begin(Action(next(self._keys), "read", path=name))
        text = (self.workspace / name).read_text(encoding="utf-8")
        self.writer.answered(action, text, None)

    def write(self, name: str, text: str) -> None:
        """Write a file of the workspace anew."""
        action = self._begin(Action(next(self._keys), "write", path=name, text=text))
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.writer.answered(action, f"Wrote {len(text)} characters to {name}", None)

    def extend(self, name: str, text: str) -> None:
        """Put more behind what a file of the workspace holds."""
        path = self.workspace / name
        lines = path.read_text(encoding="utf-8").splitlines()
        key, count = next(self._keys), len(lines)
        action = Action(key, "extend", path=name, text=text, lines=count, last=lines[-1])
        self._begin(action)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        self.writer.answered(action, f"Wrote {len(action.added)} lines to {name}", None)

    def begin_and_never_end(self, command: str) -> None:
        """Write down that a command was begun."""
        self._begin(Action(next(self._keys), "shell", command=command))

    def given(self, name: str, text: str) -> None:
        """Put a file into the workspace that somebody else wrote."""
        (self.workspace / name).write_text(text, encoding="utf-8")

    def stay(self) -> None:
        """Do nothing more, but live."""
        while True:
            self.rest()


def build_steadily(hand: Hand) -> None:
    """The healthy one: a function and its test at a time, always run, always green."""
    hand.writer.asked("Build a small number library: powers.py with a test for each function.")
    hand.write("powers.py", '"""Powers of numbers."""\n')
    head = "import unittest\n\nimport powers\n\n\nclass Powers(unittest.TestCase):\n"
    hand.write("test_powers.py", head + '    """Each power of two."""\n')
    for n in itertools.count(2):
        hand.extend("powers.py", f"\n\ndef power_{n}(x):\n    return x**{n}\n")
        test = f"\n    def test_{n}(self):\n        self.assertEqual(powers.power_{n}(2), {2**n})\n"
        hand.extend("test_powers.py", test)
        hand.run(f"{sys.executable} -m unittest -q test_powers")


def loop(hand: Hand) -> None:
    """The looping one: asks the same two questions for ever, and changes nothing."""
    hand.given("totals.py", "rows = [3, 4, 5]\nprint('total', sum(rows) - 1)\n")
    hand.writer.asked("totals.py prints 11, but the rows add up to 12. Find out why and fix it.")
    hand.read("totals.py")
    while True:
        hand.run("grep -n sum totals.py")
        hand.run(f"{sys.executable} totals.py")


def fail(hand: Hand) -> None:
    """The one stuck on errors: a module is missing, and every way round it fails."""
    hand.given("report.py", "import chartmaker\n\nprint(chartmaker.draw([1, 2, 3]))\n")
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
    hand.given("parser.py", "def parse(text):\n    return text.split()[0]\n")
    hand.writer.asked("parser.py crashes on empty input with an IndexError. Fix parse().")
    hand.read("parser.py")
    pages = ["README.md", "docs/guide.md", "style.css", "docs/colours.md", "logo.svg"]
    for n, page in enumerate(itertools.cycle(pages)):
        hand.write(page, f"Draft {n} of {page}\n" + "\n".join(f"line {k * n}" for k in range(n)))


def wait_for_a_person(hand: Hand) -> None:
    """The waiting one: needs a decision, and says so."""
    hand.given("settings.ini", "[db]\nurl =\n")
    hand.writer.asked("Connect the importer to our database.")
    hand.read("settings.ini")
    hand.run("ls -l")
    hand.writer.said("settings.ini names no database. Which URL should I use?", final=True)
    hand.stay()


def claim(hand: Hand) -> None:
    """The one that claims done: edits, and never runs a test."""
    hand.given("slug.py", "def slug(title):\n    return title.lower()\n")
    hand.writer.asked("slug() should replace blanks by hyphens. Fix it in slug.py.")
    hand.read("slug.py")
    hand.write("slug.py", "def slug(title):\n    return title.lower().replace(' ', '_')\n")
    hand.writer.said("Done. slug() now replaces blanks, everything works.", final=True)
    hand.stay()


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
    hand.write("temperature.py", "def to_kelvin(celsius):\n    return celsius + 273.15\n")
    head = "import unittest\n\nimport temperature\n\n\nclass Temperatures(unittest.TestCase):\n"
    test = "    def test_to_kelvin(self):\n        assert temperature.to_kelvin(0) == 273.15\n"
    hand.write("test_temperature.py", head + test)
    for n in itertools.count(1):
        hand.run(f"{sys.executable} -m unittest -q test_temperature")
        code = f"\n\ndef to_degrees_{n}(celsius):\n    return celsius * 1.8 + {n}\n"
        hand.extend("temperature.py", code)
        called = f"temperature.to_degrees_{n}(0)"
        test = f"\n    def test_{n}(self):\n        assert {called} == {n}\n"
        hand.extend("test_temperature.py", test)


ROLES: dict[str, tuple[Callable[[Hand], None], str]] = {
    "steady": (build_steadily, "custosd"),
    "looping": (loop, "codex"),
    "failing": (fail, "claude-code"),
    "drifting": (drift, "gemini-cli"),
    "waiting": (wait_for_a_person, "pi"),
    "claiming": (claim, "claude-code"),
    "dying": (die, "codex"),
    "twin-a": (repeat_a_twin, "custosd"),
    "twin-b": (repeat_a_twin, "claude-code"),
}
"""What each agent does, and in which format it writes that down."""

WRITERS: dict[str, Callable[[Path, str, Path], Writer]] = {
    "custosd": CustosdWriter,
    "codex": CodexWriter,
    "claude-code": ClaudeCodeWriter,
    "gemini-cli": GeminiCliWriter,
    "pi": PiWriter,
}


def main(role: str, folder: Path, parent: int) -> None:
    """Be one agent, until killed."""
    work, kind = ROLES[role]
    workspace = folder / "work" / role
    workspace.mkdir(parents=True, exist_ok=True)
    writer = WRITERS[kind](folder / "transcripts" / kind, role, workspace)
    work(Hand(writer, workspace, parent))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
