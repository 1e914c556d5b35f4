"""What looks at the threads of a process must not stop it."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import gc, threading
from pathlib import Path
from finepruner_lmms.lmms.heartbeat import Heartbeat

class Loop:
    def __init__(self):
        self.me, self.own = self, threading.local()
        self.own.known = True

beat = Heartbeat(Path("unused"))
for number in range(500):
    gc.collect()
    gc.disable()
    Loop()  # garbage whose end takes the interpreter's lock, collected at one of the next allocations
    gc.set_threshold(gc.get_count()[0] + number % 8)
    gc.enable()
    beat._look()
    assert gc.isenabled()
print("through")
"""


def test_a_look_at_the_threads_never_waits_for_garbage_that_is_collected_meanwhile():
    """A worker stood still for ever: https://github.com/python/cpython/issues/106883."""
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60)
    assert found.stdout == "through\n", found.stderr
