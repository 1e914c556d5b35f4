"""FinePruner: only the heads that look at the image guide the pruning (after the LLaVA-FinePruner-Head code base)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms import heads as head_selection
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads import consensus
from finepruner_lmms.heads.profile import weighted_heads
from finepruner_lmms.heads.queries import Words, query_weights
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.token_scores import head_rows, token_scores
from finepruner_lmms.pruners.base import Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection, guiding_rows, through_the_model
from finepruner_lmms.pruners.finepruner_parameters import (
    CONSENSUS,
    FIXED,
    GUIDED,
    PROFILE,
    RECOMMENDED,
    FinePrunerParameters,
)
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CONSENSUS", "FIXED", "GUIDED", "PROFILE", "RECOMMENDED", "FinePruner"]


@register("finepruner", "fastv+finepruner")
@dataclass(frozen=True, kw_only=True)
class FinePruner(FinePrunerParameters):
    """Another method, `guide`, scored by the `heads` best heads of each sample, ranked by `head_strategy`.

    All heads still take part in the layer's own attention; with all of them as guides this is `guide` exactly. That
    is FastV with its `layer`, unless `guide` says `pdrop` or `sparsevlm`. `heads=None` is 16, or half of the heads
    of a model with fewer than 32.

    `query` says whose attention the rows are: the last prompt token's, or other words' (`heads.queries`).
    `head_strategy="consensus"` chooses heads and their weights by `heads.consensus` with `preset` (None is
    `doc`); the number of heads follows from the attention. `heads` has no effect, but in the preset `calibrated`: there
    it is the number that the attention's complexity adjusts. `head_strategy="fixed"` always takes the heads named in
    `fixed_heads`, one number or several joined by `+`, counted from 0. `head_strategy="profile"` weighs the heads of
    all layers before the drop by `profile`, a published list (`heads.published`) or a JSON file: its `heads` heaviest
    heads there or (None) all that it names; `shuffle`, a seed, gives the weights to other heads of each layer, as a
    control. `head_strategy="recommended"` is what our head study supports (docs/head_study.md): all heads, with
    per-head normalisation and the maximum.

    `score_layers` are the decoder layers whose heads are listened to, one number or several joined by `+`, counted from
    0. None is the layer before the drop, and for a profile all that it names before the drop. Heads of several layers
    are ranked and combined as if they were those of one; what is told of them numbers all heads of the model through:
    layer · H + head.
    """

    code: ClassVar[str] = "https://github.com/EasonAI-5589/LLaVA-FinePruner-Head"

    @property
    def published_positions(self) -> str:
        """As the guided method."""
        return self.guided.published_positions

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """As the guided method."""
        found = self.guided.stages(num_layers, num_visual_tokens)
        for stage in found:
            if self.score_layers is not None and self.named_layers[-1] >= stage.layer:
                there = f"before a drop at layer {stage.layer} there are 0 to {stage.layer - 1}"
                raise FieldError("score_layers", f"got {self.score_layers!r}; {there}", value=self.score_layers)
            if self.head_strategy == PROFILE:
                self.head_profile.check_layers("profile", num_layers, self._candidates(stage.layer))
        return found

    def reads_layers(self, layer: int) -> tuple[int, ...]:
        """`score_layers`; without, the layer before, or all that a profile names before the drop."""
        found = self._candidates(layer)
        return tuple(one for one in found if one in self.head_profile.named_layers) if self.profile else found

    def _candidates(self, layer: int) -> tuple[int, ...]:
        if self.score_layers is not None:
            return self.named_layers
        # the other guides and queries read the layer before the drop alone
        several = self.head_strategy == PROFILE and self.guide == "fastv" and self.query == "last"
        return tuple(range(layer)) if several else (layer - 1,)

    def check_heads(self, num_heads: int) -> None:
        """`heads` may be at most the query heads of the layers that are listened to."""
        layers = 1 if self.score_layers is None else len(self.named_layers)
        layers = len(self.head_profile.named_layers) if self.head_strategy == PROFILE else layers
        if self.heads is not None and self.heads > num_heads * layers:
            whose = "the layers of this model have" if layers == 1 else f"{layers} layers of this model have"
            problem = f"got {self.heads}; {whose} {num_heads * layers} query heads"
            raise FieldError("heads", problem, value=self.heads)
        if self.head_strategy == FIXED and self.named_heads[-1] >= num_heads:
            problem = f"got {self.fixed_heads!r}; the heads of this model are 0 to {num_heads - 1}"
            raise FieldError("fixed_heads", problem, value=self.fixed_heads)
        if self.head_strategy == PROFILE:
            self.head_profile.check_heads("profile", num_heads)

    def head_attention(self, context: DecoderContext) -> Tensor:
        """The rows of all heads, of `reads_layers` one after the other: the last token's, or those of `query`."""
        if self.query == "last":
            layers = self.reads_layers(context.layer)
            if self.guide == "fastv" and layers != (context.layer - 1,):
                return torch.cat([context.attention_in(layer) for layer in layers], dim=1)
            return self.guided.head_attention(context)
        if not context.text_present.shape[1]:
            return context.attention  # no text after the image: its last token is the last of the prompt
        words = Words(context.text_present, context.prefix_lengths, context.text_mass)
        return words.or_last(context.weighted_text(query_weights(self.query, words)), context.attention)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Rank the heads, then choose as the guided method does, by the combined row of the best."""
        attention = self.head_attention(context)
        if self.head_strategy == CONSENSUS:
            return self._by_consensus(attention, context, retained)
        if self.head_strategy == PROFILE:
            return self._by_profile(attention, context, retained)
        chosen, scores = self._rank(attention)
        # ascending, so that choosing every head adds them up in the same order as without a choice
        index = chosen.sort(dim=1).values[..., None].expand(-1, -1, attention.shape[2])
        tokens = token_scores(attention.gather(1, index), **self.combination)
        selection = self.guided.choose(tokens, context, retained)
        return self._told(selection, context, attention, chosen, scores)

    def _told(
        self, selection: Selection, context: DecoderContext, attention: Tensor, chosen: Tensor, scores: Tensor
    ) -> Selection:
        """The choice with its heads; those of several layers are numbered through the model."""
        guides, layers = guiding_rows(attention, chosen), self.reads_layers(context.layer)
        if len(layers) > 1:
            chosen, scores = through_the_model(chosen, scores, layers, context.layer)
        return replace(selection, heads=chosen, head_scores=scores, guides=guides)

    def _rank(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """The heads that guide, best first, and the scores of all."""
        if self.head_strategy == FIXED:
            # filled in on the device: copying a list there would wait for it
            named = [torch.full((1,), head, device=attention.device) for head in self.named_heads]
            chosen = torch.cat(named).expand(len(attention), -1)
            return chosen, torch.zeros_like(attention[..., 0]).scatter(1, chosen, 1.0)
        if self.head_strategy == RECOMMENDED:
            every = torch.arange(attention.shape[1], device=attention.device).expand(len(attention), -1)
            return every, torch.ones_like(attention[..., 0])
        count = self._heads_of(attention)
        scores = head_selection.head_scores(attention, self.head_strategy, count, self.normalise)
        return head_selection.best_heads(scores, count), scores

    def _heads_of(self, attention: Tensor) -> int:
        """`heads`, or its default for a layer of so many."""
        return min(16, max(1, attention.shape[1] // 2)) if self.heads is None else self.heads

    def _by_profile(self, attention: Tensor, context: DecoderContext, retained: int) -> Selection:
        layers = self.reads_layers(context.layer)
        chosen, weights = weighted_heads(self.head_profile.in_rows(layers, self.heads), attention)
        rows = head_rows(attention, self.rows).gather(1, chosen[..., None].expand(-1, -1, attention.shape[2]))
        tokens = (rows * weights[..., None]).amax(1) if self.aggregate == "max" else consensus.fuse(rows, weights)
        selection = self.guided.choose(tokens, context, retained)
        scores = torch.zeros_like(attention[..., 0], dtype=torch.float64).scatter(1, chosen, weights)
        return self._told(selection, context, attention, chosen, scores)

    def _by_consensus(self, attention: Tensor, context: DecoderContext, retained: int) -> Selection:
        found = consensus.select_batch(attention, self.preset or "doc", self._heads_of(attention))
        tokens = consensus.fuse(head_rows(attention, self.rows), found.weights)
        place = torch.arange(found.order.shape[1], device=found.order.device)
        chosen = found.order.masked_fill(place >= found.count[:, None], -1)
        selection = self.guided.choose(tokens, context, retained)
        guides = guiding_rows(attention, chosen)
        return replace(selection, heads=chosen, head_scores=found.weights, details=found, guides=guides)
