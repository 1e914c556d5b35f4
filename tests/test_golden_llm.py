"""The decoder-side methods compute what their reference implementations compute (recorded on a random Llama)."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import finepruner_lmms as fp

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "llm_s1.json").read_text())
CASES = RECORD["cases"]


@functools.cache
def golden_model() -> tuple[LlavaForConditionalGeneration, dict[str, torch.Tensor]]:
    tensors = load_file(GOLDEN / "llm_s1.safetensors")
    sizes = dict(RECORD["config"])
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    text = LlamaConfig(**sizes, rope_parameters=rope, pad_token_id=0, bos_token_id=1, eos_token_id=None)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=RECORD["image_token_id"])
    ).eval()
    weights = {name.removeprefix("weights."): w.float() for name, w in tensors.items() if name.startswith("weights.")}
    model.lm_head.load_state_dict({"weight": weights.pop("lm_head.weight")})
    model.model.language_model.load_state_dict(weights)
    return model, tensors


def pruner_of(case: dict) -> fp.Pruner:
    parameters = {key: case[key] for key in ("budget", "heads", "head_strategy", "preset") if key in case}
    return fp.build_pruner(case["method"], **parameters)


def test_the_record_holds_the_cases():
    counts = Counter(case["method"] for case in CASES)
    assert counts == {"fastv": 3, "pdrop": 3, "sparsevlm": 3, "finepruner": 27}


@pytest.mark.parametrize("batched", [False, True], ids=["alone", "left-padded"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_equals_reference(case, batched):
    model, tensors = golden_model()
    ids = torch.tensor(RECORD["input_ids"])
    features = tensors["image_features"].float()[None]
    rows = [ids]
    if batched:  # the same prompt behind a shorter one: fewer words before the image and after it
        rows = [torch.cat([ids[20:35], ids[35:611], ids[619:]]), ids]
        features = features.expand(2, -1, -1)
    width = len(ids)
    batch = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    result = fp.generate(
        model,
        pruner_of(case),
        {"input_ids": batch, "attention_mask": mask, "image_features": features},
        max_new_tokens=RECORD["new_tokens"],
        do_sample=False,
        output_logits=True,
    )
    for layer, kept in case.get("kept_visual", {}).items():
        assert result.trace.kept[int(layer)][-1].tolist() == kept
    text = len(ids) - 576
    assert [text + n for n in result.trace.tokens_entering[-1]] == case["tokens_entering_layer"]
    assert result.trace.kv_lengths == case["tokens_entering_layer"]
    assert sum(result.trace.tokens_entering[-1]) / 32 == pytest.approx(case["mean_visual_tokens"])
    assert result.sequences[-1].tolist() == case["greedy_ids"]
    torch.testing.assert_close(
        torch.stack([step[-1] for step in result.logits]),
        tensors[f"{case['key']}.logits"].float(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_schedules_are_those_of_the_methods_papers():
    # R of FastV (K = 2, K = 3) on 32 and 40 layers, at layer averages of 192, 128 and 64
    expected = {(32, 2): (166, 98, 30), (32, 3): (152, 82, 11), (40, 2): (172, 104, 37), (40, 3): (161, 92, 22)}
    for (depth, layer), retained in expected.items():
        for budget, tokens in zip((192, 128, 64), retained, strict=True):
            schedule = fp.build_pruner("fastv", budget=budget, layer=layer).schedule(depth, 576)
            assert schedule == [576] * layer + [tokens] * (depth - layer)
