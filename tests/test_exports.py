"""Results on their way out, each read back by the format's own schema or package."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import foreign_runs as foreign
import jsonschema
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from studies import cell, method, stored_cell, study
from test_import import MINE, TARGETS, THEIRS, finish, pope_lines, run
from typer.testing import CliRunner

from finepruner_lmms import extras
from finepruner_lmms.cli import app
from finepruner_lmms.matrix.store import Store

SCHEMAS = Path(__file__).parent / "golden" / "every_eval_ever"
PROVENANCE = {
    "versions": {"lmms_eval": "0.7.3", "transformers": "5.23.0"}, "host": "h", "command": "finepruner run m.yaml",
    "started": "2026-11-26T10:00:00+00:00", "finished": "2026-11-26T10:00:09+00:00", "wall_seconds": 9.0,
}  # fmt: skip
VQA = [
    {"doc_id": n, "image": f"i{n}", "target": ["red", "dark red"], "answer": said, "score": score}
    for n, (said, score) in enumerate([("=1+1", 0.0), ("dark red", 1.0), ("a\u2028b\nc", 0.6)])
]
MMBENCH = [
    {"doc_id": n, "image": str(n), "target": "A", "answer": said, "score": entry | {"prediction": said}}
    for n, said in enumerate(["A", "B"])
    for entry in [
        {"index": n, "question": "?", "answer": "A", "category": "c", "A": "red", "B": "blue", "C": None, "D": None}
    ]
]


@pytest.fixture
def store(tmp_path) -> Store:
    """Two rows on three tasks: five cells done, one of them forged to hold a formula, and one not begun."""
    made = Store(tmp_path / "run")
    rows = [method("vanilla"), method("fastv", "22%", layer=2)]
    cells = [
        stored_cell(f"{task}{number}", task, number, row, data="hub")
        for task in ("pope", "textvqa", "mmbench")
        for number, row in enumerate(rows)
    ]
    made.save_study(study(rows, cells))
    for one, lines in zip(cells, [pope_lines(MINE), pope_lines(TARGETS), VQA, VQA, MMBENCH], strict=False):
        finish(made, one, lines, provenance=PROVENANCE)
    return made


def export(store, form, *more):
    said = run("export", store.root, "--format", form, *more)
    assert said.exit_code == 0, said.output
    return store.root / "export" / form


def test_tables_have_typed_columns_and_a_row_per_question(store):
    folder = export(store, "parquet")
    cells = pq.read_table(folder / "cells.parquet").to_pylist()
    assert [row["state"] for row in cells] == ["done"] * 5 + ["missing"]
    fastv = next(row for row in cells if row["task"] == "pope" and row["method"] == "fastv")
    assert (fastv["row"], fastv["budget"], fastv["score"]) == ("fastv 22% layer=2", "22%", 100.0)
    assert fastv["tokens"] == pytest.approx(0.22 * 576) and json.loads(fastv["parameters"]) == {"layer": 2}
    assert json.loads(fastv["provenance"]).items() >= PROVENANCE.items()
    assert cells[-1]["score"] is None and cells[-1]["answered"] is None  # missing, not 0
    samples = pq.read_table(folder / "samples.parquet")
    assert samples.num_rows == 6 + 6 + 3 + 3 + 2
    assert str(samples.schema.field("doc_id").type) == "int64" and str(samples.schema.field("score").type) == "double"
    rows = samples.to_pylist()
    odd = next(row for row in rows if row["task"] == "textvqa" and row["doc_id"] == 2)
    assert odd["answer"] == "a\u2028b\nc" and json.loads(odd["target"]) == ["red", "dark red"]
    ordered = next(row for row in rows if row["task"] == "mmbench")
    assert ordered["score"] is None and json.loads(ordered["details"])["A"] == "red"


def test_a_spreadsheet_runs_nothing_of_a_csv_file(store):
    with (export(store, "csv") / "samples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert [row["answer"] for row in rows if row["task"] == "textvqa"][:2] == ["'=1+1", "dark red"]
    assert not any(value.startswith(("=", "@", "+")) for row in rows for value in row.values())


def test_every_eval_ever_is_valid_by_its_own_schemas(store):
    folder = export(store, "eee")
    checks = {
        suffix: jsonschema.Draft7Validator(json.loads((SCHEMAS / name).read_text()))
        for suffix, name in ((".json", "eval.schema.json"), (".jsonl", "instance_level_eval.schema.json"))
    }
    files = sorted(folder.rglob("*.json"))
    assert len(files) == 5 and all(file.parts[-5] == "data" for file in files)
    for file in files:
        about = json.loads(file.read_text())
        checks[".json"].validate(about)
        detailed = about["detailed_evaluation_results"]
        content = (folder / detailed["file_path"]).read_bytes()
        lines = [json.loads(line) for line in content.decode().split("\n")[:-1]]
        assert detailed["checksum"] == hashlib.sha256(content).hexdigest() and detailed["total_rows"] == len(lines)
        (result,) = about["evaluation_results"]
        for line in lines:
            checks[".jsonl"].validate(line)
            assert line["evaluation_id"] == about["evaluation_id"]
            assert line["evaluation_result_id"] == result["evaluation_result_id"]
    broken = json.loads(files[0].read_text()) | {"schema_version": 3}
    assert list(checks[".json"].iter_errors(broken))  # the check can fail


def test_every_eval_ever_says_which_method_scored_what(store):
    (file,) = [
        f for f in export(store, "eee").rglob("*.json") if "/textvqa/" in f.as_posix() and "fastv" in f.read_text()
    ]
    about = json.loads(file.read_text())
    details = about["model_info"]["additional_details"]
    assert (details["pruning_method"], details["pruning_budget"], details["pruning_layer"]) == ("fastv", "22%", "2")
    (result,) = about["evaluation_results"]
    assert result["score_details"]["score"] == pytest.approx(100 * 1.6 / 3)
    assert result["generation_config"]["generation_args"]["execution_command"] == "finepruner run m.yaml"
    lines = [json.loads(x) for x in file.with_name(f"{file.stem}_samples.jsonl").read_text().split("\n")[:-1]]
    assert [line["evaluation"] for line in lines] == [
        {"score": 0.0, "is_correct": False}, {"score": 1.0, "is_correct": True}, {"score": 0.6, "is_correct": True}
    ]  # fmt: skip
    assert lines[1]["input"]["reference"] == ["red", "dark red"] and lines[1]["output"]["raw"] == ["dark red"]


def test_the_hubs_package_reads_its_results(store):
    files = sorted(export(store, "hf").rglob("*.yaml"))
    assert [file.parts[-2:] for file in files] == [
        (".eval_results", f"{n}.yaml") for n in ("mmbench", "pope", "textvqa")
    ]
    entries = parse_eval_result_entries(yaml.safe_load(files[1].read_text()))
    assert [entry.dataset_id for entry in entries] == ["lmms-lab-encoder/POPE"] * 2
    assert entries[1].value == 100.0 and entries[1].notes.startswith("fastv 22% layer=2; pope_f1_mean, percent; ")
    assert entries[0].date == PROVENANCE["finished"]


def test_a_part_of_a_benchmark_is_no_result_for_the_hub(tmp_path):
    made = Store(tmp_path / "run")
    limited = stored_cell("abc", "pope", data="hub", limit=6)
    made.save_study(study([method("vanilla")], [limited]))
    finish(made, limited, pope_lines(MINE))
    said = run("export", made.root, "--format", "hf")
    assert said.exit_code == 2 and "asked at most 6 questions, not the whole benchmark" in said.stderr


@pytest.mark.parametrize("form", ["xml", "", "csv,xml"])
def test_an_unknown_format_is_named(store, form):
    said = run("export", store.root, "--format", form)
    assert said.exit_code == 2 and said.stderr.startswith("--format: ") and not (store.root / "export").exists()


def test_nothing_done_is_nothing_to_export(tmp_path):
    made = Store(tmp_path / "run")
    made.save_study(study([method("vanilla")], [cell("abc", "pope")]))
    said = run("export", made.root, "--format", "csv")
    assert said.exit_code == 2 and "no cell of" in said.stderr


def test_a_package_that_is_not_there_is_one_line_that_names_the_extra(store, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    for words, extra in (
        (("export", store.root, "--format", "inspect"), "inspect"),
        (("query", store.root, "SELECT 1"), "query"),
    ):
        said = run(*words)
        assert said.exit_code == 2 and f"pip install 'finepruner-lmms[{extra}]'" in said.stderr
        assert said.stderr.count("\n") == 1


# -- Inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_reads_its_logs_with_answers_scores_and_imported_questions(store):
    inspect_log = pytest.importorskip("inspect_ai.log")
    out = store.root.with_name("out")
    foreign.write(out, {"pope": [foreign.pope(n, TARGETS[n], THEIRS[n]) for n in range(6)]})
    assert run("import", store.root, out, "--label", "theirs").exit_code == 0
    folder = export(store, "inspect")
    logs = {
        log.eval.model: log for log in map(inspect_log.read_eval_log, sorted(map(str, folder.glob("*_pope_*.eval"))))
    }
    assert len(inspect_log.list_eval_logs(str(folder))) == 6 and len(logs) == 3
    log = logs["owner/other, theirs"]
    assert log.status == "success" and log.eval.task == "pope" and log.results.total_samples == 6
    (score,) = log.results.scores
    assert score.metrics["score"].value == pytest.approx(100.0)
    first = log.samples[0]
    assert first.input[0].text == "q0?" and first.target == ["yes"] and first.output.completion == "Yes"
    assert (
        first.scores["pope_f1_mean"].value == 1.0 and first.scores["pope_f1_mean"].metadata["category"] == "adversarial"
    )
    own = logs["llava-hf/llava-1.5-7b-hf, fastv 22% layer=2"]
    assert own.eval.metadata["provenance"]["command"] == "finepruner run m.yaml"
    assert own.eval.created == PROVENANCE["started"]


@pytest.mark.slow
def test_inspect_logs_show_questions_pictures_and_kept_tokens_where_the_data_is_there(tmp_path):
    """With the miniature benchmarks, whose pictures are made here."""
    inspect_log = pytest.importorskip("inspect_ai.log")
    from finepruner_lmms.matrix.questions import open_questions

    questions = open_questions("demo", "pope")
    images = questions.images()
    made = Store(tmp_path / "run")
    row = method("fastv", 64)
    one = stored_cell("abc", "pope", 0, row, data="demo")
    made.save_study(study([row], [one]))
    lines = pope_lines(TARGETS)
    for number, line in enumerate(lines):
        line |= {"target": questions.target(number), "image": images[number]}
        line["score"] |= {"ground_truth": line["target"], "prediction": line["target"]}
    finish(made, one, lines)
    record = {
        "task": "fp_pope",
        "doc_id": 1,
        "method": "fastv",
        "budget": 64,
        "layer": 2,
        "kept": [3, 5],
        "kept_tokens": 2,
    }
    text = "".join(json.dumps(r) + "\n" for r in (record | {"kept": [0, 1]}, record)) + '{"torn'
    (made.cell_dir(one) / "selections-rank0.jsonl").write_text(text)
    (file,) = export(made, "inspect", "--pictures", "2").glob("*.eval")
    first, second, third = inspect_log.read_eval_log(str(file)).samples[:3]
    assert first.input[0].text == questions.text(0) and "single word" in first.input[0].text
    picture = first.input[0].content[0]
    assert picture.type == "image" and picture.image.startswith("data:image/png;base64,")
    assert second.metadata["selections"] == [{"layer": 2, "kept": [3, 5], "kept_tokens": 2}]
    assert "selections" not in first.metadata
    assert [part.type for part in third.input[0].content] == ["text"]  # --pictures 2


# -- SQL --------------------------------------------------------------------------------------------------------------

duckdb = pytest.importorskip("duckdb")


def ask(store, sql, form="json"):
    said = run("query", store.root, sql, "--format", form)
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout) if form == "json" else said.stdout


def test_sql_over_cells_and_samples(store):
    sql = "SELECT row, count(*) n, avg(score) s FROM samples WHERE task = 'textvqa' GROUP BY row ORDER BY row"
    for _ in range(2):  # the second time from the prepared files
        assert ask(store, sql) == [
            {"row": "fastv 22% layer=2", "n": 3, "s": pytest.approx(1.6 / 3)},
            {"row": "vanilla", "n": 3, "s": pytest.approx(1.6 / 3)},
        ]
    states = ask(store, "SELECT state, count(*) n FROM cells GROUP BY state ORDER BY state")
    assert states == [{"state": "done", "n": 5}, {"state": "missing", "n": 1}]
    assert "vanilla" in ask(store, "SELECT row FROM cells", "text")
    assert ask(store, "SELECT answer FROM samples WHERE answer LIKE '=%' LIMIT 1", "csv") == "answer\n'=1+1\n"


def test_prepared_files_follow_the_results(store):
    count = "SELECT count(*) n, sum(score) s FROM samples"
    assert ask(store, count) == [{"n": 20, "s": pytest.approx(4 + 6 + 1.6 + 1.6)}]
    last = stored_cell("mmbench1", "mmbench", 1, method("fastv", "22%", layer=2), data="hub")
    finish(store, last, MMBENCH)
    assert ask(store, count)[0]["n"] == 22
    (store.cell_dir(last) / "result.json").unlink()
    assert ask(store, count)[0]["n"] == 20
    for file in (store.root / ".tables").glob("*.parquet"):
        file.write_bytes(b"damaged")
    assert ask(store, count)[0]["n"] == 20
    (store.root / ".tables" / "index.json").write_text("[1]")
    assert ask(store, count)[0]["n"] == 20


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM source",  # a variable of ours
        "SELECT getenv('HOME')",
        "COPY cells TO 'finepruner-never.csv'",
        "EXPORT DATABASE 'finepruner-never'",
        "ATTACH 'finepruner-never.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "DELETE FROM cells",
        "SELECT 1; DROP TABLE cells",
        "EXPLAIN ANALYZE COPY cells TO 'finepruner-never.csv'",
        "selec",
        "",
    ],
)
def test_sql_reads_nothing_else_and_writes_nothing(store, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for file in store.root.rglob("*") if file.is_file()}
    said = run("query", store.root, sql)
    assert said.exit_code == 2 and said.stderr.startswith("query: ") and said.stderr.count("\n") == 1
    assert all(file.read_bytes() == content for file, content in before.items())
    assert not list(tmp_path.rglob("finepruner-never*"))


def test_an_output_that_cannot_be_written_is_asked_all_the_same(store, monkeypatch):
    from finepruner_lmms.matrix.export import sample_tables

    def refuse(*_):
        raise PermissionError(13, "read only")

    monkeypatch.setattr(sample_tables, "_from_files", refuse)
    assert ask(store, "SELECT count(*) n FROM samples") == [{"n": 20}]


def test_help_names_the_commands():
    said = CliRunner().invoke(app, ["--help"]).stdout
    assert all(name in said for name in ("export", "query", "import"))
