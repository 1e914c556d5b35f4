"""A start for a vision tower: heads of its first layers look at the patches beside their own.

What stands beside what is learned slowly where a patch may look anywhere, and where content drowns what is known of
places: a tower from random weights learned nothing of it in 400 steps on whole pictures. So a part of the hidden
dimensions holds places alone, and queries and keys of the first layers read that part, one head for each side. As in
"Mimetic initialization of self-attention layers" (https://arxiv.org/abs/2305.09828), but of places alone: it knows of
no thing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from finepruner_lmms.demo.hard.things import SIDES
from finepruner_lmms.demo.scenes import GRID

LAYERS = 2
_LOUD, _SHARP = 3.0, 2.7  # root mean square of places in their dimensions; how sharply a head looks


def look_around(tower: nn.Module) -> None:
    """Give the last dimensions, as many as a head has, to places, and let the first `LAYERS` layers look; in place.

    Neither is trained, and nothing that is trained before the last of these layers writes into these dimensions.
    """
    layers, embeddings = tower.encoder.layers[:LAYERS], tower.embeddings
    size = layers[0].self_attn.head_dim
    if layers[0].self_attn.num_heads != len(SIDES):
        raise ValueError(f"heads: got {layers[0].self_attn.num_heads}; expected one for each of {', '.join(SIDES)}")
    with torch.no_grad():
        embeddings.position_embedding.weight[1:, -size:] = _LOUD * code(size)
        _leave(embeddings.position_embedding.weight, size, columns=True)
        embeddings.class_embedding[-size:] = 0
        _leave(embeddings.class_embedding, size)
        written = [embeddings.patch_embedding.weight]
        for layer in layers[:-1]:
            written += [p for linear in (layer.self_attn.out_proj, layer.mlp.fc2) for p in (linear.weight, linear.bias)]
        for parameter in written:
            parameter[-size:] = 0
            _leave(parameter, size)
        for attention in (layer.self_attn for layer in layers):
            for linear in (attention.q_proj, attention.k_proj):
                linear.weight.zero_()
                linear.bias.zero_()
                linear.requires_grad_(False)
            for head, (right, down) in enumerate(SIDES.values()):
                rows = slice(head * size, (head + 1) * size)
                attention.q_proj.weight[rows, -size:] = _SHARP * turn(size, down, right)
                attention.k_proj.weight[rows, -size:] = _SHARP * torch.eye(size)


def _leave(parameter: nn.Parameter, size: int, columns: bool = False) -> None:
    """Train all of a parameter but its last `size` rows, or columns."""
    keep = torch.ones_like(parameter)
    (keep.T if columns else keep)[-size:] = 0
    parameter.register_hook(lambda grad: grad * keep.to(grad.device))


def _frequencies(size: int) -> np.ndarray:
    return 2 * np.pi / np.geomspace(2.6, 40, size // 4)


def code(size: int) -> Tensor:
    """`[576, size]`: for each place sines and cosines of its row, then of its column, root mean square 1."""
    frequency = _frequencies(size)
    row, column = np.divmod(np.arange(GRID * GRID), GRID)
    parts = [wave(line[:, None] * frequency) for line in (row, column) for wave in (np.sin, np.cos)]
    return torch.tensor(np.concatenate(parts, 1) * 2**0.5, dtype=torch.float32)


def turn(size: int, down: int, right: int) -> Tensor:
    """`[size, size]`: takes the `code` of a place to that of the place so many patches further on."""
    count, found = size // 4, np.zeros((size, size), dtype=np.float32)
    for axis, step in enumerate((down, right)):
        for place, angle in enumerate(_frequencies(size) * step):
            sine = 2 * axis * count + place
            found[sine, [sine, sine + count]] = np.cos(angle), np.sin(angle)
            found[sine + count, [sine, sine + count]] = -np.sin(angle), np.cos(angle)
    return torch.from_numpy(found)
