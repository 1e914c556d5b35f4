"""Greedy loops in one kernel or two a round, in Triton, for NVIDIA GPUs; `ops.fused` says where they can run.

Hundreds of small operations one after the other cost a launch each, also in a CUDA graph. Here, one program per sample
goes through all steps. Each function chooses what the loop in plain torch beside its caller chooses, the lower index
on a tie; sums may be added up in another order, so values that differ by rounding alone may change places.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["count", "done", "most"])
def _greedy_map(left, gains, factors, picks, values, size, count, done, most, BLOCK: tl.constexpr, TILE: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    left, gains = left + sample * size * size, gains + sample * size
    factors += sample * count * size
    picks, values = picks + sample * most + done, values + sample * most + done
    column = tl.arange(0, BLOCK)
    inside = column < size
    gain = tl.load(gains + column, mask=inside, other=float("-inf"))
    for step in range(count):
        value, pick = tl.max(gain, axis=0, return_indices=True)
        pick = tl.minimum(pick, size - 1)
        tl.store(values + step, value)
        tl.store(picks + step, pick.to(tl.int64))
        row = tl.load(left + pick * size + column, mask=inside, other=0.0)
        parts = tl.zeros((TILE, BLOCK), dtype=tl.float64)
        for first in range(0, step, TILE):
            earlier = first + tl.arange(0, TILE)
            there = earlier < step
            share = tl.load(factors + earlier * size + pick, mask=there, other=0.0)
            tile = factors + earlier[:, None] * size + column[None, :]
            parts += share[:, None] * tl.load(tile, mask=there[:, None] & inside[None, :], other=0.0)
        row -= tl.sum(parts, axis=0)
        factor = row * tl.where(value > 0, 1 / tl.sqrt(tl.where(value > 0, value, 1.0)), 0.0)
        tl.store(factors + step * size + column, factor, mask=inside)
        tl.debug_barrier()  # the next step reads a column of what all threads wrote
        gain = tl.where(inside, gain - factor * factor, float("-inf"))
    tl.store(gains + column, gain, mask=inside)


def greedy_map(kernel: Tensor, count: int, together: int = 32, tile: int = 8) -> tuple[Tensor, Tensor]:
    """Picks `[B, count]` and their gains, of `kernel` `[B, N, N]` float64.

    After `together` picks, their parts are taken away from all rows by one product, so that a step has few to add up.
    """
    batch, size, _ = kernel.shape
    picks = torch.empty(batch, count, dtype=torch.long, device=kernel.device)
    values, left = kernel.new_empty(batch, count), kernel.contiguous()
    gains = kernel.diagonal(dim1=1, dim2=2).contiguous()
    block = max(triton.next_power_of_2(size), 64)
    warps = min(16, block // 64)
    tile = max(1, min(tile, 512 * warps // block))  # 16 numbers a thread: more would not stay in registers
    for done in range(0, count, together):
        factors = kernel.new_empty(batch, min(together, count - done), size)
        with torch.cuda.device_of(kernel):
            _greedy_map[(batch,)](
                left,
                gains,
                factors,
                picks,
                values,
                size,
                factors.shape[1],
                done,
                count,
                BLOCK=block,
                TILE=tile,
                num_warps=warps,
            )
        if done + together < count:
            left = torch.baddbmm(left, factors.mT, factors, alpha=-1)
    return picks, values


@triton.jit(do_not_specialize=["count"])
def _farthest_points(distance, picks, size, count, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    distance += sample * size * size
    picks += sample * count
    column = tl.arange(0, BLOCK)
    inside = column < size
    nearest = tl.where(inside, float("inf"), float("-inf")).to(tl.float32)
    pick = tl.load(picks).to(tl.int32)
    for step in range(1, count):
        row = tl.load(distance + pick * size + column, mask=inside, other=float("-inf"))
        nearest = tl.where(column == pick, float("-inf"), tl.minimum(nearest, row))
        _, best = tl.max(nearest, axis=0, return_indices=True)
        pick = tl.minimum(best, size - 1)
        tl.store(picks + step, pick.to(tl.int64))


def farthest_points(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """`count` picks `[B, count]` from `first` `[B, 1]` on, by `distance` `[B, N, N]` float32."""
    batch, size, _ = distance.shape
    picks = torch.empty(batch, count, dtype=torch.long, device=distance.device)
    picks[:, :1] = first
    block = triton.next_power_of_2(size)
    warps = min(8, max(1, block // 128))
    with torch.cuda.device_of(distance):
        _farthest_points[(batch,)](distance.contiguous(), picks, size, count, BLOCK=block, num_warps=warps)
    return picks


@triton.jit(do_not_specialize=["length"])
def _nearest_odd(similarity, left, nearest, size, length, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    even = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    odd = tl.arange(0, BLOCK)
    left += sample * size
    is_even, is_odd = 2 * even < length, 2 * odd + 1 < length
    row = tl.load(left + 2 * even, mask=is_even, other=0)
    column = tl.load(left + 2 * odd + 1, mask=is_odd, other=0)
    pairs = similarity + sample * size * size + row[:, None] * size + column[None, :]
    found = tl.load(pairs, mask=is_even[:, None] & is_odd[None, :], other=float("-inf"))
    tl.store(nearest + sample * size + even, tl.max(found, axis=1), mask=is_even)


@triton.jit(do_not_specialize=["length", "removed"])
def _go_on(left, nearest, after, size, length, removed, BLOCK: tl.constexpr, TILE: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    left, after, nearest = left + sample * size, after + sample * size, nearest + sample * size
    place = tl.arange(0, BLOCK)
    evens, odds = (length + 1) // 2, length // 2
    own = tl.load(nearest + place, mask=place < evens, other=float("-inf"))
    rank = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, evens, TILE):
        other = first + tl.arange(0, TILE)
        theirs = tl.load(nearest + other, mask=other < evens, other=float("-inf"))
        ahead = (theirs[:, None] > own[None, :]) | (
            (theirs[:, None] == own[None, :]) & (other[:, None] < place[None, :])
        )
        rank += tl.sum((ahead & (other < evens)[:, None]).to(tl.int32), axis=0)
    survives = (place < evens) & (rank >= removed)
    tl.store(after + rank - removed, tl.load(left + 2 * place, mask=survives, other=0), mask=survives)
    token = tl.load(left + 2 * place + 1, mask=place < odds, other=0)
    tl.store(after + evens - removed + place, token, mask=place < odds)


def diverse_tokens(similarity: Tensor, retained: int, step: int) -> Tensor:
    """Which tokens are left after rounds of matching by `similarity` `[B, M, M]` float64: `[B, retained]`."""
    batch, size, _ = similarity.shape
    left = torch.arange(size, device=similarity.device).expand(batch, -1).contiguous()
    after, nearest = torch.empty_like(left), similarity.new_empty(batch, size)
    similarity, length, rows = similarity.contiguous(), size, 8
    while length > retained:
        evens = (length + 1) // 2
        removed = min(step, length - retained, evens)
        grid, block = (batch, triton.cdiv(evens, rows)), max(32, triton.next_power_of_2(evens))
        warps = max(1, min(16, block // 64))
        with torch.cuda.device_of(similarity):
            _nearest_odd[grid](similarity, left, nearest, size, length, BLOCK=block, ROWS=rows, num_warps=warps)
            _go_on[(batch,)](left, nearest, after, size, length, removed, BLOCK=block, TILE=16, num_warps=warps)
        left, after, length = after, left, length - removed
    return left[:, :retained]


@triton.jit
def _unlike_heads(
    cosine, base, first, nothing, share, picks, heads, steps: tl.constexpr, PROPER: tl.constexpr, BLOCK: tl.constexpr
):
    sample = tl.program_id(0).to(tl.int64)
    cosine += sample * heads * heads
    head = tl.arange(0, BLOCK)
    inside = head < heads
    alone = tl.load(nothing + sample) != 0
    score = tl.load(first + sample * heads + head, mask=inside, other=float("-inf"))
    open_ = score > float("-inf")
    level = tl.load(base + sample * heads + head, mask=inside, other=0.0)
    total, near = tl.zeros_like(level), tl.zeros_like(level)
    for step in range(steps):
        if step:
            score = tl.where(alone, -near, level - tl.load(share + step) * total)
        _, best = tl.max(tl.where(open_, score, float("-inf")), axis=0, return_indices=True)
        pick = tl.minimum(best, heads - 1)
        tl.store(picks + sample * steps + step, pick.to(tl.int64))
        open_ = open_ & (head != pick)
        row = tl.load(cosine + pick * heads + head, mask=inside, other=0.0)
        total += row
        if step:
            near = tl.maximum(near, row) if PROPER else tl.minimum(near, row)
        else:
            near = row


def unlike_heads(cosine: Tensor, base: Tensor, first: Tensor, nothing: Tensor, share: Tensor, proper: bool) -> Tensor:
    """The picks `[B, steps]` of `heads.consensus.steps.add_diversity`; `share` `[steps]` is 0.4 / step."""
    batch, heads = base.shape
    picks = torch.empty(batch, len(share), dtype=torch.long, device=base.device)
    block, steps = triton.next_power_of_2(heads), len(share)
    with torch.cuda.device_of(base):
        _unlike_heads[(batch,)](
            cosine.contiguous(),
            base,
            first,
            nothing,
            share,
            picks,
            heads,
            steps,
            PROPER=proper,
            BLOCK=block,
            num_warps=1,
        )
    return picks
