"""Static weights of heads, found on the tuning split of the study's own world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finepruner_lmms.files import load_object, write_json
from finepruner_lmms.heads.criteria import Profiled, mean_weights, named_weights, reliability, scores_of
from finepruner_lmms.heads.profile import HeadProfile, profile_json
from head_study.deck import Deck
from head_study.decoder import Prefill
from head_study.study import Study
from head_study.worlds import questions


def profile(model: Any, processor: Any, study: Study, criterion: str, pretrained: str, file: Path) -> None:
    """Make the profile in `file` from all tuning questions, where it is not there yet.

    `ValueError` where it is there, and of other questions: what was measured with it would not be of this study.
    """
    asked = sum(
        len(list(questions(processor, model.config, study.world, "tuning", scenes, study.per_scene, kinds=study.kinds)))
        for scenes in study.parts("tuning")
    )
    task = f"{criterion} on {asked} questions about tuning scenes of the {study.world} world"
    if file.exists() and (was := load_object(file)["task"]) != task:
        raise ValueError(f"{file}: is of {was}, and the study asks {task}; give it another folder")
    if not file.exists():
        parts = [_scores(model, processor, study, criterion, scenes) for scenes in study.parts("tuning")]
        scores = torch.cat(parts)
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
