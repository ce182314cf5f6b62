"""An agent as custosd-agent@NAME.service runs it: beats, works, and does what signals say.

It writes a line for each of its lives into its home. SIGUSR1: it works on and beats no more.
SIGUSR2: it declares that it waits for a person, and is silent then. SIGTERM ends it, after
STOPS_AFTER_S seconds. TELLS is a pipe into which it says that it lives. It needs nothing but a
copy of `custosd.client` beside it.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).parent))

from custosd_client import Client

BEAT_S = 0.4

asked: set[int] = set()
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda n, _frame: asked.add(n))

home = Path(os.environ["HOME"])
client = Client()
with (home / "lives").open("a") as lives:
    lives.write(f"{os.getpid()} {os.environ['CUSTOSD_EPOCH']}\n")
if pipe := os.environ.get("TELLS"):
    Path(pipe).write_text("lives")
(home / "work").mkdir(exist_ok=True)
steps = 0
waits = False
while signal.SIGTERM not in asked:
    if not waits:
        steps += 1
        (home / "work" / "file").write_text(str(steps))
    if signal.SIGUSR2 in asked:
        if not waits:
            client.beat(status="waiting", wait=("human", 3600.0))
        waits = True
    elif signal.SIGUSR1 not in asked:
        client.beat(status="running", progress=str(steps))
    time.sleep(BEAT_S)
time.sleep(float(os.environ.get("STOPS_AFTER_S", "0")))
