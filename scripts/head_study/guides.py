"""The guides of one drop: rules that give every visual token a score from the attention of chosen heads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.heads import NORMALISATIONS, best_heads, consensus, head_scores
from finepruner_lmms.heads.profile import HeadProfile
from finepruner_lmms.ops.token_scores import AGGREGATES, ROWS, head_rows, token_scores
from head_study.facts import STRATEGIES
from head_study.study import Drop, Study

FASTV = "all heads: raw, mean"
ORACLE = "oracle: known tokens"
_HEAVIEST = 8  # heads of a profile of several layers


@dataclass(frozen=True)
class Seen:
    """What a guide may know of Q questions: the last token's attention `[Q, layers, H, V]` up to the scoring layer,
    and, the oracles alone, the tokens `[Q, V]` that the answer hangs on and those of things. `chance` is what draws
    depend on beside their seed."""

    attention: Tensor
    evidence: Tensor
    objects: Tensor
    chance: str


def guides(seen: Seen, drop: Drop, study: Study, profiles: Mapping[str, HeadProfile]) -> Iterator[tuple[str, Tensor]]:
    """Each guide's name and scores `[Q, V]`."""
    rows = seen.attention[:, drop.p]
    for kind in ROWS:
        for aggregate in AGGREGATES:
            yield f"all heads: {kind}, {aggregate}", token_scores(rows, kind, aggregate)
    for number in range(study.random):
        yield f"random: {number}", _chance(seen, number)
    yield ORACLE, 2 * seen.evidence + seen.objects + _chance(seen, study.random)
    share = (rows * seen.evidence[:, None]).sum(-1) / rows.sum(-1).clamp_min(1e-30)
    for count in study.strategies.heads:
        yield f"oracle: {count} heads", token_scores(_rows_of(rows, best_heads(share, count)), "renormalised", "mean")
    for name, profile in profiles.items():
        yield from _profiled(seen.attention, drop, name, profile)
        for seed in range(study.controls):
            yield from _profiled(seen.attention, drop, f"{name} shuffled {seed}", profile.shuffled(seed))
    if drop.p in study.strategies.layers:
        yield from _chosen(rows, study)


def _chosen(rows: Tensor, study: Study) -> Iterator[tuple[str, Tensor]]:
    for strategy in STRATEGIES:
        for normalise in NORMALISATIONS:
            for count in study.strategies.heads:
                found = _rows_of(rows, best_heads(head_scores(rows, strategy, count, normalise), count))
                yield f"strategy {strategy}: {normalise}, {count} heads", token_scores(found, "raw", "mean")
    for preset in consensus.PRESETS:
        yield f"consensus: {preset}", consensus.select_batch(rows, preset).token_scores


def _profiled(attention: Tensor, drop: Drop, name: str, profile: HeadProfile) -> Iterator[tuple[str, Tensor]]:
    """The heads of the scoring layer by their weights; and the heaviest of all layers up to it."""
    if weights := profile.of_layer(drop.p):
        yield f"profile {name}", _weighted(attention, [(drop.p, *one) for one in weights])
    heaviest = sorted((one for one in profile.weights if one[0] <= drop.p), key=lambda one: (-one[2], one[:2]))
    if heaviest and drop.p:
        yield f"profile {name}, layers up to it", _weighted(attention, heaviest[:_HEAVIEST])


def _weighted(attention: Tensor, named: list[tuple[int, int, float]]) -> Tensor:
    total = sum(weight for *_, weight in named)
    rows = torch.stack([attention[:, layer, head] for layer, head, _ in named], dim=1)
    shares = rows.new_tensor([weight / total for *_, weight in named])
    return (head_rows(rows, "renormalised") * shares[:, None]).sum(1)


def _rows_of(rows: Tensor, heads: Tensor) -> Tensor:
    return rows.gather(1, heads[..., None].expand(-1, -1, rows.shape[-1]))


def _chance(seen: Seen, seed: int) -> Tensor:
    """`[Q, V]` from 0 to 1."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seen.chance} {seed}".encode()))
    return torch.rand(seen.evidence.shape, generator=generator).to(seen.evidence.device)
