"""What the heads of a model do, whatever comes of it: attention to the image and to objects, choices in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finepruner_lmms.heads import HEAD_STRATEGIES, NORMALISATIONS, best_heads, head_scores
from head_study.deck import Deck

# the names that consensus selection gives to formulas of its own are left out
STRATEGIES = [name for name in HEAD_STRATEGIES if not name.startswith("consensus_")]
CHOICES = [(strategy, normalise) for strategy in STRATEGIES for normalise in NORMALISATIONS]


def save_facts(deck: Deck, layer: int, file: Path) -> None:
    """`mass` and `share` `[layers, H]`: attention to the image, and the part of it that is on objects, means over
    questions; `agreement` `[C, C]`: the share of heads in common between choices of half of the heads of `layer`.
    """
    attention = deck.attention
    mass = attention.sum(-1)
    share = (attention * deck.objects[:, None, None]).sum(-1) / mass.clamp_min(1e-30)
    rows = attention[:, layer]
    half = rows.shape[1] // 2
    chosen = [best_heads(head_scores(rows, s, half, n), half) for s, n in CHOICES]
    member = torch.stack([torch.zeros(rows.shape[:2]).scatter(1, index, 1.0) for index in chosen])
    agreement = torch.einsum("aqh,bqh->ab", member, member) / (half * len(rows))
    np.savez_compressed(
        file, mass=mass.mean(0).numpy(), share=share.mean(0).numpy(), agreement=agreement.numpy(), layer=layer
    )
