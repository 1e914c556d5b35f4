"""Measure what pruning saves in prefill, next to the ratio of exact FLOPs.

    python scripts/measure_prefill.py --model demo --method fastv --budget 64
    python scripts/measure_prefill.py --model random --hidden 1024 --layers 8 --method fastv --budget 192

`vanilla` and the method alternate, so that whatever else the machine does hits both. Given is the CPU time of one
prompt's prefill (one token generated, image features given), on one thread: the minimum and the median of `--repeats`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops

VISUAL = 576


def main() -> None:
    """Measure and print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "random"), default="demo")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--method", default="fastv", choices=fp.METHODS)
    parser.add_argument("--budget", default="64")
    parser.add_argument("--text", type=int, default=64, help="text tokens around the image")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = fp.load_model("demo")[0] if arguments.model == "demo" else random_llava(arguments.hidden, arguments.layers)
    pruners = [fp.build_pruner("vanilla"), fp.build_pruner(arguments.method, budget=arguments.budget)]
    inputs = prompt(model, arguments.text)
    seconds: list[list[float]] = [[], []]
    for repeat in range(arguments.repeats + 2):
        for pruner, times in zip(pruners, seconds, strict=True):
            started = time.process_time()
            fp.generate(model, pruner, inputs, max_new_tokens=1, do_sample=False)
            if repeat >= 2:  # the first ones warm up
                times.append(time.process_time() - started)
    report(model, pruners, seconds, arguments.text)


def report(model: LlavaForConditionalGeneration, pruners: list, seconds: list[list[float]], text: int) -> None:
    """Print times, FLOPs and their ratios."""
    config = model.config.text_config
    sizes, layers = DecoderSizes.of(config), config.num_hidden_layers
    print(f"{layers} layers, hidden {config.hidden_size}, {VISUAL} visual and {text} text tokens, one thread")
    flops = []
    for pruner, times in zip(pruners, seconds, strict=True):
        schedule = pruner.schedule(layers, VISUAL)
        scored = [layer for layer in range(layers - 1) if schedule[layer + 1] < schedule[layer]]
        flops.append(prefill_flops(sizes, [text + visual for visual in schedule], scored))
        name = f"{pruner.name} {pruner.budget or VISUAL} (last layer sees {schedule[-1]})"
        print(
            f"{name:36} CPU min {1e3 * min(times):8.1f} ms, median {1e3 * statistics.median(times):8.1f} ms, "
            f"decoder {flops[-1] / 1e9:8.2f} GFLOP"
        )
    fast = min(seconds[0]) / min(seconds[1])
    print(f"measured speed-up {fast:.2f}x; ratio of exact FLOPs {flops[0] / flops[1]:.2f}x")


def prompt(model: LlavaForConditionalGeneration, text: int) -> dict[str, torch.Tensor]:
    """One prompt with random words and random image features."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    words = torch.randint(10, min(100, config.text_config.vocab_size - 5), (text,), generator=generator)
    words[words == config.image_token_id] = 9
    image = torch.full((VISUAL,), config.image_token_id)
    ids = torch.cat([words[: text // 2], image, words[text // 2 :]])[None]
    features = torch.randn(1, VISUAL, config.text_config.hidden_size, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_features": features}


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
