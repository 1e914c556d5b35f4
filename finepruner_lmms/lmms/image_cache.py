"""Encoded images, shared between questions and between methods.

Benchmarks ask several questions per image, and a study asks them again for every method and budget; the vision
tower's answer is always the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

from PIL import Image
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.checkpoints.images import as_rgb, preprocess
from finepruner_lmms.engine.vision_tower import encode_images
from finepruner_lmms.pruners.vision_outputs import VisionOutputs


class ImageCache:
    """The most recently used encoded images, up to `megabytes`, on the model's device."""

    def __init__(
        self, model: LlavaForConditionalGeneration, image_processor: Any, aspect_ratio: str, megabytes: int = 1024
    ) -> None:
        self._model, self._processor, self._aspect_ratio = model, image_processor, aspect_ratio
        self._room = megabytes * 2**20
        self._used = 0
        self._entries: OrderedDict[bytes, VisionOutputs] = OrderedDict()
        self.encoded = 0
        """How many images went through the vision tower."""

    def encode(self, pictures: list[Image.Image]) -> VisionOutputs:
        """The pictures' outputs, one per row, in order.

        Each picture is encoded alone, so that its features do not depend on what it happened to be batched with.
        """
        return VisionOutputs.join([self._one(picture) for picture in pictures])

    def _one(self, picture: Image.Image) -> VisionOutputs:
        picture = as_rgb(picture)
        key = _digest(picture)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        pixels = preprocess(self._processor, picture, self._aspect_ratio)[None]
        outputs = encode_images(self._model, pixels.to(self._model.device))
        self.encoded += 1
        if outputs.nbytes <= self._room:
            self._entries[key] = outputs
            self._used += outputs.nbytes
            while self._used > self._room:
                _, oldest = self._entries.popitem(last=False)
                self._used -= oldest.nbytes
        return outputs


def _digest(picture: Image.Image) -> bytes:
    """A fingerprint of the pixels of an RGB picture."""
    return hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest()
