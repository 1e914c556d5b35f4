"""How long the model waits for its input, and what a picture costs before the vision tower sees it.

    python benchmarks/image_path.py [--task textvqa] [--questions 240] [--batch 16] [--method fastv] [--budget 128]

A miniature benchmark on the demo model: pictures that are new, the same questions again, and new pictures once more
with nothing read ahead. One JSON line each. The share is of the time from the first request to the last answer.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from lmms_eval.api.instance import Instance
from loguru import logger
from PIL import Image

from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.demo.root import miniatures
from finepruner_lmms.lmms import model as running
from finepruner_lmms.lmms.image_encoding import content_key
from finepruner_lmms.lmms.model import LlavaFinePruner


def requests(documents: datasets.Dataset) -> list[Instance]:
    """A question about each document, as lmms-eval would ask it."""
    asked = []
    for place in range(len(documents)):
        ending = "Answer the question using a single word or phrase."
        question = f"{documents[place].get('question', 'What is shown?')}\n{ending}"
        arguments = (question, {"max_new_tokens": 8}, lambda row: [row["image"].convert("RGB")], place, "t", "test")
        about = {"task": "t", "doc_id": place, "repeats": 1}
        asked.append(Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=about))
    return asked


def measure(lm: LlavaFinePruner, documents: datasets.Dataset, name: str) -> None:
    """Answer everything and say what it took."""
    lm.task_dict = {"t": {"test": documents}}
    for _ in lm.generate_until(requests(documents)):
        pass
    spent = lm.meter.spent()
    assert spent is not None and spent.waiting is not None
    record = {"what": name, "questions": spent.questions, "seconds": round(spent.seconds, 2)}
    record |= {"waited": round(spent.waiting, 3), "share": round(spent.waiting / spent.seconds, 4)}
    print(json.dumps(record | {"encoded": spent.images.encoded, "hit_rate": spent.images.hit_rate}), flush=True)


def nothing_ahead(windows: Any, prepare: Any, waited: Callable[[float], None]) -> Any:
    """`one_ahead` without the threads."""
    for window in windows:
        started = time.perf_counter()
        make = prepare(window)
        done = [make(item) for item in window]
        waited(time.perf_counter() - started)
        yield done


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of 15 calls."""
    times = []
    for _ in range(15):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(times), 2)


def main() -> None:
    """Measure on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="textvqa")
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--method", default="fastv")
    parser.add_argument("--budget", default="128")
    options = parser.parse_args()
    logger.remove()
    files = sorted(map(str, Path(miniatures("demo"), options.task).rglob("*.parquet")))
    documents = datasets.Dataset.from_parquet(files)
    documents = documents.select(range(min(options.questions, len(documents))))
    method = {"method": options.method} | ({} if options.method == "vanilla" else {"budget": options.budget})
    lm = LlavaFinePruner(pretrained="demo", batch_size=options.batch, max_new_tokens=8, **method)
    stored = documents.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    picture = Image.open(io.BytesIO(stored)).convert("RGB")
    processor = lm.processor.image_processor
    print(json.dumps({
        "what": "ms per picture", "size": picture.size, "threads": torch.get_num_threads(),
        "decode": milliseconds(lambda: Image.open(io.BytesIO(stored)).convert("RGB")),
        "fingerprint": milliseconds(lambda: content_key(picture)),
        "pad, resize, normalise": milliseconds(lambda: preprocess(processor, picture)),
    }))  # fmt: skip
    measure(lm, documents, "new pictures, read ahead")
    measure(lm, documents, "known pictures, read ahead")
    vars(running)["one_ahead"] = nothing_ahead
    lm = LlavaFinePruner(pretrained="demo", batch_size=options.batch, max_new_tokens=8, **method)
    measure(lm, documents, "new pictures, nothing ahead")


if __name__ == "__main__":
    main()
