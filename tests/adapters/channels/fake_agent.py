"""A small terminal agent: a composer in raw mode at the screen's bottom, and turns in a file.

`python fake_agent.py TURNS [FLAG ...]`. Each submitted text goes into the file TURNS as
a line of JSON, before the screen shows it. It says by `tmux wait-for -S` that it is "ready" for
keys, and that it has "ignored" a submission. Flags:

  --draft TEXT    a person has typed this already
  --hint TEXT     stands faintly in the empty composer
  --deaf N        the first N submissions are not reacted to
  --silent        submissions are not shown
  --plain         no bracketed paste: every line's end submits
  --collapse      long pastes are shown as "[Pasted text #1 +N lines]"
  --dies-on paste|submit
  --late          takes a paste only after `tmux wait-for -S go`
  --busy          says that a turn runs
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import termios
import tty
from pathlib import Path

PASTE = re.compile(rb"\x1b\[200~(.*?)\x1b\[201~", re.DOTALL)


class Agent:
    def __init__(self, options):
        self.options = options
        self.told = ["ready"] + (["* Working (esc to interrupt)"] if options.busy else [])
        self.typed = options.draft
        self.collapsed = ""
        self.deaf = options.deaf

    def draw(self):
        columns, rows = shutil.get_terminal_size()
        shown = (self.collapsed or self.typed).split("\n")
        composer = wrapped([f"> {shown[0]}", *(f"  {line}" for line in shown[1:])], columns)
        composer = composer[-(rows - 2) :]
        room = rows - len(composer) - 1
        told = wrapped(self.told, columns)[-room:]
        lines = [""] * (room - len(told)) + told + ["-" * columns] + composer
        hint = f"\x1b[2m{self.options.hint}\x1b[0m" if not self.typed else ""
        back = f"\x1b[{len(self.options.hint)}D" if hint and self.options.hint else ""
        write("\x1b[H\x1b[2J" + "\r\n".join(lines) + hint + back)

    def take(self, data):
        """Take all whole pastes and the keys around them; returns what is not whole yet."""
        while data:
            paste = PASTE.match(data)
            if paste:
                self.paste(paste[1].decode())
                data = data[paste.end() :]
            elif data.startswith(b"\x1b[200~") or b"\x1b[200~".startswith(data):
                return data
            else:
                data = self.key(data)
        return data

    def paste(self, text):
        if self.options.dies_on == "paste":
            sys.exit(0)
        if self.options.late:
            subprocess.run(["tmux", "wait-for", "go"], check=True)
        self.typed += text
        if self.options.collapse and text.count("\n") > 3:
            self.collapsed = f"[Pasted text #1 +{text.count(chr(10))} lines]"

    def key(self, data):
        if data[:1] in (b"\r", b"\n"):
            self.submit()
        elif data[:1] == b"\x15":
            self.typed = self.typed.rpartition("\n")[0]
            self.collapsed = ""
        elif data[:1] >= b" ":
            size = 1 if data[0] < 0x80 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
            self.typed += data[:size].decode("utf-8", "replace")
            return data[size:]
        return data[1:]

    def submit(self):
        if self.options.dies_on == "submit":
            sys.exit(0)
        if self.deaf > 0:
            self.deaf -= 1
            signal("ignored")
            return
        with self.options.turns.open("a") as turns:
            turns.write(json.dumps(self.typed) + "\n")
        if not self.options.silent:
            self.told += ["", *self.typed.split("\n"), "", "* On it."]
        self.typed = self.collapsed = ""


def wrapped(lines, columns):
    return [line[at : at + columns] for line in lines for at in range(0, len(line) or 1, columns)]


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def signal(name):
    subprocess.run(["tmux", "wait-for", "-S", name], check=True)


def run(options):
    agent = Agent(options)
    write("\x1b[?1049h" + ("" if options.plain else "\x1b[?2004h"))
    agent.draw()
    signal("ready")
    rest = b""
    while data := os.read(0, 65_536):
        rest = agent.take(rest + data)
        agent.draw()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("turns", type=Path)
    parser.add_argument("--draft", default="")
    parser.add_argument("--hint", default="")
    parser.add_argument("--deaf", type=int, default=0)
    parser.add_argument("--dies-on", default="")
    for flag in ("silent", "plain", "collapse", "busy", "late"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        run(options)
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)
        write("\x1b[?2004l\x1b[?1049l")


if __name__ == "__main__":
    main()
