"""Several agents at work, as one process: `writer.py FOLDER SEED` writes until stdin ends.

Three custosd, three Claude Code and three Codex agents append to a file each, at some
hundred steps a second in all; most lines come in two halves, cut anywhere. Gemini CLI chats
are rewritten as a whole, more slowly. At the end it prints how many steps each agent took.
"""

import json
import random
import select
import sys
from pathlib import Path

from custosd.demo.writers import (
    Action,
    ClaudeCodeWriter,
    CodexWriter,
    CustosdWriter,
    GeminiCliWriter,
    Lines,
    Writer,
)

PAUSE_S = 0.02
CHAT_EACH = 12
"""Rounds between two changes of a chat."""
CHAT_STEPS = 40


class TornLines(Lines):
    """Writes a line in two halves, cut at any byte."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        super().__init__(path)
        self._chance = chance

    def append(self, record: dict[str, object]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        at = self._chance.randrange(len(line))
        with self.path.open("ab", buffering=0) as file:
            file.write(line[:at])
            file.write(line[at:])


class Agent:
    """One agent: a step is a call and its answer."""

    def __init__(self, writer: Writer, name: str, chance: random.Random) -> None:
        self.writer, self.name, self.steps = writer, name, 0
        self._chance = chance
        writer.asked(f"Müßiggang? Nein: {name} prüft ünïcode.py: fix the parser, run the tests.")

    def act(self) -> None:
        self.steps += 1
        key, path = f"c{self.steps}", f"src/part_{self._chance.randrange(6)}.py"
        text = (
            f"value = {self._chance.randrange(9)}  # größer ☃ {'x' * self._chance.randrange(400)}"
        )
        actions = (
            (Action(key, "read", path=path), text, None),
            (Action(key, "write", path=path, text=text), "written", None),
            (Action(key, "extend", path=path, text=text, lines=3, last="…"), "extended", None),
            (Action(key, "shell", command=f"grep -n value {path}"), text, 0),
            (Action(key, "shell", command="python -m pytest -q"), "3 passed in 0.1s", 0),
            (Action(key, "shell", command="python -m pytest -q"), "1 failed, 2 passed", 1),
        )
        action, output, code = self._chance.choice(actions)
        self.writer.began(action)
        self.writer.answered(action, output, code)


class Chats:
    """Gemini CLI agents, one after the other: a long chat costs more with each change."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder, self._chance = folder, chance
        self.agents = [self._next()]

    def _next(self) -> Agent:
        name = f"g{len(getattr(self, 'agents', ()))}"
        writer = GeminiCliWriter(self._folder / "gemini-cli", name, Path("/srv/app"))
        return Agent(writer, name, self._chance)

    def act(self) -> None:
        if self.agents[-1].steps >= CHAT_STEPS:
            self.agents.append(self._next())
        self.agents[-1].act()


def line_agents(folder: Path, chance: random.Random) -> dict[str, Agent]:
    kinds = {"custosd": CustosdWriter, "claude-code": ClaudeCodeWriter, "codex": CodexWriter}
    agents = {}
    for kind, make in kinds.items():
        for name in (f"{kind[:2]}{n}" for n in range(3)):
            writer = make(folder / kind, name, Path("/srv/app"))
            writer.file = TornLines(writer.file.path, chance)
            agents[f"{kind}:{name}"] = Agent(writer, name, chance)
    return agents


def main(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    agents = line_agents(folder, chance)
    chats = Chats(folder, chance)
    rounds = 0
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        rounds += 1
        for agent in agents.values():
            agent.act()
        if rounds % CHAT_EACH == 0:
            chats.act()
    agents |= {f"gemini-cli:{agent.name}": agent for agent in chats.agents}
    print(json.dumps({name: agent.steps for name, agent in agents.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
