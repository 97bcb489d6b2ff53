"""The attribution penalty in any form, by passes of its own over the forget rows.

    for each unit u of rows:    D_u = cut( [A_u < 0] (A_ref,u - A_u) )
    dJ/dtheta = dL/dtheta - 2 c sum_u <D_u, dA_u/dtheta>

A unit is the step's whole forget batch, micro-batches and processes together (arXiv:2509.22263, Algorithm 1), or each
example (eq. 14, whose sum is over examples). A, A_ref and c are those of `attribution_levels`, `_references` and
`_strength`.

Cost: a forward and one or two backwards of the forget rows, the same again for an A_ref at other weights, and, where a
unit has several micro-batches, for A before dA. Memory: one copy of the trained parameters for the penalty's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from expunge.data.collate import Batch
from expunge.errors import InputError
from expunge.unlearning.objectives.base import WHOLE
from expunge.unlearning.transforms.attribution_drops import Cut, drop
from expunge.unlearning.transforms.attribution_levels import Influence, Level
from expunge.unlearning.transforms.attribution_references import Reference
from expunge.unlearning.transforms.attribution_strength import Strength, measuring
from expunge.unlearning.transforms.attribution_tally import Tally
from expunge.unlearning.transforms.base import BoundTransform, Site, Step

_STRENGTH = "strength/"


class SeparatePenalty(BoundTransform):
    """The penalty at work after the loss's gradient is there, at the weights of the step.

    Args:
        site: where it works.
        level: gives A.
        reference: gives A_ref.
        cut: see `attribution_drops`.
        strength: gives c.
        each_example: whether each example is a unit.
        measure_every: steps between two measurements, the first of them at step 2.
    """

    def __init__(
        self,
        site: Site,
        level: Level,
        reference: Reference,
        cut: Cut,
        strength: Strength,
        each_example: bool,
        measure_every: int,
    ) -> None:
        self._site, self._level, self._reference = site, level, reference
        self._cut, self._strength, self._every = cut, strength, measure_every
        self._each_example = each_example
        self._under_way = False

    def gradient(self, step: Step) -> dict[str, float]:
        """The loss's gradient, and the penalty's on top.

        Raises:
            InputError: a transform in front of this one asks for the gradient more than once.
        """
        if self._under_way:
            raise InputError(
                "The attribution penalty belongs to the step, and a transform before it takes several gradients.",
                "transforms",
                "Put the attribution penalty first.",
            )
        self._under_way = True
        step.add(WHOLE)
        tally, now = Tally(), Influence()
        for unit in self._units(step):
            now = self._compare(step, unit, tally)
        told = self._add(tally, step.number)
        self._reference.keep(now)
        return told

    def apply(self) -> dict[str, float]:
        """Ends the step."""
        self._under_way = False
        return {}

    def state(self) -> dict[str, Tensor]:
        """Those of the reference and of the strength."""
        strength = {_STRENGTH + name: value for name, value in self._strength.state().items()}
        return {**strength, **self._reference.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of an equal run."""
        strength = {name: value for name, value in state.items() if name.startswith(_STRENGTH)}
        self._strength.load_state({name.removeprefix(_STRENGTH): value for name, value in strength.items()})
        self._reference.load_state({name: value for name, value in state.items() if name not in strength})

    def _units(self, step: Step) -> Iterator[list[Batch]]:
        parts = list(step.rows("forget"))
        if not self._each_example:
            yield parts
            return
        for part in parts:
            for row in range(len(part)):
                yield [part.rows(slice(row, row + 1))]

    def _compare(self, step: Step, unit: Sequence[Batch], tally: Tally) -> Influence:
        """Add what this unit has to the tally; its A."""
        before = self._reference.of(partial(self._summed, step, unit))
        only = self._level.influence(step, unit[0]) if len(unit) == 1 else None
        now = self._summed(step, unit) if only is None else self._whole({name: a.detach() for name, a in only.items()})
        if before is None:
            return now
        drops = {name: self._cut(drop(a, before[name])) for name, a in now.items()}
        if measuring(step.number, self._every) or self._strength.target is not None:
            tally.count(now, before, drops, weight=1.0 if self._each_example else 1 / self._site.world)
        push = {name: d.mul_(-2) for name, d in drops.items()}
        for rows in unit:
            tally.pull(self._level.influence(step, rows) if only is None else only, push, self._site.parameters)
        return now

    def _summed(self, step: Step, unit: Sequence[Batch]) -> Influence:
        """A of the unit."""
        total = self._level.nothing()
        for rows in unit:
            for name, a in self._level.influence(step, rows).items():
                total[name] += a.detach()
        return self._whole(total)

    def _whole(self, influence: Influence) -> Influence:
        """A of a unit from this process's part of it: an example lies in one process, a batch in all of them."""
        return influence if self._each_example else {name: self._site.reduce(a) for name, a in influence.items()}

    def _add(self, tally: Tally, number: int) -> dict[str, float]:
        """Add c times the penalty's gradient to `.grad`; the numbers worth logging."""
        sums = torch.tensor([tally.squares, tally.growth, tally.negative], dtype=torch.float64, device=self._device)
        squares, growth, negative = self._site.reduce(sums).tolist()
        self._strength.adapt(growth, negative)
        gradients = self._moved(tally)
        measured = measuring(number, self._every)
        loss = penalty = 0.0
        if measured or self._strength.relative:
            loss = self._norm(list(gradients.values()))
            penalty = self._norm([tally.gradient.get(name, torch.zeros_like(g)) for name, g in gradients.items()])
        factor = self._strength.factor(loss, penalty)
        for name, gradient in tally.gradient.items():
            gradients[name].add_(gradient, alpha=factor)
        if not measured:
            return {}
        return {
            "attribution_penalty": factor * squares,
            "attribution_gradient_ratio": factor * penalty / loss if loss else 0.0,
            "attribution_growth": growth / negative if negative else 0.0,
            "attribution_strength": factor,
        }

    def _moved(self, tally: Tally) -> dict[str, Tensor]:
        """`.grad` of the parameters that the penalty moves, on whichever process; it is there on all of them then."""
        names = list(self._site.parameters)
        flags = torch.tensor([float(name in tally.gradient) for name in names], device=self._device)
        moved: dict[str, Tensor] = {}
        for name, flag in zip(names, self._site.reduce(flags).tolist(), strict=True):
            if flag:
                p = self._site.parameters[name]
                p.grad = moved[name] = torch.zeros_like(p) if p.grad is None else p.grad
        return moved

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of a gradient of which each process has a part."""
        if self._site.world == 1:
            return float(get_total_norm(list(gradients)))
        squares = [self._site.reduce(gradient.clone()).double().square().sum() for gradient in gradients]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    @property
    def _device(self) -> torch.device:
        return next(iter(self._site.parameters.values())).device
