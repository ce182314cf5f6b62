"""A small agent that beats, works, and reads its letters; what a daemon keeps alive.

    python living_agent.py HOME CHECKOUT

It writes one line a life to HOME/lives and one a letter to HOME/letters, and changes HOME/work
all the time. It needs nothing but `custosd.client`.
"""

import os
import sys
import time
from pathlib import Path

home = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])

from custosd.client import Client  # noqa: E402 - found by what it was started with

client = Client()  # all of it from the environment that the daemon gives
with (home / "lives").open("a") as lives:
    lives.write(f"{os.getpid()} {os.environ.get('CUSTOSD_EPOCH', '')}\n")
work = home / "work" / "file"
work.parent.mkdir(exist_ok=True)
step = 0
while True:
    step += 1
    work.write_text(str(step))
    client.beat(status="running", progress=str(step))
    for letter in client.claim():
        with (home / "letters").open("a") as letters:
            letters.write(f"{letter.id}\n")
        client.acknowledge(letter)
    time.sleep(0.4)
