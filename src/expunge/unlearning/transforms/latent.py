"""Latent adversarial unlearning: the forget loss is met while the residual stream is pushed back towards the answer.

    h_l[i, k] <- h_l[i, k] + delta[i, k]        after block l, at every token k of forget item i
    delta[i]  <- P( delta[i] + (radius / steps) G / ||G|| ),      G = d log P(answer_i) / d delta[i],      first 0
    P: onto ||delta[i]||_2 <= radius, all tokens of the item together
    g = grad L_f(theta; h_l + delta) + grad L_r(theta)                                              arXiv:2408.10682

delta is what an attacker of the latent space would find for one item; npo with it is AdvNPO. It belongs to an item, not
to a batch, so the cut of a step changes nothing. It is not added to options, refusals and the like, which are read
beside the answer; those read from its keys find these as delta leaves them, but for the prompt's last token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from expunge.errors import InputError
from expunge.models.hooks import RESIDUAL, hooked
from expunge.models.push import ascended
from expunge.unlearning.objectives.base import WHOLE
from expunge.unlearning.parametrizations.layers import chosen_blocks
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site

if TYPE_CHECKING:
    from expunge.data.collate import Batch
    from expunge.models.answers import Answers
    from expunge.unlearning.transforms.base import Step

_log = logging.getLogger(__name__)

Deltas = Float[Tensor, "rows time d"]


@dataclass(frozen=True, slots=True)
class LatentAdversary(GradientTransform):
    """LAU on the forget side; costs `steps` more forwards of it, each with a backward down to the block.

    Args:
        radius: in the 2-norm over all tokens of an item; 8 in the paper, of models with 4096 numbers a token.
        steps: of the adversary.
        layer: the block after which the stream is pushed; negative ones count from the end.
    """

    radius: float = 8.0
    steps: int = 6
    layer: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.radius < math.inf:
            raise InputError("The radius must be a finite number of at least 0.", f"radius={self.radius}")
        if self.steps < 1:
            raise InputError("The adversary needs at least 1 step.", f"steps={self.steps}")

    def bind(self, site: Site) -> BoundLatentAdversary:
        """The adversary at work; raises `InputError` where there is no such block."""
        (block,) = chosen_blocks(site.arch, (self.layer,))
        return BoundLatentAdversary(self, site, block)


class BoundLatentAdversary(BoundTransform):
    """Finds delta for the forget rows of each micro-batch, and has the forget loss met with it."""

    def __init__(self, config: LatentAdversary, site: Site, block: int) -> None:
        self._config, self._site, self._block = config, site, block
        self._step: Step | None = None
        self._delta: Deltas | None = None
        self._gained = torch.zeros(2, dtype=torch.float64)
        self._heard = False

    def gradient(self, step: Step) -> dict[str, float]:
        """g, and by how much delta raises the mean log P(answer), nats, without the last of its steps."""
        self._gained = torch.zeros(2, dtype=torch.float64, device=self._site.arch.norm.get_parameter("weight").device)
        self._step = step
        step.add(WHOLE)
        gain, items = self._site.reduce(self._gained).tolist()
        return {"latent_gain": gain / items} if items else {}

    def before_forward(self, rows: Batch) -> None:
        """Find the delta of each row."""
        assert self._step is not None
        length = self._config.radius / self._config.steps
        state = self._site.arch.norm.get_parameter("weight")  # as wide as the stream, and of its dtype
        delta = state.new_zeros(*rows.input_ids.shape, len(state))
        said = []
        with still(self._site.model.parameters()):
            for _ in range(self._config.steps):
                free = delta.requires_grad_()
                with self._pushed(free):
                    sequence = self._step.answers(rows).sequence
                (slope,) = torch.autograd.grad(sequence.sum(), free)
                climbed = zip(free.detach(), slope, strict=True)
                delta = torch.stack([ascended(own, up, length, self._config.radius) for own, up in climbed])
                said.append(sequence.detach().double().sum())
        self._delta = delta
        self._gained += torch.stack([said[-1] - said[0], said[0].new_tensor(len(rows))])

    @contextmanager
    def watch(self, forget_rows: int) -> Iterator[None]:
        """The first rows of the forward meet their deltas."""
        if self._delta is None:
            yield
            return
        with self._pushed(self._delta if self._heard else self._delta.requires_grad_()):
            yield

    def before_backward(self, loss: Tensor, forget: Answers, last: bool) -> None:
        """Once, warn where the loss does not hear of delta, as where it trains nothing but other answers."""
        delta, self._delta = self._delta, None
        if self._heard or delta is None:
            return
        (slope,) = torch.autograd.grad(loss, delta, retain_graph=True, allow_unused=True)
        if slope is None or not slope.any():
            _log.warning("The loss does not change with what the latent adversary pushes: it may do nothing here.")
        self._heard = True

    def _pushed(self, delta: Deltas) -> AbstractContextManager[None]:
        """Inside, delta is added to the first rows and tokens of what the block gives."""

        def push(states: Deltas) -> Deltas:
            rows, time = (whole - own for whole, own in zip(states.shape, delta.shape[:2], strict=False))
            return states + pad(delta, (0, 0, 0, time, 0, rows))

        return hooked(self._site.arch, {(self._block, RESIDUAL): push})


@contextmanager
def still(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, no gradient is taken for the parameters, nor is anything kept for one."""
    moving = [p for p in parameters if p.requires_grad]
    for p in moving:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in moving:
            p.requires_grad_(True)
