"""EADP: Combating Textual Noise and Redundancy: Entropy-Aware Dense Visual Token Pruning (ECCV 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_number, check_share
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.facility import cosines, cover, dense_cosines
from finepruner_lmms.ops.selection import index_to_mask
from finepruner_lmms.pruners.cdpruner import ByRelevance, mean_similarity
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

_SHARPNESS, _KEPT, _TEMPERATURE, _RANGE = 100.0, 5, 0.01, 1e-6  # one word in 5 is kept
"""Of the released code: a word's cosines before their softmax, words kept, the softmax of entropies, the range."""


@register("eadp")
@dataclass(frozen=True, kw_only=True)
class EADP(ByRelevance):
    """Keeps tokens that cover the image, each patch as much as it matters to the question.

    A patch matters by its similarity to the question as a whole (`alpha`) and to its sharpest words: the fifth of them
    whose similarities to the patches have the lowest entropy. What it matters is stretched to (0, 1], smoothed over
    the grid, and raised to the power of `beta`; a pick is worth what it adds to the coverage of all patches, weighted
    so, by (1 + cosine) / 2 of projected tokens. `relevance`, `clip`: see `ByRelevance`; only `"clip"` is the published
    method.
    """

    paper: ClassVar[str] = "https://xuankunyang.github.io/project/EADP"
    code: ClassVar[str] = "https://github.com/SJTU-DeepVisionLab/EADP"

    alpha: float = 0.5
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha", self.alpha)
        check_number("beta", self.beta, 0)
        self._write("alpha", float(self.alpha))
        self._write("beta", float(self.beta))

    @property
    def reads_words(self) -> bool:
        """One by one, also from CLIP."""
        return True

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The greedy cover: `[B, N]`."""
        weights = smooth(stretch(self._matters(vision)), vision) ** self.beta
        similarity = cosines(vision.projected).add_(1).mul_(0.5)
        picks = cover(similarity, self.retained(vision.num_visual_tokens), targets=weights)
        return index_to_mask(picks, vision.num_visual_tokens)

    def _matters(self, vision: VisionOutputs) -> Tensor:
        """How much each patch matters, `[B, N]` float64, on no scale."""
        if self.relevance == "none":
            return torch.ones_like(vision.projected[..., 0], dtype=torch.float64)
        texts = vision.need("text_embeds", self.name)
        if self.relevance == "clip":
            # the question as a whole stands behind its words; patches resemble the text where the image does not
            tokens, sign = vision.need("image_embeds", self.name), -1.0
            words, whole = [text[:-1] for text in texts], [text[-1:] for text in texts]
        else:
            tokens, words, whole, sign = vision.projected, texts, texts, 1.0
        overall = sign * mean_similarity(tokens.double(), whole)
        cosine, there = dense_cosines(tokens, words)
        return self.alpha * overall + (1 - self.alpha) * by_sharpest_words(sign * cosine, there)


def by_sharpest_words(similarity: Tensor, there: Tensor) -> Tensor:
    """Each patch's similarity `[B, N]` to the words of lowest entropy, from `[B, N, M]`; `there` `[B, M]` are words.

    A word's entropy is that of its softmax over the patches; one word in 5, at least one, is kept, by a softmax of
    their negative entropies. 0 in a row without words.
    """
    chances = (_SHARPNESS * similarity).softmax(1)
    entropy = torch.special.entr(chances).sum(1).masked_fill(~there, math.inf)
    order = entropy.argsort(dim=1, stable=True)
    place = torch.arange(entropy.shape[1], device=entropy.device).expand_as(order)
    rank = torch.zeros_like(order).scatter_(1, order, place)
    kept = there & (rank < (there.sum(1, keepdim=True) // _KEPT).clamp_min(1))
    sharp = (-entropy / _TEMPERATURE).masked_fill(~kept, torch.finfo(entropy.dtype).min).softmax(1) * kept
    return (similarity @ sharp[..., None]).squeeze(-1)


def stretch(values: Tensor) -> Tensor:
    """Each row of `[B, N]` on (0, 1]."""
    low, high = values.aminmax(dim=1, keepdim=True)
    return (values - low + _RANGE) / (high - low + _RANGE)


def smooth(values: Tensor, vision: VisionOutputs) -> Tensor:
    """`values` `[B, N]` under a 3 × 3 Gaussian of width 1 on each frame of each grid, mirrored at its edges.

    As they are where the tokens fill no grid that is known, or one too narrow to be mirrored.
    """
    if not vision.grids:
        return values
    parts = values.split([math.prod(grid) for grid in vision.grids], 1)
    return torch.cat([_blurred(part, *grid) for part, grid in zip(parts, vision.grids, strict=True)], 1)


def _blurred(values: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """One grid of `smooth`. Sums in their own precision: a convolution may round to TF32."""
    if min(rows, columns) < 2:
        return values
    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    cells = values.reshape(-1, frames, rows, columns)
    cells = torch.nn.functional.pad(cells, (1, 1, 1, 1), mode="reflect")
    cells = (1 - 2 * side) * cells[:, :, 1:-1] + side * (cells[:, :, :-2] + cells[:, :, 2:])
    cells = (1 - 2 * side) * cells[..., 1:-1] + side * (cells[..., :-2] + cells[..., 2:])
    return cells.reshape(values.shape)
