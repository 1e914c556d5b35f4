"""Measure guides of pruning on one model: which rows of which heads at which layer keep what an answer needs.

    python -m head_study.first.run --pretrained demo --out runs/head_study/seed0

run from `scripts/`. A part is a list of choices. Each is judged on every question of a deck, and the answers (right or
wrong, a question each) are kept, so that any two choices can be compared in pairs. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # two threads that wait for each other by spinning slow each other down
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import finepruner_lmms as fp
from finepruner_lmms.heads import NORMALISATIONS, best_heads, consensus, head_scores
from finepruner_lmms.ops.token_scores import AGGREGATES, ROWS, token_scores
from head_study.deck import VISUAL, Deck
from head_study.facts import STRATEGIES, save_facts

RETAINED = (192, 128, 64, 32)
LAYER = 1  # whose attention guides, unless a choice says otherwise; tokens are dropped before layer 2
COMBINATIONS = (("raw", "mean"), ("renormalised", "mean"))
DEPTHS = {192: (2, 4, 6, 8), 128: (1, 2, 3, 4, 6), 64: (1, 2, 3)}  # budget: the layers before which tokens go
_BLOCK = 48  # choices judged together: where they keep the same tokens, one run serves all


class Choice(NamedTuple):
    """Token scores `[Q, N]` whose `retained` best stay, the others dropped before `layer`."""

    name: str
    scores: Tensor
    retained: int
    layer: int = LAYER + 1


def combined(deck: Deck) -> Iterator[Choice]:
    """All heads of layer 1, by every way to combine their rows."""
    for rows in ROWS:
        for aggregate in AGGREGATES:
            scores = token_scores(deck.attention[:, LAYER], rows, aggregate)
            for retained in RETAINED:
                name = f"combined/layer={LAYER}/rows={rows}/aggregate={aggregate}/kept={retained}"
                yield Choice(name, scores, retained)


def layers(deck: Deck) -> Iterator[Choice]:
    """All heads of each layer: what a layer's attention is worth if it could guide the drop before layer 2."""
    for layer in range(deck.attention.shape[1]):
        for rows, aggregate in COMBINATIONS:
            scores = token_scores(deck.attention[:, layer], rows, aggregate)
            for retained in RETAINED:
                if retained in (64, 32) or layer % 8 == 1:
                    name = f"layers/layer={layer}/rows={rows}/aggregate={aggregate}/kept={retained}"
                    yield Choice(name, scores, retained)
        for retained in (64, 32):
            scores = _knowing(deck, layer, 2)
            yield Choice(f"layers/layer={layer}/oracle-heads=2/kept={retained}", scores, retained)


def depth(deck: Deck) -> Iterator[Choice]:
    """FastV at layer K: scored by the layer before, dropped there, at an equal budget averaged over all layers."""
    for budget, places in DEPTHS.items():
        for place in places:
            retained = fp.build_pruner("fastv", budget=budget, layer=place).schedule(deck.attention.shape[1], VISUAL)[
                -1
            ]
            for rows, aggregate in COMBINATIONS:
                scores = token_scores(deck.attention[:, place - 1], rows, aggregate)
                yield Choice(
                    f"depth/budget={budget}/layer={place}/rows={rows}/aggregate={aggregate}", scores, retained, place
                )


def heads(deck: Deck) -> Iterator[Choice]:
    """Each head alone."""
    for layer in range(deck.attention.shape[1]):
        for head in range(deck.attention.shape[2]):
            yield Choice(f"heads/layer={layer}/head={head}/kept=64", deck.attention[:, layer, head], 64)


def alone(deck: Deck) -> Iterator[Choice]:
    """Each head of layer 1 alone."""
    for head in range(deck.attention.shape[2]):
        for retained in (64, 32):
            yield Choice(f"alone/head={head}/kept={retained}", deck.attention[:, LAYER, head], retained)


def strategies(deck: Deck) -> Iterator[Choice]:
    """Every strategy, normalisation and number of heads of layer 1, their rows combined in every way."""
    attention = deck.attention[:, LAYER]
    for retained in (64, 32, 128, 192):
        for strategy in STRATEGIES:
            for normalise in NORMALISATIONS:
                for count in (2, 4) if retained < 128 else (4,):
                    chosen = best_heads(head_scores(attention, strategy, count, normalise), count)
                    rows_of = attention.gather(1, chosen[..., None].expand(-1, -1, VISUAL))
                    for rows, aggregate in COMBINATIONS if retained < 128 else COMBINATIONS[:1]:
                        name = f"strategy={strategy}/normalise={normalise}/heads={count}/rows={rows}"
                        scores = token_scores(rows_of, rows, aggregate)
                        yield Choice(f"strategies/{name}/aggregate={aggregate}/kept={retained}", scores, retained)
        for preset in consensus.PRESETS:
            scores = consensus.select_batch(attention, preset).token_scores
            yield Choice(f"consensus/preset={preset}/kept={retained}", scores, retained)


def candidates(deck: Deck) -> Iterator[Choice]:
    """What is picked from: the strategies at the budgets where they differ most."""
    return (choice for choice in strategies(deck) if choice.retained <= 64)


def bounds(deck: Deck) -> Iterator[Choice]:
    """Chance, and what knowing the picture reaches: object tokens first, and heads chosen by their share on them."""
    for retained in RETAINED:
        for seed in range(2):
            yield Choice(f"random/seed={seed}/kept={retained}", _chance(deck, seed), retained)
        rest = _chance(deck, 9)
        yield Choice(f"oracle/tokens=objects/kept={retained}", deck.objects + rest, retained)
        yield Choice(f"oracle/tokens=subject/kept={retained}", 2 * deck.subject + deck.objects + rest, retained)
        for count in (1, 2, 4):
            yield Choice(f"oracle/heads={count}/kept={retained}", _knowing(deck, LAYER, count), retained)


def _knowing(deck: Deck, layer: int, count: int) -> Tensor:
    """Token scores of the `count` heads with the largest share of their visual attention on objects."""
    attention = deck.attention[:, layer]
    share = (attention * deck.objects[:, None]).sum(-1) / attention.sum(-1).clamp_min(1e-30)
    index = best_heads(share, count)[..., None].expand(-1, -1, VISUAL)
    return token_scores(attention.gather(1, index), "renormalised", "mean")


def _chance(deck: Deck, seed: int) -> Tensor:
    return torch.rand(len(deck.asked), VISUAL, generator=torch.Generator().manual_seed(seed))


class Plan(NamedTuple):
    """What is measured on one deck of questions."""

    split: str
    scenes: int
    parts: tuple[Callable[[Deck], Iterator[Choice]], ...]


# as large as three models are measured in about an hour on two CPU cores
PLANS = {
    "tuning": Plan("tuning", 30, (combined, candidates)),
    "test": Plan("test", 60, (combined, bounds, strategies, alone)),
    "layers": Plan("test", 20, (layers, depth)),
    "heads": Plan("tuning", 16, (heads,)),
}


def main() -> None:
    """Run the decks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", default="demo")
    parser.add_argument("--deck", choices=PLANS, nargs="+", default=list(PLANS))
    parser.add_argument("--scenes", type=int, help="fewer or more than the deck's own number")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.deck:
        plan = PLANS[name]
        deck = Deck(arguments.pretrained, plan.split, arguments.scenes or plan.scenes)
        save_facts(deck, LAYER, arguments.out / f"{name}.facts.npz")
        for part in plan.parts:
            measure(deck, list(part(deck)), arguments.out / f"{name}-{part.__name__}.npz")


def measure(deck: Deck, choices: list[Choice], file: Path) -> None:
    """Judge the choices that `file` does not hold yet, and keep the answers there."""
    found: dict[str, np.ndarray] = dict(np.load(file)) if file.exists() else {}
    found |= {"vanilla": deck.vanilla.numpy(), "scenes": deck.scenes}
    found["kinds"] = np.array([asked.kind for asked in deck.asked])
    blocks: dict[tuple[int, int], list[Choice]] = {}
    for choice in choices:
        if choice.name not in found:
            blocks.setdefault((choice.retained, choice.layer), []).append(choice)
    with tqdm(total=sum(map(len, blocks.values())), desc=file.stem) as progress:
        for (retained, layer), alike in blocks.items():
            for start in range(0, len(alike), _BLOCK):
                block = alike[start : start + _BLOCK]
                right = deck.answer_all([choice.scores for choice in block], retained, layer)
                found |= {choice.name: row.numpy() for choice, row in zip(block, right, strict=True)}
                np.savez_compressed(file, **found)
                progress.update(len(block))


if __name__ == "__main__":
    main()
