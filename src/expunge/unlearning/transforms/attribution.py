"""The attribution penalty of Ssiuu: negative influence on the forget answers may not change.

    J   = L + strength * sum_{i in I-} (A_t,i - A_ref,i)^2,    I- = { i : A_t,i < 0 }        arXiv:2509.22263, eq. 3, 6
    A_t = phi * g,     g = d/dphi sum_{(x,y) in b} P(y | x)                                               eq. 12 and 13
    dJ/dphi_j = dL/dphi_j + 2 strength [A_t,j < 0] (A_t,j - A_ref,j) g_j                         eq. 14, g held constant

The defaults are Algorithm 1: b is the step's whole forget batch, A is of the batch sum, A_ref = A_{t-1} is that of the
previous step (of another batch), and at t = 1 the penalty is 0. phi are the weight matrices of the linear maps inside
the blocks, as far as they are trained: our inference, since the paper's neurons are the outputs of those maps.
Embeddings, tied or not, norms, biases and the head are left alone; under LoRA phi are the adapters.

What the paper leaves open is an option each; its formula stands at the head of the file that has it:

    anchor, compare    what A_ref is                              attribution_references.py
    penalty            which changes count                        attribution_drops.py
    scale, adapt_to    what strength means                        attribution_strength.py
    products           A of the batch sum, or of each example     attribution_separate.py
    level, order       what has influence; second derivatives     attribution_levels.py
    of                 influence on what                          attribution_quantities.py

Algorithm 1, with any `penalty`, `modules` and `of` but the margin, rides on the loss's backward (attribution_ride.py)
if the objective reaches the forget rows through `forget.sequence` alone and no other transform is there. All else, and
every other objective, takes passes of its own (attribution_separate.py): the same penalty at a higher price, but for
examples that the loss no longer pushes at all (a hinge that is met), which have no influence on a ride. With other
transforms this one stands first, so that it sees the weights of the step. A parametrization that trains something in
the linear maps of the blocks but no matrix of theirs (a projection) needs level "neuron".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from expunge.errors import InputError, nearest
from expunge.unlearning.parts import current
from expunge.unlearning.transforms.attribution_paths import BoundAttributionPenalty
from expunge.unlearning.transforms.attribution_quantities import MARGIN
from expunge.unlearning.transforms.base import GradientTransform, Site

Anchor = Literal["previous", "original"]
Compare = Literal["batches", "same"]
Penalty = Literal["symmetric", "hinge"]
Scale = Literal["absolute", "relative"]
Products = Literal["batch", "example"]
LevelName = Literal["parameter", "neuron"]
Quantity = Literal["probability", "log_probability", "log_odds", "margin"]
Order = Literal["first", "exact"]

_CHOICES: Final = {
    "anchor": Anchor,
    "compare": Compare,
    "penalty": Penalty,
    "scale": Scale,
    "products": Products,
    "level": LevelName,
    "of": Quantity,
    "order": Order,
}


@dataclass(frozen=True, slots=True)
class AttributionPenalty(GradientTransform):
    """The Ssiuu penalty; as it stands, Algorithm 1 of arXiv:2509.22263.

    Args:
        strength: lambda of eq. 3; the paper uses 1e-3 on FaithUn and 1e-4 on TOFU. With scale "relative" the norm of
            the penalty's gradient over that of the loss's.
        measure_every: steps between two measurements of the penalty, the first of them at step 2.
        anchor: A_ref is of the weights of the "previous" step, or of the "original" ones, then on the same examples.
        compare: with anchor "previous", A_ref is of the previous step's examples ("batches"), or of the "same" as A_t.
        penalty: "symmetric", or "hinge" for growth of negative influence alone.
        scale: "absolute" or "relative".
        adapt_to: growth of negative influence that is aimed at by adapting the strength, e.g. 0.01; None to leave it.
            New adapters have no influence to grow from: with them take anchor "previous" or level "neuron".
        products: A of the "batch" sum, or of each "example", which needs A_ref on the same examples.
        level: weights ("parameter") or outputs of linear maps ("neuron").
        of: influence on "probability", "log_probability" or "log_odds" of the whole answer, or on its "margin" over
            the wrong options, which every forget item must have then.
        order: "first" holds g constant, "exact" differentiates it too.
        modules: short names of linear maps, as in `architecture.MODULES` or the model's fused ones; empty for all that
            are trained.

    Raises:
        InputError: a value is unknown or out of its range, or two do not go together.
    """

    strength: float = 1e-3
    measure_every: int = 10
    anchor: Anchor = "previous"
    compare: Compare = "batches"
    penalty: Penalty = "symmetric"
    scale: Scale = "absolute"
    adapt_to: float | None = None
    products: Products = "batch"
    level: LevelName = "parameter"
    of: Quantity = "probability"
    order: Order = "first"
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise InputError("the penalty's strength must be a number >= 0", f"strength={self.strength}")
        if self.measure_every < 1:
            raise InputError("the steps between two measurements must be >= 1", f"measure_every={self.measure_every}")
        if self.adapt_to is not None and not 0 < self.adapt_to < math.inf:
            raise InputError("the growth that is aimed at must be a finite number > 0", f"adapt_to={self.adapt_to}")
        for name, value in current(self).items():
            if name in _CHOICES and value not in (known := get_args(_CHOICES[name])):
                raise InputError(
                    f"there is no such {name} of the penalty", f"{name}={value}", nearest(str(value), known)
                )
        if self.products == "example" and self._of_batches:
            raise InputError(
                "each example needs an influence of its own to be compared with, not that of the previous batch",
                "products=example",
                "Add compare=same or anchor=original.",
            )

    def bind(self, site: Site) -> BoundAttributionPenalty:
        """The penalty at work on the trained linear maps of `site`; raises `InputError` if there are none."""
        return BoundAttributionPenalty(self, site)

    @property
    def rides(self) -> bool:
        """Whether this form needs nothing but g of the step's batch, weight after weight."""
        return (
            self._of_batches
            and (self.scale, self.products, self.level, self.order) == ("absolute", "batch", "parameter", "first")
            and self.adapt_to is None
            and not self.wants_options
        )

    @property
    def wants_options(self) -> bool:
        """For the margin."""
        return self.of == MARGIN

    @property
    def _of_batches(self) -> bool:
        return (self.anchor, self.compare) == ("previous", "batches")
