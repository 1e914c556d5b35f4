"""What is dropped is merged: the anchors of RESTORE (Cho et al., ICML 2026, arXiv 2606.01711) with their groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_choice, check_share
from finepruner_lmms.ops.anchors import anchor_mask, group_means
from finepruner_lmms.ops.selection import mask_to_index, take
from finepruner_lmms.pruners.base import DecoderPruner, Reduction, Stage, VisionPruner
from finepruner_lmms.pruners.corrector import Adds, CorrectedBefore, CorrectedInside, share_of
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.registry import register_corrector
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ("few", "kept")


@register_corrector("merge")
@dataclass(frozen=True, kw_only=True)
class Merge(Adds):
    """Merges what the method drops, each token into the one that is nearest in angle, by plain means.

    `merge_into="few"`: a share of the places, `merged`, goes to anchors among the dropped tokens (those of `restore`),
    each the mean of itself and of the others that join it; what the method kept is untouched. `"kept"`: every token
    that the method keeps becomes such a mean, before the language model only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2606.01711"
    code: ClassVar[str] = "https://github.com/cvlab-yonsei/RESTORE"

    merged: float = 0.5
    merge_into: str = "few"

    def __post_init__(self) -> None:
        check_share("merged", self.merged)
        check_choice("merge_into", self.merge_into, TARGETS)
        object.__setattr__(self, "merged", float(self.merged))

    def before(self, method: VisionPruner) -> MergedBefore:
        """The method, and the means."""
        return MergedBefore(method=self.needs_own_tokens(method), corrector=self)

    def inside(self, method: DecoderPruner) -> MergedInside:
        """The method, and at each of its drops the means of what it dropped."""
        if self.merge_into == "kept":
            problem = "into kept tokens works before the language model only: inside it, they keep their states"
            raise self.refuse(method, problem, "leave merge_into out, or sit it on the method before the model")
        return MergedInside(method=self.needs_plain_drops(method), corrector=self)

    def places(self, count: int) -> int:
        """How many of `count` tokens are anchors."""
        return share_of(self.merged, count) if self.merge_into == "few" else 0

    def add(self, tokens: Tensor, candidates: Tensor, count: int) -> Tensor:
        """The anchors."""
        return anchor_mask(tokens, candidates, count)


@dataclass(frozen=True, kw_only=True)
class MergedBefore(CorrectedBefore):
    """Before the language model: a mean stands where its anchor, or its kept token, stood."""

    corrector: Merge

    def reduce(self, vision: VisionOutputs) -> Reduction:
        """What stays in raster order, means among it."""
        retained = self.retained(vision.num_visual_tokens)
        anchors = self.corrector.places(retained)
        keep = own = replace(self.method, budget=retained - anchors).choose(vision)
        targets, count = own, retained
        if self.corrector.merge_into == "few":
            targets, count = self.corrector.add(vision.projected, ~own, anchors), anchors
            keep = own | targets
        if not count:
            return Reduction(take(vision.projected, mask_to_index(keep, retained)), keep)
        means, index = group_means(vision.projected, ~keep, targets, count)
        tokens = vision.projected.scatter(1, index[..., None].expand_as(means), means.to(vision.projected.dtype))
        return Reduction(take(tokens, mask_to_index(keep, retained)), keep, merged=~keep, changed=True)


@dataclass(frozen=True, kw_only=True)
class MergedInside(CorrectedInside):
    """Inside the language model: means of hidden states, which take the positions of their anchors."""

    corrector: Merge

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The method's; of what a drop leaves, a share are means."""
        places = self.corrector.places
        return tuple(
            Stage(stage.layer, stage.retained - places(stage.retained), places(stage.retained))
            for stage in super().stages(num_layers, num_visual_tokens)
        )

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The method's choice, and the means of what it dropped, as many as the stage says."""
        found = self.method.select(context, retained)
        if not context.merged:
            return found
        dropped = context.present & ~found.keep
        anchors = self.corrector.add(context.hidden, dropped, context.merged)
        means, index = group_means(context.hidden, dropped & ~anchors, anchors, context.merged)
        return replace(found, merged=means, merged_from=index, sources=dropped)
