"""From conversations to what a model takes: ids with placeholders expanded, and pictures as its tower reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from finepruner_lmms.asking.conversation import Conversation
from finepruner_lmms.asking.settings import Evaluation, ImageSettings
from finepruner_lmms.asking.videos import read_video
from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.checkpoints.prompts import prompt_ids, render
from finepruner_lmms.engine.families.family import Family, ImageSpan, Run, View
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
"""What a processor returns with an entry for each token; all else describes images and videos."""


@dataclass(frozen=True)
class Prompt:
    """One conversation as token `ids`, with a placeholder for each visual token.

    `media` is what the model takes beside them, of this conversation alone; `kinds` are its `mm_token_type_ids`, where
    its processor writes them. `views` say where the visual tokens of its only picture stand, if that is cut into tiles;
    else there are none.
    """

    ids: list[int]
    question: str
    media: Mapping[str, Any] = field(default_factory=dict)
    kinds: list[int] | None = None
    spans: tuple[ImageSpan, ...] = ()
    views: tuple[View, ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        """Of all its images: what budgets count."""
        return sum(span.num_visual_tokens for span in self.spans)


class InputMaker(Protocol):
    """Makes the inputs of one model."""

    def prompt(self, conversation: Conversation) -> Prompt:
        """`FieldError` for a conversation that the model cannot be asked."""


def input_maker(config: Any, processor: Any, asked: Evaluation) -> InputMaker:
    """That of a model of this configuration, for the prompt and the image settings of an evaluation."""
    family = find_family(config.model_type)
    if family.model_type == "llava":
        return SquareInputs(config, processor, asked)
    return ProcessorInputs(family, config, processor, asked)


class SquareInputs:
    """LLaVA-1.5: each picture is one square, and each square is the same number of placeholders."""

    def __init__(self, config: Any, processor: Any, asked: Evaluation) -> None:
        self._family = find_family(config.model_type)
        self._config, self._processor, self._asked = config, processor, asked
        count = self._family.num_visual_tokens(config)
        assert count is not None
        ((self._span,),) = self._family.spans(config, [Run(count)], {})

    def ids(self, conversation: Conversation) -> Prompt:
        """The prompt without its pictures, for who has them encoded already."""
        if conversation.videos:
            raise FieldError("video", f"{self._family.title} is shown images", fix="give frames as images")
        text = render(self._asked.conv, self._processor, conversation.messages())
        ids = prompt_ids(self._processor.tokenizer, text, self._config.image_token_id, self._span.length)
        return Prompt(ids, conversation.question, spans=(self._span,) * len(conversation.images))

    def pixels(self, picture: Any) -> Tensor:
        """`[3, S, S]` of a picture in RGB."""
        return preprocess(self._processor.image_processor, picture, self._asked.images.image_aspect_ratio or "pad")

    def prompt(self, conversation: Conversation) -> Prompt:
        """With `pixel_values` `[images, 3, S, S]`."""
        bare, images = self.ids(conversation), conversation.images
        media = {"pixel_values": torch.stack([self.pixels(picture) for picture in images])} if images else {}
        return Prompt(bare.ids, bare.question, media, spans=bare.spans)


class ProcessorInputs:
    """All other families: what the checkpoint's own processor makes of the conversation."""

    def __init__(self, family: Family, config: Any, processor: Any, asked: Evaluation) -> None:
        self._family, self._config, self._processor, self._asked = family, config, processor, asked
        self._placeholders = [
            token for name in ("image_token", "video_token") if (token := getattr(processor, name, None))
        ]

    def prompt(self, conversation: Conversation) -> Prompt:
        """Its `media` are the processor's, and belong to the family."""
        messages = [
            turn | {"content": [self._without_placeholders(part) for part in turn["content"]]}
            for turn in conversation.messages()
        ]
        text = render(self._asked.conv, self._processor, messages)
        images = conversation.images
        asked: dict[str, Any] = {"images": [images] if images else None}
        asked["images_kwargs"] = images_kwargs(self._asked.images)
        if conversation.videos:
            asked |= self._videos(conversation)
        start = self._processor.tokenizer.bos_token
        if start and text.startswith(start):  # a template that writes it is not given another one
            asked["add_special_tokens"] = False
        made = self._processor(text=[text], return_tensors="pt", **{k: v for k, v in asked.items() if v})
        media = {key: value for key, value in made.items() if key not in PER_TOKEN}
        kinds = made["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in made else None
        ids = made["input_ids"][0].tolist()
        spans = tuple(span for run in self._family.spans(self._config, self._runs(ids), media) for span in run)
        views: tuple[View, ...] = ()
        if len(images) == len(spans) == 1 and spans[0].grid is None:
            views = self._family.views(self._config, spans[0], images[0].size)
        return Prompt(ids, conversation.question, media, kinds, spans, views)

    def _videos(self, conversation: Conversation) -> dict[str, Any]:
        if getattr(self._processor, "video_processor", None) is None:
            raise FieldError("video", f"{self._family.title} is shown images here", fix="give frames as images")
        frames, about = zip(
            *(read_video(video, self._asked.images.num_frames) for video in conversation.videos), strict=True
        )
        return {"videos": list(frames), "videos_kwargs": {"video_metadata": list(about), "do_sample_frames": False}}

    def _without_placeholders(self, part: dict[str, str]) -> dict[str, str]:
        """A placeholder inside a text would claim an image that is not there."""
        text = part.get("text")
        if text is None or not any(token in text for token in self._placeholders):
            return part
        for token in self._placeholders:
            text = text.replace(token, "")
        return part | {"text": text.strip()}

    def _runs(self, ids: list[int]) -> list[Run]:
        """The runs of placeholders of one kind."""
        kinds = {token: kind == "video" for kind, token in self._family.placeholders(self._config).items()}
        grouped = [(token, len(list(same))) for token, same in groupby(ids)]
        return [Run(length, kinds[token]) for token, length in grouped if token in kinds]


def images_kwargs(settings: ImageSettings) -> dict[str, Any]:
    """What the processors of transformers call the settings that are given."""
    found: dict[str, Any] = {}
    if settings.min_pixels is not None and settings.max_pixels is not None:
        found["size"] = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    if settings.max_tiles is not None:
        found |= {"crop_to_patches": True, "min_patches": 1, "max_patches": settings.max_tiles}
    return found


def batch_inputs(prompts: Sequence[Prompt], padding_id: int) -> dict[str, Any]:
    """The inputs of `generate`: prompts padded on the left, and their images one after the other."""
    length = max(len(prompt.ids) for prompt in prompts)
    missing = [length - len(prompt.ids) for prompt in prompts]
    rows = [[padding_id] * short + prompt.ids for short, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * short + [1] * len(prompt.ids) for short, prompt in zip(missing, prompts, strict=True)]
    inputs: dict[str, Any] = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
    if any(prompt.kinds is not None for prompt in prompts):
        kinds = [[0] * short + (prompt.kinds or []) for short, prompt in zip(missing, prompts, strict=True)]
        inputs["mm_token_type_ids"] = torch.tensor(kinds)
    names = dict.fromkeys(name for prompt in prompts for name in prompt.media)
    return inputs | {name: _joined([p.media[name] for p in prompts if name in p.media]) for name in names}


def batch_key(prompt: Prompt) -> str:
    """The same for prompts whose media can stand in one batch: videos only with as many frames of one size."""
    video = prompt.media.get("pixel_values_videos")
    return str(tuple(video.shape[1:])) if isinstance(video, Tensor) and video.ndim > 2 else ""


def _joined(parts: Sequence[Any]) -> Any:
    """One after the other; what has fewer tiles `[images, tiles, 3, H, W]` than others is filled up with zeros."""
    if not all(isinstance(part, Tensor) for part in parts):
        return [entry for part in parts for entry in part]
    if parts[0].ndim == 5 and len({part.shape[1] for part in parts}) > 1:
        most = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (0, 0) * 3 + (0, most - part.shape[1])) for part in parts]
    return torch.cat(list(parts))
