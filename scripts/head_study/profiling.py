"""Static weights of heads, found on the tuning split of the study's own world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finepruner_lmms.files import write_json
from finepruner_lmms.heads.criteria import Profiled, mean_weights, named_weights, reliability, scores_of
from finepruner_lmms.heads.profile import HeadProfile, profile_json
from head_study.deck import Deck
from head_study.decoder import Prefill
from head_study.study import Study


def profile(model: Any, processor: Any, study: Study, criterion: str, pretrained: str, file: Path) -> None:
    """Make the profile in `file` from all tuning questions, where it is not there yet."""
    if not file.exists():
        parts = [_scores(model, processor, study, criterion, scenes) for scenes in study.parts("tuning")]
        scores = torch.cat(parts)
        task = f"{criterion} on {len(scores)} questions about tuning scenes of the {study.world} world"
        layers, heads = scores.shape[1] + 1, scores.shape[2]
        found = HeadProfile(
            criterion, pretrained, task, "head_study.equal", layers, heads, named_weights(mean_weights(scores))
        )
        write_json(file, profile_json(found) | {"reliability": round(reliability(scores), 4)})


@torch.no_grad()
def _scores(model: Any, processor: Any, study: Study, criterion: str, scenes: range) -> torch.Tensor:
    """What each question says of each head of every layer but the last, `[Q, L - 1, H]`."""
    deck = Deck.part(model, processor, study.world, "tuning", scenes, study.per_scene, kinds=study.kinds)
    last = len(deck.layers) - 1
    nothing = [deck.asked[0].nothing] * len(deck.images)
    unasked = Prefill(deck.layers, nothing, [[0]] * len(nothing), deck.vision.projected, {last}).attention
    seen = Profiled(deck.attention[:, :last].cpu(), unasked[deck.place].cpu(), deck.subject.cpu())
    return scores_of(seen, criterion)
