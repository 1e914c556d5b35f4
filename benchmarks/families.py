"""What a pruned prefill takes on each model family, against the same model unpruned, next to its operations.

    python benchmarks/families.py                       # about three minutes on two CPU cores
    python benchmarks/families.py --families qwen3_vl --rounds 15

Models are random, eight layers of width 512, with about 576 visual tokens and 40 of text; a prefill goes from pixels to
the first token. Methods and the unpruned model take turns, and a row's figure is the median of the paired ratios with
their quartiles. *Promised* counts the decoder's operations alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.engine.families.registry import family_of, find_family
from finepruner_lmms.testing.families import END, FAMILIES, IMAGE, START, WORDS

TEXT = 40
METHODS: dict[str, dict[str, Any]] = {"fastv": {}, "sparsevlm": {}, "divprune": {}}
_DECODER: dict[str, int] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
# a tower that takes little, with patches enough
_TOWERS: dict[str, dict[str, Any]] = {
    "llava": {"image_size": 96},
    "llava_next": {"image_size": 56},
    "llava_onevision": {"image_size": 56},
    "qwen2_5_vl": {"out_hidden_size": 512, "window_size": 16},
    "qwen3_vl": {"out_hidden_size": 512, "num_position_embeddings": 2304},
    "internvl": {"image_size": [96, 96]},
}


def wide_model(which: str) -> Any:
    """A random model of a family, as wide as above."""
    config = FAMILIES[which].config()
    for name, value in _DECODER.items():
        if hasattr(config.text_config, name):
            setattr(config.text_config, name, value)
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = ["full_attention"] * _DECODER["num_hidden_layers"]
    if (rope := config.text_config.rope_parameters or {}).get("mrope_section"):
        config.text_config.rope_parameters = rope | {"mrope_section": [16, 8, 8]}
    for name, value in _TOWERS[which].items():
        setattr(config.vision_config, name, value)
    if hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [[56, 112], [112, 56]]
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(config).eval()


def pictures(which: str) -> dict[str, Any]:
    """One picture, as the family's processor would give it."""
    if which == "llava":
        return {"pixel_values": torch.randn(1, 3, 96, 96)}
    if which == "internvl":
        return {"pixel_values": torch.randn(4, 3, 96, 96)}
    if which.startswith("qwen"):
        grid = torch.tensor([[1, 48, 48]])
        return {"pixel_values": torch.randn(48 * 48, 3 * 2 * 2 * 2), "image_grid_thw": grid}
    return {"pixel_values": torch.randn(1, 3, 3, 56, 56), "image_sizes": torch.tensor([[56, 112]])}


@torch.no_grad()
def prompt(model: Any, which: str) -> dict[str, Any]:
    """Text, the picture, and text."""
    given = pictures(which)
    found = model.model.get_image_features(**given, return_dict=True).pooler_output
    count = sum(len(tokens) for tokens in found)
    words = torch.randint(2, WORDS, (TEXT,))
    parts = [words[:10], torch.tensor([START]), torch.full((count,), IMAGE), torch.tensor([END]), words[10:]]
    ids = torch.cat(parts)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in find_family(which).passes:
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs | given


def seconds(run: Callable[[], Any]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(which: str, budget: str, rounds: int) -> list[str]:
    """The rows of one family."""
    model = wide_model(which)
    inputs = prompt(model, which)
    sizes = DecoderSizes.of(model.config.text_config)
    pruners = {"vanilla": fp.build_pruner("vanilla")}
    pruners |= {name: fp.build_pruner(name, budget=budget, **METHODS[name]) for name in METHODS}
    lengths = {}
    for name, pruner in pruners.items():  # also warms up
        found = fp.generate(model, pruner, inputs, max_new_tokens=1, do_sample=False)
        lengths[name] = found.trace.kv_lengths
    taken: dict[str, list[float]] = {name: [] for name in pruners}
    for _ in range(rounds):
        for name, pruner in pruners.items():
            taken[name].append(
                seconds(lambda pruner=pruner: fp.generate(model, pruner, inputs, max_new_tokens=1, do_sample=False))
            )
    rows = []
    for name in METHODS:
        ratios = [whole / pruned for whole, pruned in zip(taken["vanilla"], taken[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        promised = prefill_flops(sizes, lengths["vanilla"]) / prefill_flops(sizes, lengths[name])
        rows.append(
            f"| {family_of(model).title} | {lengths['vanilla'][0]} → {lengths[name][-1]} | {name} "
            f"| {statistics.median(taken['vanilla']) * 1e3:.0f} | {statistics.median(taken[name]) * 1e3:.0f} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {promised:.2f} |"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(_TOWERS), choices=list(_TOWERS))
    parser.add_argument("--budget", default="40%", help="share of the visual tokens (default 40%%)")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    print("| family | tokens, first → last layer | method | vanilla, ms | pruned, ms | times faster | promised |")
    print("|---|---|---|--:|--:|--:|--:|")
    for which in given.families:
        print("\n".join(compare(which, given.budget, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
