"""Several workers on one study: packed over places, beside other runs, stopped in the middle.

The worker is a few lines of Python that really claim their cells; what it does wrong is the test's choice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from studies import cell
from test_matrix_failures import Display

from finepruner_lmms import claims
from finepruner_lmms.matrix import launch, modes, runner
from finepruner_lmms.matrix.launch import MARK, processes_of
from finepruner_lmms.matrix.modes import choose_mode, in_order, makespan, places, together
from finepruner_lmms.matrix.run_settings import RunSettings, save_settings
from finepruner_lmms.matrix.runner import OutputGone, clean_up, run_cells
from finepruner_lmms.matrix.sections import LaunchSection, MatrixFile, Timeouts
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.work import work

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from finepruner_lmms.matrix.attempts import begin, take
from finepruner_lmms.matrix.results import write_result

place = os.environ.get("CUDA_VISIBLE_DEVICES", "")
plan = json.loads(Path(sys.argv[1]).read_text())
events = Path(sys.argv[1]).with_name("events.jsonl").open("a", buffering=1)
say = lambda event, **facts: events.write(json.dumps({"event": event, **facts}) + "\\n")
say("loading")
LOAD
for cell in plan["cells"]:
    claim = take(Path(cell["path"]), cell["attempts"])
    if claim is None:
        continue
    begin(claim, plan["launch"])
    say("start", cell=cell["id"])
    BODY
    result = {"id": cell["id"], "metrics": {"exact_match,none": 0.5}, "percent": 50.0, "standard_error": 1.0}
    result |= {"answered": 1, "expected": 1, "seconds": 1.0, "spec": {"task": "gqa"}, "place": place}
    write_result(Path(cell["path"]), result, [{"doc_id": 0}])
    say("done", cell=cell["id"])
say("end")
"""
FILE = MatrixFile.model_validate(
    {"name": "n", "tasks": ["gqa"], "methods": ["vanilla"], "launch": {"processes": 3, "mode": "packed", "fan_out": 1}}
)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "run")


@pytest.fixture
def body(tmp_path, monkeypatch):
    """Have workers do this in each cell, and that before the first."""
    script = tmp_path / "worker.py"

    def use(body: str, load: str = "") -> None:
        script.write_text(WORKER.replace("BODY", body).replace("LOAD", load))

    monkeypatch.setattr(modes, "count_gpus", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        launch, "_command", lambda _folder, _slot, _plan, file: [sys.executable, str(script), str(file)]
    )
    return use


def attempts(store: Store, cells) -> Counter[int]:
    return Counter(len(list(store.cell_dir(cell).glob("attempt-*"))) for cell in cells)


def placed(store: Store, cells) -> set[str]:
    return {json.loads((store.cell_dir(cell) / "result.json").read_text())["place"] for cell in cells}


@pytest.mark.slow
def test_packed_workers_share_the_cells_and_none_is_run_twice(store, body):
    body("time.sleep(0.3)")
    cells, display = [cell(f"c{number}", "gqa") for number in range(12)], Display()
    run_cells(store, FILE, cells, display)
    assert sorted(name for name, state, _ in display.ended if state == "done") == sorted(one.id for one in cells)
    assert attempts(store, cells) == {1: 12} and placed(store, cells) == {"0", "1", "2"}


@pytest.mark.slow
def test_a_gpu_that_dies_costs_no_cell_and_is_left_out(store, body):
    body("os.kill(os.getpid(), signal.SIGKILL) if place == '1' else time.sleep(2)")
    cells, display = [cell(f"c{number}", "gqa") for number in range(8)], Display()
    run_cells(store, FILE, cells, display)
    states = {one.id: store.state(one).name for one in cells}
    assert set(states.values()) == {"done"}, states
    assert placed(store, cells) <= {"0", "2"}
    assert any("worker 1 (GPU 1) is left out: it died 2 times in a row" in note for note in display.notes)


@pytest.mark.slow
def test_a_gpu_on_which_nothing_starts_is_left_out_with_its_reason(store, body):
    body("time.sleep(0.2)", load="if place == '2': raise RuntimeError('CUDA error: uncorrectable ECC')")
    cells, display = [cell(f"c{number}", "gqa") for number in range(6)], Display()
    run_cells(store, FILE, cells, display)
    assert {store.state(one).name for one in cells} == {"done"}
    assert any("worker 2 (GPU 2) is left out: " in note and "uncorrectable ECC" in note for note in display.notes)


@pytest.mark.slow
def test_two_runs_on_one_folder_do_each_cell_once(store, body, tmp_path):
    """Also without the lock on the directory: as where a file system shows each of them a directory of its own."""
    body("time.sleep(0.2)")
    cells = [cell(f"c{number}", "gqa") for number in range(10)]
    from studies import VANILLA, study

    store.save_study(study([VANILLA], cells))
    save_settings(store.root, RunSettings(file=FILE))
    script = (
        "import sys\nfrom pathlib import Path\nfrom finepruner_lmms.matrix import launch, modes, work\n"
        "sys.path.insert(0, sys.argv[3])\nfrom test_matrix_failures import Display\n"
        "modes.count_gpus = lambda: 3\n"
        "launch._command = lambda _f, _s, _p, file: [sys.executable, sys.argv[2], str(file)]\n"
        "work.work(Path(sys.argv[1]), Display())\n"
    )
    command = [sys.executable, "-c", script, str(store.root), str(tmp_path / "worker.py"), str(Path(__file__).parent)]
    others = [subprocess.Popen(command) for _ in range(2)]
    work(store.root, Display())
    assert [process.wait(60) for process in others] == [0, 0]
    assert {store.state(one).name for one in cells} == {"done"} and attempts(store, cells) == {1: 10}


def done_elsewhere(store: Store, one) -> None:
    """Another run does a cell."""
    from finepruner_lmms.matrix.attempts import begin_attempt
    from finepruner_lmms.matrix.results import write_result

    folder = store.cell_dir(one)
    begin_attempt(folder, "elsewhere")
    result = {"id": one.id, "metrics": {"exact_match,none": 0.5}, "percent": 50.0, "standard_error": 1.0}
    result |= {"answered": 1, "expected": 1, "seconds": 1.0, "spec": {"task": "gqa"}, "place": "elsewhere"}
    write_result(folder, result, [{"doc_id": 0}])


@pytest.mark.slow
def test_a_cell_that_another_run_took_over_from_a_dead_worker_stays_its_own(store, body, monkeypatch):
    """The dead worker's cell is free at once, so another run may have it before this one hears of the death."""
    from test_claims import elsewhere

    body("os._exit(3)")
    (one,), display = [cell("a", "gqa")], Display()
    heard = runner.Crew._died_in

    def taken_over(self, *given):
        elsewhere(store.cell_dir(one))
        heard(self, *given)

    monkeypatch.setattr(runner.Crew, "_died_in", taken_over)
    run_cells(store, FILE, [one], display)
    assert claims.ended(store.cell_dir(one) / "attempt-2") is None and attempts(store, [one]) == {2: 1}
    assert any("another run goes on with it" in note for note in display.notes)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the first look", "between the look and the launch"])
def test_a_cell_that_another_run_did_in_the_meantime_is_not_done_again(store, body, monkeypatch, when):
    body("pass")
    cells, display, new_launch = [cell("a", "gqa"), cell("b", "gqa")], Display(), Store.new_launch
    if when == "before the first look":  # but after these cells were found missing
        done_elsewhere(store, cells[0])
    else:
        launches: list[Path] = []

        def launch_late(self):
            if not launches:
                done_elsewhere(store, cells[0])
            launches.append(new_launch(self))
            return launches[-1]

        monkeypatch.setattr(Store, "new_launch", launch_late)
    run_cells(store, FILE, cells, display)
    assert attempts(store, cells) == {1: 2}
    assert sorted(name for name, state, _ in display.ended if state == "done") == ["a", "b"]


def test_what_another_machine_holds_is_left_to_it(store, body):
    from test_claims import elsewhere

    body("pass")
    held, free = cell("held", "gqa"), cell("free", "gqa")
    elsewhere(store.cell_dir(held))
    run_cells(store, FILE, [held, free], Display())
    assert store.state(free).name == "done" and len(list(store.cell_dir(held).glob("attempt-*"))) == 1


@pytest.mark.slow
def test_a_stop_ends_the_workers_and_frees_their_cells(store, body):
    body("time.sleep(600)")
    cells, stop = [cell("a", "gqa"), cell("b", "gqa")], threading.Event()
    seen = Display()
    seen.cell_started = lambda label, worker=0: stop.set()  # type: ignore[method-assign]
    run_cells(store, FILE, cells, seen, stop=stop)
    assert processes_of(store.root / "launches") == []
    assert {store.state(one).name for one in cells} == {"missing"}
    ended = {claims.ended(attempt) for one in cells for attempt in store.cell_dir(one).glob("attempt-*")}
    assert ended == {"interrupted"}


@pytest.mark.slow
def test_a_folder_that_is_removed_ends_the_run(store, body):
    import shutil

    body("time.sleep(600)")
    seen = Display()
    seen.cell_started = lambda label, worker=0: shutil.rmtree(store.root)  # type: ignore[method-assign]
    with pytest.raises(OutputGone, match="was removed while the run worked in it"):
        run_cells(store, FILE, [cell("a", "gqa")], seen)
    assert processes_of(store.root / "launches") == []


@pytest.mark.slow
def test_a_process_in_a_session_of_its_own_that_is_stopped_ends_with_its_launch(store, body):
    """torchrun gives each rank a session, and a stopped process hears no signal but one."""
    body(
        "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'import os, signal; "
        "os.kill(os.getpid(), signal.SIGSTOP)'], start_new_session=True); time.sleep(0.5); os._exit(1)"
    )
    run_cells(store, FILE, [cell("a", "gqa")], Display())
    assert processes_of(store.root / "launches") == []


@pytest.mark.slow
def test_what_moves_is_never_stopped_and_what_stands_still_is_named(store, body, tmp_path):
    """A heartbeat alone is no movement; the main thread's going through its code is."""
    start = "from finepruner_lmms.lmms import heartbeat; heartbeat.begin(); heartbeat.phase('answer')"
    slow = "end = time.monotonic() + 6\nwhile time.monotonic() < end: time.sleep(0.01)"  # at one place, but not stuck
    patient = FILE.model_copy(
        update={"launch": FILE.launch.model_copy(update={"timeout_minutes": Timeouts(answer=0.05)})}
    )
    body(slow.replace("\n", "\n    "), load=start)
    run_cells(store, patient, [cell("moves", "gqa")], Display())
    assert store.state(cell("moves", "gqa")).name == "done"

    body(
        "import threading; threading.Lock().acquire() or 0; lock = threading.Lock(); lock.acquire(); lock.acquire()",
        load=start,
    )
    display = Display()
    run_cells(store, patient, [cell("stuck", "gqa")], display)
    reason = display.ended[-1][2]
    assert reason.startswith("no movement for 0.05 minutes while answering, in worker.py:")


# -- which mode, and where --------------------------------------------------------------------------------------------


def test_the_faster_mode_is_chosen(monkeypatch):
    auto = LaunchSection()
    assert choose_mode(auto, 1, 100, {"resident": 9.0, "packed": 1.0}) == "resident"  # nothing to spread
    assert choose_mode(auto, 8, 100, {"resident": 9.0, "packed": 8.0, "isolated": 1.0}) == "packed"
    assert choose_mode(auto, 8, 100, {"resident": 8.0, "packed": 8.0}) == "resident"
    assert choose_mode(LaunchSection(mode="isolated"), 8, 100, {"resident": 1.0, "packed": 8.0}) == "isolated"
    monkeypatch.setattr(modes, "count_gpus", lambda: 8)
    assert choose_mode(auto, 8, 16) == "packed" and choose_mode(auto, 8, 15) == "resident"


def test_packed_places_have_a_gpu_each_and_the_processor_is_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    packed = FILE.model_copy(update={"launch": LaunchSection(mode="packed")})
    assert [slot.devices for slot in places(packed, "packed", 3)] == ["4", "5", "7"]
    assert [slot.processes for slot in places(packed, "resident", 3)] == [3]
    cpu = places(FILE, "packed", 0)
    assert [slot.cpu for slot in cpu] == [True] * 3 and all(slot.cores >= 1 for slot in cpu)


def test_a_model_that_is_to_run_on_the_processor_uses_no_gpu(monkeypatch, tmp_path):
    """With two processes NCCL would be started on a machine with GPUs."""
    monkeypatch.setattr(modes, "count_gpus", lambda: 8)
    file = MatrixFile.model_validate(
        {"name": "n", "tasks": ["gqa"], "methods": ["vanilla"], "model": {"device": "cpu"}, "launch": {"processes": 2}}
    )
    assert modes.usable_gpus(file.model) == 0
    (slot,) = places(file, "resident", modes.usable_gpus(file.model))
    assert launch._environment(tmp_path, slot)["ACCELERATE_USE_CPU"] == "true"
    assert launch._environment(tmp_path, slot)[MARK] == str(tmp_path)


def test_cells_are_packed_longest_first_in_groups_of_a_task():
    cells = [cell("a", "gqa"), cell("b", "gqa"), cell("c", "mme"), cell("d", "mme")]
    seconds = {"a": 1.0, "b": 1.0, "c": 5.0, "d": 1.0}
    assert [one.id for one in in_order(cells, seconds, 2)] == ["c", "d", "a", "b"]
    assert together(FILE.model_copy(update={"launch": LaunchSection()}), "packed", 20, 8, 0) == 3
    assert makespan([4, 3, 2, 1], 2) == 5 and makespan([], 3) == 0


def test_no_place_outlives_its_runner(tmp_path):
    """A child is killed by the kernel when its parent ends, whether or not it could see to it itself."""
    from finepruner_lmms.matrix.launch import tethered

    code = (
        "import subprocess, sys, time\nfrom finepruner_lmms.matrix.launch import tethered\n"
        "print(subprocess.Popen(tethered(['sleep', '600'])).pid, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    os.kill(child, 19)  # stopped
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()
    assert tethered(["x"])[-1] == "x"


@pytest.mark.slow
def test_what_a_runner_left_behind_is_ended_and_what_one_is_at_is_not(tmp_path):
    folder = (tmp_path / "launches" / "1").resolve()
    folder.mkdir(parents=True)
    gone = subprocess.run(
        [sys.executable, "-c", "from finepruner_lmms.claims import name_of_this; print(name_of_this())"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    mark = os.environ | {MARK: str(folder)}
    left = subprocess.Popen(["sleep", "600"], env=mark | {launch.RUNNER: gone}, start_new_session=True)
    busy = subprocess.Popen(["sleep", "600"], env=mark | {launch.RUNNER: claims.name_of_this()})
    try:
        assert set(processes_of(tmp_path / "launches")) == {left.pid, busy.pid}
        clean_up(Store(tmp_path))
        assert left.wait(10) == -9 and busy.poll() is None
    finally:
        left.kill(), busy.kill(), left.wait(), busy.wait()


@pytest.mark.slow
def test_processes_that_know_nothing_of_their_runner_end_with_it(tmp_path):
    """As the ranks of a launcher that is gone, before they have begun: in sessions of their own, tied to nobody."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)\ntime.sleep(600)"
    )
    code = (
        "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[3])\n"
        "from test_crew import FILE\nfrom studies import cell\nfrom finepruner_lmms.matrix import launch\n"
        "from finepruner_lmms.matrix.plan import Plan\n"
        "launch._command = lambda *_: [sys.executable, sys.argv[2]]\n"
        "plan = Plan(launch='1', model=FILE.model, batch_size=1, data='demo', limit=None, monitor=False,\n"
        "            submission=False, fan_out=1, cells=())\n"
        "one = launch.Launch(Path(sys.argv[1]), plan, launch.Slot(cpu=True), FILE.launch.timeouts)\n"
        "time.sleep(600)"
    )
    folder = tmp_path / "launches" / "1"
    folder.mkdir(parents=True)
    runner = subprocess.Popen([sys.executable, "-c", code, str(folder), str(script), str(Path(__file__).parent)])
    try:
        deadline = time.monotonic() + 60
        while not (folder / "log.txt").exists() or not (folder / "log.txt").read_text().strip():
            assert time.monotonic() < deadline and runner.poll() is None
            time.sleep(0.05)
        assert len(processes_of(folder)) == 2
    finally:
        runner.kill()
        runner.wait()
    deadline = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(folder) == []
