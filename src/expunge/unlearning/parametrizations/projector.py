"""Projections at work: at the outputs of modules while their rows are trained, and then inside the weights.

h <- h - (h Q^T) Q    is    W <- (I - Q^T Q) W,    b <- (I - Q^T Q) b        where h is the output of a linear map
Q = qr([W_old; W_new (I - S^T S)]^T)^T                                         S: orthonormal rows that W_new must spare
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.models.projections import project, through
from expunge.unlearning.identity import fingerprint
from expunge.unlearning.parametrizations.base import Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Linear = nn.Linear | Conv1D
_NAME: Final = "projection"

Rows = dict[int, Float[Tensor, "rows d"]]


class Projector(nn.Module):
    """h -> h - (h Q^T) Q while `at_work` says so, else h itself.

    Args:
        fixed: W_old, orthonormal rows.
        rows: what W_new begins with.
        spared: S.
        at_work: whether it takes anything out.
    """

    fixed: Tensor
    initial: Tensor
    spared: Tensor

    def __init__(self, fixed: Tensor, rows: Tensor, spared: Tensor, at_work: Callable[[], bool]) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("spared", spared, persistent=False)
        self.register_buffer("initial", rows, persistent=False)
        self.rows = nn.Parameter(rows.clone())
        self._at_work = at_work

    @property
    def moved(self) -> bool:
        """Whether W_new is no longer what it began with."""
        return not torch.equal(self.rows, self.initial)

    def basis(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows d"]:
        """Q, orthonormal rows that span W_old and W_new without S; computed in `dtype`, W's own if None."""
        fixed, rows, spared = (each.to(dtype or self.rows.dtype) for each in (self.fixed, self.rows, self.spared))
        stacked = torch.cat([fixed, project(rows, spared) if len(spared) else rows])
        q: Tensor = torch.linalg.qr(stacked.T).Q
        return q.T

    def forward(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The states without what Q spans."""
        if not self._at_work():
            return hidden
        return project(hidden, self.basis())


class Projecting(Trained):
    """Trained while projections stand in the model, which work from the first step on."""

    _working = False

    def set_to_work(self) -> None:
        """From now on the states lose what Q spans."""
        self._working = True

    def _at_work(self) -> bool:
        return self._working


class Projected(Projecting):
    """A model with projections at the outputs of some modules, one in a block, while their rows are trained.

    Args:
        model: the model.
        sites: by block, the module, W_old, the beginning of W_new, and S.
        earlier: W_old by block, of blocks without a site too.
        settle: makes what a block's module gives in the end, after at least one step, lose the span of these rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Mapping[int, tuple[nn.Module, Tensor, Tensor, Tensor]],
        earlier: Mapping[int, Tensor],
        settle: Callable[[int, Tensor], None],
    ) -> None:
        self._moved, self._earlier, self._settle = False, dict(earlier), settle
        self._modules = {block: module for block, (module, *_) in sites.items()}
        self._projectors = {
            block: Projector(fixed, rows, spared, self._at_work) for block, (_, fixed, rows, spared) in sites.items()
        }
        self._handles = [module.register_forward_hook(through(_NAME)) for module in self._modules.values()]
        for block, module in self._modules.items():
            module.add_module(_NAME, self._projectors[block])
        own = {id(projector.rows) for projector in self._projectors.values()}
        super().__init__(model, [name for name, p in model.named_parameters() if id(p) in own], self._take_out)

    def removed(self) -> Rows:
        """What this request and those before it removed, by block, also after `fold`: W_old of the next request."""
        own = {block: projector.basis().detach() for block, projector in self._projectors.items()}
        return {**self._earlier, **(own if self._stepped() else {})}

    def _stepped(self) -> bool:
        """Whether a step has been made: the first one moves the rows away from their beginning, and none leads back."""
        self._moved = self._moved or any(projector.moved for projector in self._projectors.values())
        return self._moved

    @torch.no_grad()
    def _take_out(self) -> None:
        """Take the trained projections out of the model and, if a step was made, settle what they became."""
        stepped = self._stepped()
        for handle in self._handles:
            handle.remove()
        for block, module in self._modules.items():
            delattr(module, _NAME)
            if stepped:
                self._settle(block, self._projectors[block].basis(torch.float64))


class ProjectedWeights(Projecting):
    """All weights of a model, trained while projections that do not move stand at the outputs of some modules.

    Args:
        model: the model.
        sites: by block, the module and the orthonormal rows that its output loses.
        earlier: rows of earlier requests by block, of blocks without a site too.
        settle: as in `Projected`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Mapping[int, tuple[nn.Module, Tensor]],
        earlier: Mapping[int, Tensor],
        settle: Callable[[int, Tensor], None],
    ) -> None:
        self._rows: Rows = {block: rows for block, (_, rows) in sites.items()}
        self._earlier, self._settle = dict(earlier), settle
        super().__init__(model, [name for name, _ in model.named_parameters()], self._take_out)
        self._model = model
        self._initial = fingerprint(model)
        self._handles = [module.register_forward_hook(self._hook(block)) for block, (module, _) in sites.items()]

    def removed(self) -> Rows:
        """As `Projected.removed`."""
        return {**self._earlier, **(self._rows if self._stepped() else {})}

    def _hook(self, block: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, out: Tensor) -> Tensor:
            return project(out, self._rows[block]) if self._at_work() else out

        return hook

    def _stepped(self) -> bool:
        """Whether a step has been made, however few weights it moved."""
        return fingerprint(self._model) != self._initial

    @torch.no_grad()
    def _take_out(self) -> None:
        stepped = self._stepped()
        for handle in self._handles:
            handle.remove()
        for block, rows in self._rows.items() if stepped else ():
            self._settle(block, rows.double())


def fold_projection(linear: Linear, basis: Float[Tensor, "rows d"]) -> None:
    """Make the linear map's output lose the span of `basis`, in place: W <- (I - Q^T Q) W, b <- (I - Q^T Q) b."""
    by_output = linear.weight.T if isinstance(linear, nn.Linear) else linear.weight
    for outputs in (by_output, linear.bias):
        if outputs is not None:
            outputs.data.copy_(project(outputs, basis))
