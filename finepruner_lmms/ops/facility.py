"""Greedy coverage (weighted facility location): tokens so that every target has a similar one among them.

For non-negative weights the covered weight is monotone and submodular, so that greedy picks reach 1 - 1/e of the best
(Nemhauser, Wolsey and Fisher, Mathematical Programming 1978).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.products import pair_cosines
from finepruner_lmms.ops.row_slices import row_slices
from finepruner_lmms.ops.selection import at_least_float32, unit_vectors

if TYPE_CHECKING:
    from torch import Tensor

Score: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor]"


def cover(
    similarity: Tensor,
    count: int,
    *,
    targets: Tensor | None = None,
    candidates: Tensor | None = None,
    present: Tensor | None = None,
    first: Tensor | None = None,
    score: Score | None = None,
) -> Tensor:
    """`count` of N candidates in the order of picking, `[B, count]`; the lower index wins a tie.

    `similarity` `[B, N, T]` says how well each candidate stands for each of T targets. A pick is worth
    `c_i · sum_t w_t · max(0, s_it - u_t)`, where `u_t` is the best similarity of a token picked before, at least 0. The
    weights of `targets` w `[B, T]` (0: no target) and of `candidates` c `[B, N]` are not negative, and 1 by default.
    Only candidates that are `present` `[B, N]` are picked; in a row with fewer than `count`, the rest of its picks mean
    nothing. `first` `[B, 1]` is picked before all others, and `u` is then its similarity, be that negative.

    `score(gains, covered, open)` may turn the gains `[B, N]` (float64, before c) into another worth `[B, N]`; `covered`
    `[B, T]` is `w_t · u_t`, and `open` `[B, N]` tells the candidates that are left.

    Weighted similarities are in the precision of `similarity`, float32 or better; sums are in float64 and in one order
    for all candidates: equal candidates tie exactly. No wait for the device.
    """
    rows = at_least_float32(similarity)
    if targets is not None:
        rows = rows * targets[:, None].to(rows.dtype)
    open_ = torch.ones_like(rows[..., 0], dtype=torch.bool) if present is None else present
    # one image after the other where all do not fit into a CPU's cache; a score is of the whole batch
    parts = row_slices(rows) if score is None else [slice(None)]
    weights: list[Tensor | None] = [None if candidates is None else candidates[part] for part in parts]
    starts: list[Tensor | None] = [None if first is None else first[part] for part in parts]
    picks = [
        _greedy(rows[part].double(), count, open_[part], weight, start, score)
        for part, weight, start in zip(parts, weights, starts, strict=True)
    ]
    return torch.cat(picks)


def _greedy(
    rows: Tensor, count: int, open_: Tensor, candidates: Tensor | None, first: Tensor | None, score: Score | None
) -> Tensor:
    """`cover` of weighted `rows` `[B, N, T]` in float64."""
    batch, size, width = rows.shape
    flat, offset = rows.reshape(-1, width), torch.arange(0, batch * size, size, device=rows.device)
    covered, picks = rows.new_zeros(batch, 1, width), []
    # what would be covered by each candidate, and last what is: their difference is exactly 0 for one that adds nothing
    would = rows.new_empty(batch, size + 1, width)
    for step in range(count):
        if step == 0 and first is not None:
            pick = first
        else:
            torch.maximum(rows, covered, out=would[:, :size])
            would[:, size:] = covered
            sums = would.sum(-1)
            worth = sums[:, :size] - sums[:, size:]
            worth = worth if score is None else score(worth, covered[:, 0], open_)
            worth = worth if candidates is None else worth * candidates
            pick = worth.masked_fill(~open_, float("-inf")).argmax(1, keepdim=True)
        picks.append(pick)
        open_ = open_.scatter(1, pick, torch.zeros_like(pick, dtype=torch.bool))
        row = flat.index_select(0, pick[:, 0] + offset)[:, None]
        covered = row if step == 0 and first is not None else torch.maximum(covered, row)
    return torch.cat(picks, dim=1)


def cosines(tokens: Tensor) -> Tensor:
    """Cosines `[B, N, N]` of `tokens` `[B, N, D]` with each other, float32.

    The product is in float64: rounded from there, equal tokens have equal cosines wherever they stand in it.
    """
    return pair_cosines(tokens).float()


def dense_cosines(tokens: Tensor, texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines `[B, N, M]`, float64, of `tokens` `[B, N, D]` with each vector of their row's text, `[m, D]` a row.

    M is the longest m; which of the M are there, `[B, M]`, is the second.
    """
    texts = [text.to(tokens.device) for text in texts]
    padded = unit_vectors(torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).double())
    # made on the device: copying the lengths there would wait for it
    there = torch.nn.utils.rnn.pad_sequence(
        [text.new_ones(len(text), dtype=torch.bool) for text in texts], batch_first=True
    )
    return unit_vectors(tokens.double()) @ padded.transpose(1, 2), there
