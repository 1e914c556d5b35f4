"""Muon: momentum whose matrices are made orthogonal before a step, as Keller Jordan describes it; AdamW for the rest.

https://kellerjordan.github.io/posts/muon/. It is for the matrices inside layers; embeddings, head, norms and biases are
AdamW's. Matrices of one shape are made orthogonal together, in float32: a CPU has no use for bfloat16 here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_STEEP = (3.4445, -4.7750, 2.0315)
_TIMES, _MOMENTUM, _DECAY = 5, 0.95, 0.02


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimizer of two groups: `matrices` by Muon, `others` by AdamW.

    A rate means the same for both: an update of Muon's has the root mean square 0.2, about that of AdamW's.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], rate: float) -> None:
        groups = [{"params": list(matrices), "muon": True}, {"params": list(others), "muon": False}]
        super().__init__(groups, {"lr": rate, "betas": (0.9, 0.98)})

    @classmethod
    def of(cls, layers: nn.Module, trained: Iterable[nn.Module], rate: float) -> MuonAndAdamW:
        """Muon for the matrices inside `layers`, AdamW for everything else in `trained`."""
        matrices = [parameter for parameter in layers.parameters() if parameter.dim() == 2]
        known = set(map(id, matrices))
        others = [one for module in trained for one in module.parameters() if id(one) not in known]
        return cls(matrices, others, rate)

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """One step; there is no closure."""
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(with_grad, group["lr"], group["betas"])

    def _muon(self, parameters: list[nn.Parameter], rate: float, _betas: tuple[float, float]) -> None:
        alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for one in parameters:
            alike[one.shape].append(one)
        for some in alike.values():
            moved = []
            for one in some:
                state = self.state[one]
                speed = state.setdefault("speed", torch.zeros_like(one))
                speed.lerp_(one.grad, 1 - _MOMENTUM)
                moved.append(one.grad.lerp(speed, _MOMENTUM))
            for one, way in zip(some, orthogonal(torch.stack(moved)), strict=True):
                one.mul_(1 - rate * _DECAY).sub_(way, alpha=0.2 * rate * max(one.shape) ** 0.5)

    def _adamw(self, parameters: list[nn.Parameter], rate: float, betas: tuple[float, float]) -> None:
        for one in parameters:
            state = self.state[one]
            mean = state.setdefault("mean", torch.zeros_like(one))
            square = state.setdefault("square", torch.zeros_like(one))
            state["step"] = step = state.get("step", 0) + 1
            mean.lerp_(one.grad, 1 - betas[0])
            square.mul_(betas[1]).addcmul_(one.grad, one.grad, value=1 - betas[1])
            scale = (square / (1 - betas[1] ** step)).sqrt_().add_(1e-8)
            one.mul_(1 - rate * _DECAY).addcdiv_(mean, scale, value=-rate / (1 - betas[0] ** step))


def orthogonal(matrices: Tensor) -> Tensor:
    """`[n, r, c]`: each matrix with all its singular values brought near 1, by five Newton-Schulz steps."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _STEEP
    for _ in range(_TIMES):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide
