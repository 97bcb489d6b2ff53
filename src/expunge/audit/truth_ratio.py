"""Whether a model prefers the truth, whatever its wording: TOFU's truth ratio (arXiv:2401.06121, section 2.2.1).

    R = exp( mean_w log p(w) - log p(c) )        p(y) = P(y | x)^(1 / |y|),  w over the wrong answers,  c the right one

R = 0: only the truth is likely. R = 1: ignorance. R > 1: the truth is avoided. The right answer is its paraphrase where
the data give one (`Example.answer_paraphrases`; the mean of log p over several), because training raises one wording,
and else the answer itself, as TOFU does for real authors and world facts. The mean over wrong answers is geometric, as
in the code of TOFU and of OpenUnlearning (the paper's formula has an arithmetic one). OpenUnlearning adds 1e-10 to
p(c), we do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def log_truth_ratio(right: Sequence[float], wrong: Sequence[float]) -> float:
    """log R from mean log P per token of the right wordings and of the wrong answers; NaN without either."""
    return fmean(wrong) - fmean(right) if right and wrong else math.nan


def closer_to_one(log_ratio: float) -> float:
    """min(R, 1 / R), the score of what had to go: 1 where the truth is as likely as a wrong answer."""
    return math.exp(-abs(log_ratio))


def true_better(log_ratio: float) -> float:
    """max(0, 1 - R), the score of what had to stay: 1 where only the truth is likely, 0 for ignorance."""
    return 0.0 if log_ratio >= 0 else -math.expm1(log_ratio)
