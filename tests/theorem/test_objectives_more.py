"""SimNPO, WGA, SatImp, CE-U, UNDIAL and PDU: each loss against a float64 reference in numpy, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from expunge.data.collate import Encoded, collate
from expunge.errors import InputError
from expunge.models.answers import Answers, answer_log_probs, forward_pair
from expunge.models.architecture import readout
from expunge.progress import Progress, Silent
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, unlearn
from expunge.unlearning.methods import Method
from expunge.unlearning.objectives.base import Objective, StartValues, Totals
from expunge.unlearning.objectives.ceu import CEU, cross_entropy_without
from expunge.unlearning.objectives.ga import gradient_ascent
from expunge.unlearning.objectives.npo import NPO
from expunge.unlearning.objectives.pdu import PDU, logit_margin
from expunge.unlearning.objectives.satimp import SatImp, saturation_importance
from expunge.unlearning.objectives.simnpo import SimNPO, simple_negative_preference
from expunge.unlearning.objectives.undial import UNDIAL, distilled
from expunge.unlearning.objectives.wga import WGA, weighted_ascent
from expunge.unlearning.transforms.dual import DualAscent, dual_step
from tiny import make_tiny_model
from unlearning_runs import (
    EXAMPLES,
    SMOOTH,
    CutAfter,
    assert_same,
    history,
    largest_difference,
    make_encoder,
    make_request,
    weights,
)

Array = NDArray[np.float64]
RANDOM = np.random.default_rng(7)
LOGITS, START_LOGITS = 3 * RANDOM.normal(size=(2, 6, 11))
TARGETS = RANDOM.integers(0, 11, size=6)
IDS = torch.tensor(TARGETS)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def variable(values: Array) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(loss: torch.Tensor, of: torch.Tensor) -> Array:
    (result,) = torch.autograd.grad(loss, of)
    return result.double().numpy()


# References on what the model says: for each forget row its logits [tokens, vocabulary], now and at the start, and ids.


@dataclass
class Row:
    logits: Array
    start: Array
    ids: Array

    @property
    def p(self) -> Array:
        return softmax(self.logits)[np.arange(len(self.ids)), self.ids]


def mean_over_tokens(of: Callable[[Row], Array]) -> Callable[[list[Row]], float]:
    return lambda rows: float(np.concatenate([of(row) for row in rows]).mean())


def simnpo_reference(rows: list[Row]) -> float:
    """-(2/b) mean log sigma(-(b/|y|) log P - margin), through the geometric mean of the probabilities."""
    odds = np.array([np.prod(row.p) ** (2.5 / len(row.ids)) * np.exp(0.3) for row in rows])
    return float(-(2 / 2.5) * np.log(1 / (1 + odds)).mean())


def undial_reference(row: Row) -> Array:
    lowered = row.start.copy()
    lowered[np.arange(len(row.ids)), row.ids] -= 4.0
    return -(softmax(lowered) * np.log(softmax(row.logits))).sum(-1)


def ceu_reference(row: Row) -> Array:
    losses = []
    for z, y in zip(row.logits, row.ids, strict=True):
        others = np.delete(z, y)
        losses.append(-(softmax(others) * np.delete(np.log(softmax(z)), y)).sum())
    return np.array(losses)


REFERENCES: dict[str, tuple[Objective, Callable[[list[Row]], float]]] = {
    "simnpo": (SimNPO(beta=2.5, margin=0.3), simnpo_reference),
    "wga": (WGA(beta=0.7), mean_over_tokens(lambda row: row.p**0.7 * np.log(row.p))),
    "satimp": (SatImp(beta1=0.5, beta2=2.0), mean_over_tokens(lambda r: r.p**0.5 * (1 - r.p) ** 2 * np.log(r.p))),
    "ceu": (CEU(), mean_over_tokens(ceu_reference)),
    "undial": (UNDIAL(beta=4.0), mean_over_tokens(undial_reference)),
    "pdu": (PDU(), mean_over_tokens(lambda row: (row.logits.max(-1) - row.logits.mean(-1)) ** 2)),
}
OBJECTIVES = [objective for objective, _ in REFERENCES.values()]


@dataclass
class Case:
    """A float64 model that has moved from its start; rows of unequal length, so that they are padded when joined."""

    model: LlamaForCausalLM = field(default_factory=lambda: make_tiny_model().double())
    pad: int = 0

    def __post_init__(self) -> None:
        encode, towns = make_encoder().encode, [e.answer for e in EXAMPLES]
        self.forget = [
            encode(EXAMPLES[0].prompt, towns[0]),
            encode("where does bob live ?", f"the town {towns[1]}"),
            encode("cyd lives in", f"{towns[2]} {towns[3]}"),
        ]
        self.retain = [encode(e.prompt, f"in {e.answer}") for e in EXAMPLES[4:7]]
        self.totals = Totals(6, 3, 6)
        self.read = readout(self.model)
        self.start_logits = self.logits(self.forget)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)

    def logits(self, rows: list[Encoded]) -> list[Array]:
        """The logits at the answer positions, row by row without padding."""
        with torch.no_grad():
            found = [self.model(input_ids=torch.tensor([row.ids])).logits[0].numpy() for row in rows]
        return [z[row.answer_start - 1 : -1] for z, row in zip(found, rows, strict=True)]

    def rows(self, encoded: list[Encoded], start: list[Array]) -> list[Row]:
        triples = zip(self.logits(encoded), start, encoded, strict=True)
        return [Row(z, before, np.array(row.ids[row.answer_start :])) for z, before, row in triples]

    def answers(self, which: slice) -> tuple[Answers, Answers]:
        forget, retain = (collate(rows[which], self.pad) for rows in (self.forget, self.retain))
        one, other = forward_pair(self.model, forget, retain, self.pad)
        assert other is not None
        return one, other

    def start(self, which: slice = slice(None)) -> StartValues:
        logits = torch.tensor(np.concatenate(self.start_logits[which]))
        return StartValues(None, None, self.read.logits, forget_logits=logits)


@pytest.mark.parametrize("name", REFERENCES)
def test_each_objective_is_its_formula(name: str) -> None:
    case, (objective, reference) = Case(), REFERENCES[name]
    terms = objective(*case.answers(slice(None)), case.totals, case.start())
    assert terms.forget.item() == pytest.approx(reference(case.rows(case.forget, case.start_logits)), rel=1e-9)
    retained = case.rows(case.retain, case.logits(case.retain))
    retain = -np.concatenate([np.log(row.p) for row in retained]).mean()
    assert terms.retain.item() == pytest.approx(retain, rel=1e-9)
    weights = objective.weights
    assert terms.loss.item() == pytest.approx(
        weights.forget * terms.forget.item() + weights.retain * terms.retain.item(), rel=1e-12
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_parts_of_a_batch_add_up(name: str) -> None:
    case, (objective, _) = Case(), REFERENCES[name]
    together = objective(*case.answers(slice(None)), case.totals, case.start())
    parts = [objective(*case.answers(s), case.totals, case.start(s)) for s in (slice(0, 1), slice(1, None))]
    for term in ("loss", "forget", "retain"):
        total = sum(getattr(part, term).item() for part in parts)
        assert total == pytest.approx(getattr(together, term).item(), rel=1e-10)


@pytest.mark.parametrize("name", REFERENCES)
def test_each_loss_reaches_the_weights_from_answer_positions_only(name: str) -> None:
    """Padding says nothing, even if padded with a token that is an answer; and each position of an answer counts."""
    objective, _ = REFERENCES[name]
    values = []
    for pad in (0, make_encoder().encode("in", EXAMPLES[0].answer).ids[-1]):
        case = Case(pad=pad)
        forget = answer_log_probs(case.model, collate(case.forget, pad))
        loss = objective.forget_loss(forget, case.totals, case.start())
        (pushed,) = torch.autograd.grad(loss, forget.hidden)
        assert pushed.shape[0] == case.totals.forget_tokens == len(forget.targets)
        assert (pushed.norm(dim=1) > 1e-9).all()
        values.append(loss.item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


# What each paper says about its gradient.


def test_simnpo_weighs_ascent_on_the_log_probability_per_token() -> None:
    sequence, lengths = variable(-10 * RANDOM.random(6)), np.array([1, 2, 3, 1, 5, 9])
    loss = simple_negative_preference(sequence, torch.tensor(lengths), 2.5, 0.3, 6)
    sigma = 1 / (1 + np.exp(-(2.5 * sequence.detach().numpy() / lengths + 0.3)))
    assert gradient(loss, sequence) == pytest.approx(2 * sigma / lengths / 6, rel=1e-12)


def test_simnpo_sees_no_difference_between_a_short_answer_and_a_long_one_of_the_same_tokens() -> None:
    lengths = torch.tensor([1, 7])
    losses = []
    for row in (0, 1):
        token = variable(np.full(int(lengths[row]), -0.8))
        loss = simple_negative_preference(token.sum()[None], lengths[row : row + 1], 4.5, 0.0, 2)
        losses.append(loss.item())
        assert gradient(loss, token).sum() == pytest.approx(1 / (1 + np.exp(4.5 * 0.8)), rel=1e-12)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_simnpo_of_one_token_is_npo_from_a_start_of_certainty() -> None:
    case = Case()
    forget, _ = case.answers(slice(0, 1))
    start = StartValues(torch.zeros(1, dtype=torch.float64), None, case.read.logits)
    one, other = (loss.forget_loss(forget, case.totals, start) for loss in (SimNPO(beta=0.7), NPO(beta=0.7)))
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_wga_and_satimp_weigh_the_gradient_of_ascent_by_constants() -> None:
    token = variable(np.log(np.array([1e-9, 0.1, 0.5, 0.9, 1 - 1e-12])))
    p = token.detach().exp().numpy()
    ascent = gradient(gradient_ascent(token, 5), token)
    assert gradient(weighted_ascent(token, (0.7 * token).exp(), 5), token) == pytest.approx(ascent * p**0.7, rel=1e-12)
    weight = saturation_importance(token, 5.0, 1.0)
    assert not weight.requires_grad
    expected = p**5 * -np.expm1(np.log(p))
    assert gradient(weighted_ascent(token, weight, 5), token) == pytest.approx(ascent * expected, rel=1e-9)


def test_the_weights_have_the_limits_that_their_names_say() -> None:
    token = torch.tensor([-800.0, -1.0, 0.0], dtype=torch.float64)
    assert saturation_importance(token, 0.0, 0.0).tolist() == [1, 1, 1]  # gradient ascent
    assert torch.equal(saturation_importance(token, 2.0, 0.0), (2 * token).exp())  # WGA
    forgotten, _, certain = saturation_importance(token, 5.0, 1.0).tolist()
    assert (forgotten, certain) == (0, 0)
    nearly = torch.tensor([-1e-9], dtype=torch.float32)  # whose probability is 1 in that precision
    assert saturation_importance(nearly, 5.0, 1.0).item() == pytest.approx(1e-9, rel=1e-5)


def test_the_target_of_ceu_never_holds_the_answer() -> None:
    """The gradient on its logit is p_y, all of it: the target's share would be taken off."""
    logits = variable(LOGITS)
    ours, p = gradient(cross_entropy_without(logits, IDS, 6), logits), softmax(LOGITS)
    rows, picked = np.arange(6), p[np.arange(6), TARGETS]
    expected = -p * picked[:, None] / (1 - picked[:, None])
    expected[rows, TARGETS] = picked
    assert ours == pytest.approx(expected / 6, abs=1e-14)
    assert (ours[rows, TARGETS] > 0).all()


def test_ceu_is_finite_where_the_answer_is_certain_and_quiet_where_it_is_gone() -> None:
    certain, gone = LOGITS.copy(), LOGITS.copy()
    certain[np.arange(6), TARGETS] += 500
    gone[np.arange(6), TARGETS] -= 500
    for logits, push in ((certain, 1 / 6), (gone, 0.0)):
        moved = variable(logits)
        loss = cross_entropy_without(moved, IDS, 6)
        assert np.isfinite(loss.item())
        assert gradient(loss, moved)[np.arange(6), TARGETS] == pytest.approx(np.full(6, push), abs=1e-12)


def test_undial_pulls_towards_the_lowered_start_and_rests_there() -> None:
    lowered = START_LOGITS.copy()
    lowered[np.arange(6), TARGETS] -= 10.0
    start, logits = torch.tensor(START_LOGITS), variable(LOGITS)
    before = start.clone()
    ours = gradient(distilled(logits, start, IDS, 10.0, 6), logits)
    assert ours == pytest.approx((softmax(LOGITS) - softmax(lowered)) / 6, abs=1e-14)
    assert torch.equal(start, before)
    there = variable(lowered + 3.0)
    assert np.abs(gradient(distilled(there, start, IDS, 10.0, 6), there)).max() < 1e-15


def test_pdu_flattens_the_logits() -> None:
    logits = variable(LOGITS)
    top = LOGITS.max(-1, keepdims=True)
    expected = 2 * (top - LOGITS.mean(-1, keepdims=True)) * ((top == LOGITS) - 1 / 11) / 6
    assert gradient(logit_margin(logits, 6), logits) == pytest.approx(expected, abs=1e-14)
    assert logit_margin(torch.full((6, 11), 3.0, dtype=torch.float64), 6).item() == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: cross_entropy_without(z, IDS, 6),
        lambda z: distilled(z, torch.tensor(START_LOGITS), IDS, 4.0, 6),
        lambda z: logit_margin(z, 6),
    ],
)
def test_a_constant_added_to_all_logits_changes_nothing(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    logits = torch.tensor(LOGITS)
    assert loss(logits).item() == pytest.approx(loss(logits + 40.0).item(), rel=1e-10)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (SimNPO, {"beta": 0.0}),
        (SimNPO, {"margin": float("nan")}),
        (WGA, {"beta": -1.0}),
        (SatImp, {"beta1": -1.0}),
        (SatImp, {"beta2": float("inf")}),
        (UNDIAL, {"beta": -1.0}),
        (CEU, {"retain_weight": -1.0}),
        (DualAscent, {"step_size": -1.0}),
        (DualAscent, {"tolerance": float("nan")}),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[..., object], settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        make(**settings)


# In the loop.


def run(
    method: Method, output: Path | None = None, progress: Progress | None = None, **arguments: Any
) -> tuple[UnlearnResult, LlamaForCausalLM]:
    model = make_tiny_model().double()
    given = UnlearnArguments(**{**SMOOTH, **arguments})
    result = unlearn(model, make_encoder(), make_request(), method, given, output=output, progress=progress or Silent())
    return result, model


PDU_METHOD = Method(PDU(), (DualAscent(step_size=0.5, tolerance=3.0),))


@pytest.mark.parametrize("method", [Method(UNDIAL()), PDU_METHOD], ids=["undial", "pdu"])
def test_the_cut_of_a_step_changes_nothing(method: Method) -> None:
    cuts = ({"per_device_train_batch_size": n, "gradient_accumulation_steps": 4 // n} for n in (4, 2, 1))
    (whole, model), *others = [run(method, **cut) for cut in cuts]
    for result, other in others:
        assert largest_difference(weights(model), weights(other)) < 1e-10
        for a, b in zip(history(whole), history(result), strict=True):
            assert a == pytest.approx(b, rel=1e-9)
    assert largest_difference(weights(model), weights(make_tiny_model().double())) > 1e-3


@pytest.mark.parametrize("method", [Method(UNDIAL()), PDU_METHOD], ids=["undial", "pdu"])
def test_resumed_is_straight(method: Method, tmp_path: Path) -> None:
    straight, model = run(method, max_steps=5)
    with pytest.raises(KeyboardInterrupt):
        run(method, tmp_path, CutAfter(2), max_steps=5)
    resumed, again = run(method, tmp_path, max_steps=5)
    assert_same(weights(model), weights(again))
    assert history(straight) == history(resumed)


def test_undial_that_lowers_nothing_rests_at_the_start() -> None:
    """Were the start's logits those of other rows or positions, there would be a gradient."""
    result, _ = run(Method(UNDIAL(beta=0.0, retain_weight=0.0)), max_steps=3)
    first, *_, last = result.history[1:]
    assert first.grad_norm == pytest.approx(0, abs=1e-12)
    assert last.grad_norm == pytest.approx(0, abs=1e-12)


def test_the_dual_weight_follows_its_recurrence() -> None:
    result, _ = run(PDU_METHOD, max_steps=6)
    weight = 1.0
    for metrics in result.history[1:]:
        assert metrics.transform["dual_weight"] == pytest.approx(weight, rel=1e-12)
        assert metrics.transform["dual_retain_nll"] == pytest.approx(metrics.retain, rel=1e-6)
        weight = max(0.0, weight + 0.5 * (metrics.retain - 3.0))
    assert weight != 1.0


def test_a_dual_weight_held_at_its_start_is_a_plain_weighted_sum() -> None:
    one = run(Method(PDU(), (DualAscent(step_size=0.0, initial=2.5),)))[1]
    other = run(Method(PDU(retain_weight=2.5)))[1]
    assert largest_difference(weights(one), weights(other)) < 1e-12


def test_the_dual_weight_is_never_negative() -> None:
    assert dual_step(1.0, 2.0, 0.5, 0.5) == 1.75
    assert dual_step(0.1, 0.0, 0.5, 0.5) == 0.0


def test_a_dual_weight_without_retain_rows_is_refused() -> None:
    with pytest.raises(InputError, match="retain loss to watch"):
        unlearn(make_tiny_model(), make_encoder(), Request(EXAMPLES[:3], ()), PDU_METHOD, UnlearnArguments(**SMOOTH))
