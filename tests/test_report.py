"""What a report says, as data, from results written by hand; `test_page.py` looks at it in a browser."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pages import blocks, texts
from studies import cell, method
from studies import study as planned
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Method
from finepruner_lmms.matrix.report.head_choices import agreement, chosen_by_task, selections
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.page.blocks import Block, element
from finepruner_lmms.matrix.report.page.heads import _trend
from finepruner_lmms.matrix.report.page.html import build_report, page
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.run_settings import RunSettings, save_settings
from finepruner_lmms.matrix.sections import MatrixFile
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


def heads_of(store: Store) -> dict:
    (heads,) = main_of(store)["heads"]
    return heads


def provenance_of(store: Store) -> dict:
    (told,) = main_of(store)["provenance"]
    return told


def main_of(store: Store) -> dict:
    return blocks(build_report(store))["main"]


def test_the_page_has_the_numbers_of_the_leaderboard(study):
    data, board = main_of(study), leaderboard(study)
    rows = {row["key"]: row for row in data["rows"]}
    assert list(rows) == [line.key for line in board.lines] and [task["name"] for task in data["tasks"]] == ["gqa"]
    for line in board.lines:
        row = rows[line.key]
        if "gqa" not in line.scores:
            assert row["scores"]["gqa"] == {"state": "missing"} and row["average"] is None
            continue
        shown, score = row["scores"]["gqa"], line.scores["gqa"]
        assert (shown["shown"], shown["error"]) == (score.shown, score.shown_error)
        assert (shown["low"], shown["high"]) == (score.shown_low, score.shown_high)
        assert (shown["questions"], shown["images"]) == (IMAGES, IMAGES) and shown["best"] == ("gqa" in line.best)
        assert row["average"]["low"] == line.average_low and row["tokens"] == line.tokens
        if line.method != "vanilla":
            delta = line.deltas["gqa"]
            assert (
                shown["delta"]["shown"] == delta.difference.value and shown["delta"]["p_adjusted"] == delta.p_adjusted
            )
            assert rows[shown["delta"]["baseline"]]["label"] == delta.baseline


def test_drops_are_paired_differences_to_vanilla(study):
    rows = {row["label"]: row for row in main_of(study)["rows"]}
    drop = rows["fastv 64"]["scores"]["gqa"]["drop"]
    known = next(line for line in leaderboard(study, baseline="vanilla").lines if line.label == "fastv 64")
    found = known.deltas["gqa"].difference
    assert (drop["shown"], drop["low"], drop["high"], drop["lost"]) == (found.value, found.low, found.high, found.lost)
    assert drop["shown"] < -20 and rows[drop["baseline"].partition(":")[2]]["method"] == "vanilla"
    assert rows["vanilla"]["scores"]["gqa"]["drop"] is None


def test_strategies_are_compared_where_rows_differ_in_them(study):
    data = main_of(study)
    labels = {row["key"]: row["label"] for row in data["rows"]}
    (heads,) = data["heads"]
    assert {one["strategy"] for one in heads["study"]} == set(STRATEGIES) and len(heads["study"]) == 12
    assert {one["heads"] for one in heads["study"]} == {"2", "4"} and {one["others"] for one in heads["study"]} == {""}
    ranked = {one["strategy"]: one["shown"] for one in heads["ranking"]}
    assert ranked["sparsity"] > ranked["graph_based"] > ranked["sum"]
    best = [labels[key] for key in heads["best"]]
    assert best == [f"finepruner {budget} head_strategy=sparsity heads=4" for budget in (128, 64)]
    assert "picked on the very questions" in heads["warning"].replace("\n", " ")


def test_the_tuning_split_may_be_picked_on(tmp_path):
    rows = [method("vanilla"), *(method("finepruner", 64, head_strategy=name) for name in STRATEGIES)]
    heads = heads_of(save(Store(tmp_path), rows, [0.9, 0.8, 0.7, 0.6], "demo-tuning"))
    assert len(heads["study"]) == 3 and heads["warning"] is None
    assert not heads["ranking"]  # there is no fastv to compare with


def test_without_heads_there_is_no_head_study(tmp_path):
    heads = heads_of(save(Store(tmp_path), [method("vanilla"), method("fastv", 64)], [0.9, 0.7], "demo"))
    assert heads.pop("of") == "a <study>" and not any(heads.values())


def test_consensus_selections_are_summed_up(study):
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
    (found,) = heads_of(study)["consensus"]
    assert (found["row"], found["selections"], found["tasks"]) == ("fastv 128", 40, ["GQA"])
    assert found["branches"] == {"gap": 30, "high": 10, "low": 0, "fallback": 0}
    assert found["heads"] == [[float(doc), line["n_heads"]] for doc, line in enumerate(lines)]
    values = [line["qualities"]["sum"] for line in lines]
    assert found["qualities"][0]["quartiles"] == pytest.approx(np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))


def test_a_long_trend_is_averaged():
    found = _trend([float(i % 2) for i in range(1000)])
    assert len(found) == 334 and found[0] == [1.0, 1 / 3] and found[-1] == [999.0, 1.0]


def test_heads_alone_are_a_map(tmp_path):
    rows = [method("vanilla")]
    for layer in (2, 5):
        rows += [method("finepruner", 64, head_strategy="fixed", fixed_heads=head, layer=layer) for head in range(4)]
    heads = heads_of(save(Store(tmp_path), rows, [0.9] * len(rows), "demo-tuning"))
    (alone,) = heads["alone"]
    assert alone["tokens"] == 64 and [place[:2] for place in alone["heads"]] == [
        [y, x] for y in (1, 4) for x in range(4)
    ]
    assert not heads["study"]  # named heads are no strategy


def test_choices_are_compared_and_followed_across_tasks(study):
    cells = study.study().cells
    first = {("gqa", 0): [0, 1], ("gqa", 1): [2, 3], ("pope", 0): [0, 3]}
    second = {("gqa", 0): [1, 0], ("gqa", 1): [3, 4], ("mme", 0): [0, 1]}
    table, names = agreement({"a": first, "b": second, "c": {("mme", 5): [1, 2]}})
    assert names == ["a", "b", "c"] and table[0, 1] == table[1, 0] == 0.75 and np.isnan(table[0, 2])
    shares = chosen_by_task({"a": first})
    assert list(shares) == [("a", "gqa"), ("a", "pope")]
    assert shares["a", "gqa"].tolist() == [0.5, 0.5, 0.5, 0.5] and shares["a", "pope"].tolist() == [1, 0, 0, 1]

    def write(number: int, found: dict[tuple[str, int], list[int]]) -> None:
        lines = [{"task": f"fp_{t}", "doc_id": d, "layer": 2, "heads": heads} for (t, d), heads in found.items()]
        (study.cell_dir(cells[number]) / "selections-rank0.jsonl").write_text("\n".join(map(json.dumps, lines)))

    write(3, first)
    write(5, second)
    rows = study.study().rows
    assert rows[3].given["heads"] == rows[7].given["heads"] == 2
    alone = {group["title"]: group for group in heads_of(study)["chosen"]}
    assert set(alone) == {"budget 128, 2 heads", "budget 64, 2 heads"}  # rows of another budget are not compared
    assert all(group["agreement"] is None for group in alone.values())
    write(7, second)
    group = next(one for one in heads_of(study)["chosen"] if one["title"] == "budget 128, 2 heads")
    assert group["agreement"]["table"][0][1] == 0.75 and [one["task"] for one in group["shares"]] == [
        "gqa",
        "pope",
        "gqa",
        "mme",
    ]


def test_provenance_tells_versions_machine_and_what_intervals_cover(study):
    told = provenance_of(study)
    facts = dict(told["facts"])
    assert facts["model"] == "demo" and facts["cells"] == "14 of 15 done" and facts["answers"] == f"{14 * IMAGES}"
    assert "which images were drawn" in main_of(study)["covers"][0] and told["yaml"] == []
    file = MatrixFile(name="mine", model={"pretrained": "demo"}, data="demo", tasks=["gqa"], methods=["vanilla"])
    written = "name: mine\n# why\ntoken: hf_abcdefghijklmnop1234\n"
    save_settings(study.root, RunSettings(file=file, written=written))
    assert provenance_of(study)["yaml"] == [["mine", "name: mine\n# why\n[key]"]]


def test_several_studies_are_one_report(study, tmp_path):
    """Rows side by side and told apart, questions asked of both once, heads and provenance of each by itself."""
    rows = [method("vanilla"), *(method("finepruner", 64, head_strategy=name) for name in STRATEGIES)]
    other = save(Store(tmp_path / "other"), rows, [0.8, 0.7, 0.6, 0.5], "demo")
    page = blocks(build_report(study, other))
    main, names = page["main"], ["a <study> 1", "a <study> 2"]
    assert main["name"] == " + ".join(names)
    assert [row["key"] for row in main["rows"]] == [line.key for line in leaderboard(study, other).lines]
    assert {row["study"] for row in main["rows"]} == set(names)
    assert [one["of"] for one in main["heads"]] == [one["of"] for one in main["provenance"]] == names
    assert [len(one["study"]) for one in main["heads"]] == [12, 3]  # of its own rows, not of both
    assert [dict(one["facts"])["cells"] for one in main["provenance"]] == ["14 of 15 done", "4 of 4 done"]
    (task,) = page["q/index"]["tasks"]
    assert task["questions"] == IMAGES and len(task["rows"]) == 14 + 4
    labels = [row["label"] for row in page["q/index"]["rows"]]
    assert labels[0] == "a <study> 1: vanilla" and labels[-1].startswith("a <study> 2: finepruner")


def test_the_command_takes_several_studies_and_leaves_the_report_of_each(study, tmp_path):
    other = save(Store(tmp_path / "other"), [method("vanilla"), method("fastv", 64)], [0.8, 0.7], "demo")
    own = study.root / "report.html"
    own.write_text("of the first alone")
    done = CliRunner().invoke(app, ["report", str(study.root), str(other.root)])
    assert done.exit_code == 0, done.output
    written = study.root / "report-of-2.html"
    assert done.stdout == f"{written}\n" and own.read_text() == "of the first alone"
    assert "a <study> 2: fastv 64" in texts(written.read_text())
    drawn = CliRunner().invoke(app, ["report", str(study.root), str(other.root), "--figures", str(tmp_path / "drawn")])
    assert drawn.exit_code == 0, drawn.output
    data = (tmp_path / "drawn" / "drop.csv").read_text()
    assert "a <study> 1: fastv 64" in data and "a <study> 2: fastv 64" in data


def test_a_page_loads_nothing_and_its_texts_are_no_markup(study):
    text = build_report(study)
    assert "a &lt;study&gt;" in text and "<study>" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy[1]
    assert "Permission to use, copy" in text  # the licences of what is inside


def test_blocks_hold_any_value_and_end_nothing():
    hostile = {"</script><script>alert(1)</script>": ["\ud800", "\u202e", "</style>", "{{title}}", None, 1e-300]}
    made = element(Block("q/a", hostile)) + element(Block("q/b", bytes(range(256))))
    assert blocks(made) == {"q/a": hostile, "q/b": bytes(range(256))} and made.count("<") == 4
    with pytest.raises(ValueError, match="small letters"):
        Block('"><script>', 1)
    with pytest.raises(ValueError, match="JSON"):
        element(Block("a", float("nan")))
    assert "{{style}}" in page("{{style}}", "", [])  # what is filled in is not filled in again


def test_the_command_writes_a_file(study, tmp_path):
    done = CliRunner().invoke(app, ["report", str(study.root), "--to", str(tmp_path / "deep" / "page.html")])
    assert done.exit_code == 0 and "fastv 64" in texts((tmp_path / "deep" / "page.html").read_text())
    nothing = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert nothing.exit_code == 2
