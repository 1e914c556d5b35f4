"""Where a result comes from: what is known is written down, what is not is absent, and no key ever is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
from importlib.metadata import version

import pytest
import torch
from studies import cell, method

from finepruner_lmms.matrix import provenance
from finepruner_lmms.matrix.provenance import COMMAND, Watch, command, devices_of, git_revision
from finepruner_lmms.matrix.records import Conditions, Provenance, Speed, parse

CELL = cell("abc", "pope", of=method("random", 64, seed=7))


def of(one=CELL, watch=None, **changes):
    given = {"device": "a CPU", "processes": 1, "batch_size": 8} | changes
    return (watch or Watch()).provenance(one, **given)


def test_versions_machine_inputs_seeds_and_time_are_written_down():
    found = of()
    assert found.versions["torch"] == version("torch") and found.versions["lmms_eval"] == version("lmms_eval")
    assert found.inputs == {"checkpoint": "c", "data": "d", "task": "t"}
    assert found.seeds == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234, "method": 7}
    assert (found.device, found.devices, found.dtype, found.batch_size) == ("a CPU", 1, "float16", 8)
    assert found.started <= found.finished and found.wall_seconds >= 0
    written = found.model_dump(exclude_none=True)
    assert parse(Provenance, json.loads(json.dumps(written)), "result.json") == found


def test_what_is_not_known_is_absent():
    written = of().model_dump(exclude_none=True)
    assert not {"joules", "device_seconds", "peak_bytes", "driver"} & written.keys()


def test_times_of_the_model_are_the_slowest_processes():
    conditions = Conditions(device="d", dtype="float16", processes=2, batch_size=8, execution="eager", together=3)
    speed = Speed(
        questions=100, batches=13, seconds=20, questions_per_second=5, model_questions_per_second=10, peak_bytes=5,
        conditions=conditions,
    )  # fmt: skip
    found = of(speed=speed)
    assert (found.device_seconds, found.peak_bytes, found.together) == (10, 5, 3)


def test_a_file_of_heads_is_an_input(tmp_path):
    file = tmp_path / "heads.json"
    file.write_text("[1]")
    found = of(cell("abc", "pope", of=method("finepruner", 64, fixed_heads=str(file))))
    assert found.inputs["fixed_heads"] == hashlib.sha256(b"[1]").hexdigest()


@pytest.mark.parametrize(
    "words, shown",
    [
        (["/usr/bin/python3", "/x/bin/finepruner", "run", "a b.yaml"], "finepruner run 'a b.yaml'"),
        (["python", "run_matrix.py", "run", "m.yaml"], "python run_matrix.py run m.yaml"),
        (["finepruner", "x", "--key", "secret", "--token=secret"], "finepruner x --key '[key]' '--token=[key]'"),
        (["finepruner", "sk-abcdefghijklmnopqrstuvwx0123456789"], "finepruner '[key]'"),
    ],
)
def test_the_command_is_as_it_was_typed_but_for_secrets(monkeypatch, words, shown):
    monkeypatch.setenv(COMMAND, json.dumps(words))
    assert command() == shown


@pytest.mark.parametrize("told", ["{", "3", "[1]", None])
def test_a_command_that_nobody_handed_on_is_this_process(monkeypatch, told):
    if told is None:
        monkeypatch.delenv(COMMAND, raising=False)
    else:
        monkeypatch.setenv(COMMAND, told)
    monkeypatch.setattr(sys, "orig_argv", ["here", "it", "is"])
    assert command() == "here it is"


def test_the_revision_is_of_this_packages_checkout_and_says_whether_files_differ(tmp_path, monkeypatch):
    package = tmp_path / "finepruner_lmms" / "matrix"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    git_revision.cache_clear()
    assert git_revision() is None
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    git_revision.cache_clear()
    clean = git_revision()
    assert clean is not None and len(clean) == 40
    (package / "a.py").write_text("2")
    git_revision.cache_clear()
    assert git_revision() == f"{clean}+changes"
    git_revision.cache_clear()


def test_which_gpus_compute():
    cuda = torch.device("cuda", 3)
    assert devices_of(torch.device("cpu"), 1) == [] and devices_of(cuda, 1) == [3]


@pytest.mark.parametrize("local, devices", [("4", [0, 1, 2, 3]), ("2", []), (None, [])])
def test_energy_of_a_part_of_the_machines_is_not_measured(monkeypatch, local, devices):
    if local is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert devices_of(torch.device("cuda", 0), 4) == devices


class Nvml(types.ModuleType):
    """As nvidia-ml-py is, of GPUs that count millijoules."""

    class NVMLError(Exception):
        """As theirs."""

    def __init__(self, counts=True):
        super().__init__("pynvml")
        self.counts, self.spent = counts, {b"GPU-u0": 5000, b"GPU-u1": 9000}

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return b"580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid.encode()

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counts:
            raise self.NVMLError("not supported")
        self.spent[handle] += 1500
        return self.spent[handle]


def test_energy_is_what_the_gpus_took_from_start_to_end(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: types.SimpleNamespace(uuid=f"u{number}"))
    found = of(watch=Watch([0, 1]))
    assert found.joules == 3.0 and found.driver == "580.1"


def test_a_gpu_that_does_not_count_has_no_energy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(counts=False))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: types.SimpleNamespace(uuid=f"u{number}"))
    assert of(watch=Watch([0])).joules is None


def test_without_the_bindings_there_is_no_energy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert of(watch=Watch([0])).joules is None


def test_provenance_is_no_part_of_the_identity():
    assert "provenance" not in CELL.spec() and of().command is not None
