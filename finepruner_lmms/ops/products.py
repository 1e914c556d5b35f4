"""Products and cosines of all pairs of an image's tokens, for half the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BLOCKS, _WORTH_IT = 4, 256  # a CPU's product of fewer tokens takes as long whole


def pair_products(tokens: Tensor) -> Tensor:
    """The product `[B, N, N]` of every pair of `tokens` `[B, N, D]`, in their precision.

    On a CPU a block of rows at a time, by the rows up to it: what is above the diagonal is copied from below.
    """
    size = tokens.shape[1]
    if tokens.device.type != "cpu" or size < _WORTH_IT:
        return tokens @ tokens.mT
    products = tokens.new_empty(len(tokens), size, size)
    step = -(-size // _BLOCKS)
    for first in range(0, size, step):
        block = slice(first, first + step)
        products[:, block, : first + step] = tokens[:, block] @ tokens[:, : first + step].mT
        products[:, :first, block] = products[:, block, :first].mT
    return products


def pair_cosines(tokens: Tensor) -> Tensor:
    """The cosine `[B, N, N]` of every pair of `tokens` `[B, N, D]`, in float64; a token without a direction has 0."""
    products = pair_products(tokens.double())
    scale = reciprocal_lengths(products)
    # the lengths divide the products, not the tokens, which are far more numbers
    return products.mul_(scale[:, :, None]).mul_(scale[:, None])


def reciprocal_lengths(products: Tensor) -> Tensor:
    """1 / length of every token `[B, N]`, from `pair_products`; 1 of a token of length 0."""
    length = products.diagonal(dim1=1, dim2=2).sqrt()
    return length.masked_fill(length == 0, 1).reciprocal()
