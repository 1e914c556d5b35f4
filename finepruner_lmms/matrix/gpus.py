"""How many GPUs torch would use, asked of the CUDA driver, as torch itself asks it: loading torch takes seconds.

The driver knows `CUDA_VISIBLE_DEVICES`. Where it is not there, or torch is not built for it, there is no GPU; where the
answer is anything but a number, or torch is built for other devices, torch is asked.
"""

from __future__ import annotations

import ctypes
import importlib.util
import runpy
from pathlib import Path

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def count_gpus() -> int:
    """`torch.cuda.device_count()`."""
    built_for = _torch_version()
    if built_for.get("hip") is None and built_for.get("cuda") is None:
        return 0
    if built_for.get("hip") is None and (found := _ask_driver()) is not None:
        return found
    import torch

    return torch.cuda.device_count()


def _torch_version() -> dict[str, object]:
    """What torch says it is built for, from the file in which it says so."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def _ask_driver() -> int | None:
    """The devices that the CUDA driver shows this process; None where it does not say."""
    driver = _load("libcuda.so.1")
    if driver is None:
        return 0 if _load("libnvidia-ml.so.1") is None else None
    if (status := driver.cuInit(0)) == _NO_DEVICE:
        return 0
    count = ctypes.c_int()
    return count.value if status == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else None


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
