"""Every parameter of the model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.unlearning.parametrizations.base import Material, Parametrization, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Full(Parametrization):
    """All weights, embeddings, norms and biases included."""

    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Trained:
        """All parameters; `seed` and `material` are not used."""
        return Trained(model, (name for name, _ in model.named_parameters()))
