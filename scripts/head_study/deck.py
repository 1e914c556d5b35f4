"""A deck of questions about fresh scenes, with what every decoder layer of the full prompt sees."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish, VisionOutputs
from head_study.decoder import Layers, Prefill, best
from head_study.worlds import VISUAL, WORLDS, Asked, questions

__all__ = ["VISUAL", "Deck"]


class Deck:
    """Questions, answered by a model under any choice of tokens."""

    def __init__(
        self,
        pretrained: str,
        split: str,
        scenes: int,
        per_scene: int = 3,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        model, processor = fp.load_model(pretrained, dtype=dtype)
        rng = random.Random(seed)
        asked = list(questions(processor, model.config, "easy", split, range(scenes), per_scene, rng))
        self._fill(model, processor, "easy", split, asked, range(len(model.model.language_model.layers) + 1))

    @classmethod
    def part(
        cls,
        model: Any,
        processor: Any,
        world: str,
        split: str,
        scenes: range,
        per_scene: int,
        stops: Collection[int] = (),
        wish: TowerWish = NOTHING_MORE,
        kinds: tuple[str, ...] = (),
    ) -> Deck:
        """Some scenes of a world, asked about each by itself; tokens go before a layer of `stops`."""
        deck = cls.__new__(cls)
        asked = list(questions(processor, model.config, world, split, scenes, per_scene, kinds=kinds))
        deck._fill(model, processor, world, split, asked, {*stops, len(model.model.language_model.layers)}, wish)
        return deck

    def _fill(
        self,
        model: Any,
        processor: Any,
        world: str,
        split: str,
        asked: list[Asked],
        stops: Collection[int],
        wish: TowerWish = NOTHING_MORE,
    ) -> None:
        self.model, self.processor, self.asked, self._stops, self._wish = model, processor, asked, stops, wish
        self.layers = Layers(model)
        self.scenes = np.array([one.scene for one in asked])
        self.kinds = np.array([one.kind for one in asked])
        self.images, place = np.unique(self.scenes, return_inverse=True)
        self.place = torch.from_numpy(place)
        """Which of the images each question is about, `[Q]`."""
        pictures = [WORLDS[world].make_scene(split, int(number)).image() for number in self.images]
        self.pixels = torch.stack([preprocess(processor.image_processor, one, "pad") for one in pictures])
        self.objects = torch.from_numpy(np.stack([one.objects for one in asked])).to(model.device)
        self.subject = torch.from_numpy(np.stack([one.subject for one in asked])).to(model.device)

    @cached_property
    def vision(self) -> VisionOutputs:
        """The images, encoded. Neither this nor the prefill is computed where registered methods alone are asked."""
        parts = [fp.encode_images(self.model, some, self._wish) for some in self.pixels.split(16)]
        return parts[0] if len(parts) == 1 else VisionOutputs.join(parts)

    @cached_property
    def full(self) -> Prefill:
        """All questions behind all visual tokens."""
        return self.prefill([one.ids for one in self.asked], self.vision.projected[self.place], self._stops)

    @property
    def attention(self) -> Tensor:
        """That of the last prompt token to the image, `[Q, layers, H, V]`."""
        return self.full.attention

    @cached_property
    def vanilla(self) -> Tensor:
        """Which questions are answered rightly with all tokens, `[Q]`."""
        return self.full.unpruned()

    def prefill(self, prompts: Sequence[list[int]], visual: Tensor, stops: Collection[int]) -> Prefill:
        """The questions' answers are judged behind these prompts with these visual tokens `[Q, V, D]`."""
        return Prefill(self.layers, prompts, [one.answer for one in self.asked], visual, stops)

    def answer(self, scores: Tensor, retained: int, layer: int = 2) -> Tensor:
        """Which questions are answered rightly, `[Q]` bool, if the `retained` best of `scores` `[Q, N]` stay.

        The others are dropped before `layer`; survivors keep their positions.
        """
        return self.answer_all([scores], retained, layer)[0]

    def answer_all(self, choices: Sequence[Tensor], retained: int, layer: int = 2) -> Tensor:
        """`answer` of several scores, `[choices, Q]`."""
        return self.full.judge(torch.stack([best(scores, retained) for scores in choices]), layer)
