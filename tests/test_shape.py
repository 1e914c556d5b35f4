"""A checkpoint's sizes, read from its config.json without transformers: the same as transformers reads."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PretrainedConfig

from finepruner_lmms.checkpoints import shape
from finepruner_lmms.checkpoints.configuration import read_shape
from finepruner_lmms.checkpoints.fetch import DEMO
from finepruner_lmms.checkpoints.hugging_face import hugging_face_config
from finepruner_lmms.checkpoints.load import read_config
from finepruner_lmms.checkpoints.shape import ModelShape, read_plain
from finepruner_lmms.checkpoints.supported import check_supported
from finepruner_lmms.errors import FieldError

DEMO_CONFIG = json.loads((DEMO / "config.json").read_text())
PUBLISHED = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
    "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "tie_word_embeddings": False,
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
    },
    "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
}  # fmt: skip
"""The config.json of the LLaVA-1.5-7B that is on the hub."""


@pytest.mark.parametrize(
    "kind, table", [(CLIPVisionConfig, shape.VISION), (LlamaConfig, shape.TEXT), (LlavaConfig, shape.WHOLE)]
)
def test_defaults_are_those_of_transformers(kind, table):
    of_all = {f.name for f in dataclasses.fields(PretrainedConfig)}
    theirs = {f.name: f.default for f in dataclasses.fields(kind) if f.name not in of_all}
    parts = {"vision_config", "text_config"}
    assert {name: value for name, value in theirs.items() if name not in parts} == {
        name: default for name, (default, _) in table.items()
    }


def test_the_tower_of_a_config_that_has_none_is_transformers_own():
    tower = LlavaConfig().vision_config
    assert {name: getattr(tower, name) for name in shape.WHOLE_TOWER} == shape.WHOLE_TOWER


def _variants():
    yield "demo", DEMO_CONFIG
    yield "published", PUBLISHED
    yield "nothing but its kind", {"model_type": "llava"}
    yield "every CLS token", DEMO_CONFIG | {"vision_feature_select_strategy": "full"}
    yield "an entry nobody knows", DEMO_CONFIG | {"something": 1}
    for part in ("vision_config", "text_config"):
        yield f"empty {part}", PUBLISHED | {part: {}}
        for config in (DEMO_CONFIG, PUBLISHED):
            for name in config[part]:
                less = copy.deepcopy(config)
                del less[part][name]
                yield f"without {part}.{name}", less
    for name, value in (
        ("hidden_size", 97), ("hidden_size", "many"), ("num_key_value_heads", 2), ("num_key_value_heads", None),
        ("head_dim", 13), ("head_dim", 24), ("head_dim", None), ("vocab_size", 3), ("vocab_size", 205.0),
        ("rms_norm_eps", 1), ("use_cache", 1), ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_theta", 5000), ("rope_parameters", {"rope_type": "linear"}), ("initializer_range", 2.0),
        ("torch_dtype", "int4"), ("eos_token_id", [2, 3]), ("num_attention_heads", True),
        ("layer_types", ["full_attention"]),
    ):  # fmt: skip
        other = copy.deepcopy(DEMO_CONFIG)
        other["text_config"][name] = value
        yield f"text_config.{name} = {value}", other


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in _variants()])
def test_sizes_and_refusals_are_those_of_transformers(raw, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw))

    def told(read):
        try:
            return read(str(tmp_path))
        except FieldError as error:
            return str(error)

    assert told(read_shape) == told(lambda name: ModelShape.of(read_config(name)))


def test_the_checkpoints_that_people_use_need_no_transformers(monkeypatch):
    for raw in (DEMO_CONFIG, PUBLISHED):
        check_supported(raw)
        assert read_plain(raw) == ModelShape.of(hugging_face_config(raw))


@pytest.mark.parametrize(
    "part, name, value, expected",
    [
        ("text_config", "num_hidden_layers", 10**9, "1 to 1,000"),
        ("text_config", "num_hidden_layers", 0, "1 to 1,000"),
        ("text_config", "num_attention_heads", 0, "1 to 1,000"),
        ("text_config", "hidden_size", -96, "1 to 1,000,000"),
        ("vision_config", "num_attention_heads", 0, "1 to 1,000"),
        ("vision_config", "patch_size", 0, "1 to 100,000"),
        ("vision_config", "patch_size", 400, "makes 0 visual tokens of an image; expected 1 to 100,000"),
        ("vision_config", "image_size", 99_999, "visual tokens of an image; expected 1 to 100,000"),
    ],
)
def test_sizes_that_no_model_has_are_refused_at_once(part, name, value, expected, tmp_path):
    raw = copy.deepcopy(DEMO_CONFIG)
    raw[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for read in (read_shape, read_config):
        with pytest.raises(FieldError, match=rf"^pretrained: cannot prune .*: {part}\..*got .*{expected}$"):
            read(str(tmp_path))
