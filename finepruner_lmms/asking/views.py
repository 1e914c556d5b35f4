"""A picture as a vision tower saw it, and where in it each visual token stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finepruner_lmms.asking.settings import ImageSettings
from finepruner_lmms.checkpoints.images import pad_to_square
from finepruner_lmms.engine.families.family import Family, ImageSpan, View

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Picture:
    """`image` as the vision tower saw it, and the `views` that its visual tokens fill, in their order.

    No views: it is not known where they stand. `length` counts its placeholders, of which those at `separators` are
    newlines and the like.
    """

    image: Image.Image
    views: tuple[View, ...]
    length: int
    separators: tuple[int, ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        """N of this picture."""
        return self.length - len(self.separators)

    @property
    def sheets(self) -> list[int]:
        """How often the whole picture is covered: the sheets of its views, the whole picture before its tiles."""
        return sorted({view.sheet for view in self.views})

    def light(self, kept: Mask, sheet: int) -> Mask:
        """Which pixels `[H, W]` show a kept token, of one sheet; `kept` `[N]`."""
        width, height = self.image.size
        lit, first = np.zeros((height, width), dtype=bool), 0
        for view in self.views:
            count = view.rows * view.columns
            if view.sheet == sheet:
                left, top = round(view.box[0] * width), round(view.box[1] * height)
                right, bottom = round(view.box[2] * width), round(view.box[3] * height)
                tokens = Image.fromarray(kept[first : first + count].reshape(view.rows, view.columns))
                part = tokens.resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.NEAREST)
                lit[top:bottom, left:right] = np.asarray(part)[: bottom - top, : right - left]
            first += count
        return lit


def pictures(
    family: Family,
    config: Any,
    processor: Any,
    settings: ImageSettings,
    images: Sequence[Image.Image],
    spans: Sequence[ImageSpan],
) -> tuple[Picture, ...]:
    """The pictures of a conversation in order; videos, which show no still picture, are left out.

    None where a family reads the frames of a video as images: which of them are pictures is not told.
    """
    found, stills = [], [span for span in spans if not span.video]
    if len(stills) != len(images):
        return ()
    for image, span in zip(images, stills, strict=True):
        seen = _square(image, processor, settings) if family.model_type == "llava" else image
        found.append(Picture(seen, family.views(config, span, seen.size), span.length, span.separators))
    return tuple(found)


def _square(image: Image.Image, processor: Any, settings: ImageSettings) -> Image.Image:
    """LLaVA-1.5's square: padded with the mean colour, or the middle of the picture."""
    if settings.image_aspect_ratio != "crop":
        red, green, blue = (int(255 * mean) for mean in processor.image_processor.image_mean)
        return pad_to_square(image, (red, green, blue))
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
