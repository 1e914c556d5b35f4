"""The batches of one evaluation: what a method answers, written down as soon as it is there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from loguru import logger

from finepruner_lmms.asking.inputs import batch_inputs
from finepruner_lmms.engine.fixed.programs import forget_programs
from finepruner_lmms.engine.generate import generate
from finepruner_lmms.engine.generation import Generation
from finepruner_lmms.engine.images import tower_wish
from finepruner_lmms.heads.consensus import Consensus
from finepruner_lmms.heads.consensus.report import debug_block
from finepruner_lmms.lmms.batch_sizes import BatchSizes, out_of_memory
from finepruner_lmms.lmms.batching import Prepared, batches, count_output, image_row
from finepruner_lmms.lmms.image_encoding import ImageEncoder
from finepruner_lmms.lmms.journal import Answer, Origin
from finepruner_lmms.lmms.meter import BatchTime, ImageUse, Meter
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.monitor import Monitor, describe
from finepruner_lmms.lmms.recorder import records
from finepruner_lmms.lmms.together import Companion, Seat
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE


@dataclass(frozen=True)
class Host:
    """What all evaluations of a loaded model share. `images` encodes those of LLaVA-1.5; other families have none."""

    model: Any
    tokenizer: Any
    images: ImageEncoder | None
    meter: Meter
    origin: Origin
    sizes: BatchSizes


class Answering:
    """Answers windows of prepared prompts by one method, as few at once as memory allows.

    Answers go to the journal of `seat`, selections to `monitor`; of the questions `recorded`, by task and number, a
    trace is kept; `tell` hears how many are answered, and for how many cells at once.
    """

    def __init__(
        self,
        host: Host,
        arguments: ModelArguments,
        pruner: Pruner,
        seat: Seat,
        monitor: Monitor,
        recorded: frozenset[tuple[str, int]],
        tell: Callable[[int, int], None],
    ) -> None:
        self._host, self._model, self._images = host, host.model, host.images
        self._arguments, self._pruner, self._seat = arguments, pruner, seat
        self._monitor, self._recorded, self._tell = monitor, recorded, tell
        self._rows, self._done = arguments.batch_size, 0

    def window(self, prepared: list[Prepared]) -> list[GenerationResult]:
        """The answers of a window. Where memory runs out, with smaller batches from then on."""
        answers: dict[int, GenerationResult] = {}
        self._rows = self._host.sizes.most(self._setting(), self._arguments.batch_size)
        left = list(batches(prepared, self._rows))
        expected = False
        while left:
            if not expected and self._images is not None:
                self._images.expect([picture for batch in left for i in batch for picture in prepared[i].pictures])
            expected = True
            asked = 0 if self._images is None else self._images.asked
            try:
                found = self._answer_batch([prepared[i] for i in left[0]])
            except RuntimeError as error:
                if len(left[0]) == 1 or not out_of_memory(error):
                    raise
                found = None  # what the error holds of the batch is let go when this block is left
            if found is None:
                self._rows = size = self._host.sizes.ran_out(self._setting(), len(left[0]))
                self._free_memory()
                left = [batch[start : start + size] for batch in left for start in range(0, len(batch), size)]
                expected = False
                if self._images is not None:
                    self._images.asked = asked  # they are asked once, after all
                continue
            answers.update(zip(left.pop(0), found, strict=True))
        return [answers[i] for i in range(len(prepared))]

    def _setting(self) -> str:
        """What decides how many prompts fit into memory, in words."""
        arguments = self._arguments
        parameters = {"method": self._pruner.name, "budget": self._pruner.budget, **self._pruner.parameters()}
        method = " ".join(f"{name}={value}" for name, value in parameters.items() if value is not None)
        dtype = str(self._model.dtype).removeprefix("torch.")
        where = f"{dtype}, {arguments.attn_implementation}, {self._host.origin.device}"
        return f"{method} on {arguments.pretrained}, {where}"

    def _free_memory(self) -> None:
        """Give back what recordings of larger batches and the failed one hold."""
        forget_programs(self._model)
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer_batch(self, batch: list[Prepared]) -> list[GenerationResult]:
        """Run one batch. An error is raised as it is: an answer that could not be computed has no stand-in."""
        seat, inputs = self._seat, batch_inputs([item.prompt for item in batch], self._padding_id)
        pictures = [picture for item in batch for picture in item.pictures]
        if pictures and self._images is not None:
            wish = tower_wish(self._pruner)
            if wish.unread and not seat.alone:
                wish = NOTHING_MORE  # companions are answered from the same images
            inputs["vision"] = self._images.encode_apart(pictures, wish) if wish else self._images.encode(pictures)
        started = time.perf_counter()
        alone = partial(self._generate, batch, inputs)
        shared = seat.generate(self._model, self._pruner, batch, inputs, alone, partial(self._tell_companion, batch))
        own = shared.own
        answers = [] if isinstance(own, Exception) else self._answers_of(batch, own)  # there when they are computed
        keys = [item.key for item in batch]
        time_of = BatchTime(len(batch), 0, time.perf_counter() - started, None, "eager")
        time_of = replace(time_of, most=self._rows, asked=self._arguments.batch_size, together=1 + len(shared.others))
        self._host.meter.saw(ImageUse(0, 0) if self._images is None else self._images.use)
        if not isinstance(own, Exception):
            time_of = self._host.meter.add(time_of.of(own), [(item.task, item.doc_id) for item in batch])
        # now: a window may take long, and would be lost in a kill
        shared.keep(keys, time_of)
        if isinstance(own, Exception):
            raise own
        self._report(batch, own, answers, self._pruner, self._monitor)
        if seat.journal is not None:
            seat.journal.add(keys, answers, time_of, drawn=bool(batch[0].decoding["do_sample"]))
        self._done += len(batch)
        self._tell(self._done, 1 + len(shared.others))
        return [answer.result() for answer in answers]

    def _generate(self, batch: list[Prepared], inputs: dict[str, Any]) -> Generation:
        questions, execution = [item.prompt.question for item in batch], self._arguments.execution
        return generate(
            self._model, self._pruner, inputs, questions=questions, execution=execution, **batch[0].decoding
        )

    def _answers_of(self, batch: list[Prepared], result: Generation) -> list[Answer]:
        texts = self._host.tokenizer.batch_decode(result.sequences, skip_special_tokens=True)
        ends = self._end_ids()
        wanted = [row for row, item in enumerate(batch) if (item.task, item.doc_id) in self._recorded]
        traces = records(batch, result.trace, wanted)
        return [
            Answer(text.strip(), item.length, count_output(tokens, ends), item.words, tuple(entering), traces.get(row))
            for row, (text, item, tokens, entering) in enumerate(
                zip(texts, batch, result.sequences.tolist(), result.trace.tokens_entering, strict=True)
            )
        ]

    def _tell_companion(self, batch: list[Prepared], companion: Companion, result: Generation) -> list[Answer]:
        """What was answered for another cell; what was selected is written to its own monitor."""
        answers = self._answers_of(batch, result)
        with companion.monitor:
            self._report(batch, result, answers, companion.pruner, companion.monitor)
        return answers

    @property
    def _padding_id(self) -> int:
        found = self._host.tokenizer.pad_token_id
        return found if found is not None else 0

    def _end_ids(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    def _report(
        self, batch: list[Prepared], result: Generation, answers: list[Answer], pruner: Pruner, monitor: Monitor
    ) -> None:
        if not (self._arguments.debug or monitor.active):
            return
        for row, (item, answer) in enumerate(zip(batch, answers, strict=True)):
            image = image_row(batch, row)
            selections = describe(result.trace, row, image, task=item.task, doc_id=item.doc_id, pruner=pruner)
            for record in selections:
                monitor.write(record)
            if self._arguments.debug:
                # with escapes: neither text may move the cursor
                logger.info(f"{item.task} {item.doc_id}: {item.prompt.question!r}, answered {answer.text!r}")
                for record in selections:
                    found = result.trace.details.get(record["layer"])
                    shown = debug_block(found, row) if isinstance(found, Consensus) else f"selection: {record}"
                    logger.info(f"{item.task} {item.doc_id}, layer {record['layer']}\n{shown}")
