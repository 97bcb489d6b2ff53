"""Whether the forgotten items can be told from items that were never trained on: membership inference by five scores.

    loss      L = - mean_t log P(y_t)
    zlib      L / bytes of the answer after zlib
    min-k     - mean of the smallest k % of log P(y_t)                                   arXiv:2310.16789
    min-k++   the same of ( log P(y_t) - mu_t ) / sigma_t, over the vocabulary           arXiv:2404.02936
    reference L - L of a reference model

Every score is small for what looks trained on, as in OpenUnlearning, and

    AUC = P( score of a member < score of a non-member ) + P( equal ) / 2               0.5 = cannot be told apart

The forget items are the members. An AUC under 0.5 says that they look less trained on than items that never were, which
betrays them as well. k = 40 %, as in the benchmarks of TOFU and MUSE.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from expunge.audit.intervals import Indices, bootstrap
from expunge.models.tokens import TokenScores

K = 0.4
LEAST_VARIANCE = 1e-6
"""A model that is certain of a token has no spread to divide by; OpenUnlearning takes the same floor."""

Wins = NDArray[np.float64]


def zlib_score(loss: float, text: str) -> float:
    """The loss per compressed byte: what is easy to say anyway proves nothing."""
    return loss / len(zlib.compress(text.encode()))


def min_k(log_probs: Sequence[float], k: float = K) -> float:
    """Minus the mean of the smallest share `k` of the values, of one at least."""
    return -fmean(sorted(log_probs)[: max(1, int(len(log_probs) * k))])


def min_k_plus_plus(tokens: TokenScores, k: float = K) -> float:
    """`min_k` of log-probabilities in units of their spread over the vocabulary."""
    told = zip(tokens.log_probs, tokens.means, tokens.variances, strict=True)
    return min_k([(value - mean) / math.sqrt(max(spread, LEAST_VARIANCE)) for value, mean, spread in told], k)


def membership_scores(
    tokens: Sequence[TokenScores], answers: Sequence[str], reference: Sequence[TokenScores] = ()
) -> dict[str, tuple[float, ...]]:
    """Scores of every item under OpenUnlearning's names; `mia_reference` where `reference` holds another model's view.

    Args:
        tokens: of each item, by the model in question.
        answers: text of each item.
        reference: of the same items, by the reference model.
    """
    found = {
        "mia_loss": tuple(item.loss for item in tokens),
        "mia_zlib": tuple(zlib_score(item.loss, text) for item, text in zip(tokens, answers, strict=True)),
        "mia_min_k": tuple(min_k(item.log_probs) for item in tokens),
        "mia_min_k_plus_plus": tuple(map(min_k_plus_plus, tokens)),
    }
    if reference:
        found["mia_reference"] = tuple(own.loss - other.loss for own, other in zip(tokens, reference, strict=True))
    return found


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The area under the ROC curve, by comparing every member with every non-member."""
    return float(_wins(members, others).mean())


def auc_interval(members: Sequence[float], others: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of `auc` over members and non-members."""
    wins = _wins(members, others)
    return bootstrap(lambda rows, columns: _mean(wins, rows, columns), wins.shape, seed=seed)


def privleak(auc_unlearned: float, auc_retrained: float = 0.5) -> float:
    """How far membership gives away more (< 0) or less (> 0) than in a model that never saw the items, in per cent.

        ( (1 - AUC) - (1 - AUC_retrained) ) / (1 - AUC_retrained) * 100          0 = as retrained

    The convention of MUSE (arXiv:2407.06460) as OpenUnlearning writes it. Against an AUC of 0.5 it is -100 where every
    member is recognised, and 100 where each looks less trained on than any other item; NaN where the retrained
    model's AUC is 1.
    """
    return 100 * (auc_retrained - auc_unlearned) / (1 - auc_retrained) if auc_retrained < 1 else math.nan


def privleak_interval(
    unlearned: tuple[Sequence[float], Sequence[float]],
    retrained: tuple[Sequence[float], Sequence[float]] | None,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of `privleak` over the items, which both models share; each pair is (members, others)."""
    wins = _wins(*unlearned)
    base = np.full_like(wins, 0.5) if retrained is None else _wins(*retrained)
    return bootstrap(
        lambda rows, columns: privleak(_mean(wins, rows, columns), _mean(base, rows, columns)), wins.shape, seed=seed
    )


def _wins(members: Sequence[float], others: Sequence[float]) -> Wins:
    """1 where the member's score is smaller, 0.5 where they are equal [members, others]."""
    one, other = np.asarray(members, dtype=float)[:, None], np.asarray(others, dtype=float)[None]
    wins: Wins = (one < other) + 0.5 * (one == other)
    return wins


def _mean(wins: Wins, rows: Indices, columns: Indices) -> float:
    """The mean over drawn rows and columns; by counts, which is faster than gathering what was drawn."""
    row, column = (np.bincount(i, minlength=size) for i, size in zip((rows, columns), wins.shape, strict=True))
    return float(row @ wins @ column) / (len(rows) * len(columns))
