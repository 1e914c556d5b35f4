"""What was recorded of a question, as small JSON for a page: masks as bits, attention in 16 steps."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finepruner_lmms.lazy import np
from finepruner_lmms.lmms.traced import Stage, Traced
from finepruner_lmms.matrix.boxes import Box, share, weights

if TYPE_CHECKING:
    from numpy.typing import NDArray


def traced_entry(traced: Traced, boxes: Sequence[Box], with_maps: bool) -> dict[str, Any]:
    """`n` tokens, `g` their grid, `st` the stages. Of tiles `v` are the views, of each rows, columns, left, top, right,
    bottom and sheet, and `sep` the tokens that are of none.

    A stage has its `layer`; `kept`, a bit for each token that was still there before (all N at first), in base64;
    `merged`, a bit for each of N; `made`, how many new tokens there are; `entering`, what budgets count; `heads`, with
    the `scores` of these heads alone; `maps`; `evidence`, the share of the boxes that the kept tokens show, and
    `merged_evidence`, that of the merged ones.
    """
    entry: dict[str, Any] = {"n": traced.tokens, "st": []}
    if traced.grid is not None:
        entry["g"] = list(traced.grid)
    if traced.views:
        entry["v"] = [[v.rows, v.columns, *(round(side, 5) for side in v.box), v.sheet] for v in traced.views]
        entry["sep"] = list(traced.separators)
    of = _weights(tuple(boxes), traced.grid) if boxes and traced.grid is not None else None
    there = np.ones(traced.tokens, dtype=bool)
    for stage in traced.stages:
        entry["st"].append(_stage(stage, there, of, with_maps) | _entering(traced, stage))
        there = stage.kept
    return entry


@functools.lru_cache(maxsize=1024)
def _weights(boxes: tuple[Box, ...], grid: tuple[int, int]) -> NDArray[np.float64]:
    """The same for every row that was asked about these boxes."""
    return weights(boxes, grid)


def map_bytes(traced: Traced) -> int:
    """What the maps of a question take in a page, before base64."""
    return sum(-(-stage.maps.size // 2) for stage in traced.stages if stage.maps is not None)


def _stage(stage: Stage, there: NDArray[np.bool_], of: NDArray[np.float64] | None, with_maps: bool) -> dict[str, Any]:
    nested = not (stage.kept & ~there).any()
    found: dict[str, Any] = {"layer": stage.layer, "kept": bits(stage.kept[there] if nested else stage.kept)}
    if not nested:  # a token that comes back: the bits are of all N
        found["whole"] = 1
    if stage.merged is not None and stage.merged.any():
        found["merged"] = bits(stage.merged)
    if stage.made:
        found["made"] = stage.made
    if stage.heads:
        found["heads"] = list(stage.heads)
        if stage.head_scores is not None:
            scores = stage.head_scores
            found["scores"] = [float(f"{scores[head]:.3g}") for head in stage.heads if head < len(scores)]
    if stage.maps is not None and with_maps:
        found["maps"] = {"shape": list(stage.maps.shape), "values": nibbles(stage.maps)}
    if of is not None and (kept := share(of, stage.kept)) is not None:
        found["evidence"] = round(kept, 3)
        if stage.merged is not None and (merged := share(of, stage.merged)):
            found["merged_evidence"] = round(merged, 3)
    return found


def _entering(traced: Traced, stage: Stage) -> dict[str, int]:
    """Where it is not the number of kept and made tokens, as with several images and their newlines."""
    counted = traced.entering[stage.layer] if stage.layer < len(traced.entering) else None
    plain = int(stage.kept.sum()) + stage.made
    return {} if counted is None or counted == plain else {"entering": counted}


def bits(mask: NDArray[np.bool_]) -> str:
    """Eight in a byte, the first the highest, in base64."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def nibbles(values: NDArray[np.uint8]) -> str:
    """0..255 in 16 steps, two in a byte, the first the higher, in base64."""
    steps = (np.rint(values.reshape(-1) / 17)).astype(np.uint8)
    pairs = np.append(steps, np.zeros(len(steps) % 2, dtype=np.uint8)).reshape(-1, 2)
    return base64.b64encode((pairs[:, 0] << 4 | pairs[:, 1]).tobytes()).decode()
