"""Latent adversarial unlearning: the forget loss is met while the residual stream is pushed back towards the answer.

    h_l[i, k] <- h_l[i, k] + delta[i, k]        after block l, at every token k of forget item i
    delta[i]  <- P( delta[i] + (radius / steps) G / ||G|| ),      G = d log P(answer_i) / d delta[i],      first 0
    P: onto ||delta[i]||_2 <= radius, all tokens of the item together
    g = grad L_f(theta; h_l + delta) + grad L_r(theta)                                              arXiv:2408.10682

delta is what an attacker of the latent space would find for one item; npo with it is AdvNPO. It belongs to an item, not
to a batch, so the cut of a step changes nothing. Options and other companions of an item are read behind the prompt as
delta leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from expunge.errors import InputError
from expunge.models.hooks import RESIDUAL, hooked
from expunge.unlearning.objectives.base import WHOLE
from expunge.unlearning.parametrizations.layers import chosen_blocks
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site

if TYPE_CHECKING:
    from expunge.data.collate import Batch
    from expunge.unlearning.transforms.base import Step

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
    """Finds delta for every forget item of the step, and has the forget loss met with it."""

    def __init__(self, config: LatentAdversary, site: Site, block: int) -> None:
        self._config, self._site, self._block = config, site, block
        self._found: dict[int, Float[Tensor, "time d"]] = {}

    def gradient(self, step: Step) -> dict[str, float]:
        """g, and by how much delta raises the mean log P(answer), nats, without the last of its steps."""
        if not step.wanted.forget:
            step.add(WHOLE)
            return {}
        device = next(iter(self._site.parameters.values())).device
        gained = torch.zeros(2, dtype=torch.float64, device=device)
        for rows in step.rows("forget"):
            gained += self._find(step, rows)
        try:
            step.add(WHOLE)
        finally:
            self._found = {}
        gain, items = self._site.reduce(gained).tolist()
        return {"latent_gain": gain / items} if items else {}

    def watch(self, items: Sequence[int]) -> AbstractContextManager[None]:
        """The first rows of the forward meet their deltas."""
        if not self._found:
            return nullcontext()
        return self._pushed(pad_sequence([self._found[item] for item in items], batch_first=True))

    def _find(self, step: Step, rows: Batch) -> Float[Tensor, "2"]:
        """Keep the delta of each row; the sum of what they gain, and the number of rows."""
        length = self._config.radius / self._config.steps
        state = self._site.arch.norm.get_parameter("weight")  # as wide as the stream, and of its dtype
        delta = state.new_zeros(*rows.input_ids.shape, len(state))
        said = []
        with torch.enable_grad(), still(self._site.model.parameters()):
            for _ in range(self._config.steps):
                free = delta.requires_grad_()
                with self._pushed(free):
                    sequence = step.answers(rows).sequence
                (slope,) = torch.autograd.grad(sequence.sum(), free)
                delta = within(free.detach() + length * slope / size(slope), self._config.radius)
                said.append(sequence.detach().double().sum())
        for item, own, there in zip(rows.index.tolist(), delta, rows.attention_mask.bool(), strict=True):
            self._found[item] = own[there]
        return torch.stack([said[-1] - said[0], said[0].new_tensor(len(rows))])

    def _pushed(self, delta: Deltas) -> AbstractContextManager[None]:
        """Inside, delta is added to the first rows and tokens of what the block gives."""

        def push(states: Deltas) -> Deltas:
            rows, time = (whole - own for whole, own in zip(states.shape, delta.shape[:2], strict=False))
            return states + pad(delta, (0, 0, 0, time, 0, rows))

        return hooked(self._site.arch, {(self._block, RESIDUAL): push})


def size(rows: Deltas) -> Float[Tensor, "rows 1 1"]:
    """The 2-norm of each row, above 0."""
    norms: Tensor = rows.flatten(1).norm(dim=1)[:, None, None]
    return norms.clamp(min=torch.finfo(norms.dtype).tiny)


def within(rows: Deltas, radius: float) -> Deltas:
    """P: each row in the ball of `radius`."""
    return rows * (radius / size(rows)).clamp(max=1)


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
