"""CDPruner: Maximizing Conditional Diversity for Token Pruning in MLLMs (Zhang et al., NeurIPS 2025, 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.fused import kernels_for
from finepruner_lmms.ops.products import pair_products, reciprocal_lengths
from finepruner_lmms.ops.selection import index_to_mask, unit_vectors
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

RELEVANCES = ("clip", "embedding", "none")
_RANGE = 1e-6
_EXHAUSTED = 1e-14  # of the largest L_jj: above rounding noise, below the gain of the least relevant token


@dataclass(frozen=True, kw_only=True)
class ByRelevance(VisionPruner):
    """A vision-side method that reads the question, and by what.

    `relevance="clip"`: by CLIP's text tower; `clip` names its checkpoint where the model's own is not known.
    `"embedding"`: by the language model's embeddings of the words after the image, for models without a text tower.
    `"none"`: not at all, which is also what is left where there is no text to be relevant to.
    """

    relevance: str = "clip"
    clip: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("relevance", self.relevance, RELEVANCES)
        if self.clip is not None and not (isinstance(self.clip, str) and self.clip.strip()):
            raise FieldError("clip", f"got {self.clip!r}; expected a hub id or a folder of a CLIP", value=self.clip)
        if self.clip is not None and self.relevance != "clip":
            problem = f"got {self.clip!r}, which relevance={self.relevance!r} does not read"
            raise FieldError("clip", problem, value=self.clip, fix="leave it out")

    @property
    def reads_question(self) -> Literal["", "clip", "embedding"]:
        """Through what the question becomes vectors."""
        return {"clip": "clip", "embedding": "embedding"}.get(self.relevance, "")  # type: ignore[return-value]

    @property
    def reads(self) -> tuple[str, ...]:
        """Patches in CLIP's joint space, where relevance is by CLIP."""
        return ("image_embeds",) if self.relevance == "clip" else ()


@register("cdpruner")
@dataclass(frozen=True, kw_only=True)
class CDPruner(ByRelevance):
    """Keeps tokens that are diverse and relevant to the question: greedy MAP of a conditional DPP (section 3.3).

    `relevance`, `clip`: see `ByRelevance`. Only `"clip"` is the published method; `"none"`, diversity alone, is the
    paper's ablation. Every image is normalised by itself, so a batch never changes a result (the released code
    normalises over the batch).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2506.10967"
    code: ClassVar[str] = "https://github.com/Theia-4869/CDPruner"

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The greedy choice: `[B, N]`."""
        retained = self.retained(vision.num_visual_tokens)
        kernel = conditional_kernel(vision.projected, self._relevance(vision))
        return index_to_mask(greedy_map(kernel, retained), vision.num_visual_tokens)

    def _relevance(self, vision: VisionOutputs) -> Tensor:
        """`[B, N]`, from almost 0 to 1 in each image."""
        if self.relevance == "none":
            return torch.ones_like(vision.projected[..., 0], dtype=torch.float32)
        texts = vision.need("text_embeds", self.name)
        if self.relevance == "clip":
            # CLIP's patches resemble the text where the image does not: the released code takes the negative
            return scale_relevance(-mean_similarity(vision.need("image_embeds", self.name), texts))
        return scale_relevance(mean_similarity(vision.projected, texts))


def mean_similarity(tokens: Tensor, texts: list[Tensor]) -> Tensor:
    """Each token's mean cosine `[B, N]` with the vectors `[M, P]` of its row's text; `tokens` `[B, N, P]`.

    A row without text, M = 0, is equally relevant everywhere: 0.
    """
    unit = unit_vectors(tokens)
    texts = [text.to(tokens.device) for text in texts]
    # the mean of cosines is the cosine with the mean of unit vectors
    sums = unit_vectors(torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)).to(unit.dtype).sum(1)
    # filled in on the device: copying the lengths there would wait for it
    counts = torch.cat([unit.new_full((1, 1), max(len(text), 1)) for text in texts])
    return (unit @ (sums / counts)[..., None]).squeeze(-1)


def scale_relevance(relevance: Tensor) -> Tensor:
    """Stretch each row of `[B, N]` to (0, 1]; a row without differences becomes 1."""
    low, high = relevance.aminmax(dim=1, keepdim=True)
    flat = high == low
    return ((relevance - low + _RANGE) / (high - low).masked_fill(flat, 1)).masked_fill(flat, 1)


def conditional_kernel(projected: Tensor, relevance: Tensor) -> Tensor:
    """L = diag(r) S diag(r), `[B, N, N]` float64, with S the cosines of `projected` `[B, N, D]`, r `[B, N]`.

    In float64: a residual of the greedy steps below is a small difference of large numbers, and in float32 it turns
    negative, and then NaN, as soon as more tokens are kept than the features have numerical rank.
    """
    products = pair_products(projected.double())
    # the lengths divide, and the relevances weigh, the products: these are far fewer numbers than the tokens
    weight = relevance.double() * reciprocal_lengths(products)
    return products.mul_(weight[:, :, None]).mul_(weight[:, None])


def greedy_map(kernel: Tensor, count: int) -> Tensor:
    """`count` tokens in the order of picking, `[B, count]`: each has the largest gain in log det L of the picked.

    Fast greedy MAP inference (Chen et al., NeurIPS 2018, Algorithm 1), a batch at a time, in few operations per step.
    Once no token gains anything (the rank is exhausted), the rest follow by L_jj; the lower index wins a tie.
    """
    if (fused := kernels_for(kernel)) is not None:
        chosen, worth = fused.greedy_map(kernel, count)
        return _fill_exhausted(chosen, worth, kernel.diagonal(dim1=1, dim2=2))
    batch, size, _ = kernel.shape
    rows, flat = kernel.reshape(-1, 1, size), torch.arange(0, batch * size, size, device=kernel.device)
    diagonal = kernel.diagonal(dim1=1, dim2=2)
    gains, factors = diagonal[:, None].clone(), kernel.new_empty(batch, count, size)  # each token's part in each pick
    values, picks = [], []
    for step in range(count):
        # a picked token's gain is rounding noise from then on, below that of any token worth picking
        value, pick = gains.max(2, keepdim=True)
        values.append(value)
        picks.append(pick)
        row = rows.index_select(0, pick.view(batch) + flat)
        if step:
            seen = factors.narrow(1, 0, step)
            row = torch.baddbmm(row, seen.gather(2, pick.expand(batch, step, 1)).mT, seen, alpha=-1)
        factor = torch.mul(row, value.rsqrt(), out=factors.narrow(1, step, 1))
        gains.addcmul_(factor, factor, value=-1)
    return _fill_exhausted(torch.cat(picks, 1).squeeze(2), torch.cat(values, 1).squeeze(2), diagonal)


def _fill_exhausted(picks: Tensor, values: Tensor, diagonal: Tensor) -> Tensor:
    """`picks` `[B, K]` while their gains `values` mean something, and then the best of the rest by L_jj."""
    worth = values > _EXHAUSTED * diagonal.amax(1, keepdim=True)  # a NaN after the first worthless pick is not
    worth = worth.int().cummin(1).values.bool()
    taken = torch.zeros_like(diagonal).scatter_reduce_(1, picks, worth.to(diagonal.dtype), "amax")
    rest = diagonal.masked_fill(taken > 0, float("-inf")).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(picks.shape[1], device=picks.device) - worth.sum(1, keepdim=True)
    return torch.where(worth, picks, rest.gather(1, place.clamp_min(0)))
