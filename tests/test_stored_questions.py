"""The questions of a data root read from its tables are those that lmms-eval asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data.rows import Rows
from finepruner_lmms.matrix.questions import NoQuestions, open_questions
from finepruner_lmms.matrix.stored_questions import StoredQuestions, stored_questions


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_pictures_categories_and_boxes_are_those_that_lmms_eval_reads(name):
    found, known = stored_questions("demo", name), open_questions("demo", name)
    assert isinstance(found, StoredQuestions)
    numbers = list(known.numbers)
    assert all(number in found for number in numbers) and len(numbers) not in found and -1 not in found
    assert found.categories(name) == known.categories(name)
    for number in (numbers[0], numbers[len(numbers) // 2], numbers[-1]):
        assert found.evidence(number) == known.evidence(number)
        pictures, others = found.pictures(number), known.pictures(number)
        assert [picture.mode for picture in pictures] == ["RGB"] * len(others)
        assert all(np.array_equal(one, other) for one, other in zip(pictures, others, strict=True))
    assert found.text(numbers[-1]) == known.text(numbers[-1])


def tables(folder: Path) -> list[Path]:
    """Two files of two groups of rows each, in which every row differs; the last has no picture."""
    files = []
    for part in range(2):
        rows = range(6 * part, 6 * part + 6)
        pictures = [Image.new("RGB", (8, 8), (row, 0, 0)) if row < 11 else None for row in rows]
        made = datasets.Dataset.from_dict(
            {"index": list(rows), "image": pictures},
            features=datasets.Features({"index": datasets.Value("int64"), "image": datasets.Image()}),
        )
        files.append(folder / f"part-{part}.parquet")
        made.to_parquet(files[-1], batch_size=4)
    return files


def test_rows_of_several_files_stand_in_the_order_of_datasets(tmp_path):
    files = tables(tmp_path)
    rows = Rows(files)
    known = datasets.load_dataset(
        "parquet", data_files=f"{tmp_path}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == len(known) == 12 and rows.columns == ("index", "image") and rows.pictures == ("image",)
    assert rows.column("index") == list(known["index"])
    for row in (11, 0, 5, 6, 3, 10):  # any order, across groups and files
        picture = rows.picture(row, "image")
        assert (picture is None) == (known[row]["image"] is None)
        assert picture is None or picture.getpixel((0, 0)) == (row, 0, 0)


def test_groups_of_pictures_are_let_go_where_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("finepruner_lmms.data.rows._MOST_HELD", 1)
    rows = Rows(tables(tmp_path))
    for row in (0, 4, 6, 10, 0):
        picture = rows.picture(row, "image")
        assert picture is not None and picture.getpixel((0, 0)) == (row, 0, 0)
        assert len(rows._held) == 1


@pytest.mark.parametrize("content", [None, b"PAR1 is no table"])
def test_data_that_is_gone_or_no_table_is_said_to_be_so(tmp_path, content):
    folder = tmp_path / "pope"
    folder.mkdir()
    if content is not None:
        (folder / "test.parquet").write_bytes(content)
    with pytest.raises(NoQuestions, match="not at hand"):
        stored_questions(str(tmp_path), "pope")


def test_a_report_needs_no_lmms_eval(tmp_path):
    """Of a study of its own: pictures of the miniatures, words of the samples."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); from made_up import make\n"
        "from finepruner_lmms.matrix.report.page.html import write_report\n"
        "from finepruner_lmms.matrix.store import Store\n"
        f"write_report([make(Store(Path({str(tmp_path)!r}) / 'run'))], Path({str(tmp_path)!r}) / 'report.html')\n"
        "print(*sorted({'lmms_eval', 'torch', 'transformers', 'datasets'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.split() == []
    from pages import blocks

    page = blocks((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page["q/pictures/0"] and page["q/0"]["shown"][0]["question"].startswith("What is ")
