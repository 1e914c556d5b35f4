"""How long each method takes to choose, at LLaVA-1.5-7B's sizes, next to a straightforward loop over the same formula.

    python benchmarks/selection.py [--threads 1] [--budget 192] [--only cdpruner,vispruner]

576 visual tokens; vision side: 1024 features, 4096 projected, 16 heads; decoder side: 32 heads, 40 words behind the
image. A loop goes through images and steps one after the other, as released code does, in the precision of ours and
on the same threads; its choice must be ours. Given is the minimum of repeated runs, ours and the loop's in turn.
The last table is exact: what scoring costs beside a dense prefill.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.pruners import DecoderContext, build_pruner, method_class
from finepruner_lmms.pruners.cdpruner import conditional_kernel, greedy_map
from finepruner_lmms.pruners.registry import needs_budget
from finepruner_lmms.testing.samples import RandomFirstLayer

VISUAL, BATCHES = 576, (1, 8)


# -- the loops --------------------------------------------------------------------------------------------------------


def greedy_map_loop(kernel: Tensor, count: int) -> list[list[int]]:
    """Fast greedy MAP, an image at a time, with a growing slice of the factors."""
    chosen = []
    for matrix in kernel:
        factors, gains, picks = torch.zeros(count, len(matrix), dtype=matrix.dtype), matrix.diagonal().clone(), []
        for step in range(count):
            pick = int(torch.argmax(gains))
            seen = factors[:step]
            residual = matrix[pick] - torch.einsum("t,tn->n", seen[:, pick], seen)
            factors[step] = residual / torch.sqrt(gains[pick])
            gains = gains - torch.square(factors[step])
            gains[pick] = -float("inf")
            picks.append(pick)
        chosen.append(sorted(picks))
    return chosen


def vispruner_loop(vision: fp.VisionOutputs, budget: int) -> list[list[int]]:
    """Rounds of matching, an image at a time, the similarities anew in every round."""
    chosen = []
    for features, attention in zip(vision.features.double(), vision.cls_attention.double(), strict=True):
        order = attention.mean(0).argsort(descending=True, stable=True)
        important, rest = order[: budget // 2], order[budget // 2 :]
        unit = features / features.norm(dim=-1, keepdim=True)
        while len(rest) > budget - len(important):
            even, odd = rest[::2], rest[1::2]
            removed = min(8, len(rest) - (budget - len(important)), len(even))
            nearest = (unit[even] @ unit[odd].T).max(dim=-1).values
            survivors = nearest.argsort(descending=True, stable=True)[removed:]
            rest = torch.cat([even[survivors], odd])
        chosen.append(sorted(torch.cat([important, rest]).tolist()))
    return chosen


def divprune_loop(vision: fp.VisionOutputs, budget: int) -> list[list[int]]:
    """Farthest points, an image at a time; the nearest picked token is looked up anew in every step."""
    chosen = []
    for tokens in vision.projected:
        unit = tokens / tokens.norm(dim=-1, keepdim=True)
        distance = 1 - unit @ unit.T
        picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(picks) < budget:
            nearest = distance[picks].min(dim=0).values
            nearest[picks] = -float("inf")
            picks.append(int(nearest.argmax()))
        chosen.append(sorted(picks))
    return chosen


# -- measuring --------------------------------------------------------------------------------------------------------


def fastest(*runs: Callable[[], object], repeats: int = 7) -> list[float]:
    """The fewest seconds of each of `runs`, which take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in times]


def encoded(batch: int, words: int = 768) -> fp.VisionOutputs:
    """Random images of LLaVA-1.5's sizes, with a question of so many numbers: CLIP's, or the language model's 4096."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, VISUAL, 1024, generator=generator)
    return fp.VisionOutputs(
        features,
        torch.randn(batch, VISUAL, 4096, generator=generator),
        cls_attention=torch.randn(batch, 16, VISUAL, generator=generator).softmax(-1),
        image_embeds=torch.randn(batch, VISUAL, 768, generator=generator),
        text_embeds=[torch.randn(1, words, generator=generator) for _ in range(batch)],
        sample_keys=torch.arange(batch),  # as `encode_images` gives them
        keys=torch.randn(batch, VISUAL, 64, generator=generator),
        cls_projected=torch.randn(batch, 1, 4096, generator=generator),
        projector=lambda tokens: tokens.repeat(1, 1, 4),
        first_layer=RandomFirstLayer.draw(4096, generator, heads=32, head_dim=128),
    )


def state(batch: int, visual: int = VISUAL, words: int = 40) -> DecoderContext:
    """A random decoder state of LLaVA-1.5-7B's sizes."""
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(batch, 32, visual, generator=generator).softmax(-1)
    rows = torch.randn(batch, 32, words, visual, generator=generator).softmax(-1)
    width = 4096
    return DecoderContext(
        2,
        last,
        torch.ones(batch, visual, dtype=torch.bool),
        attention_in=lambda layer: last.roll(layer, dims=-1),
        next_attention=last,
        text_attention=rows,
        text_present=torch.ones(batch, words, dtype=torch.bool),
        hidden=torch.randn(batch, visual, width, generator=generator),
        visual_embeds=torch.randn(batch, visual, width, generator=generator),
        text_embeds=torch.randn(batch, words, width, generator=generator),
        prefix_lengths=torch.full((batch,), 35),
        values=torch.randn(batch, 32, visual, 128, generator=generator),
        text_output=torch.randn(batch, 32, words, 128, generator=generator),
    )


def indices(mask: Tensor) -> list[list[int]]:
    """The kept tokens of each row."""
    return [row.nonzero().squeeze(1).tolist() for row in mask]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=int, default=192)
    parser.add_argument("--only", default="", help="names of methods, separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.only.split(",") if arguments.only else [name for name in fp.METHODS if needs_budget(name)]
    print(f"{VISUAL} visual tokens, budget {arguments.budget}, {arguments.threads} thread(s), milliseconds\n")
    print(f"{'method':32} {'batch':>5} {'ours':>9} {'loop':>9} {'ratio':>7}")
    for name in names:
        for batch in BATCHES:
            for label, ours, loop in cases(name, batch, arguments.budget):
                if loop is None:
                    (seconds,) = fastest(ours)
                    print(f"{label:32} {batch:5d} {1e3 * seconds:9.2f}")
                    continue
                seconds, looped = fastest(ours, loop)
                print(f"{label:32} {batch:5d} {1e3 * seconds:9.2f} {1e3 * looped:9.2f} {looped / seconds:6.1f}x")
    print("\nscoring, share of the exact FLOPs of a dense prefill (32 layers, 4096 wide, 640 tokens)")
    sizes, dense = DecoderSizes(4096, 11008, 4096, 4096), [640] * 32
    for label, layers in {
        "fastv, finepruner: one row of layer 1": [1],
        "pdrop: rows of 4 layers": [1, 7, 15, 23],
    }.items():
        share = prefill_flops(sizes, dense, layers) / prefill_flops(sizes, dense) - 1
        print(f"{label:40} {100 * share:.4f} %")


def cases(name: str, batch: int, budget: int) -> list[tuple[str, Callable[[], object], Callable[[], object] | None]]:
    """What to time of a method: label, ours, and the loop if there is one. Both must choose the same."""
    pruner = build_pruner(name, budget=budget)
    if method_class(name).side == "decoder":
        context, retained = state(batch), pruner.stages(32, VISUAL)[0].retained
        return [(name, lambda: pruner.select(context, retained), None)]
    before, inside = pruner.parts(VISUAL)
    assert before is not None
    vision = encoded(batch, 4096 if before.reads_question in ("embedding", "keywords") else 768)
    if inside is not None:
        left = before.retained(VISUAL)
        context, retained = state(batch, left), inside.stages(32, left)[0].retained
        return [
            (f"{name}: before", lambda: before.reduce(vision), None),
            (f"{name}: inside, first drop", lambda: inside.select(context, retained), None),
        ]
    loops = {"vispruner": vispruner_loop, "divprune": divprune_loop}
    if loop := loops.get(name):
        assert indices(pruner.select_visual(vision)) == loop(vision, budget), f"{name}: the loop chooses otherwise"
        return [(name, lambda: pruner.reduce(vision), lambda: loop(vision, budget))]
    if name != "cdpruner":
        return [(name, lambda: pruner.reduce(vision), None)]
    kernel = conditional_kernel(vision.projected, torch.rand(batch, VISUAL) + 0.01)
    picks = [sorted(row) for row in greedy_map(kernel, budget).tolist()]
    assert picks == greedy_map_loop(kernel, budget), "cdpruner: the loop chooses otherwise"
    return [
        ("cdpruner: greedy MAP", lambda: greedy_map(kernel, budget), lambda: greedy_map_loop(kernel, budget)),
        ("cdpruner: with its kernel", lambda: pruner.reduce(vision), None),
    ]


if __name__ == "__main__":
    main()
