"""Implicit visual coordinates: IVC-Prune (Sun et al., ICLR 2026, 2602.03060), what it keeps by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_share
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners.base import DecoderPruner, VisionPruner
from finepruner_lmms.pruners.corrector import CorrectedInside, Corrector, share_of
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.registry import register_corrector

if TYPE_CHECKING:
    from torch import Tensor


@register_corrector("coordinates")
@dataclass(frozen=True, kw_only=True)
class Coordinates(Corrector):
    """Gives a share of the places to tokens at positions that rotary embeddings hardly rotate, or by 90 degrees.

    `coordinates` is the share. Half of them have the largest mean cosine of their rotation's angles, the others the
    largest mean sine among the rest; the method chooses among all other tokens. It has to keep positions, so it works
    inside the language model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2602.03060"
    code: ClassVar[str] = "https://github.com/FireRedTeam/IVC-Prune"

    coordinates: float = 0.2

    def __post_init__(self) -> None:
        check_share("coordinates", self.coordinates)
        object.__setattr__(self, "coordinates", float(self.coordinates))

    def before(self, method: VisionPruner) -> DecoderPruner:
        """Refused: what is left before the model is numbered anew."""
        raise self.refuse(
            method,
            f"keeps tokens for the positions that they have, and after {method.name!r} all are numbered anew",
            f"sit it on a method inside the language model, such as '{method.name}+fastv+{self.name}'",
        )

    def inside(self, method: DecoderPruner) -> WithCoordinates:
        """The method, with the coordinates at each of its drops."""
        if method.renumber_positions:
            problem = f"keeps tokens for the positions that they have, and {method.name!r} numbers them anew"
            raise self.refuse(
                method, problem, "use a method that keeps positions, or positions='original' if it reads that"
            )
        return WithCoordinates(method=self.needs_plain_drops(method), corrector=self)

    def places(self, count: int) -> int:
        """How many of `count` tokens that stay are coordinates."""
        return share_of(self.coordinates, count)


@dataclass(frozen=True, kw_only=True)
class WithCoordinates(CorrectedInside):
    """A method that chooses beside the coordinates."""

    corrector: Coordinates

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The coordinates first, then the method among the others."""
        count = self.corrector.places(retained)
        if not count:
            return self.method.select(context, retained)
        free = context.present if context.required is None else context.present & ~context.required
        chosen = coordinate_mask(context.rotation, free, count)
        found = self.method.select(context.without(chosen, count), retained - count)
        return Selection(
            found.keep | chosen,
            found.scores,
            found.heads,
            found.head_scores,
            guides=found.guides,
            details=found.details,
        )


def coordinate_mask(rotation: Tensor, candidates: Tensor, count: int) -> Tensor:
    """`count` of the `candidates` `[B, V]`: half by the first row of `rotation` `[B, 2, V]`, then by the second."""
    real = top_mask(rotation[:, 0], count - count // 2, candidates)
    return real | top_mask(rotation[:, 1], count // 2, candidates & ~real)
