"""Files are read in several threads: what they share is made before the first of them runs."""

import subprocess
import sys

import pytest

from custosd.adapters.transcripts.registry import FORMATS

PROGRAM = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from custosd.adapters.transcripts.cursor import Cursor
from custosd.adapters.transcripts.document_reading import rereading_of
from custosd.adapters.transcripts.format import DocumentFormat, Rereading
from custosd.adapters.transcripts.line_reading import _state_of
from custosd.adapters.transcripts.registry import format_named

fmt = format_named(sys.argv[1])
barrier = threading.Barrier(6)

def decode():
    barrier.wait()
    if isinstance(fmt, DocumentFormat):
        rereading_of(Cursor(b"", "", state=msgspec.msgpack.encode(Rereading())))
    else:
        _state_of(fmt, msgspec.msgpack.encode(fmt.state()))

threads = [threading.Thread(target=decode) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("name", [fmt.name for fmt in FORMATS])
def test_states_are_decoded_for_the_first_time_by_several_threads_at_once(name: str) -> None:
    """msgspec prepares a type on first use, and a second thread in that moment crashed it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
