"""The programs of a model: prefills and decode steps on fixed buffers, made when they are needed, some of them kept."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.fixed.cache import FixedCache, Storage
from finepruner_lmms.engine.fixed.capture import Replay
from finepruner_lmms.engine.fixed.decoding import Decoding, Ending, Segment
from finepruner_lmms.engine.fixed.prefill import Prefill
from finepruner_lmms.engine.fixed.shape import CAPACITY_STEP, Shape, round_up
from finepruner_lmms.engine.fixed.snapshot import Snapshot
from finepruner_lmms.engine.prompt_layout import counts_after_drop
from finepruner_lmms.pruners.base import Pruner, Stage

Kinds = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
MOST = 64
"""So many recordings are kept; the one that was not used for the longest time goes first."""


@dataclass
class Program:
    """Prompts of one shape under one pruner: the prefill, the step that follows it, and how to run each."""

    prefill: Prefill
    decoding: Decoding
    run_prefill: Replay
    run_step: Replay


class Programs:
    """The programs of one model.

    All share one memory for caches, one for visual tokens and one for the intermediate values of recordings: one batch
    runs at a time, which `one_batch` sees to.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        head = model.lm_head.weight
        self._device, self._dtype = head.device, head.dtype
        self._storage, self._images = Storage(model.dtype, head.device), Storage(model.dtype, head.device)
        self._pool = self._new_pool()
        self._prefills: OrderedDict[Hashable, tuple[Prefill, Replay]] = OrderedDict()
        self._decodings: OrderedDict[Hashable, tuple[Decoding, Replay]] = OrderedDict()
        self._snapshot = _snapshot(model)
        self._lock, self._last = threading.Lock(), None
        self.made = 0
        """How many programs were made; more than a few per method and batch size means that shapes are too fine."""

    def why_not(self, model: LlavaForConditionalGeneration) -> str | None:
        """Why `model` cannot be recorded as it is now; None if it can. Forgets what was recorded before it changed."""
        if not self._snapshot.holds():
            self.clear()
            self._snapshot = _snapshot(model)
        return self._snapshot.why_not()

    @property
    def kept(self) -> int:
        """How many programs there are now."""
        return len(self._prefills) + len(self._decodings)

    def find(
        self, model: LlavaForConditionalGeneration, pruner: Pruner, shape: Shape, room: int, ending: Ending
    ) -> Program:
        """The program for prompts of `shape` and answers of up to `room` tokens."""
        stages = pruner.stages(len(model.model.language_model.layers), shape.visual) if shape.visual else ()
        widths = segment_widths(stages, shape.kinds)
        segments = tuple(Segment(layer, round_up(width + room, CAPACITY_STEP)) for layer, width in widths)
        attention = model.model.language_model.layers[0].self_attn
        heads, head_dim = model.config.text_config.num_key_value_heads, attention.head_dim
        capacities = Decoding.capacities(segments, len(model.model.language_model.layers))
        needed = FixedCache.elements(shape.rows, heads, head_dim, capacities)
        images = shape.rows * shape.visual * model.config.text_config.hidden_size
        for storage, elements in ((self._storage, needed), (self._images, images)):
            if not storage.holds(elements):
                self.clear()  # they use the memory that is about to go
                storage.grow(elements)
        key: Hashable = (shape.rows, segments, room, ending)
        if key not in self._decodings:
            decoding = Decoding(model, shape.rows, segments, room, ending, self._storage.memory)
            self._make(self._decodings, key, (decoding, Replay(decoding.step, self._device, self._pool)))
        self._decodings.move_to_end(key)
        decoding, step = self._decodings[key]
        whole: Hashable = (key, pruner, shape)
        if whole not in self._prefills or self._prefills[whole][0].decoding is not decoding:
            prefill = Prefill(model, pruner, shape, decoding, self._images.memory)
            self._make(self._prefills, whole, (prefill, Replay(prefill.run, self._device, self._pool)))
        self._prefills.move_to_end(whole)
        prefill, run = self._prefills[whole]
        # recording a step takes steps, which would go on with the prompt if it were there already
        if not step.recorded:
            decoding.reset()
            step.record()
        return Program(prefill, decoding, run, step)

    def _new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """Inside, nobody else uses the buffers: no other thread, and no stream that is still at the batch before."""
        with self._lock:
            if self._last is not None:
                torch.cuda.current_stream(self._device).wait_event(self._last)
            try:
                yield
            finally:
                if self._device.type == "cuda":
                    self._last = torch.cuda.current_stream(self._device).record_event()

    def clear(self) -> None:
        """Forget all programs."""
        self._prefills.clear()
        self._decodings.clear()
        self._pool = self._new_pool()  # one whose recordings are all gone cannot be used again

    def _make(self, programs: OrderedDict[Hashable, Any], key: Hashable, program: Any) -> None:
        programs[key] = program
        self.made += 1
        if len(programs) > MOST // 2:
            programs.popitem(last=False)


def segment_widths(stages: Sequence[Stage], kinds: Kinds) -> list[tuple[int, int]]:
    """The layers from which on prompts have another width, and that width; `kinds` are the rows' counts (`Layout`)."""
    lengths, counts, tails = kinds
    found = [(0, max(lengths))]
    for stage in stages if any(counts) else ():
        lengths, counts = counts_after_drop(lengths, counts, tails, stage.retained, stage.merged)
        found.append((stage.layer, max(lengths)))
    return found


def _snapshot(model: LlavaForConditionalGeneration) -> Snapshot:
    parts = (model.model.language_model, model.lm_head)
    return Snapshot("the language model", parts, model.config.text_config, (model, model.model))


_programs: weakref.WeakKeyDictionary[LlavaForConditionalGeneration, Programs] = weakref.WeakKeyDictionary()


def programs_of(model: LlavaForConditionalGeneration) -> Programs:
    """The programs of `model`; new ones where it moved to another device or type."""
    found, head = _programs.get(model), model.lm_head.weight
    if found is None or (found._device, found._dtype) != (head.device, head.dtype):
        found = _programs[model] = Programs(model)
    return found


def forget_programs(model: LlavaForConditionalGeneration) -> None:
    """Give back the memory of a model's programs; a later call makes new ones."""
    _programs.pop(model, None)
