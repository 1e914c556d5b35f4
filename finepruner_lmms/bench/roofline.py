"""What the device can do at best: matrix products and copies, measured in the same run as everything else."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from finepruner_lmms.bench.clock import repeated


@dataclass(frozen=True)
class Device:
    """The machine and its limits. `flops` is of matrix products in `dtype`, per second; `bandwidth` bytes per second.

    A copy reads and writes: its bandwidth counts both.
    """

    name: str
    kind: str
    dtype: str
    flops: float
    flops_float32: float
    bandwidth: float
    threads: int
    torch: str
    transformers: str
    python: str


def measure_device(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> Device:
    """Products of square matrices (8192 on a GPU, 1024 on a CPU; float32 without TF32) and a copy (1 GiB; 64 MiB)."""
    on_gpu = device.type == "cuda"
    size, count = (8192, 2**30) if on_gpu else (1024, 2**26)
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = repeated(lambda: target.copy_(source), device, rounds)
    bandwidth = 2 * count / copy.median
    return Device(
        torch.cuda.get_device_name(device) if on_gpu else _processor(),
        device.type,
        str(dtype).removeprefix("torch."),
        _products(device, dtype, size, rounds),
        _products(device, torch.float32, size // 2, rounds),
        bandwidth,
        torch.get_num_threads() if not on_gpu else os.cpu_count() or 1,
        torch.__version__,
        transformers.__version__,
        platform.python_version(),
    )


def _processor() -> str:
    """The CPU's name, as far as the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _products(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
    """Operations per second of `[size, size] @ [size, size]`."""
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        taken = repeated(lambda: left @ left, device, rounds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * size**3 / taken.median
