"""Pictures of a report: small, as the model sees them, and together no larger than a page can bear."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from finepruner_lmms.matrix.boxes import Box

if TYPE_CHECKING:
    from PIL.Image import Image

Placement = Literal["pad", "crop", "stretch"]
"""How a picture becomes what visual tokens show: padded to a square, its middle cut out as a square, or resized."""

_MOST_OF_ONE = 24_000
"""Bytes of one picture, where there are few."""
_LADDER = ((420, 78), (336, 72), (288, 62), (240, 52), (192, 42), (128, 30), (64, 20))
"""Pixels of the longer side, and WebP's quality."""
_PROBE = 5
_GROWS = (11.5, 7.4, 5.2, 3.7, 2.3, 1.0, 0.33)
"""Bytes of each, by those of the one at `_PROBE`: of 60 photographs the geometric mean; they spread by 25 %."""
_GREY = (122, 116, 104)  # what LLaVA-1.5 pads with


class Thumbnail(NamedTuple):
    """A picture as WebP, and its size in pixels."""

    content: bytes
    width: int
    height: int


def allowance(pictures: int, together: int) -> int:
    """Bytes that each of so many pictures may have."""
    return min(_MOST_OF_ONE, together // max(pictures, 1))


def as_seen(picture: Image, placement: Placement) -> Image:
    """The part of the plane that a model's visual tokens fill, in the picture's own pixels."""
    from PIL import Image as Images

    picture = picture.convert("RGB")
    if placement == "stretch":
        return picture
    left, top, side = _square(picture.size, placement)
    square = Images.new("RGB", (side, side), _GREY)
    square.paste(picture, (-left, -top))
    return square


def boxes_as_seen(boxes: Any, size: tuple[int, int], placement: Placement) -> tuple[Box, ...]:
    """Boxes in pixels of a picture of `size` (left, top, right, bottom) as shares of what `as_seen` shows.

    What is no box, or lies outside of what is seen, is left out.
    """
    left, top, width, height = 0, 0, *size
    if placement != "stretch":
        left, top, width = _square(size, placement)
        height = width
    found = []
    for given in boxes if isinstance(boxes, Sequence) and not isinstance(boxes, str) else ():
        if not isinstance(given, Sequence) or len(given) != 4:
            continue
        if not all(isinstance(number, int | float) for number in given):
            continue
        across = [min(max((x - left) / width, 0.0), 1.0) for x in given[::2]]
        down = [min(max((y - top) / height, 0.0), 1.0) for y in given[1::2]]
        if across[0] < across[1] and down[0] < down[1]:  # NaN is not less than anything
            found.append(Box(across[0], down[0], across[1], down[1]))
    return tuple(found)


def thumbnail(picture: Image, most: int) -> Thumbnail:
    """A small copy of at most `most` bytes, or else the smallest there is.

    To encode takes long, so that one of a middle size says from which on it is worth while to try.
    """
    largest = _LADDER[0][0]
    if max(picture.size) > largest:
        picture = picture.copy()
        picture.thumbnail((largest, largest))
    probe = _encoded(picture, *_LADDER[_PROBE])
    last = len(_LADDER) - 1
    first = next((place for place, by in enumerate(_GROWS) if by * len(probe.content) <= most), last)
    for place in range(first, last):
        found = probe if place == _PROBE else _encoded(picture, *_LADDER[place])
        if len(found.content) <= most:
            return found
    return _encoded(picture, *_LADDER[last])


def _encoded(picture: Image, side: int, quality: int) -> Thumbnail:
    small = picture.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=quality, method=2)
    return Thumbnail(file.getvalue(), *small.size)


def _square(size: tuple[int, int], placement: Placement) -> tuple[int, int, int]:
    """Left, top and side of the square that is seen; negative where it is larger than the picture."""
    width, height = size
    side = max(size) if placement == "pad" else min(size)
    return (width - side) // 2, (height - side) // 2, side
