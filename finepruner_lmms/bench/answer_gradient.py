"""On which visual tokens the right answer hangs, by its gradient: an oracle, since it has to know the answer."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finepruner_lmms.asking.conversation import Conversation, Turn, shown
from finepruner_lmms.asking.inputs import batch_inputs, input_maker
from finepruner_lmms.asking.settings import evaluation
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.token_gradient import token_weights
from finepruner_lmms.engine.vision_tower import encode_images


def answer_gradient(model: Any, processor: Any, image: Image.Image, question: str, answer: str) -> Tensor:
    """`[N]` float32 on the host: |e_j · ∂ log p(answer) / ∂ e_j| of each visual token e_j as it enters the decoder.

    To first order, how much the log-probability of `answer` after the question changes if token j is scaled to
    nothing. The model is a LLaVA-1.5; one forward and one backward pass.
    """
    family = family_of(model)
    maker = input_maker(model.config, processor, evaluation(family, None))
    prompt = maker.prompt(Conversation((Turn("user", (shown(image, "image"), question)),)))
    inputs = batch_inputs([prompt], 0)
    told = torch.tensor([processor.tokenizer(answer, add_special_tokens=False)["input_ids"]])
    tokens = encode_images(model, inputs["pixel_values"]).projected
    return token_weights(model, torch.cat([inputs["input_ids"], told], dim=1), tokens, told.shape[1])
