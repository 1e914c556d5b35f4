"""What an evaluation spends in one process: a line for each batch, and the whole. Nothing here waits for the device."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finepruner_lmms.engine.generation import Generation


@dataclass(frozen=True)
class ImageUse:
    """How many questions showed an image, and how many images went through the vision tower for them."""

    asked: int
    encoded: int

    @property
    def hit_rate(self) -> float | None:
        """The share of questions with an image that needed no encoding; None without such questions."""
        return 1 - self.encoded / self.asked if self.asked else None

    def __sub__(self, before: ImageUse) -> ImageUse:
        return ImageUse(self.asked - before.asked, self.encoded - before.encoded)


@dataclass(frozen=True)
class BatchTime:
    """One call of `generate`, until its answers were on the host.

    `steps` are its forwards: the tokens of the longest answer. `first_token` is None where it was not measured.
    `wall` is all that passed since the batch before; for `waiting` seconds of it the model had nothing to do, and
    `images` were asked and encoded in it. `most` is the number of rows that a batch could have, `asked` what it was to
    be, had memory not run out. `together` says for how many cells it was answered, so that the times are of them all.
    """

    rows: int
    steps: int
    seconds: float
    first_token: float | None
    execution: str
    wall: float = 0.0
    waiting: float | None = None
    peak_bytes: int | None = None
    images: ImageUse = ImageUse(0, 0)
    most: int = 0
    asked: int = 0
    together: int = 1

    def of(self, generation: Generation) -> BatchTime:
        """The same with what is the call's own."""
        steps, first = generation.sequences.shape[1], generation.seconds_to_first_token
        return replace(self, steps=steps, first_token=first, execution=generation.execution)


@dataclass(frozen=True)
class Spent:
    """What one process spent. `questions` are different ones; `seconds` from the first request to the last answer.

    `waiting` are the seconds of these in which the model had nothing to do, since its input was not ready.
    `peak_bytes` is the most that PyTorch held on the device, weights and encoded images included; None on a CPU.
    """

    questions: int
    seconds: float
    waiting: float | None
    peak_bytes: int | None
    batches: tuple[BatchTime, ...]
    images: ImageUse = ImageUse(0, 0)


class Meter:
    """From `start` on: `add` is told of batches, `wait` of pauses, `saw` of images; `lap` reads the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Forget what was counted."""
        self._batches: list[BatchTime] = []
        self._documents: set[tuple[str, int]] = set()
        self._started, self._seconds = time.perf_counter(), 0.0
        self._waiting: float | None = None
        self._images = ImageUse(0, 0)
        self._told = self._started, 0.0, self._images  # what earlier batches have taken
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def add(self, batch: BatchTime, documents: Sequence[tuple[str, int]]) -> BatchTime:
        """A batch is answered. `documents` are the task and number of each row; some may be asked twice.

        Returns it with what passed since the one before.
        """
        now, (then, waited, images) = time.perf_counter(), self._told
        self._told = now, self._waiting or 0.0, self._images
        waiting = None if self._waiting is None else self._waiting - waited
        whole = replace(batch, wall=now - then, waiting=waiting, peak_bytes=self._peak(), images=self._images - images)
        self._batches.append(whole)
        self._documents.update(documents)
        return whole

    def wait(self, seconds: float) -> None:
        """So long the model had nothing to do."""
        self._waiting = (self._waiting or 0.0) + seconds

    def saw(self, images: ImageUse) -> None:
        """So many images were asked and encoded since `start`."""
        self._images = images

    def lap(self) -> float:
        """So far all is answered: the seconds since `start`. Who takes the answers may never come back for more."""
        self._seconds = time.perf_counter() - self._started
        return self._seconds

    def spent(self) -> Spent | None:
        """What was counted; None where nothing was answered."""
        if not self._batches:
            return None
        documents, batches = len(self._documents), tuple(self._batches)
        return Spent(documents, self._seconds, self._waiting, self._peak(), batches, self._images)

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def first_tokens(batches: Sequence[BatchTime]) -> list[float]:
    """The times to a first token, in seconds; empty unless all batches have one."""
    known = [batch.first_token for batch in batches if batch.first_token is not None]
    return known if len(known) == len(batches) else []


def seconds_per_token(batches: Sequence[BatchTime]) -> float | None:
    """Of a decode step, which gives each row of its batch a token; None where there was none, or none was timed."""
    timed = [batch for batch in batches if batch.first_token is not None]
    steps = sum(batch.steps - 1 for batch in timed)
    return (
        sum(batch.seconds - (batch.first_token or 0.0) for batch in timed if batch.steps > 1) / steps if steps else None
    )


def lmms_eval_metrics(spent: Spent, rank: int) -> dict[str, float]:
    """What lmms-eval's throughput summary gets beside its own: names and seconds as its vLLM model's, of this rank."""
    found: dict[str, float] = {"rank": rank, "total_requests": sum(batch.rows for batch in spent.batches)}
    if first := first_tokens(spent.batches):
        found["ttft"] = statistics.fmean(first)
    if (token := seconds_per_token(spent.batches)) is not None:
        found["tpot"] = token
    if spent.peak_bytes is not None:
        found["peak_memory_gib"] = spent.peak_bytes / 2**30
    return found


def device_name(device: torch.device) -> str:
    """What a time was measured on: the GPU's name, or the processor's and how many threads PyTorch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
