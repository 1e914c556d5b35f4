"""Operation counts, against counting them one matrix at a time, and against what torch counts."""

from __future__ import annotations

import pytest
from conftest import prompts, tiny_llava
from torch.utils.flop_counter import FlopCounterMode

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, cache_bytes, prefill_flops, published_macs


def counted_by_torch(model, pruner, inputs) -> int:
    """FLOPs of the decoder layers alone: all of the model but vision tower, projector and head."""
    counter = FlopCounterMode(display=False)
    with counter:
        fp.generate(model, pruner, inputs, max_new_tokens=1, do_sample=False)
    counts = counter.get_flop_counts()
    return sum(sum(counts[name].values()) for name in counts if name.endswith("language_model"))


@pytest.mark.parametrize("method, budget", [("vanilla", None), ("uniform", 8), ("fastv", 8), ("finepruner", 8)])
def test_the_count_is_torchs_count(method, budget):
    model, inputs = tiny_llava("eager"), prompts((4, 9))
    pruner = fp.build_pruner(method, budget=budget, **({"heads": 4} if method == "finepruner" else {}))
    schedule = pruner.schedule(6, 16)
    scored = pruner.scored_layers(6, 16)
    assert scored == ((1,) if pruner.side == "decoder" else ())
    expected = prefill_flops(DecoderSizes.of(model.config.text_config), [13 + n for n in schedule], scored)
    assert counted_by_torch(model, pruner, inputs) == pytest.approx(expected, rel=2e-3)


def test_published_figures_of_llava():
    """FastV's section 4.2 convention for a 7B: 4nd² + 2n²d + 2ndm a layer."""
    sizes = DecoderSizes(4096, 11008, 4096, 4096)
    one = 4 * 100 * 4096**2 + 2 * 100**2 * 4096 + 2 * 100 * 4096 * 11008
    assert published_macs(sizes, [100] * 3, matrices=2) == 3 * one
    assert cache_bytes(sizes, [600] * 32) == 32 * 2 * 600 * 4096 * 2


def test_scoring_is_cheap_beside_the_prefill():
    """LLaVA-1.5-7B, 576 visual and 64 text tokens: exact count of one row for FastV, four for PDrop."""
    sizes = DecoderSizes(hidden=4096, feed_forward=11008, query_width=4096, key_value_width=4096)
    dense = prefill_flops(sizes, [640] * 32)
    for scored in ([1], [1, 7, 15, 23]):
        assert 0 < prefill_flops(sizes, [640] * 32, scored) - dense < 0.02 * dense
