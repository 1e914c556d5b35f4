"""From pictures to encoded images: prepared in worker threads, encoded in chunks, found again in the cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.engine.image_chunks import ChunkEncoder
from finepruner_lmms.engine.vision_tower import encode_images
from finepruner_lmms.lmms.image_cache import ImageCache, Storage
from finepruner_lmms.lmms.meter import ImageUse
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.pruners.vision_outputs import TowerWish, VisionOutputs


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture by the `key` of its content: as pixels for the tower, or in RGB where it was known already."""

    key: bytes
    content: Tensor | Image.Image


class ImageEncoder:
    """Encodes pictures of questions, each once while the cache holds it."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        image_processor: Any,
        arguments: ModelArguments,
    ) -> None:
        self._processor, self._aspect_ratio = (
            image_processor,
            "crop" if arguments.image_aspect_ratio == "crop" else "pad",
        )
        self._model = model
        self._chunks = ChunkEncoder(model, arguments.image_chunk, arguments.execution)
        dtype = None if arguments.image_cache_dtype == "auto" else getattr(torch, arguments.image_cache_dtype)
        self._storage = Storage(model.device, arguments.image_cache_place, dtype)
        self._cache = ImageCache(arguments.image_cache * 2**20, self._storage)
        self._coming: list[Picture] = []
        self._held: dict[bytes, VisionOutputs] = {}  # encoded for pictures that are coming
        self.asked = 0
        """How many questions showed an image."""
        self.encoded = 0
        """How many images went through the vision tower."""
        self._before = ImageUse(0, 0)

    @property
    def use(self) -> ImageUse:
        """What was asked and encoded in this scan."""
        return ImageUse(self.asked - self._before.asked, self.encoded - self._before.encoded)

    def begin_scan(self, tasks: Iterable[str] = ()) -> None:
        """The questions of `tasks` are asked from here on."""
        self._cache.begin_scan(tasks)
        self.expect([])
        self._before = ImageUse(self.asked, self.encoded)

    def prepare(self, key: bytes, picture: Image.Image) -> Picture:
        """A picture in RGB, made ready to be encoded unless that is done already. For worker threads."""
        if key in self._cache:
            return Picture(key, picture)
        return Picture(key, self._pixels(picture))

    def expect(self, pictures: Sequence[Picture]) -> None:
        """These pictures will be asked for, in this order: chunks are filled with them, and none is encoded twice."""
        self._coming = list(pictures)
        self._drop_unexpected()

    def encode(self, pictures: Sequence[Picture]) -> VisionOutputs:
        """The pictures' outputs, one per row, in order."""
        self.asked += len(pictures)
        self._no_longer_expect(pictures)
        for picture in pictures:
            if picture.key not in self._held and (known := self._cache.get(picture.key)) is not None:
                self._held[picture.key] = known
        queue, size = self._queue(pictures), self._chunks.size
        for start in range(0, len(queue), size):
            self._encode_chunk(queue[start : start + size])
        outputs = VisionOutputs.join([self._held[picture.key] for picture in pictures])
        self._drop_unexpected()
        return outputs

    def encode_apart(self, pictures: Sequence[Picture], wish: TowerWish) -> VisionOutputs:
        """The same with what `wish` asks of the tower, which is not kept: few methods read it."""
        self.asked += len(pictures)
        self.encoded += 0 if wish.unread else len(pictures)
        pixels = [self._pixels(p.content) if isinstance(p.content, Image.Image) else p.content for p in pictures]
        return encode_images(self._model, torch.stack(pixels), wish)

    def _no_longer_expect(self, pictures: Sequence[Picture]) -> None:
        asked = Counter(picture.key for picture in pictures)
        coming = []
        for picture in self._coming:
            if asked[picture.key]:
                asked[picture.key] -= 1
            else:
                coming.append(picture)
        self._coming = coming

    def _drop_unexpected(self) -> None:
        coming = {picture.key for picture in self._coming}
        self._held = {key: outputs for key, outputs in self._held.items() if key in coming}

    def _queue(self, pictures: Sequence[Picture]) -> list[Picture]:
        """What must be encoded now, filled up to whole chunks with what must be soon."""
        now = {picture.key: picture for picture in pictures if picture.key not in self._held}
        spare = -len(now) % self._chunks.size
        soon = {
            picture.key: picture
            for picture in (self._coming if spare else ())
            if not (picture.key in now or picture.key in self._held or picture.key in self._cache)
        }
        return [*now.values(), *islice(soon.values(), spare)]

    def _encode_chunk(self, pictures: Sequence[Picture]) -> None:
        pixels = [self._pixels(p.content) if isinstance(p.content, Image.Image) else p.content for p in pictures]
        self.encoded += len(pictures)
        for picture, exact in zip(pictures, self._chunks.encode(pixels), strict=True):
            outputs = self._storage.rounded(exact)
            self._held[picture.key] = outputs
            self._cache.put(picture.key, outputs)

    def _pixels(self, picture: Image.Image) -> Tensor:
        return self._chunks.prepare(preprocess(self._processor, picture, self._aspect_ratio))


def content_key(picture: Image.Image) -> bytes:
    """A fingerprint of the pixels of an RGB picture."""
    return hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest()
