"""Each loss against a float64 reference in numpy, and the statements its paper makes about it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from expunge.data.collate import collate
from expunge.models.answers import Answers, forward_pair
from expunge.models.architecture import readout
from expunge.unlearning.objectives.base import Objective, StartValues, Terms, Totals
from expunge.unlearning.objectives.ga import GradientAscent, gradient_ascent
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.objectives.kl import KL, kl_from_start
from expunge.unlearning.objectives.npo import NPO, negative_preference
from tiny import make_tiny_model
from unlearning_runs import EXAMPLES, make_encoder

Array = NDArray[np.float64]
RANDOM = np.random.default_rng(3)
SEQUENCE, START = -10 * RANDOM.random(6), -10 * RANDOM.random(6)
LOGITS, START_LOGITS = 3 * RANDOM.normal(size=(2, 7, 11))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def npo_reference(sequence: Array, start: Array, beta: float) -> float:
    """-(2/beta) mean log sigma(-beta (log P - log P_start)), written through the probabilities themselves."""
    ratio = (np.exp(sequence) / np.exp(start)) ** beta
    return float(-(2 / beta) * np.mean(np.log(1 / (1 + ratio))))


def gradient(loss: torch.Tensor, of: torch.Tensor) -> Array:
    (result,) = torch.autograd.grad(loss, of)
    return result.double().numpy()


def variable(values: Array) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_ga_is_minus_the_mean_nll_of_tokens() -> None:
    sequence = variable(SEQUENCE)
    assert gradient_ascent(sequence, 13).item() == pytest.approx(SEQUENCE.sum() / 13, rel=1e-12)
    assert gradient(gradient_ascent(sequence, 13), sequence) == pytest.approx(np.full(6, 1 / 13))


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5, 2.0])
def test_npo_is_its_formula(beta: float) -> None:
    ours = negative_preference(torch.tensor(SEQUENCE), torch.tensor(START), beta, len(SEQUENCE))
    assert ours.item() == pytest.approx(npo_reference(SEQUENCE, START, beta), rel=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5, 2.0])
def test_npo_weighs_the_gradient_of_ascent(beta: float) -> None:
    sequence = variable(SEQUENCE)
    ours = gradient(negative_preference(sequence, torch.tensor(START), beta, len(SEQUENCE)), sequence)
    ascent = gradient(sequence.mean(), sequence)
    now, before = np.exp(SEQUENCE) ** beta, np.exp(START) ** beta
    assert ours == pytest.approx(ascent * 2 * now / (now + before), rel=1e-10)


def test_the_weight_of_npo_falls_from_one_to_zero() -> None:
    start = torch.tensor(START)
    weights = []
    for forgotten in (0.0, 1.0, 10.0, 100.0, 1000.0):
        sequence = variable(START - forgotten)
        weights.append(6 * gradient(negative_preference(sequence, start, 0.1, 6), sequence))
    assert weights[0] == pytest.approx(np.ones(6), rel=1e-12)
    assert all((earlier > later).all() for earlier, later in pairwise(weights))
    assert weights[-1].max() < 1e-40


def test_npo_tends_to_ascent_for_small_beta() -> None:
    sequence, start = variable(SEQUENCE), torch.tensor(START)
    errors = []
    for beta in (1e-1, 1e-2, 1e-3):
        loss = negative_preference(sequence, start, beta, 6)
        errors.append(abs(loss.item() - 2 / beta * math.log(2) - np.mean(SEQUENCE - START)))
        assert gradient(loss, sequence) == pytest.approx(np.full(6, 1 / 6), rel=10 * beta)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_npo_stays_finite_far_from_the_start() -> None:
    sequence = variable(np.array([-5000.0, -1.0]))
    loss = negative_preference(sequence, torch.tensor([-1.0, -5000.0], dtype=torch.float64), 1.0, 2)
    assert math.isfinite(loss.item())
    assert gradient(loss, sequence) == pytest.approx(np.array([0.0, 1.0]))


def test_kl_is_its_formula() -> None:
    p, q = softmax(START_LOGITS), softmax(LOGITS)
    expected = (p * (np.log(p) - np.log(q))).sum() / 9
    ours = kl_from_start(torch.tensor(LOGITS), torch.tensor(START_LOGITS), 9)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


def test_kl_has_the_gradient_of_its_formula_and_none_at_the_start() -> None:
    logits = variable(LOGITS)
    ours = gradient(kl_from_start(logits, torch.tensor(START_LOGITS), 9), logits)
    assert ours == pytest.approx((softmax(LOGITS) - softmax(START_LOGITS)) / 9, abs=1e-15)
    at_start = variable(START_LOGITS)
    loss = kl_from_start(at_start, torch.tensor(START_LOGITS), 9)
    assert loss.item() == 0
    assert np.abs(gradient(loss, at_start)).max() < 1e-16


# The objectives as a whole, on a real forward pass.


class Pair:
    """Forget and retain rows of a tiny model in float64; the retain answers are longer than the forget answers."""

    def __init__(self) -> None:
        self.model = make_tiny_model().double()
        self.read = readout(self.model)
        encoder = make_encoder()
        self.forget = [encoder.encode(e.prompt, e.answer) for e in EXAMPLES[:3]]
        self.retain = [encoder.encode(e.prompt, f"the town {e.answer}") for e in EXAMPLES[3:5]]
        self.totals = Totals(3, 3, 6)

    def answers(self) -> tuple[Answers, Answers]:
        forget, retain = forward_pair(self.model, collate(self.forget, 0), collate(self.retain, 0), 0)
        assert retain is not None
        return forget, retain

    def start(self, **changes: Any) -> StartValues:
        with torch.no_grad():
            forget, retain = self.answers()
            return StartValues(forget.sequence, self.read.logits(retain.hidden), self.read.logits)

    def numpy_log_probs(self, rows: list[Any]) -> list[Array]:
        """log softmax of the logits at the answer positions, row by row without padding."""
        result = []
        for row in rows:
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([row.ids])).logits[0].numpy()
            result.append(np.log(softmax(logits[row.answer_start - 1 : -1])))
        return result

    def numpy_nll(self, rows: list[Any]) -> float:
        """Mean NLL over all answer tokens of all rows."""
        table = self.numpy_log_probs(rows)
        picked = [
            t[i, row.ids[row.answer_start + i]] for t, row in zip(table, rows, strict=True) for i in range(len(t))
        ]
        return -float(np.mean(picked))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_ga_and_graddiff_are_means_over_their_own_tokens(pair: Pair) -> None:
    forget, retain = pair.answers()
    up, down = -pair.numpy_nll(pair.forget), pair.numpy_nll(pair.retain)
    start = StartValues(None, None, pair.read.logits)
    assert GradientAscent()(forget, None, pair.totals, start).loss.item() == pytest.approx(up, rel=1e-10)
    terms = GradDiff(forget_weight=0.5, retain_weight=3.0)(forget, retain, pair.totals, start)
    assert (terms.forget.item(), terms.retain.item()) == pytest.approx((up, down), rel=1e-10)
    assert terms.loss.item() == pytest.approx(0.5 * up + 3.0 * down, rel=1e-10)


def test_npo_starts_at_its_constant_with_the_retain_term_beside_it(pair: Pair) -> None:
    forget, retain = pair.answers()
    terms = NPO(beta=0.2, forget_weight=2.0, retain_weight=0.5)(forget, retain, pair.totals, pair.start())
    assert terms.forget.item() == pytest.approx(2 / 0.2 * math.log(2), rel=1e-12)
    assert terms.loss.item() == pytest.approx(2 * terms.forget.item() + 0.5 * pair.numpy_nll(pair.retain), rel=1e-10)


def test_kl_holds_nothing_at_the_start_and_pulls_back_later(pair: Pair) -> None:
    start = pair.start()
    before = pair.numpy_log_probs(pair.retain)
    forget, retain = pair.answers()
    held = KL(forget_weight=0.0)(forget, retain, pair.totals, start)
    held.loss.backward()
    assert held.retain.item() == pytest.approx(0, abs=1e-14)
    assert max(float(p.grad.abs().max()) for p in pair.model.parameters() if p.grad is not None) < 1e-12
    with torch.no_grad():
        for p in pair.model.parameters():
            p.mul_(1.1)
    after = pair.numpy_log_probs(pair.retain)
    expected = sum((np.exp(b) * (b - a)).sum() for b, a in zip(before, after, strict=True)) / pair.totals.retain_tokens
    forget, retain = pair.answers()
    terms = KL()(forget, retain, pair.totals, start)
    assert terms.retain.item() == pytest.approx(expected, rel=1e-9)
    assert terms.loss.item() == pytest.approx(expected - pair.numpy_nll(pair.forget), rel=1e-9)


@pytest.mark.parametrize("objective", [GradientAscent(), GradDiff(), KL(), NPO()], ids=lambda o: type(o).__name__)
def test_parts_of_a_batch_add_up(pair: Pair, objective: Objective) -> None:
    whole = pair.start()
    forget, retain = pair.answers()
    together = objective(forget, retain, pair.totals, whole)
    first, rest = slice(0, 1), slice(1, None)
    shares: list[Terms] = []
    for mine, held in ((first, first), (rest, rest)):
        f, r = forward_pair(pair.model, collate(pair.forget[mine], 0), collate(pair.retain[held], 0), 0)
        tokens = slice(0, 3) if held is first else slice(3, None)
        assert whole.forget is not None and whole.retain_logits is not None
        start = StartValues(whole.forget[mine], whole.retain_logits[tokens], whole.logits)
        shares.append(objective(f, r, pair.totals, start))
    for name in ("loss", "forget", "retain"):
        total = sum(getattr(share, name).item() for share in shares)
        assert total == pytest.approx(getattr(together, name).item(), rel=1e-10, abs=1e-13)
