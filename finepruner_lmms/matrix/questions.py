"""The questions of a task as its data has them: text, right answer, pictures, by number in the whole data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from finepruner_lmms.benchmarks import BENCHMARKS, image_names
from finepruner_lmms.benchmarks.limits import document_numbers
from finepruner_lmms.errors import Failure, first_line
from finepruner_lmms.judge.settings import VARIABLE

if TYPE_CHECKING:
    from PIL import Image


_CATEGORIES = {
    "vqav2": "answer_type", "gqa": "types", "vizwiz": "category", "sqa": "topic", "pope": "category", "mme": "category",
    "mmbench": "category", "mmbench_cn": "category", "mmvet": "capability",
}  # fmt: skip
"""The column that says what kind of question it is."""


class NoQuestions(Failure, LookupError):
    """The data of a task is not at hand."""


class Questions:
    """The questions of one task, read with lmms-eval's task of it. Pictures are decoded when they are asked for."""

    def __init__(self, task: Any, documents: Any, column: str) -> None:
        self._task, self._documents, self._column = task, documents, column
        self.numbers: Sequence[int] = document_numbers(documents)
        self._places = {number: place for place, number in enumerate(self.numbers)}
        self._plain = _without_pictures(documents)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def fields(self, number: int) -> dict[str, Any]:
        """The document without its pictures."""
        return dict(self._plain[self._places[number]])

    def evidence(self, number: int) -> Any:
        """The boxes that hold what is asked about, as the data has them; None where it has none."""
        return self.fields(number).get("evidence")

    def text(self, number: int) -> str:
        """What the model is asked."""
        return str(self._task.doc_to_text(self.fields(number)))

    def target(self, number: int) -> Any:
        """The right answer, or answers, as samples have them."""
        return self._task.doc_to_target(self.fields(number))

    def pictures(self, number: int) -> list[Image.Image]:
        """What the model is shown; a question may have none."""
        return list(self._task.doc_to_visual(self._documents[self._places[number]]))

    def categories(self, name: str) -> dict[int, str]:
        """Of the benchmark `name`: the category of each question, as the data has it; empty where it has none."""
        if (column := category_column(name)) is None or column not in self._plain.column_names:
            return {}
        found = self._plain.select_columns([column])[column]
        return {number: category_name(value) for number, value in zip(self.numbers, found, strict=True)}

    def images(self) -> dict[int, str]:
        """Which picture each question is about, by the name that samples have."""
        return dict(zip(self.numbers, image_names(self._documents, self._column), strict=True))


def open_questions(data: str, name: str, submission: bool = False) -> Questions:
    """The questions of the benchmark `name` in `data`: all of them, whatever a limit chose.

    `NoQuestions` where the data is not at hand.
    """
    from finepruner_lmms.data.ready import hub_copies, missing_data

    if name not in BENCHMARKS:
        raise NoQuestions(f"{name}: its questions are lmms-eval's own, and are not loaded to be shown")

    if (missing := missing_data(data, [name], submission)) or (data == "hub" and not hub_copies(name)):
        why = str(missing[0]) if missing else "it was never loaded here, and is not fetched to be shown"
        raise NoQuestions(f"{name}: its data {data!r} is not at hand: {why}")

    from lmms_eval.tasks import TaskManager, get_task_dict
    from tenacity import RetryError

    from finepruner_lmms.data.task_folders import folder

    benchmark = BENCHMARKS[name]
    try:
        with redirect_stdout(sys.stderr), _judged_later():  # lmms-eval logs to the standard output
            manager = TaskManager(
                include_path=str(folder(data, submission)), include_defaults=False, model_name="llava_finepruner"
            )
            task = get_task_dict([benchmark.task], manager)[benchmark.task]
        documents = task.dataset[task.config.test_split]
    except (OSError, ValueError, KeyError, RetryError) as error:  # not prepared, not in the local cache, no network
        raise NoQuestions(f"{name}: its data {data!r} is not at hand: {first_line(error)}") from error
    return Questions(task, documents, benchmark.image_column)


@contextmanager
def _judged_later() -> Iterator[None]:
    """MM-Vet's task asks at once who judges, which matters to nobody who only reads its questions."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "later"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def category_column(name: str) -> str | None:
    """The column of a benchmark's data that says what kind of question each is."""
    return _CATEGORIES.get(name)


def category_name(value: Any) -> str:
    """What such a column says, as a text.

    GQA says of a question several things; the first is what must be done with the picture.
    """
    if isinstance(value, dict):
        value = value.get("structural")
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _without_pictures(documents: Any) -> Any:
    import datasets

    kept = [name for name, feature in documents.features.items() if not isinstance(feature, datasets.Image)]
    return documents.select_columns(kept)
