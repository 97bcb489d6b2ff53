"""Dual ascent: the retain weight grows while the retain loss is above a tolerance, and falls while it is below.

    a_{t+1} = max(0, a_t + step_size (CE(r_t) - tolerance)),     a_1 = initial                    Entesari et al. 2025
    g_t     = gamma grad L_f + a_t alpha grad L_r

CE(r_t) is the mean NLL of the answer tokens of the step's retain rows, at the weights that the step begins with. It
takes a forward of its own, without a graph. Beside `objectives.pdu` this is PDU, and it serves any objective with a
retain term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.errors import InputError
from expunge.unlearning.objectives.base import Share, cross_entropy, require_weights
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step


@dataclass(frozen=True, slots=True)
class DualAscent(GradientTransform):
    """The dual half of PDU (Entesari et al. 2025).

    Args:
        step_size: of the dual weight, >= 0.
        tolerance: retain NLL per token, in nats, up to which the retain loss is no matter.
        initial: the dual weight of the first step, >= 0.
    """

    step_size: float = 1.0
    tolerance: float = 0.0
    initial: float = 1.0

    def __post_init__(self) -> None:
        require_weights(step_size=self.step_size, initial=self.initial)
        if not math.isfinite(self.tolerance):
            raise InputError("The tolerance must be a finite number.", f"tolerance={self.tolerance}")

    def bind(self, site: Site) -> BoundDualAscent:
        """The dual weight of one run."""
        return BoundDualAscent(self, site)


def dual_step(weight: float, loss: float, step_size: float, tolerance: float) -> float:
    """The dual weight after a step that met this retain loss."""
    return max(0.0, weight + step_size * (loss - tolerance))


class BoundDualAscent(BoundTransform):
    """Holds the dual weight, the same on all processes."""

    def __init__(self, config: DualAscent, site: Site) -> None:
        self._config, self._site = config, site
        self._weight = config.initial
        self._moved_in, self._used, self._loss = -1, config.initial, math.nan

    def gradient(self, step: Step) -> dict[str, float]:
        """g_t; the dual weight that was used, and the retain loss that moves it. InputError without retain rows.

        It moves once in a step, however often a transform above asks for the gradient.
        """
        if step.number != self._moved_in:
            self._moved_in, self._used, self._loss = step.number, self._weight, self._retain_loss(step)
            self._weight = dual_step(self._used, self._loss, self._config.step_size, self._config.tolerance)
        step.add(Share(1.0, self._used))
        return {"dual_weight": self._used, "dual_retain_nll": self._loss}

    def state(self) -> dict[str, Tensor]:
        """The dual weight of the next step."""
        return {"weight": torch.tensor(self._weight, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with that weight."""
        self._weight = float(state["weight"])

    def _retain_loss(self, step: Step) -> float:
        tokens = step.tokens("retain")
        if not tokens:
            raise InputError(
                "A dual weight needs a retain loss to watch.", "DualAscent", "Give retain items, or another objective."
            )
        device = next(iter(self._site.parameters.values())).device
        loss = torch.zeros((), dtype=torch.float64, device=device)
        with torch.no_grad():
            for rows in step.rows("retain"):
                loss += cross_entropy(step.answers(rows).sequence.double(), tokens)
        return float(self._site.reduce(loss))
