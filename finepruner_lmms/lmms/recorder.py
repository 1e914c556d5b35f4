"""What is recorded of the questions of a cell while they are answered, for whoever looks at its answers later.

Of a batch that holds a recorded question, what its trace holds on the device comes to the host after its answers are
there; nothing waits before. The records go into the cell's journal with the answers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finepruner_lmms.asking.inputs import Prompt
from finepruner_lmms.benchmarks.limits import document_numbers, recorded
from finepruner_lmms.engine.families.family import View
from finepruner_lmms.engine.trace import Trace, on_host
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.batching import Prepared, image_row
from finepruner_lmms.lmms.traced import MAP_SIDE, MOST_MAPS, Stage, Traced, to_record

VARIABLE = "FINEPRUNER_RECORD"
"""In the environment of a plain `lmms_eval` run: of how many questions, and of how many first ones they are (`200/50`,
or `200`); without it, a run outside the matrix runner records none."""


@dataclass(frozen=True)
class Recorder:
    """Records at most `questions` of a task: the same for every method (`benchmarks.limits.recorded`).

    `among` are the first documents that are asked, where lmms-eval limits them itself.
    """

    questions: int = 0
    among: int | None = None

    @classmethod
    def of_environment(cls) -> Recorder:
        """What `VARIABLE` asks for."""
        given = os.environ.get(VARIABLE, "") or "0"
        most, _, among = given.partition("/")
        if not most.isdecimal() or (among and not among.isdecimal()):
            raise FieldError(VARIABLE, f"got {given!r}; expected a number, or two such as 200/50", value=given)
        return cls(int(most), int(among) if among else None)

    def as_variable(self) -> str:
        """What `of_environment` reads."""
        return str(self.questions) if self.among is None else f"{self.questions}/{self.among}"

    def numbers(self, splits: Mapping[str, Any]) -> frozenset[tuple[str, int]]:
        """Which questions are recorded of the documents of tasks, by task: task and number in the whole data set."""
        if not self.questions:
            return frozenset()
        found: set[tuple[str, int]] = set()
        for task, documents in splits.items():
            chosen = hasattr(documents, "column_names")
            numbers = document_numbers(documents) if chosen else range(len(documents))
            asked = numbers if isinstance(numbers, range) else tuple(numbers)
            found |= {(task, number) for number in _recorded(asked[: self.among], self.questions)}
        return frozenset(found)


@functools.lru_cache(maxsize=32)
def _recorded(numbers: Sequence[int], most: int) -> frozenset[int]:
    return frozenset(recorded(numbers, most))


def records(batch: Sequence[Prepared], trace: Trace, wanted: Iterable[int]) -> dict[int, dict[str, Any]]:
    """What happened to the visual tokens of the `wanted` rows of a batch, by row, as JSON has it (`lmms.traced`)."""
    rows = [row for row in wanted if trace.has_image[row]]
    if not rows:
        return {}
    seen = _Seen.of(trace)
    return {row: to_record(_traced(batch[row], seen, row, image_row(batch, row))) for row in rows}


@dataclass(frozen=True)
class _Seen:
    """A trace on the host, by layer: `keep` and `merged` `[B, V]`, `heads`, the `scores` of all, `guides` `[B, m, V]`.

    The last three have a row for each image where a row of the batch shows several (`batching.image_row`).
    """

    keep: dict[int, NDArray[np.bool_]]
    merged: dict[int, NDArray[np.bool_]]
    heads: dict[int, NDArray[np.int64]]
    scores: dict[int, NDArray[np.float32]]
    guides: dict[int, NDArray[np.float32]]
    entering: list[list[int]]

    @classmethod
    def of(cls, trace: Trace) -> _Seen:
        """With a wait for each type of values."""
        return cls(
            _arrays(trace.keep_masks),
            _arrays(trace.merge_masks),
            _arrays({layer: heads for layer, (heads, _) in trace.chosen_heads.items()}),
            _arrays({layer: scores.float() for layer, (_, scores) in trace.chosen_heads.items()}),
            _arrays({layer: values.float() for layer, values in trace.guides.items()}),
            trace.tokens_entering,
        )


def _arrays(values: Mapping[int, Any]) -> dict[int, Any]:
    layers = sorted(values)
    found = on_host([values[layer] for layer in layers])
    return {layer: value.numpy() for layer, value in zip(layers, found, strict=True)}


def _traced(item: Prepared, seen: _Seen, row: int, image: int | None) -> Traced:
    tokens = sum(span.length for span in item.prompt.spans)
    views, separators = _views(item.prompt)
    grid = _grid(views, separators)
    stages: list[Stage] = []
    before, made = np.ones(tokens, dtype=bool), 0
    for layer, mask in seen.keep.items():
        kept, new = mask[row, :tokens], int(mask[row, tokens:].sum())
        if new == made and np.array_equal(kept, before):
            continue  # only other rows of the batch lost tokens here
        before, made = kept, new
        chosen = scores = maps = merged = None
        if image is not None and layer in seen.heads:
            chosen = tuple(int(head) for head in seen.heads[layer][image] if head >= 0)
            scores = tuple(seen.scores[layer][image].tolist())
        if image is not None and views and layer in seen.guides:
            own = np.delete(seen.guides[layer][image, :, :tokens], list(separators), axis=1)
            maps = _maps(own, views, chosen)
        if layer in seen.merged:
            merged = seen.merged[layer][row, :tokens]
        stages.append(Stage(layer, kept, merged, chosen, scores, maps, new))
    entering = tuple(seen.entering[row])
    if grid is not None:
        return Traced(item.doc_id, grid, tokens, tuple(stages), entering)
    return Traced(item.doc_id, None, tokens, tuple(stages), entering, views, separators if views else ())


def _views(prompt: Prompt) -> tuple[tuple[View, ...], tuple[int, ...]]:
    """Where the visual tokens of a question's only picture stand, and its newlines; no views where nobody knows."""
    if len(prompt.spans) != 1:
        return (), ()
    (span,) = prompt.spans
    if span.grid is None:
        return prompt.views, span.separators
    return ((View(*span.grid[1:]),) if span.grid[0] == 1 else ()), span.separators


def _grid(views: Sequence[View], separators: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns that the placeholders of a question fill in raster order; None where they fill no one grid."""
    return (views[0].rows, views[0].columns) if len(views) == 1 and not separators else None


def _maps(
    guides: NDArray[np.float32], views: Sequence[View], heads: tuple[int, ...] | None
) -> NDArray[np.uint8] | None:
    """`guides` `[m, N]` as maps of at most `MAP_SIDE` rows and columns, of 8 bits: the means of what lies together.

    A picture that is seen in several sheets gets the mean of them.
    """
    count = min(MOST_MAPS, len(guides), 1 if heads is None else len(heads))
    values = guides[:count].astype(np.float64)
    there = np.isfinite(values)
    if not count or not there.any():
        return None
    least = min(0.0, float(values[there].min()))  # scores may be negative: less is then nothing
    values = np.where(there, values, least) - least
    pooled = _pooled(values, views)
    most = pooled.max(axis=(1, 2), keepdims=True)
    scaled = np.divide(255 * pooled, most, out=np.zeros_like(pooled), where=most > 0)
    return np.rint(scaled).astype(np.uint8)


def _pooled(values: NDArray[np.float64], views: Sequence[View]) -> NDArray[np.float64]:
    """`[m, N]` → `[m, rows, columns]`, at most `MAP_SIDE` of them."""
    if len(views) == 1:
        return _means(values.reshape(len(values), views[0].rows, views[0].columns))
    found, first = np.zeros((len(values), MAP_SIDE, MAP_SIDE)), 0
    for view in views:
        count = view.rows * view.columns
        part = values[:, first : first + count].reshape(len(values), view.rows, view.columns)
        first += count
        left, top, right, bottom = view.box
        found += _shares(view.rows, top, bottom) @ part @ _shares(view.columns, left, right).T
    return found / len({view.sheet for view in views})


def _means(grids: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[m, rows, columns]` → the means of rows and columns that fall together."""
    for axis in (1, 2):
        side = grids.shape[axis]
        parts = min(side, MAP_SIDE)
        starts = np.arange(parts) * side // parts
        sizes = np.diff(np.append(starts, side))
        shape = [1, 1, 1]
        shape[axis] = parts
        grids = np.add.reduceat(grids, starts, axis=axis) / sizes.reshape(shape)
    return grids


def _shares(count: int, start: float, end: float) -> NDArray[np.float64]:
    """`[MAP_SIDE, count]`: which share of a map's row each of `count` rows from `start` to `end` of a picture fills."""
    edges = start + (end - start) * np.arange(count + 1) / count
    bands = np.arange(MAP_SIDE + 1) / MAP_SIDE
    lower, upper = np.maximum(edges[:-1], bands[:-1, None]), np.minimum(edges[1:], bands[1:, None])
    return np.maximum(upper - lower, 0) * MAP_SIDE
