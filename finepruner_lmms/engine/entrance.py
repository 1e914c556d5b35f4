"""What a method before the language model leaves of each image, to be dropped at the decoder's entrance.

The model itself sees the whole prompt, whatever it makes of positions and types of its tokens; only its decoder gets
fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finepruner_lmms.engine.by_image import Chosen
from finepruner_lmms.engine.prompt_layout import ImageGroup
from finepruner_lmms.ops.selection import mask_to_index
from finepruner_lmms.pruners.base import Reduction, Stage, VisionPruner


@dataclass(frozen=True)
class Left:
    """What is left of one image: which of its tokens, `[N]`, and new ones `[M, D]`, of which `lead` come first.

    `merged` `[N]` says which of its tokens went into the new ones; `own` `[R, D]` are those that stay, where they were
    changed.
    """

    keep: Tensor
    made: Tensor
    lead: int
    merged: Tensor | None
    own: Tensor | None = None


@dataclass(frozen=True)
class Entrance:
    """What is left of the images of a batch, by their number; images that are not named keep all."""

    images: dict[int, Left] = field(default_factory=dict)
    stages: dict[int, Stage] = field(default_factory=dict)
    """By N: how many tokens of an image stay, and how many new ones it gets."""

    def add(self, numbers: Sequence[int], reduction: Reduction, pruner: VisionPruner) -> None:
        """Note what `pruner` made of some images of one size, in this order."""
        keep, (_, count, _) = reduction.keep, reduction.tokens.shape
        # a method that makes no new tokens keeps all that it returns; of another the device has to be asked
        own = count if type(pruner).reduce is VisionPruner.reduce else int(keep[0].sum())
        lead, made = reduction.lead, count - own
        for row, number in enumerate(numbers):
            tokens = reduction.tokens[row]
            new = torch.cat([tokens[:lead], tokens[lead + own :]])
            merged = None if reduction.merged is None else reduction.merged[row]
            self.images[number] = Left(
                keep[row], new, lead, merged, tokens[lead : lead + own] if reduction.changed else None
            )
        self.stages[keep.shape[1]] = Stage(0, own, made)

    def stage(self, num_visual_tokens: int) -> Stage | None:
        """The drop of images of so many tokens."""
        return self.stages.get(num_visual_tokens)

    def put_changed(self, group: ImageGroup, columns: Tensor, embeds: Tensor) -> None:
        """Write the changed tokens of a group into `embeds` `[B, L, D]`, where they stand; `columns` `[B, V]`."""
        left = [self.images[number] for number in group.number]
        own = [one.own for one in left if one.own is not None]
        if not own:
            return
        values, keep = torch.stack(own), torch.stack([one.keep for one in left])
        place = group.cut(columns).gather(1, mask_to_index(keep, values.shape[1]).to(columns.device))
        embeds[group.index[:, None], place] = values.to(embeds.device, embeds.dtype)

    def chosen(self, group: ImageGroup) -> Chosen:
        """What stays of the images of a group."""
        left = [self.images[number] for number in group.number]
        device = group.index.device
        keep = torch.stack([one.keep for one in left]).to(device)
        made = torch.stack([one.made for one in left]).to(device)
        sources = [one.merged for one in left if one.merged is not None]
        merged = torch.stack(sources).to(device) if len(sources) == len(left) else None
        return Chosen(keep, made if made.shape[1] else None, lead=left[0].lead, sources=merged)
