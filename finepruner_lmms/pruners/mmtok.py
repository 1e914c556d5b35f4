"""MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs (Dong et al., ICLR 2026, 2508.18264)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from finepruner_lmms.errors import check_choice, check_number
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.facility import cover, dense_cosines
from finepruner_lmms.ops.selection import index_to_mask
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

WORDS = ("keywords", "all")
_VISUAL_TEMPERATURE = 0.2
_VISUAL_WEIGHT = 0.5


@register("mmtok")
@dataclass(frozen=True, kw_only=True)
class MMTok(VisionPruner):
    """Keeps tokens that cover both the words of the question and the image.

    `words="keywords"`: those of the question without the words that name nothing to be seen, as published; the model's
    tokenizer has to be known (`load_model`). `"all"`: every word after the image, the instruction among them.

    Each word shares 1 out among the projected tokens by a softmax of their cosines over `text_temperature`, each patch
    among the patches, before the projector, over 0.2; words and patches have the same mean weight, patches times 0.5.
    The tokens kept are those that greedily gather the largest shares of all.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2508.18264"
    code: ClassVar[str] = "https://github.com/Ironieser/MMTok"

    words: str = "keywords"
    text_temperature: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("words", self.words, WORDS)
        check_number("text_temperature", self.text_temperature, 0.001)
        self._write("text_temperature", float(self.text_temperature))

    @property
    def reads_question(self) -> Literal["", "clip", "embedding", "keywords"]:
        """As the language model embeds its words."""
        return "keywords" if self.words == "keywords" else "embedding"

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The greedy cover: `[B, N]`."""
        seen = _VISUAL_WEIGHT * shares(vision.features, list(vision.features), _VISUAL_TEMPERATURE)
        words = shares(vision.projected, vision.need("text_embeds", self.name), self.text_temperature)
        picks = cover(torch.cat([seen, words], dim=2).float(), self.retained(vision.num_visual_tokens))
        return index_to_mask(picks, vision.num_visual_tokens)


def shares(tokens: Tensor, targets: list[Tensor], temperature: float) -> Tensor:
    """What each of `tokens` `[B, N, D]` has of each target, `[B, N, M]` float64: in a row with targets, 1 in all.

    `targets` holds one `[m, D]` a row, M being the longest; each shares out 1/m by a softmax of cosines.
    """
    cosine, there = dense_cosines(tokens, targets)
    weight = there.double() / there.sum(1, keepdim=True).clamp_min(1)
    return (cosine / temperature).softmax(1) * weight[:, None]
