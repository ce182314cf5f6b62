"""An agent for tests: tells what it found, and stays; `python fake_agent.py SOCKET [deaf]`.

It is there for as long as it keeps its connection open. `parent`: starts a child that leaves
its session, and stays too.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading


def main() -> None:
    address, *ways = sys.argv[1:]
    if "deaf" in ways or pathlib.Path(f"{address}.deaf").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    told = {name: value for name, value in os.environ.items() if name.startswith("CUSTOSD_")}
    told["pid"] = os.getpid()
    told["environ"] = sorted(os.environ)
    told["cwd"] = str(pathlib.Path.cwd())
    told["session"] = os.getsid(0)
    told["oom_score_adj"] = pathlib.Path("/proc/self/oom_score_adj").read_text().strip()
    told["descriptors"] = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    hand_over = os.environ.get("CUSTOSD_HANDOVER")
    told["hand_over"] = json.loads(pathlib.Path(hand_over).read_text()) if hand_over else None
    if "parent" in ways:
        child = [sys.executable, __file__, address, "deaf"]
        subprocess.Popen(child, start_new_session=True)
    connection.sendall(json.dumps(told).encode() + b"\n")
    threading.Event().wait()


if __name__ == "__main__":
    main()
