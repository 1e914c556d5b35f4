"""A few dropped tokens come back: the anchors of RESTORE (Cho et al., ICML 2026, arXiv 2606.01711), unmerged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_share
from finepruner_lmms.ops.anchors import anchor_mask
from finepruner_lmms.pruners.base import DecoderPruner, VisionPruner
from finepruner_lmms.pruners.corrector import Adds, CorrectedBefore, CorrectedInside, share_of
from finepruner_lmms.pruners.registry import register_corrector

if TYPE_CHECKING:
    from torch import Tensor


@register_corrector("restore")
@dataclass(frozen=True, kw_only=True)
class Restore(Adds):
    """Gives a share of the places, `restored`, to dropped tokens that stand for many others and are unlike each other.

    The method chooses the rest, as it would at that smaller budget. Dropped tokens are told apart by the cosines of
    their projections before the language model, and of their hidden states inside it (see `ops.anchors.anchor_mask`).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2606.01711"
    code: ClassVar[str] = "https://github.com/cvlab-yonsei/RESTORE"

    restored: float = 0.25

    def __post_init__(self) -> None:
        check_share("restored", self.restored)
        object.__setattr__(self, "restored", float(self.restored))

    def before(self, method: VisionPruner) -> CorrectedBefore:
        """The method, and the anchors of what it dropped."""
        return CorrectedBefore(method=self.needs_own_tokens(method), corrector=self)

    def inside(self, method: DecoderPruner) -> CorrectedInside:
        """The method, and at each of its drops the anchors of what it dropped."""
        return CorrectedInside(method=self.needs_plain_drops(method), corrector=self)

    def places(self, count: int) -> int:
        """How many come back of `count` that stay."""
        return share_of(self.restored, count)

    def add(self, tokens: Tensor, candidates: Tensor, count: int) -> Tensor:
        """The anchors."""
        return anchor_mask(tokens, candidates, count)
