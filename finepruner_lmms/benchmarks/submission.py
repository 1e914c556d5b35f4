"""Files for the servers that score the hidden test splits: what each takes, how it is written, whether it is whole.

VQAv2 and VizWiz take a JSON list with answers normalised as LLaVA's `convert_*_for_submission.py` do it (EvalAI's
processing), MMBench a spreadsheet of the answers as given. VQAv2's server wants every question of test, also for its
phase test-dev.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
TEST = "test"
_MMBENCH = ("index", "question", "A", "B", "C", "D", "prediction")


@dataclass(frozen=True)
class Served:
    """What one server takes: `keys` of each entry, of which the first names the question, and the column it is from."""

    suffix: str
    keys: tuple[str, ...]
    column: str


SERVED: Mapping[str, Served] = {
    "vqav2": Served("json", ("question_id", "answer"), "question_id"),
    "vizwiz": Served("json", ("image", "answer"), "question_id"),
    "mmbench": Served("xlsx", _MMBENCH, "index"),
    "mmbench_cn": Served("xlsx", _MMBENCH, "index"),
}
"""The benchmarks whose test split only a server scores."""


def task_lines(name: str) -> list[str]:
    """The keys of a task file that make it write a submission instead of scoring."""
    here = "!function finepruner_lmms.benchmarks.submission"
    return [
        f"test_split: {TEST}",
        f"doc_to_target: {here}.unknown",
        f"process_results: {here}.{name}_entry",
        "metric_list:",
        f"  - {{metric: submission, aggregation: {here}.write_{name}, higher_is_better: true}}",
    ]


def unknown(doc: Entry) -> str:
    """The right answer, which nobody has."""
    return ""


# -- entries ----------------------------------------------------------------------------------------------------------


def vqav2_entry(doc: Entry, results: list[str]) -> dict[str, Entry]:
    """`{"question_id": int, "answer": normalised}`."""
    return {"submission": {"question_id": doc["question_id"], "answer": _normalised(results[0])}}


def vizwiz_entry(doc: Entry, results: list[str]) -> dict[str, Entry]:
    """`{"image": file name, "answer": normalised}`."""
    return {"submission": {"image": question_name("vizwiz", doc["question_id"]), "answer": _normalised(results[0])}}


def mmbench_entry(doc: Entry, results: list[str]) -> dict[str, Entry]:
    """A row: index, question, options (empty where there is none) and the answer as given."""
    from finepruner_lmms.benchmarks.mmbench import LETTERS, options_of

    options = options_of(doc)
    row = {"index": doc["index"], "question": doc["question"]} | {letter: options.get(letter) for letter in LETTERS}
    return {"submission": row | {"prediction": results[0].strip()}}


mmbench_cn_entry = mmbench_entry


def question_name(name: str, value: Any) -> Any:
    """What the server calls a question, by the value of `Served.column`: VizWiz wants a file name."""
    return value if name != "vizwiz" or str(value).endswith(".jpg") else f"{value}.jpg"


def _normalised(answer: str) -> str:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    return str(EvalAIAnswerProcessor()(answer))


# -- files ------------------------------------------------------------------------------------------------------------


def write_vqav2(results: Sequence[Entry], args: Any) -> None:
    """The aggregation of `fp_vqav2`."""
    _aggregate("vqav2", results, args)


def write_vizwiz(results: Sequence[Entry], args: Any) -> None:
    """The aggregation of `fp_vizwiz`."""
    _aggregate("vizwiz", results, args)


def write_mmbench(results: Sequence[Entry], args: Any) -> None:
    """The aggregation of `fp_mmbench`."""
    _aggregate("mmbench", results, args)


def write_mmbench_cn(results: Sequence[Entry], args: Any) -> None:
    """The aggregation of `fp_mmbench_cn`."""
    _aggregate("mmbench_cn", results, args)


def _aggregate(name: str, entries: Sequence[Entry], args: Any) -> None:
    """Write `<output_path>/submissions/fp_<name>.<suffix>`; nothing that a limit has made incomplete."""
    from loguru import logger

    if getattr(args, "limit", None) is not None:
        logger.warning(f"fp_{name}: no submission written: with limit {args.limit} it would lack questions")
        return
    folder = Path(getattr(args, "output_path", None) or ".") / "submissions"
    folder.mkdir(parents=True, exist_ok=True)
    suffix, number = SERVED[name].suffix, 1
    path = folder / f"fp_{name}.{suffix}"
    while path.exists():  # of another run into the same folder
        number += 1
        path = folder / f"fp_{name}-{number}.{suffix}"
    write(path, name, entries)
    logger.info(f"fp_{name}: {len(entries)} answers for the server in {path}")


def write(path: Path, name: str, entries: Sequence[Entry]) -> None:
    """Write the file that the server of `name` takes."""
    if SERVED[name].suffix == "json":
        path.write_text(json.dumps(list(entries)), encoding="utf-8")
        return
    import openpyxl
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(SERVED[name].keys)
    for row, entry in enumerate(entries, 2):
        for column, key in enumerate(SERVED[name].keys, 1):
            value = entry[key]
            if isinstance(value, str):
                cell = sheet.cell(row, column, ILLEGAL_CHARACTERS_RE.sub("", value))
                cell.data_type = "s"  # never a formula, whatever it begins with
            elif value is not None:
                sheet.cell(row, column, value)
    book.save(path)


def check(path: Path, name: str, questions: Iterable[Any]) -> int:
    """Check that a file is what the server of `name` takes: every one of `questions` once, and nothing else.

    Returns how many there are; `ValueError` saying what is wrong otherwise. `questions` are the values of the
    column `SERVED[name].column` of the test split.
    """
    served = SERVED[name]
    entries = _read(path, served)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or tuple(entry) != served.keys:
            raise ValueError(f"{path}: entry {number} is {entry!r:.200}; expected the keys {', '.join(served.keys)}")
        answer = entry[served.keys[-1]]
        if not isinstance(answer, str):
            raise ValueError(f"{path}: entry {number}: {served.keys[-1]} is {answer!r}; expected a text")
    given = Counter(entry[served.keys[0]] for entry in entries)
    wanted = {question_name(name, question) for question in questions}
    problems = {
        "missing": [question for question in wanted if question not in given],
        "answered twice": [question for question, count in given.items() if count > 1],
        "not of this split": [question for question in given if question not in wanted],
    }
    found = [
        f"{len(which)} questions are {what} (such as {min(which, key=str)!r})"
        for what, which in problems.items()
        if which
    ]
    if found:
        raise ValueError(f"{path}: {'; '.join(found)}; run all questions of {TEST}, without a limit")
    return len(entries)


def _read(path: Path, served: Served) -> list[Any]:
    if served.suffix == "json":
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(entries, list):
            raise ValueError(f"{path}: got {type(entries).__name__}; expected a list of answers")
        return entries
    import zipfile

    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        rows = list(openpyxl.load_workbook(path, read_only=True).worksheets[0].values)
    except (OSError, KeyError, zipfile.BadZipFile, InvalidFileException) as error:
        raise ValueError(f"{path}: cannot be read as a spreadsheet: {error}") from error
    titles = [str(title) for title in rows[0]] if rows else []
    # an answer of no characters comes back as nothing
    empty = {served.keys[-1]: ""}
    return [{t: empty.get(t) if v is None else v for t, v in zip(titles, row, strict=True)} for row in rows[1:]]
