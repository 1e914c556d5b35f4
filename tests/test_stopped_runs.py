"""What happens to a run whose terminal, reader, disk or folder goes away: real processes, and a worker that waits."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MATRIX = (
    "name: x\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\nlimit: 2\nmethods: [vanilla]\n"
    "launch: {processes: 1}\n"
)
# in place of `accelerate launch`: a worker with a child of its own, which says that it loads when it is told to
WORKER = """
import os, subprocess, sys, time
from pathlib import Path

here = Path(os.environ["FAKE"])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(here / "pids.part").write_text(f"{os.getpid()} {child.pid}")
(here / "pids.part").rename(here / "pids")
while True:
    if (here / "say").exists():
        (here / "say").unlink()
        with Path(sys.argv[-1]).with_name("events.jsonl").open("a") as events:
            events.write('{"event": "loading"}\\n')
    time.sleep(0.05)
"""


@pytest.fixture
def started(tmp_path) -> Callable[..., subprocess.Popen]:
    package = tmp_path / "fake" / "accelerate" / "commands"
    package.mkdir(parents=True)
    (package / "launch.py").write_text(WORKER)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (tmp_path / "x.yaml").write_text(MATRIX)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "fake"), "FAKE": str(tmp_path)}
    arguments = ["run", "x.yaml", "--output", "out"]
    processes = []

    def start(command=(sys.executable, "-m", "finepruner_lmms.cli"), **how) -> subprocess.Popen:
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True} | how
        processes.append(subprocess.Popen([*command, *arguments], cwd=tmp_path, env=environment, **how))
        wait_for((tmp_path / "pids").exists, 90)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def nothing_is_left(tmp_path: Path) -> None:
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)), 10)


GO_ON = b"what is done is kept; the same command goes on from here\n"


def test_a_closed_terminal_ends_a_run_and_its_children(started, tmp_path):
    ours, theirs = pty.openpty()
    said = (tmp_path / "said").open("wb")

    def own_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = started(stdin=theirs, stdout=theirs, stderr=said, preexec_fn=own_terminal)
    os.close(theirs)
    os.close(ours)  # logging out
    assert process.wait(30) == 130
    nothing_is_left(tmp_path)
    assert (tmp_path / "said").read_bytes() == b"stopped; " + GO_ON


def test_a_reader_that_goes_away_ends_a_run_and_its_children(started, tmp_path):
    process = started()
    assert b"0 done before, 1 to do" in process.stdout.readline()
    process.stdout.close()
    (tmp_path / "say").touch()
    assert process.wait(30) == 141
    nothing_is_left(tmp_path)
    assert process.stderr.read() == b"nobody reads the output any more; " + GO_ON


def test_a_run_whose_folder_is_removed_ends_with_its_children(started, tmp_path):
    process = started()
    shutil.rmtree(tmp_path / "out")
    assert process.wait(60) == 1
    nothing_is_left(tmp_path)
    assert b"out" in process.stderr.read()


FILLS = """
import sys
from pathlib import Path

folder = Path(sys.argv[-1]).parent
try:
    with (folder / "big").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError as error:
    sys.exit(f"OSError: {error}")
"""


def test_a_full_disk_ends_a_run_and_says_so(started, tmp_path, monkeypatch):
    disk = tmp_path / "out"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    try:
        (tmp_path / "fake" / "accelerate" / "commands" / "launch.py").write_text(FILLS)
        (tmp_path / "pids").touch()
        code = "from finepruner_lmms.commands import preflight\npreflight.ROOM = 0\n"
        code += "from finepruner_lmms.cli import main\nmain()"
        process = started(command=[sys.executable, "-c", code])
        said = process.communicate(timeout=90)[1]
        assert process.returncode == 1 and said.endswith(b": No space left on device; make room; " + GO_ON)
        assert said.startswith(b"out") and said.count(b"\n") == 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
