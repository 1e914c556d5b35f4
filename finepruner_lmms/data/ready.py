"""Whether the data of a task can be evaluated: one place for what `run` refuses and `doctor` shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finepruner_lmms.benchmarks.submission import SERVED, TEST
from finepruner_lmms.data.content import content_problems, image_problems
from finepruner_lmms.data.errors import DataError, UnusableData
from finepruner_lmms.data.facts import FACTS, Table, tables
from finepruner_lmms.data.hub import offline
from finepruner_lmms.data.manifest import check_task
from finepruner_lmms.data.verify import check_table, first_image
from finepruner_lmms.demo.root import MINIATURES


def missing_data(data: str, tasks: Sequence[str], submission: bool = False) -> list[DataError]:
    """Why tasks cannot be run on `data`, one per task that cannot; empty if all can. Only sizes are looked at.

    With `submission`, those that a server scores need the questions of their test split instead.
    """
    return [error for name in tasks if (error := _missing(data, name, submission)) is not None]


def _missing(data: str, name: str, submission: bool) -> DataError | None:
    if data in MINIATURES:
        return None
    if data == "hub":
        if not offline() or hub_copies(name):
            return None
        problem = f"{name}: {FACTS[name].repo} was never loaded here, and the network is switched off (HF_HUB_OFFLINE)"
        return DataError(
            "data", problem, fix="prepare a data root where there is a network, and give it as data", value=data
        )
    if submission and name in SERVED:
        folder = Path(data) / name / TEST
        if any(folder.glob("*.parquet")):
            return None
        fix = "put the questions of the test split there"
        return DataError("data", f"{folder} holds no .parquet files", fix=fix, value=data)
    try:
        check_task(Path(data), name, tables(name))
    except DataError as error:
        return error
    return None


def data_problems(data: str, tasks: Sequence[str], submission: bool = False) -> list[DataError]:
    """All that is wrong with the data of tasks: what `missing_data` finds, and for a data root what is in its tables.

    A number of rows other than the known one is no problem here: a part of a benchmark can be evaluated.
    """
    problems = []
    for name in tasks:
        if (missing := _missing(data, name, submission)) is not None:
            problems.append(missing)
        elif data != "hub" and data not in MINIATURES:
            problems += [error for found in examine(Path(data), name, submission) for error in found.problems]
    return problems


def require_data(data: str, tasks: Sequence[str], submission: bool = False) -> None:
    """Raise `UnusableData` with all that `data_problems` finds."""
    if problems := data_problems(data, tasks, submission):
        raise UnusableData(problems)


@dataclass(frozen=True)
class Examined:
    """What one table of a data root is like: its rows and files, the size of its first image, what is wrong."""

    table: Table
    rows: int
    files: int
    picture: tuple[int, int] | None
    problems: tuple[DataError, ...]


def examine(root: Path, name: str, submission: bool = False) -> list[Examined]:
    """The tables of a task in a data root, which are there (`missing_data`); with `submission` those of its server."""
    if submission and name in SERVED:
        return [_table(root / name / TEST, f"{name}/{TEST}", _questions(name))]
    found = [_table(root / name / t.folder, f"{name}/{t.folder}".rstrip("/"), t) for t in FACTS[name].tables]
    if name == "gqa" and not any(table.problems for table in found):
        files = [sorted((root / name / table.folder).glob("*.parquet")) for table in FACTS[name].tables]
        try:
            problems = tuple(image_problems(*files))
        except DataError as error:  # a column that cannot be read
            problems = (error,)
        found[1] = Examined(**vars(found[1]) | {"problems": problems})
    return found


def _table(folder: Path, what: str, table: Table) -> Examined:
    paths = sorted(folder.glob("*.parquet"))
    try:
        rows = sum(check_table(paths, table, what).values())
        if not rows:
            raise DataError("data", f"{folder} holds no rows")
        problems = tuple(content_problems(table, paths))
        pictures = [first_image(paths[0], column) for column in table.images] if not problems else []
    except DataError as error:
        return Examined(table, 0, len(paths), None, (error,))
    return Examined(table, rows, len(paths), pictures[0] if pictures else None, problems)


def _questions(name: str) -> Table:
    """The table of a test split: what a prompt and the server's file need; how many rows it has is not known here."""
    given = FACTS[name].tables[0]
    unknown = {"answer", "answers", "multiple_choice_answer", "image_id", "category", "source", "split", "L2-category"}
    columns = {column: kind for column, kind in given.columns.items() if column not in unknown}
    return Table("*.parquet", None, columns, may_lack=given.may_lack)


def datasets_cache() -> Path:
    """Where lmms-eval keeps the Arrow copies of tables (on a network file system it may choose a local disk)."""
    if named := os.environ.get("LMMS_EVAL_DATASETS_CACHE", "").strip():
        return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.path.expandvars(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets"))).expanduser()


def hub_copies(name: str) -> list[Path]:
    """The folders in which `datasets` has a benchmark from the hub for use without network; empty unless all of it."""
    from datasets.naming import camelcase_to_snakecase

    facts, found = FACTS[name], []
    owner, _, repo = facts.repo.partition("/")
    for table in facts.tables:
        config = table.folder or facts.config or "default"
        folder = datasets_cache() / f"{owner}___{camelcase_to_snakecase(repo)}" / config
        copies = sorted(path.parent for path in folder.glob("*/*/dataset_info.json"))
        if not copies:
            return []
        found.append(copies[-1])
    return found
