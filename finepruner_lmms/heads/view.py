"""What head strategies look at, and the small functions they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import np, torch
from finepruner_lmms.ops.selection import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-8
_PART = 4


class HeadView:
    """What a head strategy looks at: the attention of B samples and H heads to N visual tokens.

    `attention` `[B, H, N]`, and `heads`, how many are to be chosen. `p`, the attention normalised over the tokens, is
    nearly uniform under `resoftmax`: what tells heads apart are its deviations from 1/N. They, and everything that
    follows from them, are float64, so that a ranking does not drown in rounding. What is not read is not computed.
    """

    def __init__(self, attention: Tensor, heads: int, normalise: str = "resoftmax") -> None:
        self.attention = at_least_float32(attention)
        self.heads, self.normalise = heads, normalise

    @cached_property
    def _normalised(self) -> tuple[Tensor, Tensor, Tensor]:
        """Deviations `[B, H, N]`, entropy and mean logarithm `[B, H]`, in as few passes over the values as can be."""
        size, values = self.attention.shape[-1], self.attention.double()
        if self.normalise == "resoftmax":
            p = values.exp()
            total = p.sum(-1, keepdim=True)
            # log p is attention - log total, which needs no logarithm of every value; the 1e-8 adds N of them
            log_total = total.log().squeeze(-1)
            entropy = log_total - torch.linalg.vecdot(p, values) / total.squeeze(-1) - size * EPS
            return p.div_(total).sub_(1 / size), entropy, values.mean(-1) - log_total
        p = values / values.sum(-1, keepdim=True).clamp_min(1e-30)
        spare = None if values is self.attention else values  # not needed any more, unless it is the caller's
        logarithms = torch.add(p, EPS, out=spare).log_()
        entropy = -torch.linalg.vecdot(p, logarithms)
        return p.sub_(1 / size), entropy, logarithms.mean(-1)

    @property
    def deviation(self) -> Tensor:
        """`[B, H, N]`: p - 1/N; each row sums to 0."""
        return self._normalised[0]

    @property
    def entropy(self) -> Tensor:
        """`[B, H]`: -sum p log(p + 1e-8)."""
        return self._normalised[1]

    @cached_property
    def mean_log(self) -> Tensor:
        """`[B, H]`: the mean of log(p + 1e-8)."""
        if self.normalise != "resoftmax":
            return self._normalised[2]
        # of p itself it is known; what the 1e-8 adds is log(1 + 1e-8 / p), whose third order is below rounding
        ratio = EPS / (self.deviation + 1 / self.attention.shape[-1])
        return self._normalised[2] + ratio.mean(-1) - torch.linalg.vecdot(ratio, ratio) / (2 * ratio.shape[-1])

    @cached_property
    def spread(self) -> Tensor:
        """`[B, H]`: the sum of squares of the deviations."""
        return torch.linalg.vecdot(self.deviation, self.deviation)

    @property
    def energy(self) -> Tensor:
        """`[B, H]`: the sum of squares of p."""
        return self.spread + 1 / self.attention.shape[-1]

    @cached_property
    def peak(self) -> Tensor:
        """`[B, H]`: the maximum of p."""
        return self.deviation.amax(-1) + 1 / self.attention.shape[-1]

    @property
    def variance(self) -> Tensor:
        """`[B, H]`: of p, unbiased."""
        return self.spread / max(self.attention.shape[-1] - 1, 1)

    @cached_property
    def alike(self) -> Tensor:
        """`[B, H, H]`: the cosines between the heads' p."""
        size = self.attention.shape[-1]
        rows = self.deviation.float()  # what is added to 1/N is small, so its rounding is too
        dots = (rows @ rows.transpose(1, 2)).double() + 1 / size
        length = self.energy.sqrt()
        return dots / (length[:, :, None] * length[:, None])

    @cached_property
    def mass(self) -> Tensor:
        """`[B, H]`: the attention to the image."""
        return self.attention.sum(-1, dtype=torch.float64)

    @cached_property
    def raw_variance(self) -> Tensor:
        """`[B, H]`: of the attention itself, unbiased."""
        centred = self.attention - self.attention.mean(-1, keepdim=True)
        return torch.linalg.vecdot(centred, centred).double() / max(self.attention.shape[-1] - 1, 1)

    @cached_property
    def range(self) -> Tensor:
        """`[B, H]`: between the largest and the smallest attention."""
        return self.attention.amax(-1).double() - self.attention.amin(-1).double()

    @cached_property
    def unit(self) -> Tensor:
        """`[B, H, N]`: the attention rows, of length 1."""
        return unit_rows(self.attention.double())


def parts(attention: Tensor) -> Sequence[Tensor]:
    """`attention` `[B, H, N]` as it is on a GPU; on a CPU in parts of a few samples, which stay in its cache.

    Large temporaries cost a CPU more in page faults than in arithmetic.
    """
    return attention.split(_PART) if attention.is_cpu else (attention,)


def min_max(scores: Tensor, eps: float = EPS) -> Tensor:
    """Stretch `[B, H]` to 0..1 over the heads; without `eps`, heads that are all equal become 0."""
    low, high = scores.aminmax(dim=-1, keepdim=True)
    width = high - low + eps
    return (scores - low) / width.masked_fill(width == 0, 1)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays zero."""
    return rows / torch.linalg.vecdot(rows, rows).sqrt_().clamp_min_(1e-12)[..., None]


def largest(attention: Tensor, count: int) -> Tensor:
    """The sum of the `count` largest of each row, `[B, H]`."""
    return sort_rows(attention)[..., -count:].sum(-1).double()


def how_many(values: Tensor, above: float) -> Tensor:
    """How many of each row are above a value, `[B, H]`; comparing and counting takes five times as long."""
    return (values - above).sign_().relu_().sum(-1)


def sort_rows(values: Tensor) -> Tensor:
    """`[..., N]` ascending. On a CPU NumPy sorts rows of this size fifteen times as fast as torch."""
    if values.is_cpu:
        return torch.from_numpy(np.sort(np.from_dlpack(values), axis=-1))
    return values.sort(dim=-1).values
