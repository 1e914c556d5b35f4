"""Rows written as parquet, images as JPEG inside, with the types of the real datasets."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from finepruner_lmms.demo.rows import Row

Tables = dict[str, list[Row]]
Maker = Callable[[str, int], Tables]
"""A split and the number of its first scene → each table's rows, by the folder it goes to."""
STRIDE = 100_000  # between the scenes of two benchmarks


def write(makers: Mapping[str, Maker], target: Path, split: str) -> None:
    """Every benchmark of `makers` to `target/<name>/`, each on scenes of its own."""
    for place, name in enumerate(makers):
        for table, rows in makers[name](split, place * STRIDE).items():
            _save(rows, target / name / table, name)


def _save(rows: list[Row], folder: Path, name: str) -> None:
    import datasets

    pictures: dict[Any, dict[str, Any]] = {}

    def picture(scene: Any) -> dict[str, Any]:
        if scene not in pictures:
            pictures[scene] = {"bytes": _jpeg(scene.image()), "path": None}
        return pictures[scene]

    plain = [{k: picture(v) if k == "image" else v for k, v in row.items()} for row in rows]
    table = datasets.Dataset.from_list(plain, features=_features(rows[0], name))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{name}-00000-of-00001.parquet")


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _features(row: Row, name: str) -> Any:
    """Types as in the real datasets, also for columns that are empty here."""
    from datasets import Features, List, Value
    from datasets import Image as ImageColumn

    text, whole = Value("string"), Value("int64")
    special = {
        "groups": {"global": text, "local": text},
        "types": {"structural": text, "semantic": text, "detailed": text},
        "annotations": {key: List({"objectId": text, "value": text}) for key in ("answer", "fullAnswer", "question")},
        "semantic": List({"operation": text, "argument": text, "dependencies": List(Value("int32"))}),
        "isBalanced": Value("bool"),
        "ocr_info": List({"word": text}),
        "evidence": List(List(Value("int32"))),
        "answers": List({"answer": text, "answer_confidence": text, "answer_id": whole})
        if name == "vqav2"
        else List(text),
        "image": ImageColumn(),
    }
    kinds: dict[str, Any] = {}
    for key, value in row.items():
        if key in special:
            kinds[key] = special[key]
        elif isinstance(value, list):
            kinds[key] = List(text)
        else:
            kinds[key] = whole if isinstance(value, int) else text
    return Features(kinds)
