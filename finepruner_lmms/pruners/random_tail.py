"""The information horizon: When Token Pruning is Worse than Random (Wang et al., CVPR 2026, arXiv 2512.07580)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_integer, check_number, check_share
from finepruner_lmms.ops.selection import fingerprint, mix64, top_mask
from finepruner_lmms.pruners.base import DecoderPruner, Stage, TwoStage, VisionPruner
from finepruner_lmms.pruners.budget import exactly, parse_budget, round_half_up
from finepruner_lmms.pruners.corrector import Corrected, CorrectedInside, Corrector
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.registry import register_corrector

if TYPE_CHECKING:
    from torch import Tensor

_FINE = 8  # a method's own budget is solved to so many parts of a token
_TELLING = 64  # so many numbers of a word's embedding tell it from the others


@register_corrector("random_tail")
@dataclass(frozen=True, kw_only=True)
class RandomTail(Corrector):
    """From `tail_depth` of the layers on, only a random share of the tokens that the method left stays: `tail`.

    The method gets what that saves, so that all layers average to the budget. The paper's tails start before layer 20
    of 32 and keep 10 of 96 tokens, or none (`tail=0`). Drawn from `tail_seed` and the question.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2512.07580"
    code: ClassVar[str] = "https://github.com/YahongWang1/Information-Horizon"
    last: ClassVar[bool] = True

    tail: float = 0.1
    tail_depth: float = 0.625
    tail_seed: int = 0

    def __post_init__(self) -> None:
        check_share("tail", self.tail)
        check_number("tail_depth", self.tail_depth, 0)
        if not 0 < self.tail_depth < 1:
            problem = f"got {self.tail_depth!r}; expected a share of the layers between 0 and 1"
            raise FieldError("tail_depth", problem, value=self.tail_depth)
        check_integer("tail_seed", self.tail_seed, 0, 2**31 - 1)
        for name in ("tail", "tail_depth"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def share(self) -> Fraction:
        """`tail`, exactly as it was written."""
        return exactly(self.tail)

    @property
    def depth(self) -> Fraction:
        """`tail_depth`, exactly as it was written."""
        return exactly(self.tail_depth)

    def before(self, method: VisionPruner) -> BeforeTail:
        """The method, and the tail inside."""
        return BeforeTail(method=method, corrector=self)

    def inside(self, method: DecoderPruner) -> InsideTail:
        """The method, and the tail behind it."""
        return InsideTail(method=method, corrector=self)

    def layer(self, num_layers: int) -> int:
        """The layer before which the tail begins."""
        return min(max(math.floor(num_layers * self.depth), 1), num_layers - 1)

    def stage(self, num_layers: int, left: int, rest: Fraction) -> tuple[Stage, ...]:
        """The drop from `left` tokens, where all layers of the tail together may see `rest`; none if that is all."""
        layer = self.layer(num_layers)
        count = min(max(round_half_up(rest / (num_layers - layer)), 0), left)
        return () if count == left else (Stage(layer, count),)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """`retained` at random of the tokens that are left."""
        return Selection(top_mask(drawn(context, self.tail_seed), retained, context.present, context.required))


def drawn(context: DecoderContext, seed: int = 0) -> Tensor:
    """A number for each token that is left, `[B, V]` float64, drawn from the question and `seed`."""
    words = context.text_embeds[..., :_TELLING]
    key = fingerprint(words, context.text_present[..., None].expand_as(words))
    # by their order, not by their columns, so that it does not matter how those who went are kept account of
    order = mix64(context.present.long().cumsum(1))
    numbers = mix64(mix64(key + seed * 0x632BE59BD9B4E019 % 2**63)[:, None] + order)
    return (numbers >> 11).double()


@dataclass(frozen=True, kw_only=True)
class Tail(DecoderPruner):
    """The tail alone, of what a method before the language model left; its budget is that of the whole."""

    name: ClassVar[str] = "random_tail"

    corrector: RandomTail

    def reads_layers(self, layer: int) -> tuple[int, ...]:
        """None: no attention is read."""
        return ()

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """What brings the average of all layers to the budget."""
        if self.budget is None:
            return ()
        total = num_layers * parse_budget(self.budget).tokens(num_visual_tokens)
        rest = total - self.corrector.layer(num_layers) * num_visual_tokens
        # where the depth cannot be cut at that share of it, what is missing stays even without a tail
        if not self.corrector.share and (num_layers * self.corrector.depth).denominator == 1:
            rest = Fraction(0)
        return self.corrector.stage(num_layers, num_visual_tokens, rest)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """At random."""
        return self.corrector.select(context, retained)


@dataclass(frozen=True, kw_only=True)
class BeforeTail(Corrected, TwoStage):
    """A method before the language model, and the tail inside it."""

    method: VisionPruner
    corrector: RandomTail

    @property
    def halves(self) -> tuple[VisionPruner, DecoderPruner]:
        """The method and the tail."""
        return self.method, Tail(corrector=self.corrector)

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """So many tokens before that they and their share behind the horizon average to the budget; at most all."""
        total = self._tokens(num_visual_tokens, least=Fraction(1))
        if total == num_visual_tokens:
            return None, None
        depth, share = self.corrector.depth, self.corrector.share
        first = min(round_half_up(total / (depth + (1 - depth) * share)), num_visual_tokens)
        before = replace(self.method, budget=first) if first < num_visual_tokens else None
        return before, Tail(budget=total, corrector=self.corrector)


@dataclass(frozen=True, kw_only=True)
class InsideTail(CorrectedInside):
    """A method inside the language model with the tail behind it: what it would do from there on is left out."""

    corrector: RandomTail

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The method's at a budget of its own, and the tail."""
        total = parse_budget(self.budget).tokens(num_visual_tokens)
        if total == num_visual_tokens:
            return ()
        return _solve(self.method, self.corrector, total, num_layers, num_visual_tokens)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The method's choice, or at random where the tail begins."""
        begins = context.num_layers is not None and context.layer == self.corrector.layer(context.num_layers)
        return self.corrector.select(context, retained) if begins else self.method.select(context, retained)


@functools.lru_cache(maxsize=256)
def _solve(
    method: DecoderPruner, tail: RandomTail, total: Fraction, num_layers: int, num_visual_tokens: int
) -> tuple[Stage, ...]:
    """The stages of both that average to the budget: the method's own is the largest that leaves the tail its share."""
    begins, goal = tail.layer(num_layers), num_layers * total

    def own(budget: Fraction) -> tuple[Stage, ...]:
        stages = replace(method, budget=budget).stages(num_layers, num_visual_tokens)
        return tuple(stage for stage in stages if stage.layer < begins)

    def seen(stages: tuple[Stage, ...]) -> tuple[int, int]:
        """The tokens that enter all layers before the tail, and those that are left for it."""
        ends, left, sum_of = [*(stage.layer for stage in stages), begins], num_visual_tokens, 0
        sum_of = ends[0] * left
        for stage, end in zip(stages, ends[1:], strict=True):
            left = stage.retained + stage.merged
            sum_of += (end - stage.layer) * left
        return sum_of, left

    if not own(total):
        problem = f"the tail begins before layer {begins}, and {method.name!r} drops nothing before it"
        raise FieldError("tail_depth", problem, value=tail.tail_depth, fix="raise it")
    low, high = math.ceil(total * _FINE), num_visual_tokens * _FINE
    while low < high:
        middle = (low + high + 1) // 2
        before, left = seen(own(Fraction(middle, _FINE)))
        if before + (num_layers - begins) * tail.share * left <= goal:
            low = middle
        else:
            high = middle - 1
    stages = own(Fraction(low, _FINE))
    before, left = seen(stages)
    if not tail.share:
        more = own(Fraction(min(low + 1, num_visual_tokens * _FINE), _FINE))
        nearest = min(stages, more, key=lambda some: abs(seen(some)[0] - goal))
        return (*nearest, Stage(begins, 0))
    return (*stages, *tail.stage(num_layers, left, goal - before))
