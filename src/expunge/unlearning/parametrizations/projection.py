"""The outputs of chosen MLP branches lose a learned subspace: metamorphosis representation projection.

    h <- h - (h Q^T) Q,    Q = qr([W_old; W_new]^T)^T                          arXiv:2508.15449
    W_down <- (I - Q^T Q) W_down,    b_down <- (I - Q^T Q) b_down              folded, exactly

W_new [k, d] is trained, through the QR, and W_old are the rows of earlier requests. Stacked by one QR they span what
every request has removed: what W_old took away stays away wherever training takes W_new (a product of projections has
no such property). W and Q are fp32 whatever the model's dtype: in bf16 a tenth of a percent would leak. Unlike in the
authors' code the site is the MLP's output, not the block's, because only there is the result an ordinary checkpoint.

Until the first step the model is as it was, and so it stays if no step is made. Only the span of W_new counts, so a
weight decay has no effect, and the learning rate is relative to rows of length 1 (1e-2 is usual, not 1e-5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import InputError
from expunge.models.architecture import Architecture, base_linear, describe, width
from expunge.unlearning.parametrizations.base import Material, Parametrization, Trained
from expunge.unlearning.parametrizations.layers import chosen_blocks
from expunge.unlearning.parametrizations.sidecar import load_rows
from expunge.unlearning.parametrizations.states import Pool, output_moments
from expunge.unlearning.parametrizations.subspace import (
    Moments,
    initial_directions,
    leading,
    outside_share,
    project,
    row_space,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Init = Literal["paper", "code", "random", "leace"]
OutputSite = Literal["mlp", "block"]
Linear = nn.Linear | Conv1D
Rows = dict[int, Float[Tensor, "rows d"]]

_NAME: Final = "projection"


@dataclass(frozen=True, slots=True)
class Projection(Parametrization):
    """New rows of an orthogonal projection at the MLP outputs of chosen blocks.

    Args:
        rank: k, rows per block; fewer where the forget states have no more directions of their own.
        layers: indices of blocks; negative ones count from the end; empty for all but the first.
        n_layers: of these, only the so many whose forget states have the largest share of their energy outside the
            retain subspace; 0 for all.
        site: "mlp"; "block", the output of the whole block, does not fold and is refused.
        init: of W_new. "paper": the directions of the forget states outside the retain subspace; "code": the other way
            round, as the authors' script has it; "random": the control of equal rank; "leace": what tells forget from
            retain states linearly, one row.
        energy: share of the energy that the subspace left out of the initialisation holds, in [0, 1).
        tokens: states to look at: "answer", those that predict the answer, or "content", all but special tokens.
        earlier: file of the rows that earlier requests removed (`sidecar.save_rows`), or None. Those of blocks that
            are not chosen now are left as they lie in the weights.
    """

    rank: int = 4
    layers: tuple[int, ...] = ()
    n_layers: int = 0
    site: OutputSite = "mlp"
    init: Init = "paper"
    energy: float = 0.95
    tokens: Pool = "answer"
    earlier: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError("The rank must be at least 1.", f"rank={self.rank}")
        if self.n_layers < 0:
            raise InputError("The number of layers must be at least 0.", f"n_layers={self.n_layers}")
        if not 0 <= self.energy < 1:
            raise InputError("energy must be at least 0 and below 1.", f"energy={self.energy}")
        if self.site == "block":
            raise InputError(
                "A projection of the block's output cannot be folded into the weights.",
                "site=block",
                'Use site "mlp", whose result is an ordinary checkpoint.',
            )

    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Projected:
        """The rows of W_new, begun as `init` says; InputError where no block has a direction to begin with."""
        arch = describe(model)
        blocks = chosen_blocks(arch, self.layers or tuple(range(1, len(arch.blocks))))
        maps = {block: base_linear(arch.linears[block]["down"]) for block in blocks}
        fixed = self._earlier_rows(maps)
        new = self._initial_rows(arch, maps, fixed, seed, material)
        if not new:
            raise InputError("The forget states have no direction of their own.", f"init={self.init}", "Lower energy.")
        return Projected(model, {block: (maps[block], fixed[block], rows) for block, rows in new.items()})

    def _earlier_rows(self, maps: Mapping[int, Linear]) -> Rows:
        """An orthonormal basis of W_old for each block, without rows where nothing was removed."""
        saved = load_rows(Path(self.earlier)) if self.earlier else {}
        fixed: Rows = {}
        for block, linear in maps.items():
            d, rows = width(linear), saved.get(block, torch.zeros(0, width(linear)))
            if rows.shape[1] != d or len(rows) + self.rank > d:
                raise InputError(
                    f"States of size {d} have no room for {self.rank} more rows.",
                    f"block {block}, earlier rows {list(rows.shape)}",
                    "Lower the rank, or give the rows of this model.",
                )
            fixed[block] = row_space(rows.double()).to(_wide(linear.weight))
        return fixed

    def _initial_rows(
        self, arch: Architecture, maps: Mapping[int, Linear], fixed: Rows, seed: int, material: Material | None
    ) -> Rows:
        """W_new of the blocks that are taken: orthonormal rows, orthogonal to the fixed ones."""
        if self.init == "random" and not self.n_layers:
            return {block: random_rows(self.rank, rows, seed + block) for block, rows in fixed.items()}
        if material is None:
            raise InputError("This projection begins at what the data say, and there are none.", f"init={self.init}")
        moments = partial(output_moments, arch, maps, self.tokens, material.special_ids, fixed)
        forget, retain = (moments(material.batches(items)) for items in (material.forget, material.retain))
        taken = self._taken(forget, retain)
        if self.init == "random":
            return {block: random_rows(self.rank, fixed[block], seed + block) for block in taken}
        found = {
            block: initial_directions(self.init, forget[block], retain[block], self.energy, self.rank)
            for block in taken
        }
        return {block: rows.to(fixed[block]) for block, rows in found.items() if len(rows)}

    def _taken(self, forget: Mapping[int, Moments], retain: Mapping[int, Moments]) -> list[int]:
        """All blocks, or the `n_layers` with the largest share of forget energy outside the retain subspace."""
        if not self.n_layers:
            return list(forget)
        share = {b: outside_share(forget[b].second, leading(retain[b].second, self.energy)) for b in forget}
        return sorted(sorted(share, key=lambda block: -share[block])[: self.n_layers])


class Projector(nn.Module):
    """h -> h - (h Q^T) Q once `begun` says so or a gradient is wanted; before, h itself.

    Args:
        fixed: W_old, orthonormal rows.
        rows: what W_new begins with.
        begun: whether a step has been made.
    """

    fixed: Tensor
    initial: Tensor

    def __init__(self, fixed: Tensor, rows: Tensor, begun: Callable[[], bool]) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("initial", rows, persistent=False)
        self.rows = nn.Parameter(rows.clone())
        self._begun = begun

    @property
    def moved(self) -> bool:
        """Whether W_new is no longer what it began with."""
        return not torch.equal(self.rows, self.initial)

    def basis(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows d"]:
        """Q, orthonormal rows that span W_old and W_new; computed in `dtype`, W's own if None."""
        stacked = torch.cat([self.fixed, self.rows]).to(dtype or self.rows.dtype)
        q: Tensor = torch.linalg.qr(stacked.T).Q
        return q.T

    def forward(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The states without what Q spans, computed in W's dtype and given in their own."""
        if not (torch.is_grad_enabled() or self._begun()):
            return hidden
        return project(hidden.to(self.rows.dtype), self.basis()).to(hidden.dtype)


class Projected(Trained):
    """A model with projections at the outputs of linear maps, until they are folded into those maps.

    Args:
        model: the model.
        sites: by block, the linear map, W_old and the beginning of W_new.
    """

    def __init__(self, model: PreTrainedModel, sites: Mapping[int, tuple[Linear, Tensor, Tensor]]) -> None:
        self._moved = False
        self._maps = {block: linear for block, (linear, _, _) in sites.items()}
        self._projectors = {block: Projector(fixed, rows, self._begun) for block, (_, fixed, rows) in sites.items()}
        self._handles = [linear.register_forward_hook(_through_projection) for linear in self._maps.values()]
        for block, linear in self._maps.items():
            linear.add_module(_NAME, self._projectors[block])
        own = {id(projector.rows) for projector in self._projectors.values()}
        super().__init__(model, [name for name, p in model.named_parameters() if id(p) in own], self._take_out)

    def bases(self) -> Rows:
        """Q by block, also after `fold`: the `earlier` rows of the next request. Empty if no step was made."""
        if not self._begun():
            return {}
        return {block: projector.basis().detach() for block, projector in self._projectors.items()}

    def _begun(self) -> bool:
        """Whether a step has been made: the first one moves the rows away from their beginning, and none leads back."""
        self._moved = self._moved or any(projector.moved for projector in self._projectors.values())
        return self._moved

    @torch.no_grad()
    def _take_out(self) -> None:
        """Take the projections out of the model and, if a step was made, fold them into the weights."""
        begun = self._begun()
        for handle in self._handles:
            handle.remove()
        for block, linear in self._maps.items():
            linear.__delattr__(_NAME)
            if begun:
                fold_projection(linear, self._projectors[block].basis(torch.float64))


def fold_projection(linear: Linear, basis: Float[Tensor, "rows d"]) -> None:
    """Make the linear map's output lose the span of `basis`, in place: W <- (I - Q^T Q) W, b <- (I - Q^T Q) b."""
    by_output = linear.weight.T if isinstance(linear, nn.Linear) else linear.weight
    for outputs in (by_output, linear.bias):
        if outputs is not None:
            outputs.data.copy_(project(outputs.to(basis.dtype), basis))


def random_rows(rank: int, fixed: Float[Tensor, "r d"], seed: int) -> Float[Tensor, "rank d"]:
    """Orthonormal rows in a direction drawn with `seed`, orthogonal to the fixed ones."""
    draw = torch.randn(rank, fixed.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return row_space(project(draw, fixed.double().cpu())).to(fixed)


def _through_projection(linear: nn.Module, args: object, out: Tensor) -> Tensor:
    projected: Tensor = linear.get_submodule(_NAME)(out)
    return projected


def _wide(weight: Tensor) -> Tensor:
    """A tensor on the weight's device in the dtype of the rows, fp32 unless the model's is wider."""
    return torch.empty(0, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
