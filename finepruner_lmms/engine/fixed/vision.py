"""Encoding images and choosing among their tokens before the language model, each as one recording per batch size."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.fixed.capture import Replay
from finepruner_lmms.engine.fixed.snapshot import Snapshot
from finepruner_lmms.engine.vision_tower import encode_chunk
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners.base import Reduction, VisionPruner
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

MOST = 16
"""So many recordings are kept; the one that was not used for the longest time goes first."""


class Encoding:
    """Up to so many images as `pixels` `[B, 3, S, S]` has rows, through the vision tower and the projector."""

    def __init__(self, model: LlavaForConditionalGeneration, pixels: Tensor, replay: Callable[[Any], Replay]) -> None:
        self._model, self._pixels = weakref.ref(model), torch.empty_like(pixels)
        self._outputs: VisionOutputs | None = None
        self._replay = replay(self._run)

    def __call__(self, pixels: Tensor) -> VisionOutputs:
        """The outputs of images like those it was made for, in memory of their own."""
        self._pixels.copy_(pixels, non_blocking=True)
        self._replay()
        assert self._outputs is not None
        return self._outputs.map(torch.clone)

    def _run(self) -> None:
        model = self._model()
        assert model is not None
        self._outputs = encode_chunk(model, self._pixels)


class Reducing:
    """The choice of a vision-side method among the tokens of images like `vision`."""

    def __init__(self, pruner: VisionPruner, vision: VisionOutputs, replay: Callable[[Any], Replay]) -> None:
        self._pruner, self._vision = pruner, vision.map(torch.clone)
        self._reduction: Reduction | None = None
        self._replay = replay(self._run)

    def __call__(self, vision: VisionOutputs) -> Reduction:
        """The reduction of `vision`, in memory of its own."""
        for buffer, values in zip(_tensors(self._vision), _tensors(vision), strict=True):
            buffer.copy_(values)
        self._replay()
        assert self._reduction is not None
        tokens, keep, lead, merged, changed = self._reduction
        return Reduction(tokens.clone(), keep.clone(), lead, None if merged is None else merged.clone(), changed)

    def _run(self) -> None:
        with for_choosing(self._vision.features.device):
            self._reduction = self._pruner.reduce(self._vision)


class VisionPrograms:
    """The recordings of a model's vision side. What cannot be recorded is run as it is."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        self._model = weakref.ref(model)
        self._device = next(tower.parameters()).device
        self._snapshot = Snapshot("the vision tower", (projector, tower), model.config.vision_config)
        self._programs: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, pixels: Tensor) -> VisionOutputs:
        """`encode_chunk` of `pixels` `[B, 3, S, S]`, of whatever B, which are on the tower's device and of its type."""
        model = self._model()
        assert model is not None
        if not self.usable():
            return encode_chunk(model, pixels)
        key = ("encode", pixels.shape, pixels.dtype)
        with self._lock:
            return self._find(key, lambda: Encoding(model, pixels, self._replay))(pixels)

    def reduce(self, pruner: VisionPruner, vision: VisionOutputs) -> Reduction:
        """`pruner.reduce(vision)`. A question of several words has a length of its own, and is not recorded."""
        words = vision.text_embeds or ()
        if any(len(text) != 1 for text in words) or not self.usable():
            with for_choosing(vision.features.device):
                return pruner.reduce(vision)
        key = ("reduce", pruner, _alike(vision))
        with self._lock:
            return self._find(key, lambda: Reducing(pruner, vision, self._replay))(vision)

    def usable(self) -> bool:
        """Whether there is nothing against recordings now."""
        return self._snapshot.holds() and self._snapshot.why_not() is None

    def _find(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._programs:
            self._programs[key] = make()
            if len(self._programs) > MOST:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def _replay(self, function: Callable[[], None]) -> Replay:
        return Replay(function, self._device)


_programs: weakref.WeakKeyDictionary[LlavaForConditionalGeneration, VisionPrograms] = weakref.WeakKeyDictionary()


def vision_programs(model: LlavaForConditionalGeneration) -> VisionPrograms:
    """The recordings of `model`; new ones where its vision side is not as it was."""
    found = _programs.get(model)
    if found is None or not found._snapshot.holds():
        found = _programs[model] = VisionPrograms(model)
    return found


def _alike(vision: VisionOutputs) -> Hashable:
    """What has to be the same for two batches to share a recording."""
    return vision.tiled, vision.grids, tuple(tuple(tensor.shape) for tensor in _tensors(vision))


def _tensors(vision: VisionOutputs) -> list[Tensor]:
    texts = vision.text_embeds or []
    return [*(value for name, value in vision.tensors().items() if name != "text_embeds"), *texts]
