"""Choosing tokens from scores. Pure functions; float32, stable (the lower index wins a tie), no wait for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def top_mask(scores: Tensor, retained: int, present: Tensor | None = None, required: Tensor | None = None) -> Tensor:
    """The `retained` best of each row of `scores` `[B, N]` as a bool mask `[B, N]`.

    Tokens that are not `present` `[B, N]` are never chosen; those that are `required` `[B, N]` come before all others.
    Scores must be finite: the caller checks, so that this function needs no answer from the device.
    """
    if required is not None:
        scores = scores.masked_fill(required, float("inf"))
    if present is not None:
        scores = scores.masked_fill(~present, float("-inf"))
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :retained]
    mask = index_to_mask(best, scores.shape[1])
    return mask if present is None else mask & present


def with_required(keep: Tensor, required: Tensor, retained: int, scores: Tensor | None = None) -> Tensor:
    """`keep` `[B, N]` with the tokens that are `required` `[B, N]`, at most one per row, among its `retained`.

    Where one was not chosen, it takes the place of the worst by `scores` `[B, N]` (of the last without scores), or is
    one more where places are left. Rows that require nothing stay as they are.
    """
    wanted = keep | required
    ranking = torch.zeros_like(keep, dtype=torch.float32) if scores is None else scores
    chosen = top_mask(ranking, max(retained, 1), wanted, required)
    return torch.where(required.any(1, keepdim=True), chosen, keep)


def mask_to_index(mask: Tensor, retained: int) -> Tensor:
    """The kept columns of each row, ascending: `[B, retained]`, for a mask `[B, N]` with that many True per row."""
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, :retained]


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens `[B, R, D]` that `index` `[B, R]` names of `[B, N, D]`."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def index_to_mask(index: Tensor, num_tokens: int) -> Tensor:
    """The named columns `[B, R]` as a bool mask `[B, N]`."""
    mask = torch.zeros(len(index), num_tokens, dtype=torch.bool, device=index.device)
    return mask.scatter_(1, index, torch.ones_like(index, dtype=torch.bool))


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays. Low precision makes ties, and ties make arbitrary choices."""
    return values if values.dtype == torch.float64 else values.float()


def unit_vectors(tokens: Tensor) -> Tensor:
    """Tokens `[..., D]` of length 1, in float32 or better; a token without a direction stays zero."""
    precision = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    # half precision is read as it is: a copy in float32 would take more time than all the rest
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=precision)
    return tokens / length.masked_fill(length == 0, 1)


def fingerprint(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """A 64-bit number `[B]` for the content of each row of `values` `[B, ...]`, the same on every device.

    Integer arithmetic wraps around and is associative, so neither the batch nor the order of summation matters.
    Places that are not `valid` do not count; the rest are numbered from the right, so left padding changes nothing.
    """
    flat = values.flatten(1)
    bits = flat.float().contiguous().view(torch.int32).long() if flat.is_floating_point() else flat.long()
    place = torch.arange(bits.shape[1], 0, -1, device=bits.device)
    mixed = mix64(bits * _as_int64(0x9E3779B97F4A7C15) + mix64(place))
    if valid is not None:
        mixed = mixed * valid.flatten(1)
    return mix64(mixed.sum(1))


def mix64(x: Tensor) -> Tensor:
    """Scramble int64 values so that neighbours become unrelated (the finaliser of splitmix64)."""
    x = (x ^ _shift(x, 30)) * _as_int64(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _as_int64(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _as_int64(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
