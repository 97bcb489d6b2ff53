"""RMU: the states of forget text are sent to one random direction, those of retain text stay where they were.

    L_f = (1/N_f) sum_k || h_l[k] - c u ||^2                    k over all tokens of the forget rows
    L_r = (1/N_r) sum_k || h_l[k] - h_l^start[k] ||^2           k over all tokens of the retain rows
    L   = forget_weight L_f + retain_weight L_r                                                 Li et al. 2024 (WMDP)

h_l[k] is the output of block l at token k, prompt and answer alike; padding does not count. u is a unit vector whose
entries are drawn uniformly from [0, 1) before it is normalised, one for the whole run. The usual choice is l = 7 with
c = 20 (6.5 for Zephyr) and the down projections of blocks 5, 6 and 7 as what is trained; arXiv:2509.22263 searches the
retain weight in 20 to 300.

Neither loss looks at the answers' probabilities: what block l hands on is noise to the later blocks, which keep the
fact. The forward ends at block l, and h_l^start is computed once: one state per retain token, and no second model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from expunge.errors import InputError, InternalError
from expunge.models.states import BlockStates
from expunge.unlearning.objectives.base import Balanced, StartValues, Totals, require_weights

if TYPE_CHECKING:
    from expunge.models.answers import Answers


def control_vector(width: int, seed: int) -> Float[Tensor, " d"]:
    """u: the unit vector that `seed` draws, in float64 on the CPU, the same wherever it is drawn."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=0)


def squared_distance(
    states: Float[Tensor, "positions d"], goal: Float[Tensor, "*positions d"], positions: int
) -> Float[Tensor, ""]:
    """Sum over the states of their squared distance to `goal`, over `positions`; in at least fp32."""
    exact = torch.promote_types(states.dtype, torch.float32)
    return (states.to(exact) - goal.to(states.device, exact)).square().sum() / max(positions, 1)


@dataclass(frozen=True, slots=True)
class RMU(Balanced):
    """Representation misdirection for unlearning (Li et al. 2024).

    Args:
        retain_weight: alpha.
        layer: l, the block whose output is moved, from 0; negative ones count from the end.
        steering: c, the length of the goal.
        vector_seed: draws u.
    """

    retain_weight: float = 100.0
    layer: int = 7
    steering: float = 20.0
    vector_seed: int = 0

    def __post_init__(self) -> None:
        Balanced.__post_init__(self)
        require_weights(steering=self.steering)

    @property
    def state_layer(self) -> int:
        """l."""
        return self.layer

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_f; InputError where nothing that is trained can move these states."""
        states = _states(forget)
        if torch.is_grad_enabled() and not states.requires_grad:
            raise InputError(
                f"Nothing up to block {self.layer} is trained, so its states cannot move.",
                f"layer={self.layer}",
                "Train blocks up to that one, e.g. parametrization.layers=[5, 6, 7] for layer 7.",
            )
        goal = self.steering * control_vector(states.shape[1], self.vector_seed)
        return squared_distance(states, goal, totals.forget_positions)

    def retain_loss(self, retain: Answers, totals: Totals, start: StartValues) -> Float[Tensor, ""]:
        """L_r."""
        if start.retain_states is None:
            raise InternalError("RMU needs the starting model's states on the retain rows.")
        return squared_distance(_states(retain), start.retain_states, totals.retain_positions)


def _states(rows: Answers) -> Float[Tensor, "positions d"]:
    if not isinstance(rows, BlockStates):
        raise InternalError("RMU needs the states of a block.")
    return rows.states
