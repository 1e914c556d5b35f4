"""The HTML report, from results written by hand."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from studies import cell, method
from studies import study as planned
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Method
from finepruner_lmms.matrix.report.head_report import agreement, chosen_by_task, selections
from finepruner_lmms.matrix.report.page.html import build_report
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store

STRATEGIES, IMAGES = {"sparsity": 0.9, "sum": 0.5, "graph_based": 0.7}, 60


def save(store: Store, rows: list[Method], shares: list[float | None], data: str) -> Store:
    cells = []
    assert len(rows) == len(shares)
    for number, share in enumerate(shares):
        cells.append(cell(f"c{number}", "gqa", number, rows[number], data=data, limit=IMAGES))
        if share is None:
            continue
        right = np.random.default_rng(0).random(IMAGES) < share
        about = {"target": "a", "answer": "b"}
        samples = [{"doc_id": i, "image": f"i{i}", **about, "score": float(hit)} for i, hit in enumerate(right)]
        result = {"id": f"c{number}", "metrics": {"exact_match,none": right.mean()}, "percent": 100 * right.mean()}
        result |= {"standard_error": 2.0, "answered": IMAGES, "expected": IMAGES, "seconds": 1, "spec": {"task": "gqa"}}
        begin_attempt(store.cell_dir(cells[-1]), "1")
        write_result(store.cell_dir(cells[-1]), result, samples)
    store.save_study(planned(rows, cells, name="a <study>"))
    return store


@pytest.fixture
def study(tmp_path) -> Store:
    rows, shares = [method("vanilla"), method("fastv", 128), method("fastv", 64)], [0.95, 0.75, 0.6]
    for strategy, share in STRATEGIES.items():
        for budget in (128, 64):
            for heads in (2, 4):
                rows.append(method("finepruner", budget, head_strategy=strategy, heads=heads))
                shares.append(share - 0.1 * (budget == 64) + 0.02 * (heads == 4))
    shares[-1] = None  # not done yet
    return save(Store(tmp_path), rows, shares, "demo")


def pictures(page: str) -> dict[str, Image.Image]:
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', page)
    return {text: Image.open(io.BytesIO(base64.b64decode(data))) for text, data in found}


def test_a_head_study_is_drawn(study):
    page = build_report(study)
    drawn = pictures(page)
    for title in ("GQA", "average of all tasks"):
        assert {f"Heat map of {title}", f"Lines of {title}", f"Box plot of {title}"} <= set(drawn)
    assert "Ranking of the strategies with 95 % intervals" in drawn
    for image in drawn.values():
        assert len(image.convert("L").getcolors(1 << 16)) > 10  # something is on it
    assert "picked on the very questions" in page.replace("\n", " ")
    best = page[page.index("Best configurations") :]
    assert best.count("sparsity") == 2 and "graph_based" not in best  # one per budget
    assert "a &lt;study&gt;" in page and "<study>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is loaded from elsewhere


def test_the_tuning_split_may_be_picked_on(tmp_path):
    rows = [method("vanilla"), *(method("finepruner", 64, head_strategy=name) for name in STRATEGIES)]
    page = build_report(save(Store(tmp_path), rows, [0.9, 0.8, 0.7, 0.6], "demo-tuning"))
    assert "Heat map of GQA" in page and "picked on the very" not in page
    assert "Ranking" not in page  # there is no fastv to compare with


def test_without_heads_there_is_no_head_study(tmp_path):
    page = build_report(save(Store(tmp_path), [method("vanilla"), method("fastv", 64)], [0.9, 0.7], "demo"))
    assert "Head strategies" not in page and not pictures(page)


def test_consensus_selections_are_drawn(study):
    cells = study.study().cells
    rng = np.random.default_rng(0)
    lines = [
        {
            "task": "fp_gqa", "doc_id": doc, "layer": 2, "qualities": {"sum": rng.random(), "sparsity": rng.random()},
            "complexity": rng.random(), "n_heads": int(rng.integers(1, 8)), "share_diversity": rng.random(),
            "branch": "high" if doc % 4 == 0 else "gap",
        }
        for doc in range(40)
    ]  # fmt: skip
    folder = study.cell_dir(cells[1])
    (folder / "selections-rank0.jsonl").write_text("\n".join(map(json.dumps, [lines[0] | {"n_heads": 99}, *lines])))
    assert [entry["n_heads"] for entry in selections(study, study.study(), 1)] == [line["n_heads"] for line in lines]
    page = build_report(study)
    assert "Consensus selection: fastv 128" in page and "gap 75 %, high 25 %" in page
    assert {"Complexity over the samples", "Number of heads over the samples"} <= set(pictures(page))


def test_heads_alone_are_a_map(tmp_path):
    rows = [method("vanilla")]
    for layer in (2, 5):
        rows += [method("finepruner", 64, head_strategy="fixed", fixed_heads=head, layer=layer) for head in range(4)]
    page = build_report(save(Store(tmp_path), rows, [0.9] * len(rows), "demo-tuning"))
    assert "Score with each head alone as the guide, 64 tokens" in pictures(page)
    assert "Heat map of GQA" not in page  # named heads are no strategy


def test_choices_are_compared_and_followed_across_tasks(study):
    cells = study.study().cells
    first = {("fp_gqa", 0): [0, 1], ("fp_gqa", 1): [2, 3], ("fp_pope", 0): [0, 3]}
    second = {("fp_gqa", 0): [1, 0], ("fp_gqa", 1): [3, 4], ("fp_mme", 0): [0, 1]}
    table, names = agreement({"a": first, "b": second, "c": {("fp_mme", 5): [1, 2]}})
    assert names == ["a", "b", "c"] and table[0, 1] == table[1, 0] == 0.75 and np.isnan(table[0, 2])
    shares = chosen_by_task({"a": first})
    assert list(shares) == ["a · gqa", "a · pope"]
    assert shares["a · gqa"].tolist() == [0.5, 0.5, 0.5, 0.5] and shares["a · pope"].tolist() == [1, 0, 0, 1]
    for number, found in ((3, first), (5, second)):
        lines = [{"task": t, "doc_id": d, "layer": 2, "heads": heads} for (t, d), heads in found.items()]
        folder = study.cell_dir(cells[number])
        (folder / "selections-rank0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = study.study().rows
    assert rows[3].given["heads"] == rows[7].given["heads"] == 2
    drawn = pictures(build_report(study))
    # rows of another number of heads or budget are not compared
    assert "Share of heads in common, budget 128, 2 heads" not in drawn
    assert "How often each head is chosen, budget 128, 2 heads" in drawn
    lines = [{"task": t, "doc_id": d, "layer": 2, "heads": heads} for (t, d), heads in second.items()]
    (study.cell_dir(cells[7]) / "selections-rank0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "Share of heads in common, budget 128, 2 heads" in pictures(build_report(study))


def test_the_command_writes_a_file(study, tmp_path):
    done = CliRunner().invoke(app, ["report", str(study.root), "--to", str(tmp_path / "deep" / "page.html")])
    assert done.exit_code == 0 and (tmp_path / "deep" / "page.html").read_text().startswith("<!doctype html>")
    nothing = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert nothing.exit_code == 2
