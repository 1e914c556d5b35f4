"""What each drop leaves of every image, worked out on the host when a prompt is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.engine.prompt_layout import Layout
from finepruner_lmms.pruners.base import Stage


@dataclass(frozen=True)
class LayerDrop:
    """What happens before one layer: of each group of images its `Stage`, None where it keeps all.

    `slots` say which of the `made` new tokens of its row are those of each image, `[I, M]`; `lengths`, `visual` and
    `counts` what is left of each row, and of each image of each group.
    """

    stages: tuple[Stage | None, ...]
    slots: tuple[Tensor | None, ...]
    made: int
    lengths: tuple[int, ...]
    visual: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]


def plan_drops(layout: Layout, stages: Sequence[Sequence[Stage]]) -> dict[int, LayerDrop]:
    """The drops of a prompt by layer, from the stages of each of its groups."""
    drops: dict[int, LayerDrop] = {}
    lengths, visual = list(layout.lengths), list(layout.visual_counts)
    counts = [list(group.counts) for group in layout.groups]
    for layer in sorted({stage.layer for some in stages for stage in some}):
        here = tuple(next((one for one in some if one.layer == layer), None) for some in stages)
        used, slots = [0] * len(lengths), list[Tensor | None]()
        for group, stage, now in zip(layout.groups, here, counts, strict=True):
            if stage is None:
                slots.append(None)
                continue
            own = []
            for image, row in enumerate(group.rows):
                left = max(min(now[image], stage.retained), int(group.ends[image])) + stage.merged
                lengths[row] += left - now[image]
                visual[row] += left - now[image]
                now[image] = left
                own.append(range(used[row], used[row] + stage.merged))
                used[row] += stage.merged
            slots.append(torch.tensor([list(one) for one in own]).to(group.index.device) if stage.merged else None)
        drops[layer] = LayerDrop(
            here, tuple(slots), max(used), tuple(lengths), tuple(visual), tuple(tuple(now) for now in counts)
        )
    return drops
