"""The questions of a task as far as the tables of a data root tell: pictures, fields and categories, without lmms-eval.

To load lmms-eval takes longer than to write most reports. What a model was asked stands in the samples of a run; where
it does not, it is asked of lmms-eval's task after all.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.submission import SERVED, TEST
from finepruner_lmms.data.ready import missing_data
from finepruner_lmms.data.rows import Rows
from finepruner_lmms.data.task_folders import data_root
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.matrix.questions import NoQuestions, Questions, category_column, category_name, open_questions

if TYPE_CHECKING:
    from PIL.Image import Image

_GQA_QUESTIONS, _GQA_IMAGES = "testdev_balanced_instructions", "testdev_balanced_images"


class StoredQuestions:
    """What a report shows of a task's questions, by their number in the whole data set: the row in its tables."""

    def __init__(self, data: str, name: str, submission: bool, rows: Rows, images: Rows | None) -> None:
        self._data, self._name, self._submission = data, name, submission
        self._rows, self._images = rows, images

    def __contains__(self, number: int) -> bool:
        return 0 <= number < len(self._rows)

    def evidence(self, number: int) -> Any:
        """The boxes that hold what is asked about, as the data has them; None where it has none."""
        return self._rows.column("evidence")[number] if "evidence" in self._rows.columns else None

    def text(self, number: int) -> str:
        """What the model is asked."""
        return self._whole.text(number)

    def pictures(self, number: int) -> list[Image]:
        """What the model is shown; a question may have none."""
        rows, row = self._rows, number
        if self._images is not None:
            rows, row = self._images, self._places[self._rows.column("imageId")[number]]
        found = (rows.picture(row, column) for column in rows.pictures)
        return [picture.convert("RGB") for picture in found if picture is not None]

    def categories(self, name: str) -> dict[int, str]:
        """Of the benchmark `name`: the category of each question, as the data has it; empty where it has none."""
        if (column := category_column(name)) is None or column not in self._rows.columns:
            return {}
        return {number: category_name(value) for number, value in enumerate(self._rows.column(column))}

    @cached_property
    def _places(self) -> dict[Any, int]:
        assert self._images is not None, "only GQA has its pictures in a table of their own"
        return {name: row for row, name in enumerate(self._images.column("id"))}

    @cached_property
    def _whole(self) -> Questions:
        return open_questions(self._data, self._name, self._submission)


def stored_questions(data: str, name: str, submission: bool = False) -> Questions | StoredQuestions:
    """The questions of the benchmark `name` in `data`; of the hub's own data, those that lmms-eval has.

    `NoQuestions` where the data is not at hand.
    """
    if data == "hub" or name not in BENCHMARKS:
        return open_questions(data, name, submission)
    if missing := missing_data(data, [name], submission):
        raise NoQuestions(f"{name}: its data {data!r} is not at hand: {missing[0]}")
    root = data_root(data)
    assert root is not None, "only the hub has no folder"
    try:
        if name == "gqa":
            images = Rows(_tables(root / name / _GQA_IMAGES))
            return StoredQuestions(data, name, submission, Rows(_tables(root / name / _GQA_QUESTIONS)), images)
        # miniatures have but one split
        test = submission and name in SERVED and data not in MINIATURES
        rows = Rows(_tables(root / name / TEST if test else root / name))
        return StoredQuestions(data, name, submission, rows, None)
    except (OSError, ValueError) as error:
        raise NoQuestions(f"{name}: its data {data!r} is not at hand: {error}") from error


def _tables(folder: Path) -> list[Path]:
    """In the order in which `datasets` reads them."""
    if not (found := sorted(folder.glob("*.parquet"))):
        raise FileNotFoundError(f"{folder} holds no .parquet files")
    return found
