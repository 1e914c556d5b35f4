"""Measuring methods side by side: in every round each is asked once, so that whatever disturbs the machine hits all."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from finepruner_lmms.bench.asking import Answer, Asking, counted_waits, without_end
from finepruner_lmms.bench.clock import Spread, seconds
from finepruner_lmms.bench.method import Method
from finepruner_lmms.bench.promise import Promise, promise
from finepruner_lmms.bench.prompts import Prompts
from finepruner_lmms.bench.selection import selection_seconds
from finepruner_lmms.engine.fixed.programs import forget_programs
from finepruner_lmms.engine.fixed.vision import vision_programs
from finepruner_lmms.engine.vision_tower import encode_images

NATURAL_MEAN, NATURAL_MOST = 4, 16
"""Assumed lengths of answers where weights are random: geometric with this mean, cut off at the most."""


@dataclass(frozen=True)
class Waits:
    """How often the host waits for the GPU: in a call that gives one token, and in each decode step."""

    first: int
    step: float
    places: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """What was measured of one method at one batch size; times in seconds for the whole batch.

    `selection` is measured eagerly, whatever the `execution` of the rest; None where nothing is chosen. `prefill`
    starts with encoded images, `first` (time to first token) and what follows with pixels. `per_second` are questions
    at the fixed length, `natural` where each answer ends by itself, `natural_tokens` long on average. `peak` are bytes
    above what was allocated before the first call, of the first call; None on a CPU, as are `waits`.
    """

    method: str
    batch: int
    execution: str
    vision: Spread
    selection: Spread | None
    prefill: Spread
    first: Spread
    step: Spread
    total: Spread
    per_second: Spread
    natural: Spread
    natural_tokens: float
    peak: int | None
    waits: Waits | None
    promise: Promise


@dataclass
class _Samples:
    """What the rounds have given so far."""

    prefill: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    natural: list[tuple[float, float]] = field(default_factory=list)  # seconds, mean tokens


@dataclass(frozen=True)
class Bench:
    """How to measure: a model and how it is asked, `tokens` at the fixed length, whether answers end by themselves."""

    asking: Asking
    tokens: int
    rounds: int
    random_weights: bool
    note: Callable[[str], None] = lambda _: None

    def measure(self, methods: Sequence[Method], executions: Sequence[str], prompts: Prompts) -> list[Figures]:
        """The figures of every method in every execution, `vanilla` and its like first as they are given."""
        model, batch = self.asking.model, len(prompts.ids)
        subjects = [(method, execution) for method in methods for execution in executions]
        peaks = [self._peak(method, execution, prompts) for method, execution in subjects]
        vision = encode_images(model, prompts.pixels)
        for method, execution in subjects:  # until nothing is new, recordings included
            self.note(f"batch {batch}: warm-up of {method.label}")
            self._round(0, method, execution, prompts, vision, _Samples())
            self._choosing(method, prompts, vision)
        encoding: dict[str, list[float]] = {execution: [] for execution in executions}
        choosing: dict[str, list[float]] = {method.label: [] for method in methods}
        samples = [_Samples() for _ in subjects]
        for number in range(self.rounds):
            for execution, taken in encoding.items():
                encode = self._encoder(execution, prompts)
                encode()  # once for its recording
                taken.append(seconds(encode, model.device))
            for method in methods:
                choosing[method.label] += self._choosing(method, prompts, vision)
            for (method, execution), sample in zip(subjects, samples, strict=True):
                self.note(f"batch {batch}: round {number + 1} of {self.rounds}: {method.label}")
                self._round(number, method, execution, prompts, vision, sample)
        found = []
        for (method, execution), sample, peak in zip(subjects, samples, peaks, strict=True):
            self.note(f"batch {batch}: waits of {method.label}")
            answers, natural = sample.answers, sample.natural
            found.append(
                Figures(
                    method=method.label,
                    batch=batch,
                    execution=answers[-1].execution,
                    vision=Spread.of(encoding[execution]),
                    selection=Spread.of(choosing[method.label]) if choosing[method.label] else None,
                    prefill=Spread.of(sample.prefill),
                    first=Spread.of([answer.first for answer in answers]),
                    step=Spread.of([answer.per_token for answer in answers]),
                    total=Spread.of([answer.seconds for answer in answers]),
                    per_second=Spread.of([batch / answer.seconds for answer in answers]),
                    natural=Spread.of([batch / taken for taken, _ in natural]),
                    natural_tokens=sum(tokens for _, tokens in natural) / len(natural),
                    peak=peak,
                    waits=self._waits(method, execution, prompts),
                    promise=promise(model, method.pruner, batch, prompts.text, self.tokens),
                )
            )
        return found

    def _encoder(self, execution: str, prompts: Prompts) -> Callable[[], Any]:
        """How `generate` encodes the images in this execution."""
        model = self.asking.model
        if execution == "eager" or (execution == "auto" and model.device.type != "cuda"):
            return lambda: encode_images(model, prompts.pixels)
        pixels = prompts.pixels.to(model.device, model.dtype)
        return lambda: vision_programs(model).encode(pixels)

    def _choosing(self, method: Method, prompts: Prompts, vision: Any) -> list[float]:
        """What the choice of one prefill takes; nothing for a method that chooses nothing."""
        if method.pruner.side == "none":
            return []
        with without_end(self.asking.model):
            return [selection_seconds(self.asking, method.pruner, prompts, vision)]

    def _peak(self, method: Method, execution: str, prompts: Prompts) -> int | None:
        """The greatest use of memory in a first call, which on a GPU also records, above what there was before."""
        model = self.asking.model
        if model.device.type != "cuda":
            return None
        self.note(f"batch {len(prompts.ids)}: memory of {method.label}")
        forget_programs(model)  # each pays for its own
        gc.collect()
        torch.cuda.synchronize(model.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        with without_end(model):
            self.asking(method.pruner, prompts.from_pixels, self.tokens, execution)
        return torch.cuda.max_memory_allocated(model.device) - before

    def _round(
        self, number: int, method: Method, execution: str, prompts: Prompts, vision: Any, sample: _Samples
    ) -> None:
        model, pruner = self.asking.model, method.pruner
        with without_end(model):
            sample.prefill.append(self.asking(pruner, prompts.encoded(vision), 1, execution).first)
            sample.answers.append(self.asking(pruner, prompts.from_pixels, self.tokens, execution))
            if self.random_weights:
                lengths = natural_lengths(len(prompts.ids), number)
                # a batch takes as long as its longest answer
                answer = self.asking(pruner, prompts.from_pixels, max(lengths), execution)
                sample.natural.append((answer.seconds, sum(lengths) / len(lengths)))
        if not self.random_weights:
            answer = self.asking(pruner, prompts.from_pixels, 8 * NATURAL_MOST, execution)
            sample.natural.append(
                (answer.seconds, _mean_length(answer.sequences, model.generation_config.eos_token_id))
            )

    def _waits(self, method: Method, execution: str, prompts: Prompts) -> Waits | None:
        if self.asking.model.device.type != "cuda":
            return None
        with without_end(self.asking.model):
            with counted_waits() as one:
                self.asking(method.pruner, prompts.from_pixels, 1, execution)
            with counted_waits() as several:
                self.asking(method.pruner, prompts.from_pixels, self.tokens, execution)
        return Waits(len(one), (len(several) - len(one)) / (self.tokens - 1), tuple(sorted(set(several))))


def natural_lengths(batch: int, seed: int) -> list[int]:
    """Lengths of the answers of a batch, drawn from a geometric distribution; the same for every method in a round."""
    rng = random.Random(seed)
    lengths = []
    for _ in range(batch):
        length = 1
        while length < NATURAL_MOST and rng.random() > 1 / NATURAL_MEAN:
            length += 1
        lengths.append(length)
    return lengths


def _mean_length(sequences: torch.Tensor, ends: int | list[int] | None) -> float:
    """Tokens up to and including the end, the mean over the rows."""
    ended = torch.zeros_like(sequences, dtype=torch.bool)
    for end in [ends] if isinstance(ends, int) else ends or []:
        ended |= sequences == end
    after = ended.int().cumsum(1) - ended.int()  # tokens after the first end token are padding
    return (after == 0).sum(1).double().mean().item()
