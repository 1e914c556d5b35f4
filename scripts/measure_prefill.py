"""Measure what pruning saves in prefill on a CPU, next to the ratio of exact FLOPs.

    python scripts/measure_prefill.py --model demo --method fastv --budget 64
    python scripts/measure_prefill.py --model random --hidden 1024 --layers 8 --method fastv --budget 192
    python scripts/measure_prefill.py --model demo --method all --budget 280 --pixels --tokens 8

`vanilla` and the methods take turns, so that whatever else the machine does hits all. Given is the CPU time of one
call on one thread, the minimum and the median of `--repeats`; the speed-up is the median of those turn by turn. A call
generates `--tokens` from image features, or with `--pixels` from images, through the vision tower. `all` are the
methods that reach the budget.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.registry import needs_budget

VISUAL = 576
METHODS: dict[str, dict[str, Any]] = {
    **{name: {} for name in fp.METHODS if needs_budget(name) and name != "cdpruner"},
    "cdpruner": {"relevance": "embedding"},
    "finepruner:consensus": {"head_strategy": "consensus"},
    "finepruner:sparsevlm-consensus": {"guide": "sparsevlm", "head_strategy": "consensus"},
}


def main() -> None:
    """Measure and print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "random"), default="demo")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--method", default="fastv", choices=(*fp.METHODS, "all"))
    parser.add_argument("--budget", default="64")
    parser.add_argument("--text", type=int, default=64, help="text tokens around the image")
    parser.add_argument("--tokens", type=int, default=1, help="how many are generated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pixels", action="store_true", help="start from images")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = fp.load_model("demo")[0] if arguments.model == "demo" else random_llava(arguments.hidden, arguments.layers)
    methods = METHODS if arguments.method == "all" else {arguments.method: {}}
    pruners = [fp.build_pruner("vanilla")]
    for method, parameters in methods.items():
        pruner = fp.build_pruner(method.split(":")[0], budget=arguments.budget, **parameters)
        try:
            pruner.schedule(model.config.text_config.num_hidden_layers, VISUAL)
        except FieldError as error:
            print(f"{method}: {error}")
        else:
            pruners.append(pruner)
    inputs = prompt(model, arguments.text, arguments.batch, arguments.pixels)
    seconds: list[list[float]] = [[] for _ in pruners]
    for repeat in range(arguments.repeats + 2):
        for pruner, times in zip(pruners, seconds, strict=True):
            started = time.process_time()
            fp.generate(model, pruner, inputs, max_new_tokens=arguments.tokens, do_sample=False)
            if repeat >= 2:  # the first ones warm up
                times.append(time.process_time() - started)
    report(model, pruners, seconds, arguments.text)


def report(model: LlavaForConditionalGeneration, pruners: list, seconds: list[list[float]], text: int) -> None:
    """Print times, FLOPs and their ratios."""
    config = model.config.text_config
    sizes, layers = DecoderSizes.of(config), config.num_hidden_layers
    print(f"{layers} layers, hidden {config.hidden_size}, {VISUAL} visual and {text} text tokens, one thread")
    dense = 0.0
    for pruner, times in zip(pruners, seconds, strict=True):
        schedule = pruner.schedule(layers, VISUAL)
        flops = prefill_flops(sizes, [text + visual for visual in schedule], pruner.scored_layers(layers, VISUAL))
        dense = dense or flops
        turns = [before / after for before, after in zip(seconds[0], times, strict=True)]
        shown = " ".join(str(value) for value in (pruner.name, pruner.budget or VISUAL, *pruner.parameters().values()))
        print(
            f"{shown[:60]:60} CPU min {1e3 * min(times):8.1f} ms, median {1e3 * statistics.median(times):8.1f} ms; "
            f"{statistics.median(turns):5.2f}x of vanilla ({min(turns):.2f} to {max(turns):.2f}), "
            f"FLOPs of the decoder {dense / flops:5.2f}x"
        )


def prompt(model: LlavaForConditionalGeneration, text: int, batch: int, pixels: bool) -> dict[str, torch.Tensor]:
    """Equal prompts with random words, and random images or image features."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    words = torch.randint(10, min(100, config.text_config.vocab_size - 5), (text,), generator=generator)
    words[words == config.image_token_id] = 9
    image = torch.full((VISUAL,), config.image_token_id)
    ids = torch.cat([words[: text // 2], image, words[text // 2 :]]).repeat(batch, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if pixels:
        side = config.vision_config.image_size
        return inputs | {"pixel_values": torch.randn(batch, 3, side, side, generator=generator)}
    features = torch.randn(batch, VISUAL, config.text_config.hidden_size, generator=generator)
    return inputs | {"image_features": features}


def random_llava(hidden: int, layers: int) -> LlavaForConditionalGeneration:
    """An untrained LLaVA of this width and depth, with Llama's proportions."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        eos_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=999, image_seq_length=VISUAL)
    return LlavaForConditionalGeneration(config).eval()


if __name__ == "__main__":
    main()
