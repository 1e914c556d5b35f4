"""What each of the ten benchmarks consists of: repository, files, rows, columns. One table, nothing is computed.

The repositories are those that lmms-eval 0.7.3 names in its task files. Names of files are those of public dataset
pages (`lmms-lab/…`, where the repositories were before), numbers of rows come from where `source` says. None was
compared with the files themselves, so a table with another number of rows is an error which the user can overrule
(`--accept-rows`), never a silent change.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("text", "number", "texts", "annotators", "image", "any")
"""Kinds of columns: `texts` are lists of them; `annotators` lists of structures with `answer` and `answer_id`; `image`
a structure with the encoded bytes, which the file says is a `datasets.Image`."""


@dataclass(frozen=True)
class Table:
    """One table: parquet files of a repository, and the folder below `ROOT/<task>` that they go to.

    `columns` are those that prompts, scores and the grouping of questions by image read, with their kinds; a value
    may be missing only in those of `may_lack`. `rows` is None where their number is not known.
    """

    files: str
    rows: int | None
    columns: dict[str, str]
    folder: str = ""
    may_lack: frozenset[str] = frozenset()

    @property
    def images(self) -> list[str]:
        """The columns that hold images."""
        return [name for name, kind in self.columns.items() if kind == "image"]


@dataclass(frozen=True)
class Facts:
    """A benchmark's data: `tables[0]` holds the questions. `note` is the licence, where the page names one."""

    repo: str
    split: str
    tables: tuple[Table, ...]
    source: str
    config: str | None = None
    note: str = ""


def _mmbench(config: str, source: str) -> Facts:
    columns = dict.fromkeys(("question", "hint", "answer", "A", "B", "C", "D", "category", "source", "split"), "text")
    columns |= {"index": "number", "L2-category": "text", "image": "image"}
    lacking = frozenset(columns) - {"question", "answer", "A", "B", "index", "category", "image"}
    table = Table(f"{config}/dev-*.parquet", 4329, columns, may_lack=lacking)
    return Facts("lmms-lab-encoder/MMBench", "dev", (table,), source, config)


FACTS: dict[str, Facts] = {
    "vqav2": Facts(
        "lmms-lab-encoder/VQAv2",
        "validation",
        (
            Table(
                "data/validation-*.parquet",
                214_354,
                {
                    "question": "text",
                    "multiple_choice_answer": "text",
                    "answers": "annotators",
                    "question_id": "any",
                    "image_id": "any",
                    "image": "image",
                },
            ),
        ),
        "dataset page: 214k; VQA v2.0 release",
        note="CC BY 4.0, says the dataset page",
    ),
    "gqa": Facts(
        "lmms-lab-encoder/GQA",
        "testdev",
        (
            Table(
                "testdev_balanced_instructions/testdev-*.parquet",
                12_578,
                {"id": "any", "imageId": "text", "question": "text", "answer": "text"},
                "testdev_balanced_instructions",
            ),
            Table(
                "testdev_balanced_images/testdev-*.parquet",
                398,
                {"id": "text", "image": "image"},
                "testdev_balanced_images",
            ),
        ),
        "card of a dataset made from it",
        config="testdev_balanced_instructions",
        note="MIT, says the dataset page",
    ),
    "vizwiz": Facts(
        "lmms-lab-encoder/VizWiz-VQA",
        "val",
        (
            Table(
                "data/val-*.parquet",
                4319,
                {"question_id": "any", "question": "text", "answers": "texts", "image": "image"},
            ),
        ),
        "dataset page: 4.32k",
    ),
    "sqa": Facts(
        "lmms-lab-encoder/ScienceQA",
        "test",
        (
            Table(
                "ScienceQA-IMG/test-*.parquet",
                2017,
                {"question": "text", "choices": "texts", "answer": "number", "hint": "text", "image": "image"},
                may_lack=frozenset({"hint"}),
            ),
        ),
        "dataset page: 4.11k together with validation",
        config="ScienceQA-IMG",
    ),
    "textvqa": Facts(
        "lmms-lab-encoder/textvqa",
        "validation",
        (
            Table(
                "data/validation-*.parquet",
                5000,
                {
                    "image_id": "text",
                    "question_id": "any",
                    "question": "text",
                    "answers": "texts",
                    "ocr_tokens": "texts",
                    "image": "image",
                },
            ),
        ),
        "TextVQA paper, quoted from memory",
    ),
    "pope": Facts(
        "lmms-lab-encoder/POPE",
        "test",
        (
            Table(
                "data/test-*.parquet",
                9000,
                {
                    "question_id": "any",
                    "question": "text",
                    "answer": "text",
                    "image_source": "text",
                    "category": "text",
                    "image": "image",
                },
            ),
        ),
        "POPE paper, quoted from memory: 500 images, 6 questions, 3 kinds of negatives",
    ),
    "mme": Facts(
        "lmms-lab-encoder/MME",
        "test",
        (
            Table(
                "data/test-*.parquet",
                2374,
                {"question_id": "text", "question": "text", "answer": "text", "category": "text", "image": "image"},
            ),
        ),
        "dataset page: 2.37k",
    ),
    "mmbench": _mmbench("en", "quoted from memory; an earlier upload, MMBench_EN, has 4.38k"),
    "mmbench_cn": _mmbench("cn", "quoted from memory: as many as in English"),
    "mmvet": Facts(
        "lmms-lab-encoder/MMVet",
        "test",
        (
            Table(
                "data/test-*.parquet",
                218,
                {"question_id": "any", "question": "text", "answer": "text", "capability": "any", "image": "image"},
                may_lack=frozenset({"capability"}),
            ),
        ),
        "dataset page: 218",
    ),
}
"""By the name of the task."""


def tables(name: str) -> tuple[str, ...]:
    """The folders below `ROOT/<name>` that hold its tables; "" is that folder itself."""
    return tuple(table.folder for table in FACTS[name].tables)
