"""The outputs of chosen MLP branches lose a learned subspace: metamorphosis representation projection.

    h <- h - (h Q^T) Q,    Q = qr([W_old; W_new]^T)^T                          arXiv:2508.15449
    W_down <- (I - Q^T Q) W_down,    b_down <- (I - Q^T Q) b_down              folded, exactly, at site "mlp"

W_new [k, d] is trained, through the QR, and W_old are the rows of earlier requests. Stacked by one QR they span what
every request has removed: what W_old took away stays away wherever training takes W_new (a product of projections has
no such property). W and Q are fp32 whatever the model's dtype: in bf16 a tenth of a percent would leak. Unlike in the
authors' code the site is the MLP's output, not the block's, because only there is the result an ordinary checkpoint; at
site "block" the projection stays in the model (`models.projections`), for comparison.

Models keep a state of huge norm at the first position, on which heads rest that have nothing to look at: massive
activations (arXiv:2402.17762), attention sinks (arXiv:2309.17453). A row that takes a hundredth of it turns it by more
than an ordinary state is long, everywhere, and plain text suffers. With `keep_sinks`

    W_new <- W_new (I - S^T S),    S: directions of massive activations, found with texts of one token (`subspace`)

so that it stays, exactly. `spare_text` has S hold the leading directions of everyday text too.

Until the first step the model is as it was, and so it stays if no step is made. Only the span of W_new counts, and its
rows begin with length 1: a learning rate of 1e-2 is usual, not 1e-5.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.models.architecture import Architecture, base_linear, describe, width
from expunge.models.projections import attach, attached, load_rows
from expunge.unlearning.parametrizations.base import Material, Parametrization
from expunge.unlearning.parametrizations.layers import chosen_blocks
from expunge.unlearning.parametrizations.projector import Projected, ProjectedWeights, Rows, fold_projection
from expunge.unlearning.parametrizations.states import Pool, lone_tokens, output_moments
from expunge.unlearning.parametrizations.subspace import (
    Moments,
    apart,
    initial_directions,
    joined,
    leading,
    massive_directions,
    outside_share,
    random_rows,
    row_space,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Statistics = Mapping[int, Moments]
"""Of the outputs of each block's module."""

Init = Literal["paper", "code", "random", "leace"]
OutputSite = Literal["mlp", "block"]
Train = Literal["new", "combined", "weights"]


@dataclass(frozen=True, slots=True)
class Projection(Parametrization):
    """New rows of an orthogonal projection at the MLP outputs of chosen blocks.

    Args:
        rank: k, rows per block; fewer where the forget states have no more directions of their own.
        layers: indices of blocks; negative ones count from the end; empty for all but the first.
        n_layers: only so many of these; 0 for all.
        layers_by: which these are: "energy", those whose forget states have the largest share of their energy outside
            the retain subspace, or "seed", drawn with the run's seed.
        site: "mlp", or "block": the output of the whole block, which does not fold.
        train: "new" rows only, or "combined": those of earlier requests too, which then may lose what they removed; or
            "weights": all weights of the model and no row, which stay what `init` and earlier requests made of them.
        init: of W_new. "paper": the directions of the forget states outside the retain subspace; "code": the other way
            round, as the authors' script has it; "random": the control of equal rank; "leace": what tells forget from
            retain states linearly, one row; orthogonally, not whitened and not about the mean as LEACE does it
            (`subspace.concept_direction`).
        energy: share of the energy that the subspace left out of the initialisation holds, in [0, 1).
        tokens: states to look at: "answer", those that predict the answer, or "content", all but special tokens.
        keep_sinks: W_new spares the directions of massive activations.
        spare_text: share of the energy of everyday text's states, each counted with length 1, that W_new spares, in
            [0, 1).
        earlier: file of the rows that earlier requests removed (`sidecar.save_rows`), or None. Those of blocks that
            are not chosen now are carried on, but only as they lie in the weights.
    """

    rank: int = 4
    layers: tuple[int, ...] = ()
    n_layers: int = 0
    layers_by: Literal["energy", "seed"] = "energy"
    site: OutputSite = "mlp"
    train: Train = "new"
    init: Init = "paper"
    energy: float = 0.95
    tokens: Pool = "answer"
    keep_sinks: bool = False
    spare_text: float = 0.0
    earlier: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError("The rank must be at least 1.", f"rank={self.rank}")
        if self.train == "weights" and self.site == "block":
            raise InputError("Rows at whole blocks cannot be folded into weights.", "site=block", 'Take site "mlp".')
        if self.n_layers < 0:
            raise InputError("The number of layers must be at least 0.", f"n_layers={self.n_layers}")
        for name, share in (("energy", self.energy), ("spare_text", self.spare_text)):
            if not 0 <= share < 1:
                raise InputError(f"{name} must be at least 0 and below 1.", f"{name}={share}")

    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Projected | ProjectedWeights:
        """The rows of W_new, begun as `init` says; InputError where no block has a direction to begin with."""
        arch = describe(model)
        blocks = chosen_blocks(arch, self.layers or tuple(range(1, len(arch.blocks))))
        there = attached(model)
        fixed = self._earlier_rows(arch, there)
        modules = {block: self._module(arch, block) for block in blocks}
        moments = partial(output_moments, arch, modules, width(arch.linears[0]["down"]))
        states = self._states(moments, fixed, material)
        taken = self._taken(list(modules), states, seed)
        spared = self._spared(taken, moments, model, fixed, states, material)
        new = self._initial_rows(taken, fixed, spared, seed, states)
        if not new:
            raise InputError("The forget states have no direction of their own.", f"init={self.init}", "Lower energy.")
        earlier = {block: rows for block, rows in fixed.items() if len(rows)}
        settle = partial(self._settle, model, arch)
        if self.train == "weights":
            whole = {block: (modules[block], row_space(torch.cat([fixed[block], rows]))) for block, rows in new.items()}
            return ProjectedWeights(model, whole, earlier, settle)
        sites = {
            block: (modules[block], *self._started(fixed[block], rows), spared[block]) for block, rows in new.items()
        }
        return Projected(model, sites, earlier, settle)

    def _module(self, arch: Architecture, block: int) -> nn.Module:
        """Whose output loses the rows."""
        return arch.blocks[block] if self.site == "block" else base_linear(arch.linears[block]["down"])

    def _settle(self, model: PreTrainedModel, arch: Architecture, block: int, basis: Tensor) -> None:
        """Fold the projection into the weights or, at site "block", leave it in the model."""
        if self.site == "block":
            attach(model, {block: basis.to(_wide(base_linear(arch.linears[block]["down"]).weight))})
        else:
            fold_projection(base_linear(arch.linears[block]["down"]), basis)

    def _started(self, fixed: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """W_old, and what is trained."""
        return (fixed, rows) if self.train == "new" else (fixed[:0], torch.cat([fixed, rows]))

    def _earlier_rows(self, arch: Architecture, there: Mapping[int, Tensor]) -> Rows:
        """An orthonormal basis of W_old for every block, without rows where nothing was removed.

        At site "block" these are the rows that are still in the model, unless a file is given.
        """
        saved = load_rows(Path(self.earlier)) if self.earlier else dict(there) if self.site == "block" else {}
        if others := sorted(saved.keys() - set(range(len(arch.blocks)))):
            raise InputError(
                f"The model has no block {others[0]}.", f"earlier={self.earlier}", "Is it another model's?"
            )
        fixed: Rows = {}
        for block, linears in enumerate(arch.linears):
            d = width(linears["down"])
            rows = saved.get(block, torch.zeros(0, d))
            if rows.shape[1] != d or len(rows) + self.rank > d:
                raise InputError(
                    f"States of size {d} have no room for {self.rank} more rows.",
                    f"block {block}, earlier rows {list(rows.shape)}",
                    "Lower the rank, or give the rows of this model.",
                )
            fixed[block] = row_space(rows.double()).to(_wide(base_linear(linears["down"]).weight))
        return fixed

    def _states(
        self, moments: Callable[..., Statistics], fixed: Rows, material: Material | None
    ) -> tuple[Statistics, Statistics] | None:
        """Of the forget and the retain items, by block; None where nothing asks for them."""
        ranked = self.n_layers and self.layers_by == "energy"
        if self.init == "random" and not (ranked or self.keep_sinks or self.spare_text):
            return None
        if material is None:
            raise InputError("This projection begins at what the data say, and there are none.", f"init={self.init}")
        forget, retain = (
            moments(self.tokens, material.special_ids, fixed, material.batches(items))
            for items in (material.forget, material.retain)
        )
        return forget, retain

    def _spared(
        self,
        taken: Sequence[int],
        moments: Callable[..., Statistics],
        model: PreTrainedModel,
        fixed: Rows,
        states: tuple[Statistics, Statistics] | None,
        material: Material | None,
    ) -> Rows:
        """S of the blocks that are taken, without rows where nothing is spared."""
        spared = {block: fixed[block][:0] for block in taken}
        if states is None or material is None:
            return spared
        if self.keep_sinks:
            vocabulary = len(model.get_input_embeddings().get_parameter("weight"))
            lone = moments("first", frozenset(), fixed, [lone_tokens(vocabulary)])
            spared = {block: massive_directions(lone[block], states[0][block]).to(fixed[block]) for block in taken}
        if self.spare_text:
            text = moments("content", material.special_ids, fixed, material.batches(material.everyday()), unit=True)
            wide = {block: leading(text[block].second, self.spare_text) for block in taken}
            spared = {block: joined(rows, spared[block]).to(fixed[block]) for block, rows in wide.items()}
        return spared

    def _initial_rows(
        self,
        taken: Sequence[int],
        fixed: Rows,
        spared: Rows,
        seed: int,
        states: tuple[Statistics, Statistics] | None,
    ) -> Rows:
        """W_new of the blocks that are taken: orthonormal rows, orthogonal to the fixed and the spared ones."""
        if self.init == "random" or states is None:
            found = {b: apart(random_rows(self.rank, fixed[b], seed + b), spared[b]) for b in taken}
        else:
            forget, retain = states
            begin = partial(initial_directions, self.init)
            found = {b: begin(forget[b], retain[b], self.energy, self.rank, spared[b]) for b in taken}
        return {block: rows.to(fixed[block]) for block, rows in found.items() if len(rows)}

    def _taken(self, blocks: list[int], states: tuple[Statistics, Statistics] | None, seed: int) -> list[int]:
        """The `n_layers` of the blocks that `layers_by` says, or all."""
        if not 0 < self.n_layers < len(blocks):
            return blocks
        if states is None or self.layers_by == "seed":
            return sorted(random.Random(seed).sample(blocks, self.n_layers))
        forget, retain = states
        share = {b: outside_share(forget[b].second, leading(retain[b].second, self.energy)) for b in forget}
        return sorted(sorted(share, key=lambda block: -share[block])[: self.n_layers])


def _wide(weight: Tensor) -> Tensor:
    """A tensor on the weight's device in the dtype of the rows, fp32 unless the model's is wider."""
    return torch.empty(0, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
