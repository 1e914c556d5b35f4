"""GQA: accuracy; its images come in a table of their own, joined by `imageId`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark

if TYPE_CHECKING:
    from PIL import Image

BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    metric=accuracy.METRIC,
    image_column="imageId",
    rows=accuracy.rows,
    points=accuracy.mean,
    full=accuracy.one,
    factor=100,
    sampling=Sampling(("id",), group=lambda row: row["id"]),
)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """1 if the answer is the right one as LLaVA hands it to GQA's `eval.py`: small letters, without dots at its end."""
    return accuracy.scored(score(results[0], doc["answer"]), doc.get("imageId"))


def score(answer: str, right: str) -> float:
    """1 if an answer is the right one, else 0."""
    return float(answer.strip().rstrip(".").lower() == right)


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """1 if the answer is the right one for lmms-eval, to which neither case nor any punctuation matters."""
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    found = exact_match_hf_evaluate([results[0].strip()], [doc["answer"]], ignore_case=True, ignore_punctuation=True)
    return accuracy.scored(float(found["exact_match"]), doc.get("imageId"))


Visual = Callable[[dict[str, Any]], "list[Image.Image]"]


def images_of(path: str, name: str | None = None, split: str = "testdev", data_files: str | None = None) -> Visual:
    """A `doc_to_visual` that looks up `imageId` in a table of images, read when first needed.

    The table is what `datasets.load_dataset` makes of these arguments.

    lmms-eval copies every image into the table of questions by `map` with eight processes, from the hub only.
    """

    @functools.cache
    def table() -> tuple[Any, dict[str, int]]:
        from datasets import load_dataset

        images = load_dataset(path, name, split=split, data_files=data_files)
        return images, {image_id: row for row, image_id in enumerate(images["id"])}

    def visual(doc: dict[str, Any]) -> list[Image.Image]:
        images, rows = table()
        return [images[rows[doc["imageId"]]]["image"].convert("RGB")]

    return visual


hub_visual = images_of("lmms-lab-encoder/GQA", "testdev_balanced_images")
