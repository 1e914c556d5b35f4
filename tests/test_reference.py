"""Published numbers beside ours: what compares with what, what counts as reproduced, and what never does."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from studies import cell, method, study
from typer.testing import CliRunner

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.commands.app import app
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Method
from finepruner_lmms.matrix.report.leaderboard import Leaderboard, leaderboard
from finepruner_lmms.matrix.report.reference import rules
from finepruner_lmms.matrix.report.reference.comparison import Literature, literature
from finepruner_lmms.matrix.report.reference.records import citations, published
from finepruner_lmms.matrix.report.reference.tables import FORMATS, render_literature, summary
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store

NAME = "llava-hf/llava-1.5-7b-hf"
TASKS = ("gqa", "sqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn")
# what each row of the made-up folder has its numbers from, as the collection says what to compare with
CHOSEN = [
    (method("vanilla"), "llava-official", "vanilla", 576),
    (method("fastv", 192), "restore-t1", "fastv", 192),
    (method("pdrop", 192), "restore-t1", "pdrop", 192),
    (method("fastv", 128), "tops-t11", "fastv", 128),
    (method("pdrop", 128), "eadp-t1", "pdrop", 128),
    (method("sparsevlm", 128), "tops-t11", "sparsevlm", 128),
    (method("visionzip", 128), "tops-t11", "visionzip", 128),
    (method("divprune", 64), "coreprune-t1", "divprune", 64),
    (method("cdpruner", 64), "coreprune-t1", "cdpruner", 64),
    (method("vispruner", 64), "agilepruner-t7", "vispruner", 64),
]
Numbers = Mapping[tuple[int, str], float]


def numbers_of(source: str, name: str, budget: int) -> dict[str, float]:
    """Task → the published score of a row."""
    own = [r for r in published() if (r.source, r.method, r.budget) == (source, name, budget)]
    found = {task: rules.same_quantity(task, own) for task in TASKS}
    return {task: record.value for task, record in found.items() if record is not None}


def made_up() -> dict[tuple[int, str], float]:
    rows = enumerate(CHOSEN)
    return {(row, task): value for row, (_, *key) in rows for task, value in numbers_of(*key).items()}


def write(root: Path, rows: list[Method], numbers: Numbers, model: str = NAME, layers: int = 32) -> Store:
    """A folder with these scores, in the field's unit."""
    store, cells = Store(root), []
    for (row, task), value in numbers.items():
        benchmark = BENCHMARKS[task]
        cells.append(cell(f"{task}{row}", task, row, rows[row], data="hub"))
        share = value / benchmark.factor
        full = {"mme": 2000.0, "mmbench": 100.0, "mmbench_cn": 100.0, "mmvet": 100.0}.get(task, 1.0)
        result = {"id": cells[-1].id, "metrics": {benchmark.metric: share}, "percent": 100 * share / full}
        result |= {"standard_error": 0.4, "answered": 9000, "expected": 9000, "seconds": 1, "spec": {"task": task}}
        folder = store.cell_dir(cells[-1])
        begin_attempt(folder, "1")
        write_result(folder, result, [])
    store.save_study(study(rows, cells, num_layers=layers).model_copy(update={"model": model}))
    return store


def held(store: Store, source: str | None = None) -> Literature:
    return literature(leaderboard(store), [store], source)


ROWS = [row for row, *_ in CHOSEN]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write(tmp_path_factory.mktemp("published"), ROWS, made_up())


def test_a_folder_with_the_published_numbers_is_reproduced_in_every_cell(store):
    found = held(store)
    judged = {row.line.method + str(row.line.budget): row for row in found.rows if row.judged}
    assert len(judged) == len(CHOSEN)
    for chosen, source, *_ in CHOSEN:
        row = judged[chosen.method + str(chosen.budget or 576)]
        assert row.source == source and not row.outside and all(abs(cell.difference) < 1e-9 for cell in row.compared)
    cells = sum(len(row.compared) for row in judged.values())
    assert cells > 55 and summary(found) == [f"Every cell reproduced: {cells} of {cells}, in 10 rows."]


@pytest.mark.parametrize(
    "row, task", [(0, "gqa"), (0, "sqa"), (1, "pope"), (3, "textvqa"), (5, "mmbench"), (8, "sqa"), (9, "gqa")]
)
@pytest.mark.parametrize("step", [2.0, -2.0])
def test_two_points_more_or_less_in_one_cell_mark_exactly_that_one(store, row, task, step):
    board = changed(leaderboard(store), ROWS[row], task, step)
    found = literature(board, [store])
    marked = [
        (row.line.method, cell.task, round(cell.difference, 6))
        for row in found.rows
        if row.judged
        for cell in row.outside
    ]
    assert marked == [(ROWS[row].method, task, step)]
    text = render_literature(board, found, "text")
    table, _, said = text.partition("Reproduced: ")
    assert table.count("!") == 1 and f"{step:+.1f}) !" in table and said.count("\n! ") == 1


def changed(board: Leaderboard, row: Method, task: str, step: float) -> Leaderboard:
    """The same leaderboard but for one score; the same where the row has none."""
    lines = list(board.lines)
    for place, line in enumerate(lines):
        if (line.method, line.tokens) == (row.method, row.budget or 576) and task in line.scores:
            score = line.scores[task]
            scores = {**line.scores, task: replace(score, shown=score.shown + step)}
            lines[place] = replace(line, scores=scores)
    return replace(board, lines=tuple(lines))


PLAIN = ("vanilla", "fastv", "pdrop", "sparsevlm", "vispruner", "cdpruner", "divprune", "visionzip")


@pytest.mark.parametrize(
    "source", sorted({r.source for r in published() if rules.compares(r)} - {"finepruner-head-logs"})
)
def test_each_source_reproduces_itself_and_two_points_in_any_cell_are_found(tmp_path, source):
    """Though other sources have the same rows with other numbers, to which a cell may come closer."""
    keys = dict.fromkeys((r.method, r.budget) for r in published() if r.source == source and r.method in PLAIN)
    rows = [method(name, None if name == "vanilla" else budget) for name, budget in keys]
    numbers = {(row, task): v for row, key in enumerate(keys) for task, v in numbers_of(source, *key).items()}
    store = write(tmp_path, rows, numbers)
    board = leaderboard(store)
    assert summary(literature(board, [store]))[0].startswith(f"Every cell reproduced: {len(numbers)} of {len(numbers)}")
    for row in rows:
        for task in set(TASKS) - {"mme"}:
            other = changed(board, row, task, 2.0)
            judged = [held for held in literature(other, [store]).rows if held.judged]
            marked = [(held.line.method, held.line.tokens, cell.task) for held in judged for cell in held.outside]
            assert marked == [(row.method, row.budget or 576, task)] * (other != board)


def test_what_is_published_in_another_way_is_shown_and_not_compared(tmp_path):
    """VizWiz and VQAv2 on other splits, and scores that fp16 degenerated."""
    rows = [method("vanilla"), method("finepruner", 128, heads=16, head_strategy="sparsity")]
    store = write(tmp_path, rows, {(0, "vizwiz"): 50.0, (0, "vqav2"): 78.5, (1, "gqa"): 54.0, (0, "gqa"): 62.0})
    found = held(store)
    official, head = (
        next(row for row in found.rows if row.source == name) for name in ("llava-official", "finepruner-head")
    )
    assert [(cell.task, cell.verdict) for cell in official.cells] == [
        ("vizwiz", "not compared"), ("vqav2", "not compared"), ("gqa", "reproduced")
    ]  # fmt: skip
    assert official.cells[0].difference is official.cells[1].difference is None and not head.compared
    text = render_literature(leaderboard(store), found, "text")
    assert "78.5 [78.5]" in text and "VQAv2: published on test-dev, here on validation." in text
    assert "sparsity: published in fp16" in text


def test_lineages_that_do_not_compare_are_never_shown(store):
    shown = {cell.record.lineage for row in held(store).rows for cell in row.cells}
    assert shown <= set(rules.LINEAGES) and not shown & set(rules.LEFT_OUT)
    assert {r.lineage for r in published()} == set(rules.LINEAGES) | set(rules.LEFT_OUT)
    for source in ("flowcut", "occamtoken"):
        with pytest.raises(FieldError, match="compares with nothing here"):
            held(store, source)
    with pytest.raises(FieldError, match="did you mean 'tops-t11'"):
        held(store, "tops-t1")


def test_no_part_of_the_table_mixes_lineages(store):
    rows = list(csv.DictReader(io.StringIO(render_literature(leaderboard(store), held(store), "csv"))))
    lineages: dict[str, set[str]] = {}
    for row in rows:
        lineages.setdefault(row["source"], set()).add(row["lineage"])
    assert all(len(names) == 1 for names in lineages.values())
    text = render_literature(leaderboard(store), held(store), "text")
    parts = [
        part.splitlines()[0].partition(":")[0] for part in text.split("\n\n") if part.startswith(tuple(rules.LINEAGES))
    ]
    assert parts == [name for name in rules.LINEAGES if name in parts] and len(parts) >= 3


def test_a_source_can_be_chosen(store):
    found = held(store, "restore-t1")
    assert {row.source for row in found.rows} == {"restore-t1"}
    pdrop = next(row for row in found.rows if (row.line.method, row.line.budget) == ("pdrop", 128))
    assert pdrop.judged and {cell.task for cell in pdrop.outside} >= {"gqa", "pope", "mmbench"}  # they do not agree


def test_a_row_with_other_settings_or_an_odd_budget_is_not_published(tmp_path):
    rows = [method("fastv", 128, layer=3), method("fastv", 128, layer=2), method("uniform", 64), method("fastv", "31%")]
    found = held(write(tmp_path, rows, dict.fromkeys(((row, "gqa") for row in range(4)), 54.0)))
    assert {row.line.given["layer"] for row in found.rows} == {2}
    assert [why for _, why in found.missing] == [
        "its budget is 178.56 tokens", "layer=3 is not as published", "no source that compares has it"
    ]  # fmt: skip


def test_heads_and_their_rule_must_be_the_published_ones(tmp_path):
    rows = [method("finepruner", 192, heads=heads, head_strategy=rule) for heads, rule in ((16, "sum"), (12, "sum"))]
    found = held(write(tmp_path, rows, {(0, "mme"): 1500.0, (1, "mme"): 1500.0}))
    (row,) = found.rows
    assert row.line.given["heads"] == 16 and row.cells[0].record.strategy == "sum"
    assert row.cells[0].record.metric == "perception"  # neither cognition nor the total


def test_the_total_of_mme_is_held_against_totals_alone(tmp_path):
    store = write(tmp_path, [method("fastv", 192)], {(0, "mme"): 1460.0})
    board = leaderboard(store)
    (line,) = board.lines
    score = replace(line.scores["mme"], beside={"total": 1790.0, "cognition": 330.0})
    board = replace(board, lines=(replace(line, scores={"mme": score}),))
    cells = {row.source: {cell.task: cell for cell in row.cells} for row in literature(board, [store]).rows}
    assert cells["restore-t1"]["mme_total"].record.metric == "total" and set(cells["restore-t1"]) == {"mme_total"}
    assert cells["finepruner-head"]["mme"].record.metric == "perception"
    assert cells["finepruner-head"]["mme_total"].ours == 1790.0
    assert "MME total" in render_literature(board, literature(board, [store]), "text")


def test_scores_by_other_rules_or_another_judge_are_not_compared(store):
    board = leaderboard(store)
    other = replace(board.lines[0].scores["gqa"], protocol="lmms_eval")
    first = replace(board.lines[0], scores={**board.lines[0].scores, "gqa": other, "mmvet": other})
    board = replace(board, lines=(first,), tasks=(*board.tasks, "mmvet"))
    row = literature(board, [store], "llava-official").rows[0]
    assert row.cell("gqa").why.endswith("here by lmms-eval's") and row.cell("pope").verdict == "reproduced"
    mmvet = replace(other, protocol="llava", shown=31.1)
    board = replace(board, lines=(replace(first, scores={"mmvet": mmvet}),))
    for judge, verdict in (("gpt-4-0613", "reproduced"), ("exact", "not compared"), ("qwen", "not compared")):
        judged = replace(board, judges={"mmvet": (judge,)})
        assert literature(judged, [store], "llava-official").rows[0].cell("mmvet").verdict == verdict


def test_an_imported_row_is_what_its_label_says(store):
    board = leaderboard(store)
    vanilla = board.lines[0]
    lines = [replace(vanilla, method=label, budget="", imported=True) for label in ("FastV 128", "somebody's")]
    found = literature(replace(board, lines=tuple(lines)), [store])
    assert {(row.line.method, row.cells[0].record.method) for row in found.rows} == {("FastV 128", "fastv")}
    assert [(line.method, why) for line, why in found.missing] == [
        ("somebody's", "it was imported; a label such as 'fastv 128' says what it is")
    ]


def test_another_model_is_refused_or_said(tmp_path):
    numbers = {(0, "gqa"): 62.0}
    with pytest.raises(FieldError, match=r"those of LLaVA-1\.5-7B"):
        held(write(tmp_path / "13b", [method("vanilla")], numbers, "llava-hf/llava-1.5-13b-hf", 40))
    said = held(write(tmp_path / "own", [method("vanilla")], numbers, "/models/mine"))
    assert "the published numbers are those of LLaVA-1.5-7B" in said.warnings[0]
    for name in ("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b", "/data/LLaVA-1.5-7B"):
        assert not held(write(tmp_path / "same", [method("vanilla")], numbers, name)).warnings


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_format_holds_ours_the_published_and_the_difference(store, form):
    board = changed(leaderboard(store), ROWS[3], "gqa", 2.0)
    text = render_literature(board, literature(board, [store]), form)
    assert text.endswith("\n") and all(number in text for number in ("56.0", "54.0", "2.0"))


def test_the_collection_is_whole_and_unique():
    keys = [(r.source, r.method, r.budget, r.heads, r.strategy, r.benchmark, r.metric) for r in published()]
    assert len(keys) == len(set(keys)) == 1095
    assert {r.source for r in published()} <= set(citations())
    json.dumps([r.__dict__ for r in published()])


def test_the_command_prints_it_and_warns_of_another_model(store, tmp_path):
    run = CliRunner().invoke(app, ["table", str(store.root), "--reference"])
    assert run.exit_code == 0 and "Every cell reproduced" in run.stdout and not run.stderr
    other = write(tmp_path, [method("vanilla")], {(0, "gqa"): 62.0}, "/models/mine")
    run = CliRunner().invoke(app, ["table", str(other.root), "--source", "llava-official", "--format", "csv"])
    assert run.exit_code == 0 and "reproduced" in run.stdout and "/models/mine" in run.stderr
    run = CliRunner().invoke(app, ["table", str(other.root), "--source", "flowcut"])
    assert run.exit_code == 2 and "compares with nothing here" in run.stderr and not run.stdout
