"""Erased or hidden, neuron by neuron: how the attribution of the forget answers changed between two models.

    D+_i = (1/n) sum [ max_k A_before[i,k] - max(max_k A_after[i,k], 0) ]     then clamped at 0       (erased)
    D-_i = (1/n) sum [ min_k A_before[i,k] - min_k A_after[i,k] ]             then clamped at 0       (hidden)

D+ is the positive influence that is gone, D- the negative influence that is new (arXiv:2509.22263). The inner max keeps
a neuron that was pushed past zero from counting as more than erased; the outer clamp drops change in the other
direction. Both say little on answers whose probability is saturated, so their share is kept beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from expunge.audit.attribution import Attribution
from expunge.audit.layout import Layout
from expunge.errors import InputError

DoubleArray = npt.NDArray[np.float64]

SATURATED = (0.01, 0.99)
"""An answer below or above these probabilities is saturated: dP/dh has all but vanished."""

GRID = tuple(int(m) for m in np.unique(np.geomspace(1, 1000, 61).round()))
"""Numbers of top neurons at which the cumulative curves are kept: log-spaced from 1 to 1000, 100 among them."""

_DIGITS = 6  # significant digits in the JSON form


@dataclass(frozen=True, eq=False)
class Influence:
    """What changed between the attributions of two models on the same answers.

    Args:
        of: the attributed quantity, in whose unit everything here is.
        top: how many neurons the sums and the cells of the maps take.
        d_plus: [neurons] positive influence lost.
        d_minus: [neurons] negative influence gained.
        curve_m: numbers m of top neurons.
        curve_plus: sum of the m largest D+, for each m of `curve_m`.
        curve_minus: sum of the m largest D-, for each m of `curve_m`.
        erased: sum of the `top` largest D+.
        hidden: sum of the `top` largest D-.
        modules: names of the rows of the maps.
        map_plus: [modules][layers] mean of the `top` largest D+ of that map's neurons; 0 where a layer has no such map.
        map_minus: the same of D-.
        saturated_before: share of the answers outside `SATURATED` in the first model.
        saturated_after: share of them in the second.
        saturated_share: share of answers saturated before or after.
    """

    of: str
    top: int
    d_plus: DoubleArray
    d_minus: DoubleArray
    curve_m: tuple[int, ...]
    curve_plus: tuple[float, ...]
    curve_minus: tuple[float, ...]
    erased: float
    hidden: float
    modules: tuple[str, ...]
    map_plus: tuple[tuple[float, ...], ...]
    map_minus: tuple[tuple[float, ...], ...]
    saturated_before: float
    saturated_after: float
    saturated_share: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the neurons' own values, rounded to six significant digits."""
        return {
            "of": self.of,
            "top": self.top,
            "erased": _rounded(self.erased),
            "hidden": _rounded(self.hidden),
            "curve_m": list(self.curve_m),
            "curve_plus": [_rounded(value) for value in self.curve_plus],
            "curve_minus": [_rounded(value) for value in self.curve_minus],
            "modules": list(self.modules),
            "map_plus": [[_rounded(value) for value in row] for row in self.map_plus],
            "map_minus": [[_rounded(value) for value in row] for row in self.map_minus],
            "saturated_before": _rounded(self.saturated_before),
            "saturated_after": _rounded(self.saturated_after),
            "saturated_share": _rounded(self.saturated_share),
        }


def compare(before: Attribution, after: Attribution, top: int = 100) -> Influence:
    """D+ and D- from `before` unlearning to `after`, with their curves, sums and maps.

    Raises:
        InputError: the two are not of the same examples in the same order, the same quantity and the same architecture.
    """
    _require_comparable(before, after)
    d_plus = _mean(before.positive) - _mean(np.maximum(after.positive, 0))
    d_minus = _mean(before.negative) - _mean(after.negative)
    d_plus, d_minus = np.maximum(d_plus, 0), np.maximum(d_minus, 0)
    low, high = SATURATED
    flat_before, flat_after = (((a.probability < low) | (a.probability > high)) for a in (before, after))
    return Influence(
        of=before.of,
        top=top,
        d_plus=d_plus,
        d_minus=d_minus,
        curve_m=GRID,
        curve_plus=cumulative(d_plus, GRID),
        curve_minus=cumulative(d_minus, GRID),
        erased=cumulative(d_plus, [top])[0],
        hidden=cumulative(d_minus, [top])[0],
        modules=before.layout.modules,
        map_plus=cells(d_plus, before.layout, top),
        map_minus=cells(d_minus, before.layout, top),
        saturated_before=float(flat_before.mean()),
        saturated_after=float(flat_after.mean()),
        saturated_share=float((flat_before | flat_after).mean()),
    )


def cumulative(values: DoubleArray, grid: tuple[int, ...] | list[int]) -> tuple[float, ...]:
    """The sum of the m largest of `values` for each m of `grid`; of all of them where m exceeds their number."""
    sums = np.cumsum(np.sort(values)[::-1])
    return tuple(float(sums[min(m, len(sums)) - 1]) for m in grid)


def cells(values: DoubleArray, layout: Layout, top: int) -> tuple[tuple[float, ...], ...]:
    """[modules][layers] the mean of the `top` largest of each map's values; of all of them where it has fewer."""
    table = {name: [0.0] * layout.layers for name in layout.modules}
    for span in layout.spans:
        part = values[span.slice]
        table[span.module][span.layer] = float(np.sort(part)[-top:].mean())
    return tuple(tuple(table[name]) for name in layout.modules)


def rho(before: Attribution, after: Attribution) -> float | None:
    """Pearson correlation of two attributions over the neurons, such as before and after an attack.

    The paper does not say of which values; here each neuron gives two, its positive and its negative influence, each a
    mean over the examples. None where one of the attributions is constant, which leaves the correlation undefined.
    """
    _require_comparable(before, after)
    x, y = (np.concatenate([_mean(a.positive), _mean(a.negative)]) for a in (before, after))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale > 0 else None


def _require_comparable(before: Attribution, after: Attribution) -> None:
    for what, one, other in (
        ("quantities", before.of, after.of),
        ("examples", before.ids, after.ids),
        ("architectures", before.layout, after.layout),
    ):
        if one != other:
            raise InputError(
                f"the attributions are of different {what}, so they cannot be compared",
                fix="Attribute the same quantity of the same examples, in the same order, on one architecture.",
            )


def _mean(values: npt.NDArray[np.float32]) -> DoubleArray:
    """[neurons] the mean over the examples, summed in double precision."""
    return np.asarray(values.mean(axis=0, dtype=np.float64))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
