"""Decoders whose attention is not computed as Llama's are refused: by name for our families, by their parts for all."""

from __future__ import annotations

import pytest
import torch
import transformers

from finepruner_lmms.engine.attention_rows import check_layers
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError
from finepruner_lmms.testing.families import FAMILIES, tiny_model

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PARTS = {
    "Phi3": "has no q_proj",  # fused
    "Olmo2": "has no input_layernorm",  # normalises after, and over all heads
    "Gemma2": "softcapping",
    "Cohere": "a way of its own",  # neighbours are rotated, not halves
    "Phi": "rotates 4 of the 8",
    "SmolLM3": "does not rotate in some layers",
}


def decoder(kind, **more):
    config = getattr(transformers, f"{kind}Config")(**SMALL, **more)
    return transformers.AutoModel.from_config(config)


@pytest.mark.parametrize("kind", PARTS)
def test_a_decoder_that_would_be_computed_wrongly_is_refused_by_its_parts(kind):
    with pytest.raises(FieldError, match=PARTS[kind]):
        check_layers(decoder(kind, **({"head_dim": 8} if kind == "Gemma2" else {})).layers)


def test_norms_over_all_heads_are_refused():
    layers = tiny_model("qwen3_vl").model.language_model.layers
    check_layers(layers)
    layer = decoder("Qwen3", head_dim=8).layers[0]
    layer.self_attn.q_norm.weight = torch.nn.Parameter(torch.ones(32))
    with pytest.raises(FieldError, match="q_norm of its Qwen3DecoderLayer normalises"):
        check_layers([layer])


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_the_decoders_of_our_families_are_not_refused(kind):
    check_layers(decoder(kind).layers)


@pytest.mark.parametrize("kind", ["Phi3", "Olmo2", "Gemma2"])
@pytest.mark.parametrize("which", ["llava", "llava_next", "llava_onevision", "internvl"])
def test_an_unknown_decoder_is_refused_by_name_before_there_are_weights(which, kind):
    config = FAMILIES[which].config()
    config.text_config = getattr(transformers, f"{kind}Config")(**SMALL)
    with pytest.raises(FieldError, match=rf"text_config.model_type: got '{kind.lower()}'"):
        find_family(config.model_type).check(config)


def test_sliding_windows_are_refused():
    config = FAMILIES["llava_next-mistral"].config()
    find_family("llava_next").check(config)
    config.text_config.sliding_window = 32
    with pytest.raises(FieldError, match="full attention in every layer"):
        find_family("llava_next").check(config)
