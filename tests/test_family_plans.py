"""What a plan and the doctor say of a checkpoint is there for every family: no weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from finepruner_lmms.doctor.readiness import checkpoint_checks
from finepruner_lmms.engine.clip_names import clip_checkpoint
from finepruner_lmms.engine.roofline import CPU, EAGER, Sizes, image_seconds
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.export.tables import cell_rows
from finepruner_lmms.matrix.overview import plan_text
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.study import open_study
from finepruner_lmms.testing.families import FAMILIES
from finepruner_lmms.testing.tiny_checkpoints import write_checkpoint


@pytest.mark.parametrize("which", FAMILIES)
def test_the_time_of_an_image_follows_from_any_configuration(which):
    config = FAMILIES[which].config()
    sizes = Sizes.of(config)
    assert sizes.layers == config.text_config.num_hidden_layers and sizes.tower_layers in (3, 4)
    assert sizes.merged == (4 if which.startswith(("qwen", "internvl")) else 1)
    assert image_seconds(sizes, CPU, EAGER, 2) > image_seconds(sizes, CPU, EAGER, 1) > 0


def test_patches_of_different_tiles_do_not_attend_to_each_other():
    """By hand, for LLaVA-NeXT-7B: 5 tiles of 576 patches of the 24 layers of ViT-L, and a projector of two layers."""
    sizes = Sizes.of(transformers.LlavaNextConfig())
    tokens, width, wide = 2880, 1024, sizes.decoder.hidden
    layer = (tokens + 1) * (4 * width**2 + 2 * width * 4096 + 2 * 577 * width)
    assert sizes.image_flops == 2 * (24 * layer + tokens * (width * wide + wide**2))


@pytest.mark.parametrize("which", ["qwen2_5_vl", "internvl"])
def test_the_doctor_reads_any_family(which, tmp_path: Path):
    folder = write_checkpoint(which, tmp_path)
    first, second = checkpoint_checks(str(folder), "sdpa")
    assert first.status == "ok" and "6 layers, up to " in first.text
    assert second.status == "ok"


def test_a_tower_that_is_no_clip_names_no_clip_checkpoint():
    with pytest.raises(FieldError, match="relevance: 'clip' needs the text tower"):
        clip_checkpoint(FAMILIES["qwen2_5_vl"].config())
    with pytest.raises(FieldError, match="relevance: 'clip' needs the text tower"):
        clip_checkpoint(FAMILIES["internvl"].config())


def test_where_images_differ_no_number_of_tokens_is_made_up(tmp_path: Path):
    write_checkpoint("qwen2_5_vl", tmp_path / "model")
    file = tmp_path / "study.yaml"
    file.write_text(
        f"name: s\nmodel: {{pretrained: {tmp_path / 'model'}, device: cpu}}\ndata: demo\ntasks: [pope]\nlimit: 2\n"
        "methods: [vanilla, {method: divprune, budget: ['25%', 8]}]\n"
    )
    matrix, store, study = open_study(file, tmp_path / "out")
    assert study.images_differ and "up to 16384 visual tokens per image" in plan_text(matrix, store, study)
    store.save_study(study)
    states = store.states(study.cells)
    assert {line.budget for line in leaderboard(store).lines} == {"all", "25%", 8}
    assert [row["tokens"] for row in cell_rows(store, study, states)] == [None, None, 8.0]
