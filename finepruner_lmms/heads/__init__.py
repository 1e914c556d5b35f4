"""Which attention heads guide the pruning: head strategies, and the selection of the best-scored heads.

The strategies are those of the ablation registry of the LLaVA-FinePruner-Head code base. It takes a softmax of the
attention, which is a softmax already: `normalise="resoftmax"`. The result is nearly uniform, and several strategies
rank heads by differences below half precision, some below float32: see `HeadView` for how ours keep them.
`normalise="renormalise"` divides by the head's attention to the image instead. The names `consensus_…` are what
consensus-diversity selection means by a strategy of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finepruner_lmms.errors import FieldError, check_choice, check_integer
from finepruner_lmms.heads import ablation, consensus_registry
from finepruner_lmms.heads.registry import best_heads, head_scores, known_strategies, register_head_strategy
from finepruner_lmms.heads.view import HeadView
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.precision import for_choosing

if TYPE_CHECKING:
    from torch import Tensor

NORMALISATIONS = ("resoftmax", "renormalise")
HEAD_STRATEGIES: tuple[str, ...]
"""The sorted names of all strategies, those registered since included."""


def __getattr__(name: str) -> Any:
    if name == "HEAD_STRATEGIES":
        return known_strategies()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def select_heads(attention: Tensor, strategy: str, heads: int, normalise: str = "resoftmax") -> Tensor:
    """The heads that guide, best first: `[B, heads]`.

    `attention` `[B, H, N]` is the last prompt token's post-softmax attention to the visual tokens. Scores are float32
    or better, also under `torch.autocast`. Raises `FieldError` for an unknown strategy or normalisation, a number of
    heads outside 1..H, or attention that is not finite.
    """
    if attention.ndim != 3:
        raise FieldError("attention", f"shape {list(attention.shape)}; expected [batch, heads, visual tokens]")
    check_integer("heads", heads, 1, attention.shape[1])
    check_choice("normalise", normalise, NORMALISATIONS)
    if not bool(torch.isfinite(attention).all()):
        raise FieldError("attention", "holds NaN or infinite values")
    with for_choosing(attention.device):
        return best_heads(head_scores(attention, strategy, heads, normalise), heads)


__all__ = [
    "HEAD_STRATEGIES",
    "NORMALISATIONS",
    "HeadView",
    "ablation",
    "best_heads",
    "consensus_registry",
    "head_scores",
    "known_strategies",
    "register_head_strategy",
    "select_heads",
]
