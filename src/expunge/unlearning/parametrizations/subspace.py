"""Directions in which forget states differ from retain states, from statistics that are added up as the states come.

    C = sum_t x_t x_t^T                                  x_t: one row of R (retain) or of U (forget) per token
    V_R = eigenvectors of C_R that hold the share `energy` of its trace
    W   = first k eigenvectors of (I - V_R^T V_R) C_U (I - V_R^T V_R)

These are the right singular vectors of U - U V_R^T V_R (arXiv:2508.15449, with V_R as rows), from d x d numbers instead
of all rows of U. V_R must be truncated: with more rows than d its complement is empty, and W would be rounding noise.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from expunge.models.projections import project

DataInit = Literal["paper", "code", "leace"]

NEGLIGIBLE: Final = 1e-6
"""Share of the energy that a direction must exceed: below it C, summed in fp32, holds rounding only."""


class Moments:
    """Count, sum and second moment of states: memory d x d, however many there are.

    Args:
        like: a tensor of the states' dtype and device; the sums are at least fp32.
        d: size of a state.
        unit: count every state as if its length were 1, so that no few of them decide.
    """

    def __init__(self, like: Tensor, d: int, unit: bool = False) -> None:
        self._unit = unit
        self._dtype = torch.promote_types(like.dtype, torch.float32)
        self.count = 0
        self.total: Float[Tensor, " d"] = like.new_zeros(d, dtype=self._dtype)
        self.second: Float[Tensor, "d d"] = like.new_zeros(d, d, dtype=self._dtype)

    def add(self, states: Float[Tensor, "n d"]) -> None:
        """Count these states in."""
        wide = states.to(self._dtype)
        wide = normalize(wide, dim=-1) if self._unit else wide
        self.count += len(wide)
        self.total += wide.sum(0)
        self.second.addmm_(wide.T, wide)


def initial_directions(
    init: DataInit, forget: Moments, retain: Moments, energy: float, rank: int, spared: Float[Tensor, "s d"]
) -> Float[Tensor, "at_most_rank d"]:
    """Orthonormal rows to begin with, as `Projection.init` says, outside the span of the orthonormal rows `spared`;
    fewer than `rank` if no more are there."""
    match init:
        case "paper":
            return outside_directions(forget.second, joined(leading(retain.second, energy), spared), rank)
        case "code":
            return outside_directions(retain.second, joined(leading(forget.second, energy), spared), rank)
        case "leace":
            return apart(concept_direction(forget, retain), spared)


def joined(rows: Float[Tensor, "r d"], others: Float[Tensor, "s d"]) -> Float[Tensor, "n d"]:
    """Orthonormal rows of the span of both."""
    return row_space(torch.cat([rows, others.to(rows)])) if len(others) else rows


def apart(rows: Float[Tensor, "r d"], others: Float[Tensor, "s d"]) -> Float[Tensor, "at_most_r d"]:
    """Orthonormal rows of what is left of orthonormal ones outside the span of `others`, orthonormal too."""
    return row_space(project(rows, others)) if len(others) else rows


def leading(second: Float[Tensor, "d d"], energy: float) -> Float[Tensor, "r d"]:
    """The fewest eigenvectors, as rows, that hold the share `energy` of the trace; none for 0 or without any state."""
    values, vectors = _descending(second)
    whole = values.sum()
    if energy == 0 or whole <= 0:
        return vectors[:0]
    return vectors[: int((values.cumsum(0) < energy * whole).sum()) + 1]


def outside(second: Float[Tensor, "d d"], basis: Float[Tensor, "r d"]) -> Float[Tensor, "d d"]:
    """(I - V^T V) C (I - V^T V) for orthonormal rows V."""
    return project(project(second.double(), basis).T, basis)


def outside_directions(
    second: Float[Tensor, "d d"], basis: Float[Tensor, "r d"], rank: int
) -> Float[Tensor, "at_most_rank d"]:
    """The first `rank` right singular vectors of X - X V^T V, from C = X^T X; fewer where no more energy is there."""
    values, vectors = _descending(outside(second, basis))
    there = values[:rank] > NEGLIGIBLE * second.trace()
    return vectors[:rank][there]


def outside_share(second: Float[Tensor, "d d"], basis: Float[Tensor, "r d"]) -> float:
    """The share of the energy of X that lies outside the row space of V; 0 without energy."""
    whole = second.trace().item()
    return outside(second, basis).trace().item() / whole if whole > 0 else 0.0


def massive_directions(lone: Moments, ordinary: Moments) -> Float[Tensor, "s d"]:
    """Orthonormal rows along which states of a token alone are longer, root mean square, than ordinary states are as a
    whole: massive activations (arXiv:2402.17762). None where there are none such; all need at least one state."""
    values, vectors = _descending(lone.second / lone.count)
    return vectors[values > ordinary.second.trace() / ordinary.count]


def concept_direction(one: Moments, other: Moments) -> Float[Tensor, "at_most_1 d"]:
    """The direction that LEACE takes out for the label "one or other": the covariance of state and label, which of two
    classes is the difference of their means. No row where the means agree or a class is empty.

        LEACE    x <- x - W^+ P_{W Sigma_xz} W (x - E[x]),    W = (Sigma_xx^{1/2})^+      arXiv:2306.03819
        here     x <- x - Q^T Q x,                            Q = Sigma_xz^T / |Sigma_xz|

    Both leave no linear predictor of the label, for both take out the span of Sigma_xz. LEACE does so obliquely, along
    what the whitening W makes orthogonal, and about the mean, which moves the states least in the mean square; here it
    is done orthogonally and through 0, so states move further. Rows of several requests must stack to one orthogonal
    projection Q^T Q, which keeps out what any of them removed; an oblique one does not stack so. `mrp` then trains the
    row, and no longer promises what either does.
    """
    if not one.count or not other.count:
        return one.total.new_zeros(0, len(one.total))
    difference = one.total.double() / one.count - other.total.double() / other.count
    scale = (one.second.trace() + other.second.trace()) / (one.count + other.count)
    rows = row_space(difference[None])
    return rows if difference.square().sum() > NEGLIGIBLE * scale else rows[:0]


def row_space(rows: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """Orthonormal rows of the same span; rows of zeros and repeated ones, which QR would fill up, add none."""
    if not len(rows):
        return rows
    values: Tensor
    vectors: Tensor
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    return vectors[values > NEGLIGIBLE * values.max()]


def random_rows(rank: int, fixed: Float[Tensor, "r d"], seed: int) -> Float[Tensor, "rank d"]:
    """Orthonormal rows drawn with `seed`, orthogonal to the fixed ones.

    As many draws are skipped as there are fixed rows: those of a second request are not the first one's once more.
    """
    draws = torch.Generator().manual_seed(seed)
    draw = torch.randn(len(fixed) + rank, fixed.shape[1], generator=draws, dtype=torch.float64)[len(fixed) :]
    return row_space(project(draw, fixed.double().cpu())).to(fixed)


def _descending(second: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and the eigenvectors as rows."""
    values, vectors = torch.linalg.eigh(((second + second.T) / 2).double())
    return values.flip(0).clamp(min=0), vectors.T.flip(0)
