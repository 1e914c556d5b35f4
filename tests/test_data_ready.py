"""Data roots put together by hand: what `doctor` shows as missing, `run` refuses before it launches anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.data.ready import data_problems
from finepruner_lmms.data.task_folders import data_root

Edit = Callable[[Path, datasets.Dataset], None]


def file_of(folder: Path) -> Path:
    (file,) = folder.rglob("*.parquet") if folder.name != "gqa" else folder.glob("*instructions/*.parquet")
    return file


def plain(table: datasets.Dataset) -> datasets.Dataset:
    """Images as they are stored, so that none is decoded."""
    return table.cast_column("image", datasets.Image(decode=False)) if "image" in table.column_names else table


def save(file: Path, rows: list[dict], like: datasets.Dataset, **features: object) -> None:
    datasets.Dataset.from_list(rows, features=datasets.Features(like.features | features)).to_parquet(file)


def twice(file: Path, _table: datasets.Dataset) -> None:
    for name in ("a", "b"):
        shutil.copy(file, file.with_name(f"test-00000-of-00001-{name}.parquet"))
    file.unlink()


def missing(file: Path, _table: datasets.Dataset) -> None:
    file.rename(file.with_name("test-00000-of-00002.parquet"))


def no_column(file: Path, table: datasets.Dataset) -> None:
    table.remove_columns("category").to_parquet(file)


def plain_structures(file: Path, _table: datasets.Dataset) -> None:
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)  # as other programs write them


def paths(file: Path, table: datasets.Dataset) -> None:
    rows = [row | {"image": f"{number}.jpg"} for number, row in enumerate(plain(table))]
    save(file, rows, table, image=datasets.Value("string"))


def paths_in_structures(file: Path, _table: datasets.Dataset) -> None:
    stored = pq.read_table(file)
    place, kind = stored.schema.get_field_index("image"), stored.schema.field("image").type
    images = pa.array([{"bytes": None, "path": "x.jpg"}] * stored.num_rows, kind)
    pq.write_table(stored.set_column(place, stored.schema.field("image"), images), file)


def no_image(file: Path, table: datasets.Dataset) -> None:
    rows = list(plain(table))
    save(file, [row | {"image": None} if number % 3 == 0 else row for number, row in enumerate(rows)], table)


def null_tokens(file: Path, table: datasets.Dataset) -> None:
    rows = list(plain(table))
    save(file, [rows[0] | {"ocr_tokens": None}, rows[1] | {"ocr_tokens": ["a", None]}, *rows[2:]], table)


def no_answer_id(file: Path, table: datasets.Dataset) -> None:
    rows = [row | {"answers": [{"answer": a["answer"]} for a in row["answers"]]} for row in plain(table)]
    save(file, rows, table, answers=datasets.List({"answer": datasets.Value("string")}))


def one_answer_id(file: Path, table: datasets.Dataset) -> None:
    rows = [row | {"answers": [a | {"answer_id": 1} for a in row["answers"]]} for row in plain(table)]
    save(file, rows, table)


def null_question(file: Path, table: datasets.Dataset) -> None:
    first, *rows = plain(table)
    save(file, [first | {"question": None}, *rows], table)


def no_rows(file: Path, table: datasets.Dataset) -> None:
    table.select([]).to_parquet(file)


def torn_pages(file: Path, _table: datasets.Dataset) -> None:
    whole = file.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    file.write_bytes(whole[:4] + bytes(footer - 4) + whole[footer:])


def other_image(file: Path, table: datasets.Dataset) -> None:
    first, *rows = table
    save(file, [first | {"imageId": "elsewhere"}, *rows], table)


CASES: list[tuple[str, Edit, str]] = [
    ("pope", twice, "twice: 00000"),
    ("pope", missing, "missing: 00001"),
    ("pope", no_column, "category is missing"),
    ("pope", plain_structures, "image is a plain structure that the file does not say is an image"),
    ("pope", paths, "image is string, not image"),
    ("pope", paths_in_structures, "12 of 12 rows hold no image in 'image'"),
    ("pope", null_question, "1 of 12 rows have a missing value (null) in 'question'"),
    ("pope", no_rows, "holds no rows"),
    ("pope", torn_pages, "cannot be read: "),
    ("gqa", torn_pages, "cannot be read: "),
    ("sqa", no_image, "4 of 12 rows hold no image in 'image'"),
    ("textvqa", null_tokens, "2 of 12 rows have a missing value (null) in 'ocr_tokens'"),
    ("vqav2", no_answer_id, "structures with answer and answer_id"),
    ("vqav2", one_answer_id, "108 of 120 entries of 'answers' have the answer_id of another one of their row"),
    ("gqa", other_image, "images that questions name are missing, such as 'elsewhere'"),
]


@pytest.mark.parametrize("task, edit, problem", CASES, ids=[f"{task} {edit.__name__}" for task, edit, _ in CASES])
def test_a_table_that_would_stop_a_run_or_score_wrongly_is_refused(task, edit, problem, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(data_root("demo") / task, root / task)
    file = file_of(root / task)
    datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "a")).select(range(12)).to_parquet(file)
    assert data_problems(str(root), [task]) == []  # a part of a benchmark can be evaluated
    edit(file, datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "b")))
    (error,) = data_problems(str(root), [task])
    assert problem in error.problem

    shown = CliRunner().invoke(app, ["doctor", "--data", str(root), "--tasks", task, "--json"])
    checks = [check for check in json.loads(shown.stdout)["checks"] if check["topic"].startswith(f"{task} data")]
    told = [check for check in checks if check["text"] == error.problem]
    assert shown.exit_code == 1 and told and all(check["fix"] or check["command"] for check in told)

    config = tmp_path / "matrix.yaml"
    config.write_text(f"name: x\nmodel: {{pretrained: demo}}\ndata: {root}\ntasks: [{task}]\nmethods: [vanilla]\n")
    done = CliRunner().invoke(app, ["run", str(config), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2 and problem in done.output and not (tmp_path / "out").exists()
