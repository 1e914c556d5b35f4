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
from finepruner_lmms.engine.vision_tower import encode_images
from finepruner_lmms.ops.selection import at_least_float32


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


def token_weights(model: Any, ids: Tensor, tokens: Tensor, answer: int) -> Tensor:
    """`answer_gradient` of a prompt `ids` `[1, L]` whose last `answer` tokens are the answer; `tokens` `[1, N, D]`."""
    embed = model.get_input_embeddings()
    tokens = tokens.detach().to(embed.weight).requires_grad_()
    with torch.enable_grad():
        said = log_probability(model, ids.to(tokens.device), tokens, answer)
        (gradient,) = torch.autograd.grad(said, tokens)
    return (gradient.float() * tokens.detach().float()).sum(-1)[0].abs().cpu()


def log_probability(model: Any, ids: Tensor, tokens: Tensor, answer: int) -> Tensor:
    """The log-probability of the last `answer` of `ids` `[1, L]` after those before; `tokens` `[1, N, D]` are shown."""
    visual = ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(ids.masked_fill(visual, 0)).masked_scatter(visual[..., None], tokens)
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    logits = at_least_float32(model.lm_head(hidden[:, -answer - 1 : -1])).log_softmax(-1)
    return logits.gather(2, ids[:, -answer:, None].to(logits.device)).sum()
