"""What the sections share."""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms.bench.shapes import random_llava
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.pruners import Pruner


class Skipped(Exception):
    """A section that cannot run here, and why."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table at the end; `passed` is None where nothing was asked or nothing could be found."""

    figure: str
    asked: str
    found: str
    passed: bool | None


class Run:
    """What the sections share: the device, the sizes, the large model, the time that is left, and what was found."""

    def __init__(self, device: torch.device, quick: bool, out: Path | None) -> None:
        self.device, self.quick, self.out = device, quick, out
        self.on_gpu = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.shape = "tiny" if quick else "llava-1.5-7b"
        self.rounds = 1 if quick else 7
        self.facts: list[dict[str, Any]] = []
        self.lines: list[Line] = []
        self.sections: list[dict[str, Any]] = []
        self._model: Any = None
        self._ends, self._section = 0.0, ""
        self._left_out = 0

    @property
    def model(self) -> Any:
        """A LLaVA of the published shape (in a quick run: tiny) with random weights, made when it is first needed."""
        if self._model is None:
            self._model = random_llava(self.shape, self.device, self.dtype)
        return self._model

    @property
    def visual(self) -> int:
        """Visual tokens of an image of the large model."""
        return Geometry.of(self.model.config).num_visual_tokens

    def pruner(self, name: str, of_576: int | None = None, **parameters: Any) -> Pruner:
        """A method at a budget, given for 576 visual tokens; on a small model, at half of the tokens."""
        if of_576 is None:
            return fp.build_pruner(name, **parameters)
        return fp.build_pruner(name, budget=of_576 if self.visual == 576 else self.visual // 2, **parameters)

    def begin(self, section: str, seconds: float) -> None:
        """A section starts."""
        self._section, self._ends, self._left_out = section, time.monotonic() + seconds, 0

    def within(self, items: Iterable[Any]) -> Iterator[Any]:
        """Items, as long as the section has time; what is left out is said."""
        waiting = list(items)
        for number, item in enumerate(waiting):
            if time.monotonic() > self._ends:
                self._left_out += len(waiting) - number
                self.say(left_out=len(waiting) - number, of=len(waiting), reason="the section's time is used up")
                return
            yield item

    def say(self, **facts: Any) -> None:
        """A fact, at once."""
        self.facts.append({"section": self._section, **facts})
        print(json.dumps(self.facts[-1], default=str), flush=True)

    def conclude(self, figure: str, asked: str, found: str, passed: bool | None) -> None:
        """A line of the table."""
        self.lines.append(Line(figure, asked, found, passed))

    def ask_all(self, figure: str, asked: str, found: str, passed: bool | None) -> None:
        """A line that asks for every case: it does not pass where time was too short for some."""
        if self._left_out:
            found, passed = f"{found}; {self._left_out} left out", passed and None
        self.conclude(figure, asked, found, passed)

    def ask_ratio(self, figure: str, least: float, found: float | None) -> None:
        """A line that asks for a ratio; what was measured on small sizes is shown and not judged."""
        text = "not measured" if found is None else f"{found:.2f}"
        judged = None if self.quick else found is not None and found >= least
        self.conclude(figure, f">= {least:g}", text, judged)

    def save(self) -> None:
        """Write what is known so far."""
        if self.out is not None:
            lines = [dataclasses.asdict(line) for line in self.lines]
            self.out.write_text(
                json.dumps({"sections": self.sections, "table": lines, "facts": self.facts}, indent=1, default=str)
            )

    def free(self) -> None:
        """Give memory back that nobody uses."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def needs_gpu(run: Run) -> None:
    """Raise `Skipped` without one."""
    if not run.on_gpu:
        raise Skipped("needs a CUDA device")


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
