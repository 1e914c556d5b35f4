"""How long each method takes to choose, at LLaVA-1.5-7B's sizes, next to a straightforward loop over the same formula.

    python benchmarks/selection.py [--threads 1] [--budget 192] [--only cdpruner,vispruner] [--repeats 7]

576 visual tokens; vision side: 1024 features, 4096 projected, 16 heads; decoder side: 32 heads, 40 words behind the
image; random numbers, drawn by `testing.samples` as for the checks of every method. A loop goes through images and
steps one after the other, as released code does, in the precision of ours and on the same threads; its choice must be
ours. Given is the minimum of repeated runs, ours and the loop's in turn. The last table is exact: what scoring costs
beside a dense prefill.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import DecoderContext, build_pruner
from finepruner_lmms.pruners.cdpruner import conditional_kernel, greedy_map
from finepruner_lmms.pruners.registry import needs_budget
from finepruner_lmms.testing.samples import Sizes, decoder_context, vision_outputs

BATCHES = (1, 8)


class Model(NamedTuple):
    """What the numbers are random outputs of."""

    visual: int
    layers: int
    words: int
    sizes: Sizes


LLAVA = Model(576, 32, 40, Sizes(1024, 16, 64, 768, 4096, 32, 128))

Run = Callable[[], object]


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


def fastest(runs: Sequence[Run], repeats: int) -> list[float]:
    """The fewest seconds of each of `runs`, which take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in times]


@functools.cache
def encoded(batch: int, by_embedding: bool, model: Model) -> fp.VisionOutputs:
    """Random images, with a question of CLIP's vectors or of the language model's."""
    question = model.sizes.projected if by_embedding else model.sizes.joint
    vision = vision_outputs(batch, model.visual, sizes=model.sizes, question=question)
    return vision.replace(sample_keys=torch.arange(batch))  # as `encode_images` gives them


@functools.cache
def state(batch: int, visual: int, model: Model) -> DecoderContext:
    """A random decoder state."""
    return decoder_context(batch, visual, sizes=model.sizes, words=model.words)


def indices(mask: Tensor) -> list[list[int]]:
    """The kept tokens of each row."""
    return [row.nonzero().squeeze(1).tolist() for row in mask]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=int, default=192)
    parser.add_argument("--only", default="", help="names of methods, separated by commas")
    parser.add_argument("--repeats", type=int, default=7, help="of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.only.split(",") if arguments.only else [name for name in fp.METHODS if needs_budget(name)]
    print(f"{LLAVA.visual} visual tokens, budget {arguments.budget}, {arguments.threads} thread(s), milliseconds\n")
    print(f"{'method':32} {'batch':>5} {'ours':>9} {'loop':>9} {'ratio':>7}")
    for name in names:
        report(name, arguments.budget, arguments.repeats)
    print("\nscoring, share of the exact FLOPs of a dense prefill (32 layers, 4096 wide, 640 tokens)")
    sizes, dense = DecoderSizes(4096, 11008, 4096, 4096), [640] * 32
    for label, layers in {
        "fastv, finepruner: one row of layer 1": [1],
        "pdrop: rows of 4 layers": [1, 7, 15, 23],
    }.items():
        share = prefill_flops(sizes, dense, layers) / prefill_flops(sizes, dense) - 1
        print(f"{label:40} {100 * share:.4f} %")


def report(name: str, budget: int, repeats: int, model: Model = LLAVA) -> None:
    """Print the times of one method, or that it cannot reach the budget."""
    for batch in BATCHES:
        try:
            timed = cases(name, batch, budget, model)
        except FieldError as error:
            if error.field != "budget":
                raise
            print(f"{name}: {error}")
            return
        for label, ours, loop in timed:
            seconds, *looped = fastest([ours] if loop is None else [ours, loop], repeats)
            beside = "".join(f" {1e3 * other:9.2f} {other / seconds:6.1f}x" for other in looped)
            print(f"{label:32} {batch:5d} {1e3 * seconds:9.2f}{beside}", flush=True)


def cases(name: str, batch: int, budget: int, model: Model = LLAVA) -> list[tuple[str, Run, Run | None]]:
    """What to time of a method: label, ours, and the loop if there is one. Both must choose the same."""
    pruner = build_pruner(name, budget=budget)
    pruner.schedule(model.layers, model.visual)  # a budget out of reach is an error here
    before, inside = pruner.parts(model.visual)
    halves: dict[str, Run] = {}
    if before is not None:
        vision = encoded(batch, before.reads_question in ("embedding", "keywords"), model)
        halves["before"] = partial(before.reduce, vision)
    if inside is not None:
        left = model.visual if before is None else before.retained(model.visual)
        context = state(batch, left, model)
        halves["inside, first drop"] = partial(inside.select, context, inside.stages(model.layers, left)[0].retained)
    loops = {"vispruner": vispruner_loop, "divprune": divprune_loop}
    if loop := loops.get(name):
        assert indices(pruner.select_visual(vision)) == loop(vision, budget), f"{name}: the loop chooses otherwise"
        return [(name, halves["before"], partial(loop, vision, budget))]
    if name != "cdpruner":
        return [(f"{name}: {half}" if len(halves) > 1 else name, run, None) for half, run in halves.items()]
    kernel = conditional_kernel(vision.projected, torch.rand(batch, model.visual) + 0.01)
    picks = [sorted(row) for row in greedy_map(kernel, budget).tolist()]
    assert picks == greedy_map_loop(kernel, budget), "cdpruner: the loop chooses otherwise"
    return [
        (
            "cdpruner: greedy MAP",
            partial(greedy_map, kernel, budget),
            partial(greedy_map_loop, kernel, budget),
        ),
        ("cdpruner: with its kernel", halves["before"], None),
    ]


if __name__ == "__main__":
    main()
