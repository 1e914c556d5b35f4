"""How many GPUs there are is known without torch, and is what torch says."""

from __future__ import annotations

import ctypes

import pytest
import torch

from finepruner_lmms.matrix import gpus


class Driver:
    """A CUDA driver with so many devices, or one that answers with an error."""

    def __init__(self, devices: int, status: int = 0) -> None:
        self.devices, self.status = devices, status

    def cuInit(self, _flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


def test_they_are_as_many_as_torch_uses():
    assert gpus.count_gpus() == torch.cuda.device_count()


@pytest.mark.parametrize(
    "libraries, built, expected",
    [
        ({"libcuda.so.1": Driver(8)}, {"cuda": "13.0"}, 8),
        ({"libcuda.so.1": Driver(0, status=100)}, {"cuda": "13.0"}, 0),
        ({"libcuda.so.1": Driver(8, status=803)}, {"cuda": "13.0"}, "torch"),  # no number: torch has to say
        ({"libnvidia-ml.so.1": object()}, {"cuda": "13.0"}, "torch"),
        ({}, {"cuda": "13.0"}, 0),
        ({"libcuda.so.1": Driver(8)}, {"cuda": None, "hip": None}, 0),  # a torch for CPUs uses none
        ({"libcuda.so.1": Driver(8)}, {"cuda": None, "hip": "6.4"}, "torch"),
    ],
)
def test_the_driver_is_asked_and_torch_where_it_gives_no_number(libraries, built, expected, monkeypatch):
    monkeypatch.setattr(gpus, "_load", libraries.get)
    monkeypatch.setattr(gpus, "_torch_version", lambda: built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: "torch")
    assert gpus.count_gpus() == expected
