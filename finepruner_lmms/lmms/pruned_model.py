"""A pruned model inside lmms-eval: batches and answers. It knows nothing of how tokens are pruned, or of families."""

from __future__ import annotations

import gc
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from finepruner_lmms.asking.inputs import batch_inputs
from finepruner_lmms.checkpoints.load import check_pruner, choose_device, open_checkpoint, read_model, resolve
from finepruner_lmms.checkpoints.processor import check_template
from finepruner_lmms.engine.cost import DecoderSizes
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.fixed.programs import forget_programs
from finepruner_lmms.engine.generate import generate
from finepruner_lmms.engine.generation import Generation
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.images import tower_wish
from finepruner_lmms.engine.keywords import remember_tokenizer
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads.consensus import Consensus
from finepruner_lmms.heads.consensus.report import debug_block
from finepruner_lmms.lmms import heartbeat
from finepruner_lmms.lmms.batch_sizes import BatchSizes, out_of_memory
from finepruner_lmms.lmms.batching import Prepared, batches, count_output, image_row
from finepruner_lmms.lmms.command_line import read_arguments, told_in_one_line
from finepruner_lmms.lmms.decoding import Decoding
from finepruner_lmms.lmms.identity import answer_identity, answer_settings, checkpoint_identity
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.lmms.image_encoding import ImageEncoder
from finepruner_lmms.lmms.journal import Answer, Journal, Origin, question_key
from finepruner_lmms.lmms.meter import BatchTime, ImageUse, Meter, device_name, lmms_eval_metrics
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.monitor import Monitor, describe
from finepruner_lmms.lmms.plain_run import Answerer, journal_folder
from finepruner_lmms.lmms.preparing import Preparer
from finepruner_lmms.lmms.ranks import all_or_none, every_rank
from finepruner_lmms.lmms.recorder import Recorder, records
from finepruner_lmms.lmms.requests import Asked
from finepruner_lmms.lmms.response_cache import identify
from finepruner_lmms.lmms.rounds import Round, play_rounds
from finepruner_lmms.lmms.together import Companion, Company, Seat
from finepruner_lmms.pruners import Pruner
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE


class PrunedModel(lmms):
    """A model with visual token pruning. The arguments are those of `ModelArguments`, checked before weights are read.

    One loaded model serves many settings: `configure` swaps the method, and encoded images of LLaVA-1.5 are shared
    between them. Subclasses say how a request of lmms-eval is read.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = ModelArguments.parse(arguments)
        self.pruner: Pruner = self.arguments.build_pruner()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self.arguments.device_map is not None and self._world_size > 1:
            problem = f"got 'auto' in {self._world_size} processes, but it gives all GPUs to one model"
            raise FieldError("device_map", problem, value="auto", fix="start one process")
        device = self.arguments.device
        self._device = self.accelerator.device if device == "auto" else choose_device(device)
        with all_or_none(self.accelerator):
            heartbeat.phase("download")
            checkpoint = open_checkpoint(self.arguments.pretrained)
            heartbeat.phase("load")
            check_pruner(self.pruner, checkpoint.config)
            self.family = find_family(checkpoint.config.model_type)
            self.arguments = self.arguments.settled(self.family)
            self.processor = checkpoint.processor
            self._tokenizer = self.processor.tokenizer
            if self.arguments.conv == "chat_template":
                check_template(self.processor)
            self.model = read_model(
                checkpoint,
                self.arguments.pretrained,
                self.arguments.dtype,
                "auto" if self.arguments.device_map is not None else self._device,
                self.arguments.attn_implementation,
                self.arguments.device_map,
            )
            remember_tokenizer(self.model, self._tokenizer)
        self.geometry = Geometry.of(self.model.config)
        self.images: ImageEncoder | None = None
        if self.family.model_type == "llava":
            self.images = ImageEncoder(self.model, self.processor.image_processor, self.arguments)
        self._preparer = Preparer(self.model.config, self.processor, self.arguments, self.images)
        self._decoding = Decoding(self.arguments.max_new_tokens)
        self.monitor = Monitor.open(self.arguments.monitor, self._rank)
        self.recorder = Recorder.of_environment()
        """Of which questions the coming evaluations keep a trace."""
        self._recorded: frozenset[tuple[str, int]] = frozenset()
        self.on_progress: Callable[[int, int, int], None] | None = None
        self.meter = Meter(self._device)
        session = every_rank(self.accelerator, uuid4().hex[:12])[0]
        self.origin = Origin(session, self._rank, self._world_size, device_name(self._device))
        """Who answers, for a journal."""
        self.seat: Seat | None = None
        """Of the cell of a study that is under evaluation."""
        self._taken = Seat(None, Company({}))
        self._sizes = BatchSizes.of_environment()
        self._asked, self._computed, self._rows = 0, 0, self.arguments.batch_size
        identify(self)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """What lmms-eval calls with `--model_args` and its own options: see `command_line`."""
        with told_in_one_line():
            return cls(**read_arguments(arg_string, additional_config or {}))

    # -- settings -----------------------------------------------------------------------------------------------------

    def configure(self, **method_arguments: Any) -> None:
        """Change the method and its parameters; weights and encoded images stay. `ValueError` as for `model_args`."""
        self.arguments, self.pruner = self.method(**method_arguments)

    def method(self, **method_arguments: Any) -> tuple[ModelArguments, Pruner]:
        """What `configure` would change to. `ValueError` as for `model_args`."""
        arguments = self.arguments.with_method(method_arguments)
        pruner = arguments.build_pruner()
        check_pruner(pruner, self.model.config)
        return arguments, pruner

    @property
    def num_visual_tokens(self) -> int:
        """N, the visual tokens of one image; where images differ, the most that papers count."""
        return self.geometry.num_visual_tokens

    @property
    def decoder_sizes(self) -> DecoderSizes:
        """The widths of the language model that its costs depend on."""
        return DecoderSizes.of(self.model.config.text_config)

    def answer_identity(self, pruner: Pruner | None = None) -> Identity:
        """What the answers depend on, besides what is asked. Reads the checkpoint's files where they are new to it.

        With `pruner`: those that it would give in place of the model's own.
        """
        pruner = self.pruner if pruner is None else pruner
        pretrained, geometry = resolve(self.arguments.pretrained), self.geometry
        checkpoint = checkpoint_identity(pretrained, pruner, geometry.num_visual_tokens)
        dtype = str(self.model.dtype).removeprefix("torch.")
        settings = answer_settings(self.arguments, self.family)
        return answer_identity(pruner, settings, dtype, checkpoint, geometry.num_visual_tokens, varies=geometry.varies)

    @property
    def identity(self) -> str:
        """`answer_identity` in one line."""
        return self.answer_identity().text()

    def __repr__(self) -> str:
        # lmms-eval keys its response cache by this where it is handed the object
        return f"{type(self).__name__}({self.identity})"

    # -- what lmms-eval asks of a model -------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Prompts per forward."""
        return self.arguments.batch_size

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._device

    @property
    def rank(self) -> int:
        """This process among all."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many processes share the documents."""
        return self._world_size

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint."""
        return self._tokenizer

    def clean(self) -> None:
        """Keep the model: lmms-eval calls this after every evaluation, and the next one may need it."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not defined for a pruned prompt, whose logits are fewer than its tokens."""
        raise NotImplementedError("finepruner generates answers; tasks of output_type 'loglikelihood' need logits")

    @abstractmethod
    def asked(self, request: Instance) -> Asked:
        """What a request asks."""

    @abstractmethod
    def next_round(self, request: Instance, document: Any, answers: list[str], told: Any) -> Round | None:
        """What a task of several rounds asks after these `answers`; None where it has no further round."""

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request. What a round asks is a prompt of its own, with what it repeats."""
        return play_rounds(self, requests)

    def generate_until(self, requests: list[Instance]) -> Iterator[GenerationResult]:
        """Answer the requests, yielding in their order, so that lmms-eval's cache stores each window as it is done.

        What the cell's journal holds is not asked again, and what is asked twice is answered once: lmms-eval lets
        processes that have fewer questions than others repeat their last one.
        """
        yield from self.answer([self.asked(request) for request in requests])

    def answer(self, requests: Sequence[Asked]) -> Iterator[GenerationResult]:
        """The answers of questions, in order: see `generate_until`."""
        self._taken = seat = self._take_seat()
        keyed = [(self._key(request), request) for request in requests]
        known = {} if seat.journal is None else dict(seat.journal.known)  # which grows from here on
        times = Counter(key for key, request in keyed if not self._is_drawn(request))
        missing, seen = [], set()
        for key, request in keyed:
            if key not in known and not (times[key] > 1 and key in seen):
                missing.append(request)
                seen.add(key)
        self._asked, self._computed = len(missing), 0
        splits = {asked.task: self.task_dict[asked.task][asked.split] for asked in missing}
        self._recorded = self.recorder.numbers(splits)
        if not missing:
            self._tell_progress(len(requests), len(requests))
        repeated: dict[str, GenerationResult] = {}
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        with self.monitor, progress, closing(self._answers(missing)) as answers:
            for key, _ in keyed:
                if key in known:
                    answer = known[key].result()
                else:
                    answer = repeated[key] if key in repeated else next(answers)
                    if times[key] > 1:
                        repeated[key] = answer
                progress.update()
                yield answer

    def _take_seat(self) -> Seat:
        """That of the cell under evaluation; of a plain run, one with the journal that the environment asks for."""
        if self.seat is not None:
            return self.seat
        folder = journal_folder()
        if folder is None:
            return Seat(None, Company({}))
        identity = self.answer_identity()
        if self.rank == 0:
            Answerer(identity=identity, sizes=self.decoder_sizes).write(folder)
        return Seat(Journal(folder, identity.text(), self.origin), Company({}))

    def _key(self, asked: Asked) -> str:
        decoding = self._decoding.of(asked.gen_kwargs, asked.task)
        return question_key(asked.task, asked.split, asked.doc_id, asked.text, decoding)

    def _is_drawn(self, asked: Asked) -> bool:
        return bool(self._decoding.of(asked.gen_kwargs, asked.task)["do_sample"])

    def _answers(self, requests: Sequence[Asked]) -> Generator[GenerationResult]:
        """The answers of requests that nobody has answered, in order."""
        self.meter.start()
        tokens, done = 0, 0
        with closing(self._prepared_windows(requests)) as windows:
            for prepared in windows:
                answers = self._answer_window(prepared)
                tokens += sum(answer.token_counts.output_tokens for answer in answers)
                done += len(answers)
                elapsed = self.meter.lap()
                # now: lmms-eval's cache takes the last answer and does not return
                if done == len(requests):
                    self._log_metrics(elapsed, tokens)
                    self._say_how_input_kept_up()
                yield from answers

    def _tell_progress(self, done: int, total: int, together: int = 1) -> None:
        heartbeat.progress(done, total)
        if self.on_progress is not None:
            self.on_progress(done, total, together)

    def _log_metrics(self, elapsed: float, tokens: int) -> None:
        """For lmms-eval's throughput summary, which covers this process alone."""
        more = None if (spent := self.meter.spent()) is None else lmms_eval_metrics(spent, self.rank)
        log_metrics(
            total_elapsed_time=elapsed,
            total_gen_tokens=tokens,
            avg_speed=tokens / elapsed if elapsed else 0.0,
            additional_metrics=more,
        )

    # -- batches ------------------------------------------------------------------------------------------------------

    def _prepared_windows(self, requests: Sequence[Asked]) -> Generator[list[Prepared]]:
        """The requests in windows, each made ready while the one before it is answered."""

        def tell(asked: Asked) -> tuple[dict[str, Any], str]:
            return self._decoding.of(asked.gen_kwargs, asked.task), self._key(asked)

        return self._preparer.windows(requests, self.task_dict, self.batch_size, tell, self.meter.wait)

    def _say_how_input_kept_up(self) -> None:
        spent = self.meter.spent()
        if spent is not None and spent.images.hit_rate is not None:
            waited = spent.waiting or 0.0
            logger.info(
                f"images: {spent.images.asked} asked, {spent.images.encoded} encoded (hit rate "
                f"{spent.images.hit_rate:.0%}); the model waited {waited:.2f} s for input "
                f"({waited / spent.seconds:.1%} of the time)"
            )

    def _answer_window(self, prepared: list[Prepared]) -> list[GenerationResult]:
        """The answers of a window. Where memory runs out, with smaller batches from then on."""
        answers: dict[int, GenerationResult] = {}
        self._rows = self._sizes.most(self._setting(), self.batch_size)
        left = list(batches(prepared, self._rows))
        expected = False
        while left:
            if not expected and self.images is not None:
                self.images.expect([picture for batch in left for i in batch for picture in prepared[i].pictures])
            expected = True
            asked = 0 if self.images is None else self.images.asked
            try:
                found = self._answer_batch([prepared[i] for i in left[0]])
            except RuntimeError as error:
                if len(left[0]) == 1 or not out_of_memory(error):
                    raise
                found = None  # what the error holds of the batch is let go when this block is left
            if found is None:
                self._rows = size = self._sizes.ran_out(self._setting(), len(left[0]))
                self._free_memory()
                left = [batch[start : start + size] for batch in left for start in range(0, len(batch), size)]
                expected = False
                if self.images is not None:
                    self.images.asked = asked  # they are asked once, after all
                continue
            answers.update(zip(left.pop(0), found, strict=True))
        return [answers[i] for i in range(len(prepared))]

    def _setting(self) -> str:
        """What decides how many prompts fit into memory, in words."""
        arguments = self.arguments
        parameters = {"method": self.pruner.name, "budget": self.pruner.budget, **self.pruner.parameters()}
        method = " ".join(f"{name}={value}" for name, value in parameters.items() if value is not None)
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"{method} on {arguments.pretrained}, {dtype}, {arguments.attn_implementation}, {self.origin.device}"

    def _free_memory(self) -> None:
        """Give back what recordings of larger batches and the failed one hold."""
        forget_programs(self.model)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer_batch(self, batch: list[Prepared]) -> list[GenerationResult]:
        """Run one batch. An error is raised as it is: an answer that could not be computed has no stand-in."""
        seat, inputs = self._taken, batch_inputs([item.prompt for item in batch], self._padding_id)
        pictures = [picture for item in batch for picture in item.pictures]
        if pictures and self.images is not None:
            wish = tower_wish(self.pruner)
            if wish.unread and not seat.alone:
                wish = NOTHING_MORE  # companions are answered from the same images
            inputs["vision"] = self.images.encode_apart(pictures, wish) if wish else self.images.encode(pictures)
        started = time.perf_counter()
        alone = partial(self._generate, batch, inputs)
        shared = seat.generate(self.model, self.pruner, batch, inputs, alone, partial(self._tell_companion, batch))
        own = shared.own
        answers = [] if isinstance(own, Exception) else self._answers_of(batch, own)  # there when they are computed
        keys = [item.key for item in batch]
        time_of = BatchTime(len(batch), 0, time.perf_counter() - started, None, "eager")
        time_of = replace(time_of, most=self._rows, asked=self.batch_size, together=1 + len(shared.others))
        self.meter.saw(ImageUse(0, 0) if self.images is None else self.images.use)
        if not isinstance(own, Exception):
            time_of = self.meter.add(time_of.of(own), [(item.task, item.doc_id) for item in batch])
        # now: a window may take long, and would be lost in a kill
        shared.keep(keys, time_of)
        if isinstance(own, Exception):
            raise own
        self._report(batch, own, answers, self.pruner, self.monitor)
        if seat.journal is not None:
            seat.journal.add(keys, answers, time_of, drawn=bool(batch[0].decoding["do_sample"]))
        self._computed += len(batch)
        self._tell_progress(self._computed, self._asked, 1 + len(shared.others))
        return [answer.result() for answer in answers]

    def _generate(self, batch: list[Prepared], inputs: dict[str, Any]) -> Generation:
        questions, execution = [item.prompt.question for item in batch], self.arguments.execution
        return generate(self.model, self.pruner, inputs, questions=questions, execution=execution, **batch[0].decoding)

    def _answers_of(self, batch: list[Prepared], result: Generation) -> list[Answer]:
        texts = self.tokenizer.batch_decode(result.sequences, skip_special_tokens=True)
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
        found = self.tokenizer.pad_token_id
        return found if found is not None else 0

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    def _report(
        self, batch: list[Prepared], result: Generation, answers: list[Answer], pruner: Pruner, monitor: Monitor
    ) -> None:
        if not (self.arguments.debug or monitor.active):
            return
        for row, (item, answer) in enumerate(zip(batch, answers, strict=True)):
            image = image_row(batch, row)
            selections = describe(result.trace, row, image, task=item.task, doc_id=item.doc_id, pruner=pruner)
            for record in selections:
                monitor.write(record)
            if self.arguments.debug:
                # with escapes: neither text may move the cursor
                logger.info(f"{item.task} {item.doc_id}: {item.prompt.question!r}, answered {answer.text!r}")
                for record in selections:
                    found = result.trace.details.get(record["layer"])
                    shown = debug_block(found, row) if isinstance(found, Consensus) else f"selection: {record}"
                    logger.info(f"{item.task} {item.doc_id}, layer {record['layer']}\n{shown}")

    def monitor_to(self, folder: Path | None) -> None:
        """Write the selections of the coming evaluations to `folder`, or nowhere."""
        self.monitor = self.monitor_in(folder)

    def monitor_in(self, folder: Path | None) -> Monitor:
        """This process's monitor in `folder`, or one that writes nowhere."""
        return Monitor(None if folder is None else folder / f"selections-rank{self.rank}.jsonl")
