"""Which visual tokens a method kept, drawn over the pictures that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from finepruner_lmms.asking.answer import Answer
from finepruner_lmms.checkpoints.images import pad_to_square
from finepruner_lmms.errors import FieldError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIM = 0.25
"""How bright a dropped token's part of a picture stays."""
_GREY = (122, 116, 104)  # what LLaVA-1.5 pads with


def show(answer: Answer) -> Figure:
    """A matplotlib figure: a row for each picture, a column for each layer before which tokens went.

    What was dropped is dark. `FieldError` where the visual tokens of a picture fill no one grid: those of tiles, whose
    places are not told; `answer.trace` has them as numbers.
    """
    from matplotlib.figure import Figure

    pictures = answer.conversation.images
    layers: list[int | None] = [*sorted(answer.trace.kept)] or [None]
    if not pictures:
        raise FieldError("answer", "it was asked without a picture", fix="give `answer` an image")
    figure = Figure(figsize=(3.2 * len(layers), 3.2 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), len(layers), squeeze=False)
    start = 0
    for row, (picture, span) in enumerate(zip(pictures, _stills(answer), strict=True)):
        if answer.model_type == "llava":
            picture = pad_to_square(picture, _GREY)
        for column, layer in enumerate(layers):
            kept = _kept(answer, layer, start, span)
            axes[row][column].imshow(darkened(picture, kept, _grid(span)))
            axes[row][column].set_axis_off()
            when = "all layers" if layer is None else f"from layer {layer}" if layer else "before layer 0"
            axes[row][column].set_title(f"{int(kept.sum())} of {len(kept)}, {when}", fontsize=9)
        start += span.length
    figure.suptitle(f"{answer.conversation.question}\n{answer.text}", fontsize=10)
    return figure


def darkened(picture: Image.Image, kept: Any, grid: tuple[int, int]) -> Any:
    """The picture `[H, W, 3]` with the parts dark that were not `kept` `[N]`, of a grid of rows × columns."""
    light = Image.fromarray((np.asarray(kept).reshape(grid) * 255).astype(np.uint8))
    share = np.asarray(light.resize(picture.size, Image.Resampling.NEAREST), dtype=np.float32)[..., None] / 255
    return (np.asarray(picture, dtype=np.float32) * (_DIM + (1 - _DIM) * share)).astype(np.uint8)


def _stills(answer: Answer) -> list[Any]:
    return [span for span in answer.prompt.spans if not span.video]


def _grid(span: Any) -> tuple[int, int]:
    if span.grid is None or span.grid[0] != 1:
        raise FieldError(
            "answer",
            "the visual tokens of its picture fill no one grid, so that they cannot be drawn over it",
            fix="read answer.trace",
        )
    return span.grid[1], span.grid[2]


def _kept(answer: Answer, layer: int | None, start: int, span: Any) -> Any:
    """Of the visual tokens of a picture `[N]`, those that were kept."""
    there = np.ones(span.length, dtype=bool)
    if layer is not None:
        there = np.isin(np.arange(start, start + span.length), answer.trace.kept[layer][0].cpu().numpy())
    return np.delete(there, list(span.separators))
