"""How long choosing heads takes, at H = 32 heads and N = 576 visual tokens, beyond the attention rows themselves.

    python benchmarks/heads.py [--threads 1] [--prefill]

Milliseconds, the minimum of repeated runs, batch 1 and 16; `--prefill` also measures the prefill that it serves, of a
random decoder of LLaVA-1.5-7B's depth at an eighth of its width, batch 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from finepruner_lmms.heads import HEAD_STRATEGIES, NORMALISATIONS, best_heads, consensus, head_scores

HEADS, VISUAL = 32, 576


def attention(batch: int) -> Tensor:
    """Post-softmax rows with as much mass on the image as real ones, uneven over tokens and heads."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch, HEADS, VISUAL, generator=generator).mul(1.5).softmax(-1)
    return rows * (0.05 + 0.5 * torch.rand(batch, HEADS, 1, generator=generator))


def milliseconds(run: Callable[[], object], repeats: int = 40) -> float:
    """The fewest of `repeats` runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def prefill() -> float:
    """Milliseconds of a dense prefill of 640 tokens, 32 layers of width 512."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=32, num_attention_heads=8, vocab_size=64
    )
    model, ids = LlamaModel(config).eval(), torch.randint(0, 64, (1, 640))
    with torch.no_grad():
        return milliseconds(lambda: model(ids), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefill", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {batch: attention(batch) for batch in (1, 16)}
    print(f"{HEADS} heads, {VISUAL} visual tokens, {arguments.threads} thread(s), milliseconds\n")
    print(f"{'strategy':32} {'normalise':12} {'batch 1':>9} {'batch 16':>9}")
    for strategy in HEAD_STRATEGIES:
        for normalise in NORMALISATIONS:
            times = [
                milliseconds(lambda a=a, s=strategy, n=normalise: best_heads(head_scores(a, s, 16, n), 16))
                for a in rows.values()
            ]
            print(f"{strategy:32} {normalise:12} {times[0]:9.2f} {times[1]:9.2f}")
    for preset in consensus.PRESETS:
        times = [milliseconds(lambda a=a, p=preset: consensus.select_batch(a, p, 16)) for a in rows.values()]
        print(f"{'consensus ' + preset:45} {times[0]:9.2f} {times[1]:9.2f}")
    if arguments.prefill:
        print(f"\ndense prefill, 32 layers of width 512, 640 tokens, batch 1: {prefill():.0f} ms")


if __name__ == "__main__":
    main()
