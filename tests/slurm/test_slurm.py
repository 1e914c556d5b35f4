"""Jobs of a real SLURM work through a study: spread over nodes, lost, found again, ended. Workers are a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import real_slurm
from studies import VANILLA, cell, study

from finepruner_lmms.matrix import squeue
from finepruner_lmms.matrix.cluster import submissions
from finepruner_lmms.matrix.run_settings import RunSettings, save_settings
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.matrix.store import Store

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FAKE = HERE / "fake"


@pytest.fixture(scope="session")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory):
    if why := real_slurm.missing():
        pytest.skip(why)
    pytest.importorskip("submitit")
    folder = Path(tmp_path_factory.mktemp("slurm"))
    for parent in (folder, *folder.parents[:2]):  # munged wants nobody else to write here, and to be let through
        parent.chmod(0o755)
    with real_slurm.slurm(folder) as conf:
        yield conf


@pytest.fixture
def slurm(slurm_conf, monkeypatch):
    """Commands of this test, and what it starts, speak to that SLURM."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    return slurm_conf


class Bench:
    """A study of fake cells in a folder, and what the workers said of it."""

    def __init__(self, folder: Path, cells: int, seconds: float, **launch) -> None:
        self.root, self.log, self.conf = folder / "out", folder / "log.jsonl", os.environ["SLURM_CONF"]
        self.log.touch()
        setup = [f"export PYTHONPATH={FAKE}:{ROOT}", f"export FAKE_LOG={self.log}", f"export FAKE_SECONDS={seconds}"]
        setup += ["export OF_SETUP=yes", *launch.pop("setup", [])]
        launch = {"executor": "slurm", "time": 30, "processes": 1, "fan_out": "off"} | launch | {"setup": setup}
        file = {"name": "n", "tasks": ["gqa"], "methods": ["vanilla"], "data": "demo", "launch": launch}
        self.file = MatrixFile.model_validate(file)
        self.store = Store(self.root)
        self.study = study([VANILLA], [cell(f"cell{number}", "gqa") for number in range(cells)])
        self.store.save_study(self.study)
        save_settings(self.root, RunSettings(file=self.file, began=time.time()))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """A process that follows the study, as `run` does."""
        call = [sys.executable, str(FAKE / "follow_study.py"), str(self.root)]
        output = (self.root / "follow.txt").open("a")
        path = {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(call, stdout=output, stderr=output, text=True, env=os.environ | path | environment)

    def said(self) -> str:
        return (self.root / "follow.txt").read_text()

    def entries(self, what: str) -> list[dict]:
        lines = self.log.read_text().split("\n")[:-1]
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def wait_for(self, ready: Callable[[], object], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"no {what}\n{self.said()}\n{squeue.queue()}"
            time.sleep(0.1)

    def assert_each_cell_was_done_once(self) -> None:
        states = [state.name for state in self.store.states(self.study.cells)]
        assert states == ["done"] * len(states), self.said()
        done = Counter(entry["cell"] for entry in self.entries("done"))
        assert done == {one.id: 1 for one in self.study.cells}, done


@pytest.fixture(scope="module", autouse=True)
def bench_of_a_minute(slurm_conf, tmp_path_factory):
    """A job of one minute; it runs beside the other tests, which leave it a core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(slurm_conf))
        made = Bench(tmp_path_factory.mktemp("minute"), 7, 8.0, time=1, extra={"nodelist": "n2"})
        run = made.start()
        yield made, run
        run.kill()
        run.wait()
        submissions.cancel(made.root)


@pytest.fixture
def bench(slurm, tmp_path):
    made = []

    def make(cells: int, seconds: float, **launch) -> Bench:
        made.append(Bench(tmp_path, cells, seconds, **launch))
        return made[-1]

    yield make
    for one in made:
        submissions.cancel(one.root)


def cancel(*arguments: str) -> None:
    subprocess.run(["scancel", *arguments], check=True, timeout=20)


def jobs_of(bench: Bench) -> list[str]:
    return [job.id for _, _, job in submissions.live(bench.root).jobs]


def test_an_array_on_two_nodes_works_through_a_study(bench):
    study = bench(6, 3.0, nodes=2, gpus_per_node=4, extra={"cpus-per-task": 2, "comment": "two words"})
    run = study.start(RANK="3", WORLD_SIZE="8", SLURM_NTASKS="8")
    study.wait_for(lambda: len(study.entries("start")) >= 2, "start")
    status = subprocess.run(
        [sys.executable, str(ROOT / "run_matrix.py"), "status", str(study.root)], capture_output=True, text=True
    )
    assert "jobs: 2 running, 0 waiting" in status.stdout and "on n1" in status.stdout and "on n2" in status.stdout
    assert run.wait(120) == 0, study.said()
    study.assert_each_cell_was_done_once()
    assert len(study.entries("start")) == 6
    started = study.entries("start")
    assert {entry["SLURMD_NODENAME"] for entry in started} == {"n1", "n2"}
    assert {entry["CUDA_VISIBLE_DEVICES"] for entry in started} == {"0,1,2,3"}
    assert {(entry["RANK"], entry["SLURM_PROCID"], entry["SLURM_NTASKS"]) for entry in started} == {(None, None, None)}
    assert {entry["OF_SETUP"] for entry in started} == {"yes"}
    (record,) = study.root.glob("jobs/*/submission.json")
    assert len(json.loads(record.read_text())["ids"]) == 2
    assert len(list(study.root.glob("jobs/1/*/*_log.out"))) == 2  # a log for each job
    study.wait_for(lambda: not jobs_of(study), "end of the jobs")


def test_jobs_that_are_lost_hand_their_cells_on_and_a_new_run_finds_the_others(bench):
    """One job is cancelled, one killed, one told that its time is over; the process that submitted them is gone."""
    study = bench(10, 2.0, nodes=3, gpus_per_node=2)
    run = study.start()
    study.wait_for(lambda: len({entry["job"] for entry in study.entries("start")}) == 3, "start of three jobs")
    run.kill()
    run.wait()
    cancelled, killed, warned = sorted(jobs_of(study))
    cancel(cancelled)
    process_of(killed).kill()
    cancel("--signal=USR2", warned)
    study.wait_for(lambda: jobs_of(study) == [warned], "end of two jobs")
    before = len(study.said())
    again = study.start()
    assert again.wait(120) == 0, study.said()
    study.assert_each_cell_was_done_once()
    no_two_at_once(study)
    attempts = [json.loads(file.read_text())["how"] for file in study.root.glob("cells/*/attempt-*/ended.json")]
    assert attempts.count("done") == 10 and set(attempts) <= {"done", "interrupted", "died"}
    submitted = [json.loads(file.read_text()) for file in sorted(study.root.glob("jobs/*/submission.json"))]
    assert [record["jobs"] for record in submitted][:2] == [3, 2]  # what the one that lives does not do
    assert f"job {warned} " in study.said()[before:]  # the new process found it


def process_of(job: str) -> psutil.Process:
    """The process that submitit started in a job."""
    array, _, task = job.partition("_")
    for process in psutil.process_iter():
        try:
            environment = process.environ() if "submitit.core._submit" in process.cmdline() else {}
        except psutil.Error:
            continue
        named = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        if named == (array, task) and Path(process.exe()).name.startswith("python"):
            return process
    raise AssertionError(f"no process of job {job}")


def no_two_at_once(bench: Bench) -> None:
    """No cell was begun while somebody else was at it: where one was lost, its process was gone."""
    for one in bench.study.cells:
        folder = bench.store.cell_dir(one)
        numbers = sorted(int(attempt.name[8:]) for attempt in folder.glob("attempt-*"))
        for number in numbers[:-1]:
            ended = json.loads((folder / f"attempt-{number}" / "ended.json").read_text())
            began = (folder / f"attempt-{number + 1}" / "owner.json").stat().st_mtime
            assert ended["at"] <= began or ended["how"] == "died", (one.id, ended, began)


def test_a_job_that_makes_room_for_an_urgent_one_goes_on_afterwards(bench):
    study = bench(4, 3.0, gpus_per_node=4, extra={"nodelist": "n1"})
    run = study.start()
    study.wait_for(lambda: study.entries("start"), "start")
    urgent = ["sbatch", "--partition=urgent", "--nodelist=n1", "--gres=gpu:4", "--output=/dev/null", "--wrap=sleep 2"]
    subprocess.run(urgent, check=True, timeout=20, capture_output=True)
    assert run.wait(120) == 0, study.said()
    study.assert_each_cell_was_done_once()
    no_two_at_once(study)
    assert {entry["SLURM_RESTART_COUNT"] for entry in study.entries("start")} == {None, "1"}
    assert len(list(study.root.glob("jobs/*"))) == 1  # SLURM put it back, nobody had to


def test_cancel_ends_the_jobs_and_the_run_that_looks_on(bench):
    study = bench(4, 30.0, nodes=2, gpus_per_node=4)
    run = study.start()
    study.wait_for(lambda: len(study.entries("start")) == 2, "start")
    said = command("cancel", study.root)
    assert said.returncode == 0 and said.stdout.startswith("cancelled 2 jobs: ")
    assert run.wait(60) == 1 and "JobsCancelled: the jobs were cancelled; what is done is kept" in study.said()
    study.wait_for(lambda: not jobs_of(study), "end of the jobs")
    assert {json.loads(file.read_text())["how"] for file in study.root.glob("cells/*/attempt-1/ended.json")} == {
        "interrupted"
    }
    assert [state.name for state in study.store.states(study.study.cells)] == ["missing"] * 4
    assert command("cancel", study.root).stdout == "no job waits or runs\n"


def test_jobs_of_a_process_that_could_not_write_down_their_ids_are_found_by_name(bench):
    study = bench(2, 30.0)
    folder, record = submissions.submit(study.root, "n", study.file.launch, 1)
    submissions._write(folder, record.model_copy(update={"ids": ()}))
    assert jobs_of(study) == list(record.ids)
    submissions.live(study.root, remember=True)
    assert json.loads((folder / "submission.json").read_text())["ids"] == list(record.ids)


def test_a_claim_lives_as_long_as_this_start_of_its_job(bench):
    study = bench(1, 30.0)
    _, record = submissions.submit(study.root, "n", study.file.launch, 1)
    (job,) = record.ids
    study.wait_for(lambda: study.entries("start"), "start")
    assert squeue.job_is_alive(f"slurm:test:{job}:0") is True
    assert squeue.job_is_alive(f"slurm:other:{job}:0") is None  # of another cluster: nobody here knows
    assert squeue.job_is_alive("slurm:test:999:0") is False
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=20)
    study.wait_for(lambda: [found.restarts for found in squeue.queue([job])] == [1], "job in the queue again")
    squeue._is_alive.cache_clear()
    assert squeue.job_is_alive(f"slurm:test:{job}:0") is False
    assert squeue.job_is_alive(f"slurm:test:{job}:1") is True


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({"partition": "gpus"}, "launch.partition: got 'gpus' (did you mean 'gpu'?); partitions of this cluster: gpu"),
        ({"gpus_per_node": 9}, "launch.gpus_per_node: got 9; sbatch: Batch job submission failed: Requested node"),
        ({"extra": {"bogus": 1}}, "launch.extra: got {'bogus': 1}; sbatch: unrecognized option '--bogus=1'"),
        ({"extra": {"mem": "lots"}}, "launch.extra: got {'mem': 'lots'}; sbatch: "),
    ],
)
def test_what_sbatch_refuses_is_one_line_with_the_field(bench, launch, said):
    study = bench(1, 1.0, **launch)
    run = study.start()
    assert run.wait(60) == 1
    assert f"FieldError: {said}" in study.said() and study.said().count("\n") == 1


def test_jobs_that_end_before_they_begin_are_not_submitted_for_ever(bench):
    study = bench(2, 1.0, setup=["unset PYTHONPATH; export PYTHONHOME=/nowhere"])
    run = study.start()
    assert run.wait(60) == 1
    assert "JobsFailed: jobs end before they begin any cell: ModuleNotFoundError: No module named 'enc" in study.said()
    assert len(list(study.root.glob("jobs/*"))) == 3


def test_a_job_whose_time_is_over_goes_on_later(bench_of_a_minute):
    """SLURM itself warns the job: what it was at is interrupted, and it is put back and ends the rest."""
    study, run = bench_of_a_minute
    assert run.wait(150) == 0, study.said()
    study.assert_each_cell_was_done_once()
    no_two_at_once(study)
    assert {entry["SLURM_RESTART_COUNT"] for entry in study.entries("start")} >= {None, "1"}
    assert len({entry["job"] for entry in study.entries("start")}) == 1
    assert len(list(study.root.glob("jobs/*"))) == 1


def command(*arguments) -> subprocess.CompletedProcess:
    call = [sys.executable, str(ROOT / "run_matrix.py"), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, timeout=240)


def test_run_answers_real_questions_on_two_nodes(slurm, tmp_path):
    """The whole way: `run`, submitit, SLURM, the demo model, lmms-eval, the leaderboard."""
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: study\nmodel: {pretrained: demo, device: cpu}\ndata: demo\ntasks: [pope]\nlimit: 4\n"
        "methods: [vanilla, {method: random, budget: 64}]\n"
        "launch: {executor: slurm, nodes: 2, gpus_per_node: 4, time: '00:30:00', processes: 1, batch_size: 4}\n"
    )
    done = command("run", file, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs submitted (slurm " in done.stdout and "[2/2] done" in done.stdout and "vanilla" in done.stdout
    owners = [json.loads(found.read_text()) for found in (tmp_path / "out").glob("cells/*/attempt-*/owner.json")]
    assert len(owners) == 2 and len({owner["job"] for owner in owners}) == 2, owners
    again = command("run", file, "--output", tmp_path / "out")
    assert again.returncode == 0 and "submitted" not in again.stdout
