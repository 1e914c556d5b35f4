"""Where a result comes from: code, versions, machine, inputs, command, time, memory and energy.

It stands in `result.json` and says nothing about what the result is: that is the identity's, and none of this is part
of it. What is not known is absent, never zero.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Provenance, Speed
from finepruner_lmms.redaction import has_shape_of_key

COMMAND = "FINEPRUNER_COMMAND"
"""The environment variable in which a command hands on to its workers how it was typed, as a JSON list."""
_LIBRARIES = (
    "finepruner-lmms", "lmms_eval", "torch", "torchvision", "transformers", "tokenizers", "accelerate", "datasets",
    "numpy", "pillow", "huggingface_hub",
)  # fmt: skip
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""lmms-eval's own, which every evaluation starts from; a method's seed is one of its parameters."""
_SECRETS = ("--key", "--token", "--api-key", "--password")


class Watch:
    """Begins when a cell does: start, clock, and where NVML is there the energy that its GPUs have taken so far."""

    def __init__(self, devices: Sequence[int] = ()) -> None:
        """`devices` are the CUDA indices that compute, if these are all that do: see `devices_of`."""
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._handles = _handles(devices)
        self._energy = _energies(self._handles)

    def provenance(
        self,
        cell: Cell,
        *,
        device: str | None,
        processes: int,
        batch_size: int,
        speed: Speed | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Provenance:
        """Of a cell that is answered now. `device` is the name of what answered it; `inputs` are more hashes."""
        after, joules = _energies(self._handles), None
        if after and self._energy and len(after) == len(self._energy):
            joules = round(sum(after) - sum(self._energy), 3)
        return Provenance(
            versions=versions(),
            git_revision=git_revision(),
            python=platform.python_version(),
            system=platform.platform(),
            host=socket.gethostname(),
            device=device,
            devices=processes,
            driver=driver(),
            dtype=cell.identity.dtype,
            batch_size=batch_size,
            seeds=SEEDS | ({"method": seed} if isinstance(seed := cell.method.parameters.get("seed"), int) else {}),
            command=command(),
            inputs={"checkpoint": cell.identity.checkpoint, "data": cell.identity.data, "task": cell.identity.task}
            | _head_file(cell)
            | dict(inputs or {}),
            started=self.started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_seconds=round(time.monotonic() - self._clock, 3),
            device_seconds=_device_seconds(speed),
            peak_bytes=None if speed is None else speed.peak_bytes,
            joules=joules,
            together=None if speed is None else speed.conditions.together,
        )


def _device_seconds(speed: Speed | None) -> float | None:
    """How long the model computed, of the slowest process."""
    if speed is None or not speed.model_questions_per_second:
        return None
    return round(speed.questions / speed.model_questions_per_second, 3)


@cache
def versions() -> dict[str, str]:
    """Those of the packages that a result can depend on, and of CUDA and cuDNN where PyTorch was built with them."""
    found = {}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    torch: Any = sys.modules.get("torch")  # who computed has imported it; to plan and to show nobody need
    if torch is not None:
        if torch.version.cuda:
            found["cuda"] = str(torch.version.cuda)
        if torch.backends.cudnn.is_available():
            found["cudnn"] = str(torch.backends.cudnn.version())
    return found


@cache
def git_revision() -> str | None:
    """The commit of this package's checkout, with `+changes` where files differ from it; None where it is installed."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    asked = ["git", "-C", str(package.parent)]
    # a checkout of somebody else's is not to run programs of its configuration
    quiet = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    try:
        revision = _told([*asked, *quiet, "rev-parse", "HEAD"])
        changed = _told([*asked, *quiet, "status", "--porcelain", "--untracked-files=no", "--", str(package)])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}+changes" if changed else revision or None


def _told(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip()


def command() -> str:
    """The command line as it was typed, quoted for a shell; what follows an option for a secret is left out."""
    words = sys.orig_argv
    with suppress(KeyError, ValueError):
        told = json.loads(os.environ[COMMAND])
        if isinstance(told, list) and all(isinstance(word, str) for word in told):
            words = told
    if len(words) > 1 and Path(words[0]).name.startswith("python") and Path(words[1]).name == "finepruner":
        words = ["finepruner", *words[2:]]  # the interpreter of a console script, which nobody typed
    shown, secret = [], False
    for word in words:
        name, given, _ = word.partition("=")
        hidden = name in _SECRETS
        shown.append("[key]" if secret or has_shape_of_key(word) else f"{name}=[key]" if hidden and given else word)
        secret = hidden and not given
    return shlex.join(shown)


def _head_file(cell: Cell) -> dict[str, str]:
    """The hash of the file that names heads, where a method reads one."""
    from finepruner_lmms.files import content_hash, expand_home

    found = {}
    for name, value in cell.method.parameters.items():
        if isinstance(value, str) and value.endswith((".json", ".yaml", ".yml", ".npy", ".pt")):
            with suppress(OSError):
                found[name] = content_hash(Path(expand_home(value)))
    return found


# -- NVML -------------------------------------------------------------------------------------------------------------


def _nvml() -> Any:
    """NVML's bindings, initialised; None where they, the library or a GPU are not there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def driver() -> str | None:
    """The version of the GPU's driver, where NVML tells it."""
    if (nvml := _nvml()) is None:
        return None
    try:
        version = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


def devices_of(device: Any, processes: int) -> list[int]:
    """The CUDA indices of a run with so many processes, of which this one computes on `device`.

    Empty on a CPU, and where some are on other machines, so that what is measured here would be a part.
    """
    if device.type != "cuda":
        return []
    if processes == 1:
        return [device.index or 0]
    return list(range(processes)) if os.environ.get("LOCAL_WORLD_SIZE") == str(processes) else []


def _handles(devices: Sequence[int]) -> list[Any]:
    """NVML's handles of CUDA devices, found by their UUID, since CUDA_VISIBLE_DEVICES numbers them anew."""
    torch: Any = sys.modules.get("torch")
    if not devices or torch is None or (nvml := _nvml()) is None:
        return []
    try:
        return [
            nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(number).uuid}") for number in devices
        ]
    except (nvml.NVMLError, AttributeError, RuntimeError, AssertionError):
        return []


def _energies(handles: Sequence[Any]) -> list[float]:
    """What each GPU has taken since its driver was loaded, in joules; empty where one does not count."""
    if not handles or (nvml := _nvml()) is None:
        return []
    try:
        return [nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000 for handle in handles]
    except nvml.NVMLError:
        return []
