"""What methods that answer together need of memory, before any of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finepruner_lmms.engine.cost import DecoderSizes
from finepruner_lmms.engine.fan_out.decoding import ROOM
from finepruner_lmms.engine.fan_out.layers import CHUNK
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.pruners import Pruner

_Drops = tuple[tuple[int, int], ...]  # the drops to come: before which layer, to how many visual tokens


@dataclass(frozen=True)
class _Branch:
    """Methods whose rows walk together, and the `segments` that they came through: start, width, rows."""

    methods: tuple[_Drops, ...]
    segments: tuple[tuple[int, int, float], ...]


def predicted_bytes(
    config: Any,
    pruners: Sequence[Pruner],
    *,
    questions: int,
    words: int,
    max_new_tokens: int,
    element_bytes: int,
    distinct: float = 1.0,
) -> int:
    """The most bytes that `answer_together` holds at a time, besides the weights and its inputs.

    `words` are the tokens of the longest prompt but for its visual ones; `distinct` is the share of rows that differ:
    1 where no two methods keep the same tokens, so never too little. Raises what `Pruner.stages` does.
    """
    geometry, sizes = Geometry.of(config), DecoderSizes.of(config.text_config)
    visual, layers = geometry.num_visual_tokens, geometry.num_layers
    starts: dict[int, list[_Drops]] = {}
    for pruner in pruners:
        drops = tuple((stage.layer, stage.retained + stage.merged) for stage in pruner.stages(layers, visual))
        shortened = bool(drops) and drops[0][0] == 0
        starts.setdefault(drops[0][1] if shortened else visual, []).append(drops[1:] if shortened else drops)

    def rows(those: Sequence[_Drops]) -> float:
        return max(questions, len(those) * questions * distinct)

    waiting = [
        _Branch(tuple(those), ((0, words + left, rows(those if left < visual else those[:1])),))
        for left, those in starts.items()
    ]
    finished = []
    while waiting:
        branch = waiting.pop()
        layer = min((drops[0][0] for drops in branch.methods if drops), default=layers)
        if layer == layers:
            finished.append(branch)
            continue
        groups: dict[int | None, list[_Drops]] = {}
        for drops in branch.methods:
            dropping = bool(drops) and drops[0][0] == layer
            groups.setdefault(drops[0][1] if dropping else None, []).append(drops[1:] if dropping else drops)
        for left_here, those in groups.items():
            now = branch.segments[-1][1:] if left_here is None else (words + left_here, rows(those))
            waiting.append(_Branch(tuple(those), (*branch.segments, (layer, *now))))
    return _peak(sizes, config.text_config, finished, layers, max_new_tokens, element_bytes)


def _peak(
    sizes: DecoderSizes, text: Any, branches: Sequence[_Branch], layers: int, max_new_tokens: int, element: int
) -> int:
    token = 2 * sizes.key_value_width * element  # of one layer
    room = -(-max_new_tokens // ROOM) * ROOM
    own = shared = decode = largest = entering = rows_in_all = 0.0
    for branch in branches:
        ends = [*(start for start, _, _ in branch.segments[1:]), layers]
        rows = branch.segments[-1][2]
        rows_in_all += rows
        for (start, width, count), end in zip(branch.segments, ends, strict=True):
            decode += rows * (end - start) * (width + room) * token
            largest = max(largest, rows * (width + room) * token)
            if (start, width, count) != branch.segments[-1]:
                shared = max(shared, count * (end - start) * width * token)
        start, width, count = branch.segments[-1]
        own += count * (layers - start) * width * token
        entering += count * width * sizes.hidden * element
    logits = rows_in_all * text.vocab_size * (element + 4)
    walking = max(min(CHUNK, rows * width) for branch in branches for _, width, rows in branch.segments)
    walking *= (6 * sizes.hidden + 3 * sizes.feed_forward) * element
    return int(max(decode + shared + largest + logits, own + shared + entering + walking))


def free_bytes(device: torch.device) -> int:
    """What may be used on `device`: of a GPU what it and PyTorch have free, of a computer what it says is available."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.virtual_memory().available)
