"""What `visualheads` does inside the language model: listens to heads, and chooses tokens by what was heard."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_choice, check_integer, check_number, check_share
from finepruner_lmms.heads import relevance
from finepruner_lmms.heads.profile import weighted_heads
from finepruner_lmms.heads.profiles import written_profile
from finepruner_lmms.heads.registry import best_heads
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.facility import cover
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.ops.token_scores import AGGREGATES, ROWS
from finepruner_lmms.pruners.base import Pruner, Stage
from finepruner_lmms.pruners.budget import exactly, round_half_up
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection, guiding_rows, through_the_model
from finepruner_lmms.pruners.names_heads import NamesHeads
from finepruner_lmms.pruners.one_drop import OneDrop
from finepruner_lmms.pruners.random_tail import drawn
from finepruner_lmms.pruners.tops import preserving
from finepruner_lmms.pruners.two_drops import two_drops

if TYPE_CHECKING:
    from torch import Tensor

MEASURES = ("attention", "output")
CHOICES = ("cover", "sum", "best", "random")
SIMILARITIES = ("centred", "plain")
_HEARD = ("heads", "profile", "score_layers", "rows", "aggregate", "contrast", "measure", "sinks", "similarity")
_TAIL_DEPTH = 0.625
_TIE = 1e-6  # where nothing is left to be gained, the more relevant come first, not those at the top of the image
_DIVERSITY, _COVERAGE = 0.5, 1.0  # of choice="sum": TOPS inside the model


@dataclass(frozen=True, kw_only=True)
class Listening(NamesHeads, Pruner):
    """How `VisualHeads` listens to heads and chooses by them, and what it leaves to deep layers; see there."""

    heads: int | None = None
    head_strategy: str | None = None
    profile: str | None = None
    shuffle: int | None = None
    score_layers: int | str | None = None
    rows: str = "renormalised"
    aggregate: str = "mean"
    contrast: str = "none"
    measure: str = "attention"
    sinks: str = "leave"
    choice: str = "cover"
    similarity: str = "centred"
    targets: float = 1.0
    candidates: float = 1.0
    tail: float = 0.25
    tail_depth: float = _TAIL_DEPTH

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tail", "tail_depth"):
            check_share(name, getattr(self, name))
            self._write(name, float(getattr(self, name)))
            if not getattr(self, name):
                raise FieldError(name, "got 0; expected a share above 0", value=0)
        if self.tail == 1 and self.tail_depth != _TAIL_DEPTH:
            raise self._unread("tail_depth", "with tail=1 nothing is dropped there")
        if self.heads is not None:
            check_integer("heads", self.heads, 1)
        if self.head_strategy is not None:
            check_choice("head_strategy", self.head_strategy, relevance.MERITS)
        check_choice("rows", self.rows, ROWS)
        check_choice("aggregate", self.aggregate, AGGREGATES)
        check_choice("contrast", self.contrast, relevance.CONTRASTS)
        check_choice("measure", self.measure, MEASURES)
        check_choice("sinks", self.sinks, relevance.SINKS)
        check_choice("choice", self.choice, CHOICES)
        check_choice("similarity", self.similarity, SIMILARITIES)
        for name in ("targets", "candidates"):
            check_number(name, getattr(self, name), 0)
            self._write(name, float(getattr(self, name)))
            if self.choice != "cover" and getattr(self, name) != 1:
                raise self._unread(name, "only choice='cover' reads it")
        for field in fields(Listening):
            if self.choice == "random" and field.name in _HEARD and getattr(self, field.name) != field.default:
                raise self._unread(field.name, "choice='random' listens to no head")
        if self.head_strategy is not None and self.heads is None:
            raise self._unread("head_strategy", "without heads, all are listened to")
        if self.shuffle is not None:
            check_integer("shuffle", self.shuffle, 0)
        if self.profile is not None:
            self._write("profile", written_profile("profile", self.profile))
        elif self.shuffle is not None:
            raise self._unread("shuffle", "only the weights of a profile are shuffled")

        if self.score_layers is not None:
            if self._only_before:
                why = "what contrast and measure='output' read is there of the layer before the drop alone"
                raise self._unread("score_layers", why)
            self._write("score_layers", "+".join(map(str, self.named_layers)))

    @property
    def by(self) -> str | None:
        """How the heads of a sample are ranked; None: not at all, or by the weights of the profile."""
        if self.heads is None:
            return None
        return self.head_strategy or (None if self.profile is not None else "contrast")

    @property
    def reads_prior(self) -> bool:
        """Whether the row of the first word after the image is read."""
        return self.contrast != "none" or self.by == "contrast"

    @property
    def _only_before(self) -> bool:
        return self.reads_prior or self.measure == "output"

    def candidate_layers(self, drop: int) -> tuple[int, ...]:
        """The layers that are listened to at a drop before layer `drop`, if the profile names heads of them."""
        if self.score_layers is not None:
            return self.named_layers
        return tuple(range(drop)) if self.profile is not None and not self._only_before else (drop - 1,)

    def check_heads(self, num_heads: int) -> None:
        """`heads` are at most those of the layers that are listened to; a profile is of layers with as many."""
        layers = 1 if self.score_layers is None else len(self.named_layers)
        if self.profile is None and self.heads is not None and self.heads > num_heads * layers:
            whose = "the layers of this model have" if layers == 1 else f"{layers} layers of this model have"
            problem = f"got {self.heads}; {whose} {num_heads * layers} query heads"
            raise FieldError("heads", problem, value=self.heads)
        if self.profile is not None:
            self.head_profile.check_heads("profile", num_heads)


@dataclass(frozen=True, kw_only=True)
class VisualHeadsInside(Listening, OneDrop):
    """What `VisualHeads` does inside the language model; its budget is that of the whole."""

    name: ClassVar[str] = "visualheads"
    usual_depth: ClassVar[Fraction | None] = Fraction(3, 8)

    layer: int | None = None

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The drops, of what entered, that bring the average of all layers nearest to the budget."""
        found = self._drops(num_layers, num_visual_tokens)
        for stage in found:
            if self.score_layers is not None and self.named_layers[-1] >= stage.layer:
                there = f"before a drop at layer {stage.layer} there are 0 to {stage.layer - 1}"
                raise FieldError("score_layers", f"got {self.score_layers!r}; {there}", value=self.score_layers)
            if self.profile is not None:
                self.head_profile.check_layers("profile", num_layers, self.candidate_layers(stage.layer))
        return found

    def _drops(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        if self.tail == 1:
            return OneDrop.stages(self, num_layers, num_visual_tokens)
        first, last = self.drop_layer(num_layers), round_half_up(num_layers * exactly(self.tail_depth))
        if not first < last < num_layers:
            there = f"layers {first + 1} to {num_layers - 1} are behind the drop before layer {first}"
            problem = f"got {self.tail_depth}, layer {last}; {there}"
            raise FieldError("tail_depth", problem, value=self.tail_depth, fix="with tail=1 there is one drop")
        least = Fraction(first * num_visual_tokens + num_layers - first, num_layers)
        budget = self._tokens(num_visual_tokens, least=least)
        reach = num_layers - last  # as far, every remainder comes up
        return two_drops((first, last, num_layers), num_visual_tokens, Fraction(budget), exactly(self.tail), reach)

    def reads_layers(self, layer: int) -> tuple[int, ...]:
        """`score_layers`; without, the layer before the drop, or with a profile all that it names before it."""
        found = self.candidate_layers(layer)
        return found if self.profile is None else tuple(one for one in found if one in self.head_profile.named_layers)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Listen, then choose by what was heard."""
        rows, prior, sinks = self._rows(context), self._prior(context), None
        if self.sinks != "leave":
            sinks = relevance.sink_tokens(context.hidden, context.present)
            rows = rows.masked_fill(sinks[:, None], 0)
            prior = None if prior is None else prior.masked_fill(sinks[:, None], 0)
        layers = self.reads_layers(context.layer)
        chosen, weights, merits = self._heads(layers, rows, prior)
        heard = relevance.contrasted(_of(chosen, rows), None if prior is None else _of(chosen, prior), self.contrast)
        heard = relevance.over_image(heard) if self.rows == "renormalised" else heard
        matters = relevance.fused(heard, weights, self.aggregate)
        order = self._order(matters, context, retained)
        if sinks is not None and self.sinks == "keep":
            seen = context.attention.double().sum(1)
            kept = top_mask(seen, min(relevance.MOST_SINKS, retained), sinks)
            order = torch.where(kept, order.amax(1, keepdim=True) + 1, order)
        keep = top_mask(order, retained, context.present, context.required)
        guides = guiding_rows(rows.float(), chosen)
        if len(layers) > 1:
            chosen, merits = through_the_model(chosen, merits, layers, context.layer)
        return Selection(keep, matters, heads=chosen, head_scores=merits, guides=guides)

    def _rows(self, context: DecoderContext) -> Tensor:
        """What each head says of each token, one layer after the other: `[B, H, V]` float64."""
        if self.measure == "attention":
            layers = self.reads_layers(context.layer)
            return torch.cat([context.attention_in(layer) for layer in layers], dim=1).double()
        return relevance.lost_without(context.attention, context.values, context.text_output[:, :, -1])

    def _prior(self, context: DecoderContext) -> Tensor | None:
        """The same of the first word after the image, 0 in rows without one; None where it is not read, or no text."""
        present = context.text_present if self.reads_prior else None
        if present is None or not present.shape[1]:
            return None
        first = (present & (present.long().cumsum(1) == 1)).to(context.attention.dtype)
        prior = context.weighted_text(first).double()
        if self.measure == "attention":
            return prior
        output = torch.einsum("bhtd,bt->bhd", context.text_output.double(), first.double())
        return relevance.lost_without(prior, context.values, output)

    def _heads(self, layers: tuple[int, ...], rows: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The n heads of `layers` that are listened to and the weight of each, `[B, n]`, and the merits of all."""
        if self.profile is None:
            pool = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
            weights = torch.ones_like(rows[..., 0]) / rows.shape[1]
        else:
            named = self.head_profile.in_rows(layers, self.heads if self.by is None else None)
            pool, weights = weighted_heads(named, rows)
        if self.by is None or self.heads is None:
            return pool, weights, torch.zeros_like(rows[..., 0]).scatter(1, pool, weights)
        merits = relevance.merit(rows, prior, self.by)
        best = best_heads(merits.gather(1, pool), min(self.heads, pool.shape[1]))
        return pool.gather(1, best), weights.gather(1, best), merits

    def _order(self, matters: Tensor, context: DecoderContext, retained: int) -> Tensor:
        """Which tokens to keep first: larger is better, `[B, V]`. `matters` are their relevances, `[B, V]`."""
        if self.choice == "best":
            return matters
        if self.choice == "random":
            return drawn(context)
        present, count = context.present, max(retained, 1)
        matters = (matters / matters.amax(1, keepdim=True).clamp_min(1e-30)).masked_fill(~present, 0)
        alike = relevance.likeness(context.hidden, present, self.similarity)
        if self.choice == "sum":
            first = matters.masked_fill(~present, -1).argmax(1, keepdim=True)
            score = preserving(matters, _DIVERSITY, _COVERAGE)
            picks = cover(alike, count, targets=present, present=present, first=first, score=score)
        else:
            worth = matters.pow(self.candidates).to(alike.dtype)
            targets = matters.pow(self.targets) * present

            def score(gains: Tensor, covered: Tensor, left: Tensor) -> Tensor:
                return gains + _TIE * matters

            picks = cover(alike * worth[..., None], count, targets=targets, present=present, score=score)
        turn = torch.arange(count, 0, -1, dtype=matters.dtype, device=picks.device).expand_as(picks)
        return torch.zeros_like(matters).scatter_reduce_(1, picks, turn, "amax")


def _of(heads: Tensor, rows: Tensor) -> Tensor:
    """The rows `[B, n, V]` of `heads` `[B, n]` in `rows` `[B, H, V]`."""
    return rows.gather(1, heads[..., None].expand(-1, -1, rows.shape[2]))
