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

First order: g does not go through the attacker's steps (as in first-order MAML, and in MUDMAN). `period` steps share
one attacker: delta and its Adam state live on, which gives attacks of up to `period * steps` steps at the price of
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

from expunge.errors import InputError
from expunge.models.asking import asking
from expunge.unlearning.objectives.base import Share, cross_entropy
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Side, Site

if TYPE_CHECKING:
    from expunge.unlearning.batches import Among
    from expunge.unlearning.transforms.base import Step

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class SimulatedRelearning(GradientTransform):
    """A simulated attacker; costs `steps` backwards of one side, one more of the forget side, and three copies of what
    it moves (delta, and Adam's two moments).

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
    """Keeps delta and the attacker's optimizer from step to step; the model's own weights keep their bits."""

    def __init__(self, config: SimulatedRelearning, site: Site) -> None:
        self._config, self._site = config, site
        whole = {name: p for name, p in site.model.named_parameters() if p.is_floating_point()}
        self._moved = whole if config.moves == "all" else site.parameters
        self._delta: dict[str, Tensor] = {}
        self._adam = self._optimizer()
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
        for name, p in self._moved.items():
            kept |= {f"{name}/{key}": self._adam.state[p][key] for key in _MOMENTS if p in self._adam.state}
        return {"done": torch.tensor(self._done), **kept}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with the attacker of an equal run."""
        self._done, self._adam = int(state["done"]), self._optimizer()
        names = self._moved.items() if len(state) > 1 else ()
        self._delta = {name: state[f"{name}/delta"] for name, _ in names}
        for name, p in names:
            moments = {key: state[f"{name}/{key}"] for key in _MOMENTS}
            self._adam.state[p] = {"step": torch.tensor(float(self._done), device=p.device), **moments}

    def _optimizer(self) -> torch.optim.Adam:
        """Of a new attacker; it moves the model's parameters while they hold the attacked weights."""
        parameters = list(self._moved.values())
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.Adam(parameters, lr=self._config.learning_rate, fused=fused)

    def _stand(self, place: Mapping[str, Tensor]) -> None:
        """Have the model stand at these weights."""
        for name, p in self._moved.items():
            p.data = place[name]

    def _begin(self) -> None:
        """A new attacker at the present weights, in the memory of the one before it."""
        self._done = 0
        if not self._delta:
            self._delta = {name: torch.zeros_like(p.data) for name, p in self._moved.items()}
        for kept in (*self._delta.values(), *(value for own in self._adam.state.values() for value in own.values())):
            kept.zero_()

    def _attack(self, step: Step) -> float:
        """One step of relearning; the mean NLL of its rows before it."""
        side, ahead, among = self._material(step)
        loss = torch.zeros((), dtype=torch.float64)
        for rows in step.rows(side, ahead, among):
            share = cross_entropy(step.answers(rows).sequence, step.tokens(side, ahead, among))
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach().double().cpu()
        for p in self._moved.values():
            p.grad = self._site.reduce(torch.zeros_like(p) if p.grad is None else p.grad)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._done += 1
        return float(self._site.reduce(loss.to(next(iter(self._site.parameters.values())).device)))

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
