"""From the attention rows of several heads to one score per visual token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


ROWS = ("raw", "renormalised")
AGGREGATES = ("mean", "max", "quota")


def head_rows(attention: Tensor, rows: str = "raw") -> Tensor:
    """The rows of `attention` `[B, H, N]` as they are, or each divided by its head's attention to the image."""
    if rows == "raw":
        return attention
    # a head that ignores the image altogether has nothing to say: its row stays zero
    return attention / attention.sum(-1, keepdim=True).clamp_min(1e-30)


def token_scores(attention: Tensor, rows: str = "raw", aggregate: str = "mean") -> Tensor:
    """Combine `attention` `[B, H, N]` over its heads into token scores `[B, N]`.

    `rows="raw"` takes each head's row as it is (FastV, section 4 of its paper); `"renormalised"` first divides it by
    the head's own attention to the image, which is per-head normalisation. `aggregate` is `"mean"`, `"max"`, or
    `"quota"`: round-robin, the heads nominate in turn, each its best token, then each its second best, and so on.
    """
    attention = head_rows(attention, rows)
    if aggregate == "quota":
        return _round_robin(attention)
    return attention.amax(1) if aggregate == "max" else attention.mean(1)


def _round_robin(attention: Tensor) -> Tensor:
    """The turn in which each token is first nominated, `[B, N]`, negative so that early is better."""
    heads = attention.shape[1]
    order = attention.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(attention.shape[-1], device=attention.device).expand_as(order)
    rank = torch.zeros_like(order).scatter_(-1, order, place)
    turn = rank * heads + torch.arange(heads, device=attention.device)[:, None]
    return -turn.amin(1).to(attention.dtype)
