"""Random tokens: the baseline that a method has to beat, and that many do not at generous budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.errors import check_integer
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import fingerprint, mix64, top_mask
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(VisionPruner):
    """Keeps tokens drawn without replacement, from `seed` and the sample's own content.

    A sample gets the same draw whatever batch, order or process it is evaluated in.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0, 2**31 - 1)

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The tokens with the largest of N pseudo-random numbers: `[B, N]`."""
        keys = fingerprint(vision.features) if vision.sample_keys is None else vision.sample_keys
        place = torch.arange(vision.num_visual_tokens, device=keys.device)
        # scrambled twice: once to tell samples and seeds apart, once more for each token of them
        numbers = mix64(mix64(keys + self.seed * 0x632BE59BD9B4E019 % 2**63)[:, None] + mix64(place + 1))
        return top_mask((numbers >> 11).double(), self.retained(vision.num_visual_tokens))
