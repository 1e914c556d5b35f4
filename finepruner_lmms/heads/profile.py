"""Head profiles: how much each query head of a model counts, found before and elsewhere, the same for every sample."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finepruner_lmms.errors import FieldError, check_integer, list_names, show
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HeadProfile:
    """Weights of query heads: `weights` are (layer, head, weight), counted from 0, each weight above 0.

    `model` is the one that they were found on, of `layers` layers with `heads` query heads; `task` says by what, and
    `source` where. Heads that are not named count nothing.
    """

    name: str
    model: str
    task: str
    source: str
    layers: int
    heads: int
    weights: tuple[tuple[int, int, float], ...]

    def __post_init__(self) -> None:
        check_integer("layers", self.layers, 1)
        check_integer("heads", self.heads, 1)
        if not self.weights:
            raise FieldError("weights", "names no head", fix="give [layer, head, weight] for some")
        for layer, head, weight in self.weights:
            check_integer("weights", layer, 0, self.layers - 1)
            check_integer("weights", head, 0, self.heads - 1)
            number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            if not number or weight <= 0:
                problem = f"head {layer}-{head} has {show(weight)}; expected a number above 0"
                raise FieldError("weights", problem, value=weight, fix="leave out heads that do not count")
        twice = [place for place, times in Counter((one[0], one[1]) for one in self.weights).items() if times > 1]
        if twice:
            layer, head = twice[0]
            raise FieldError("weights", f"names head {layer}-{head} twice", value=self.weights)

    @cached_property
    def named_layers(self) -> tuple[int, ...]:
        """The layers of which it names heads, ascending."""
        return tuple(sorted({layer for layer, _, _ in self.weights}))

    def of_layer(self, layer: int, most: int | None = None) -> list[tuple[int, float]]:
        """The heads of a layer with their weights, the `most` heaviest of them, the lower head first on a tie."""
        own = [(head, float(weight)) for at, head, weight in self.weights if at == layer]
        return sorted(own, key=lambda one: (-one[1], one[0]))[:most]

    def shuffled(self, seed: int) -> HeadProfile:
        """The same weights on other heads of the same layers, as a control: each layer's heads are permuted."""
        moved = []
        for layer in self.named_layers:
            order = list(range(self.heads))
            random.Random(f"{seed} {layer}").shuffle(order)
            moved += [(layer, order[head], weight) for head, weight in self.of_layer(layer)]
        return replace(self, name=f"{self.name}, shuffled by {seed}", weights=tuple(moved))

    def check_heads(self, field: str, num_heads: int) -> None:
        """Raise `FieldError` of `field` unless the model's layers have as many query heads."""
        if num_heads != self.heads:
            problem = f"{self.name!r} is of layers with {self.heads} query heads; those of this model have {num_heads}"
            raise FieldError(field, problem, value=self.name, fix="make a profile of this model")

    def in_rows(self, layers: Sequence[int], most: int | None = None) -> list[tuple[int, float]]:
        """Where the heads of `layers` stand in the rows of these layers, one layer after the other, with their weights.

        The `most` heaviest, the earlier one first on a tie.
        """
        named = [(at, head, float(weight)) for at, head, weight in self.weights if at in layers]
        rows = [(layers.index(at) * self.heads + head, weight) for at, head, weight in named]
        return sorted(rows, key=lambda one: (-one[1], one[0]))[:most]

    def check_layers(self, field: str, num_layers: int, read: Sequence[int]) -> None:
        """Raise `FieldError` unless the model is as deep, and heads of one of the layers `read` are named."""
        if num_layers != self.layers:
            problem = f"{self.name!r} is of a model with {self.layers} layers; this one has {num_layers}"
            raise FieldError(field, problem, value=self.name, fix="make a profile of this model")
        if not set(read) & set(self.named_layers):
            named = list_names([str(layer) for layer in self.named_layers], 12)
            raise FieldError(
                field,
                f"{self.name!r} names no head of layer {' or '.join(map(str, read))}, whose attention is to be read; "
                f"it names heads of layers {named}",
                value=self.name,
                fix=f"drop behind one of these, such as layer={self.named_layers[-1] + 1}",
            )


def weighted_heads(named: Sequence[tuple[int, float]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Heads and what each counts, adding up to 1 (float64), for every row of `like` `[B, ...]`: `[B, n]` each."""
    total = math.fsum(weight for _, weight in named)
    # filled in on the device: copying lists there would wait for it
    heads = [torch.full((1,), head, device=like.device) for head, _ in named]
    shares = [torch.full((1,), weight / total, device=like.device, dtype=torch.float64) for _, weight in named]
    return torch.cat(heads).expand(len(like), -1), torch.cat(shares).expand(len(like), -1)


def profile_json(profile: HeadProfile) -> dict[str, Any]:
    """A profile as the object of its file."""
    said = {"model": profile.model, "task": profile.task, "source": profile.source}
    return said | {"layers": profile.layers, "heads": profile.heads, "weights": [list(one) for one in profile.weights]}
