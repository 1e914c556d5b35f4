"""The parameters of `finepruner`: which go together, and what each stands for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finepruner_lmms import heads as head_selection
from finepruner_lmms.errors import check_choice, check_integer
from finepruner_lmms.heads import consensus
from finepruner_lmms.heads.profiles import written_profile
from finepruner_lmms.heads.queries import QUERIES
from finepruner_lmms.heads.registry import RESERVED, STRATEGIES
from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.fastv import FastV
from finepruner_lmms.pruners.names_heads import NamesHeads, joined_numbers
from finepruner_lmms.pruners.pdrop import PDrop
from finepruner_lmms.pruners.sparsevlm import SparseVLM

GUIDED: dict[str, type[AttentionGuided]] = {"fastv": FastV, "pdrop": PDrop, "sparsevlm": SparseVLM}
CONSENSUS, FIXED, PROFILE, RECOMMENDED = RESERVED
PER_HEAD = {"rows": "renormalised", "aggregate": "max"}
"""What `recommended` stands for, with all heads: see docs/head_study.md."""


@dataclass(frozen=True, kw_only=True)
class FinePrunerParameters(NamesHeads, AttentionGuided):
    """What `FinePruner` describes."""

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
    score_layers: int | str | None = None

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
        if self.score_layers is not None:
            self._check_score_layers()
        if self.head_strategy == CONSENSUS:
            self._check_consensus()
        elif self.preset is not None:
            raise self._unread("preset", "only head_strategy='consensus' reads it")
        QUERIES.check(self.query)
        if self.query != "last" and self.guide == "sparsevlm":
            raise self._unread("query", "guide='sparsevlm' asks by its raters")
        check_choice("normalise", self.normalise, head_selection.NORMALISATIONS)
        self.guided  # noqa: B018 - its parameters are checked here, too

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
        if self.aggregate == "quota":
            raise self._unread("aggregate", "a profile weighs what the heads say, which a turn does not have")
        if self.normalise != "resoftmax":
            raise self._unread("normalise", "head_strategy='profile' ranks nothing")
        self._write("profile", written_profile("profile", self.profile))

    def _check_recommended(self) -> None:
        usual = {"heads": None, "normalise": "resoftmax", "rows": "raw", "aggregate": "mean"}
        for name, default in usual.items():
            if getattr(self, name) != default:
                raise self._unread(name, "head_strategy='recommended' decides it")

    def _check_score_layers(self) -> None:
        if self.guide != "fastv":
            raise self._unread("score_layers", f"guide={self.guide!r} has depths of its own")
        if self.query != "last":
            raise self._unread("score_layers", "words other than the last are read in the layer before the drop")
        if len(self.named_layers) > 1 and self.head_strategy in (FIXED, CONSENSUS):
            raise self._unread("score_layers", f"head_strategy={self.head_strategy!r} is about the heads of one layer")
        self._write("score_layers", "+".join(map(str, self.named_layers)))

    @cached_property
    def named_heads(self) -> tuple[int, ...]:
        """The heads of `fixed_heads`, ascending."""
        return joined_numbers("fixed_heads", self.fixed_heads, "heads")

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
