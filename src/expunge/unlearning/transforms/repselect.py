"""Representation selectivity: an edit along what only the forget facts use, away from what relearning would teach.

    G = grad of mean log P(f) per token, a LoRA trained on f being active: what is left once an attacker has begun
    U, S, V = svd_lowrank(G, q),   s = S / min S
    G <- G - (G V - G V / s) V^T,   G <- G - U (U^T G - U^T G / s)                                  arXiv:2606.17168
    W <- W - rate * G / rms(G),     again and again, until forgotten

The top directions of G are shared with what else the model does, so each is shrunk to the size of the q-th one, on the
side of the inputs and then on that of the outputs. G is gathered once, over all forget facts, and the run walks along
it: the loop scores, stops and lands as with any method, and the objective is only measured. W are the feed-forward
maps, as in the authors' code; all else stands still, AdamW included. Dividing by rms(G), over all of W, is ours: one
step then moves a weight by `rate` on average, as one of AdamW's does. Directions whose S is rounding are no directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from expunge.data.collate import Batch
from expunge.errors import InputError
from expunge.unlearning.objectives.base import WHOLE
from expunge.unlearning.transforms.adapters import Adapters
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site
from expunge.unlearning.transforms.base_maps import FEED_FORWARD, base_maps, freeze_others
from expunge.unlearning.transforms.epochs import forget_epoch

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step

_MOVED, _HALTED = "moved", "halted"


@dataclass(frozen=True, slots=True)
class RepSelect(GradientTransform):
    """RepSelect on the feed-forward maps.

    Costs, in the first step, `attack_epochs + 1` forwards and backwards of the forget facts and an SVD per map; memory:
    one copy of the maps. With `max_kl` each step makes two more forwards of its retain rows.

    Args:
        components: q, at most the smaller side of a map; the authors' 512 are for widths of 4,096.
        attack_rank: of the attacker's LoRA.
        attack_alpha: its scale; the update counts alpha / rank times.
        attack_rate: learning rate of its plain gradient steps.
        attack_epochs: epochs over the forget facts that it is trained for; 0 for no attacker.
        max_kl: the weights move no further once KL(start || now) on the step's retain answers, nats per token, is above
            this; None for no bound. The authors stop at 0.01 on plain text, which a transform does not see.
        seed: of the LoRA and of the SVD's random start.
    """

    components: int = 64
    attack_rank: int = 8
    attack_alpha: float = 8.0
    attack_rate: float = 0.01
    attack_epochs: int = 1
    max_kl: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, number, least in (
            ("components", self.components, 1),
            ("attack_rank", self.attack_rank, 1),
            ("attack_epochs", self.attack_epochs, 0),
        ):
            if number < least:
                raise InputError(f"{name} must be at least {least}.", f"{name}={number}")
        for name, value in (
            ("attack_alpha", self.attack_alpha),
            ("attack_rate", self.attack_rate),
            ("max_kl", self.max_kl),
        ):
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0.", f"{name}={value}")

    def bind(self, site: Site) -> BoundRepSelect:
        """The edit at work; raises `InputError` where adapters are trained, no feed-forward map, or beside others."""
        if not site.alone:
            raise InputError(
                "RepSelect moves the weights itself: what other transforms do to the gradient would be lost.",
                "transform",
                "Take it alone, or leave it out.",
            )
        return BoundRepSelect(self, site)


def collapse(gradient: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """G [m, n] with its directions u [m, q] and v [n, q], of sizes s [q], each shrunk by s / min s on both sides."""
    kept = s > s.max() * torch.finfo(s.dtype).eps * max(gradient.shape)
    if not kept.any():
        return gradient
    u, v, lost = u[:, kept], v[:, kept], 1 - s[kept].min() / s[kept]
    inward = gradient - (gradient @ v * lost) @ v.T
    return inward - u @ (lost[:, None] * (u.T @ inward))


class BoundRepSelect(BoundTransform):
    """Holds the directions G / rms(G), and how far along them the weights have come."""

    def __init__(self, config: RepSelect, site: Site) -> None:
        self._config, self._site = config, site
        self._maps = {m.name: m for m in base_maps(site, FEED_FORWARD)}
        self._directions: dict[str, Tensor] = {}
        self._moved, self._halted = 0.0, False

    def gradient(self, step: Step) -> dict[str, float]:
        """The objective's, for its terms alone; and, where it is bounded, the KL divergence before the step."""
        if not self._directions:
            self._directions = self._select(self._gather(step))
        told: dict[str, float] = {}
        if self._config.max_kl is not None:
            told["repselect_kl"] = self._kl(step)
            self._halted |= told["repselect_kl"] > self._config.max_kl
        step.add(WHOLE)
        return told

    def apply(self) -> dict[str, float]:
        """Keeps the optimizer from moving anything; the distance along the directions before the step."""
        freeze_others(self._site, ())
        return {"repselect_moved": self._moved}

    def settle(self, rate: float) -> None:
        """Moves the weights along the directions, unless they have come too far."""
        if not self._halted:
            self._move(-rate)
            self._moved += rate

    def state(self) -> dict[str, Tensor]:
        """The directions by parameter name, the distance moved along them, and whether that was the end."""
        told = {_MOVED: torch.tensor(self._moved, dtype=torch.float64), _HALTED: torch.tensor(self._halted)}
        return {**told, **self._directions}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of an equal run."""
        self._moved, self._halted = float(state[_MOVED]), bool(state[_HALTED])
        self._directions = {name: value for name, value in state.items() if name in self._maps}

    def _gather(self, step: Step) -> list[Tensor]:
        """G of every map, over all processes."""
        config, maps = self._config, list(self._maps.values())
        attacker = Adapters(maps, config.attack_rank, config.attack_alpha / config.attack_rank, config.seed)
        total = sum(step.tokens("forget", ahead) for ahead in range(step.steps_per_epoch))
        with attacker.active():
            for ahead in range(step.steps_per_epoch * config.attack_epochs):
                rows = list(step.rows("forget", ahead))
                slopes = self._slopes(step, rows, attacker.parameters, step.tokens("forget", ahead))
                attacker.move(slopes, config.attack_rate)
            return self._slopes(step, forget_epoch(step), [m.weight for m in maps], total)

    def _slopes(self, step: Step, batches: Iterable[Batch], of: Sequence[Tensor], tokens: int) -> list[Tensor]:
        """The gradient of log P of the answers of all processes, over `tokens`, with respect to `of`."""
        sums = [torch.zeros_like(x) for x in of]
        for rows in batches:
            slopes = torch.autograd.grad(step.answers(rows).sequence.sum() / tokens, of)
            for total, slope in zip(sums, slopes, strict=True):
                total += slope
        return [self._site.reduce(total) for total in sums]

    def _select(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """The directions: the collapsed gradients, of root mean square 1 over all maps together."""
        selected = [self._collapsed(gradient) for gradient in gradients]
        norm, count = float(get_total_norm(selected)), sum(x.numel() for x in selected)
        if not 0 < norm < math.inf:
            raise InputError(
                f"The gradient of the forget facts has norm {norm}, which gives no direction to move along.",
                fix="Check that the model knows them, or use float32.",
            )
        scale = math.sqrt(count) / norm
        named = zip(self._maps.items(), selected, strict=True)
        return {name: (x * scale).to(linear.weight.dtype) for (name, linear), x in named}

    def _collapsed(self, gradient: Tensor) -> Tensor:
        precise = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        with torch.random.fork_rng([gradient.device] if gradient.device.type == "cuda" else []):
            torch.manual_seed(self._config.seed)
            u, s, v = torch.svd_lowrank(precise, q=min(self._config.components, *gradient.shape))
        return collapse(precise, u, s, v)

    def _move(self, distance: float) -> None:
        for name, linear in self._maps.items():
            linear.weight.data.add_(self._directions[name], alpha=distance)

    @torch.no_grad()
    def _kl(self, step: Step) -> float:
        """KL(start || now) per token on the step's retain answers; the start lies `moved` back along the directions."""
        tokens = step.tokens("retain")
        if not tokens:
            raise InputError(
                "max_kl is measured on retain rows, and this objective uses none.",
                "max_kl",
                "Use an objective with a retain side, or max_kl=none.",
            )
        now = self._log_probs(step)
        here = {name: linear.weight.data for name, linear in self._maps.items()}
        try:
            for name, linear in self._maps.items():
                linear.weight.data = here[name] + self._moved * self._directions[name]
            start = self._log_probs(step)
        finally:
            for name, linear in self._maps.items():
                linear.weight.data = here[name]
        total = torch.zeros((), dtype=torch.float64, device=next(iter(here.values())).device)
        for p, q in zip(start, now, strict=True):
            total += (p.exp() * (p - q)).sum().double()
        return float(self._site.reduce(total)) / tokens

    def _log_probs(self, step: Step) -> list[Tensor]:
        """The whole distribution at the step's retain answer tokens, [tokens, vocabulary] for each micro-batch."""
        read = self._site.arch
        return [read.logits(step.answers(rows).hidden).log_softmax(-1) for rows in step.rows("retain")]
