"""Jobs on other machines, without a cluster: the fields, the seam for other executors, errors in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finepruner_lmms.claims import this_job
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix import squeue
from finepruner_lmms.matrix.cluster import slurm
from finepruner_lmms.matrix.cluster_fields import minutes
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.executors import find_executor
from finepruner_lmms.matrix.sections import LaunchSection

ROOT = Path(__file__).resolve().parent.parent
FILE = """\
name: study
model: {pretrained: demo, device: cpu}
data: demo
tasks: [pope]
limit: 2
methods: [vanilla, {method: random, budget: 64}]
launch:
"""
TOY = '''
"""An executor whose machines are processes here."""

import os, signal, subprocess
from pathlib import Path

from finepruner_lmms.claims import this_job
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.executors import Job


class Here:
    def check(self, launch):
        if launch.partition is not None:
            raise FieldError("launch.partition", "there are none here", fix="leave it out")

    def submit(self, submission):
        started = []
        for number in range(submission.jobs):
            log = (submission.folder / f"{number}.log").open("wb")
            job = subprocess.Popen(submission.command, stdout=log, stderr=log, start_new_session=True)
            started.append(str(job.pid))
        return started

    def jobs(self, name, ids):
        alive = [job for job in ids if Path(f"/proc/{job}/stat").exists() and not self._ended(job)]
        return [Job(job, "running", "here") for job in alive]

    def _ended(self, job):
        return Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def cancel(self, ids):
        for job in ids:
            os.kill(int(job), signal.SIGTERM)

    def reason(self, folder, job):
        return "".join(log.read_text()[-200:] for log in sorted(folder.glob("*.log")))
'''


@pytest.mark.parametrize(
    ("given", "expected"),
    [(90, 90), ("90", 90), ("90:30", 91), ("04:00:00", 240), ("2-0", 2880), ("2-12:30", 3630), ("1-00:00:01", 1441)],
)
def test_times_are_read_as_slurm_writes_them(given, expected):
    assert minutes(given) == expected


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ("  nodes: 2", "study.yaml:8:3: launch.nodes: is for jobs; add `executor: slurm`"),
        ("  executor: slurm", "launch.time: is missing, and SLURM's jobs need it; say how long"),
        ("  executor: slrum\n  time: 10", "launch.executor: got 'slrum' (did you mean 'slurm'?); known: local, slurm"),
        ("  executor: slurm\n  time: soon", "study.yaml:9:3: launch.time: got 'soon'; expected minutes, or a time"),
        ("  executor: slurm\n  time: 0", "launch.time: got 0, which is 0 minutes; expected a minute to a year"),
        ("  executor: slurm\n  time: true", "launch.time: got 'True'; expected minutes"),
        ("  executor: slurm\n  time: 5\n  nodes: 0", "launch.nodes: got 0; expected more than 0"),
        ("  executor: slurm\n  time: 5\n  extra: {array: 1-9}", "launch.extra: array is not to be given here; use"),
        ("  executor: slurm\n  time: 5\n  extra: {'mem per': 3}", "launch.extra: got 'mem per'; expected long options"),
        ("  executor: slurm\n  time: 5\n  extra: {mem: [1]}", "launch.extra.mem: got [1]; expected"),
        ("  executor: slurm\n  time: 5\n  partition: '-x'", "launch.partition: got '-x'; expected a name"),
        ("  executor: slurm\n  time: 5\n  setup: module load cuda", "launch.setup: got 'module load cuda'; expected"),
    ],
)
def test_wrong_fields_of_jobs_are_named_with_their_place(tmp_path, launch, said):
    file = tmp_path / "study.yaml"
    file.write_text(f"{FILE}{launch}\n")
    with pytest.raises(ValueError) as caught:
        load_matrix(file)
    assert said in str(caught.value)


def test_what_slurm_needs_is_asked_for_in_one_line(monkeypatch, tmp_path):
    launch = LaunchSection(executor="slurm", time=10)
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FieldError, match=r"launch.executor: 'slurm' needs the package submitit; pip install 'fine"):
        find_executor("slurm").check(launch)
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FieldError, match=r"'slurm' needs sbatch, srun, squeue, scancel, not found .*; run it on a log"):
        find_executor("slurm").check(launch)


def test_a_claim_says_which_start_of_which_job_made_it():
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CLUSTER_NAME": "c"}
    assert this_job({}) is None
    assert this_job({"SLURM_JOB_ID": "9"}) == "slurm::9:0"
    assert this_job(array | {"SLURM_RESTART_COUNT": "2"}) == "slurm:c:8_1:2"


def test_nothing_is_known_about_jobs_where_nobody_can_be_asked(monkeypatch, tmp_path):
    """In doubt a claim is respected: a second start of a cell would be worse than a late one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert squeue.job_is_alive("slurm:here:1:0") is None
    monkeypatch.undo()
    answers = tmp_path / "squeue"
    answers.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    answers.chmod(0o755)
    shutil.copy(answers, tmp_path / "scontrol")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert squeue.job_is_alive("slurm:here:2:0") is None
    answers.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert squeue.job_is_alive("slurm::3:0") is False


@pytest.fixture(scope="module")
def plugged_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy_executor.py").write_text(TOY)
    about = folder / "toy-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    points = "here = toy_executor:Here\nbroken = toy_executor:Nothing\nhalf = toy_executor:Job\n"
    (about / "entry_points.txt").write_text(f"[finepruner_lmms.executors]\n{points}")
    return os.environ | {"PYTHONPATH": str(folder)}


def command(environment, *arguments) -> subprocess.CompletedProcess:
    call = [sys.executable, str(ROOT / "run_matrix.py"), *map(str, arguments)]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_an_executor_of_another_package_runs_a_study(tmp_path, plugged_in):
    file = tmp_path / "study.yaml"
    file.write_text(f"{FILE}  executor: here\n  nodes: 2\n  setup: []\n")
    done = command(plugged_in, "run", file, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs submitted (here " in done.stdout and "[2/2] done" in done.stdout
    assert len(list((tmp_path / "out").glob("cells/*/attempt-*"))) == 2
    again = command(plugged_in, "run", file, "--output", tmp_path / "out")
    assert again.returncode == 0 and "submitted" not in again.stdout
    until = time.monotonic() + 100
    while "jobs:" in (said := command(plugged_in, "status", tmp_path / "out").stdout):
        assert time.monotonic() < until, said  # a job leaves some seconds after its last answer
    assert command(plugged_in, "cancel", tmp_path / "out").stdout == "no job waits or runs\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("broken", "launch.executor: 'broken' (toy_executor:Nothing) of 'toy' cannot be loaded: AttributeError"),
        ("half", "launch.executor: 'half' (toy_executor:Job) of 'toy' cannot be loaded: TypeError"),
        ("here\n  partition: x", "launch.partition: there are none here; leave it out"),
    ],
)
def test_what_is_wrong_with_an_executor_is_one_line(tmp_path, plugged_in, executor, said):
    file = tmp_path / "study.yaml"
    file.write_text(f"{FILE}  executor: {executor}\n")
    done = command(plugged_in, "run", file, "--output", tmp_path / "out")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
