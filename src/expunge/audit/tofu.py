"""TOFU's two numbers (arXiv:2401.06121): is the model like one that never learnt the set, and is it still good?

forget quality = p-value of a two-sample Kolmogorov-Smirnov test on the truth ratios of the forget items,
                 unlearned against retrained; 1 = cannot be told apart
model utility  = harmonic mean of probability, ROUGE-L recall and truth ratio on what stays, real authors, world facts
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from statistics import harmonic_mean
from typing import Final

UTILITY_TERMS: Final = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
"""The nine values, under OpenUnlearning's names."""


def model_utility(values: Mapping[str, float]) -> float | None:
    """Harmonic mean of those `UTILITY_TERMS` that were measured, 0 if one of them is 0, None without any.

    A value that is missing is left out, so two utilities compare only where the same values were there.
    """
    there = [values[name] for name in UTILITY_TERMS if name in values]
    return harmonic_mean(there) if there else None


def ks_statistic(one: Sequence[float], other: Sequence[float]) -> int:
    """max_x | F(x) - G(x) | of the two empirical distribution functions, times len(one) * len(other)."""
    first, second = sorted(one), sorted(other)
    gaps = (bisect_right(first, x) * len(second) - bisect_right(second, x) * len(first) for x in (*first, *second))
    return max(abs(gap) for gap in gaps)


def ks_p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p-value under the hypothesis that both are drawn from one distribution (Hodges 1958).

    Every order of the pooled values is then equally likely: a lattice path from (0, 0) to (m, n). With A(i, j) the
    share of paths to (i, j) that have been as far from the diagonal as what was seen,

        A(i, j) = 1 where | i n - j m | >= D,  else  ( i A(i-1, j) + j A(i, j-1) ) / (i + j)           p = A(m, n)

    A sum of positive terms, so small p keep their digits. O(m n). `scipy.stats.ks_2samp` gives the same.
    """
    far, m, n = ks_statistic(one, other), len(one), len(other)
    if far == 0:
        return 1.0
    row: list[float] = []
    for i in range(m + 1):
        above, row = row, []
        for j in range(n + 1):
            up = i * above[j] if i else 0.0
            left = j * row[j - 1] if j else 0.0
            row.append(1.0 if abs(i * n - j * m) >= far else (up + left) / max(1, i + j))
    return row[n]
