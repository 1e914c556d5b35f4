"""FinePruner: only the heads that look at the image guide the pruning (after the LLaVA-FinePruner-Head code base)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms import heads as head_selection
from finepruner_lmms.errors import FieldError, check_choice, check_integer
from finepruner_lmms.heads import consensus
from finepruner_lmms.heads.profile import HeadProfile, weighted_heads
from finepruner_lmms.heads.profiles import find_profile, written_profile
from finepruner_lmms.heads.queries import QUERIES, Words, query_weights
from finepruner_lmms.heads.registry import RESERVED, STRATEGIES
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.token_scores import head_rows, token_scores
from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.base import Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection, guiding_rows
from finepruner_lmms.pruners.fastv import FastV
from finepruner_lmms.pruners.pdrop import PDrop
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.sparsevlm import SparseVLM

if TYPE_CHECKING:
    from torch import Tensor

GUIDED: dict[str, type[AttentionGuided]] = {"fastv": FastV, "pdrop": PDrop, "sparsevlm": SparseVLM}
CONSENSUS, FIXED, PROFILE, RECOMMENDED = RESERVED
PER_HEAD = {"rows": "renormalised", "aggregate": "max"}
"""What `recommended` stands for, with all heads: see docs/head_study.md."""


@register("finepruner", "fastv+finepruner")
@dataclass(frozen=True, kw_only=True)
class FinePruner(AttentionGuided):
    """Another method, `guide`, scored by the `heads` best heads of each sample, ranked by `head_strategy`.

    All heads still take part in the layer's own attention; with all of them as guides this is `guide` exactly. That
    is FastV with its `layer`, unless `guide` says `pdrop` or `sparsevlm`. `heads=None` is 16, or half of the heads
    of a model with fewer than 32.

    `query` says whose attention the rows are: the last prompt token's, or other words' (`heads.queries`).
    `head_strategy="consensus"` chooses heads and their weights by `heads.consensus` with `preset` (None is
    `doc`); the number of heads follows from the attention. `heads` has no effect, but in the preset `calibrated`: there
    it is the number that the attention's complexity adjusts. `head_strategy="fixed"` always takes the heads named in
    `fixed_heads`, one number or several joined by `+`, counted from 0. `head_strategy="profile"` adds up the heads of
    the layer by the weights of `profile`, a published list (`heads.published`) or a JSON file, of its `heads` heaviest
    heads there or (None) of all that it names; `shuffle`, a seed, gives the weights to other heads of the layer, as a
    control. `head_strategy="recommended"` is what our head study supports (docs/head_study.md): all heads, with
    per-head normalisation and the maximum.
    """

    code: ClassVar[str] = "https://github.com/EasonAI-5589/LLaVA-FinePruner-Head"

    guide: str = "fastv"
    layer: int = 2
    heads: int | None = None
    head_strategy: str = "sum"
    query: str = "last"
    normalise: str = "resoftmax"
    preset: str | None = None
    fixed_heads: int | str | None = None
    profile: str | None = None
    shuffle: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("guide", self.guide, tuple(GUIDED))
        if self.layer != 2 and self.guide != "fastv":
            raise self._unread("layer", f"guide={self.guide!r} has depths of its own")
        if self.heads is not None:
            check_integer("heads", self.heads, 1)
        STRATEGIES.check(self.head_strategy)
        self._check_fixed()
        self._check_profile()
        if self.head_strategy == RECOMMENDED:
            self._check_recommended()
        if self.head_strategy == CONSENSUS:
            self._check_consensus()
        elif self.preset is not None:
            raise self._unread("preset", "only head_strategy='consensus' reads it")
        QUERIES.check(self.query)
        if self.query != "last" and self.guide == "sparsevlm":
            raise self._unread("query", "guide='sparsevlm' asks by its raters")
        check_choice("normalise", self.normalise, head_selection.NORMALISATIONS)
        self.guided  # noqa: B018 - its parameters are checked here, too

    def _unread(self, name: str, why: str) -> FieldError:
        """The error of a parameter that was given although the others leave nothing for it to say."""
        value = getattr(self, name)
        return FieldError(name, f"got {value!r}; {why}, so leave it out", value=value)

    def _check_fixed(self) -> None:
        if self.head_strategy != FIXED:
            if self.fixed_heads is not None:
                raise self._unread("fixed_heads", "only head_strategy='fixed' reads it")
            return
        if self.heads is not None:
            raise self._unread("heads", "head_strategy='fixed' names its heads")
        if self.normalise != "resoftmax":
            raise self._unread("normalise", "head_strategy='fixed' ranks nothing")
        self._write("fixed_heads", "+".join(map(str, self.named_heads)))

    def _check_profile(self) -> None:
        if self.head_strategy != PROFILE:
            for name in ("profile", "shuffle"):
                if getattr(self, name) is not None:
                    raise self._unread(name, "only head_strategy='profile' reads it")
            return
        if self.shuffle is not None:
            check_integer("shuffle", self.shuffle, 0)
        if self.aggregate != "mean":
            raise self._unread("aggregate", "a profile adds the heads up by its weights")
        if self.normalise != "resoftmax":
            raise self._unread("normalise", "head_strategy='profile' ranks nothing")
        self._write("profile", written_profile("profile", self.profile))

    def _check_recommended(self) -> None:
        usual = {"heads": None, "normalise": "resoftmax", "rows": "raw", "aggregate": "mean"}
        for name, default in usual.items():
            if getattr(self, name) != default:
                raise self._unread(name, "head_strategy='recommended' decides it")

    @cached_property
    def head_profile(self) -> HeadProfile:
        """The profile, its weights on other heads where `shuffle` says so."""
        found = find_profile("profile", self.profile)
        return found if self.shuffle is None else found.shuffled(self.shuffle)

    @cached_property
    def named_heads(self) -> tuple[int, ...]:
        """The heads of `fixed_heads`, ascending."""
        texts = str(self.fixed_heads).split("+")
        if not all(text.strip().isdecimal() for text in texts) or len(set(map(int, texts))) < len(texts):
            problem = f"got {self.fixed_heads!r}; expected different heads, counted from 0, such as 3 or '3+5'"
            raise FieldError("fixed_heads", problem, value=self.fixed_heads)
        return tuple(sorted(map(int, texts)))

    def _check_consensus(self) -> None:
        if self.preset is not None:
            check_choice("preset", self.preset, tuple(consensus.PRESETS))
        if self.aggregate != "mean":
            raise self._unread("aggregate", "consensus fuses the heads by weights")
        if self.normalise != "resoftmax":
            raise self._unread("normalise", "the presets have their own")
        if self.heads is not None and self.preset != "calibrated":
            warnings.warn(
                f"heads={self.heads} has no effect with preset={self.preset or 'doc'!r}: the number of heads follows "
                "from the attention of each sample; only preset='calibrated' takes it as a reference",
                stacklevel=2,
            )

    @property
    def combination(self) -> dict[str, str]:
        """How the rows of the heads become one score: `rows` and `aggregate`."""
        return PER_HEAD if self.head_strategy == RECOMMENDED else {"rows": self.rows, "aggregate": self.aggregate}

    @cached_property
    def guided(self) -> AttentionGuided:
        """The method whose rows the heads provide."""
        common: dict[str, Any] = {"budget": self.budget, "positions": self.positions, **self.combination}
        if self.guide == "fastv":
            common["layer"] = self.layer
        return GUIDED[self.guide](**common)

    @property
    def published_positions(self) -> str:
        """As the guided method."""
        return self.guided.published_positions

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """As the guided method."""
        found = self.guided.stages(num_layers, num_visual_tokens)
        if self.head_strategy == PROFILE:
            for stage in found:
                self.head_profile.check_layers("profile", num_layers, stage.layer - 1)
        return found

    def check_heads(self, num_heads: int) -> None:
        """`heads` may be at most the query heads of the model."""
        if self.heads is not None and self.heads > num_heads:
            problem = f"got {self.heads}; the layers of this model have {num_heads} query heads"
            raise FieldError("heads", problem, value=self.heads)
        if self.head_strategy == FIXED and self.named_heads[-1] >= num_heads:
            problem = f"got {self.fixed_heads!r}; the heads of this model are 0 to {num_heads - 1}"
            raise FieldError("fixed_heads", problem, value=self.fixed_heads)
        if self.head_strategy == PROFILE:
            self.head_profile.check_heads("profile", num_heads)

    def head_attention(self, context: DecoderContext) -> Tensor:
        """The rows of all heads: the guided method's, or those that `query` asks by, in the same layer."""
        if self.query == "last":
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
        return replace(selection, heads=chosen, head_scores=scores, guides=guiding_rows(attention, chosen))

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
        chosen, weights = weighted_heads(self.head_profile.of_layer(context.layer - 1, self.heads), attention)
        rows = head_rows(attention, self.rows).gather(1, chosen[..., None].expand(-1, -1, attention.shape[2]))
        selection = self.guided.choose(consensus.fuse(rows, weights), context, retained)
        scores = torch.zeros_like(attention[..., 0], dtype=torch.float64).scatter(1, chosen, weights)
        return replace(selection, heads=chosen, head_scores=scores, guides=guiding_rows(attention, chosen))

    def _by_consensus(self, attention: Tensor, context: DecoderContext, retained: int) -> Selection:
        found = consensus.select_batch(attention, self.preset or "doc", self._heads_of(attention))
        tokens = consensus.fuse(head_rows(attention, self.rows), found.weights)
        place = torch.arange(found.order.shape[1], device=found.order.device)
        chosen = found.order.masked_fill(place >= found.count[:, None], -1)
        selection = self.guided.choose(tokens, context, retained)
        guides = guiding_rows(attention, chosen)
        return replace(selection, heads=chosen, head_scores=found.weights, details=found, guides=guides)
