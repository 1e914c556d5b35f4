"""Checkpoints of every family in transformers' layout: what is read is what was written, or there is no model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from hugging_face import change_json, change_weights
from safetensors import safe_open

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.configuration import check_pruner, read_geometry, read_shape
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.testing.families import family_prompts, tiny_model
from finepruner_lmms.testing.tiny_checkpoints import tiny_processor

NAMES = ["llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in NAMES:
        tiny_model(name).save_pretrained(folder / name)
        tiny_processor(name).save_pretrained(folder / name)
    return folder


@pytest.fixture
def copied(written, tmp_path):
    """A checkpoint to change."""
    return lambda name: Path(shutil.copytree(written / name, tmp_path / name))


def same_weights(model, name: str) -> bool:
    expected = tiny_model(name).state_dict()
    found = model.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def logits(model, name: str, method: str = "fastv", budget: str = "60%"):
    pruner = fp.build_pruner(method, budget=budget)
    inputs = family_prompts(name, (5, "a", 3), (2, "b", 6))
    return torch.stack(fp.generate(model, pruner, inputs, max_new_tokens=2, output_logits=True).logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_in_shards_is_the_model_that_was_written(name, written, tmp_path):
    tiny_model(name).save_pretrained(tmp_path, max_shard_size="100KB")
    tiny_processor(name).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, processor = fp.load_model(str(tmp_path))
    assert same_weights(model, name) and not model.training
    assert processor.tokenizer.padding_side == "left"
    assert same_weights(fp.load_model(str(written / name))[0], name)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(FieldError, match=r"names model-00002-of-\d+.safetensors, not there"):
        fp.load_model(str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_weight_is_named_not_made_up(name, copied):
    folder, taken = copied(name), []

    def take(state) -> None:
        taken.append(next(key for key in sorted(state) if "layers.3" in key and key.endswith("q_proj.weight")))
        del state[taken[0]]

    change_weights(folder, take)
    with pytest.raises(FieldError, match=r"^pretrained: cannot load .*layers\.3\.self_attn\.q_proj\.weight"):
        fp.load_model(str(folder))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_a_tied_head_is_the_embedding(name, tmp_path):
    import copy

    import transformers

    config = copy.deepcopy(tiny_model(name).config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(0)
    tied = transformers.AutoModelForImageTextToText.from_config(config)
    tied.save_pretrained(tmp_path)
    tiny_processor(name).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not any("lm_head" in key for key in file.keys())  # noqa: SIM118 (not a dict)
    model, _ = fp.load_model(str(tmp_path))
    assert torch.equal(model.get_output_embeddings().weight, tied.get_input_embeddings().weight)


@pytest.mark.parametrize("name", NAMES)
def test_type_and_attention_are_those_asked_for(name, written):
    model, _ = fp.load_model(str(written / name), dtype="bfloat16", attn_implementation="eager")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize("name", NAMES)
def test_layers_spread_by_device_map_answer_as_on_one_device(name, written):
    model, _ = fp.load_model(str(written / name), device_map="auto")
    assert torch.equal(logits(model, name), logits(tiny_model(name), name))


# transformers itself reads the newline past the module whose call would fetch its weights
_ON_META = pytest.mark.xfail(raises=(NotImplementedError, RuntimeError), strict=True, reason="weights still on meta")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("qwen2_5_vl", "fastv"),
        ("qwen3_vl", "fastv"),
        ("internvl", "fastv"),
        ("internvl", "divprune"),
        pytest.param("llava_next", "fastv", marks=_ON_META),
        pytest.param("llava_next", "divprune", marks=_ON_META),
        pytest.param("llava_onevision", "fastv", marks=_ON_META),
        pytest.param("llava_onevision", "divprune", marks=_ON_META),
        ("qwen2_5_vl", "divprune"),
        ("qwen3_vl", "divprune"),
    ],
)
def test_weights_that_wait_elsewhere_answer_the_same(name, method, written):
    """Parameters are on no device between calls: nothing may ask one where its layer is."""
    model = cpu_offload(fp.load_model(str(written / name))[0], execution_device="cpu")
    assert next(model.parameters()).is_meta
    assert torch.equal(logits(model, name, method), logits(tiny_model(name), name, method))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device_map": "balancd"}, "^device_map: "),
        ({"device_map": "auto", "device": "cpu"}, "^device_map: got 'auto' with device='cpu'"),
    ],
)
def test_a_device_map_that_cannot_be_is_refused(options, problem, written):
    with pytest.raises(FieldError, match=problem):
        fp.load_model(str(written / "internvl"), **options)


def test_a_quantized_checkpoint_without_its_library_is_one_clear_error(copied, monkeypatch):
    folder = copied("qwen2_5_vl")
    asked = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    change_json(folder / "config.json", lambda config: config.update(quantization_config=asked))
    monkeypatch.setattr(
        "transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda: False, raising=False
    )
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(FieldError, match=r"^pretrained: cannot load .*bitsandbytes") as raised:
        fp.load_model(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "part", "problem"),
    [
        ("llava_next", "text_config", "text_config.model_type: got 'phi3'; LLaVA-NeXT is supported with"),
        ("llava_onevision", "vision_config", "vision_config.model_type: got 'phi3'; LLaVA-OneVision is supported with"),
        ("internvl", "text_config", "text_config.model_type: got 'phi3'; InternVL3 is supported with"),
        ("qwen3_vl", None, "model_type: got 'phi3'; can be pruned: "),
    ],
)
def test_an_unknown_part_is_refused_by_name_before_transformers_is_loaded(name, part, problem, copied):
    folder = copied(name)
    file = folder / "config.json"
    change_json(file, lambda config: (config[part] if part else config).update(model_type="phi3"))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    asks = (
        "import sys\nfrom finepruner_lmms.checkpoints.configuration import read_shape\n"
        "try:\n    read_shape(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "print('transformers' in sys.modules, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", asks, folder], capture_output=True, text=True, timeout=120, check=True)
    said, loaded = ran.stdout.splitlines()
    assert problem in said and loaded == "False False"
    with pytest.raises(FieldError, match="got 'phi3'"):
        fp.load_model(str(folder))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_what_a_pruner_asks_are_read_without_weights(name, written, tmp_path):
    shutil.copy(written / name / "config.json", tmp_path / "config.json")
    assert (
        read_geometry(str(tmp_path))[0]
        == json.loads((tmp_path / "config.json").read_text())["text_config"]["num_hidden_layers"]
    )
    shape = read_shape(str(tmp_path))
    check_pruner(fp.build_pruner("fastv", budget=3), shape)
    with pytest.raises(ValueError, match="heads"):
        check_pruner(fp.build_pruner("finepruner", budget=3, heads=1000), shape)


def test_a_study_that_spreads_its_model_takes_one_process(tmp_path):
    file = tmp_path / "study.yaml"
    text = "name: s\nmodel: {pretrained: demo, device_map: auto}\ndata: demo\ntasks: [pope]\nmethods: [vanilla]\n"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"launch.processes: got 'auto', but with model.device_map one process"):
        load_matrix(file)
    file.write_text(text + "launch: {processes: 1}\n")
    assert load_matrix(file).file.model.device_map == "auto"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device_map": "balanced"}, "device_map: got 'balanced'"),
        ({"device_map": "auto", "device": "cpu"}, "device_map: got 'auto' with device='cpu'"),
    ],
)
def test_model_args_say_once_where_weights_go(given, said):
    with pytest.raises(ValueError, match=said):
        ModelArguments.parse({"pretrained": "demo", **given})
