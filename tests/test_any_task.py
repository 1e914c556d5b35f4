"""Any lmms-eval task in a matrix: its own metric, direction, scale and scores of questions, from small local files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from pages import texts
from PIL import Image

from finepruner_lmms.benchmarks.measure import Measured, benchmark_of, measure
from finepruner_lmms.data.lmms_tasks import all_tasks, lmms_tasks
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.evaluate import evaluate_cell, task_manager
from finepruner_lmms.matrix.plan import Plan, PlannedCell, Study
from finepruner_lmms.matrix.report.compare import compare_rows
from finepruner_lmms.matrix.report.comparison_text import comparison_text
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.named_rows import NamedRow
from finepruner_lmms.matrix.report.tables import render
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.study import open_study
from finepruner_lmms.matrix.yaml_places import ConfigError

QUESTIONS = 6
TASKS = ("own_match", "own_total", "own_several")
MATRIX = """\
name: own
model: {{pretrained: demo}}
data: demo
tasks: [{tasks}]
tasks_dir: {folder}
methods: [vanilla, {{method: random, budget: 8}}]
{more}
"""
COMMON = """\
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function own_utils.visual
doc_to_text: !function own_utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
"""
CODE = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, kwargs=None):
    return doc["question"]


def keep(doc, results):
    return {"own_points": {"answer": results[0], "target": doc["answer"]}}


def total(results):
    return 10.0 * len({result["target"] for result in results})


def several(doc, results):
    right = float(results[0].strip().lower() == doc["answer"])
    return {"letters": float(len(results[0])), "own_accuracy": right, "distance": 1 - right}
"""
METRICS = {
    "own_match": "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]\n",
    "own_total": "process_results: !function own_utils.keep\n"
    "metric_list:\n  - {metric: own_points, aggregation: !function own_utils.total, higher_is_better: true}\n",
    "own_several": "process_results: !function own_utils.several\nmetric_list:\n"
    "  - {metric: distance, aggregation: mean, higher_is_better: false}\n"
    "  - {metric: own_accuracy, aggregation: mean, higher_is_better: true}\n"
    "  - {metric: letters, aggregation: mean, higher_is_better: true}\n",
}


def picture(shade: int) -> dict[str, object]:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 255 - shade, 90)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory) -> Path:
    """Three tasks over one table, in which two questions each share a picture."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"image": picture(40 * (n // 2)), "question": f"Is it {n}?", "answer": "no" if n % 3 else "yes"}
        for n in range(QUESTIONS)
    ]
    columns = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    datasets.Dataset.from_list(rows, features=datasets.Features(columns)).to_parquet(folder / "own.parquet")
    (folder / "own_utils.py").write_text(CODE, encoding="utf-8")
    (folder / "_own_common").write_text(COMMON.format(data=folder / "own.parquet"), encoding="utf-8")
    for name, metrics in METRICS.items():
        (folder / f"{name}.yaml").write_text(f"include: _own_common\ntask: {name}\n{metrics}", encoding="utf-8")
    (folder / "own_group.yaml").write_text(f"group: own_group\ntask: [{', '.join(TASKS)}]\n", encoding="utf-8")
    return folder


def matrix(where: Path, tasks_dir: Path, tasks: str = ", ".join(TASKS), more: str = "") -> Path:
    file = where / "own.yaml"
    file.write_text(MATRIX.format(tasks=tasks, folder=tasks_dir, more=more), encoding="utf-8")
    return file


def planned(store: Store, study: Study, config: Path) -> Plan:
    file = load_matrix(config).file
    cells = [PlannedCell(**dict(cell), path=store.cell_dir(cell)) for cell in study.cells]
    return Plan(
        launch="1", model=file.model, batch_size=4, data=file.data, limit=file.limit, monitor=False, submission=False,
        tasks_dir=file.tasks_dir, fan_out=1, cells=tuple(cells),
    )  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> LlavaFinePruner:
    torch.set_num_threads(1)
    return LlavaFinePruner(pretrained="demo", batch_size=4)


def evaluated(lm: LlavaFinePruner, config: Path, output: Path) -> tuple[Store, Study]:
    """What a worker does, in this process."""
    _, store, study = open_study(config, output)
    plan = planned(store, study, config)
    manager = task_manager(plan)
    for cell in plan.cells:
        cell.path.mkdir(parents=True)
        outcome, samples = evaluate_cell(lm, manager, cell, cell.path, cell.path / "cache")
        result = outcome.model_dump(include={"answered", "expected", "cost", "speed"}) | outcome.scores.model_dump()
        write_result(cell.path, {"id": cell.id, "spec": cell.spec()} | result, samples)
    store.save_study(study)
    return store, study


@pytest.fixture(scope="module")
def done(lm, tasks_dir, tmp_path_factory) -> tuple[Store, Study]:
    where = tmp_path_factory.mktemp("runs")
    return evaluated(lm, matrix(where, tasks_dir), where / "out")


def result_of(done, task: str):
    store, study = done
    cell = next(cell for cell in study.cells if cell.task == task and cell.row == 0)
    (state,) = store.states([cell])
    assert state.name == "done", state
    return state.result, [
        json.loads(line) for line in (store.cell_dir(cell) / "samples.jsonl").read_text().splitlines()
    ]


def test_a_mean_over_questions_is_a_share_with_a_standard_error_over_pictures(done):
    result, samples = result_of(done, "own_match")
    about = result.measure
    assert (about.metric, about.higher_is_better, about.scale, about.per_sample) == ("exact_match,none", True, 1, True)
    scores = [sample["score"] for sample in samples]
    assert result.percent == pytest.approx(100 * sum(scores) / QUESTIONS)
    assert len({sample["image"] for sample in samples}) == QUESTIONS / 2


def test_an_aggregation_of_its_own_has_neither_scale_nor_error(done):
    result, samples = result_of(done, "own_total")
    assert result.metrics == {"own_points,none": 20.0}
    assert (result.percent, result.standard_error) == (None, None)
    assert (result.measure.scale, result.measure.per_sample) == (None, False)
    assert samples[1]["score"]["target"] == "no" and len(samples) == QUESTIONS


def test_the_first_of_several_metrics_stands_for_a_task_and_the_direction_of_each_is_kept(done):
    result, samples = result_of(done, "own_several")
    about = result.measure
    assert about.directions == {"distance,none": False, "own_accuracy,none": True, "letters,none": True}
    assert (about.metric, about.higher_is_better, about.scale) == ("distance,none", False, None)
    assert result.percent is None and about.per_sample
    assert result.metrics["distance,none"] == pytest.approx(sum(sample["score"] for sample in samples) / QUESTIONS)
    assert result.metrics["own_accuracy,none"] == pytest.approx(1 - result.metrics["distance,none"])


def test_the_table_says_how_each_is_measured_and_averages_only_known_scales(done):
    board = leaderboard(done[0])
    assert board.apart == ("own_total", "own_several")
    for line in board.lines:
        assert line.average == pytest.approx(line.scores["own_match"].percent)
        assert line.scores["own_total"].shown == 20
    text = render(board, "text")
    assert "own_several ↓" in text and "own_match: lmms-eval's exact_match, in percent." in text
    assert "own_total: lmms-eval's own_points, as lmms-eval prints it; single questions have no score" in text
    assert "also measured: own_accuracy, letters" in text
    for form in ("markdown", "csv", "latex"):
        assert "20.0" in render(board, form)


def test_rows_are_paired_where_questions_have_scores_and_a_note_says_where_not(done):
    told = compare_rows(NamedRow("a", *done, (0,)), NamedRow("b", *done, (1,)))
    found = {one.task: one.difference for one in told.tasks}
    assert set(found) == set(TASKS)
    assert (found["own_total"].value, found["own_total"].error, found["own_total"].p) == (0, None, None)
    ours, theirs = (
        [json.loads(line)["score"] for line in (done[0].cell_dir(cell) / "samples.jsonl").read_text().splitlines()]
        for cell in done[1].cells if cell.task == "own_several"
    )  # fmt: skip
    assert found["own_several"].value == pytest.approx((sum(ours) - sum(theirs)) / QUESTIONS)
    assert "own_total: lmms-eval has no score of single questions" in comparison_text(told)
    assert "| average" not in comparison_text(told), "one scale alone has no average"


def test_a_changed_score_is_damage(done, tmp_path):
    import shutil

    root = tmp_path / "out"
    shutil.copytree(done[0].root, root)
    store = Store(root)
    cell = next(cell for cell in done[1].cells if cell.task == "own_match")
    file = store.cell_dir(cell) / "result.json"
    raw = json.loads(file.read_text())
    raw["metrics"]["exact_match,none"] += 0.5
    lines = [json.loads(line) for line in (file.with_name("samples.jsonl")).read_text().splitlines()]
    write_result(file.parent, raw, lines)
    file.with_name("verified.json").unlink()
    (state,) = store.states([cell])
    assert state.damaged and "its samples give" in state.reason


def test_reports_exports_and_status_show_these_tasks(done, tmp_path):
    root = str(done[0].root)

    def finepruner(*arguments: str) -> str:
        command = [sys.executable, "-m", "finepruner_lmms.cli", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "done" in finepruner("status", root)
    finepruner("report", root, "--to", str(tmp_path / "report.html"))
    assert "own_several" in texts((tmp_path / "report.html").read_text(encoding="utf-8"))
    finepruner("export", root, "--format", "csv,eee", "--to", str(tmp_path / "export"))
    (cells,) = (tmp_path / "export").rglob("cells.csv")
    assert "own_points,none" in cells.read_text(encoding="utf-8")


def test_a_limit_takes_the_first_questions(lm, tasks_dir, tmp_path):
    store, study = evaluated(lm, matrix(tmp_path, tasks_dir, "own_match, pope", "limit: 4"), tmp_path / "out")
    found = {
        cell.task: state.result.answered for cell, state in zip(study.cells, store.states(study.cells), strict=True)
    }
    assert found == {"own_match": 4, "pope": 4}, "beside one of the ten"


def test_its_files_and_its_data_are_part_of_a_cell(tasks_dir, tmp_path):
    import shutil

    def name(folder: Path) -> list[str]:
        text = (folder / "_own_common").read_text().replace(str(tasks_dir), str(folder))
        (folder / "_own_common").write_text(text)
        return [cell.id for cell in open_study(matrix(tmp_path, folder, "own_match"), tmp_path / "out")[2].cells]

    copy = Path(shutil.copytree(tasks_dir, tmp_path / "copy"))
    before = name(copy)
    (copy / "own_utils.py").write_text(CODE.replace('doc["question"]', 'doc["question"] + "!"'))
    code = name(copy)
    table = pq.read_table(copy / "own.parquet")
    pq.write_table(table.slice(0, 4), copy / "own.parquet")
    data = name(copy)
    assert not set(before) & set(code) and not set(code) & set(data)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chartqq", "did you mean 'chartqa'?"),
        ("own_mach", "did you mean 'own_match'?"),
        ("mmmu", "'mmmu' is a group of tasks; name those that are meant: mmmu_val, mmmu_test"),
        ("own_group", "own_match, own_total, own_several"),
        ("fp_pope", "is called 'pope' here"),
    ],
)
def test_a_name_that_is_no_task_is_refused_with_what_is_meant(tasks_dir, tmp_path, name, said):
    with pytest.raises(ConfigError) as refused:
        load_matrix(matrix(tmp_path, tasks_dir, name))
    assert said in str(refused.value)


def test_what_asks_for_no_text_is_refused(tasks_dir, tmp_path):
    other = next(name for name, task in lmms_tasks().items() if task.output_type == "multiple_choice")
    with pytest.raises(ConfigError, match="asks for multiple_choice"):
        load_matrix(matrix(tmp_path, tasks_dir, other))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="tasks_dir"):
        load_matrix(matrix(tmp_path, tmp_path / "nowhere"))


def test_the_tasks_that_papers_report_are_known():
    names = ["chartqa", "ocrbench", "mmmu_val", "seedbench", "docvqa_val", "realworldqa", "mmstar", "ai2d"]
    names += ["refcoco_bbox_val", "videomme"]
    known = all_tasks(None)
    assert all(known[name].output_type == "generate_until" and known[name].dataset_path for name in names)


def test_planning_imports_neither_torch_nor_lmms_eval(tasks_dir, tmp_path):
    file = matrix(tmp_path, tasks_dir, "chartqa, own_match")
    code = (
        "import sys; from pathlib import Path; from finepruner_lmms.matrix.config import load_matrix;"
        f"load_matrix(Path({str(file)!r}));"
        "print([name for name in ('torch', 'lmms_eval', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_scales_are_taken_from_names_and_samples_and_are_otherwise_unknown():
    def found(name: str, value: float, scores: list[object], higher: bool = True) -> Measured:
        return measure({f"{name},none": value}, {name: higher}, [{"doc_id": n, name: s} for n, s in enumerate(scores)])[
            0
        ]

    assert found("anls", 0.5, [0, 1]).scale == 1
    assert found("own_points", 0.5, [0, 1]).scale is None, "a name that promises nothing"
    assert found("accuracy", 50.0, [{"right": True}]).scale is None, "a percentage, perhaps"
    assert found("wer_acc", 0.5, [0, 1], higher=False).scale is None
    assert found("videomme_perception_score", 45.0, [{"pred": "A"}]) == Measured(
        "videomme_perception_score,none", True, 100.0, False
    )
    assert found("chair_acc", 1.0, [None, 1.0, 1.0]).per_sample, "a metric of some of the questions"
    assert measure({}, {"submission": True}, []) is None
    other = benchmark_of("x", Measured("acc,none", True, 1.0, True))
    assert other.percent([{"doc_id": 0, "acc": None}, {"doc_id": 1, "acc": 1}, {"doc_id": 2, "acc": 0}]) == 50
