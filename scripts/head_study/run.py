"""Measure guides of pruning on one model: which rows of which heads at which layer keep what an answer needs.

    python -m head_study.run --pretrained demo --split tuning --part heads --out runs/head_study/seed0

run from `scripts/`. A part is a list of choices. Each is judged on every question of the deck, and the answers (right
or wrong, a question each) are kept, so that any two choices can be compared in pairs. What is finished is not run
again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # two threads that wait for each other by spinning slow each other down
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from finepruner_lmms import consensus
from finepruner_lmms.heads import HEAD_STRATEGIES, NORMALISATIONS, best_heads, head_scores
from finepruner_lmms.scores import AGGREGATES, ROWS, token_scores
from head_study.deck import VISUAL, Deck

RETAINED = (192, 128, 64, 32)
LAYER = 1  # whose attention guides, unless a choice says otherwise; tokens are dropped before layer 2
Choice = tuple[str, Tensor, int]  # name, token scores [Q, N], tokens kept


def combined(deck: Deck) -> Iterator[Choice]:
    """All heads of every layer, by every way to combine their rows."""
    for layer in range(deck.attention.shape[1]):
        for rows in ROWS:
            for aggregate in AGGREGATES:
                scores = token_scores(deck.attention[:, layer], rows, aggregate)
                for retained in RETAINED if layer == LAYER else (64,):
                    yield f"combined/layer={layer}/rows={rows}/aggregate={aggregate}/kept={retained}", scores, retained


def heads(deck: Deck) -> Iterator[Choice]:
    """Each head alone."""
    for layer in range(deck.attention.shape[1]):
        for head in range(deck.attention.shape[2]):
            yield f"heads/layer={layer}/head={head}/kept=64", deck.attention[:, layer, head], 64


def strategies(deck: Deck, layers: tuple[int, ...] = (LAYER,)) -> Iterator[Choice]:
    """Every strategy, normalisation and number of heads, their rows combined in every way."""
    for layer in layers:
        attention = deck.attention[:, layer]
        for strategy in HEAD_STRATEGIES:
            for normalise in NORMALISATIONS:
                for count in (2, 4):
                    chosen = best_heads(head_scores(attention, strategy, count, normalise), count)
                    rows_of = attention.gather(1, chosen[..., None].expand(-1, -1, VISUAL))
                    for rows, aggregate in (("raw", "mean"), ("renormalised", "mean"), ("renormalised", "max")):
                        scores = token_scores(rows_of, rows, aggregate)
                        for retained in RETAINED:
                            name = f"layer={layer}/strategy={strategy}/normalise={normalise}/heads={count}"
                            yield (
                                f"strategies/{name}/rows={rows}/aggregate={aggregate}/kept={retained}",
                                scores,
                                retained,
                            )
        for preset in consensus.PRESETS:
            scores = consensus.select_batch(attention, preset).token_scores
            for retained in RETAINED:
                yield f"consensus/layer={layer}/preset={preset}/kept={retained}", scores, retained


def bounds(deck: Deck) -> Iterator[Choice]:
    """Chance, and what knowing the picture reaches: object tokens first, and heads chosen by their share on them."""
    for retained in RETAINED:
        for seed in range(3):
            yield f"random/seed={seed}/kept={retained}", _chance(deck, seed), retained
        rest = _chance(deck, 9)
        yield f"oracle/tokens=objects/kept={retained}", deck.objects + rest, retained
        yield f"oracle/tokens=subject/kept={retained}", 2 * deck.subject + deck.objects + rest, retained
        for layer in (LAYER, *range(4, deck.attention.shape[1], 4)):
            attention = deck.attention[:, layer]
            share = (attention * deck.objects[:, None]).sum(-1) / attention.sum(-1).clamp_min(1e-30)
            for count in (1, 2, 4):
                index = best_heads(share, count)[..., None].expand(-1, -1, VISUAL)
                scores = token_scores(attention.gather(1, index), "renormalised", "mean")
                yield f"oracle/heads={count}/layer={layer}/kept={retained}", scores, retained


def _chance(deck: Deck, seed: int) -> Tensor:
    return torch.rand(len(deck.asked), VISUAL, generator=torch.Generator().manual_seed(seed))


PARTS = {"combined": combined, "heads": heads, "strategies": strategies, "bounds": bounds}


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", default="demo")
    parser.add_argument("--split", choices=("tuning", "test"), required=True)
    parser.add_argument("--part", choices=PARTS, nargs="+", required=True)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    deck = Deck(arguments.pretrained, arguments.split, arguments.scenes)
    for part in arguments.part:
        file = arguments.out / f"{arguments.split}-{part}.npz"
        found: dict[str, np.ndarray] = dict(np.load(file)) if file.exists() else {}
        found |= {"vanilla": deck.vanilla.numpy(), "scenes": deck.scenes}
        found["kinds"] = np.array([asked.kind for asked in deck.asked])
        choices = list(PARTS[part](deck))
        for done, (name, scores, retained) in enumerate(tqdm(choices, desc=f"{arguments.split} {part}")):
            if name not in found:
                found[name] = deck.answer(scores, retained).numpy()
            if done % 50 == 49 or done + 1 == len(choices):
                np.savez_compressed(file, **found)


if __name__ == "__main__":
    main()
