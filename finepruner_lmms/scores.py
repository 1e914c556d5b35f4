"""From the attention rows of several heads to one score a visual token."""

from __future__ import annotations

from torch import Tensor

ROWS = ("raw", "renormalised")
AGGREGATES = ("mean", "max")


def token_scores(attention: Tensor, rows: str = "raw", aggregate: str = "mean") -> Tensor:
    """Combine `attention` `[B, H, N]` over its heads into token scores `[B, N]`.

    `rows="raw"` takes each head's row as it is (FastV, section 4 of its paper); `"renormalised"` first divides it by
    the head's own attention to the image, so that each head has an equal voice. `aggregate` is `"mean"` or `"max"`.
    """
    if rows == "renormalised":
        # a head that ignores the image altogether has nothing to say: its row stays zero
        attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-30)
    return attention.amax(1) if aggregate == "max" else attention.mean(1)
