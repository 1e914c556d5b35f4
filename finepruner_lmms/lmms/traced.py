"""What is written down of the visual tokens of one question: which were kept where, and what guided the choice.

A record of it is a small JSON object: masks as bits, maps as bytes, both in base64.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finepruner_lmms.engine.families.family import View
from finepruner_lmms.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_MAPS = 8
"""Guiding heads whose attention is kept, of each drop."""
MAP_SIDE = 12
"""Rows and columns of a map at most."""
MOST_VIEWS = 256
"""Tiles of a picture."""
MOST_TOKENS = 1 << 20
"""Visual tokens of a question: a record of more is taken for a mistake."""
_MOST_HEADS = 10_000


@dataclass(frozen=True, eq=False)
class Stage:
    """What happened before decoder layer `layer` (0: before the language model).

    `kept` `[N]` says which of the question's visual tokens are still there as they were; `merged` `[N]` which of them
    went into new tokens, None where the method makes none, and `made` how many new ones there are then. `heads` are
    those that guided the choice, best first, and `head_scores` what every query head of the layer scored; both None
    where no head was chosen. `maps` `[m, rows, columns]` is what guided, over the image in raster order, 0..255 of the
    largest value of each map: the attention of the first m of `heads`, or, where no head was chosen, one map of the
    scores by which tokens were; None where the image's tokens fill no grid, or the method gave no scores.
    """

    layer: int
    kept: NDArray[np.bool_]
    merged: NDArray[np.bool_] | None = None
    heads: tuple[int, ...] | None = None
    head_scores: tuple[float, ...] | None = None
    maps: NDArray[np.uint8] | None = None
    made: int = 0


@dataclass(frozen=True, eq=False)
class Traced:
    """The record of a question: its number `doc_id` in the whole data set.

    `tokens` is N, all placeholders of the prompt over all its images, and `grid` the rows and columns that they fill
    in raster order, None where they are of several images or tiles. Of one picture in tiles `views` say where its
    tokens stand, all but those at `separators`, which are newlines. `entering` are the visual tokens entering each
    decoder layer, as budgets count them.
    """

    doc_id: int
    grid: tuple[int, int] | None
    tokens: int
    stages: tuple[Stage, ...]
    entering: tuple[int, ...]
    views: tuple[View, ...] = ()
    separators: tuple[int, ...] = ()

    def kept_before(self, layer: int) -> NDArray[np.bool_]:
        """Which tokens enter decoder layer `layer` as they were: `[N]` bool."""
        found = np.ones(self.tokens, dtype=bool)
        for stage in self.stages:
            found = stage.kept if stage.layer <= layer else found
        return found

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which tokens the last layer sees as they were: `[N]` bool."""
        return self.stages[-1].kept if self.stages else np.ones(self.tokens, dtype=bool)


def to_record(traced: Traced) -> dict[str, Any]:
    """As JSON has it; what is absent is left out."""
    record: dict[str, Any] = {"doc_id": traced.doc_id, "tokens": traced.tokens, "entering": list(traced.entering)}
    if traced.grid is not None:
        record["grid"] = list(traced.grid)
    if traced.views:
        record["views"] = [[view.rows, view.columns, *view.box, view.sheet] for view in traced.views]
        record["separators"] = list(traced.separators)
    return record | {"stages": [_stage_record(stage) for stage in traced.stages]}


def _stage_record(stage: Stage) -> dict[str, Any]:
    record: dict[str, Any] = {"layer": stage.layer, "kept": _packed(stage.kept)}
    if stage.merged is not None:
        record["merged"] = _packed(stage.merged)
    if stage.made:
        record["made"] = stage.made
    if stage.heads is not None:
        record["heads"] = list(stage.heads)
    if stage.head_scores is not None:
        record["head_scores"] = [float(f"{score:.4g}") for score in stage.head_scores]
    if stage.maps is not None:
        record["maps"] = {"shape": list(stage.maps.shape), "values": base64.b64encode(stage.maps.tobytes()).decode()}
    return record


def from_record(record: Any) -> Traced:
    """The trace that `to_record` wrote. `ValueError` for anything else."""
    try:
        tokens = _number(record["tokens"], MOST_TOKENS)
        grid = record.get("grid")
        if grid is not None:
            rows, columns = (_number(side, tokens) for side in grid)
            if rows * columns != tokens:
                raise ValueError(f"a grid of {rows} x {columns} has no {tokens} tokens")
            grid = rows, columns
        stages = tuple(_stage(stage, tokens) for stage in record["stages"])
        layers = [stage.layer for stage in stages]
        if layers != sorted(set(layers)):
            raise ValueError("stages are not in the order of their layers")
        entering = _numbers(record["entering"], MOST_TOKENS)
        views, separators = _views(record, tokens)
        return Traced(_number(record["doc_id"], 1 << 53), grid, tokens, stages, entering, views, separators)
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"no record of a trace: {type(error).__name__}: {error}") from error


def _views(record: Any, tokens: int) -> tuple[tuple[View, ...], tuple[int, ...]]:
    """The views of a picture in tiles, and which tokens are of none."""
    given = record.get("views") or []
    if not given:
        return (), ()
    if len(given) > MOST_VIEWS:
        raise ValueError(f"{len(given)} views are more than {MOST_VIEWS}")
    separators = tuple(_number(place, tokens - 1) for place in record["separators"])
    views = []
    for rows, columns, *box, sheet in given:
        left, top, right, bottom = (float(side) for side in box)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"{box} is no part of a picture")
        view = View(_number(rows, tokens), _number(columns, tokens), (left, top, right, bottom), _number(sheet, 1))
        views.append(view)
    placed = sum(view.rows * view.columns for view in views)
    if placed + len(set(separators)) != tokens or len(set(separators)) != len(separators):
        raise ValueError(
            f"{len(views)} views of {placed} tokens and {len(separators)} newlines are not {tokens} tokens"
        )
    return tuple(views), separators


def _stage(record: Any, tokens: int) -> Stage:
    heads, scores, merged, maps = (record.get(name) for name in ("heads", "head_scores", "merged", "maps"))
    return Stage(
        _number(record["layer"], 10_000),
        _unpacked(record["kept"], tokens),
        None if merged is None else _unpacked(merged, tokens),
        None if heads is None else _numbers(heads, _MOST_HEADS),
        None if scores is None else tuple(float(score) for score in scores),
        None if maps is None else _map(maps),
        _number(record.get("made", 0), MOST_TOKENS),
    )


def _map(record: Any) -> NDArray[np.uint8]:
    count, rows, columns = (_number(side, MAP_SIDE) for side in record["shape"])
    values = np.frombuffer(base64.b64decode(record["values"], validate=True), dtype=np.uint8)
    if count > MOST_MAPS or len(values) != count * rows * columns:
        raise ValueError(f"{count} maps of {rows} x {columns} are not of {len(values)} bytes")
    return values.reshape(count, rows, columns)


def heads_of(record: Any) -> tuple[int, ...]:
    """The heads at the first layer that chose any, of a record alone; none where none did. `ValueError` as above."""
    try:
        chosen = (heads for stage in record["stages"] if (heads := stage.get("heads")))
        return _numbers(next(chosen, ()), _MOST_HEADS)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record of a trace: {type(error).__name__}: {error}") from error


def _numbers(values: Any, most: int) -> tuple[int, ...]:
    if all(type(value) is int and 0 <= value <= most for value in values):  # most records are right, and there are many
        return tuple(values)
    return tuple(_number(value, most) for value in values)


def _number(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is no number from 0 to {most}")
    return value


def _packed(mask: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def _unpacked(text: str, tokens: int) -> NDArray[np.bool_]:
    content = base64.b64decode(text, validate=True)
    if len(content) != -(-tokens // 8):
        raise ValueError(f"a mask of {len(content)} bytes is not of {tokens} tokens")
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=tokens).astype(bool)
