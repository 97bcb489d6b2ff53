"""The two ways of the attribution penalty: on the loss's backward, or by passes of its own: one penalty, two prices."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from expunge.unlearning.transforms.attribution_drops import CUTS
from expunge.unlearning.transforms.attribution_levels import Level, NeuronLevel, ParameterLevel
from expunge.unlearning.transforms.attribution_quantities import SLOPES, quantity
from expunge.unlearning.transforms.attribution_references import (
    OriginalWeights,
    PreviousBatch,
    PreviousWeights,
    Reference,
)
from expunge.unlearning.transforms.attribution_ride import RiddenPenalty
from expunge.unlearning.transforms.attribution_separate import SeparatePenalty
from expunge.unlearning.transforms.attribution_strength import Strength
from expunge.unlearning.transforms.base import BoundTransform, Site
from expunge.unlearning.transforms.maps import moving_linear_maps, trained_linear_maps
from expunge.unlearning.transforms.probability_gradient import NotBySequence

if TYPE_CHECKING:
    from expunge.models.answers import Answers
    from expunge.unlearning.transforms.attribution import AttributionPenalty
    from expunge.unlearning.transforms.base import Step

logger = logging.getLogger(__name__)

_RIDES: Final = "rides"


def ridden(config: AttributionPenalty, site: Site) -> RiddenPenalty:
    """The penalty on the loss's backward, for a form that `rides`."""
    maps = trained_linear_maps(site, config.modules)
    slope, cut = SLOPES[config.of], CUTS[config.penalty]
    return RiddenPenalty(site, maps, slope, cut, config.strength, config.measure_every)


def separate(config: AttributionPenalty, site: Site) -> SeparatePenalty:
    """The penalty by passes of its own, for any form."""
    level = _level(config, site)
    return SeparatePenalty(
        site,
        level,
        _reference(config, site, level),
        CUTS[config.penalty],
        Strength(config.strength, config.scale == "relative", config.adapt_to),
        each_example=config.products == "example",
        measure_every=config.measure_every,
    )


def _level(config: AttributionPenalty, site: Site) -> Level:
    on, exact = quantity(config.of), config.order == "exact"
    if config.level == "neuron":
        return NeuronLevel(moving_linear_maps(site, config.modules), on, exact)
    return ParameterLevel(trained_linear_maps(site, config.modules), on, exact)


def _reference(config: AttributionPenalty, site: Site, level: Level) -> Reference:
    if config.anchor == "original":
        return OriginalWeights(site.parameters)
    return PreviousWeights(site.parameters) if config.compare == "same" else PreviousBatch(level.nothing())


class BoundAttributionPenalty(BoundTransform):
    """The penalty at work: on the loss's backward as long as that can be, by passes of its own otherwise."""

    def __init__(self, config: AttributionPenalty, site: Site) -> None:
        self._config, self._site = config, site
        self._path: RiddenPenalty | SeparatePenalty
        self._path = ridden(config, site) if config.rides and site.alone else separate(config, site)

    def gradient(self, step: Step) -> dict[str, float]:
        """The gradient of J; a first step that turns out not to carry the penalty is made again without it."""
        try:
            return self._path.gradient(step)
        except NotBySequence as error:
            logger.info("%s: the attribution penalty takes passes of its own, which cost more.", error.what)
            self._leave_the_ride()
            return self._path.gradient(step)

    def watch(self, forget_rows: int) -> AbstractContextManager[None]:
        """Listens to the linear maps in one fused forward."""
        return self._path.watch(forget_rows)

    def before_backward(self, loss: Tensor, forget: Answers, last: bool) -> None:
        """Makes the coming backward carry the penalty, if it can."""
        self._path.before_backward(loss, forget, last)

    def apply(self) -> dict[str, float]:
        """Ends the step; on measured ones of a ride, the penalty and its gradient's norm over that of the loss's."""
        return self._path.apply()

    def state(self) -> dict[str, Tensor]:
        """Which way the penalty goes, and what that way needs."""
        return {_RIDES: torch.tensor(isinstance(self._path, RiddenPenalty)), **self._path.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of a run on the same weights; raises `InternalError` where the names differ."""
        if isinstance(self._path, RiddenPenalty) and not state[_RIDES]:
            self._leave_the_ride()
        self._path.load_state({name: value for name, value in state.items() if name != _RIDES})

    def _leave_the_ride(self) -> None:
        if isinstance(self._path, RiddenPenalty):
            self._path.rest()
        for p in self._site.parameters.values():
            p.grad = None
        self._path = separate(self._config, self._site)
