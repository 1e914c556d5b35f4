"""A pruned model inside lmms-eval. It knows nothing of how tokens are pruned, or of families."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
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

from finepruner_lmms.checkpoints.load import check_pruner, choose_device, open_checkpoint, read_model, resolve
from finepruner_lmms.checkpoints.processor import check_template
from finepruner_lmms.engine.cost import DecoderSizes
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.keywords import remember_tokenizer
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms import heartbeat
from finepruner_lmms.lmms.answering import Answering, Host
from finepruner_lmms.lmms.batch_sizes import BatchSizes
from finepruner_lmms.lmms.batching import Prepared
from finepruner_lmms.lmms.command_line import read_arguments, told_in_one_line
from finepruner_lmms.lmms.decoding import Decoding
from finepruner_lmms.lmms.identity import answer_identity, answer_settings, checkpoint_identity
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.lmms.image_encoding import ImageEncoder
from finepruner_lmms.lmms.journal import Journal, Origin, question_key
from finepruner_lmms.lmms.meter import Meter, device_name, lmms_eval_metrics
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.lmms.monitor import Monitor
from finepruner_lmms.lmms.plain_run import Answerer, journal_folder
from finepruner_lmms.lmms.preparing import Preparer
from finepruner_lmms.lmms.ranks import all_or_none, every_rank
from finepruner_lmms.lmms.recorder import Recorder
from finepruner_lmms.lmms.requests import Asked
from finepruner_lmms.lmms.response_cache import identify
from finepruner_lmms.lmms.rounds import Round, play_rounds
from finepruner_lmms.lmms.together import Company, Seat
from finepruner_lmms.pruners import Pruner


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
        self.on_progress: Callable[[int, int, int], None] | None = None
        self.meter = Meter(self._device)
        session = every_rank(self.accelerator, uuid4().hex[:12])[0]
        self.origin = Origin(session, self._rank, self._world_size, device_name(self._device))
        """Who answers, for a journal."""
        self.seat: Seat | None = None
        """Of the cell of a study that is under evaluation."""
        sizes = BatchSizes.of_environment()
        self._host = Host(self.model, self._tokenizer, self.images, self.meter, self.origin, sizes)
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
        seat = self._take_seat()
        keyed = [(self._key(request), request) for request in requests]
        known = {} if seat.journal is None else dict(seat.journal.known)  # which grows from here on
        times = Counter(key for key, request in keyed if not self._is_drawn(request))
        missing, seen = [], set()
        for key, request in keyed:
            if key not in known and not (times[key] > 1 and key in seen):
                missing.append(request)
                seen.add(key)
        splits = {asked.task: self.task_dict[asked.task][asked.split] for asked in missing}
        answering = Answering(
            self._host,
            self.arguments,
            self.pruner,
            seat,
            self.monitor,
            self.recorder.numbers(splits),
            lambda done, together: self._tell_progress(done, len(missing), together),
        )
        if not missing:
            self._tell_progress(len(requests), len(requests))
        repeated: dict[str, GenerationResult] = {}
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        with self.monitor, progress, closing(self._answers(missing, answering)) as answers:
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

    def _answers(self, requests: Sequence[Asked], answering: Answering) -> Generator[GenerationResult]:
        """The answers of requests that nobody has answered, in order."""
        self.meter.start()
        tokens, done = 0, 0
        with closing(self._prepared_windows(requests)) as windows:
            for prepared in windows:
                answers = answering.window(prepared)
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

    def monitor_to(self, folder: Path | None) -> None:
        """Write the selections of the coming evaluations to `folder`, or nowhere."""
        self.monitor = self.monitor_in(folder)

    def monitor_in(self, folder: Path | None) -> Monitor:
        """This process's monitor in `folder`, or one that writes nowhere."""
        return Monitor(None if folder is None else folder / f"selections-rank{self.rank}.jsonl")
