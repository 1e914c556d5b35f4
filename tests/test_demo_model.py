"""The models in the package: their geometry, their size, and that they answer by what they see."""

from __future__ import annotations

from pathlib import Path

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

import finepruner_lmms as fp
from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.checkpoints.fetch import EMBEDDED
from finepruner_lmms.data.task_folders import folder
from finepruner_lmms.lmms.model import LlavaFinePruner


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_geometry_is_llavas(name):
    model, processor = fp.load_model(name)
    config = model.config
    assert type(model).__module__.startswith("transformers.")
    assert config.image_seq_length == 576 and config.vision_feature_layer == -2
    assert config.text_config.num_hidden_layers == 32 and config.text_config.num_attention_heads == 8
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (336, 14)
    assert processor.tokenizer.padding_side == "left"
    # budgets mean what they mean in LLaVA-1.5-7B
    for budget, retained in ((192, 166), (128, 98), (64, 30)):
        assert fp.build_pruner("fastv", budget=budget).schedule(32, 576) == [576] * 2 + [retained] * 30


@pytest.mark.parametrize(
    ("name", "page", "most"), [("demo", "demo_model.md", 8_000_000), ("demo-hard", "hard_world.md", 16_000_000)]
)
def test_the_weights_are_small_and_need_no_unpickling(name, page, most):
    files = list(EMBEDDED[name].iterdir())
    assert sum(file.stat().st_size for file in files) <= most
    assert [file.suffix for file in files if file.suffix in (".bin", ".pt", ".safetensors")] == [".safetensors"]
    guide = Path(__file__).parents[1] / "docs" / page
    assert f"{fp.load_model(name)[0].num_parameters():,}" in guide.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data", "least"), [("demo", "demo-tuning", 90), ("demo-hard", "demo-hard", 80)])
def test_it_answers_by_what_it_sees(name, data, least):
    lm = LlavaFinePruner(pretrained=name, batch_size=8)
    manager = TaskManager(include_path=str(folder(data)), include_defaults=False, model_name="llava_finepruner")

    def percent(**method) -> float:
        lm.configure(**method)
        task = "fp_vqav2"
        options = {"limit": 24, "log_samples": True, "bootstrap_iters": 0, "datetime_str": "t"}
        out = simple_evaluate(model=lm, tasks=[task], task_manager=manager, **options)
        return BENCHMARKS["vqav2"].percent(out["samples"][task])

    vanilla = percent(method="vanilla")
    assert vanilla >= least
    assert percent(method="random", budget=64) <= vanilla - 10
    assert percent(method="uniform", budget=1) <= 60
