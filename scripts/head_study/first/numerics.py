"""How far the precision of the attention decides which heads are chosen.

    python -m head_study.first.numerics [--pretrained demo] [--scenes 20]

run from `scripts/`. Attention is computed in float64 and rounded; the table says how many of the chosen heads are those
chosen from float64, with strategies as the package computes them, and, for the formulas that take a softmax of the
attention, as they come out if they are computed in the rounded precision themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from finepruner_lmms.heads import NORMALISATIONS, best_heads, head_scores
from head_study.facts import STRATEGIES

HEADS, VISUAL = 32, 576
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def synthetic(samples: int) -> Tensor:
    """Rows of 32 heads, float64: log-normal over the tokens, 1 to 60 % of a head's attention on the image."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(samples, HEADS, VISUAL, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
    return rows * (0.01 + 0.59 * torch.rand(samples, HEADS, 1, generator=generator, dtype=torch.float64))


def demo(pretrained: str, scenes: int, layer: int) -> Tensor:
    """The last prompt token's attention at one layer for questions of the tuning split, float64."""
    from head_study.deck import Deck

    return Deck(pretrained, "tuning", scenes, dtype=torch.float64).attention[:, layer]


def shared(first: Tensor, second: Tensor) -> float:
    """The percentage of the heads `first` `[B, H]` that `second` names too."""
    return 100 * float((first[:, :, None] == second[:, None]).any(-1).double().mean())


def ours(attention: Tensor, strategy: str, normalise: str, count: int) -> Tensor:
    """The heads that the package chooses."""
    return best_heads(head_scores(attention, strategy, count, normalise), count)


def _entropy(p: Tensor) -> Tensor:
    return (p * (p + 1e-8).log()).sum(-1)


def _gini(p: Tensor) -> Tensor:
    size = p.shape[-1]
    weight = 2 * torch.arange(1, size + 1, device=p.device) - size - 1
    return (p.sort(dim=-1).values * weight.to(p.dtype)).sum(-1) / size


# the formulas as written, in the precision of what they are given
IN_PRECISION: dict[str, Callable[[Tensor], Tensor]] = {
    "sparsity": lambda p: (p * p).sum(-1),
    "entropy": _entropy,
    "gini_coefficient": _gini,
}


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", default="demo")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--layer", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    maps = {
        "32 synthetic heads": synthetic(200),
        f"{arguments.pretrained}, layer {arguments.layer}": demo(
            arguments.pretrained, arguments.scenes, arguments.layer
        ),
    }
    for title, attention in maps.items():
        count = attention.shape[1] // 2
        print(f"\n**{title}**: {count} of {attention.shape[1]} heads, {len(attention)} samples, % of heads in common\n")
        print("| strategy | normalise | " + " | ".join(PRECISIONS) + " | other normalisation | sum |")
        print("|---|---|" + "---|" * (len(PRECISIONS) + 2))
        by_mass = ours(attention, "sum", "resoftmax", count)
        for strategy in STRATEGIES:
            exact = {n: ours(attention, strategy, n, count) for n in NORMALISATIONS}
            across = shared(*exact.values())
            for normalise in NORMALISATIONS:
                found = [
                    shared(exact[normalise], ours(attention.to(precision), strategy, normalise, count))
                    for precision in PRECISIONS.values()
                ]
                cells = [f"{value:.1f}" for value in (*found, across, shared(exact[normalise], by_mass))]
                print(f"| `{strategy}` | {normalise} | " + " | ".join(cells) + " |")
        print("\n| formula computed in that precision | float16 | bfloat16 | float32 | values told apart in float16 |")
        print("|---|---|---|---|---|")
        for strategy, formula in IN_PRECISION.items():
            exact_heads = best_heads(formula(attention.softmax(-1)), count)
            cells = []
            for precision in PRECISIONS.values():
                scores = formula(attention.to(precision).softmax(-1))
                cells.append(f"{shared(exact_heads, best_heads(scores, count)):.1f}")
            rounded = formula(attention.half().softmax(-1))
            distinct = sum(len(row.unique()) for row in rounded) / len(rounded)
            print(f"| `{strategy}` | " + " | ".join(cells) + f" | {distinct:.1f} of {attention.shape[1]} |")


if __name__ == "__main__":
    main()
