"""Every parameter of the model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.unlearning.parametrizations.base import Parametrization, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Full(Parametrization):
    """All weights, embeddings, norms and biases included."""

    def bind(self, model: PreTrainedModel, seed: int) -> Trained:
        """All parameters; `seed` is not used."""
        return Trained(model, (name for name, _ in model.named_parameters()))
