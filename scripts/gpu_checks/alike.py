"""When two generations are the same."""

from __future__ import annotations

from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms import testing
from finepruner_lmms.bench.prompts import Prompts


def kept_alike(ours: fp.Generation, theirs: fp.Generation) -> bool:
    """Whether both kept the same tokens, at every drop and in every row."""
    return all(
        torch.equal(a.cpu(), b.cpu())
        for layer, rows in ours.trace.kept.items()
        for a, b in zip(rows, theirs.trace.kept[layer], strict=True)
    )


def rounding_of(logits: torch.Tensor) -> float:
    """How far logits of this size may lie apart that differ in the order of their sums alone."""
    return testing.rounding(size=max(1.0, logits.abs().max().item()))["atol"]


def compare_tokens(plain: Any, sequences: torch.Tensor) -> tuple[bool, bool]:
    """Whether tokens are equal; if not, whether rows part where the two best logits differ by rounding alone."""
    ours, theirs = plain.sequences, sequences
    if ours.shape == theirs.shape and torch.equal(ours, theirs):
        return True, False
    length = min(ours.shape[1], theirs.shape[1])
    parted = False
    for row in range(len(ours)):
        differ = (ours[row, :length] != theirs[row, :length]).nonzero()
        if len(differ):
            best = plain.logits[int(differ[0])][row].topk(2).values
            if float(best[0] - best[1]) > 2 * rounding_of(plain.logits[int(differ[0])][row]):  # either may move
                return False, False
            parted = True
    return False, parted


def one_row(prompts: Prompts, row: int) -> dict[str, torch.Tensor]:
    """A row by itself; all are of one length."""
    return {name: value[row : row + 1] for name, value in prompts.from_pixels.items()}


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Shares of equal tokens and of equal first tokens, and after how many tokens rows part on average."""
    same = ours == theirs
    parts = same.int().cumprod(1).sum(1).double().mean().item()
    return {
        "equal_tokens": round(same.double().mean().item(), 3),
        "equal_first": round(same[:, 0].double().mean().item(), 3),
        "equal_until": round(parts, 1),
        "of": ours.shape[1],
        "distinct": len(set(ours.flatten().tolist())),
    }
