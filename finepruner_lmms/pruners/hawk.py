"""HAWK: visual tokens by what weighted heads of the first layer would ask of them (CVPR 2026, arXiv 2604.07812)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from finepruner_lmms.errors import FieldError, check_integer
from finepruner_lmms.heads.profile import HeadProfile, weighted_heads
from finepruner_lmms.heads.profiles import find_profile, written_profile
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM = "uniform"
_LAYER = 0


@register("hawk")
@dataclass(frozen=True, kw_only=True)
class Hawk(VisionPruner):
    """Keeps the tokens that the words ask for in the language model's first layer, by head weights found offline.

    Before anything is run, the words after the image, as they enter the first layer, are its queries and the visual
    tokens its keys, without rotation and softmax: per head, the mean over the words of q·k, divided by its length over
    the image; then the heads are added up by `weights`. `"uniform"` counts all alike; a JSON file is a head profile
    (`heads.profile`) that names heads of layer 0. `shuffle`, a seed, gives the weights to other heads, as a control.
    A prompt without text after the image asks for nothing, and keeps its first tokens.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2604.07812"
    caveat: ClassVar[str] = "all heads count alike unless weights are given: none are published for LLaVA"

    weights: str = UNIFORM
    shuffle: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle is not None:
            check_integer("shuffle", self.shuffle, 0)
        if self.weights == UNIFORM:
            if self.shuffle is not None:
                problem = f"got {self.shuffle!r}; weights='uniform' are the same however they are shuffled"
                raise FieldError("shuffle", problem, value=self.shuffle, fix="leave it out, or give weights=FILE")
            return
        self._write("weights", written_profile("weights", self.weights))
        found = find_profile("weights", self.weights)
        if _LAYER not in found.named_layers:
            problem = f"{found.name!r} names no head of layer 0, which is the one that hawk reads"
            raise FieldError("weights", problem, value=self.weights)

    @property
    def reads_question(self) -> Literal["", "clip", "embedding"]:
        """As the language model embeds it."""
        return "embedding"

    @property
    def reads(self) -> tuple[str, ...]:
        """Queries and keys of the first layer."""
        return ("first_layer",)

    @cached_property
    def head_profile(self) -> HeadProfile | None:
        """The weights of a file, on other heads where `shuffle` says so; None where all heads count alike."""
        if self.weights == UNIFORM:
            return None
        found = find_profile("weights", self.weights)
        return found if self.shuffle is None else found.shuffled(self.shuffle)

    def check_heads(self, num_heads: int) -> None:
        """The weights are those of a model with as many query heads."""
        if self.head_profile is not None:
            self.head_profile.check_heads("weights", num_heads)

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The tokens that are asked for most: `[B, N]`."""
        texts, layer = vision.need("text_embeds", self.name), vision.need("first_layer", self.name)
        # the mean over the words of q·k is that of the mean query; what each head is scaled by does not count
        device = vision.projected.device
        words = [layer.queries(text.to(device)).sum(0) / max(len(text), 1) for text in texts]
        asked = layer.asked(torch.stack(words), vision.projected).double()
        asked = asked / torch.linalg.vector_norm(asked, dim=-1, keepdim=True).clamp_min(1e-30)
        return top_mask(self._combined(asked), self.retained(vision.num_visual_tokens))

    def _combined(self, asked: Tensor) -> Tensor:
        """Heads `[B, H, N]` added up by their weights: `[B, N]`."""
        if self.head_profile is None:
            return asked.mean(1)
        self.check_heads(asked.shape[1])
        heads, shares = weighted_heads(self.head_profile.of_layer(_LAYER), asked)
        rows = asked.gather(1, heads[..., None].expand(-1, -1, asked.shape[2]))
        return (rows * shares[..., None]).sum(1)
