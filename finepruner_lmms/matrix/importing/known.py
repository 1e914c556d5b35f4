"""What is known of the questions that were asked elsewhere: from rows that were run here, or from the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finepruner_lmms.errors import show
from finepruner_lmms.matrix.foreign import ForeignTask
from finepruner_lmms.matrix.imports import alone
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.questions import NoQuestions, Questions, open_questions
from finepruner_lmms.matrix.records import Sample
from finepruner_lmms.matrix.rescoring import question_id_of
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import Store


class Known:
    """What is known of a task's questions by their number: picture, right answer, and what a scorer reads besides."""

    def __init__(
        self, asked: Sequence[int], images: dict[int, str], targets: dict[int, Any], fields: dict[int, dict[str, Any]],
        places: Sequence[int] | None,
    ) -> None:  # fmt: skip
        self.asked, self.images, self.targets, self.fields = frozenset(asked), images, targets, fields
        self._places = places

    def number(self, doc_id: int) -> int:
        """The number in the whole data set of a document of the foreign run."""
        return doc_id if self._places is None else self._places[doc_id]

    @classmethod
    def of_rows(cls, store: Store, study: Study | None, task: ForeignTask, notes: list[str]) -> Known | None:
        """From the samples of a finished row: one that was run here before one that was imported."""
        cells = [cell for cell in study.cells if cell.task == task.benchmark] if study is not None else []
        for cell in sorted(cells, key=lambda cell: cell.method.imported is not None):
            if store.states([cell])[0].result is None:
                continue
            ours = {line["doc_id"]: line for line in read_lines(store.cell_dir(cell) / "samples.jsonl")}
            if cell.method.imported is not None and any(_stands_alone(line) for line in ours.values()):
                continue
            numbers = sorted(ours)
            places = None
            if task.limited:
                if len(numbers) != len(task.samples):
                    these = len(task.samples)
                    notes.append(f"{cell.method.label} was asked {len(numbers)} questions, not these {these}")
                    continue
                places = numbers
            pairs = [(s, places[s["doc_id"]] if places else s["doc_id"]) for s in task.samples]
            common = [(sample, number) for sample, number in pairs if number in ours]
            if not common:
                notes.append(f"none of its questions has the number of one that {cell.method.label} was asked")
                continue
            if _uninformative(task):
                continue  # the data may tell
            if wrong := [(s, n) for s, n in common if not _same(ours[n]["target"], s.get("target"))]:
                sample, number = wrong[0]
                notes.append(
                    f"the right answers of {len(wrong)} of {len(common)} questions are not those that "
                    f"{cell.method.label} has (document {number}: {show(sample.get('target'))}, there "
                    f"{show(ours[number]['target'])}), so that they are other questions"
                )
                continue
            fields = {n: line["score"] for n, line in ours.items() if isinstance(line["score"], dict)}
            return cls(
                numbers,
                {n: line["image"] for n, line in ours.items()},
                {n: line["target"] for n, line in ours.items()},
                fields,
                places,
            )
        return None

    @classmethod
    def of_data(cls, data: str, task: ForeignTask, notes: list[str]) -> Known | None:
        """From the data itself."""
        if task.limited:
            notes.append("its questions were chosen by this package's limit, and no row run here was asked the same")
            return None
        try:
            questions = open_questions(data, task.benchmark)
        except NoQuestions as error:
            notes.append(str(error))
            return None
        for sample in task.samples:
            if (number := sample["doc_id"]) not in questions:
                notes.append(f"the data {data!r} has no document {number}")
                return None
            if not _is_question(questions, number, sample, task):
                notes.append(f"document {number} of the data {data!r} is another question")
                return None
        numbers = [sample["doc_id"] for sample in task.samples]
        images = questions.images()
        return cls(
            numbers,
            {number: images[number] for number in numbers},
            {number: questions.target(number) for number in numbers},
            {number: questions.fields(number) for number in numbers},
            None,
        )


def _is_question(questions: Questions, number: int, sample: dict[str, Any], task: ForeignTask) -> bool:
    """Whether a sample answers this question of the data: by the right answer, or else by the question's own id."""
    if not _uninformative(task):
        return _same(questions.target(number), sample.get("target"))
    identity, asked = question_id_of(sample), questions.fields(number).get("question_id")
    return identity is not None and _bare(identity) == _bare(str(asked))


def _bare(name: str) -> str:
    """A question's id, which VizWiz has with and without the suffix of its picture."""
    return name.removesuffix(".jpg")


def _uninformative(task: ForeignTask) -> bool:
    """Whether all targets are one word that is no answer: lmms-eval logs "answer" for tasks with ten annotators."""
    return {str(sample.get("target")).strip() for sample in task.samples} <= {"answer", "None", ""}


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two right answers are one; lmms-eval writes every target as Python's text of it."""
    return ours == theirs or str(ours).strip() == str(theirs).strip()


def _stands_alone(line: Sample) -> bool:
    return line["image"] == alone(line["doc_id"])
