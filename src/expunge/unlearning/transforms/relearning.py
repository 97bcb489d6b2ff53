"""Simulated relearning: part of the forget gradient is taken where an attacker would bring the weights.

    phi = theta + delta,   delta <- delta - Adam( grad CE(rows) at phi ),   `steps` times
    g   = (1 - mix) grad L_f(theta) + mix grad L_f(phi) + grad L_r(theta)

The rows are those of retain facts or, with `retain_share` below 1, also of forget facts, those of other steps. With
`folds` above 1 the forget facts are dealt into as many folds; an attacker is shown those of one fold, the next attacker
those of the next, and grad L_f(phi) is of the facts that it was *not* shown: what is attacked is what others teach,
which is how relearning generalises. It did not pay on a real model: docs/results/erase_or_hide.md has `two_folds`
beside durable, which shows and defends all.

By default the attacker moves what the run trains. With `moves="all"` it moves every weight of the model, as whoever
attacks the folded model does, to whom adapters or projections are no wall; g is still of what the run trains.

Adam's two moments of float32 weights are kept in bfloat16, which leaves the attacker two thirds of its memory; its
arithmetic is in float32, one tensor at a time. What rounding takes is a 256th of a moment at most: the first moment
averages it out, and the second grows by more than that in each of an attacker's first hundred steps.

First order: g does not go through the attacker's steps (as in first-order MAML, and in MUDMAN). `period` steps share
one attacker: delta and its moments live on, which gives attacks of up to `period * steps` steps at the price of
`steps`. Only every `every`-th step is such a step; the others take the plain gradient. `mix=1, every=2` looks at both
places in turn, at little more than the price of none; what is told of L_f is then measured at phi on these steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from expunge.errors import InputError
from expunge.models.asking import asking
from expunge.models.precision import require_digits
from expunge.unlearning.objectives.base import Share, cross_entropy
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Side, Site

if TYPE_CHECKING:
    from expunge.unlearning.batches import Among
    from expunge.unlearning.transforms.base import Step

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_KEPT_IN: Final = {torch.float32: torch.bfloat16}
"""Weights -> their moments, where these are kept in fewer bits."""


@dataclass(frozen=True, slots=True)
class SimulatedRelearning(GradientTransform):
    """A simulated attacker; costs `steps` backwards of one side, one more of the forget side, and two copies of what
    it moves (delta, and Adam's two moments at half of its bits).

    Args:
        mix: share of the forget gradient that is taken at the attacked weights.
        learning_rate: of the attacker's Adam.
        steps: of the attacker in each step of the loop.
        every: steps of the loop from one step of the attacker to the next.
        period: steps of the loop after which a new attacker begins at the present weights.
        retain_share: probability that the attacker trains on retain rows rather than on forget rows.
        folds: of the forget items, by their place in the data; 1 shows the rows of other steps and defends all.
        seed: of these draws.
        moves: "trained": what the parametrization trains; "all": all weights of the model beside that.
    """

    mix: float = 0.5
    learning_rate: float = 5e-5
    steps: int = 1
    every: int = 1
    period: int = 20
    retain_share: float = 1.0
    folds: int = 1
    seed: int = 0
    moves: Literal["trained", "all"] = "trained"

    def __post_init__(self) -> None:
        for name, value in (("mix", self.mix), ("retain_share", self.retain_share)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} must lie between 0 and 1.", f"{name}={value}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError("The attacker's learning rate must be above 0.", f"learning_rate={self.learning_rate}")
        counts = {"steps": self.steps, "every": self.every, "period": self.period, "folds": self.folds}
        if min(counts.values()) < 1:
            raise InputError(
                "steps, every, period and folds must be at least 1.", ", ".join(f"{k}={v}" for k, v in counts.items())
            )

    def bind(self, site: Site) -> BoundSimulatedRelearning:
        """The attacker at work."""
        return BoundSimulatedRelearning(self, site)


class BoundSimulatedRelearning(BoundTransform):
    """Keeps delta and the moments of the attacker's Adam from step to step; the model's own weights keep their bits."""

    def __init__(self, config: SimulatedRelearning, site: Site) -> None:
        self._config, self._site = config, site
        whole = {name: p for name, p in site.model.named_parameters() if p.is_floating_point()}
        self._moved = site.parameters
        if config.moves == "all":
            self._moved = whole
            require_digits("The weights that the simulated attacker moves", whole.values())
        self._delta: dict[str, Tensor] = {}
        self._moments: dict[str, list[Tensor]] = {}
        self._done = 0
        self._moved_in, self._nll = -1, math.nan

    def gradient(self, step: Step) -> dict[str, float]:
        """g, and how well the attacker has relearnt: the mean NLL of its rows before its last step.

        It moves once in a step, however often a transform above asks for the forget gradient.
        """
        config = self._config
        if step.number % config.every or not step.wanted.forget:
            return super().gradient(step)
        fresh = step.number != self._moved_in
        if fresh and (step.number % config.period < config.every or not self._delta):
            self._begin()
        here = {name: p.data for name, p in self._moved.items()}
        there = {name: self._delta[name].add_(data) for name, data in here.items()}
        try:
            if fresh:
                self._stand(there)
                with asking(self._moved.values(), True):
                    self._nll = [self._attack(step) for _ in range(config.steps)][-1]
                self._moved_in = step.number
                self._stand(here)
            # First where the run stands: there transforms below gather, and what is told of the step is measured there.
            step.add(Share(1 - config.mix, 1.0))
            self._stand(there)
            step.add(Share(config.mix, 0.0), self._kept_back(step))
        finally:
            self._stand(here)
            for name, data in here.items():
                self._delta[name].sub_(data)
        return {"attacker_nll": self._nll}

    def state(self) -> dict[str, Tensor]:
        """The attacker's, and how many steps it has made."""
        kept = {f"{name}/delta": delta for name, delta in self._delta.items()}
        for name, moments in self._moments.items():
            kept |= {f"{name}/{key}": moment for key, moment in zip(_MOMENTS, moments, strict=True)}
        return {"done": torch.tensor(self._done), **kept}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with the attacker of an equal run."""
        self._done = int(state["done"])
        names = [name for name in self._moved if f"{name}/delta" in state]
        self._delta = {name: state[f"{name}/delta"] for name in names}
        self._moments = {name: [state[f"{name}/{key}"] for key in _MOMENTS] for name in names}

    def _stand(self, place: Mapping[str, Tensor]) -> None:
        """Have the model stand at these weights."""
        for name, p in self._moved.items():
            p.data = place[name]

    def _begin(self) -> None:
        """A new attacker at the present weights, in the memory of the one before it."""
        self._done = 0
        if not self._delta:
            for name, p in self._moved.items():
                kept_in = _KEPT_IN.get(p.dtype, p.dtype)
                self._delta[name] = torch.zeros_like(p.data)
                self._moments[name] = [torch.zeros_like(p.data, dtype=kept_in) for _ in _MOMENTS]
        for kept in (*self._delta.values(), *(moment for own in self._moments.values() for moment in own)):
            kept.zero_()

    def _attack(self, step: Step) -> float:
        """One step of relearning; the mean NLL of its rows before it."""
        side, ahead, among = self._material(step)
        loss = torch.zeros((), dtype=torch.float64)
        for rows in step.rows(side, ahead, among):
            share = cross_entropy(step.answers(rows).sequence, step.tokens(side, ahead, among))
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach().double().cpu()
        for name, p in self._moved.items():
            self._adam(p, self._site.reduce(torch.zeros_like(p) if p.grad is None else p.grad), self._moments[name])
            p.grad = None
        self._done += 1
        return float(self._site.reduce(loss.to(next(iter(self._site.parameters.values())).device)))

    @torch.no_grad()
    def _adam(self, p: Tensor, gradient: Tensor, moments: list[Tensor]) -> None:
        """Move one tensor, which holds the attacked weights, and its moments."""
        first, second = (moment.to(p.dtype) for moment in moments)
        adam(
            [p],
            [gradient],
            [first],
            [second],
            [],
            [torch.tensor(float(self._done), device=p.device)],
            fused=p.device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._config.learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        for kept, moved in zip(moments, (first, second), strict=True):
            kept.copy_(moved)

    def _material(self, step: Step) -> tuple[Side, int, Among | None]:
        """Which side of which step is relearnt, and which of its items; retain rows where there are no others."""
        draw = random.Random(f"{self._config.seed}/{step.number}/{self._done}")
        retain = draw.random() < self._config.retain_share and step.tokens("retain") > 0
        now, shown = step.number % step.steps_per_epoch, self._shown(step)
        places = [place - now for place in range(step.steps_per_epoch)]
        others = [ahead for ahead in places if (step.tokens("forget", ahead, shown) if shown else ahead)]
        if not retain and not others and not step.tokens("retain"):
            raise InputError(
                "The simulated attacker has nothing to relearn: no retain items, and no forget items of other steps.",
                f"step {step.number + 1}",
                "Give a retain set with an objective that uses it, or make the batches smaller.",
            )
        if retain or not others:
            return "retain", 1 + self._done, None
        return "forget", draw.choice(others), shown

    def _shown(self, step: Step) -> Among | None:
        """The forget items that this attacker may see; None without folds."""
        folds = self._config.folds
        turn = step.number // self._config.period % folds
        return (lambda item: item % folds == turn) if folds > 1 else None

    def _kept_back(self, step: Step) -> Among | None:
        """The forget items that it may not."""
        shown = self._shown(step)
        return (lambda item: not shown(item)) if shown else None
