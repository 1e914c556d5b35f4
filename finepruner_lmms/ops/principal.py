"""Principal components by a randomised range finder (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 5.1).

Of matrices on any device, without a decomposition that asks whether it went well: torch's own wait for the device, and
a CUDA graph cannot record them. Float64 throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import mix64, unit_vectors

if TYPE_CHECKING:
    from torch import Tensor

_SWEEPS = 8
"""Of Jacobi rotations, which converge quadratically: 48 rows are diagonal to rounding after six or seven."""


def principal_components(values: Tensor, count: int, seed: int = 0, rounds: int = 2) -> Tensor:
    """The loadings `[B, N, count]` of the columns of `values` `[B, C, N]` on their `count` first components.

    Each column is centred. `rounds` of power iteration, as in `torch.pca_lowrank`, from signs drawn from `seed`: the
    same for every matrix of one size. Components stand in descending order; their signs are arbitrary, and one without
    variance is zero.
    """
    matrix = values.double()
    matrix = matrix - matrix.mean(1, keepdim=True)
    count = min(count, *matrix.shape[1:])
    columns = matrix.shape[2]
    place = torch.arange(columns * count, device=matrix.device)
    signs = (mix64(mix64(place + 1) + seed * 0x632BE59BD9B4E019 % 2**63) >> 63).double() * 2 + 1  # -1 or 1
    basis = orthonormal(matrix @ signs.view(columns, count))
    for _ in range(rounds):
        basis = orthonormal(matrix @ orthonormal(matrix.mT @ basis))
    reduced = basis.mT @ matrix
    vectors, squares = symmetric_eigenvectors(reduced @ reduced.mT)
    order = squares.argsort(dim=1, descending=True, stable=True)
    vectors = vectors.gather(2, order[:, None].expand_as(vectors))
    return unit_vectors((reduced.mT @ vectors).mT).mT


def orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of what the columns of `vectors` `[B, M, K]` span, by Gram-Schmidt, each column twice.

    A column that the ones before it span, but for rounding, becomes zero.
    """
    basis = torch.zeros_like(vectors)
    for column in range(vectors.shape[2]):
        whole = vectors[:, :, column : column + 1]
        rest = whole
        for _ in range(2):
            before = basis[:, :, :column]
            rest = rest - before @ (before.mT @ rest)
        length = rest.norm(dim=1, keepdim=True)
        enough = length > 1e-12 * whole.norm(dim=1, keepdim=True)
        basis[:, :, column : column + 1] = torch.where(enough, rest / length.masked_fill(~enough, 1), 0)
    return basis


def symmetric_eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors `[B, K, K]` (columns) and eigenvalues `[B, K]` of symmetric `matrix` `[B, K, K]`, in no order.

    Jacobi rotations of disjoint pairs at a time, in the order of a round-robin tournament: in K - 1 steps every pair
    meets once (Golub and Van Loan, Matrix Computations, 8.5).
    """
    size = matrix.shape[1]
    even = size + size % 2
    work = matrix.new_zeros(len(matrix), even, even)
    work[:, :size, :size] = matrix
    one = torch.eye(even, dtype=matrix.dtype, device=matrix.device)
    vectors, half = one.expand_as(work), torch.arange(even // 2, device=matrix.device)
    step = torch.arange(even - 1, device=matrix.device)[:, None]
    # the last one stays; the others turn around it
    lefts = (step + half) % (even - 1)
    rights = torch.where(half == 0, even - 1, (step - half) % (even - 1))
    for left, right in [*zip(lefts, rights, strict=True)] * _SWEEPS:
        cross = work[:, left, right]
        apart = (work[:, right, right] - work[:, left, left]) / (2 * cross.masked_fill(cross == 0, 1))
        tangent = torch.where(apart < 0, -1.0, 1.0) / (apart.abs() + (apart.square() + 1).sqrt())
        tangent = tangent.masked_fill(cross == 0, 0)
        cosine = (tangent.square() + 1).rsqrt()
        sine = tangent * cosine
        turn = one.repeat(len(work), 1, 1)
        turn[:, left, left], turn[:, right, right] = cosine, cosine
        turn[:, left, right], turn[:, right, left] = sine, -sine
        work = turn.mT @ work @ turn
        vectors = vectors @ turn
    return vectors[:, :size, :size], work.diagonal(dim1=1, dim2=2)[:, :size]
