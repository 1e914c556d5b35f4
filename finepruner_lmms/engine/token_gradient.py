"""How much what a LLaVA says hangs on each visual token, by one backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.ops.selection import at_least_float32


def token_weights(model: Any, ids: Tensor, tokens: Tensor, answer: int) -> Tensor:
    """How much `log_probability` of the same hangs on each visual token: `[N]` float32 on the host.

    That is |e · ∂ log p / ∂ e| for each token e of `tokens` `[1, N, D]`, as it enters the decoder.
    """
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
