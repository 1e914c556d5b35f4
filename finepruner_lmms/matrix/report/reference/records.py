"""The published scores of LLaVA-1.5-7B with pruned visual tokens, as collected in `llava-1.5-7b.json`.

None of them was measured with this package. The file names each score's source, and how surely it was transcribed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

MODEL = "LLaVA-1.5-7B"


@dataclass(frozen=True)
class Published:
    """A score as its source prints it: percent, or points of MME.

    `lineage` is the family of evaluations whose numbers compare with each other; `budget` counts visual tokens, 576
    being all. `heads` and `strategy` are those of `finepruner`, None elsewhere.
    """

    source: str
    lineage: str
    method: str
    budget: int
    heads: int | None
    strategy: str | None
    benchmark: str
    metric: str
    value: float
    split_note: str | None
    provenance: str
    confidence: str


@cache
def published() -> tuple[Published, ...]:
    """All scores, in the order of the file."""
    return tuple(Published(**record) for record in _content()["records"])


@cache
def citations() -> dict[str, str]:
    """What each source is."""
    return {name: source["citation"] for name, source in _content()["sources"].items()}


@cache
def _content() -> dict:
    return json.loads(resources.files(__package__).joinpath("llava-1.5-7b.json").read_text(encoding="utf-8"))
