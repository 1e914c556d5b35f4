"""The studies of configs/llava15: planned without the checkpoints, at equal layer averages, alike for both sizes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from transformers import LlavaConfig
from typer.testing import CliRunner

from finepruner_lmms.bench.shapes import SHAPES
from finepruner_lmms.budget import parse_budget
from finepruner_lmms.checkpoints.configuration import planned_shape, read_shape
from finepruner_lmms.checkpoints.released import RELEASED
from finepruner_lmms.checkpoints.shape import ModelShape
from finepruner_lmms.cli import app
from finepruner_lmms.engine.roofline import EAGER, H100, Sizes
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.cell_time import Asked, Launched, cell_parts
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.sensitivity import Sensitivity, of_average, of_family
from finepruner_lmms.matrix.time_range import LEAST, MOST, time_range, together_seconds
from finepruner_lmms.matrix.yaml_places import ConfigError
from finepruner_lmms.statistics.power import detectable

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs/llava15").glob("*.yaml"))
STAGED = ("pdrop", "sparsevlm")
STUDIES = ("budgets", "heads", "methods", "scoring_layers")

sys.path.insert(0, str(ROOT / "scripts"))
import llava15_plan  # noqa: E402
from time_model import LLAVA_7B, fast_points, points, schedule  # noqa: E402


@pytest.fixture
def unreachable(monkeypatch):
    """No checkpoint can be fetched."""

    def fetch(name, file):
        raise FieldError(file, f"cannot fetch it from {name!r}", value=name)

    monkeypatch.setattr("finepruner_lmms.checkpoints.configuration.fetch_file", fetch)


def test_each_study_is_there_for_both_sizes():
    assert [file.stem for file in CONFIGS] == sorted([*STUDIES, *(f"{name}_13b" for name in STUDIES)])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_row_has_the_layer_average_that_its_budget_says(unreachable, file):
    """But for what whole tokens leave over: half a token, or 2 % where several stages have a fixed ratio."""
    matrix = load_matrix(file, planning=True)
    layers, tokens = matrix.num_layers, matrix.num_visual_tokens
    assert (layers, tokens) == ((40, 576) if file.stem.endswith("_13b") else (32, 576))
    for row in matrix.rows:
        if row.pruner.budget is not None and row.pruner.name != "downsample":  # whose grids are squares
            average = sum(row.pruner.schedule(layers, tokens)) / layers
            asked = float(parse_budget(row.pruner.budget).tokens(tokens))
            assert average == pytest.approx(asked, abs=0.02 * asked if row.pruner.name in STAGED else 0.5), row
    assert matrix.rows[0].pruner.name == "vanilla"
    assert {dict(row.given).get("seed") for row in matrix.rows if row.pruner.name == "random"} >= {0, 1, 2}


@pytest.mark.parametrize("name", STUDIES)
def test_both_sizes_are_asked_the_same(name):
    """But for heads, counted as shares of 32 and 40, the layers, and lists of heads that exist for 7B alone."""
    small, large = (yaml.safe_load((ROOT / f"configs/llava15/{name}{end}.yaml").read_text()) for end in ("", "_13b"))
    assert small["tasks"] == large["tasks"] and small["launch"] == large["launch"]
    assert (small["model"]["pretrained"], large["model"]["pretrained"]) == tuple(RELEASED)

    def methods(study: dict) -> set[str]:
        rows = [row for row in study["methods"] if isinstance(row, dict) and "profile" not in row]
        return {f"{row['method']} {row.get('head_strategy')}" for row in rows}

    assert methods(small) == methods(large)


def test_known_sizes_are_those_of_transformers_and_only_a_plan_takes_them(unreachable):
    for pretrained, raw in RELEASED.items():
        shape, released = planned_shape(pretrained)
        assert released and shape == ModelShape.of(LlavaConfig(**{k: v for k, v in raw.items() if k != "torch_dtype"}))
        with pytest.raises(FieldError, match="cannot fetch it"):
            read_shape(pretrained)
    for size in ("7b", "13b"):  # and what `bench --like` measures
        assert Sizes.of(planned_shape(f"llava-hf/llava-1.5-{size}-hf")[0]) == Sizes.of(
            SHAPES[f"llava-1.5-{size}"].config()
        )
    with pytest.raises(ConfigError, match="cannot fetch it"):
        load_matrix(CONFIGS[0])
    with pytest.raises(FieldError, match="cannot fetch it"):
        planned_shape("somebody/else")


def test_plan_says_hours_with_a_range_and_what_can_be_found(unreachable, tmp_path):
    file = ROOT / "configs/llava15/scoring_layers.yaml"
    shown = CliRunner().invoke(app, ["plan", str(file), "--output", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    hours = float(re.search(r"GPUs, ([\d.]+) GPU-hours \(an estimate for NVIDIA H100", shown.output)[1])
    assert "sizes as released, since config.json cannot be fetched" in shown.output
    low, high = map(float, re.search(r"^range: ([\d.]+) to ([\d.]+) GPU-hours", shown.output, re.M).groups())
    one = float(re.search(r"^on one GPU: about ([\d.]+) hours", shown.output, re.M)[1])
    assert low < hours < high and one == pytest.approx(hours, rel=0.1)  # eight wait for each other
    assert re.search(r"^ +POPE +MME +TextVQA +GQA +average$", shown.output, re.M)
    assert re.search(r"^after Holm's correction over 54 rows: 1\.4\d times as large$", shown.output, re.M)


def test_the_range_is_as_wide_as_the_model_of_time_was_wrong():
    """At batches of 8 and more; single questions wait for the host, and studies do not ask them."""
    off = [point.measured / point.predicted() for point in (*points(), *fast_points())
           if point.unit == "ms" and re.search(r"batch (8|16|32)", point.what)]  # fmt: skip
    assert pytest.approx(min(off), abs=0.005) == LEAST.value and pytest.approx(max(off), abs=0.01) == MOST.value


def test_cells_together_take_less_than_alone_and_one_alone_as_much():
    how = Launched(1)
    vanilla, fastv = Asked("pope", schedule("vanilla")), Asked("pope", schedule("fastv 64"))
    alone = {one: cell_parts(LLAVA_7B, one, how).total for one in (vanilla, fastv)}
    assert together_seconds(LLAVA_7B, [fastv], how) == pytest.approx(alone[fastv])
    both = together_seconds(LLAVA_7B, [vanilla, fastv], how)
    assert alone[vanilla] < both < sum(alone.values())
    assert time_range(LLAVA_7B, [vanilla, fastv], how, together=False) == (LEAST.value, MOST.value)
    low, high = time_range(LLAVA_7B, [vanilla, fastv], how, together=True)
    assert low == pytest.approx(LEAST.value * both / sum(alone.values())) and high == MOST.value
    # the two layers before FastV's drop are vanilla's too; what follows is its own
    twice = together_seconds(LLAVA_7B, [fastv, fastv], Launched(1, machine=H100, execution=EAGER))
    assert twice < 2 * together_seconds(LLAVA_7B, [fastv], Launched(1, machine=H100, execution=EAGER))


def test_the_average_finds_less_than_its_tasks_and_languages_err_together():
    alone = Sensitivity("gqa", 1000, 2.0)
    assert of_average([alone, Sensitivity("pope", 1000, 2.0)]) == pytest.approx(2 / 2**0.5)
    assert of_average([Sensitivity("mmbench", 1000, 2.0), Sensitivity("mmbench_cn", 1000, 2.0)]) == pytest.approx(2.0)
    assert of_average([alone, Sensitivity("mme", 1000, 40.0, per_percent=20.0)]) == pytest.approx(2 / 2**0.5)
    assert of_family(1) == pytest.approx(1.0)
    # the first step of Holm's asks for 5 % divided by the rows
    assert of_family(10) == pytest.approx((2.807 + 0.8416) / (1.96 + 0.8416), abs=0.001)
    assert detectable(1000, 0.05) * of_family(100) == pytest.approx(
        100 * (3.4808 + 0.8416) * (0.05 / 1000) ** 0.5, rel=1e-3
    )


def test_the_page_shows_what_plan_says(unreachable):
    page = (ROOT / "docs/llava15.md").read_text()
    for table in (llava15_plan.costs, llava15_plan.found):
        assert table() in page, f"docs/llava15.md: the table of {table.__name__}: python scripts/llava15_plan.py"
