"""VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models (Zhang et al., 2505.22654)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_choice, check_integer
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import mask_to_index, take, top_mask, unit_vectors
from finepruner_lmms.pruners.attention_guided import POSITIONS
from finepruner_lmms.pruners.base import DecoderPruner, Reduction, TwoStage, VisionPruner
from finepruner_lmms.pruners.budget import parse_budget, round_half_up
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.one_drop import OneDrop
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

IMPORTANCES = ("cls", "received")
_SHALLOW = Fraction(6, 24)  # the sixth layer of CLIP-L; in towers of another depth as deep in proportion
_WINDOW = 6  # rows and columns of a window


@dataclass(frozen=True, kw_only=True)
class Scans(VisionPruner):
    """Before the model: half of the tokens window by window, by a shallow layer; the others by the layer projected."""

    name: ClassVar[str] = "vscan"

    importance: str = "cls"
    tower_layer: int | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Attention of both layers."""
        return ("cls_attention",) if self.importance == "cls" else ("received_attention",)

    @property
    def early_layer(self) -> int | Fraction:
        """The layer of the local scan."""
        return _SHALLOW if self.tower_layer is None else self.tower_layer

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The tokens of both scans: `[B, N]`."""
        if not vision.grids:
            raise FieldError("method", "vscan needs to know the grids that the visual tokens of several tiles fill")
        retained = self.retained(vision.num_visual_tokens)
        (late,) = self.reads
        early = "early_cls_attention" if self.importance == "cls" else "early_received"
        shallow = vision.need(early, self.name).double().mean(1)
        deep = vision.need(late, self.name).double().mean(1)
        window, count = windows(vision.grids, deep.device)
        local = best_of_each(shallow, window, retained // 2 // count)
        return top_mask(deep, retained, required=local)

    def reduce(self, vision: VisionOutputs) -> Reduction:
        """The kept tokens in raster order, each the mean of itself and of those that are nearest to it in angle."""
        keep = self.choose(vision)
        own = mask_to_index(keep, self.retained(vision.num_visual_tokens))
        features, unit = vision.features.float(), unit_vectors(vision.features)
        nearest = (unit @ take(unit, own).mT).argmax(-1, keepdim=True)
        place = torch.arange(own.shape[1], device=own.device)
        joined = ((nearest == place) & ~keep[..., None]).to(features.dtype)
        merged = (take(features, own) + joined.mT @ features) / (joined.sum(1) + 1)[..., None]
        return Reduction(vision.project(merged.to(vision.features.dtype)), keep, merged=~keep, changed=True)


@dataclass(frozen=True, kw_only=True)
class LastWord(OneDrop):
    """Inside the model: by the attention of the last prompt token, as the layer behind the drop would compute it."""

    name: ClassVar[str] = "vscan"
    usual_depth: ClassVar[Fraction | None] = Fraction(1, 2)

    layer: int | None = None
    positions: str | None = None

    @property
    def renumber_positions(self) -> bool:
        """As the released code, unless told otherwise."""
        return self.positions != "original"

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The best of the mean over the heads."""
        return self.keep_best(context.next_attention.mean(1), context, retained)


@register("vscan")
@dataclass(frozen=True, kw_only=True)
class VScan(TwoStage):
    """Scans the tower globally and locally and merges the rest, then drops half-way through the model (section 4).

    One and a half times the budget enters the model: half of it are the best of each window of 6 × 6 tokens by the CLS
    token's attention in a shallow layer of the tower (`tower_layer`, counted from 1; None: the sixth of CLIP-L's 24, as
    deep elsewhere), the others the best of the layer that is projected; every other token is merged into the one that
    is nearest in angle. Before decoder layer `layer` (None: half of them) all but what the budget leaves are dropped:
    96 and 32 are a budget of 64. `importance="received"` is the attention that tokens receive, for towers without a CLS
    token.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.22654"
    code: ClassVar[str] = "https://github.com/Tencent/SelfEvolvingAgent/tree/main/VScan"

    layer: int | None = None
    tower_layer: int | None = None
    importance: str = "cls"
    positions: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            check_integer("layer", self.layer, 1)
        if self.tower_layer is not None:
            check_integer("tower_layer", self.tower_layer, 1)
        check_choice("importance", self.importance, IMPORTANCES)
        if self.positions is not None:
            check_choice("positions", self.positions, POSITIONS)

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """The two scans, and the drop inside."""
        scans = Scans(importance=self.importance, tower_layer=self.tower_layer)
        return scans, LastWord(layer=self.layer, positions=self.positions)

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """1.5 times the budget, at most every token, and the drop to what is left of the budget."""
        total = parse_budget(self.budget).tokens(num_visual_tokens)
        if total == num_visual_tokens:
            return None, None
        scans, inside = self.halves
        assert scans is not None and inside is not None
        first = round_half_up(total * Fraction(3, 2))
        before = replace(scans, budget=first) if first < num_visual_tokens else None
        return before, replace(inside, budget=total)


def windows(grids: Sequence[tuple[int, int, int]], device: torch.device) -> tuple[Tensor, int]:
    """Which window each place is in, `[N]`, and how many windows there are.

    The places fill `grids` one after the other, frames × rows × columns each; no window reaches from one into another.
    """
    found, count = [], 0
    for frames, rows, columns in grids:
        across, down = -(-columns // _WINDOW), -(-rows // _WINDOW)
        frame, row, column = (torch.arange(size, device=device) for size in (frames, rows, columns))
        window = (frame[:, None, None] * down + row[:, None] // _WINDOW) * across + column // _WINDOW
        found.append(count + window.flatten())
        count += frames * down * across
    return torch.cat(found), count


def best_of_each(scores: Tensor, group: Tensor, count: int) -> Tensor:
    """The `count` best of every group by `scores` `[B, N]`, all of a smaller one: `[B, N]`. `group` `[N]`."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    # a stable sort by group leaves each group in the order of its scores
    order = order.gather(1, group[order].argsort(dim=1, stable=True))
    sorted_group, place = group[order], torch.arange(order.shape[1], device=scores.device)
    first = torch.searchsorted(sorted_group, sorted_group)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, place - first < count)
