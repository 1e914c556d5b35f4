"""How a family is evaluated: its prompt, and what its processor is asked to make of pictures. Loads no tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.errors import FieldError

CONVERSATIONS = ("vicuna_v1", "chat_template", "auto")
ASPECT_RATIOS = ("pad", "crop", "auto")
_VICUNA = ("llava", "llava_next")


class ImageSettings(NamedTuple):
    """What a processor is asked to make of pictures; None where the family does not read it, or its own is taken.

    `image_aspect_ratio` is LLaVA-1.5's. `min_pixels` and `max_pixels` bound a picture of Qwen after resizing,
    `max_tiles` is how many tiles InternVL cuts a picture into at most. Of a video `num_frames` are read at most.
    """

    image_aspect_ratio: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    num_frames: int | None = None


class Evaluation(NamedTuple):
    """The prompt (`conv`: `vicuna_v1` or `chat_template`) and the image settings of an evaluation."""

    conv: str
    images: ImageSettings


def evaluation(family: Family, given: Any = None) -> Evaluation:
    """A family's own evaluation, with what `given` says (attributes of these names) in its place.

    `FieldError` for what the family does not read.
    """
    own: dict[str, Any] = dict(family.evaluation)
    conv = _asked(given, "conv") or own.pop("conv", "chat_template")
    own.pop("conv", None)
    if conv == "vicuna_v1" and family.model_type not in _VICUNA:
        raise FieldError(
            "conv",
            f"'vicuna_v1' is the conversation of LLaVA-1.5; {family.title} does not know it",
            value=conv,
            fix="leave it out",
        )
    settings: dict[str, Any] = {}
    for name in ImageSettings._fields:
        asked = _asked(given, name)
        if asked is not None and name not in own:
            reads = f"reads {', '.join(own)}" if own else "takes images as its checkpoint says"
            raise FieldError(name, f"{family.title} does not read it; it {reads}", value=asked, fix="leave it out")
        settings[name] = own.get(name) if asked is None else asked
    found = ImageSettings(**settings)
    if found.min_pixels is not None and found.max_pixels is not None and found.min_pixels > found.max_pixels:
        raise FieldError("min_pixels", f"{found.min_pixels} is more than max_pixels, {found.max_pixels}")
    return Evaluation(conv, found)


def _asked(given: Any, name: str) -> Any:
    value = getattr(given, name, None)
    return None if value == "auto" else value
