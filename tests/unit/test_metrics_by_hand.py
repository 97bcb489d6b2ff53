"""Every metric against numbers worked out by hand, and against a definition that is slower and plainer."""

from __future__ import annotations

import itertools
import math
import random
import zlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.extraction import chance_of_strength, exact_memorization, extraction_strength
from expunge.audit.membership import auc, auc_interval, membership_scores, min_k, min_k_plus_plus, privleak, zlib_score
from expunge.audit.membership import privleak_interval as leak_interval
from expunge.audit.tofu import UTILITY_TERMS, ks_p_value, ks_statistic, model_utility
from expunge.audit.truth_ratio import closer_to_one, log_truth_ratio, true_better
from expunge.models.tokens import TokenScores

HITS = {
    # hits: (exact memorization, extraction strength)
    (True, True, True, True): (1.0, 1.0),
    (False, True, True, True): (0.75, 0.75),
    (True, False, True, True): (0.75, 0.5),
    (True, True, True, False): (0.75, 0.0),
    (False, False, False, False): (0.0, 0.0),
    (True,): (1.0, 1.0),
    (False,): (0.0, 0.0),
}


@pytest.mark.parametrize("hits", HITS)
def test_memorization_and_extraction(hits: tuple[bool, ...]) -> None:
    assert (exact_memorization(hits), extraction_strength(hits)) == HITS[hits]


def test_strength_of_guesses_is_the_mean_over_all_that_can_be_guessed() -> None:
    vocabulary, tokens = 3, 4
    said = itertools.product(range(vocabulary), repeat=tokens)
    strengths = [extraction_strength([token == 0 for token in guess]) for guess in said]
    assert chance_of_strength(tokens, vocabulary) == pytest.approx(sum(strengths) / len(strengths))


def test_truth_ratio() -> None:
    # p(right) = 0.5; p(wrong) = 0.4 and 0.1, whose geometric mean is 0.2: R = 0.4
    found = log_truth_ratio([math.log(0.5)], [math.log(0.4), math.log(0.1)])
    assert math.exp(found) == pytest.approx(0.4)
    assert closer_to_one(found) == closer_to_one(-found) == pytest.approx(0.4)
    assert true_better(found) == pytest.approx(0.6)
    assert true_better(-found) == 0
    assert closer_to_one(0.0) == 1 and true_better(0.0) == 0
    # two paraphrases: 0.5 and 0.125 have the geometric mean 0.25
    several = log_truth_ratio([math.log(0.5), math.log(0.125)], [math.log(0.25)])
    assert several == pytest.approx(0)


def test_without_wrong_answers_there_is_no_truth_ratio() -> None:
    nothing = log_truth_ratio([-1.0], [])
    assert math.isnan(nothing) and math.isnan(closer_to_one(nothing)) and math.isnan(true_better(nothing))


def tokens(log_probs: list[float], means: list[float], variances: list[float]) -> TokenScores:
    return TokenScores("a", tuple(log_probs), (True,) * len(log_probs), tuple(means), tuple(variances))


def test_membership_scores_by_hand() -> None:
    values = [-1.0, -5.0, -2.0, -4.0, -3.0]
    assert min_k(values, 0.4) == 4.5  # the smallest two
    assert min_k(values, 0.1) == 5.0  # one at least
    assert min_k([-2.0]) == 2.0
    item = tokens(values, [-2.0] * 5, [1.0, 4.0, 1.0, 0.25, 1.0])
    # normalised: 1, -1.5, 0, -4, -1
    assert min_k_plus_plus(item, 0.4) == pytest.approx((4 + 1.5) / 2)
    assert min_k_plus_plus(tokens([-1.0], [-0.5], [0.0])) == pytest.approx(500)  # the floor is 1e-6
    assert zlib_score(3.0, "Paris") == 3.0 / len(zlib.compress(b"Paris"))
    found = membership_scores([item], ["Paris"], [tokens([-2.5], [0.0], [1.0])])
    assert list(found) == ["mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference"]
    assert found["mia_loss"] == (3.0,) and found["mia_reference"] == (0.5,)
    assert "mia_reference" not in membership_scores([item], ["Paris"])


def test_auc_by_hand() -> None:
    assert auc([1.0, 2.0], [3.0, 4.0]) == 1
    assert auc([3.0, 4.0], [1.0, 2.0]) == 0
    assert auc([1.0, 1.0], [1.0]) == 0.5
    assert auc([1.0, 3.0], [2.0, 3.0]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_auc_counts_pairs(members: list[float], others: list[float]) -> None:
    wins = sum(Fraction(1) if a < b else Fraction(1, 2) if a == b else Fraction(0) for a in members for b in others)
    assert auc(members, others) == pytest.approx(float(wins / len(members) / len(others)))
    assert auc(members, others) + auc(others, members) == pytest.approx(1)


def test_planted_membership() -> None:
    rng = random.Random(0)
    draw = lambda mean, n: [rng.gauss(mean, 1) for _ in range(n)]  # noqa: E731
    learnt, fresh = draw(0, 60), draw(6, 50)
    assert auc(learnt, fresh) > 0.99
    same, alike = draw(0, 60), draw(0, 50)
    low, high = auc_interval(same, alike)
    assert low < auc(same, alike) < high and low < 0.5 < high
    assert high - low == pytest.approx(4 * math.sqrt((60 + 50) / (12 * 60 * 50)), rel=0.2)  # Mann-Whitney's deviation


def test_privleak_is_signed() -> None:
    assert privleak(1.0) == -100 and privleak(0.5) == 0 and privleak(0.0) == 100
    assert privleak(0.6, 0.6) == 0
    assert privleak(0.8, 0.6) == pytest.approx((0.2 - 0.4) / 0.4 * 100)
    assert math.isnan(privleak(0.5, 1.0))
    # the same items in both models: what all of them share is no uncertainty
    scored = ([1.0, 2.0, 5.0], [3.0, 4.0])
    assert leak_interval(scored, scored) == (0, 0)


def test_model_utility() -> None:
    assert model_utility({"retain_Q_A_Prob": 0.5, "retain_Q_A_ROUGE": 1.0}) == pytest.approx(2 / 3)
    assert model_utility({"retain_Q_A_Prob": 0.5, "forget_Q_A_Prob": 0.1}) == 0.5  # only what is to stay counts
    assert model_utility({"retain_Q_A_Prob": 0.5, "wf_Q_A_ROUGE": 0.0}) == 0
    assert model_utility({}) is None
    assert len(set(UTILITY_TERMS)) == 9


def test_kolmogorov_smirnov_by_hand() -> None:
    assert ks_statistic([1.0, 2.0], [1.0, 2.0]) == 0 and ks_p_value([1.0, 2.0], [1.0, 2.0]) == 1
    # of the 6 orders of 2 + 2 values, two are as far apart as can be
    assert ks_p_value([1.0, 2.0], [3.0, 4.0]) == pytest.approx(2 / 6)
    assert ks_p_value([0.0] * 3, [1.0] * 3) == pytest.approx(2 / 20)


def test_kolmogorov_smirnov_equals_scipy() -> None:
    ks_2samp = pytest.importorskip("scipy.stats").ks_2samp
    rng = random.Random(0)
    for _ in range(100):
        shift, digits = rng.choice([0, 0.5, 2]), rng.choice([1, 6])
        one = [round(rng.gauss(0, 1), digits) for _ in range(rng.randint(1, 25))]
        other = [round(rng.gauss(shift, 1), digits) for _ in range(rng.randint(1, 25))]
        told = ks_2samp(one, other, method="exact")
        assert ks_statistic(one, other) / (len(one) * len(other)) == pytest.approx(told.statistic)
        assert ks_p_value(one, other) == pytest.approx(told.pvalue, rel=1e-9)


def test_small_p_values_keep_their_digits() -> None:
    # 2 orders of C(400, 200) are this far apart
    assert ks_p_value([0.0] * 200, [1.0] * 200) == pytest.approx(2 / math.comb(400, 200), rel=1e-9)
