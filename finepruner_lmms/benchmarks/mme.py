"""MME: two questions about each image, which count alone and together, in points.

Perception is what papers on pruning report; cognition, and the total of both, are told beside it. lmms-eval stops where
one of a pair was not asked, as under its own `--limit`; here it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark, Beside, Rows, Sample
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lazy import np

PERCEPTION, COGNITION, TOTAL = "mme_perception_score", "mme_cognition_score", "mme_total_score"
_PERCEPTION_KINDS = {
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
}  # fmt: skip
_COGNITION_KINDS = {"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"}
_COGNITIVE = "cognition"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The answer as MME's `calculation.py` reads it, for the part that it counts in and for the total of both."""
    return _scored(doc, read(results[0]))


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The answer as lmms-eval reads it: also "Y", "N" and "y."."""
    from lmms_eval.tasks.mme.utils import parse_pred_ans

    return _scored(doc, str(parse_pred_ans(results[0])))


def _scored(doc: dict[str, Any], said: str) -> dict[str, Any]:
    true = doc["answer"].lower().strip().replace(".", "")
    if true not in ("yes", "no"):
        raise ValueError(f"answer: got {doc['answer']!r} in question {doc['question_id']!r}; expected yes or no")
    entry = {"question_id": doc["question_id"], "category": doc["category"], "score": float(said == true)}
    entry["image"] = entry["question_id"]
    part = PERCEPTION if doc["category"] in _PERCEPTION_KINDS else COGNITION  # as lmms-eval puts them
    return {part: entry, TOTAL: entry, "score": entry["score"]}


def read(answer: str) -> str:
    """`"yes"`, `"no"` or `"other"`: the word itself, or one that stands in the first four characters."""
    said = answer.strip().lower()
    start = said[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def aggregate(entries: Sequence[dict[str, Any]]) -> float:
    """lmms-eval's points of the whole pairs; what has no partner is left out, with a warning."""
    from lmms_eval.tasks.mme.utils import mme_aggregate_results
    from loguru import logger

    paired = whole_pairs(entries)
    if len(paired) < len(entries):
        logger.warning(f"MME: {len(entries) - len(paired)} questions have no partner and are left out of the score")
    if not paired:
        raise FieldError("limit", f"none of {len(entries)} questions has its partner", fix="give at least 2")
    return float(mme_aggregate_results(paired))


def whole_pairs(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries about images with two."""
    counts = Counter(pair_of(entry) for entry in entries)
    return [entry for entry in entries if counts[pair_of(entry)] == 2]


def pair_of(entry: Mapping[str, Any]) -> Hashable:
    """What the two questions of a pair share."""
    return entry["category"], entry["question_id"]


# -- from logged samples ----------------------------------------------------------------------------------------------


def rows(samples: Sequence[Sample]) -> Rows:
    """One row per pair of questions: accuracy plus accuracy+ of its category (0 to 200), and the count, by category.

    A question whose partner was not asked is left out, as the task does.
    """
    whole = _whole(samples)
    named = sorted({pair[0][1]["category"] for pair in whole})
    categories = {category: place for place, category in enumerate(named)}
    counted = np.zeros((len(whole), 2 * len(categories)))
    for row, pair in zip(counted, whole, strict=True):
        entries = [entry for _, entry in pair]
        right, place = sum(entry["score"] for entry in entries), categories[entries[0]["category"]]
        row[place] = 100 * right / 2 + 100 * (right == 2)
        row[len(categories) + place] = 1
    return counted, [pair[0][0] for pair in whole]


def each(samples: Sequence[Sample]) -> list[tuple[int, float]]:
    """The questions of whole pairs, right or wrong."""
    return [(number, float(entry["score"])) for pair in _whole(samples) for number, entry in pair]


def _whole(samples: Sequence[Sample]) -> list[list[tuple[int, dict[str, Any]]]]:
    """The pairs of perception that were asked both questions, each with its document."""
    pairs: dict[Hashable, list[tuple[int, dict[str, Any]]]] = {}
    for sample in samples:
        entry = sample.get(PERCEPTION)
        if entry is not None and not is_cognition(entry):
            pairs.setdefault(pair_of(entry), []).append((sample["doc_id"], entry))
    return [pair for pair in pairs.values() if len(pair) == 2]


def is_cognition(entry: Mapping[str, Any]) -> bool:
    """Whether a question's entry counts in cognition, under whichever name it was kept."""
    return entry.get("part") == _COGNITIVE or entry["category"] in _COGNITION_KINDS


def entry_of(sample: Sample) -> dict[str, Any] | None:
    """What is kept of a question: its entry, by whichever metric it is logged under."""
    if (entry := sample.get(PERCEPTION)) is not None:
        return dict(entry)
    return None if (entry := sample.get(COGNITION)) is None else {**entry, "part": _COGNITIVE}


def cognition(samples: Sequence[Sample]) -> float | None:
    """The points of the whole pairs of cognition; None where none was asked."""
    found = [entry for sample in samples if (entry := sample.get(PERCEPTION)) is not None and is_cognition(entry)]
    return aggregate(found) if whole_pairs(found) else None


def total(samples: Sequence[Sample]) -> float | None:
    """The points of perception and cognition together; None where no cognition was asked."""
    found = [entry for sample in samples if (entry := sample.get(PERCEPTION)) is not None]
    return None if cognition(samples) is None else aggregate(found)


def points(totals: np.ndarray) -> np.ndarray:
    """The sum over categories of the mean over its pairs."""
    scores, counts = np.split(totals, 2, axis=-1)
    return (scores / np.maximum(counts, 1)).sum(-1)


def full(totals: np.ndarray) -> np.ndarray:
    """200 points per category that was asked."""
    return 200.0 * (np.split(totals, 2, axis=-1)[1] > 0).sum(-1)


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    metric="mme_perception_score,none",
    image_column="question_id",
    rows=rows,
    points=points,
    full=full,
    each=each,
    pseudo=0.5,  # as simulated: a question moves the points of its pair by half as much as that of a mean
    beside=(
        Beside("mme_cognition_score,none", "cognition", of=cognition),
        Beside("mme_total_score,none", "total", of=total, needs="mme_cognition_score,none"),
    ),
    entry=entry_of,
    sampling=Sampling(("category", "question_id"), group=pair_of, stratum=lambda row: row["category"]),
)
