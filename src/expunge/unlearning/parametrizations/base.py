"""Which numbers may move: `Parametrization` -> `Trained`, which folds back into an ordinary model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from expunge.errors import InputError
from expunge.models.answers import length_sorted
from expunge.models.projections import named_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Batch, Encoded


@dataclass(frozen=True, slots=True)
class Material:
    """The items of the run, for a parametrization whose new parameters begin at something learned from them.

    Args:
        forget: encoded forget items.
        retain: encoded retain items; empty for an objective that uses none.
        pad_id: what rows are padded with.
        special_ids: ids of tokens that stand for no text.
        rows: items per forward.
        everyday: gives encoded text of no request, the bundled instructions.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    pad_id: int
    special_ids: frozenset[int] = frozenset()
    rows: int = 16
    everyday: Callable[[], Sequence[Encoded]] = tuple

    def batches(self, items: Sequence[Encoded]) -> Iterator[Batch]:
        """Padded batches of `items`."""
        return length_sorted(items, self.pad_id, self.rows)


class Parametrization(ABC):
    """A small frozen description of what is trained; `bind` makes a model ready for it."""

    @abstractmethod
    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Trained:
        """The trained parameters of `model`, new ones drawn with `seed`; InputError where that cannot be.

        A parametrization that looks at no data has no use for `material`.
        """


class Trained:
    """The trained parameters of a model, until `fold`; all others stand still.

    Args:
        model: the model, new parameters included.
        names: of the trained parameters, as in `model.named_parameters()`.
        merge: makes an ordinary model of it again.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], merge: Callable[[], None] = lambda: None) -> None:
        chosen = set(names)
        self.parameters = {name: p for name, p in model.named_parameters() if name in chosen}
        if not self.parameters:
            raise InputError("The parametrization trains nothing.", fix="Choose at least one parameter.")
        self._merge = merge
        self._before = [(p, p.requires_grad) for p in model.parameters()]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)

    def set_to_work(self) -> None:
        """Training begins, or goes on: from here on the model's forward is the one in training, of which most say that
        it is the model's own; before, and where no step was made in the end, it is that of the model as it was."""

    def removed(self) -> Mapping[int, Tensor]:
        """By block, rows that no later request may bring back, as far as the weights alone do not say; often none."""
        return {}

    def carried(self) -> Mapping[str, Tensor]:
        """What the next request's `earlier` file must hold, after `fold`; often nothing."""
        return named_rows(self.removed())

    def fold(self) -> None:
        """Put what was learned into the model's own weights, drop all gradients, and free what was held still."""
        self._merge()
        for parameter, required in self._before:
            parameter.grad = None
            parameter.requires_grad_(required)
